//! One change of a host's files, shown as the command a person could type.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::{fmt, fs};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use super::dpkg;
use super::root::{Place, Root};
use crate::rt::error::{Context, Result};
use crate::tools::dmargs::quoted;

/// The change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// `dpkg-divert` with these arguments.
    Divert(Vec<String>),
    Move(Place, Place),
    /// A link to the first, at the second.
    Link(String, Place),
    Write(String, Place),
    Remove(Place),
    MakeFolder(Place),
    /// Unless something is in it.
    RemoveFolder(Place),
}

impl Step {
    /// Acts in the folder that was walked to, whatever its path leads to meanwhile.
    pub(super) fn take(&self, root: &Root) -> Result<()> {
        match self {
            Self::Divert(arguments) => dpkg::divert(arguments),
            _ => self.act(root).context(self),
        }
    }

    fn act(&self, root: &Root) -> io::Result<()> {
        match self {
            Self::Divert(_) => {}
            Self::Move(from, to) => {
                let ((from_folder, from), (to_folder, to)) = (root.folder(from)?, root.folder(to)?);
                renameat(&from_folder, from, &to_folder, to)?;
            }
            Self::Link(to, at) => {
                let (folder, name) = root.folder(at)?;
                symlinkat(to.as_str(), &folder, name)?;
            }
            Self::Write(text, at) => write_new(root, text, at)?,
            Self::Remove(at) => {
                let (folder, name) = root.folder(at)?;
                unlinkat(&folder, name, UnlinkatFlags::NoRemoveDir)?;
            }
            Self::MakeFolder(at) => {
                let (folder, name) = root.folder(at)?;
                mkdirat(&folder, name, Mode::from_bits_truncate(0o777))?;
            }
            Self::RemoveFolder(at) => {
                let removed = root.folder(at).and_then(|(folder, name)| {
                    Ok(unlinkat(&folder, name, UnlinkatFlags::RemoveDir)?)
                });
                match removed {
                    Err(error)
                        if !matches!(
                            error.kind(),
                            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound
                        ) =>
                    {
                        return Err(error);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Divert(arguments) => {
                f.write_str("dpkg-divert")?;
                arguments
                    .iter()
                    .try_for_each(|word| write!(f, " {}", quoted(word.as_bytes())))
            }
            Self::Move(from, to) => write!(f, "mv {} {}", shown(&from.shown), shown(&to.shown)),
            Self::Link(to, at) => {
                write!(f, "ln -s {} {}", quoted(to.as_bytes()), shown(&at.shown))
            }
            Self::Write(text, at) => {
                write!(f, "write {} ({} bytes)", shown(&at.shown), text.len())
            }
            Self::Remove(at) => write!(f, "rm {}", shown(&at.shown)),
            Self::MakeFolder(at) => write!(f, "mkdir {}", shown(&at.shown)),
            Self::RemoveFolder(at) => {
                write!(f, "rmdir --ignore-fail-on-non-empty {}", shown(&at.shown))
            }
        }
    }
}

/// A file that was not there, whole or not at all: a part of it would be taken for what a person
/// made of it.
fn write_new(root: &Root, text: &str, at: &Place) -> io::Result<()> {
    let (folder, name) = root.folder(at)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(&folder, name, flags, Mode::from_bits_truncate(0o666))?;
    let written = fs::File::from(file).write_all(text.as_bytes());
    if written.is_err() {
        let _: std::result::Result<(), Errno> = unlinkat(&folder, name, UnlinkatFlags::NoRemoveDir);
    }
    written
}

fn shown(path: &Path) -> String {
    quoted(path.as_os_str().as_bytes())
}
