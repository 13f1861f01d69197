//! What is linked to, or written: looked for below the root, and refused if it is no such thing, or if others than root could put
//! something else in its place.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::utsname::uname;

use super::InstallOptions;
use super::parts::What;
use super::record::Put;
use super::root::Root;
use crate::error::{Context, Failure, Result};
use crate::image::{kernel_file, pick_kernel};

/// What belongs into the places of a part.
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
            None => kernel(root)?,
        },
    };
    require_file(root, &path).map_err(|failure| match what {
        What::Ramdisk => Failure::new(format_args!(
            "{failure}; stubdm-run image build -o FILE makes one, and --image FILE names it"
        )),
        _ => failure,
    })?;
    Ok(Put::Link(path))
}

/// The path of a file below the root, as a link has to say it.
fn require_file(root: &Root, path: &str) -> Result<PathBuf> {
    if !path.starts_with('/') {
        return Err(Failure::usage(format_args!("{path} is no absolute path")));
    }
    match crate::image::elf::resolve(root.dir(), path) {
        Ok(real) if real.is_file() => Ok(real),
        Ok(_) => Err(Failure::new(format_args!("{path} is no file"))),
        Err(_) => Err(Failure::new(format_args!(
            "there is no {}",
            root.real(path).display()
        ))),
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
    let real = require_file(root, &path)?;
    let owner = root.is_own().then_some(0);
    if let Some(whose) = replaceable(&real, root.dir(), owner)? {
        return Err(Failure::new(format_args!(
            "{whose}, and libxl would start it as root; put it where only root can write, such as /usr/local/bin"
        )));
    }
    let mode = real
        .metadata()
        .context(real.display())?
        .permissions()
        .mode();
    if mode & 0o111 == 0 {
        return Err(Failure::new(format_args!(
            "{} is no program",
            real.display()
        )));
    }
    Ok(path)
}

/// Who but its owner could change a program or put another in its place, in words. All of it that is below `top` has to be
/// `owner`'s, if that is given.
fn replaceable(program: &Path, top: &Path, owner: Option<u32>) -> Result<Option<String>> {
    for path in program.ancestors().filter(|path| path.starts_with(top)) {
        let meta = path.metadata().context(path.display())?;
        let (mode, uid) = (meta.mode(), meta.uid());
        // In a folder with the sticky bit nobody replaces what is another's. Of folders a group may be in charge.
        let others = match meta.is_dir() {
            true if mode & 0o1000 != 0 => 0,
            true => 0o002,
            false => 0o022,
        };
        let path = path.display();
        if mode & others != 0 {
            return Ok(Some(format!(
                "{path} can be written by others than its owner (mode {:o})",
                mode & 0o7777
            )));
        }
        if owner.is_some_and(|owner| owner != uid) {
            return Ok(Some(format!("{path} belongs to user {uid}")));
        }
    }
    Ok(None)
}

fn kernel(root: &Root) -> Result<String> {
    let failed = |error: anyhow::Error| Failure::new(format_args!("{error:#}"));
    let running = uname().ok().filter(|_| root.is_own());
    let running = running.and_then(|names| names.release().to_str().map(str::to_owned));
    let version = pick_kernel(root.dir(), None, running.as_deref()).map_err(failed)?;
    let file = kernel_file(root.dir(), &version);
    let inside = file
        .as_deref()
        .and_then(|file| file.strip_prefix(root.dir()).ok()?.to_str());
    match inside {
        Some(inside) => Ok(format!("/{inside}")),
        None => Err(Failure::new(format_args!(
            "no kernel {version} in /boot; --kernel names one"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::geteuid;
    use std::fs;

    #[test]
    fn a_program_that_others_could_replace_is_known() {
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
            (0o755, 0o755, Some(me ^ 1), "p belongs to user"),
            (0o757, 0o755, None, "bin can be written"),
            (0o755, 0o775, None, "p can be written"),
            (0o755, 0o757, None, "mode 757"),
        ] {
            set(&folder, folder_mode).unwrap();
            set(&program, mode).unwrap();
            let found = replaceable(&program, dir.path(), owner).unwrap();
            match part {
                "" => assert_eq!(found, None),
                part => assert!(found.clone().unwrap().contains(part), "{found:?}"),
            }
        }
    }
}
