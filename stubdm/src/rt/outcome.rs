//! The outcome of work that blocks: done in a thread of its own, and awaited as an event.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::thread::{Builder, JoinHandle};

use crate::rt::poll::Interest;
use crate::rt::stream::{Read, Stream};

/// The longest reason for a failure, in bytes.
const WHY_MAX: usize = 512;
/// The message of work that succeeded.
const DONE: u8 = 0;
/// The first byte of the message of work that failed; the reason follows.
const FAILED: u8 = 1;

/// Work that was begun.
#[derive(Debug)]
pub struct Outcome {
    stream: Stream,
    thread: JoinHandle<()>,
}

impl Outcome {
    /// Begins `work`, whose error is one line for people.
    ///
    /// # Errors
    /// The system's: no thread or no socket could be made.
    pub fn of(
        name: &str,
        work: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> io::Result<Self> {
        let (near, mut far) = UnixStream::pair()?;
        let thread = Builder::new().name(name.into()).spawn(move || {
            let mut message = vec![DONE];
            if let Err(why) = work() {
                message = vec![FAILED];
                message.extend_from_slice(stubdm_qmp::text::cut(&why, WHY_MAX).as_bytes());
            }
            // Without a reader nobody waits for it.
            let _ = far.write_all(&message);
        })?;
        let stream = Stream::socket(near.into())?;
        Ok(Self { stream, thread })
    }

    /// The event that announces it.
    pub fn interest(&self) -> Vec<Interest<'_>> {
        self.stream.interest(true, false)
    }

    /// Returns the outcome; `None` while the work continues.
    pub fn poll(&mut self) -> Option<Result<(), String>> {
        let mut message = [0; 1 + WHY_MAX];
        let count = match self.stream.read(&mut message) {
            Ok(Read::Nothing) => return None,
            Ok(Read::Bytes(count)) => count,
            Ok(Read::End) => 0,
            Err(error) => return Some(Err(error.to_string())),
        };
        match message.get(..count).and_then(<[u8]>::split_first) {
            Some((&DONE, [])) => Some(Ok(())),
            Some((_, why)) => Some(Err(String::from_utf8_lossy(why).into_owned())),
            None => Some(Err("the thread ended without an outcome".to_owned())),
        }
    }

    /// Blocks until the work is done.
    pub fn join(self) {
        // A panic there was reported where it happened.
        let _ = self.thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::poll::sleep;

    fn awaited(mut outcome: Outcome) -> Result<(), String> {
        loop {
            if let Some(outcome) = outcome.poll() {
                return outcome;
            }
            sleep(&outcome.interest(), None).unwrap();
        }
    }

    #[test]
    fn success_and_failure_are_passed_and_a_long_reason_is_cut() {
        assert_eq!(awaited(Outcome::of("a", || Ok(())).unwrap()), Ok(()));
        let long = "é".repeat(WHY_MAX);
        let failure = awaited(Outcome::of("b", move || Err(long)).unwrap());
        assert_eq!(failure, Err("é".repeat(WHY_MAX / 2)));
    }

    #[test]
    fn only_work_that_returned_ok_succeeds() {
        let empty = awaited(Outcome::of("c", || Err(String::new())).unwrap());
        assert_eq!(empty, Err(String::new()));
        let panicked = awaited(Outcome::of("d", || panic!("on purpose")).unwrap());
        assert!(panicked.is_err(), "{panicked:?}");
    }
}
