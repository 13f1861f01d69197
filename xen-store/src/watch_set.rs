//! Watches of many paths with one queue.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, OnceLock};

use crate::client::Store;
use crate::condition::Paths;
use crate::deadline::Deadline;
use crate::error::Result;
use crate::events::WatchEvent;
use crate::mux::State;
use crate::path::StorePath;
use crate::proto::{Ready, WatchId};
use crate::ready_fd::ReadyFd;
use crate::transport::lock;
use crate::watch::Watch;

/// Watches of many paths, added and removed at any time, with one queue: see [`Store::watch_set`].
///
/// Dropping it withdraws all of them, without waiting.
#[derive(Debug)]
pub struct WatchSet {
    store: Store,
    id: WatchId,
    pub(crate) members: Members<Watch>,
    ready_fd: OnceLock<Arc<ReadyFd>>,
}

/// The watches of a set, by their paths.
#[derive(Debug)]
pub(crate) struct Members<W>(Mutex<BTreeMap<Box<str>, W>>);

impl<W> Default for Members<W> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<W> Members<W> {
    pub(crate) fn contain(&self, path: &str) -> bool {
        lock(&self.0).contains_key(path)
    }

    pub(crate) fn insert(&self, path: &str, watch: W) {
        // If two were set at the same time, one is withdrawn, without the lock.
        let other = lock(&self.0).insert(path.into(), watch);
        drop(other);
    }

    /// Withdraws the watch of `path`. Returns whether there was one.
    pub(crate) fn remove(&self, path: &str) -> bool {
        let watch = lock(&self.0).remove(path);
        watch.is_some()
    }

    /// Withdraws those watches whose paths are not among `paths`.
    pub(crate) fn retain(&self, paths: &Paths) {
        lock(&self.0).retain(|path, _| paths.contain(path));
    }

    /// Returns the watched paths, in the order of their bytes.
    pub(crate) fn paths(&self) -> Vec<String> {
        lock(&self.0).keys().map(|path| path.to_string()).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }
}

impl Store {
    /// Makes an empty set of watches. Their events are returned from one queue, in which the
    /// watches take turns.
    ///
    /// # Errors
    ///
    /// [`Error::Forked`](crate::Error::Forked).
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let server = xen_store_server::Server::start(xen_store_server::Config::new())?;
    /// # let store = server.connect(xen_sys::DomId::DOM0)?;
    /// let set = store.watch_set()?;
    /// set.add("/local/domain/5/device")?;
    /// set.add("@releaseDomain")?;
    /// for _ in 0..2 {
    ///     let (watched, event) = set.next(None)?.unwrap();
    ///     println!("{} changed, under {watched}", event.path);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn watch_set(&self) -> Result<WatchSet> {
        let id = self.mux.enter()?.proto.add_set();
        Ok(WatchSet {
            store: self.clone(),
            id,
            members: Members::default(),
            ready_fd: OnceLock::new(),
        })
    }
}

impl WatchSet {
    /// Watches `path` and everything below it, as [`Store::watch`]. Does nothing if the path is in
    /// the set already.
    ///
    /// # Errors
    ///
    /// As [`Store::watch`].
    pub fn add(&self, path: &str) -> Result<()> {
        self.add_with(path, None)
    }

    /// As [`WatchSet::add`], only for changes at most `depth` levels below `path`.
    ///
    /// # Errors
    ///
    /// As [`Store::watch_depth`].
    pub fn add_depth(&self, path: &str, depth: u32) -> Result<()> {
        StorePath::new(path)?;
        self.store.check_depth()?;
        self.add_with(path, Some(depth))
    }

    fn add_with(&self, path: &str, depth: Option<u32>) -> Result<()> {
        let path = StorePath::new(path)?.as_str();
        if !self.members.contain(path) {
            let watch = self.store.watch_with(path, depth, Some(self.id))?;
            self.members.insert(path, watch);
        }
        Ok(())
    }

    /// Withdraws the watch of `path`, without waiting. Returns whether it was in the set.
    pub fn remove(&self, path: &str) -> bool {
        self.members.remove(path)
    }

    /// Returns the watched paths, in the order of their bytes.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        self.members.paths()
    }

    /// Waits for the next event of any watch. Returns the watched path with it, or `Ok(None)` once
    /// `deadline` has passed, and never without a deadline.
    ///
    /// With a deadline that has passed the connection is read once, without waiting.
    ///
    /// # Errors
    ///
    /// As [`Watch::next`].
    pub fn next(&self, deadline: impl Into<Deadline>) -> Result<Option<(Arc<str>, WatchEvent)>> {
        let key = Ready::Event(self.id);
        let until = self.store.until_by(deadline.into().instant());
        let mux = &self.store.mux;
        mux.wait(key, until, |state| self.take(state))?.transpose()
    }

    /// Returns the next event, without waiting. Reads the connection if none is in memory.
    ///
    /// # Errors
    ///
    /// As [`Watch::next`].
    pub fn try_next(&self) -> Result<Option<(Arc<str>, WatchEvent)>> {
        let mut state = self.store.mux.enter()?;
        if !state.proto.has_event(self.id) {
            state = self.store.mux.look(state);
        }
        self.take(&mut state).transpose()
    }

    /// Waits for an event and takes those behind it that are in memory. Returns whether there was
    /// one.
    pub(crate) fn wait_for_change(&self, deadline: Deadline) -> Result<bool> {
        let is_changed = self.next(deadline)?.is_some();
        let mut state = self.store.mux.enter()?;
        while let Some(event) = self.take(&mut state) {
            event?;
        }
        Ok(is_changed)
    }

    /// Returns a descriptor to poll for input, as [`Watch::poll_fd`]: readable whenever
    /// [`WatchSet::try_next`] may return an event.
    ///
    /// # Errors
    ///
    /// As [`Watch::poll_fd`].
    pub fn poll_fd(&self) -> Result<BorrowedFd<'_>> {
        self.store.poll_fd_of(self.id, &self.ready_fd)
    }

    fn take(&self, state: &mut State) -> Option<Result<(Arc<str>, WatchEvent)>> {
        let event = state.proto.poll_set_event(self.id);
        if !state.proto.has_event(self.id) {
            let ready_fd = state.ready_fds.get(&self.id);
            ready_fd.inspect(|ready_fd| ready_fd.lower());
        }
        event.map(|(watched, event)| Ok((watched, event?)))
    }
}

impl Drop for WatchSet {
    fn drop(&mut self) {
        // In a child of the process that made it, the set is the parent's.
        if let Ok(mut state) = self.store.mux.enter() {
            state.proto.remove_set(self.id);
            state.ready_fds.remove(&self.id);
        }
    }
}
