//! Limits how much of QEMU's output is logged: a burst, and then a trickle.
//!
//! The log is a file in domain 0 that grows while the stubdomain lives. A guest that makes QEMU
//! write must not be able to fill domain 0's disk. Output left out is counted, and the count is
//! logged.

use std::time::{Duration, Instant};

use crate::rt::token_bucket::TokenBucket;

/// Bytes that may be logged at once.
pub const BURST: u64 = 64 << 10;
/// Bytes that may be logged each second in the long run: some 20 MB a day.
pub const EACH_SECOND: u64 = 256;
/// After a line was left out: the budget required before the next line is logged.
const AGAIN: u64 = 4 << 10;

/// The decision whether a line is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Pass,
    /// It does, and is the first after this many that did not.
    PassAfter(u64),
    /// It does not, and is the first.
    Stop,
    /// Nor does this one.
    Drop,
}

/// The rest of the budget.
#[derive(Debug)]
pub struct LogLimit {
    bucket: TokenBucket,
    dropped: u64,
}

impl LogLimit {
    /// All of it is.
    pub fn new(now: Instant) -> Self {
        Self {
            bucket: TokenBucket::new(
                BURST,
                1,
                Duration::from_nanos(1_000_000_000 / EACH_SECOND),
                now,
            ),
            dropped: 0,
        }
    }

    /// Returns how many lines were left out and not reported.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Decides about a line of so many bytes.
    pub fn admit(&mut self, bytes: usize, now: Instant) -> Verdict {
        self.bucket.fill(now);
        // The log adds a time and a word or two to each line.
        let cost = bytes as u64 + 32;
        let wanted = if self.dropped > 0 {
            cost.max(AGAIN)
        } else {
            cost
        };
        if self.bucket.left() < wanted {
            self.dropped += 1;
            return if self.dropped == 1 {
                Verdict::Stop
            } else {
                Verdict::Drop
            };
        }
        self.bucket.take(cost);
        match std::mem::take(&mut self.dropped) {
            0 => Verdict::Pass,
            dropped => Verdict::PassAfter(dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_costs_a_burst_and_a_trickle_however_long_it_lasts() {
        let start = Instant::now();
        let mut limit = LogLimit::new(start);
        let (mut passed, mut reported, mut stops) = (0u64, 0, 0);
        const HOUR: u64 = 3600;
        for step in 0..HOUR * 100 {
            match limit.admit(68, start + Duration::from_millis(step * 10)) {
                Verdict::Pass => passed += 100,
                Verdict::PassAfter(dropped) => {
                    passed += 100;
                    reported += dropped;
                }
                Verdict::Stop => stops += 1,
                Verdict::Drop => {}
            }
        }
        let most = BURST + HOUR * EACH_SECOND;
        assert!(
            passed <= most && passed > most * 9 / 10,
            "{passed} of {most}"
        );
        assert_eq!(passed / 100 + reported + limit.dropped(), HOUR * 100);
        // It stops neither forever nor at every line.
        assert!((10..HOUR / 10).contains(&stops), "{stops} stops");
    }

    #[test]
    fn ordinary_words_all_pass() {
        let start = Instant::now();
        let mut limit = LogLimit::new(start);
        for second in 0..10_000 {
            let now = start + Duration::from_secs(second);
            assert_eq!(limit.admit(100, now), Verdict::Pass, "second {second}");
        }
    }

    #[test]
    fn a_clock_that_stands_still_or_steps_far_is_no_error() {
        let start = Instant::now();
        let mut limit = LogLimit::new(start + Duration::from_secs(5));
        assert_eq!(limit.admit(usize::MAX / 2, start), Verdict::Stop);
        let later = start + Duration::from_secs(1 << 40);
        assert_eq!(limit.admit(10, later), Verdict::PassAfter(1));
    }
}
