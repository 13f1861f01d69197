//! Watches: notification of changes.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::client::{LOOK_ONCE, Store};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::events::WatchEvent;
use crate::mux::State;
use crate::path::StorePath;
use crate::proto::{Connection, Ready, Tx, WatchId};
use crate::ready_fd::ReadyFd;
use crate::request::{Request, SetWatch, Unwatch, takes_depth};

/// A watch on a path and everything below it.
///
/// The first event arrives immediately, for the watched path itself, whether it exists or not: so
/// *set the watch, then look* at every event, and nothing is missed. Events may arrive without a
/// change. They never hold up other requests and are never dropped; see [`WatchEvent::rescan`] for
/// what happens when many accumulate.
///
/// Dropping it withdraws the watch, without waiting.
#[doc(alias = "xs_unwatch")]
#[derive(Debug)]
pub struct Watch {
    store: Store,
    id: WatchId,
    path: Box<str>,
    ready_fd: OnceLock<Arc<ReadyFd>>,
}

impl Store {
    /// Watches `path` and everything below it: a node, a subtree, `@introduceDomain` or
    /// `@releaseDomain`. The node need not exist.
    ///
    /// # Errors
    ///
    /// [`Error::Daemon`](crate::Error::Daemon): `E2BIG` or `ENOSPC` for too many watches, `EACCES`
    /// without the right to a special path.
    #[doc(alias = "xs_watch")]
    pub fn watch(&self, path: &str) -> Result<Watch> {
        self.watch_with(path, None, None)
    }

    /// As [`Store::watch`], only for changes at most `depth` levels below `path`.
    ///
    /// Requests the daemon's features first, because an older one may ignore the depth.
    ///
    /// # Errors
    ///
    /// As [`Store::watch`]; [`Error::NotOffered`] from a daemon without the feature WATCHDEPTH (Xen
    /// 4.21 and later have it), and from the kernel's device, which does not pass the depth on.
    pub fn watch_depth(&self, path: &str, depth: u32) -> Result<Watch> {
        StorePath::new(path)?;
        self.check_depth()?;
        self.watch_with(path, Some(depth), None)
    }

    /// Fails unless the connection and the daemon support the depth of a watch.
    pub(crate) fn check_depth(&self) -> Result<()> {
        self.mux.passes_depth()?;
        takes_depth(self.features())
    }

    /// Sets a single watch, or one whose events are those of a set.
    pub(crate) fn watch_with(
        &self,
        path: &str,
        depth: Option<u32>,
        set: Option<WatchId>,
    ) -> Result<Watch> {
        let path = StorePath::new(path)?.as_str();
        let id = self.mux.enter()?.proto.add_watch_to(set, path);
        let token = Connection::token(id);
        let set = SetWatch {
            path,
            token: &token,
            depth,
        };
        match self.call(Tx::NONE, set.encode()?, Some(id)).0 {
            Ok(_) => Ok(Watch {
                store: self.clone(),
                id,
                path: path.into(),
                ready_fd: OnceLock::new(),
            }),
            Err(error) => {
                if let Ok(mut state) = self.mux.enter() {
                    state.proto.remove_watch(id);
                }
                Err(error)
            }
        }
    }

