//! The record of installed files and of those there before, which makes `uninstall` possible.
//!
//! It is written before the steps it records are taken, so that an installation that was cut short
//! can be taken back too.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};

use super::root::{Place, Root, read_at};
use crate::rt::error::{Context, Failure, Result};

/// The folder of the record.
pub(super) const FOLDER: &str = "/var/lib/stubdm";
/// The record.
pub(super) const PATH: &str = "/var/lib/stubdm/installed.json";

/// An installed file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Put {
    /// A symbolic link, by its target.
    Link(String),
    /// A file, by its text.
    Text(String),
}

/// The step taken with the file that lay there.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Aside {
    /// Nothing lay there, and dpkg has no diversion.
    Nothing,
    /// Renamed, without a diversion.
    Renamed,
    /// dpkg diverts it for everybody.
    DivertedLocally,
    /// dpkg diverts it for all packages but ours.
    DivertedByPackage,
}

/// One place.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) part: String,
    /// As seen below the root.
    pub(super) place: String,
    pub(super) put: Put,
    pub(super) aside: Aside,
    /// Folders that were made for it, outermost first.
    #[serde(default)]
    pub(super) folders: Vec<String>,
}

/// All places.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    version: u32,
    pub(super) entries: Vec<Entry>,
}

impl Record {
    /// Reads the record below a root; an empty one where there is none.
    pub(super) fn read(root: &Root) -> Result<Self> {
        let path = root.real(PATH);
        let place = root.place(PATH);
        let read = root
            .folder(&place)
            .and_then(|(folder, name)| read_at(folder.as_fd(), name));
        let text = match read {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self {
                    version: 1,
                    entries: Vec::new(),
                });
            }
            Err(error) => return Err(error).context(path.display()),
        };
        #[allow(clippy::disallowed_methods)] // This program's own file.
        let record: Self = serde_json::from_slice(&text).context(path.display())?;
        if record.version != 1 {
            return Err(Failure::new(format_args!(
                "{} was written by another version of this program",
                path.display()
            )));
        }
        Ok(record)
    }

    /// Writes the record atomically; removes it if it has no entries.
    pub(super) fn write(&self, root: &Root) -> Result<()> {
        let place = root.place(PATH);
        self.write_at(root, &place).context(place.shown.display())
    }

    fn write_at(&self, root: &Root, place: &Place) -> io::Result<()> {
        let (folder, name) = root.folder(place)?;
        let remove = |name: &str| match unlinkat(&folder, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        };
        if self.entries.is_empty() {
            return Ok(remove(name)?);
        }
        let part = format!("{name}.part");
        // Whatever was left there, it is not written through.
        remove(&part)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o644);
        let mut file = fs::File::from(openat(&folder, part.as_str(), flags, mode)?);
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        Ok(renameat(&folder, part.as_str(), &folder, name)?)
    }

    pub(super) fn entry(&self, place: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.place == place)
    }
}

/// Keeps another `install` or `uninstall` below the same root out until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _folder: Flock<fs::File>,
    root: Root,
}

impl Lock {
    /// Makes the record's folder where it is missing.
    pub(super) fn take(root: &Root) -> Result<Self> {
        let path = root.real(FOLDER);
        let what = path.display();
        let folder = Self::folder(root).context(&what)?;
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(_folder) => Ok(Self {
                _folder,
                root: root.clone(),
            }),
            Err((_, Errno::EWOULDBLOCK)) => Err(Failure::new(format_args!(
                "another install or uninstall is at work in {what}"
            ))),
            Err((_, error)) => Err(error).context(what),
        }
    }

    fn folder(root: &Root) -> io::Result<fs::File> {
        let missing = root.missing_folders(FOLDER);
        let folders = missing.iter().map(String::as_str).chain([FOLDER]);
        for path in folders {
            let place = root.place(path);
            let (folder, name) = root.folder(&place)?;
            match mkdirat(&folder, name, Mode::from_bits_truncate(0o755)) {
                Err(Errno::EEXIST) | Ok(()) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let place = root.place(FOLDER);
        let (folder, name) = root.folder(&place)?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(openat(&folder, name, flags, Mode::empty())?.into())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // It stays while there is a record in it.
        let place = self.root.place(FOLDER);
        if let Ok((folder, name)) = self.root.folder(&place) {
            let _ = unlinkat(&folder, name, UnlinkatFlags::RemoveDir);
        }
    }
}
