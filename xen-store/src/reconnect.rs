//! When a lost connection is made again, and which requests are repeated on it.
//!
//! No I/O, and no clock: the time is an argument. The clients connect when
//! [`Schedule::poll_timeout`] has passed.

use std::time::{Duration, Instant};

use crate::txn::chance;
use crate::wire::MsgType;

/// How a client makes a lost connection again.
///
/// A connection is lost when the daemon closes it or the system fails it: the daemon crashed, was
/// restarted, or closed the connection. After a violation of the protocol the client does not
/// connect again.
///
/// The first attempt is immediate. Each pause after that is drawn from the upper half of a span,
/// which begins with [`first_pause`](Self::first_pause) and doubles up to
/// [`longest_pause`](Self::longest_pause). Attempts are counted from the loss; those of earlier
/// losses count too until a connection has lived as long as the longest pause.
///
/// A client without this value has the default of the crate: the loss ends it.
///
/// ```
/// use std::time::Duration;
/// use xen_store::{Reconnect, Repeat};
///
/// let policy = Reconnect::new()
///     .first_pause(Duration::from_millis(20))
///     .attempts(Some(100))
///     .repeat(Repeat::Reads);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a client gets it by `Store::reconnecting`"]
pub struct Reconnect {
    first_pause: Duration,
    longest_pause: Duration,
    attempts: Option<u32>,
    pub(crate) repeat: Repeat,
}

/// Which requests are sent again after a loss, instead of ending with
/// [`Error::Lost`](crate::Error::Lost).
///
/// A transaction's requests are never sent again: it ended with its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repeat {
    /// None. Requests that are made after the loss still wait for the new connection.
    #[default]
    Never,
    /// Requests that were not sent whole, because the daemon cannot have carried them out, and
    /// those that change nothing: reads, and the start of a transaction.
    Reads,
    /// As `Reads`, and WRITE, MKDIR, RM and SET_PERMS, whose second execution leaves the node as
    /// the first one did. A change that another client made between the two is overwritten.
    Idempotent,
}

impl Repeat {
    /// Returns whether a request of this type that was sent may be sent again.
    pub(crate) fn covers(self, kind: MsgType) -> bool {
        let is_read = matches!(
            kind,
            MsgType::READ
                | MsgType::DIRECTORY
                | MsgType::GET_PERMS
                | MsgType::WATCH
                | MsgType::TRANSACTION_START
                | MsgType::GET_DOMAIN_PATH
                | MsgType::IS_DOMAIN_INTRODUCED
                | MsgType::GET_FEATURE
                | MsgType::GET_QUOTA
        );
        let is_idempotent = matches!(
            kind,
            MsgType::WRITE | MsgType::MKDIR | MsgType::RM | MsgType::SET_PERMS
        );
        match self {
            Self::Never => false,
            Self::Reads => is_read,
            Self::Idempotent => is_read || is_idempotent,
        }
    }
}

impl Default for Reconnect {
    fn default() -> Self {
        Self::new()
    }
}

impl Reconnect {
    /// Creates a policy with pauses of 10 ms to 1 s, no limit of attempts, and no request repeated.
    pub const fn new() -> Self {
        Self {
            first_pause: Duration::from_millis(10),
            longest_pause: Duration::from_secs(1),
            attempts: None,
            repeat: Repeat::Never,
        }
    }

    /// Sets the first span from which a pause is drawn, at least 1 ms.
    pub const fn first_pause(mut self, pause: Duration) -> Self {
        self.first_pause = pause;
        self
    }

    /// Sets the longest span from which a pause is drawn, at least 1 ms.
    pub const fn longest_pause(mut self, pause: Duration) -> Self {
        self.longest_pause = pause;
        self
    }

    /// Limits the consecutive attempts. When they are used up the connection is finished. `None` is
    /// no limit.
    pub const fn attempts(mut self, limit: Option<u32>) -> Self {
        self.attempts = limit;
        self
    }

    /// Sets which requests are sent again after a loss.
    pub const fn repeat(mut self, repeat: Repeat) -> Self {
        self.repeat = repeat;
        self
    }
}

/// The shortest span that a pause is drawn from, so that no policy makes a busy loop.
const SHORTEST: Duration = Duration::from_millis(1);

/// The attempts to make a connection again.
#[derive(Debug)]
pub(crate) struct Schedule {
    policy: Reconnect,
    /// Attempts since the last connection that lived long enough.
    made: u32,
    connected: Instant,
    next: Option<Instant>,
}

