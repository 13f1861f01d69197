//! One change of a host's files, shown as the command a person could type.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::dpkg;
use crate::error::{Context, Result};
use crate::tools::dmargs::quoted;

/// The change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// `dpkg-divert` with these arguments.
    Divert(Vec<String>),
    Move(PathBuf, PathBuf),
    /// A link that says the first, at the second.
    Link(String, PathBuf),
    Write(String, PathBuf),
    Remove(PathBuf),
    MakeFolder(PathBuf),
    /// Unless something is in it.
    RemoveFolder(PathBuf),
}

impl Step {
    pub(super) fn take(&self) -> Result<()> {
        match self {
            Self::Divert(arguments) => dpkg::divert(arguments),
            Self::Move(from, to) => fs::rename(from, to).context(self),
            Self::Link(to, at) => symlink(to, at).context(self),
            Self::Write(text, at) => write_new(text, at).context(at.display()),
            Self::Remove(path) => fs::remove_file(path).context(self),
            Self::MakeFolder(path) => fs::create_dir(path).context(self),
            Self::RemoveFolder(path) => match fs::remove_dir(path) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound
                    ) =>
                {
                    Err(error).context(self)
                }
                _ => Ok(()),
            },
        }
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
            Self::Move(from, to) => write!(f, "mv {} {}", shown(from), shown(to)),
            Self::Link(to, at) => write!(f, "ln -s {} {}", quoted(to.as_bytes()), shown(at)),
            Self::Write(text, at) => write!(f, "write {} ({} bytes)", shown(at), text.len()),
            Self::Remove(path) => write!(f, "rm {}", shown(path)),
            Self::MakeFolder(path) => write!(f, "mkdir {}", shown(path)),
            Self::RemoveFolder(path) => {
                write!(f, "rmdir --ignore-fail-on-non-empty {}", shown(path))
            }
        }
    }
}

/// A file that was not there, whole or not at all: a part of it would be taken for what a person made of it.
fn write_new(text: &str, at: &Path) -> io::Result<()> {
    let mut file = fs::File::create_new(at)?;
    let written = file.write_all(text.as_bytes());
    if written.is_err() {
        let _ = fs::remove_file(at);
    }
    written
}

fn shown(path: &Path) -> String {
    quoted(path.as_os_str().as_bytes())
}
