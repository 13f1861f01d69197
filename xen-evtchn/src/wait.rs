//! Waiting for a descriptor to become readable, with a deadline and in spite of signals.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_sys::{Error, Result};

/// Returns whether `fd` became readable before `deadline`. A failed `fd` counts as readable; the
/// next read reports the failure.
pub(crate) fn readable(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    loop {
        #[cfg(feature = "unstable-counters")]
        crate::counters::call();
        match poll(&mut fds, timeout(deadline)) {
            // A timeout longer than poll can express; or a signal, of which there may be many.
            Ok(0) | Err(Errno::EINTR) if has_passed(deadline) => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(Error::os("poll", e.into())),
        }
    }
}

/// Returns whether a deadline has passed. Without a deadline the clock is not read.
pub(crate) fn has_passed(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

/// Returns the time left in milliseconds, rounded up so that no wait ends before its deadline.
///
/// Without a deadline the clock is not read: in many domains that is a system call of its own.
pub(crate) fn timeout(deadline: Option<Instant>) -> PollTimeout {
    deadline.map_or(PollTimeout::NONE, |deadline| {
        left(deadline.saturating_duration_since(Instant::now()))
    })
}

fn left(left: Duration) -> PollTimeout {
    let millis = left.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_left_is_rounded_up() {
        let ms = |d| left(d).as_millis();
        assert_eq!(ms(Duration::ZERO), Some(0));
        assert_eq!(ms(Duration::from_nanos(1)), Some(1));
        assert_eq!(ms(Duration::from_millis(3)), Some(3));
        assert_eq!(ms(Duration::from_micros(3001)), Some(4));
        assert_eq!(ms(Duration::from_secs(1 << 40)), Some(i32::MAX as u32));
        assert_eq!(timeout(Some(Instant::now())).as_millis(), Some(0));
        assert_eq!(timeout(None), PollTimeout::NONE);
    }

    #[test]
    fn a_passed_deadline_still_sees_what_is_there() {
        let (a, mut b) = UnixStream::pair().unwrap();
        let past = Some(Instant::now());
        assert!(!readable(a.as_fd(), past).unwrap());
        b.write_all(&[1]).unwrap();
        assert!(readable(a.as_fd(), past).unwrap());
        assert!(readable(a.as_fd(), None).unwrap());
    }

    #[test]
    fn a_deadline_is_not_kept_early() {
        let (a, _b) = UnixStream::pair().unwrap();
        let deadline = Instant::now() + Duration::from_millis(5);
        assert!(!readable(a.as_fd(), Some(deadline)).unwrap());
        assert!(Instant::now() >= deadline);
    }
}
