//! The worker's log lines: a pipe that the broker reads, so that neither the log's file
//! nor its open file description is in the sandbox.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::PollFlags;
use nix::unistd::pipe2;
use stubdm_qmp::lines::{Line, Lines};
use stubdm_qmp::text::one_line;

use crate::rt::log::budget::Budget;
use crate::rt::log::write_within;
use crate::rt::poll::Interest;
use crate::rt::stream::set_nonblocking;

/// Bytes of a line.
const LINE: usize = 4096;
/// Bytes read in one turn; a pipe holds as many.
const TURN: usize = 64 << 10;
/// The pause after a turn that brought so many.
const PAUSE: Duration = Duration::from_millis(50);

/// The broker's end.
#[derive(Debug)]
pub struct LogRelay {
    from: Option<OwnedFd>,
    lines: Lines,
    rest_until: Option<Instant>,
}

impl LogRelay {
    /// A pipe: the broker's end, and the one for the worker.
    ///
    /// # Errors
    /// The system's.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (near, far) = pipe2(OFlag::O_CLOEXEC)?;
        set_nonblocking(near.as_fd())?;
        let relay = Self {
            from: Some(near),
            lines: Lines::new(LINE),
            rest_until: None,
        };
        Ok((relay, far))
    }

    /// Returns the descriptor to wait for.
    pub fn interest(&self) -> Option<Interest<'_>> {
        let from = self.from.as_ref().filter(|_| self.rest_until.is_none())?;
        Some((from.as_fd(), PollFlags::POLLIN))
    }

    /// Returns when [`LogRelay::turn`] is due without an event.
    pub fn deadline(&self) -> Option<Instant> {
        self.rest_until
    }

    /// Writes the worker's output to the log, within the budget. A worker that writes more than the
    /// budget is slowed down, but not blocked.
    pub fn turn(&mut self, budget: &mut Budget, now: Instant) {
        if self.rest_until.is_some_and(|until| now < until) {
            return;
        }
        self.rest_until = None;
        let mut read = 0;
        let mut buffer = [0; 4096];
        while let Some(from) = &self.from {
            if read >= TURN {
                self.rest_until = Some(now + PAUSE);
                return;
            }
            match nix::unistd::read(from, &mut buffer) {
                Ok(0) => self.from = None,
                Ok(count) => {
                    read += count;
                    let bytes = buffer.get(..count).unwrap_or_default();
                    self.lines.push(bytes, |line| write(line, budget, now));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => self.from = None,
            }
        }
    }
}

fn write(line: Line, budget: &mut Budget, now: Instant) {
    let text = match line {
        Line::Whole(line) => one_line(&String::from_utf8_lossy(&line)),
        Line::TooLong(_) => format!("a line of more than {LINE} bytes was left out"),
    };
    write_within(budget, format!("{text}\n").as_bytes(), now);
}
