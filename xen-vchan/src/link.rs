//! The event channel of one vchan: ringing the peer's bell, and sleeping until ours is rung.
//!
//! One port serves both directions. A wait therefore ends when *anything* happened, and the caller
//! looks at its ring again. Two threads (one reading, one writing) may wait at once: one of them
//! sleeps in the kernel, the other on a condition variable, and an event wakes both.
//!
//! The kernel masks the port when it hands out an event. It stays masked while there is work to do
//! and is unmasked only before the next sleep: an event that comes meanwhile stays pending in Xen
//! and is delivered then.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_evtchn::{BoundPort, EventChannels};

use crate::life::DomainLife;
use crate::{Error, Result};

#[derive(Debug)]
pub(crate) struct Link {
    port: BoundPort,
    events: EventChannels,
    /// The kernel handed out an event and the port was not unmasked since.
    masked: AtomicBool,
    /// Counts events; a waiter sleeps only while it stands where the waiter last saw it.
    seen: AtomicU64,
    waiters: Mutex<Waiters>,
    woken: Condvar,
    /// What the system refused after bytes had moved: a notify, or a wait. The call that met it said
    /// how many they were; the next one reports it.
    failed: Mutex<Option<Error>>,
    has_failed: AtomicBool,
    /// For an owner who wants to know of the end of the peer's domain.
    life: Option<DomainLife>,
}

/// Who waits.
#[derive(Debug, Default)]
struct Waiters {
    /// A thread sleeps in the kernel on behalf of all.
    led: bool,
    /// So many others sleep on the condition variable.
    followers: usize,
}

impl Link {
    pub(crate) const fn new(
        events: EventChannels,
        port: BoundPort,
        life: Option<DomainLife>,
    ) -> Self {
        Self {
            port,
            events,
            masked: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            waiters: Mutex::new(Waiters {
                led: false,
                followers: 0,
            }),
            woken: Condvar::new(),
            failed: Mutex::new(None),
            has_failed: AtomicBool::new(false),
            life,
        }
    }

    /// Rings the peer's bell. Never undoes or repeats what was published: an error is kept for
    /// [`check`](Self::check).
    pub(crate) fn notify(&self) {
        if let Err(error) = self.port.notify() {
            self.keep(error.into());
        }
    }

    /// Keeps an error of the system's for the next call; one that lasts by itself needs no keeping.
    #[cold]
    pub(crate) fn keep(&self, error: Error) {
        if matches!(error, Error::Os(_) | Error::Store(_)) {
            // The first is the cause.
            lock(&self.failed).get_or_insert(error);
            self.has_failed.store(true, Ordering::Release);
        }
    }

    /// Whether an error waits to be reported.
    #[inline]
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    /// Reports what failed earlier, once.
    #[inline]
    pub(crate) fn check(&self) -> Result<()> {
        if self.has_failed.load(Ordering::Relaxed) {
            self.report()
        } else {
            Ok(())
        }
    }

    #[cold]
    fn report(&self) -> Result<()> {
        self.has_failed.store(false, Ordering::Relaxed);
        match lock(&self.failed).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Takes the event that made the descriptor readable, if there is one. Does not block.
    pub(crate) fn acknowledge(&self) -> Result<()> {
        self.peer_domain_ended()?;
        // While the port is masked nothing can be waiting: the one system call is saved.
        if !self.masked.load(Ordering::Acquire) && self.events.pending()?.is_some() {
            self.happened();
        }
        Ok(())
    }

    /// Lets the next event through. Before every sleep, ours or the caller's.
    pub(crate) fn unmask(&self) -> Result<()> {
        if self.masked.swap(false, Ordering::AcqRel) {
            self.port.unmask()?;
        }
        Ok(())
    }

    /// Where the event counter stands. Take it before asking for a notification and looking again.
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Ordering::Acquire)
    }

    fn happened(&self) {
        self.masked.store(true, Ordering::Release);
        self.seen.fetch_add(1, Ordering::AcqRel);
    }

    /// Sleeps until an event comes after `seen` was taken: `true`; or until the deadline: `false`.
    pub(crate) fn wait(&self, seen: u64, deadline: Option<Instant>) -> Result<bool> {
        let mut waiters = lock(&self.waiters);
        loop {
            if self.seen() != seen {
                return Ok(true);
            }
            if !waiters.led {
                break;
            }
            let left = match deadline {
                None => None,
                Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                    None => return Ok(false),
                    left => left,
                },
            };
            waiters.followers += 1;
            waiters = match left {
                None => self
                    .woken
                    .wait(waiters)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    self.woken
                        .wait_timeout(waiters, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
            waiters.followers -= 1;
        }
        waiters.led = true;
        drop(waiters);
        let result = self.unmask().and_then(|()| self.wait_for_any(deadline));
        let mut waiters = lock(&self.waiters);
        waiters.led = false;
        // Also after a deadline or an error: another waiter must take the lead. Mostly there is none,
        // and to wake nobody is a system call too.
        if waiters.followers != 0 {
            self.woken.notify_all();
        }
        result
    }
}

impl Link {
    /// Sleeps for an event, or for the end of the peer's domain.
    fn wait_for_any(&self, deadline: Option<Instant>) -> Result<bool> {
        let Some(life) = &self.life else {
            let happened = self.events.wait(deadline)?.is_some();
            if happened {
                self.happened();
            }
            return Ok(happened);
        };
        loop {
            let ended = life.ended()?;
            if self.events.pending()?.is_some() {
                self.happened();
                return Ok(true);
            }
            if ended {
                // Not an event: the port is as it was. The waiters are to look all the same.
                self.seen.fetch_add(1, Ordering::AcqRel);
                return Ok(true);
            }
            if !readable(life.fd(), deadline)? {
                return Ok(false);
            }
        }
    }

    /// A client has come: its domain exists.
    pub(crate) fn peer_came(&self) {
        self.life.iter().for_each(DomainLife::peer_came);
    }

    /// Whether the peer's domain has come to its end, if that is watched.
    pub(crate) fn peer_domain_ended(&self) -> Result<bool> {
        self.life.as_ref().map_or(Ok(false), DomainLife::ended)
    }
}

/// Waits until a descriptor is readable; `false` if the deadline passes first. Signals do not end
/// the wait.
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
            Ok(0) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                return Ok(false);
            }
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(xen_sys::Error::os("poll", errno.into()).into()),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.life
            .as_ref()
            .map_or_else(|| self.events.as_fd(), DomainLife::fd)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain values are behind these locks: a panic cannot leave them half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