    /// Returns the descriptor of a watch or of a set.
    pub(crate) fn poll_fd_of<'a>(
        &self,
        id: WatchId,
        place: &'a OnceLock<Arc<ReadyFd>>,
    ) -> Result<BorrowedFd<'a>> {
        let mut state = self.mux.enter()?;
        if let Some(ready_fd) = place.get() {
            return Ok((**ready_fd).as_fd());
        }
        let fresh = Arc::new(ReadyFd::new(self.as_fd())?);
        let ready_fd = place.get_or_init(|| fresh);
        state.ready_fds.insert(id, Arc::clone(ready_fd));
        if state.proto.has_event(id) {
            ready_fd.raise();
        }
        Ok((**ready_fd).as_fd())
    }

    /// Waits until `check` returns a value, calling it again whenever something at or below `path`
    /// changed; returns `Ok(None)` once `deadline` has passed.
    ///
    /// `check` gets the store and may look at any number of nodes; those outside `path` do not
    /// cause another look. Requests it makes through that handle end with the deadline too. If the
    /// deadline has passed at the call, `check` is called once, without a watch, and the daemon has
    /// [`LOOK_ONCE`](crate::LOOK_ONCE) to answer it.
    ///
    /// # Errors
    ///
    /// The error of `check`; those of [`Store::watch`]. The end of the connection ends the wait.
    pub fn wait_until<T>(
        &self,
        path: &str,
        deadline: impl Into<Deadline>,
        mut check: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        self.within(deadline.into(), |store, wait| match wait {
            Some(deadline) => store.look_at_changes(path, deadline.instant(), check),
            None => check(store),
        })
    }

    /// Runs `wait` with a handle whose requests end at the deadline. If that has passed, `wait`
    /// gets no deadline and looks once.
    pub(crate) fn within<T>(
        &self,
        deadline: Deadline,
        wait: impl FnOnce(&Self, Option<Deadline>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let Some(end) = deadline.instant() else {
            return wait(self, Some(deadline));
        };
        let now = Instant::now();
        let (end, outcome) = if end <= now {
            let end = now + LOOK_ONCE;
            (end, wait(&self.until(end), None))
        } else {
            (end, wait(&self.until(end), Some(deadline)))
        };
        match outcome {
            Err(Error::TimedOut { .. }) if end <= Instant::now() => Ok(None),
            outcome => outcome,
        }
    }

    fn look_at_changes<T>(
        &self,
        path: &str,
        deadline: Option<Instant>,
        mut check: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let watch = self.watch(path)?;
        while watch.next(deadline)?.is_some() {
            // One look answers all events in memory. Others may keep arriving, so only those are
            // taken.
            watch.forget_events()?;
            if let Some(value) = check(self)? {
                return Ok(Some(value));
            }
            // `next` returns an event that has arrived even if the deadline has passed.
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                break;
            }
        }
        Ok(None)
    }

    /// Waits until `check` returns a value, calling it again whenever the node at `path` may have
    /// changed; returns `Ok(None)` once `deadline` has passed.
    ///
    /// `check` gets the node's value, or `None` while it does not exist.
    ///
    /// ```no_run
    /// # fn f(store: &xen_store::Store, deadline: std::time::Instant) -> xen_store::Result<()> {
    /// let state = store.wait_for("device/vif/0/state", Some(deadline), |value| {
    ///     value.filter(|value| *value == b"4").map(<[u8]>::to_vec)
    /// })?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Store::read`] apart from `ENOENT`, and those of [`Store::watch`].
    pub fn wait_for<T>(
        &self,
        path: &str,
        deadline: impl Into<Deadline>,
        mut check: impl FnMut(Option<&[u8]>) -> Option<T>,
    ) -> Result<Option<T>> {
        self.wait_until(path, deadline, |store| match store.read(path) {
            Ok(value) => Ok(check(Some(&value))),
            Err(error) if error.is_not_found() => Ok(check(None)),
            Err(error) => Err(error),
        })
    }
}

impl Watch {
    /// Returns the watched path, as given.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Waits for the next event; returns `Ok(None)` once `deadline` has passed, and never if it is
    /// `None`.
    ///
    /// With a deadline that has passed the connection is read once, without waiting.
    ///
    /// # Errors
    ///
    /// Why the connection is finished. Events that arrived before are returned first.
    #[doc(alias = "xs_read_watch")]
    pub fn next(&self, deadline: impl Into<Deadline>) -> Result<Option<WatchEvent>> {
        let key = Ready::Event(self.id);
        let until = self.store.until_by(deadline.into().instant());
        self.store
            .mux
            .wait(key, until, |state| self.take(state))?
            .transpose()
    }

    /// Returns the next event, without waiting. Reads the connection if none is in memory.
    ///
    /// # Errors
    ///
    /// As [`Watch::next`].
    #[doc(alias = "xs_check_watch")]
    pub fn try_next(&self) -> Result<Option<WatchEvent>> {
        let mut state = self.store.mux.enter()?;
        if !state.proto.has_event(self.id) {
            state = self.store.mux.look(state);
        }
        self.take(&mut state).transpose()
    }

    /// Takes the events that are in memory, without reading the connection.
    fn forget_events(&self) -> Result<()> {
        let mut state = self.store.mux.enter()?;
        while let Some(event) = self.take(&mut state) {
            event?;
        }
        Ok(())
    }

    /// Returns a descriptor to poll for input: readable whenever [`Watch::try_next`] may return an
    /// event, no matter which thread reads the connection.
    ///
    /// It is the same on every call and closed with the watch.
    ///
    /// # Errors
    ///
    /// [`Error::Os`](crate::Error::Os) if a system call for the descriptors fails.
    #[doc(alias = "xs_fileno")]
    pub fn poll_fd(&self) -> Result<BorrowedFd<'_>> {
        self.store.poll_fd_of(self.id, &self.ready_fd)
    }

    fn take(&self, state: &mut State) -> Option<Result<WatchEvent>> {
        let event = state.proto.poll_event(self.id);
        if !state.proto.has_event(self.id) {
            state
                .ready_fds
                .get(&self.id)
                .inspect(|ready_fd| ready_fd.lower());
        }
        event
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // In a child of the process that set it, the watch is the parent's.
        let Ok(mut state) = self.store.mux.enter() else {
            return;
        };
        state.proto.remove_watch(self.id);
        state.ready_fds.remove(&self.id);
        drop(state);
        let token = Connection::token(self.id);
        let unwatch = Unwatch {
            path: &self.path,
            token: &token,
        };
        self.store.mux.send_detached(Tx::NONE, &unwatch);
    }
}
