//! Event channels for tokio: feature `tokio`.
//!
//! [`EventChannels`] waits for any port of a set, [`AsyncPort`] for one. Both may be used on one
//! set at once, by any number of tasks. One of the futures that wait reads the descriptor and hands
//! each event to the port or set that it is for.
//!
//! # A future that is not polled
//!
//! A cancelled wait loses nothing: another one reads from then on. A wait that is kept but **not
//! polled** holds up every other wait on the set, as a future that holds a [`tokio::sync::Mutex`]
//! does. Examples are a wait that `select!` polls by reference while a branch's body waits for
//! another port, and a wait in a runtime that does not run. So await it, spawn it or drop it.
//!
//! Wake-ups come from the runtime in which the set was [created](EventChannels::new). Tasks of
//! other runtimes may wait too, while that one runs.
//!
//! ```
//! # async fn serve(
//! #     xen: &xen_sys::Xen, peer: xen_sys::DomId, store: &str,
//! # ) -> Result<(), xen_sys::Error> {
//! use xen_evtchn::tokio::EventChannels;
//!
//! let channels = EventChannels::new(xen_evtchn::EventChannels::open(xen)?)?;
//! let requests = channels.port(channels.get_ref().bind_unbound(peer)?)?;
//! let control = channels.port(channels.get_ref().bind_unbound(peer)?)?;
//! tokio::spawn(async move {
//!     while control.wait().await.is_ok() {
//!         control.unmask()?;
//!         // ... look at the control page ...
//!     }
//!     Ok::<(), xen_sys::Error>(())
//! });
//! loop {
//!     // With `tokio::select!` beside any other future, such as `xen_store::tokio::Watch::next`.
//!     requests.wait().await?;
//!     requests.unmask()?;
//!     // ... look at the ring of requests ...
//! }
//! # }
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use ::tokio::io::unix::AsyncFd;
use ::tokio::sync::{Mutex as AsyncMutex, watch};
use ::tokio::task::coop::consume_budget;
use xen_sys::{Error, Port, Result};

use crate::BoundPort;

/// Ports read by one system call.
const BATCH: usize = 64;

/// A [`crate::EventChannels`] in a tokio runtime.
///
/// Any number of tasks may wait; each event is delivered to one of them, or to the [`AsyncPort`] it
/// is for. Binding, notifying and unmasking never block and stay with the [set](Self::get_ref).
/// Cloning gives another handle to the same set.
#[derive(Clone, Debug)]
pub struct EventChannels(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ready: AsyncFd<OwnedFd>,
    channels: crate::EventChannels,
    /// Held by the one task that waits for the descriptor; the others wait for it, or for their
    /// events. So an event wakes the tasks that wait for it and at most one more.
    leader: AsyncMutex<()>,
    state: Mutex<State>,
    /// Changes with each port that is added to `State::others`.
    others: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of events so far of each port that is an [`AsyncPort`].
    ports: BTreeMap<Port, watch::Sender<u64>>,
    /// Pending ports without an [`AsyncPort`], each once: no more than there are ports.
    others: VecDeque<Port>,
}

impl EventChannels {
    /// Registers a set with the runtime of the calling task.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if there is no descriptor left.
    ///
    /// # Panics
    ///
    /// When called outside of a runtime whose I/O driver is enabled.
    pub fn new(channels: crate::EventChannels) -> Result<Self> {
        let fd = channels.as_fd().try_clone_to_owned().map_err(failed)?;
        // Deprecated in favour of an unsafe function, for types whose descriptor can change or
        // close behind their owner's back. An `OwnedFd`'s cannot.
        #[allow(deprecated)]
        let ready = AsyncFd::new(fd).map_err(failed)?;
        Ok(Self(Arc::new(Inner {
            ready,
            channels,
            leader: AsyncMutex::default(),
            state: Mutex::default(),
            others: watch::Sender::default(),
        })))
    }

