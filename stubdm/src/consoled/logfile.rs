//! A console's log: a file that is emptied first, as QEMU does, and never grows without bound.
//!
//! A file that would exceed its limit becomes `PATH.old`, in the place of the one before, and a new
//! one is begun: the two hold the newest bytes, at least as many as the limit. Bytes that cannot be
//! written (a full disk) are left out, and reported once until a write succeeds again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::libxl::output::with_suffix;

/// The largest log of a console unless said otherwise, in bytes.
pub const LIMIT: u64 = 16 << 20;

/// The mode of a new log: as QEMU's umask leaves it on most hosts, and no wider on any.
const MODE: u32 = 0o644;

/// Opens a file of dom0's and empties it; made with `mode` if it is not there.
pub(super) fn open(path: &Path, mode: u32) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(mode);
    // Not waited for, whatever it turns out to be.
    options
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

/// The file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
    lost: u64,
}

impl LogFile {
    /// Opens and empties it.
    ///
    /// # Errors
    /// The system's.
    pub fn create(path: &Path, limit: u64) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: open(path, MODE)?,
            size: 0,
            limit: limit.max(1),
            lost: 0,
        })
    }

    /// Writes all of `bytes`, or says in our own log why not.
    pub fn take(&mut self, bytes: &[u8]) {
        if let Err(error) = self.write(bytes) {
            if self.lost == 0 {
                warn!("writing {}: {error}", self.path.display());
            }
            self.lost += bytes.len() as u64;
        } else if self.lost > 0 {
            warn!("{}: {} bytes were lost", self.path.display(), self.lost);
            self.lost = 0;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = bytes.len() as u64;
        if self.size > 0 && self.size.saturating_add(length) > self.limit {
            match std::fs::rename(&self.path, with_suffix(&self.path, ".old")) {
                // Somebody took it away, or the new one could not be made the last time.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
            self.file = open(&self.path, MODE)?;
            self.size = 0;
        }
        self.file.write_all(bytes)?;
        self.size += length;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_bytes_stay_and_no_more_than_twice_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "of an earlier guest").unwrap();
        let mut log = LogFile::create(&path, 100).unwrap();
        let mut all = String::new();
        for n in 0..1000 {
            let line = format!("line {n}\n");
            log.take(line.as_bytes());
            all.push_str(&line);
            let old = std::fs::read_to_string(with_suffix(&path, ".old")).unwrap_or_default();
            let kept = old + &std::fs::read_to_string(&path).unwrap();
            assert!(all.ends_with(&kept) && kept.len() <= 200);
            assert!(
                kept.len() == all.len() || kept.len() >= 100,
                "{}",
                kept.len()
            );
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_log_whose_name_somebody_took_is_begun_anew_at_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::create(&path, 10).unwrap();
        log.take(b"before");
        std::fs::remove_file(&path).unwrap();
        log.take(b"after that");
        assert_eq!(std::fs::read(&path).unwrap(), b"after that");
        assert_eq!(log.lost, 0);
    }

    #[test]
    fn a_full_disk_loses_bytes_and_nothing_else() {
        let mut log = LogFile::create(Path::new("/dev/full"), 1 << 20).unwrap();
        log.take(b"abc");
        log.take(b"de");
        assert_eq!((log.lost, log.size), (5, 0));
        let dir = tempfile::tempdir().unwrap();
        log.file = open(&dir.path().join("l"), MODE).unwrap();
        log.take(b"f");
        assert_eq!((log.lost, log.size), (0, 1));
        assert!(LogFile::create(&dir.path().join("no/such"), 1).is_err());
    }
}
