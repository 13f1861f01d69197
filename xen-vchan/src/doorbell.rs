//! The event channel of one vchan: notifying the peer, and sleeping until the peer notifies us.
//!
//! One port serves both directions. A wait therefore ends when *anything* happened, and the caller
//! looks at its ring again. `delivery.rs` ensures that an event that one waiter took wakes every
//! waiter.
//!
//! The kernel masks the port when it delivers an event. The port stays masked while there is work
//! to do and is unmasked only before the next sleep. An event that arrives meanwhile stays pending
//! in Xen and is delivered after the unmask.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_evtchn::{BoundPort, EventChannels, EventPacer};
use xen_sys::Port;

use crate::delivery::Delivery;
use crate::domain_watch::{DomainWatch, Found};
use crate::{Error, Result};

#[derive(Debug)]
pub(crate) struct Doorbell {
    port: BoundPort,
    events: EventChannels,
    pub(crate) delivery: Delivery,
    reader: Kept,
    writer: Kept,
    pacing: Pacing,
    /// Present if the owner requires notice of the end of the peer's domain.
    domain_watch: Option<Arc<DomainWatch>>,
}

/// The half of a channel for which something is done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Half {
    Reader,
    Writer,
}

/// A system error, of a notify or a wait, that a half met after bytes had moved. The call that met
/// it returned the number of bytes; that half's next call returns the error.
#[derive(Debug)]
struct Kept {
    error: Mutex<Option<Error>>,
    any: AtomicBool,
}

impl Kept {
    const fn new() -> Self {
        Self {
            error: Mutex::new(None),
            any: AtomicBool::new(false),
        }
    }

    fn slot(&self) -> MutexGuard<'_, Option<Error>> {
        // A plain value: a panic cannot have left it half written.
        self.error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The peer's cursors and live byte.
pub(crate) type Standing = ((u32, u32), u8);

/// Delays events after which nothing had changed, if that is switched on.
#[derive(Debug)]
struct Pacing {
    on: AtomicBool,
    state: Mutex<Option<Paced>>,
}

#[derive(Debug)]
struct Paced {
    pacer: EventPacer,
    /// The number of the event judged last, and the state by which it was judged.
    judged: u64,
    standing: Option<Standing>,
}

impl Pacing {
    const fn new() -> Self {
        Self {
            on: AtomicBool::new(false),
            state: Mutex::new(None),
        }
    }

    fn state(&self) -> MutexGuard<'_, Option<Paced>> {
        // Plain values, as above.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, pacer: Option<EventPacer>) {
        let mut state = self.state();
        self.on.store(pacer.is_some(), Ordering::Release);
        *state = pacer.map(|pacer| Paced {
            pacer,
            judged: 0,
            standing: None,
        });
    }

    fn pacer(&self) -> Option<EventPacer> {
        self.state().as_ref().map(|paced| paced.pacer.clone())
    }

    /// Judges event number `event`, unless it was judged before; returns until when the port stays
    /// masked.
    fn judge(&self, event: u64, standing: impl FnOnce() -> Standing) -> Option<Instant> {
        if !self.on.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.state();
        let paced = state.as_mut()?;
        let now = Instant::now();
        if paced.judged != event {
            let standing = standing();
            let found = paced.standing != Some(standing);
            (paced.judged, paced.standing) = (event, Some(standing));
            paced.pacer.handle_event(found, now);
        }
        paced.pacer.handle_timeout(now);
        paced.pacer.poll_timeout()
    }

    fn until(&self) -> Option<Instant> {
        if !self.on.load(Ordering::Acquire) {
            return None;
        }
        self.state().as_ref()?.pacer.poll_timeout()
    }
}

impl Doorbell {
    pub(crate) fn new(
        events: EventChannels,
        port: BoundPort,
        delivery: Delivery,
        domain_watch: Option<DomainWatch>,
    ) -> Self {
        Self::with(events, port, delivery, domain_watch.map(Arc::new))
    }

