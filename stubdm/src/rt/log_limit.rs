//! How much of what QEMU says goes into the log: a burst, and then a trickle.
//!
//! The log is a file in domain 0 that grows as long as the stubdomain lives. A guest that makes QEMU talk must not be able
//! to fill domain 0's disk. Output left out is counted, and the count is logged.

use std::time::{Duration, Instant};

/// Bytes that may come at once.
pub const BURST: u64 = 64 << 10;
/// Bytes that may come each second in the long run: some 20 MB a day.
pub const EACH_SECOND: u64 = 256;
/// The budget that must be there again before anything passes after something did not.
const AGAIN: u64 = 4 << 10;

/// Whether a line goes into the log.
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
    left: u64,
    at: Instant,
    dropped: u64,
}

impl LogLimit {
    /// All of it is.
    pub fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            at: now,
            dropped: 0,
        }
    }

    /// How many lines were left out and not told of.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Decides about a line of so many bytes.
    pub fn admit(&mut self, bytes: usize, now: Instant) -> Verdict {
        self.refill(now);
        // The log adds a time and a word or two to each line.
        let cost = bytes as u64 + 32;
        let wanted = if self.dropped > 0 {
            cost.max(AGAIN)
        } else {
            cost
        };
        if self.left < wanted {
            self.dropped += 1;
            return if self.dropped == 1 {
                Verdict::Stop
            } else {
                Verdict::Drop
            };
        }
        self.left -= cost;
        match std::mem::take(&mut self.dropped) {
            0 => Verdict::Pass,
            dropped => Verdict::PassAfter(dropped),
        }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        // Whole bytes, paid for with whole milliseconds; the rest is kept for the next time.
        let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let gained = millis.saturating_mul(EACH_SECOND) / 1000;
        if gained > 0 {
            self.left = self.left.saturating_add(gained).min(BURST);
            let paid = gained.saturating_mul(1000).div_ceil(EACH_SECOND);
            self.at += Duration::from_millis(paid).min(passed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_costs_a_burst_and_a_trickle_however_long_it_lasts() {
        let start = Instant::now();
        let mut quota = LogLimit::new(start);
        let (mut passed, mut told, mut stops) = (0u64, 0, 0);
        const HOUR: u64 = 3600;
        for step in 0..HOUR * 100 {
            match quota.admit(68, start + Duration::from_millis(step * 10)) {
                Verdict::Pass => passed += 100,
                Verdict::PassAfter(dropped) => {
                    passed += 100;
                    told += dropped;
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
        assert_eq!(passed / 100 + told + quota.dropped(), HOUR * 100);
        // It neither stops for ever nor at every line.
        assert!((10..HOUR / 10).contains(&stops), "{stops} stops");
    }

    #[test]
    fn ordinary_words_all_pass() {
        let start = Instant::now();
        let mut quota = LogLimit::new(start);
        for second in 0..10_000 {
            let now = start + Duration::from_secs(second);
            assert_eq!(quota.admit(100, now), Verdict::Pass, "second {second}");
        }
    }

    #[test]
    fn a_clock_that_stands_still_or_steps_far_is_no_error() {
        let start = Instant::now();
        let mut quota = LogLimit::new(start + Duration::from_secs(5));
        assert_eq!(quota.admit(usize::MAX / 2, start), Verdict::Stop);
        let later = start + Duration::from_secs(1 << 40);
        assert_eq!(quota.admit(10, later), Verdict::PassAfter(1));
    }
}
