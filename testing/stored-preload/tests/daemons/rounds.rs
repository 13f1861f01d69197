//! Repeating what only shows now and then, and ending what never does.

use std::any::Any;
use std::env;
use std::fmt::Display;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Longer than anything takes that ends at all.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Returns the number in an environment variable.
pub(crate) fn number(name: &str, otherwise: usize) -> usize {
    env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// Reads of each task in a round.
pub(crate) fn reads() -> usize {
    number("STORE_READS", 100)
}

/// Runs a test as often as it is asked for, prints how often it failed, and fails if it ever did.
pub(crate) fn rounds(what: impl Display, mut round: impl FnMut() -> Result<(), String>) {
    let all = number("STORE_ROUNDS", 1);
    let mut failures = Vec::new();
    for _ in 0..all {
        failures.extend(round().err());
    }
    println!("{what}: {} of {all} failed", failures.len());
    assert!(failures.is_empty(), "{what}: {}", failures[0]);
}

/// Calls that run in threads of their own, and whether each returned within the limit.
pub(crate) struct Calls<T> {
    sent: mpsc::Sender<T>,
    returned: mpsc::Receiver<T>,
    count: usize,
}

impl<T: Any + Send> Calls<T> {
    pub(crate) fn new() -> Self {
        let (sent, returned) = mpsc::channel();
        Self {
            sent,
            returned,
            count: 0,
        }
    }

    pub(crate) fn spawn(&mut self, call: impl FnOnce() -> T + Send + 'static) {
        let sent = self.sent.clone();
        self.count += 1;
        thread::spawn(move || sent.send(call()));
    }

    /// Returns their results, or how many did not end.
    pub(crate) fn join(self) -> Result<Vec<T>, String> {
        drop(self.sent);
        let mut all = Vec::new();
        while all.len() < self.count {
            match self.returned.recv_timeout(LIMIT) {
                Ok(value) => all.push(value),
                Err(_) => {
                    let stuck = self.count - all.len();
                    return Err(format!("{stuck} of {} did not return", self.count));
                }
            }
        }
        Ok(all)
    }
}
