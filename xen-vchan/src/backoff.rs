//! Decides when a reconnecting client tries again, from the outcome of its last attempt. No I/O;
//! the time is an argument.

use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime};

use crate::{Error, Result};

/// How long to wait between attempts: each pause is about twice the one before, within two limits.
///
/// The pauses vary by up to a half, so that many clients of one server do not reconnect together.
#[derive(Clone, Debug)]
pub struct Backoff {
    shortest: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Creates a back-off with pauses from `shortest` to `longest`.
    #[must_use]
    pub const fn new(shortest: Duration, longest: Duration) -> Self {
        Self {
            shortest,
            longest,
            next: shortest,
        }
    }

    /// Returns the next pause.
    pub fn pause(&mut self) -> Duration {
        let whole = self.next.min(self.longest);
        self.next = self.next.saturating_mul(2).min(self.longest);
        let noise = SystemTime::UNIX_EPOCH
            .elapsed()
            .map_or(0, |time| time.subsec_nanos() >> 4);
        whole / 2 + whole / 2048 * (noise % 1024)
    }

    /// Starts again with the shortest pause.
    pub const fn reset(&mut self) {
        self.next = self.shortest;
    }
}

impl Default for Backoff {
    /// From 10 ms to 5 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(10), Duration::from_secs(5))
    }
}

/// The sessions so far, and when the next one may be tried.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub(crate) backoff: Backoff,
    not_before: Option<Instant>,
    /// When the running session began.
    since: Option<Instant>,
    sessions: u64,
}

impl Schedule {
    /// The first attempt may be made immediately.
    pub(crate) const fn new(backoff: Backoff) -> Self {
        Self {
            backoff,
            not_before: None,
            since: None,
            sessions: 0,
        }
    }

    /// How long the next attempt must wait, and whether that is until `deadline` at least.
    pub(crate) fn poll_timeout(&self, now: Instant, deadline: Option<Instant>) -> (Duration, bool) {
        let at = self.not_before.map_or(now, |at| at.max(now));
        let late = deadline.is_some_and(|deadline| deadline <= at);
        let until = if late {
            deadline.map_or(at, |it| it.max(now))
        } else {
            at
        };
        (until - now, late)
    }

    /// Records an attempt: continues after a pause, or breaks with the caller's result.
    pub(crate) fn handle_attempt<T>(
        &mut self,
        attempt: Result<T>,
        now: Instant,
    ) -> ControlFlow<Result<T>> {
        match attempt {
            Ok(_) => {
                self.sessions += 1;
                self.since = Some(now);
            }
            Err(Error::TimedOut) => {}
            // The server left before it had taken note of this client.
            Err(Error::Closed) => {
                self.pause(now);
                return ControlFlow::Continue(());
            }
            Err(_) => self.pause(now),
        }
        ControlFlow::Break(attempt)
    }

    /// Records that the running session, if there is one, is over.
    pub(crate) fn handle_end(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            if now.saturating_duration_since(since) > self.backoff.longest {
                self.backoff.reset();
            }
            self.pause(now);
        }
    }

    fn pause(&mut self, now: Instant) {
        // A longer pause than the clock can count becomes one day.
        let day = Duration::from_secs(86_400);
        self.not_before = now.checked_add(self.backoff.pause()).or(Some(now + day));
    }

    pub(crate) const fn sessions(&self) -> u64 {
        self.sessions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(70));
        for whole in [10, 20, 40, 70, 70] {
            let whole = Duration::from_millis(whole);
            let pause = backoff.pause();
            assert!(
                (whole / 2..=whole).contains(&pause),
                "{pause:?} of {whole:?}"
            );
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(10));
        // No overflow, however long.
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::MAX);
        for _ in 0..100 {
            backoff.pause();
        }
    }

    #[test]
    fn an_attempt_waits_for_its_pause_but_never_beyond_the_deadline() {
        let (second, start) = (Duration::from_secs(1), Instant::now());
        let mut schedule = Schedule::new(Backoff::new(second, 60 * second));
        assert_eq!(schedule.poll_timeout(start, None), (Duration::ZERO, false));
        assert_eq!(
            schedule.poll_timeout(start, Some(start)),
            (Duration::ZERO, true)
        );
        // Three that fail: the third pause is of two seconds at least.
        assert!(
            schedule
                .handle_attempt::<()>(Err(Error::Closed), start)
                .is_continue()
        );
        for _ in 0..2 {
            let told = schedule.handle_attempt::<()>(Err(Error::WouldBlock), start);
            assert!(matches!(told, ControlFlow::Break(Err(Error::WouldBlock))));
        }
        let (wait, late) = schedule.poll_timeout(start, Some(start + 60 * second));
        assert!(
            !late && (2 * second..=4 * second).contains(&wait),
            "{wait:?}"
        );
        assert_eq!(
            schedule.poll_timeout(start, Some(start + second)),
            (second, true)
        );
        assert_eq!(
            schedule.poll_timeout(start + 5 * second, Some(start + second)),
            (Duration::ZERO, true)
        );
        assert_eq!(
            schedule.poll_timeout(start + 5 * second, None),
            (Duration::ZERO, false)
        );
        assert_eq!(schedule.sessions(), 0);
    }

    #[test]
    fn a_session_that_lasted_begins_the_pauses_anew_and_a_short_one_does_not() {
        let (second, start) = (Duration::from_secs(1), Instant::now());
        let mut schedule = Schedule::new(Backoff::new(second, 8 * second));
        for session in 1..=5 {
            assert!(matches!(
                schedule.handle_attempt(Ok(session), start),
                ControlFlow::Break(Ok(_))
            ));
            assert_eq!(schedule.sessions(), session);
            schedule.handle_end(start + second);
            // Only once.
            schedule.handle_end(start + 100 * second);
        }
        let (wait, _) = schedule.poll_timeout(start + second, None);
        assert!(wait >= 4 * second, "{wait:?}");
        let later = start + 100 * second;
        assert!(schedule.handle_attempt(Ok(()), later).is_break());
        schedule.handle_end(later + 9 * second);
        let (wait, _) = schedule.poll_timeout(later + 9 * second, None);
        assert!(wait <= second, "{wait:?}");
        // A deadline that passes is no failure of the server.
        let told = schedule.handle_attempt::<()>(Err(Error::TimedOut), later + 20 * second);
        assert!(told.is_break());
        assert_eq!(
            schedule.poll_timeout(later + 20 * second, None).0,
            Duration::ZERO
        );
    }
}
