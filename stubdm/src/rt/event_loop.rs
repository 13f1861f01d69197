//! The main loop of every part of the program.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::rt::poll::{Interest, hung_up, sleep, sleep_until};
use crate::rt::text;

/// How many rounds a turn takes before others get theirs.
pub const ROUNDS: usize = 64;
/// An idle time after which a process unmaps the pages of its machine code. It is longer than the
/// pauses of a person who types: mapping them again delays a key.
const QUIET: Duration = Duration::from_secs(5);

/// The result of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Sleep until one of the interests, or this deadline.
    Sleep(Option<Instant>),
    /// There is more to do at once.
    Again,
    /// The task is done.
    Done,
}

/// A part of the program that works turn by turn and never blocks.
pub trait Task {
    /// Returns the events that need a turn.
    fn interests(&self) -> Vec<Interest<'_>>;

    /// Does all that can be done without waiting.
    ///
    /// # Errors
    /// The task failed.
    fn turn(&mut self, now: Instant) -> io::Result<Progress>;
}

/// A reason for the loop to end that lies outside of its task.
pub trait Stop {
    /// The events that announce it.
    fn interests(&self) -> Vec<Interest<'_>>;

    /// The reason, once it is there: one line for the log.
    ///
    /// # Errors
    /// The system's.
    fn reason(&mut self) -> io::Result<Option<String>>;
}

/// Gives `task` its turns until it is done (`None`) or one of `stops` has a reason.
///
/// A task that waits only for events is idle. After five idle seconds the process unmaps the pages
/// of its machine code ([`text::release`]), and sleeps until an event arrives.
///
/// # Errors
/// The task's, a stop's, or the system's.
pub fn run(task: &mut dyn Task, stops: &mut [&mut dyn Stop]) -> io::Result<Option<String>> {
    loop {
        let deadline = match task.turn(Instant::now())? {
            Progress::Sleep(deadline) => deadline,
            Progress::Again => Some(Instant::now()),
            Progress::Done => return Ok(None),
        };
        let mut interests = task.interests();
        interests.extend(stops.iter().flat_map(|stop| stop.interests()));
        let quiet = deadline.is_none().then(|| Instant::now() + QUIET);
        if !sleep_until(&interests, deadline.or(quiet))? && quiet.is_some() {
            text::release();
            // At once, so that little of the code is needed for it.
            sleep(&interests, None)?;
        }
        for stop in stops.iter_mut() {
            if let Some(reason) = stop.reason()? {
                return Ok(Some(reason));
            }
        }
    }
}

/// Stops when the other end of a socket is closed.
#[derive(Debug)]
pub struct HangUp<'a>(pub BorrowedFd<'a>);

impl Stop for HangUp<'_> {
    fn interests(&self) -> Vec<Interest<'_>> {
        vec![(self.0, nix::poll::PollFlags::empty())]
    }

    fn reason(&mut self) -> io::Result<Option<String>> {
        Ok(hung_up(self.0).then(|| "the other end is gone".to_owned()))
    }
}
