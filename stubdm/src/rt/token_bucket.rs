//! A bucket of tokens that fills with time: a bound on how much another domain can make this
//! program do.

use std::time::{Duration, Instant};

/// The bucket.
#[derive(Debug)]
pub struct TokenBucket {
    size: u64,
    amount: u64,
    every: Duration,
    left: u64,
    filled: Instant,
}

impl TokenBucket {
    /// Returns a full bucket of `size` tokens, to which each period `every` adds `amount`.
    pub fn new(size: u64, amount: u64, every: Duration, now: Instant) -> Self {
        Self {
            size,
            amount,
            every,
            left: size,
            filled: now,
        }
    }

    /// Adds the tokens due by `now`.
    pub fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        let every = self.every.as_nanos().max(1);
        let periods = passed.as_nanos() / every;
        let gained = u64::try_from(periods)
            .unwrap_or(u64::MAX)
            .saturating_mul(self.amount);
        self.left = self.left.saturating_add(gained).min(self.size);
        if self.left == self.size {
            self.filled = self.filled.max(now);
        } else {
            // The rest of a period counts for the next time.
            self.filled += Duration::from_nanos(u64::try_from(periods * every).unwrap_or(0));
        }
    }

    /// Tokens that are there, as of the last filling.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Takes `count` tokens, or as many as there are.
    pub fn take(&mut self, count: u64) {
        self.left = self.left.saturating_sub(count);
    }

    /// Returns when the next tokens are due.
    pub fn next(&self) -> Instant {
        self.filled + self.every
    }

    /// Takes a token, and fails with the time at which there is one.
    ///
    /// # Errors
    /// There is none.
    pub fn try_take(&mut self, now: Instant) -> Result<(), Instant> {
        self.fill(now);
        self.left = self.left.checked_sub(1).ok_or_else(|| self.next())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: u64 = 4 << 20;
    const PAUSE: Duration = Duration::from_millis(100);
    const RATE: u64 = 1 << 20;

    #[test]
    fn a_flood_is_held_to_the_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(BURST, RATE / 10, PAUSE, start);
        let mut now = start;
        let mut taken = 0u64;
        while now < start + Duration::from_secs(60) {
            bucket.fill(now);
            let count = bucket.left().min(4096);
            bucket.take(count);
            taken += count;
            now = match bucket.left() {
                0 => bucket.next(),
                _ => now + Duration::from_micros(10),
            };
        }
        assert!(taken <= BURST + 61 * RATE, "{taken}");
        assert!(taken >= 59 * RATE, "{taken}");
    }

    #[test]
    fn whoever_takes_little_is_never_held_back() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(BURST, RATE / 10, PAUSE, start);
        for n in 0..100_000u64 {
            bucket.fill(start + Duration::from_millis(n));
            bucket.take(1000);
            assert!(bucket.left() > 0);
        }
    }

    #[test]
    fn a_clock_that_stands_still_or_steps_far_is_no_error() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(2, 1, PAUSE, start + PAUSE);
        assert_eq!(bucket.try_take(start), Ok(()));
        assert_eq!(bucket.try_take(start), Ok(()));
        assert_eq!(bucket.try_take(start), Err(start + 2 * PAUSE));
        let later = start + Duration::from_secs(1 << 40);
        assert_eq!(bucket.try_take(later), Ok(()));
    }
}