    /// Makes the doorbell of another port of the same set, with the same descriptor, for the same
    /// waiters.
    pub(crate) fn succeeded_by(&self, port: BoundPort) -> Self {
        let delivery = Delivery::new(Arc::clone(self.delivery.tasks()));
        let next = Self::with(
            self.events.clone(),
            port,
            delivery,
            self.domain_watch.clone(),
        );
        next.pace(self.pacing.pacer());
        next
    }

    const fn with(
        events: EventChannels,
        port: BoundPort,
        delivery: Delivery,
        domain_watch: Option<Arc<DomainWatch>>,
    ) -> Self {
        Self {
            port,
            events,
            delivery,
            reader: Kept::new(),
            writer: Kept::new(),
            pacing: Pacing::new(),
            domain_watch,
        }
    }

    pub(crate) const fn events(&self) -> &EventChannels {
        &self.events
    }

    pub(crate) fn port(&self) -> Port {
        self.port.port()
    }

    /// Notifies the peer of the beginning or end of a session, which belongs to neither half.
    pub(crate) fn notify(&self) -> Result<()> {
        Ok(self.port.notify()?)
    }

    /// Notifies the peer of what `half` did. Never undoes or repeats what was published: an error
    /// is kept for that half's [`check`](Self::check).
    pub(crate) fn notify_for(&self, half: Half) {
        if let Err(error) = self.port.notify() {
            self.keep(half, error.into());
        }
    }

    #[inline]
    const fn kept(&self, half: Half) -> &Kept {
        match half {
            Half::Reader => &self.reader,
            Half::Writer => &self.writer,
        }
    }

    /// Keeps a system error for the half's next call. An error that persists is not kept: the next
    /// call meets it again.
    #[cold]
    pub(crate) fn keep(&self, half: Half, error: Error) {
        if matches!(error, Error::Os(_) | Error::Store(_)) {
            let kept = self.kept(half);
            // The first error is the cause.
            kept.slot().get_or_insert(error);
            kept.any.store(true, Ordering::Release);
        }
    }

    /// Returns whether an error waits to be returned by `half`.
    #[inline]
    pub(crate) fn has_failed(&self, half: Half) -> bool {
        self.kept(half).any.load(Ordering::Acquire)
    }

    /// Returns the kept error of `half`, once.
    #[inline]
    pub(crate) fn check(&self, half: Half) -> Result<()> {
        let kept = self.kept(half);
        if kept.any.load(Ordering::Relaxed) {
            Self::report(kept)
        } else {
            Ok(())
        }
    }

    #[cold]
    fn report(kept: &Kept) -> Result<()> {
        kept.any.store(false, Ordering::Relaxed);
        kept.slot().take().map_or(Ok(()), Err)
    }

    /// Takes the event that made the descriptor readable, if there is one. Does not block.
    pub(crate) fn acknowledge(&self) -> Result<()> {
        let event = match &self.domain_watch {
            Some(domain_watch) => {
                let found = domain_watch.look()?;
                self.note_domain(domain_watch, found)?;
                found.event()
            }
            None => true,
        };
        // While the port is masked nothing can be pending: this saves a system call.
        if event && !self.delivery.is_masked() && self.events.pending()?.is_some() {
            self.delivery.event_taken();
        }
        Ok(())
    }

    /// Unmasks the port. Called before every sleep, ours or the caller's. Returns until when the
    /// port stays masked, if it does because events are paced.
    ///
    /// `standing`: what the peer can change. An event after which it is unchanged was for nothing.
    pub(crate) fn unmask(&self, standing: impl FnOnce() -> Standing) -> Result<Option<Instant>> {
        if !self.delivery.is_masked() {
            return Ok(None);
        }
        if let Some(until) = self.pacing.judge(self.seen(), standing) {
            return Ok(Some(until));
        }
        if self.delivery.begin_unmask() {
            self.port.unmask()?;
        }
        Ok(None)
    }

