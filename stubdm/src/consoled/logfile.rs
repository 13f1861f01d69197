//! A console's log: a file that is emptied first, as QEMU does, and never grows without bound.
//!
//! A file that would exceed its limit becomes `PATH.old`, in the place of the one before, and a new
//! one is begun: the two hold the newest bytes, at least as many as the limit. Others may rotate it
//! as well ([`crate::rt::log_file`]). Bytes that cannot be written (a full disk) are left out, and
//! reported once until a write succeeds again.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use tracing::warn;

use crate::libxl::output::with_suffix;
use crate::rt::log_file::AppendFile;

/// The default limit of a console's log, in bytes.
pub const LIMIT: u64 = 16 << 20;

/// The mode of a new log: as QEMU's umask leaves it on most hosts, and no wider on any.
const MODE: u32 = 0o644;

/// The file.
#[derive(Debug)]
pub struct LogFile {
    file: AppendFile,
    limit: u64,
    lost: u64,
}

impl LogFile {
    /// Opens it; empties it unless it is `kept`.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path, limit: u64, kept: bool) -> io::Result<Self> {
        Ok(Self {
            file: AppendFile::open(path, MODE, kept)?,
            limit: limit.max(1),
            lost: 0,
        })
    }

    /// The file with its length.
    pub fn file(&self) -> &AppendFile {
        &self.file
    }

    /// Cuts off the bytes that were written after `before`, the file's [`AppendFile::identity`] then,
    /// if they are at most `most`. If that file is the `.old` one by now, all of this one's are.
    ///
    /// # Errors
    /// The file cannot be cut.
    pub fn cut(&self, before: [u64; 3], most: u64) -> io::Result<()> {
        let [dev, ino, _] = before;
        let old = std::fs::symlink_metadata(with_suffix(self.file.path(), ".old"));
        if old.is_ok_and(|old| (old.dev(), old.ino()) == (dev, ino)) {
            let [dev, ino, _] = self.file.identity()?;
            return self.file.cut([dev, ino, 0], most);
        }
        self.file.cut(before, most)
    }

    /// Writes all of `bytes`, or logs why not.
    pub fn take(&mut self, bytes: &[u8]) {
        if let Err(error) = self.file.follow(Instant::now()) {
            let path = self.file.path().display();
            if self.lost == 0 {
                warn!("{path} was moved, and no new one can be made: {error}");
            }
        }
        if let Err(error) = self.write(bytes) {
            let path = self.file.path().display();
            if self.lost == 0 {
                warn!("writing {path}: {error}");
            }
            self.lost += bytes.len() as u64;
        } else if self.lost > 0 {
            let path = self.file.path().display();
            warn!("{path}: {} bytes were lost", self.lost);
            self.lost = 0;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let size = self.file.length()?;
        let length = bytes.len() as u64;
        if size > 0 && size.saturating_add(length) > self.limit {
            // Another one may have taken the name since the last look.
            self.file.renew()?;
            if self.file.length()?.saturating_add(length) > self.limit {
                let path = self.file.path();
                std::fs::rename(path, with_suffix(path, ".old"))?;
                self.file.renew()?;
            }
        }
        self.file.write_all(bytes)
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
        let mut log = LogFile::open(&path, 100, false).unwrap();
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
        let mut log = LogFile::open(&path, 10, false).unwrap();
        log.take(b"before");
        std::fs::remove_file(&path).unwrap();
        log.take(b"after that");
        assert_eq!(std::fs::read(&path).unwrap(), b"after that");
        assert_eq!(log.lost, 0);
    }

    #[test]
    fn a_full_disk_loses_bytes_and_nothing_else() {
        let mut log = LogFile::open(Path::new("/dev/full"), 1 << 20, false).unwrap();
        log.take(b"abc");
        log.take(b"de");
        assert_eq!(log.lost, 5);
        let dir = tempfile::tempdir().unwrap();
        log.file = AppendFile::open(&dir.path().join("l"), MODE, false).unwrap();
        log.take(b"f");
        assert_eq!((log.lost, log.file.length().unwrap()), (0, 1));
        assert!(LogFile::open(&dir.path().join("no/such"), 1, false).is_err());
    }

    /// As `logrotate` does with `copytruncate`.
    #[test]
    fn a_log_that_others_cut_has_no_hole_and_the_limit_counts_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::open(&path, 100, false).unwrap();
        for _ in 0..10 {
            log.take(&[b'a'; 90]);
            let cut = std::fs::File::options().write(true).open(&path).unwrap();
            cut.set_len(0).unwrap();
            log.take(b"after");
            assert_eq!(std::fs::read(&path).unwrap(), b"after");
            cut.set_len(0).unwrap();
        }
        assert!(!with_suffix(&path, ".old").exists(), "never over its limit");
    }

    /// As `logrotate` does without; with `create`, and without.
    #[test]
    fn a_log_that_others_moved_is_gone_on_with_at_its_name() {
        for create in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("log");
            let mut log = LogFile::open(&path, 1 << 20, false).unwrap();
            log.take(b"before");
            let moved = dir.path().join("log.1");
            std::fs::rename(&path, &moved).unwrap();
            if create {
                std::fs::write(&path, "").unwrap();
            }
            let mut sent = 0;
            let deadline = Instant::now() + std::time::Duration::from_secs(10);
            while std::fs::read(&path).unwrap_or_default().is_empty() {
                assert!(Instant::now() < deadline, "nothing reaches the new file");
                log.take(b"x");
                sent += 1;
            }
            let all = [
                std::fs::read(&moved).unwrap(),
                std::fs::read(&path).unwrap(),
            ]
            .concat();
            assert_eq!(all.len(), 6 + sent, "every byte is in one of them");
        }
    }

    #[test]
    fn a_log_that_is_kept_goes_on_at_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        LogFile::open(&path, 100, false).unwrap().take(b"one ");
        LogFile::open(&path, 100, true).unwrap().take(b"two");
        assert_eq!(std::fs::read(&path).unwrap(), b"one two");
    }
}
