//! A file that is appended to for months, while others move, cut and remove it.
//!
//! Every write appends to the file's end at that time: a file that was cut (`logrotate`'s
//! `copytruncate`) has no hole. When the file is no longer at its path, a new one is begun there.
//! Each write checks that first, at most once every [`LOOK`].

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The least time between two looks at the path.
pub const LOOK: Duration = Duration::from_millis(100);

/// The file.
#[derive(Debug)]
pub struct AppendFile {
    path: PathBuf,
    mode: u32,
    file: File,
    looked: Option<Instant>,
}

impl AppendFile {
    /// Opens it, made with `mode` if it is not there; emptied if it is not `kept`.
    ///
    /// # Errors
    /// The file cannot be opened or emptied.
    pub fn open(path: &Path, mode: u32, kept: bool) -> io::Result<Self> {
        let file = open(path, mode)?;
        // A device has no length.
        if !kept && file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        Ok(Self {
            path: path.to_owned(),
            mode,
            file,
            looked: None,
        })
    }

    /// Opens a file to follow it, with what is in it: a file that others began.
    ///
    /// # Errors
    /// No plain file is at the path, or it cannot be opened.
    pub fn existing(path: &Path) -> io::Result<Self> {
        let meta = std::fs::symlink_metadata(path)?;
        if !meta.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Self::open(path, meta.mode() & 0o777, true)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Begins a new file if the one that is open is no longer at the path; returns whether it did.
    /// Before [`LOOK`] has passed since the last look, it does nothing.
    ///
    /// # Errors
    /// No new file can be made: the old one stays in use.
    pub fn follow(&mut self, now: Instant) -> io::Result<bool> {
        if self.looked.is_some_and(|looked| now < looked + LOOK) {
            return Ok(false);
        }
        self.looked = Some(now);
        if is_at(&self.file, &self.path)? {
            return Ok(false);
        }
        self.renew().map(|()| true)
    }

    /// Opens the file at the path, or begins one there.
    ///
    /// # Errors
    /// The file cannot be opened: the old one stays in use.
    pub fn renew(&mut self) -> io::Result<()> {
        self.file = open(&self.path, self.mode)?;
        Ok(())
    }

    /// Returns its length, whoever changed it.
    ///
    /// # Errors
    /// The file cannot be queried (`fstat`).
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Returns device, inode and length.
    ///
    /// # Errors
    /// As [`length`](Self::length).
    pub fn identity(&self) -> io::Result<[u64; 3]> {
        let meta = self.file.metadata()?;
        Ok([meta.dev(), meta.ino(), meta.len()])
    }

    /// Cuts off what is behind a length that it had before, if it is that file and has at most
    /// `most` bytes more.
    ///
    /// # Errors
    /// The file cannot be queried or cut.
    pub fn cut(&self, [dev, ino, len]: [u64; 3], most: u64) -> io::Result<()> {
        let [this_dev, this_ino, now] = self.identity()?;
        let behind = now.saturating_sub(len);
        if (this_dev, this_ino) == (dev, ino) && behind > 0 && behind <= most {
            self.file.set_len(len)?;
        }
        Ok(())
    }
}

impl Write for AppendFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns whether a file is the one at a path; `false` if nothing is there.
///
/// # Errors
/// The path or the file cannot be queried.
pub fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let identity = |meta: Metadata| (meta.dev(), meta.ino());
    match std::fs::metadata(path) {
        Ok(there) => Ok(identity(there) == identity(file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn open(path: &Path, mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.append(true).create(true).mode(mode);
    // Not waited for, whatever it turns out to be.
    options
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}
