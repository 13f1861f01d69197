//! A console's tty, made raw before the kernel processes the first byte.
//!
//! ```text
//!  backend ─▶ ring ──interrupt, once the tty is open──▶ tty's buffer ──worker thread──▶ line discipline ─▶ read
//!             1 KiB                                                     ordinary         edits, echoes, turns CR
//!                                                                       priority         into NL until told "raw"
//! ```
//!
//! The toolstack's bytes wait in the ring from boot on, so the interrupt occurs in the middle of
//! the opening. It does no harm: it only fills the buffer. The worker that feeds the line
//! discipline is a thread of ordinary priority, and a stubdomain has one processor: while a thread
//! of real-time priority opens the tty and sets it raw, and does not sleep in between, the worker
//! cannot run. So such a thread does it ([`realtime`]).
//!
//! A tty keeps its mode while somebody has it open, and returns to the edited mode after the last
//! close.
//!
//! [`xen_console`] needs no argument of this kind: it publishes its ring only when somebody reads.
//! It is not for these consoles: the distributions' kernels claim them at boot, a claimed console's
//! driver cannot be unbound while the backend has the ring, and what the backend has put into it by
//! then would be lost.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::available_parallelism;

use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use tracing::warn;

use crate::guest::realtime::realtime;
use crate::rt::error::{Context, Result};

/// The direction that a tty is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Reading.
    In,
    /// Writing.
    Out,
    /// Both.
    Both,
}

/// How much of each second real-time threads may have, in microseconds; -1 for all of it.
const SHARE: &str = "/proc/sys/kernel/sched_rt_runtime_us";

/// To be called once, by init, before the first [`open_raw`]: a real-time thread is not to be
/// interrupted for having run for too long, which on a host that is busy it may seem to have.
pub fn prepare() {
    if let Err(error) = fs::write(SHARE, "-1") {
        warn!("{SHARE}: {error}");
    }
    let processors = available_parallelism().map_or(1, usize::from);
    if processors > 1 {
        warn!(
            "{processors} processors: console bytes that come while a tty is opened may be altered"
        );
    }
}

/// Opens a tty and sets it raw before the line discipline can run. Logs if this process may not
/// have the real-time priority.
///
/// # Errors
/// It cannot be opened or set raw.
pub fn open_raw(path: impl AsRef<Path>, direction: Direction) -> Result<File> {
    let path = path.as_ref();
    let opened = realtime(|| {
        // Code that runs for the first time is mapped first, under locks that the thread would wait
        // for.
        let _ = open_then_raw(Path::new("/dev/null"), direction);
        open_then_raw(path, direction)
    });
    let (tty, realtime) = opened.context("a thread")?;
    if let Err(error) = realtime {
        warn!("{} is opened like any file: {error}", path.display());
    }
    tty
}

/// Opens a tty and then sets it raw: what arrives in between is altered, echoed, or lost.
///
/// # Errors
/// As [`open_raw`].
pub fn open_then_raw(path: &Path, direction: Direction) -> Result<File> {
    let mut options = File::options();
    let tty = options
        .read(direction != Direction::Out)
        .write(direction != Direction::In)
        .custom_flags(libc::O_NOCTTY)
        .open(path)
        .context(path.display())?;
    let mut mode =
        tcgetattr(tty.as_fd()).context(format_args!("the mode of {}", path.display()))?;
    cfmakeraw(&mut mode);
    // Not TCSAFLUSH, which discards received bytes.
    tcsetattr(tty.as_fd(), SetArg::TCSANOW, &mode)
        .context(format_args!("setting {} raw", path.display()))?;
    Ok(tty)
}