    /// Takes a port of this set, to be awaited by itself. [`wait`](Self::wait) no longer returns
    /// its events.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a port of another set.
    pub fn port(&self, port: BoundPort) -> Result<AsyncPort> {
        if !port.channels().is_same(self.get_ref()) {
            return Err(Error::Invalid {
                op: "await a port",
                what: "a port of another set",
                value: port.port().as_u32().into(),
            });
        }
        let mut state = self.0.state();
        // It may have been pending already, as the end that binds is.
        let before = state.others.len();
        state.others.retain(|other| *other != port.port());
        let events = watch::Sender::new(u64::from(state.others.len() != before));
        state.ports.insert(port.port(), events.clone());
        drop(state);
        Ok(AsyncPort {
            inner: Arc::clone(&self.0),
            events,
            waited: AtomicU64::new(0),
            port,
        })
    }

    /// Waits for a pending port without an [`AsyncPort`] and returns it masked, as
    /// [`wait`](crate::EventChannels::wait) does. Cancelling loses no event.
    ///
    /// # Errors
    ///
    /// [`Error::EventOverflow`]; see [`reset`](Self::reset). [`Error::Os`] when the runtime is
    /// shutting down.
    pub async fn wait(&self) -> Result<Port> {
        self.0
            .until(&self.0.others, || self.0.state().others.pop_front())
            .await
    }

    /// Recovers from [`Error::EventOverflow`], as [`reset`](crate::EventChannels::reset) does, and
    /// counts an event for each [`AsyncPort`], so that its task unmasks it and looks. The caller
    /// must unmask the ports without an [`AsyncPort`].
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when the system call fails.
    pub fn reset(&self) -> Result<()> {
        self.0.channels.reset()?;
        for events in self.0.state().ports.values() {
            events.send_modify(|events| *events += 1);
        }
        Ok(())
    }

    /// Returns the set. No task here sees an event that is taken from it directly.
    #[must_use]
    pub fn get_ref(&self) -> &crate::EventChannels {
        &self.0.channels
    }
}

/// The descriptor of the set: readable when an event is pending. It must not be read from or
/// written to.
impl AsFd for EventChannels {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.channels.as_fd()
    }
}

impl AsRawFd for EventChannels {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `found` returns something. Each change of what it returns sends to `changes`.
    async fn until<S, T>(
        &self,
        changes: &watch::Sender<S>,
        mut found: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        consume_budget().await;
        let mut changes = changes.subscribe();
        loop {
            // Before the look, so that an event after it counts as a change.
            changes.borrow_and_update();
            if let Some(found) = found() {
                return Ok(found);
            }
            let leader = {
                let mut changed = pin!(changes.changed());
                let mut leader = pin!(self.leader.lock());
                poll_fn(|cx| match changed.as_mut().poll(cx) {
                    Poll::Ready(_) => Poll::Ready(None),
                    Poll::Pending => leader.as_mut().poll(cx).map(Some),
                })
                .await
            };
            let Some(_leader) = leader else { continue };
            loop {
                let more = self.take()?;
                if changes.has_changed().unwrap_or(true) {
                    break;
                }
                if more {
                    // Peers can keep ports pending that other tasks unmask meanwhile.
                    consume_budget().await;
                    continue;
                }
                let mut changed = pin!(changes.changed());
                let mut ready = pin!(self.ready.readable());
                let ready = poll_fn(|cx| match changed.as_mut().poll(cx) {
                    // A reset, or the port was pending before it was an `AsyncPort`.
                    Poll::Ready(_) => Poll::Ready(None),
                    Poll::Pending => ready.as_mut().poll(cx).map(Some),
                })
                .await;
                let Some(ready) = ready else { break };
                // Before the next look, which takes the event that this announced.
                ready.map_err(failed)?.clear_ready();
            }
        }
    }

