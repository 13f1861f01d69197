//! Log lines on stderr, one line each, whatever is in them: the writer takes out what
//! [`stubdm_qmp::text`] calls active.
//!
//! On the host stderr is libxl's log file for the proxy. In the stubdomain the init points it at
//! the domain's console, which the toolstack keeps as the guest's device-model log.

pub mod budget;

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};
use stubdm_qmp::text::{is_active, one_line};
use tracing::Level;

use crate::rt::log::budget::{Budget, Size, Verdict};
use crate::rt::log_file::AppendFile;

/// Bytes that the log of a stubdomain's proxy may have altogether from its worker.
pub const WORKER: Size = Size {
    life: 64 << 20,
    burst: 1 << 20,
    each_second: 4 << 10,
};
/// Additional bytes for the broker's own lines.
pub const OWN: Size = Size {
    life: 4 << 20,
    burst: 256 << 10,
    each_second: 256,
};
/// Bytes by which a full log may still grow at each start.
const LAST_WORDS: u64 = 64 << 10;

/// The budget of this process's own lines, if that is limited.
static BUDGET: Mutex<Option<Budget>> = Mutex::new(None);

/// The file that stderr is, while it is followed.
static FILE: Mutex<Option<AppendFile>> = Mutex::new(None);

/// Follows the file that stderr is, if it is one: others rotate it. To be called once, by a process
/// that runs for months.
pub fn follow() {
    // Every write appends to the end at that time.
    let append = || {
        let stderr = io::stderr();
        let flags = OFlag::from_bits_retain(fcntl(&stderr, FcntlArg::F_GETFL).ok()?);
        fcntl(&stderr, FcntlArg::F_SETFL(flags | OFlag::O_APPEND)).ok()
    };
    let Some(path) = file_of_stderr().filter(|_| append().is_some()) else {
        return;
    };
    let file = AppendFile::existing(&path).ok();
    *FILE.lock().unwrap_or_else(PoisonError::into_inner) = file;
}

/// The path of the plain file that stderr is.
fn file_of_stderr() -> Option<PathBuf> {
    let stderr = io::stderr();
    let kind = SFlag::from_bits_truncate(fstat(stderr.as_fd()).ok()?.st_mode) & SFlag::S_IFMT;
    let path = std::fs::read_link("/proc/self/fd/2").ok()?;
    (kind == SFlag::S_IFREG && path.is_absolute()).then_some(path)
}

/// Writes to stderr, at the name of its file if that is followed.
fn put(bytes: &[u8]) {
    let mut file = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(file) = file.as_mut() {
        // A new file that cannot be made leaves the old one in use.
        if let Ok(true) = file.follow(Instant::now()) {
            let _ = rustix::stdio::dup2_stderr(file.file());
        }
    }
    let _ = io::stderr().write_all(bytes);
}

/// Limits this process's own lines to [`OWN`], for good. The bytes that a log file has already
/// count: a restart gets no new budget. Returns the budget for the worker's lines.
pub fn limit(now: Instant) -> Budget {
    let stderr = io::stderr();
    let file = fstat(stderr.as_fd())
        .ok()
        .filter(|file| SFlag::from_bits_truncate(file.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG);
    let present = file.map_or(0, |file| u64::try_from(file.st_size).unwrap_or(0));
    let (own, worker) = left_of(present);
    *BUDGET.lock().unwrap_or_else(PoisonError::into_inner) = Some(Budget::new(own, now));
    Budget::new(worker, now)
}

/// The budgets with a log of `present` bytes.
fn left_of(present: u64) -> (Size, Size) {
    let all = WORKER.life + OWN.life;
    let own = OWN.life.min(all.saturating_sub(present)).max(LAST_WORDS);
    let worker = WORKER.life.saturating_sub(present).max(LAST_WORDS);
    (
        Size { life: own, ..OWN },
        Size {
            life: worker,
            ..WORKER
        },
    )
}

/// Writes a line under a budget, and how many were left out before it.
pub fn write_within(budget: &mut Budget, line: &[u8], now: Instant) {
    let line = one(line);
    let note = match budget.admit(line.len(), now) {
        Verdict::Pass(0) => String::new(),
        Verdict::Pass(before) => format!("{before} lines were left out here\n"),
        Verdict::LeaveOut => return,
        Verdict::Last => {
            put(b"the log is full: no more lines of this kind\n");
            return;
        }
    };
    put(&[note.as_bytes(), line.as_bytes()].concat());
}

/// A stderr that never fails and never panics: a log that cannot be written is no reason to stop.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut budget = BUDGET.lock().unwrap_or_else(PoisonError::into_inner);
        match budget.as_mut() {
            Some(budget) => write_within(budget, bytes, Instant::now()),
            None => put(one(bytes).as_bytes()),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An event as the one line that it is.
fn one(event: &[u8]) -> String {
    let event = event.strip_suffix(b"\n").unwrap_or(event);
    // Time and level before the text are aligned with spaces.
    let mut line = String::from_utf8_lossy(event).replace(is_active, " ");
    line.push('\n');
    line
}

/// Sends the log to stderr: everything if `verbose`, otherwise the levels from info on. A second
/// call changes nothing.
pub fn to_stderr(verbose: bool) {
    let level = if verbose { Level::DEBUG } else { Level::INFO };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(false)
        .with_writer(|| Stderr)
        .finish();
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// As [`to_stderr`], with the seconds since the start instead of the date: the stubdomain has no
/// clock worth showing.
pub fn to_console(verbose: bool) {
    let level = if verbose { Level::DEBUG } else { Level::INFO };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(false)
        .with_timer(tracing_subscriber::fmt::time::uptime())
        .with_writer(|| Stderr)
        .finish();
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// One line on stderr for the person who typed the command.
pub fn complain(line: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "stubdm-run: {}", one_line(&line.to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let event = b"  INFO a\r\nWARN forged\xc2\x9b2J \xe2\x80\xae\xff\n";
        assert_eq!(one(event), "  INFO a  WARN forged 2J  \u{fffd}\n");
    }

    #[test]
    fn what_a_log_has_already_counts_at_each_start() {
        let most = WORKER.life + OWN.life;
        for present in (0..=most).step_by(1 << 20) {
            let (own, worker) = left_of(present);
            let slack = 2 * LAST_WORDS;
            assert!(
                present + own.life.max(worker.life) <= most + slack,
                "{present}"
            );
        }
        assert_eq!(left_of(0), (OWN, WORKER));
        assert_eq!(left_of(u64::MAX).1.life, LAST_WORDS);
    }
}