impl Schedule {
    pub(crate) fn new(policy: Reconnect, now: Instant) -> Self {
        Self {
            policy,
            made: 0,
            connected: now,
            next: None,
        }
    }

    /// Plans the first attempt after a loss. Returns when it is due; `None` if none is left.
    pub(crate) fn handle_loss(&mut self, now: Instant) -> Option<Instant> {
        let lived = now.saturating_duration_since(self.connected);
        if lived >= self.longest_pause() {
            self.made = 0;
        }
        self.plan(now)
    }

    /// Plans the attempt after one that failed. Returns when it is due; `None` if none is left.
    pub(crate) fn handle_refusal(&mut self, now: Instant) -> Option<Instant> {
        self.plan(now)
    }

    pub(crate) fn handle_connected(&mut self, now: Instant) {
        self.connected = now;
        self.next = None;
    }

    /// Returns when the next attempt is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    fn plan(&mut self, now: Instant) -> Option<Instant> {
        let is_left = self.policy.attempts.is_none_or(|limit| self.made < limit);
        self.next = is_left.then(|| now + self.pause());
        self.made = self.made.saturating_add(1);
        self.next
    }

    fn pause(&self) -> Duration {
        let Some(doublings) = self.made.checked_sub(1) else {
            return Duration::ZERO;
        };
        let span = self
            .policy
            .first_pause
            .max(SHORTEST)
            .saturating_mul(2_u32.saturating_pow(doublings))
            .min(self.longest_pause());
        span.mul_f64(0.5 + chance() / 2.0)
    }

    fn longest_pause(&self) -> Duration {
        self.policy.longest_pause.clamp(SHORTEST, DAY)
    }
}

/// Longer pauses count as this, so that the sum with any time exists.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_attempt_is_at_once_and_pauses_double_up_to_the_longest() {
        let now = Instant::now();
        let policy = Reconnect::new().first_pause(8 * MS).longest_pause(100 * MS);
        let mut schedule = Schedule::new(policy, now);
        assert_eq!(schedule.handle_loss(now), Some(now));
        for span in [8, 16, 32, 64, 100, 100, 100] {
            let pause = schedule.handle_refusal(now).unwrap() - now;
            assert!(
                (span * MS / 2..=span * MS).contains(&pause),
                "{pause:?} of {span}"
            );
        }
        assert_eq!(schedule.poll_timeout(), schedule.next);
        schedule.handle_connected(now);
        assert_eq!(schedule.poll_timeout(), None);
    }

    /// Without the pauses a daemon that accepts and closes immediately would cause a busy loop.
    #[test]
    fn a_short_connection_does_not_begin_the_pauses_anew() {
        let now = Instant::now();
        let policy = Reconnect::new().longest_pause(100 * MS);
        let mut schedule = Schedule::new(policy, now);
        assert_eq!(schedule.handle_loss(now + 100 * MS), Some(now + 100 * MS));
        let connected = now + 200 * MS;
        schedule.handle_connected(connected);
        let soon = connected + 99 * MS;
        assert!(schedule.handle_loss(soon).unwrap() >= soon + 5 * MS);
        schedule.handle_connected(connected);
        let late = connected + 100 * MS;
        assert_eq!(schedule.handle_loss(late), Some(late));
    }

    #[test]
    fn without_a_longest_pause_a_short_connection_is_followed_by_a_pause_too() {
        let now = Instant::now();
        let policy = Reconnect::new().longest_pause(Duration::ZERO);
        let mut schedule = Schedule::new(policy, now);
        assert_eq!(schedule.handle_loss(now + MS), Some(now + MS));
        schedule.handle_connected(now + MS);
        assert!(schedule.handle_loss(now + MS).unwrap() > now + MS);
    }

    #[test]
    fn attempts_end_at_their_limit() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Reconnect::new().attempts(Some(2)), now);
        assert!(schedule.handle_loss(now).is_some());
        assert!(schedule.handle_refusal(now).is_some());
        assert_eq!(schedule.handle_refusal(now), None);
        let mut none = Schedule::new(Reconnect::new().attempts(Some(0)), now);
        assert_eq!(none.handle_loss(now), None);
        let longest = Reconnect::new()
            .first_pause(Duration::MAX)
            .longest_pause(Duration::MAX);
        let mut schedule = Schedule::new(longest, now);
        schedule.made = u32::MAX;
        assert!(schedule.handle_refusal(now).unwrap() <= now + DAY);
    }
}
