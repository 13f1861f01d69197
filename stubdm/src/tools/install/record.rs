//! What was put where, and what lay there before: the file that makes `uninstall` possible.
//!
//! It is written before the steps it tells of are taken, so that an installation that was cut short can be taken back too.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::root::Root;
use crate::error::{Context, Failure, Result};

/// The folder of the record.
pub(super) const FOLDER: &str = "/var/lib/stubdm";
/// The record.
pub(super) const PATH: &str = "/var/lib/stubdm/installed.json";

/// What was put somewhere.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Put {
    /// A symbolic link, by what it says.
    Link(String),
    /// A file, by its text.
    Text(String),
}

/// Where what lay there has gone.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Aside {
    /// Nothing lay there, and dpkg was told nothing.
    Nothing,
    /// Renamed, and nobody was told.
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
        let path = file(root);
        let text = match fs::read(&path) {
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

    /// Writes it so that it is there whole or as it was; without entries, it goes.
    pub(super) fn write(&self, root: &Root) -> Result<()> {
        let path = file(root);
        let what = path.display();
        if self.entries.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context(what),
                _ => Ok(()),
            };
        }
        let mut part = path.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let text = serde_json::to_vec_pretty(self).context(&what)?;
        let written = fs::File::create(&part).and_then(|mut file| {
            file.write_all(&text)?;
            file.write_all(b"\n")?;
            file.sync_all()
        });
        written
            .and_then(|()| fs::rename(&part, &path))
            .context(what)
    }

    pub(super) fn entry(&self, place: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.place == place)
    }
}

fn file(root: &Root) -> PathBuf {
    root.real(PATH)
}

/// Keeps another `install` or `uninstall` below the same root out until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _folder: Flock<fs::File>,
    path: PathBuf,
}

impl Lock {
    /// Makes the record's folder where it is missing.
    pub(super) fn take(root: &Root) -> Result<Self> {
        let path = root.real(FOLDER);
        let what = path.display();
        fs::create_dir_all(&path).context(&what)?;
        let folder = fs::File::open(&path).context(&what)?;
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(_folder) => Ok(Self { _folder, path }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Failure::new(format_args!(
                "another install or uninstall is at work in {what}"
            ))),
            Err((_, error)) => Err(error).context(what),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // It stays while there is a record in it.
        let _ = fs::remove_dir(&self.path);
    }
}
