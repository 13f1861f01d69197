//! What a proxy has done so far, in a small file that others may read while it runs.
//!
//! ```text
//!   proxy ──pwrite, at most once a second──▶ /run/stubdm/proxy-DOMID ◀──one read── stubdm-run status
//! ```
//!
//! The file is opened once, before the process gives up the file system, and rewritten in place: 512 bytes, a JSON object padded
//! with spaces and its checksum. Whoever reads it while it is rewritten sees a wrong checksum and reads again.
//! The reader believes nothing: it reads 512 bytes of a plain file of root's or its own, and takes
//! numbers from it and nothing else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

/// The folder of these files.
pub const FOLDER: &str = "/run/stubdm";

/// The length of a file, always.
const SIZE: usize = 512;
/// The checksum at its end: eight hexadecimal digits and a line break.
const SUM: usize = 9;
/// How often it is rewritten at most.
const PACE: Duration = Duration::from_secs(1);

/// What is counted. All counters begin with the process.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Counters {
    /// Clients that were accepted.
    pub sessions: u64,
    /// Commands that QEMU answered.
    pub answered: u64,
    /// Commands that the policy let nobody hear.
    pub denied: u64,
    /// Answers that were errors of QEMU's.
    pub failed: u64,
    /// Answers that the policy did not let pass.
    pub refused: u64,
    /// Messages of QEMU's that nobody asked for.
    pub dropped: u64,
    /// From the last command to its answer, in microseconds.
    pub latency_us: u64,
    /// The longest of these.
    pub longest_us: u64,
}

impl Counters {
    /// Counts a line of the audit: the one stream that tells of every command.
    pub fn audit(&mut self, line: &str) {
        #[derive(Deserialize)]
        struct Line<'a> {
            audit: &'a str,
            #[serde(default)]
            count: u64,
        }
        let Ok(line) = serde_json::from_str::<Line<'_>>(line) else {
            return;
        };
        match line.audit {
            "answered" => self.answered += 1,
            "denied" => self.denied += 1,
            "failed" => self.failed += 1,
            "refused" => self.refused += 1,
            "dropped" => self.dropped = self.dropped.saturating_add(line.count),
            _ => {}
        }
    }

    /// An answer came this long after what was asked.
    pub fn latency(&mut self, took: Duration) {
        self.latency_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.longest_us = self.longest_us.max(self.latency_us);
    }
}

/// A file's contents.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// The process that wrote it.
    pub pid: u32,
    /// How often it was rewritten.
    pub sequence: u64,
    /// The counters.
    pub counters: Counters,
}

/// A proxy's own file; it goes with this value.
#[derive(Debug)]
pub struct Board {
    file: File,
    path: PathBuf,
    told: Told,
    next: Option<Instant>,
}

impl Board {
    /// Makes the file for the proxy to one domain.
    ///
    /// # Errors
    /// The system's: the folder or the file cannot be made.
    pub fn open(folder: &Path, domain: u16) -> io::Result<Self> {
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let path = file(folder, domain);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let told = Told {
            pid: std::process::id(),
            ..Told::default()
        };
        let mut board = Self {
            file,
            path,
            told,
            next: None,
        };
        board.write()?;
        Ok(board)
    }

    /// Tells of these counters, now or when the last time is long enough ago.
    /// That it cannot be written is no reason to stop, and not told.
    pub fn tell(&mut self, counters: &Counters, now: Instant) {
        if self.told.counters == *counters || self.next.is_some_and(|next| now < next) {
            return;
        }
        self.told.counters = *counters;
        self.told.sequence += 1;
        self.next = Some(now + PACE);
        let _ = self.write();
    }

