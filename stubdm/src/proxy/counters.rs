//! A proxy's counters, in a small file that others may read while it runs.
//!
//! ```text
//!   worker ──counters, at most once a second──▶ relay ──pwrite──▶ /run/stubdm/proxy-DOMID ◀──one read── stubdm-run status
//! ```
//!
//! The file is opened once and rewritten in place: 512 bytes, a JSON object padded with spaces and
//! its checksum. The worker, which does the counting, does not have it: it sends eight numbers, and
//! the broker writes them. A reader during a rewrite sees a wrong checksum and reads again. The
//! reader does not trust the file: it reads 512 bytes of a regular file that root or its own user
//! owns, and takes only numbers from it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use stubdm_qmp::audit::Verdict;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The folder of these files.
pub const FOLDER: &str = "/run/stubdm";

/// The length of a file, always.
const SIZE: usize = 512;
/// The checksum at its end: eight hexadecimal digits and a line break.
const SUM: usize = 9;
/// How often it is rewritten at most.
const PACE: Duration = Duration::from_secs(1);

/// The counters. All begin with the process that libxl started. As bytes, between the two processes
/// of the proxy, they have the same layout as in memory.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    Deserialize,
    FromBytes,
    Immutable,
    IntoBytes,
    PartialEq,
    Eq,
    Serialize,
)]
#[serde(deny_unknown_fields, default)]
pub struct Counters {
    /// Clients that were accepted.
    pub sessions: u64,
    /// Commands that QEMU answered.
    pub answered: u64,
    /// Commands that the policy denied.
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
    /// Counts an event of the audit.
    pub fn decided(&mut self, verdict: Verdict, count: u64) {
        let counter = match verdict {
            Verdict::Answered => &mut self.answered,
            Verdict::Denied => &mut self.denied,
            Verdict::Failed => &mut self.failed,
            Verdict::Refused => &mut self.refused,
            Verdict::Dropped => &mut self.dropped,
            Verdict::Waiting => return,
        };
        *counter = counter.saturating_add(count);
    }

    /// Records that an answer arrived `took` after its command.
    pub fn latency(&mut self, took: Duration) {
        self.latency_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.longest_us = self.longest_us.max(self.latency_us);
    }

    /// Adds the counters of an earlier process.
    fn after(&self, before: &Self) -> Self {
        Self {
            sessions: self.sessions.saturating_add(before.sessions),
            answered: self.answered.saturating_add(before.answered),
            denied: self.denied.saturating_add(before.denied),
            failed: self.failed.saturating_add(before.failed),
            refused: self.refused.saturating_add(before.refused),
            dropped: self.dropped.saturating_add(before.dropped),
            latency_us: self.latency_us,
            longest_us: self.longest_us.max(before.longest_us),
        }
    }
}

/// Reports counters at most once a second, and the last change for certain.
pub struct Reporter {
    to: Box<dyn FnMut(&Counters) + Send>,
    reported: Counters,
    next: Option<Instant>,
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").finish_non_exhaustive()
    }
}

impl Reporter {
    /// Tells `to`. Counters that are all 0 are known already.
    pub fn new(to: impl FnMut(&Counters) + Send + 'static) -> Self {
        Self {
            to: Box::new(to),
            reported: Counters::default(),
            next: None,
        }
    }

    /// Reports these counters, if they have changed and the last time is long enough ago.
    pub fn turn(&mut self, counters: &Counters, now: Instant) {
        if self.reported == *counters || self.next.is_some_and(|next| now < next) {
            return;
        }
        self.reported = *counters;
        self.next = Some(now + PACE);
        (self.to)(counters);
    }

    /// Returns when [`Reporter::turn`] has something to report, if these counters were not reported
    /// yet.
    pub fn deadline(&self, counters: &Counters) -> Option<Instant> {
        self.next.filter(|_| self.reported != *counters)
    }
}

/// A file's contents.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CounterPage {
    /// The process that wrote it.
    pub pid: u32,
    /// How often it was rewritten.
    pub sequence: u64,
    /// The counters.
    pub counters: Counters,
}

/// A proxy's own file; dropping this value removes it.
#[derive(Debug)]
pub struct CounterFile {
    file: File,
    path: PathBuf,
    page: CounterPage,
    /// The counters of processes that have ended.
    before: Counters,
}

impl CounterFile {
    /// Makes the file for the proxy to one domain; with `resume` it continues the counters of a
    /// proxy that was killed.
    ///
    /// # Errors
    /// The system's: the folder or the file cannot be made.
    pub fn open(folder: &Path, domain: u16, resume: bool) -> io::Result<Self> {
        let before = resume.then(|| read(folder, domain)).flatten();
        let before = before.unwrap_or_default().counters;
        // Whatever the umask: nobody else puts a file there.
        match DirBuilder::new().mode(0o755).create(folder) {
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
        let page = CounterPage {
            pid: std::process::id(),
            counters: before,
            ..CounterPage::default()
        };
        let mut counter_file = Self {
            file,
            path,
            page,
            before,
        };
        counter_file.write()?;
        Ok(counter_file)
    }

    /// Writes these counters. A failed write is ignored.
    pub fn update(&mut self, counters: &Counters) {
        self.page.counters = counters.after(&self.before);
        self.page.sequence = self.page.sequence.wrapping_add(1);
        let _ = self.write();
    }

    /// Another begins to count, from nothing.
    pub fn begin_again(&mut self) {
        self.before = self.page.counters;
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_all_at(&encode(&self.page)?, 0)
    }
}

impl Drop for CounterFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes the file of a proxy that has ended.
pub fn remove(folder: &Path, domain: u16) {
    let _ = fs::remove_file(file(folder, domain));
}

fn file(folder: &Path, domain: u16) -> PathBuf {
    folder.join(format!("proxy-{domain}"))
}

fn encode(page: &CounterPage) -> io::Result<[u8; SIZE]> {
    let text = serde_json::to_vec(page)?;
    let mut page = [b' '; SIZE];
    let (body, end) = page.split_at_mut(SIZE - SUM);
    let room = body.get_mut(..text.len());
    room.ok_or(io::ErrorKind::InvalidData)?
        .copy_from_slice(&text);
    let sum = format!("{:08x}\n", crc32fast::hash(body));
    end.copy_from_slice(sum.as_bytes());
    Ok(page)
}

/// Reads the counters of the proxy to `domain`, if there is such a file and it is valid.
pub fn read(folder: &Path, domain: u16) -> Option<CounterPage> {
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

#[allow(clippy::disallowed_methods)] // 500 bytes with the right checksum, of root's or our own.
fn parse(page: &[u8; SIZE]) -> Option<CounterPage> {
    let (body, end) = page.split_at(SIZE - SUM);
    let sum = format!("{:08x}\n", crc32fast::hash(body));
    (sum.as_bytes() == end).then_some(())?;
    serde_json::from_slice(body).ok()
}

#[cfg(test)]
mod tests;