    /// Limits how often the peer's events wake this side for nothing.
    pub(crate) fn pace(&self, pacer: Option<EventPacer>) {
        self.pacing.set(pacer);
    }

    /// Returns until when the port stays masked because events are paced.
    pub(crate) fn masked_until(&self) -> Option<Instant> {
        if self.delivery.is_masked() {
            self.pacing.until()
        } else {
            None
        }
    }

    /// As [`Delivery::seen`].
    pub(crate) fn seen(&self) -> u64 {
        self.delivery.seen()
    }

    /// Blocks until an event after `seen` was read, and returns `true`; or until the deadline, and
    /// returns `false`.
    pub(crate) fn wait(
        &self,
        seen: u64,
        deadline: Option<Instant>,
        standing: impl Fn() -> Standing,
    ) -> Result<bool> {
        self.delivery.wait(seen, deadline, || {
            while let Some(until) = self.unmask(&standing)? {
                let now = Instant::now();
                if deadline.is_some_and(|deadline| deadline <= now) {
                    return Ok(false);
                }
                let until = deadline.map_or(until, |deadline| deadline.min(until));
                std::thread::sleep(until.saturating_duration_since(now));
            }
            self.wait_for_any(deadline)
        })
    }

    /// Blocks until an event, or the end of the peer's domain.
    fn wait_for_any(&self, deadline: Option<Instant>) -> Result<bool> {
        let Some(domain_watch) = &self.domain_watch else {
            let happened = self.events.wait(deadline)?.is_some();
            if happened {
                self.delivery.event_taken();
            }
            return Ok(happened);
        };
        let mut late = false;
        loop {
            #[cfg(test)]
            crate::test_window::window();
            if domain_watch.has_ended() {
                return Ok(true);
            }
            let Some(found) = domain_watch.wait(deadline)? else {
                return Ok(false);
            };
            let ended = self.note_domain(domain_watch, found)?;
            if found.event() && self.events.pending()?.is_some() {
                self.delivery.event_taken();
                return Ok(true);
            }
            if ended {
                // Not an event: the state of the port is unchanged.
                return Ok(true);
            }
            // The descriptor also becomes readable at the end of any other domain.
            if late {
                return Ok(false);
            }
            late = has_passed(deadline);
        }
    }

    /// Records that a client has connected: its domain exists.
    pub(crate) fn peer_came(&self) {
        self.domain_watch
            .iter()
            .for_each(|domain_watch| domain_watch.peer_came());
    }

    /// Returns whether the end of the peer's domain was noticed.
    pub(crate) fn peer_domain_has_ended(&self) -> bool {
        let ended = |domain_watch: &Arc<DomainWatch>| domain_watch.has_ended();
        self.domain_watch.as_ref().is_some_and(ended)
    }

    /// Judges what was found; returns `true` if the peer's domain has ended.
    fn note_domain(&self, domain_watch: &DomainWatch, found: Found) -> Result<bool> {
        let known = domain_watch.has_ended();
        let ended = domain_watch.ended(found)?;
        if ended && !known {
            // The notification was taken here: the other waiters must look as well.
            self.delivery.changed();
        }
        Ok(ended)
    }
}

/// Returns whether a deadline has passed. Without a deadline the clock is not read.
pub(crate) fn has_passed(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

/// Waits until a descriptor is readable; returns `false` if the deadline passes first. Signals do
/// not end the wait.
pub(crate) fn readable(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<bool> {
    loop {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Rounded up, so that the deadline has passed when the time is over.
                let millis = left.as_micros().div_ceil(1000).min(i32::MAX as u128);
                PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            // A timeout longer than poll can express; or a signal, of which there may be many.
            Ok(0) | Err(Errno::EINTR) if has_passed(deadline) => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(xen_sys::Error::os("poll", errno.into()).into()),
        }
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.domain_watch
            .as_ref()
            .map_or_else(|| self.events.as_fd(), |domain_watch| domain_watch.fd())
    }
}
