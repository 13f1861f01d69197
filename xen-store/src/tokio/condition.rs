//! Watches of many paths, and waiting for a condition over many nodes.

use std::future::Future;
use std::sync::Arc;

use super::{Store, Wait, Watch};
use crate::batch::Plan;
use crate::condition::Paths;
use crate::error::Result;
use crate::events::WatchEvent;
use crate::mux::Place;
use crate::path::StorePath;
use crate::proto::{Ready, Tx, WatchId};
use crate::request::Request;
use crate::watch_set::Members;

/// Watches of many paths with one queue, for tokio. As [`WatchSet`](crate::WatchSet).
#[derive(Debug)]
pub struct WatchSet {
    store: Store,
    id: WatchId,
    members: Members<Watch>,
}

/// The handle through which a condition reads. As [`TrackedReads`](crate::TrackedReads).
///
/// Clones are handles of the same look at the condition.
#[derive(Clone, Debug)]
pub struct TrackedReads(Arc<Look>);

#[derive(Debug)]
struct Look {
    store: Store,
    set: Arc<WatchSet>,
    paths: Paths,
}

impl Store {
    /// As [`Store::watch_set`](crate::Store::watch_set).
    ///
    /// # Errors
    ///
    /// Those of [`Store::watch_set`](crate::Store::watch_set).
    pub fn watch_set(&self) -> Result<WatchSet> {
        let id = self.0.mux.enter()?.proto.add_set();
        Ok(WatchSet {
            store: self.clone(),
            id,
            members: Members::default(),
        })
    }

    /// Waits until `check` returns a value, running it again whenever a node that it read last
    /// time, or one below it, may have changed. As
    /// [`Store::wait_condition`](crate::Store::wait_condition), without a deadline: the caller sets
    /// one with `tokio::time::timeout`. Returns `None` if `check` depends on nothing.
    ///
    /// # Errors
    ///
    /// Those of [`Store::wait_condition`](crate::Store::wait_condition).
    ///
    /// ```no_run
    /// # async fn f(store: &xen_store::tokio::Store) -> xen_store::Result<()> {
    /// let both = store.wait_condition(|reads| async move {
    ///     let states = reads.read_many(&["device/vif/0/state", "device/vbd/0/state"]).await;
    ///     let connected = |state: xen_store::Result<Vec<u8>>| state.is_ok_and(|s| s == b"4");
    ///     Ok(states.into_iter().all(connected).then_some(()))
    /// }).await?;
    /// # Ok(()) }
    /// ```
    pub async fn wait_condition<T, F: Future<Output = Result<Option<T>>>>(
        &self,
        mut check: impl FnMut(TrackedReads) -> F,
    ) -> Result<Option<T>> {
        let set = Arc::new(self.watch_set()?);
        loop {
            let look = Arc::new(Look {
                store: self.clone(),
                set: Arc::clone(&set),
                paths: Paths::default(),
            });
            let value = check(TrackedReads(Arc::clone(&look))).await?;
            set.members.retain(&look.paths);
            if value.is_some() || set.members.is_empty() {
                return Ok(value);
            }
            set.wait_for_change().await?;
        }
    }
}

impl WatchSet {
    /// As [`WatchSet::add`](crate::WatchSet::add). Dropping the future adds nothing.
    ///
    /// # Errors
    ///
    /// Those of [`WatchSet::add`](crate::WatchSet::add).
    pub async fn add(&self, path: &str) -> Result<()> {
        self.add_with(path, None).await
    }

    /// As [`WatchSet::add_depth`](crate::WatchSet::add_depth). Dropping the future adds nothing.
    ///
    /// # Errors
    ///
    /// Those of [`WatchSet::add_depth`](crate::WatchSet::add_depth).
    pub async fn add_depth(&self, path: &str, depth: u32) -> Result<()> {
        StorePath::new(path)?;
        self.store.check_depth().await?;
        self.add_with(path, Some(depth)).await
    }

    async fn add_with(&self, path: &str, depth: Option<u32>) -> Result<()> {
        let path = StorePath::new(path)?.as_str();
        if !self.members.contain(path) {
            let watch = self.store.watch_with(path, depth, Some(self.id)).await?;
            self.members.insert(path, watch);
        }
        Ok(())
    }

    /// As [`WatchSet::remove`](crate::WatchSet::remove).
    pub fn remove(&self, path: &str) -> bool {
        self.members.remove(path)
    }

    /// Returns the watched paths, in the order of their bytes.
    #[must_use]
    pub fn paths(&self) -> Vec<String> {
        self.members.paths()
    }

    /// Waits for the next event of any watch. Returns the watched path with it. Cancelling loses no
    /// event.
    ///
    /// # Errors
    ///
    /// As [`Watch::next`].
    pub async fn next(&self) -> Result<(Arc<str>, WatchEvent)> {
        let inner = &*self.store.0;
        let mut wait = Wait {
            inner,
            place: Place::new(Ready::Event(self.id)),
            request: None,
        };
        let event = inner.wait(&mut wait.place, |state| state.proto.poll_set_event(self.id));
        let (watched, event) = event.await?;
        Ok((watched, event?))
    }

    /// Returns the next event, without waiting. Reads the connection if none is in memory.
    ///
    /// # Errors
    ///
    /// As [`Watch::next`].
    pub fn try_next(&self) -> Result<Option<(Arc<str>, WatchEvent)>> {
        let mux = &self.store.0.mux;
        let mut state = mux.enter()?;
        if !state.proto.has_event(self.id) {
            state = mux.turn(state);
        }
        let event = state.proto.poll_set_event(self.id);
        event
            .map(|(watched, event)| Ok((watched, event?)))
            .transpose()
    }

    /// Waits for an event and takes those behind it that are in memory.
    async fn wait_for_change(&self) -> Result<()> {
        self.next().await?;
        let mut state = self.store.0.mux.enter()?;
        while let Some((_, event)) = state.proto.poll_set_event(self.id) {
            event?;
        }
        Ok(())
    }
}

impl Drop for WatchSet {
    fn drop(&mut self) {
        // In a child of the process that made it, the set is the parent's.
        if let Ok(mut state) = self.store.0.mux.enter() {
            state.proto.remove_set(self.id);
        }
    }
}

impl TrackedReads {
    /// As [`TrackedReads::depend_on`](crate::TrackedReads::depend_on).
    ///
    /// # Errors
    ///
    /// Those of [`TrackedReads::depend_on`](crate::TrackedReads::depend_on).
    pub async fn depend_on(&self, path: &str) -> Result<()> {
        let path = StorePath::new(path)?;
        if !self.0.paths.cover(path) {
            self.0.set.add(path.as_str()).await?;
            self.0.paths.add(path);
        }
        Ok(())
    }

    pub(super) async fn operate<R: Request>(&self, request: R) -> Result<R::Reply> {
        if let Some(path) = request.encode()?.path_field() {
            self.depend_on(path).await?;
        }
        self.0.store.0.run(Tx::NONE, &request).await
    }

    pub(super) async fn carry<P: Plan>(&self, mut plan: P) -> P::Output {
        for path in plan.paths() {
            if let Err(error) = self.depend_on(&path).await {
                plan.refuse(&error);
                break;
            }
        }
        self.0.store.0.carry_out(Tx::NONE, plan).await
    }
}
