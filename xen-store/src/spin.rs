//! Decides which waits look for input before they sleep, from the outcome of earlier looks.
//!
//! A sleep costs a wake-up, tens of microseconds, and a daemon on an idle processor answers sooner.
//! Where it does not, a look finds nothing, and on a busy machine it does harm: the thread that
//! looks has used its share of the processor when the answer arrives. So a look that saves no sleep
//! makes the next ones rarer, down to one in 64 sleeps.
//!
//! xen-vchan's searches (its `spin.rs`) are of memory: a look takes nanoseconds there and a system
//! call here. So this module has no short search and none without a clock.
//!
//! No I/O, and no clock.

use std::time::Duration;

/// The longest look before a sleep, by default: about what a wake-up costs.
pub(crate) const LIMIT: Duration = Duration::from_micros(50);
/// The upper limit of every look.
pub(crate) const GREATEST_LIMIT: Duration = Duration::from_secs(1);
/// A look takes less than this, unless another process had the processor.
pub(crate) const SHARED: Duration = Duration::from_micros(10);
/// At most this many sleeps (as a power of two) without a look.
const MAX_PAUSE: u32 = 6;

/// The outcome of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// There was none, or no need for one.
    None,
    /// It saved a sleep.
    Saved,
    /// Nothing arrived, or another process had the processor meanwhile.
    InVain,
}

/// The outcome of the earlier looks of a connection.
#[derive(Debug, Default)]
pub(crate) struct Spinner {
    /// Looks that found nothing, less those that saved a sleep since.
    misses: u32,
    /// Sleeps left without a look.
    pause: u32,
}

impl Spinner {
    /// Returns whether to look before the sleep that follows.
    pub(crate) fn poll_look(&mut self) -> bool {
        let looks = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        looks
    }

    /// Records the outcome of a look.
    pub(crate) fn handle_look(&mut self, look: Look) {
        match look {
            Look::None => {}
            Look::Saved => self.misses = self.misses.saturating_sub(1),
            Look::InVain => {
                self.misses = MAX_PAUSE.min(self.misses + 1);
                self.pause = 1 << self.misses;
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// The sleeps without a look after this one.
    fn pause(spinner: &mut Spinner) -> u32 {
        (0..).find(|_| spinner.poll_look()).unwrap_or(u32::MAX)
    }

    #[test]
    fn looks_in_vain_become_rare_and_those_that_save_a_sleep_frequent_again() {
        let mut spinner = Spinner::default();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert_eq!(pause(&mut spinner), pauses.last().copied().unwrap_or(0));
            spinner.handle_look(Look::InVain);
            pauses.push(1 << 6.min(pauses.len() + 1));
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 64, 64, 64]);
        assert_eq!(pause(&mut spinner), 64);
        for _ in 0..6 {
            spinner.handle_look(Look::Saved);
            assert_eq!(pause(&mut spinner), 0);
        }
        spinner.handle_look(Look::InVain);
        assert_eq!(pause(&mut spinner), 2);
    }
}
