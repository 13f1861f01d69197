//! The host's files, or an image's: paths below a root, and what lies at them.
//!
//! Every path is walked from the root's descriptor, one part after another, each opened without
//! following links and checked before the next. A link is resolved below the same root, as if that
//! were `/`. So nothing outside of the root is reached, whoever changes its folders meanwhile, and
//! a step acts in the folder that was walked to.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use crate::rt::error::{Context, Result};

/// Links on one way, as the kernel's limit.
const LINKS_MAX: usize = 40;

/// Where a host's files are.
#[derive(Clone, Debug)]
pub(super) struct Root {
    dir: PathBuf,
    top: Arc<OwnedFd>,
}

/// The entry at a path, links not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum There {
    Nothing,
    Link(String),
    File,
    /// A folder, a device, or the like.
    Other,
}

/// Which links a walk follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    /// All of them.
    All,
    /// Those on the way, not what the path's last part names.
    OnTheWay,
    /// None: the path has been walked before, and a link on it is somebody's trick.
    None,
}

/// Where a walk ended.
#[derive(Debug)]
pub(super) struct Found {
    /// The entry, opened for its name only (`O_PATH`).
    pub(super) fd: OwnedFd,
    pub(super) stat: FileStat,
    /// The path to it below the root, without links.
    pub(super) path: String,
}

/// A file's place: where steps act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Below the root, without links.
    inside: String,
    /// As a person would name it.
    pub(super) shown: PathBuf,
}

/// Returns the file type in a mode.
pub(super) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

impl Root {
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let dir = dir.canonicalize().context(dir.display())?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let top = open(&dir, flags, Mode::empty()).context(dir.display())?;
        let top = Arc::new(top);
        Ok(Self { dir, top })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns whether this is the machine's own.
    pub(super) fn is_own(&self) -> bool {
        self.dir == Path::new("/")
    }

    /// Walks to a path, and shows `visit` everything on the way and at its end, links included, by
    /// its path without links.
    ///
    /// # Errors
    /// Something is missing, no folder, or a link too many; or `visit` failed.
    pub(super) fn walk(
        &self,
        path: &str,
        links: Links,
        mut visit: impl FnMut(&str, &FileStat) -> io::Result<()>,
    ) -> io::Result<Found> {
        let mut parts: VecDeque<String> = split(path).collect();
        let mut way: Vec<(OwnedFd, FileStat, String)> = Vec::new();
        let top = fstat(&self.top)?;
        visit("/", &top)?;
        let mut followed = 0;
        while let Some(part) = parts.pop_front() {
            if part == ".." {
                way.pop();
                continue;
            }
            let (folder, before) = match way.last() {
                Some((fd, stat, path)) => {
                    if kind(stat) != SFlag::S_IFDIR {
                        return Err(Errno::ENOTDIR.into());
                    }
                    (fd.as_fd(), path.as_str())
                }
                None => (self.top.as_fd(), ""),
            };
            let here = format!("{before}/{part}");
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let fd = openat(folder, part.as_str(), flags, Mode::empty())?;
            let stat = fstat(&fd)?;
            visit(&here, &stat)?;
            if kind(&stat) != SFlag::S_IFLNK || (parts.is_empty() && links == Links::OnTheWay) {
                way.push((fd, stat, here));
                continue;
            }
            followed += 1;
            if links == Links::None || followed > LINKS_MAX {
                return Err(Errno::ELOOP.into());
            }
            // Of the link that was looked at, not of what has its name by now.
            let to = readlinkat(&fd, "")?.into_string();
            let to = to.map_err(|_| Errno::EILSEQ)?;
            if to.starts_with('/') {
                way.clear();
            }
            for part in split(&to).collect::<Vec<_>>().into_iter().rev() {
                parts.push_front(part);
            }
        }
        match way.pop() {
            Some((fd, stat, path)) => Ok(Found { fd, stat, path }),
            None => Ok(Found {
                fd: self.top.try_clone()?,
                stat: top,
                path: "/".to_owned(),
            }),
        }
    }

    /// Returns the path without links on the way to it. Missing parts are taken for folders.
    pub(super) fn plain(&self, path: &str) -> String {
        let parts: Vec<String> = split(path).collect();
        let Some((name, folders)) = parts.split_last() else {
            return "/".to_owned();
        };
        let mut there = folders.len();
        loop {
            let (found, missing) = folders.split_at(there);
            let walked = self.walk(&found.join("/"), Links::All, |_, _| Ok(()));
            match walked {
                Ok(found) => {
                    let missing = missing.iter().chain([name]);
                    let before = found.path.trim_end_matches('/').to_owned();
                    return missing.fold(before, |path, part| format!("{path}/{part}"));
                }
                Err(_) if there > 0 => there -= 1,
                Err(_) => return path.to_owned(),
            }
        }
    }

