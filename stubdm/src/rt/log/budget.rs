//! The budget of a stubdomain's log: a number of bytes in its life, and a burst and a trickle
//! within that. Lines left out are counted, and the count is a line of its own.

use std::time::{Duration, Instant};

use crate::rt::token_bucket::TokenBucket;

/// The verdict on a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is written; this many before it were not.
    Pass(u64),
    /// It is left out.
    LeaveOut,
    /// It is left out, and so is all that follows: reported once.
    Last,
}

/// The size of a [`Budget`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes in all.
    pub life: u64,
    /// Bytes at once.
    pub burst: u64,
    /// Bytes each second in the long run.
    pub each_second: u64,
}

/// The rest of a budget.
#[derive(Debug)]
pub struct Budget {
    life: u64,
    burst: TokenBucket,
    left_out: u64,
    reported: bool,
}

impl Budget {
    /// A whole one.
    pub fn new(size: Size, now: Instant) -> Self {
        Self {
            life: size.life,
            burst: TokenBucket::new(size.burst, size.each_second, Duration::from_secs(1), now),
            left_out: 0,
            reported: false,
        }
    }

    /// Decides about a line of `bytes` bytes.
    pub fn admit(&mut self, bytes: usize, now: Instant) -> Verdict {
        self.burst.fill(now);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        if self.life < bytes {
            self.life = 0;
            self.left_out = self.left_out.saturating_add(1);
            return match std::mem::replace(&mut self.reported, true) {
                false => Verdict::Last,
                true => Verdict::LeaveOut,
            };
        }
        if self.burst.left() < bytes {
            self.left_out = self.left_out.saturating_add(1);
            return Verdict::LeaveOut;
        }
        self.life -= bytes;
        self.burst.take(bytes);
        Verdict::Pass(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size {
        life: 10_000,
        burst: 1000,
        each_second: 100,
    };

    #[test]
    fn a_flood_costs_a_burst_a_trickle_and_never_more_than_the_life() {
        let start = Instant::now();
        let mut budget = Budget::new(SIZE, start);
        let (mut passed, mut reported, mut last) = (0, 0, 0);
        for step in 0..100_000u64 {
            // Ten lines each second.
            match budget.admit(100, start + Duration::from_millis(step * 100)) {
                Verdict::Pass(before) => (passed, reported) = (passed + 1, reported + before),
                Verdict::LeaveOut => {}
                Verdict::Last => last += 1,
            }
            if step == 99 {
                assert!((1000..=2000).contains(&(passed * 100)), "{passed}");
            }
        }
        assert_eq!((passed, last), (100, 1));
        assert_eq!(
            passed + reported + budget.left_out,
            100_000,
            "all are counted"
        );
    }

    #[test]
    fn ordinary_lines_all_pass() {
        let start = Instant::now();
        let mut budget = Budget::new(SIZE, start);
        for second in 0..100 {
            let now = start + Duration::from_secs(second);
            assert_eq!(budget.admit(100, now), Verdict::Pass(0));
        }
        assert_eq!(budget.admit(100, start), Verdict::Last, "a clock may stand");
    }
}
