//! How fast the stubdomain is listened to: a bucket of bytes that fills with time.
//!
//! A QEMU that never stops talking would otherwise keep a processor of the host busy with messages that
//! nobody asked for. Bytes beyond the rate stay in the ring until there is budget for them.

use std::time::{Duration, Instant};

/// Bytes that may come at once: several answers of the greatest length.
const BURST: u64 = 4 << 20;
/// Bytes each second after that.
const RATE: u64 = 1 << 20;
/// The pause when nothing is left.
const PAUSE: Duration = Duration::from_millis(100);

/// The bucket.
#[derive(Debug)]
pub struct TokenBucket {
    left: u64,
    filled: Instant,
}

impl TokenBucket {
    /// A full one.
    pub fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            filled: now,
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        if self.left == BURST || passed >= PAUSE {
            let more = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
            let more = more.saturating_mul(RATE) / 1000;
            self.left = self.left.saturating_add(more).min(BURST);
            self.filled = now;
        }
    }

    /// This many bytes came.
    pub fn take(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count as u64);
    }

    /// How many bytes may come now.
    pub fn left(&self) -> usize {
        usize::try_from(self.left).unwrap_or(usize::MAX)
    }

    /// When to look again, if nothing may come now.
    pub fn deadline(&self) -> Option<Instant> {
        (self.left == 0).then(|| self.filled + PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_held_to_the_rate() {
        let start = Instant::now();
        let mut meter = TokenBucket::new(start);
        let mut now = start;
        let mut taken = 0u64;
        while now < start + Duration::from_secs(60) {
            meter.tick(now);
            let count = meter.left().min(4096);
            meter.take(count);
            taken += count as u64;
            now = match meter.deadline() {
                Some(at) => at,
                None => now + Duration::from_micros(10),
            };
        }
        assert!(taken <= BURST + 61 * RATE, "{taken}");
        assert!(taken >= 59 * RATE, "{taken}");
    }

    #[test]
    fn whoever_says_little_is_never_held_back() {
        let start = Instant::now();
        let mut meter = TokenBucket::new(start);
        for n in 0..100_000u64 {
            meter.tick(start + Duration::from_millis(n));
            meter.take(1000);
            assert!(meter.left() > 0);
        }
    }
}