    /// The real path of one below the root: links to its folder are followed as if the root were
    /// `/`, the last part is not. To be shown, and given to other programs.
    pub(super) fn real(&self, path: &str) -> PathBuf {
        self.dir.join(self.plain(path).trim_start_matches('/'))
    }

    /// Returns where steps act on a path.
    pub(super) fn place(&self, path: &str) -> Place {
        let inside = self.plain(path);
        let shown = self.dir.join(inside.trim_start_matches('/'));
        Place { inside, shown }
    }

    /// A place's folder, which is walked to without following a link, and the place's name there.
    pub(super) fn folder<'a>(&self, place: &'a Place) -> io::Result<(OwnedFd, &'a str)> {
        let (folder, name) = place.inside.rsplit_once('/').ok_or(Errno::EINVAL)?;
        let found = self.walk(folder, Links::None, |_, _| Ok(()))?;
        match kind(&found.stat) {
            SFlag::S_IFDIR => Ok((found.fd, name)),
            _ => Err(Errno::ENOTDIR.into()),
        }
    }

    pub(super) fn look(&self, path: &str) -> Result<There> {
        let found = match self.walk(path, Links::OnTheWay, |_, _| Ok(())) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(There::Nothing),
            Err(error) => return Err(error).context(self.real(path).display()),
        };
        Ok(match kind(&found.stat) {
            SFlag::S_IFLNK => {
                let to = readlinkat(&found.fd, "").context(self.real(path).display())?;
                There::Link(to.to_string_lossy().into_owned())
            }
            SFlag::S_IFREG => There::File,
            _ => There::Other,
        })
    }

    pub(super) fn is_folder(&self, path: &str) -> bool {
        let found = self.walk(path, Links::All, |_, _| Ok(()));
        found.is_ok_and(|found| kind(&found.stat) == SFlag::S_IFDIR)
    }

    /// A file's text.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        let place = self.place(path);
        let (folder, name) = self.folder(&place).ok()?;
        String::from_utf8(read_at(folder.as_fd(), name).ok()?).ok()
    }

    /// The folders on the way to `path` that are not there, outermost first.
    pub(super) fn missing_folders(&self, path: &str) -> Vec<String> {
        let mut missing = Vec::new();
        let mut folder = path;
        while let Some((outer, _)) = folder.rsplit_once('/') {
            if outer.is_empty() || self.is_folder(outer) {
                break;
            }
            missing.insert(0, outer.to_owned());
            folder = outer;
        }
        missing
    }
}

/// A plain file's bytes.
pub(super) fn read_at(folder: BorrowedFd<'_>, name: &str) -> io::Result<Vec<u8>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(folder, name, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn split(path: &str) -> impl Iterator<Item = String> + '_ {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn no_link_leads_out_of_the_root_and_the_path_without_links_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        fs::write(dir.path().join("usr/bin/p"), "").unwrap();
        fs::write(outside.path().join("p"), "").unwrap();
        symlink("usr/bin", dir.path().join("bin")).unwrap();
        symlink("../../../../usr/bin/p", dir.path().join("up")).unwrap();
        symlink("/usr/bin/p", dir.path().join("absolute")).unwrap();
        symlink(outside.path().join("p"), dir.path().join("out")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let root = Root::new(dir.path()).unwrap();
        let walk = |path: &str, links| {
            let found = root.walk(path, links, |_, _| Ok(()));
            found
                .map(|found| found.path)
                .map_err(|error| error.raw_os_error())
        };
        for path in ["/bin/p", "/up", "/absolute", "/bin/../bin/./p"] {
            assert_eq!(
                walk(path, Links::All),
                Ok("/usr/bin/p".to_owned()),
                "{path}"
            );
        }
        assert_eq!(walk("/out", Links::All), Err(Some(libc::ENOENT)));
        assert_eq!(walk("/out", Links::OnTheWay), Ok("/out".to_owned()));
        assert_eq!(walk("/loop", Links::All), Err(Some(libc::ELOOP)));
        assert_eq!(walk("/bin/p", Links::None), Err(Some(libc::ELOOP)));
        assert_eq!(walk("/usr/bin/p/x", Links::All), Err(Some(libc::ENOTDIR)));
        assert_eq!(root.plain("/bin/new/er/x"), "/usr/bin/new/er/x");
        assert_eq!(root.real("/bin/p"), root.dir().join("usr/bin/p"));
    }

    #[test]
    fn a_folder_that_became_a_link_since_it_was_looked_at_is_not_acted_in() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("usr/bin")).unwrap();
        let root = Root::new(dir.path()).unwrap();
        let place = root.place("/usr/bin/p");
        root.folder(&place).unwrap();
        fs::remove_dir(dir.path().join("usr/bin")).unwrap();
        symlink(outside.path(), dir.path().join("usr/bin")).unwrap();
        let error = root.folder(&place).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }
}
