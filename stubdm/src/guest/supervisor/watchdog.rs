//! Whether a running QEMU still answers: it is asked now and then, and the silence is measured.
//!
//! ```text
//!   ask ──every ASK_EVERY──▶ asked ──answer──▶ ask …
//!                              └── no answer for `limit` ──▶ hung ──answer──▶ ask …
//! ```

use std::time::{Duration, Instant};

/// How long after an answer QEMU is asked again.
pub const ASK_EVERY: Duration = Duration::from_secs(10);

/// The watchdog's verdict at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// Ask.
    Ask,
    /// It does not answer. Told once for each silence.
    Hung,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Quiet { until: Instant },
    Asked { at: Instant },
    Hung { since: Instant },
}

/// The measure.
#[derive(Debug)]
pub struct Watchdog {
    limit: Duration,
    state: State,
}

impl Watchdog {
    /// QEMU has just answered.
    pub fn new(limit: Duration, now: Instant) -> Self {
        let until = now + ASK_EVERY.min(limit);
        Self {
            limit,
            state: State::Quiet { until },
        }
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) is due, unless an answer arrives
    /// first.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Quiet { until } => Some(until),
            State::Asked { at } => at.checked_add(self.limit),
            State::Hung { .. } => None,
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Beat> {
        if self.poll_timeout()? > now {
            return None;
        }
        match self.state {
            State::Quiet { .. } => {
                self.state = State::Asked { at: now };
                Some(Beat::Ask)
            }
            State::Asked { at } => {
                self.state = State::Hung { since: at };
                Some(Beat::Hung)
            }
            State::Hung { .. } => None,
        }
    }

    /// Handles an answer of QEMU's. Returns the length of the silence, if it was reported.
    pub fn handle_answer(&mut self, now: Instant) -> Option<Duration> {
        let before = self.state;
        *self = Self::new(self.limit, now);
        match before {
            State::Hung { since } => Some(now.saturating_duration_since(since)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn each_silence_is_reported_once_and_its_end_with_its_length() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(LIMIT, start);
        for round in 0..3 {
            let asked = watchdog.poll_timeout().unwrap();
            assert_eq!(
                watchdog.handle_timeout(asked - Duration::from_millis(1)),
                None,
                "{round}"
            );
            assert_eq!(watchdog.handle_timeout(asked), Some(Beat::Ask));
            assert_eq!(watchdog.handle_timeout(asked), None);
            assert_eq!(
                watchdog.handle_timeout(asked + LIMIT - Duration::from_millis(1)),
                None
            );
            assert_eq!(watchdog.handle_timeout(asked + LIMIT), Some(Beat::Hung));
            assert_eq!(
                (
                    watchdog.handle_timeout(asked + 9 * LIMIT),
                    watchdog.poll_timeout()
                ),
                (None, None)
            );
            let silence = watchdog.handle_answer(asked + 10 * LIMIT);
            assert_eq!(silence, Some(10 * LIMIT));
        }
    }

    #[test]
    fn a_limit_beyond_all_time_is_never_reached() {
        let now = Instant::now();
        let mut watchdog = Watchdog::new(Duration::MAX, now);
        let asked = watchdog.poll_timeout().unwrap();
        assert_eq!(watchdog.handle_timeout(asked), Some(Beat::Ask));
        assert_eq!(watchdog.poll_timeout(), None);
        assert_eq!(watchdog.handle_timeout(asked + 1_000_000 * LIMIT), None);
        assert_eq!(watchdog.handle_answer(asked), None);
    }

    #[test]
    fn who_answers_in_time_is_never_called_hung() {
        let mut now = Instant::now();
        let mut watchdog = Watchdog::new(LIMIT, now);
        for _ in 0..1000 {
            now = watchdog.poll_timeout().unwrap();
            assert_eq!(watchdog.handle_timeout(now), Some(Beat::Ask));
            now += LIMIT - Duration::from_millis(1);
            assert_eq!(watchdog.handle_timeout(now), None);
            assert_eq!(watchdog.handle_answer(now), None);
        }
    }
}
