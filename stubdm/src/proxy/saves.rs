//! The looks at libxl's file that QEMU's answer to a save waits for.

use std::collections::VecDeque;

use crate::rt::poll::Interest;

/// Looks whether a saved state is where libxl will take it from, without blocking. Every look that
/// was begun has one outcome, in the order in which they were begun.
pub trait Saves {
    /// Begins a look.
    fn begin(&mut self);

    /// The next outcome, if it is known: a failure is one line for people.
    fn outcome(&mut self) -> Option<Result<(), String>>;

    /// The events that announce it, besides the vchan's own.
    fn interests(&self) -> Vec<Interest<'_>>;
}

/// Fails every save with this reason.
#[derive(Debug)]
pub struct NoSaves {
    why: &'static str,
    outcomes: VecDeque<Result<(), String>>,
}

impl NoSaves {
    /// With a reason of one line.
    pub fn new(why: &'static str) -> Self {
        let outcomes = VecDeque::new();
        Self { why, outcomes }
    }
}

impl Saves for NoSaves {
    fn begin(&mut self) {
        self.outcomes.push_back(Err(self.why.to_owned()));
    }

    fn outcome(&mut self) -> Option<Result<(), String>> {
        self.outcomes.pop_front()
    }

    fn interests(&self) -> Vec<Interest<'_>> {
        Vec::new()
    }
}
