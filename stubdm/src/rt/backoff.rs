//! A pause that doubles.

use std::time::Duration;

/// The pause before the next attempt: the first one, then twice as long each time, up to a limit.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    limit: Duration,
}

impl Backoff {
    /// Pauses from `first` up to `limit`.
    pub const fn new(first: Duration, limit: Duration) -> Self {
        Self {
            next: first,
            first,
            limit,
        }
    }

    /// Returns the pause before the next attempt.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.limit);
        pause
    }

    /// Handles a successful attempt: the next pause is the first one again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_begin_anew() {
        let millis = Duration::from_millis;
        let mut backoff = Backoff::new(millis(50), millis(150));
        let pauses = [(); 4].map(|()| backoff.pause());
        assert_eq!(pauses, [50, 100, 150, 150].map(millis));
        backoff.reset();
        assert_eq!(backoff.pause(), millis(50));
    }
}
