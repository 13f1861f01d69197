//! Bytes between the channel and two descriptors, both ways at once.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_vchan::{Channel, Error};

use crate::Outcome;

/// The condition that ends a session whose peer stays.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum End {
    /// The source's end, and then so much time without a byte from the peer.
    Silence(Option<Duration>),
    /// The ends of both pipes.
    Command,
}

/// Copies until the peer is gone or the input has ended.
pub(crate) fn splice(
    channel: &mut Channel,
    source: BorrowedFd<'_>,
    sink: BorrowedFd<'_>,
    end: End,
) -> Outcome<()> {
    let nowhere = File::options().write(true).open("/dev/null")?;
    let mut sink = sink;
    // Whether the source has ended, there may be room in the ring, and the source has something.
    let (mut ended, mut room, mut ready) = (false, true, false);
    let mut deaf = false;
    loop {
        let (rx, tx) = channel.halves();
        let full = loop {
            match rx.try_write_to(sink) {
                Ok(_) => {}
                Err(Error::WouldBlock) => break false,
                Err(Error::Closed) => return Ok(()),
                Err(error) => match errno(&error) {
                    Some(Errno::EAGAIN) => break true,
                    // The command reads no more, but it may still write.
                    Some(Errno::EPIPE) if end == End::Command => {
                        (deaf, sink) = (true, nowhere.as_fd());
                    }
                    _ => return Err(error.into()),
                },
            }
        };
        // Without a look at the source first this would block.
        if ready && !ended {
            match tx.try_read_from(source, usize::MAX) {
                Ok(0) => ended = true,
                Ok(_) => {}
                Err(Error::WouldBlock) => room = false,
                Err(Error::Closed) => continue,
                Err(error) if errno(&error) == Some(Errno::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let patience = match &end {
            End::Silence(Some(time)) if ended => PollTimeout::try_from(*time)?,
            End::Command if ended && deaf => return Ok(()),
            _ => PollTimeout::NONE,
        };
        let mut fds = vec![PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        // poll reports a command that reads no more even if it was not requested.
        let told = [
            (full, PollFlags::POLLOUT),
            (end == End::Command, PollFlags::empty()),
        ];
        let (mut at_sink, mut at_source) = (None, None);
        if let Some((_, flags)) = told.into_iter().find(|(wanted, _)| *wanted) {
            at_sink = Some(fds.len());
            fds.push(PollFd::new(sink, flags));
        }
        if !ended && room {
            at_source = Some(fds.len());
            fds.push(PollFd::new(source, PollFlags::POLLIN));
        }
        match poll(&mut fds, patience) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let told = |at: Option<usize>| at.and_then(|at| fds[at].revents());
        let some = |flags: Option<PollFlags>| flags.is_some_and(|flags| !flags.is_empty());
        let event = some(told(Some(0)));
        ready = some(told(at_source));
        let broken = told(at_sink).is_some_and(|flags| flags.contains(PollFlags::POLLERR));
        if broken && end == End::Command {
            (deaf, sink) = (true, nowhere.as_fd());
        }
        if event {
            channel.acknowledge_events()?;
            // Perhaps there is room now; the source is asked first.
            room = true;
        }
    }
}

/// Returns the errno, if the system failed.
fn errno(error: &Error) -> Option<Errno> {
    match error {
        Error::Os(error) => error.errno().map(Errno::from_raw),
        _ => None,
    }
}
