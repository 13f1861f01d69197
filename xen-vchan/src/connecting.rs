//! A client that waits for its server without blocking the caller.
//!
//! The store announces the arrival of a server (it publishes itself). Nothing announces that a busy
//! server has become free. So one descriptor combines the store's watch and a timer.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use xen_store::{Store, Watch};
use xen_sys::Xen;

use crate::client::ClientBuilder;
use crate::doorbell::readable;
use crate::handshake::{self, DRAIN};
use crate::{Channel, Error, Result};

/// Interval at which a client checks whether a busy server has become free.
const RETRY: Duration = Duration::from_millis(250);

/// A client that is connecting, made by [`ClientBuilder::start`]. Dropping it gives up.
///
/// When the descriptor ([`AsFd`]) is readable, and once at the beginning, call
/// [`try_finish`](Self::try_finish). The descriptor also becomes readable when the builder's
/// deadline has passed.
#[derive(Debug)]
pub struct Connecting {
    builder: ClientBuilder,
    xen: Xen,
    store: Store,
    arrival: Watch,
    timer: TimerFd,
    both: Epoll,
}

impl Connecting {
    pub(crate) fn new(builder: ClientBuilder, xen: &Xen, store: &Store) -> Result<Self> {
        // The watch is set before the first look, so that no server is missed in between.
        let arrival = handshake::watch(store, builder.place())?;
        let timer = new_timer()?;
        let both = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let event = || EpollEvent::new(EpollFlags::EPOLLIN, 0);
        both.add(&timer, event()).map_err(failed)?;
        both.add(arrival.poll_fd()?, event()).map_err(failed)?;
        Ok(Self {
            builder,
            xen: xen.clone(),
            store: store.clone(),
            arrival,
            timer,
            both,
        })
    }

    /// Connects if there is a server that is free. Never waits for a server, but does wait for
    /// replies of the store.
    ///
    /// # Errors
    ///
    /// [`Error::WouldBlock`]: not yet; the descriptor becomes readable when it is time to try
    /// again. [`Error::TimedOut`]: the builder's deadline has passed. Otherwise as
    /// [`ClientBuilder::connect`], without [`Error::NoServer`] and [`Error::Unreachable`].
    pub fn try_finish(&mut self) -> Result<Channel> {
        // The look that follows sees what these events announce.
        let flooded = handshake::drain(&self.arrival)? == DRAIN;
        let again = match self.builder.attempt(&self.xen, &self.store) {
            // A server that died leaves its nodes; the next server will write them again.
            Err(Error::NoServer { .. }) => None,
            // Dead, or busy with another client; nothing announces when a client leaves.
            Err(error @ Error::Unreachable { .. }) => {
                tracing::debug!(%error, "waiting");
                Some(Instant::now() + RETRY)
            }
            other => return other,
        };
        let deadline = self.builder.until();
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Error::TimedOut);
        }
        // Remaining events do not make the descriptor readable *again*; the timer does.
        let again = if flooded { Some(Instant::now()) } else { again };
        let at = match (again, deadline) {
            (Some(again), Some(deadline)) => Some(again.min(deadline)),
            (again, deadline) => again.or(deadline),
        };
        set_timer(&self.timer, at)?;
        Err(Error::WouldBlock)
    }

    /// Sets another deadline, from the next try on.
    #[cfg(feature = "tokio")]
    pub(crate) const fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.builder.set_deadline(deadline);
    }

    /// Blocks until another attempt may succeed.
    pub(crate) fn sleep(&self) -> Result<()> {
        readable(self.as_fd(), None).map(drop)
    }
}

impl AsFd for Connecting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.both.0.as_fd()
    }
}

pub(crate) fn new_timer() -> Result<TimerFd> {
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(failed)
}

/// Sets when the timer becomes readable; `None` is never.
pub(crate) fn set_timer(timer: &TimerFd, at: Option<Instant>) -> Result<()> {
    let Some(at) = at else {
        return timer.unset().map_err(failed);
    };
    // A zero duration would disarm the timer.
    let left = at
        .saturating_duration_since(Instant::now())
        .max(Duration::from_nanos(1));
    let expiration = Expiration::OneShot(TimeSpec::from_duration(left));
    let flags = TimerSetTimeFlags::empty();
    timer.set(expiration, flags).map_err(failed)
}

fn failed(errno: Errno) -> Error {
    Error::Os(xen_sys::Error::os("epoll", errno.into()))
}
