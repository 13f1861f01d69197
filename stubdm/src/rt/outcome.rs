//! The outcome of work that blocks: done in a thread of its own, and awaited as an event.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::thread::{Builder, JoinHandle};

use crate::rt::poll::Interest;
use crate::rt::stream::{Read, Stream};

/// The longest reason for a failure, in bytes.
const WHY_MAX: usize = 512;

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
            if let Err(why) = work() {
                // Without a reader nobody waits for it.
                let _ = far.write_all(stubdm_qmp::text::cut(&why, WHY_MAX).as_bytes());
            }
        })?;
        let stream = Stream::socket(near.into())?;
        Ok(Self { stream, thread })
    }

    /// The event that announces it.
    pub fn interest(&self) -> Vec<Interest<'_>> {
        self.stream.interest(true, false)
    }

    /// The outcome; `None` while the work goes on.
    pub fn poll(&mut self) -> Option<Result<(), String>> {
        let mut why = [0; WHY_MAX];
        match self.stream.read(&mut why) {
            Ok(Read::Nothing) => None,
            Ok(Read::Bytes(count)) => {
                let why = why.get(..count).unwrap_or_default();
                Some(Err(String::from_utf8_lossy(why).into_owned()))
            }
            Ok(Read::End) | Err(_) => Some(Ok(())),
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
    fn success_and_failure_are_told_and_a_long_reason_is_cut() {
        assert_eq!(awaited(Outcome::of("a", || Ok(())).unwrap()), Ok(()));
        let long = "é".repeat(WHY_MAX);
        let failure = awaited(Outcome::of("b", move || Err(long)).unwrap());
        assert_eq!(failure, Err("é".repeat(WHY_MAX / 2)));
    }
}