    /// Takes pending ports and hands them out; returns whether there may be more.
    ///
    /// There may be more until a read finds none: Linux wakes no waiter for an event that arrives
    /// while a read has not yet emptied its buffer, and the runtime waits for the wake-up alone.
    fn take(&self) -> Result<bool> {
        let mut ports = [Port::default(); BATCH];
        let count = self.channels.pending_batch(&mut ports)?;
        let mut state = self.state();
        for port in ports.into_iter().take(count) {
            if let Some(events) = state.ports.get(&port) {
                events.send_modify(|events| *events += 1);
            } else if !state.others.contains(&port) {
                state.others.push_back(port);
                self.others.send_replace(());
            }
        }
        Ok(count != 0)
    }
}

/// One port of a set, with its own events.
///
/// Closed on drop, as a [`BoundPort`].
#[derive(Debug)]
pub struct AsyncPort {
    inner: Arc<Inner>,
    events: watch::Sender<u64>,
    /// The number of events when [`wait`](Self::wait) last returned.
    waited: AtomicU64,
    port: BoundPort,
}

impl AsyncPort {
    /// Waits for an event since this last returned; several events count as one. The port is masked
    /// then: [unmask](Self::unmask) it, and look at the shared state after that. Cancelling loses
    /// no event.
    ///
    /// For one task. If several wait for the same port, each uses [`wait_past`](Self::wait_past).
    ///
    /// # Errors
    ///
    /// [`Error::EventOverflow`]; see [`EventChannels::reset`]. [`Error::Os`] when the runtime is
    /// shutting down.
    pub async fn wait(&self) -> Result<()> {
        let seen = self.waited.load(Ordering::Relaxed);
        let now = self.wait_past(seen).await?;
        self.waited.fetch_max(now, Ordering::Relaxed);
        Ok(())
    }

    /// Returns the number of events so far that any task of the set has seen.
    #[must_use]
    pub fn events(&self) -> u64 {
        *self.events.borrow()
    }

    /// Waits until there were more events than `seen`, and returns how many. No event after a look
    /// at [`events`](Self::events) is missed, whichever task took it. Each of several tasks keeps
    /// its own number.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub async fn wait_past(&self, seen: u64) -> Result<u64> {
        let found = || Some(self.events()).filter(|events| *events > seen);
        self.inner.until(&self.events, found).await
    }

    /// Returns the port, to [notify](BoundPort::notify) its other end.
    #[must_use]
    pub fn get_ref(&self) -> &BoundPort {
        &self.port
    }

    /// Lets the port be delivered again: [`BoundPort::unmask`].
    ///
    /// # Errors
    ///
    /// Those of [`BoundPort::unmask`].
    pub fn unmask(&self) -> Result<()> {
        self.port.unmask()
    }

    /// Notifies the other end: [`BoundPort::notify`].
    ///
    /// # Errors
    ///
    /// Those of [`BoundPort::notify`].
    pub fn notify(&self) -> Result<()> {
        self.port.notify()
    }
}

impl Drop for AsyncPort {
    fn drop(&mut self) {
        // Before the port is closed: the next port may immediately get the same number.
        self.inner.state().ports.remove(&self.port.port());
    }
}

fn failed(error: io::Error) -> Error {
    Error::os("poll", error)
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use xen_sys::DomId;
    use xen_sys::sim::Simulation;

    use super::*;

    #[::tokio::test]
    async fn no_task_sleeps_before_a_read_found_no_event() {
        let host = Simulation::start().unwrap();
        let set = crate::EventChannels::open(&host.xen(DomId::DOM0).unwrap()).unwrap();
        let open = set.bind_unbound(DomId::DOM0).unwrap();
        // Binding makes that end pending.
        let bound = set.bind_interdomain(DomId::DOM0, open.port()).unwrap();
        let set = EventChannels::new(set).unwrap();
        assert!(
            set.0.take().unwrap(),
            "one more may have come during the read"
        );
        assert!(!set.0.take().unwrap());
        assert_eq!(set.wait().await.unwrap(), bound.port());
    }
}
