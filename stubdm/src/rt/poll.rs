//! The one place where this program sleeps.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A descriptor and what to wait for on it.
pub type Interest<'a> = (BorrowedFd<'a>, PollFlags);

/// Interest in input on a descriptor.
pub fn readable(fd: BorrowedFd<'_>) -> Interest<'_> {
    (fd, PollFlags::POLLIN)
}

/// Sleeps until one of the descriptors is ready or the deadline has passed. Does not return which
/// one: after every wake-up each part of the program checks its own.
///
/// # Errors
/// The system's. A signal is no error and ends the sleep.
pub fn sleep(interests: &[Interest<'_>], deadline: Option<Instant>) -> io::Result<()> {
    sleep_until(interests, deadline).map(drop)
}

/// As [`sleep`]; `false` if only the deadline ended it.
///
/// # Errors
/// As [`sleep`].
pub fn sleep_until(interests: &[Interest<'_>], deadline: Option<Instant>) -> io::Result<bool> {
    let timeout = match deadline {
        None => PollTimeout::NONE,
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: waking just before the deadline would make the caller spin.
            let millis = left.as_micros().div_ceil(1000);
            PollTimeout::try_from(millis.min(3_600_000)).unwrap_or(PollTimeout::ZERO)
        }
    };
    let mut fds: Vec<PollFd<'_>> = interests
        .iter()
        .map(|(fd, flags)| PollFd::new(*fd, *flags))
        .collect();
    match poll(&mut fds, timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// The earlier of two deadlines.
pub fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Returns whether the other side of a socket or pipe is closed in both directions.
pub fn hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds
            .iter()
            .any(|fd| fd.revents().is_some_and(|events| events.intersects(gone)))
}
