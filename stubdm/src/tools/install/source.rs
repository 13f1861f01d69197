//! The source of a link or file: looked for below the root, and refused if it is of the wrong kind,
//! or if others than root could replace it.

use std::io;

use nix::sys::stat::{FileStat, SFlag};
use nix::sys::utsname::uname;
use stubdm_image::{kernel, pick_kernel};

use super::InstallOptions;
use super::parts::What;
use super::record::Put;
use super::root::{Found, Links, Root, kind};
use crate::rt::error::{Context, Failure, Result};

/// The source for the places of a part.
///
/// # Errors
/// It is not there, or is not what it should be.
pub(super) fn what_to_put(options: &InstallOptions, root: &Root, what: What) -> Result<Put> {
    let path = match what {
        What::Text(text) => return Ok(Put::Text(text.to_owned())),
        What::Program => return program(options, root).map(Put::Link),
        What::Ramdisk => options.image.clone(),
        What::Kernel => match &options.kernel {
            Some(path) => path.clone(),
            None => installed_kernel(root)?,
        },
    };
    let found = required(root, &path).map_err(|failure| match what {
        What::Ramdisk => Failure::new(format_args!(
            "{failure}; stubdm-run image build -o FILE makes one, and --image FILE names it"
        )),
        _ => failure,
    })?;
    Ok(Put::Link(found.path))
}

/// Walks to a file below the root: only its owner, who is root on this machine, may change it, the
/// links and the folders that lead to it.
fn required(root: &Root, path: &str) -> Result<Found> {
    if !path.starts_with('/') {
        return Err(Failure::usage(format_args!("{path} is no absolute path")));
    }
    let owner = root.is_own().then_some(0);
    let mut whose = None;
    let found = root.walk(path, Links::All, |path, stat| {
        whose = whose.take().or_else(|| replaceable(path, stat, owner));
        match whose {
            Some(_) => Err(io::ErrorKind::PermissionDenied.into()),
            None => Ok(()),
        }
    });
    let found = match (found, whose) {
        (_, Some(whose)) => {
            return Err(Failure::new(format_args!(
                "{whose}, and the toolstack would use {path} as root; put it where only root can write"
            )));
        }
        (Ok(found), None) => found,
        (Err(error), None) => {
            let shown = root.real(path);
            return Err(match error.kind() {
                io::ErrorKind::NotFound => {
                    Failure::new(format_args!("there is no {}", shown.display()))
                }
                _ => Failure::new(format_args!("{}: {error}", shown.display())),
            });
        }
    };
    match kind(&found.stat) {
        SFlag::S_IFREG => Ok(found),
        _ => Err(Failure::new(format_args!("{path} is no file"))),
    }
}

fn program(options: &InstallOptions, root: &Root) -> Result<String> {
    let path = match &options.program {
        Some(path) => path.clone(),
        None if !root.is_own() => "/usr/bin/stubdm-run".to_owned(),
        None => {
            let own = std::env::current_exe().context("finding this program")?;
            let own = own.into_os_string().into_string();
            own.map_err(|_| Failure::new("this program's path is not UTF-8"))?
        }
    };
    let found = required(root, &path)?;
    if found.stat.st_mode & 0o111 == 0 {
        return Err(Failure::new(format_args!(
            "{} is no program",
            root.real(&path).display()
        )));
    }
    Ok(found.path)
}

/// Returns, in words, who but the owner could change or replace the file. It has to be `owner`'s,
/// if that is given.
fn replaceable(path: &str, stat: &FileStat, owner: Option<u32>) -> Option<String> {
    let mode = stat.st_mode;
    // In a folder with the sticky bit nobody replaces what is another's. Of folders a group may be
    // in charge. A link's mode means nothing.
    let others = match kind(stat) {
        SFlag::S_IFLNK => 0,
        SFlag::S_IFDIR if mode & 0o1000 != 0 => 0,
        SFlag::S_IFDIR => 0o002,
        _ => 0o022,
    };
    if mode & others != 0 {
        return Some(format!(
            "{path} can be written by others than its owner (mode {:o})",
            mode & 0o7777
        ));
    }
    match owner {
        Some(owner) if owner != stat.st_uid => {
            Some(format!("{path} belongs to user {}", stat.st_uid))
        }
        _ => None,
    }
}

fn installed_kernel(root: &Root) -> Result<String> {
    let failed = |error: anyhow::Error| Failure::new(format_args!("{error:#}"));
    let running = uname().ok().filter(|_| root.is_own());
    let running = running.and_then(|names| names.release().to_str().map(str::to_owned));
    let version = pick_kernel(root.dir(), None, running.as_deref()).map_err(failed)?;
    let file = kernel::file(root.dir(), &version);
    let inside = file
        .as_deref()
        .and_then(|file| file.strip_prefix(root.dir()).ok()?.to_str());
    match inside {
        Some(inside) => Ok(format!("/{inside}")),
        None => Err(Failure::new(format_args!(
            "the file of Linux {version} was not found below {} in {}; --kernel names one",
            root.dir().display(),
            kernel::places(&version)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use nix::sys::stat::stat;
    use nix::unistd::geteuid;

    #[test]
    fn what_others_could_replace_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("bin");
        let program = folder.join("p");
        fs::create_dir(&folder).unwrap();
        fs::write(&program, "").unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode));
        let me = geteuid().as_raw();
        for (folder_mode, mode, owner, part) in [
            (0o755, 0o755, None, ""),
            (0o775, 0o755, Some(me), ""),
            (0o1777, 0o755, Some(me), ""),
            (0o755, 0o755, Some(me ^ 1), "/bin belongs to user"),
            (0o757, 0o755, None, "/bin can be written"),
            (0o755, 0o775, None, "/p can be written"),
            (0o755, 0o757, None, "mode 757"),
        ] {
            set(&folder, folder_mode).unwrap();
            set(&program, mode).unwrap();
            let found = [("/bin", &folder), ("/p", &program)]
                .iter()
                .find_map(|(name, path)| replaceable(name, &stat(path.as_path()).unwrap(), owner));
            match part {
                "" => assert_eq!(found, None),
                part => assert!(found.clone().unwrap().contains(part), "{found:?}"),
            }
        }
    }
}
