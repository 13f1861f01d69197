//! A limit on how often a peer wakes this side for nothing. No I/O; the time is an argument.
//!
//! Linux delays the unmasking of an event channel whose driver reports spurious events
//! (`xen_irq_lateeoi` with `XEN_EOI_FLAG_SPURIOUS`, since XSA-332). The driver behind
//! `/dev/xen/evtchn` never reports one: `evtchn_write` passes no flag, because the kernel has no
//! information about what the process found. Linux's other delay needs more than 256 events and two
//! ticks within one interrupt, and an unmask from within it. So a port that its process unmasks
//! after each wake-up is delivered as fast as the peer notifies, and costs this side up to a
//! processor.

use std::time::{Duration, Instant};

/// Decides how long a port stays masked after a wake-up that found nothing.
///
/// The first [`BURST`](Self::BURST) such wake-ups in quick succession cost no delay, and one more
/// per interval does not either; beyond that the port stays masked until the interval has passed.
/// Meanwhile the peer's events are one pending event, and nothing is lost.
///
/// The cost: after a peer has notified that often for nothing, its next useful notification is
/// served up to one interval late. A wake-up that found something is never delayed.
///
/// ```
/// use std::time::{Duration, Instant};
/// use xen_evtchn::EventPacer;
///
/// let mut pacer = EventPacer::new(Duration::from_millis(1));
/// let now = Instant::now();
/// for _ in 0..EventPacer::BURST {
///     pacer.handle_event(false, now); // after each look that found nothing
///     assert_eq!(pacer.poll_timeout(), None); // unmask at once
/// }
/// pacer.handle_event(false, now);
/// let at = pacer.poll_timeout().expect("the port stays masked until then");
/// assert_eq!(at, now + Duration::from_millis(1));
/// pacer.handle_timeout(at);
/// assert_eq!(pacer.poll_timeout(), None);
/// ```
#[derive(Clone, Debug)]
pub struct EventPacer {
    interval: Duration,
    /// When all of the burst is available again.
    whole_at: Option<Instant>,
    masked_until: Option<Instant>,
}

impl EventPacer {
    /// The number of wake-ups for nothing, in quick succession, that cost no delay.
    pub const BURST: u32 = 16;
    /// The longest interval. A longer one counts as this.
    pub const LONGEST: Duration = Duration::from_secs(1);

    /// Creates a pacer that lets one wake-up for nothing through per `interval`; zero switches it
    /// off.
    ///
    /// One millisecond bounds a storm at a thousand wake-ups a second, some two percent of a
    /// processor at 20 µs each.
    #[must_use]
    pub const fn new(interval: Duration) -> Self {
        let longest = Self::LONGEST;
        Self {
            interval: if interval.as_nanos() > longest.as_nanos() {
                longest
            } else {
                interval
            },
            whole_at: None,
            masked_until: None,
        }
    }

    /// Records that an event was taken and the state behind it was looked at. `found`: whether the
    /// look found anything.
    pub fn handle_event(&mut self, found: bool, now: Instant) {
        if found || self.interval.is_zero() {
            return;
        }
        let whole_at = self.whole_at.map_or(now, |at| at.max(now)) + self.interval;
        self.whole_at = Some(whole_at);
        self.masked_until = whole_at
            .checked_sub(self.interval * Self::BURST)
            .filter(|at| *at > now);
    }

    /// Returns when the port may be unmasked; `None` means immediately.
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.masked_until
    }

    /// Records that time has passed. Call it when [`poll_timeout`](Self::poll_timeout) is reached.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.masked_until.is_some_and(|at| at <= now) {
            self.masked_until = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// The number of wake-ups for nothing within a second, by a peer that always rings again at
    /// once.
    fn storm(pacer: &mut EventPacer, one_costs: Duration) -> u32 {
        let begin = Instant::now();
        let (mut now, mut count) = (begin, 0);
        while now < begin + Duration::from_secs(1) {
            count += 1;
            now += one_costs;
            pacer.handle_event(false, now);
            if let Some(at) = pacer.poll_timeout() {
                assert!(at > now);
                now = at;
                pacer.handle_timeout(now);
            }
            assert_eq!(pacer.poll_timeout(), None);
        }
        count
    }

    #[test]
    fn a_storm_is_bounded_by_the_interval() {
        let quick = Duration::from_micros(5);
        let count = storm(&mut EventPacer::new(MS), quick);
        assert!((990..=1020).contains(&count), "{count}");
        assert_eq!(storm(&mut EventPacer::new(Duration::ZERO), quick), 200_000);
        let most = 1 + EventPacer::BURST;
        assert!(storm(&mut EventPacer::new(Duration::MAX), quick) <= most);
    }

    #[test]
    fn an_event_that_found_something_is_never_delayed() {
        let mut pacer = EventPacer::new(MS);
        let now = Instant::now();
        for _ in 0..10_000 {
            pacer.handle_event(true, now);
            assert_eq!(pacer.poll_timeout(), None);
        }
    }

    #[test]
    fn what_was_found_between_does_not_buy_a_new_burst() {
        let mut pacer = EventPacer::new(MS);
        let now = Instant::now();
        for _ in 0..EventPacer::BURST {
            pacer.handle_event(false, now);
            pacer.handle_event(true, now);
        }
        assert_eq!(pacer.poll_timeout(), None);
        pacer.handle_event(false, now);
        assert_eq!(pacer.poll_timeout(), Some(now + MS));
    }

    #[test]
    fn a_peer_that_seldom_rings_for_nothing_is_never_delayed() {
        let mut pacer = EventPacer::new(MS);
        let mut now = Instant::now();
        for _ in 0..10_000 {
            now += MS;
            pacer.handle_event(false, now);
            assert_eq!(pacer.poll_timeout(), None);
        }
    }
}