    /// When [`Board::tell`] has something to tell again, if these counters are not told yet.
    pub fn deadline(&self, counters: &Counters) -> Option<Instant> {
        self.next.filter(|_| self.told.counters != *counters)
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_all_at(&page(&self.told)?, 0)
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn file(folder: &Path, domain: u16) -> PathBuf {
    folder.join(format!("proxy-{domain}"))
}

fn page(told: &Told) -> io::Result<[u8; SIZE]> {
    let text = serde_json::to_vec(told)?;
    let mut page = [b' '; SIZE];
    let (body, end) = page.split_at_mut(SIZE - SUM);
    let room = body.get_mut(..text.len());
    room.ok_or(io::ErrorKind::InvalidData)?
        .copy_from_slice(&text);
    let sum = format!("{:08x}\n", crc32fast::hash(body));
    end.copy_from_slice(sum.as_bytes());
    Ok(page)
}

/// What the proxy to `domain` has told, if there is such a file and it can be believed.
pub fn read(folder: &Path, domain: u16) -> Option<Told> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(file(folder, domain))
        .ok()?;
    let meta = file.metadata().ok()?;
    if !meta.is_file() || (meta.uid() != 0 && meta.uid() != geteuid().as_raw()) {
        return None;
    }
    let mut page = [0; SIZE];
    // It may be rewritten meanwhile; that takes far less than another look.
    (0..3).find_map(|attempt| {
        if attempt > 0 {
            file.read_exact_at(&mut page, 0).ok()?;
        } else {
            file.read_exact(&mut page).ok()?;
        }
        parse(&page)
    })
}

fn parse(page: &[u8; SIZE]) -> Option<Told> {
    let (body, end) = page.split_at(SIZE - SUM);
    let sum = format!("{:08x}\n", crc32fast::hash(body));
    (sum.as_bytes() == end).then_some(())?;
    serde_json::from_slice(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read_and_goes_with_the_proxy() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("stubdm");
        let mut board = Board::open(&folder, 5).unwrap();
        let first = read(&folder, 5).unwrap();
        assert_eq!((first.pid, first.sequence), (std::process::id(), 0));
        let mut counters = Counters {
            sessions: u64::MAX,
            ..Counters::default()
        };
        for line in [
            r#"{"audit":"denied","client":1,"command":"quit","why":"x"}"#,
            r#"{"audit":"answered","command":"stop"}"#,
            r#"{"audit":"dropped","count":7}"#,
            r#"{"audit":"dropped","count":-7}"#,
            r#"{"audit":"waiting","seconds":3}"#,
            "no JSON",
        ] {
            counters.audit(line);
        }
        counters.latency(Duration::from_millis(3));
        counters.latency(Duration::from_millis(1));
        let now = Instant::now();
        board.tell(&counters, now);
        let told = read(&folder, 5).unwrap();
        assert_eq!((told.sequence, told.counters), (1, counters));
        assert_eq!(
            (counters.denied, counters.answered, counters.dropped),
            (1, 1, 7)
        );
        assert_eq!((counters.latency_us, counters.longest_us), (1000, 3000));
        // Not more often than once a second, and then for certain.
        counters.answered += 1;
        board.tell(&counters, now + PACE / 2);
        assert_eq!(read(&folder, 5).unwrap().sequence, 1);
        assert_eq!(board.deadline(&counters), Some(now + PACE));
        board.tell(&counters, now + PACE);
        assert_eq!(read(&folder, 5).unwrap().counters.answered, 2);
        assert_eq!(board.deadline(&counters), None);
        assert_eq!(fs::metadata(file(&folder, 5)).unwrap().len(), SIZE as u64);
        drop(board);
        assert_eq!(read(&folder, 5), None);
    }

    #[test]
    fn the_largest_numbers_fit() {
        let most = u64::MAX;
        let counters = Counters {
            sessions: most,
            answered: most,
            denied: most,
            failed: most,
            refused: most,
            dropped: most,
            latency_us: most,
            longest_us: most,
        };
        let told = Told {
            pid: u32::MAX,
            sequence: most,
            counters,
        };
        assert_eq!(parse(&page(&told).unwrap()), Some(told));
    }

    #[test]
    fn a_file_that_lies_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), 5);
        let good = page(&Told::default()).unwrap();
        fs::write(&path, good).unwrap();
        assert_eq!(read(dir.path(), 5), Some(Told::default()));
        // Longer than it may be: what follows is not read.
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        assert_eq!(read(dir.path(), 5), Some(Told::default()));
        for at in [0, 100, SIZE - 1] {
            let mut bad = good;
            bad[at] ^= 1;
            fs::write(&path, bad).unwrap();
            assert_eq!(read(dir.path(), 5), None, "{at}");
        }
        fs::write(&path, &good[..SIZE - 1]).unwrap();
        assert_eq!(read(dir.path(), 5), None);
        // With the right checksum, and still no such counters.
        for text in [
            "{\"pid\":1}",
            "[]",
            "{\"pid\":-1,\"sequence\":0}",
            "{\"pid\":1,\"sequence\":0,\"counters\":{\"x\":\"\\u001b\"}}",
        ] {
            let mut bad = [b' '; SIZE];
            bad[..text.len()].copy_from_slice(text.as_bytes());
            let sum = format!("{:08x}\n", crc32fast::hash(&bad[..SIZE - SUM]));
            bad[SIZE - SUM..].copy_from_slice(sum.as_bytes());
            assert_eq!(parse(&bad), None, "{text}");
        }
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert_eq!(read(dir.path(), 5), None, "and nobody waits");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert_eq!(read(dir.path(), 5), None);
    }
}
