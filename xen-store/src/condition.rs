//! Waiting for a condition over many nodes.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Instant;

use crate::batch::Plan;
use crate::client::Store;
use crate::deadline::Deadline;
use crate::error::Result;
use crate::path::StorePath;
use crate::proto::Tx;
use crate::request::Request;
use crate::transport::lock;
use crate::watch_set::WatchSet;

/// The handle through which a condition reads: each path is watched before it is read. See
/// [`Store::wait_condition`].
#[derive(Debug)]
pub struct TrackedReads<'a> {
    store: &'a Store,
    /// `None` if the condition is looked at only once.
    set: Option<&'a WatchSet>,
    paths: Paths,
}

/// The paths that one look at a condition depends on.
#[derive(Debug, Default)]
pub(crate) struct Paths(Mutex<BTreeSet<String>>);

impl Paths {
    /// Returns whether this path or one above it is among them.
    pub(crate) fn cover(&self, path: StorePath<'_>) -> bool {
        let paths = lock(&self.0);
        std::iter::successors(Some(path), |path| path.parent())
            .any(|path| paths.contains(path.as_str()))
    }

    pub(crate) fn add(&self, path: StorePath<'_>) {
        lock(&self.0).insert(path.as_str().to_owned());
    }

    pub(crate) fn contain(&self, path: &str) -> bool {
        lock(&self.0).contains(path)
    }
}

impl Store {
    /// Waits until `check` returns a value, or returns `Ok(None)` once `deadline` has passed.
    /// `check` runs again whenever a node that it read last time, or one below it, may have
    /// changed.
    ///
    /// `check` reads any number of nodes and lists of children through the handle that it gets; it
    /// may read other ones each time. With [`TrackedReads::depend_on`] it adds anything else it
    /// depends on, such as `@releaseDomain`. A condition that depends on nothing is looked at once.
    /// The watches count towards the daemon's quota of this domain, one for each path that is not
    /// at or below another.
    ///
    /// The requests of `check` end with the deadline too. If that has passed at the call, `check`
    /// runs once, without watches, and the daemon has [`LOOK_ONCE`](crate::LOOK_ONCE) to answer.
    ///
    /// # Errors
    ///
    /// The error of `check`; those of [`Store::watch`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let server = xen_store_server::Server::start(xen_store_server::Config::new())?;
    /// # let store = server.connect(xen_sys::DomId::DOM0)?;
    /// # let writer = store.clone();
    /// # writer.write("/backend/1/state", "2")?;
    /// # std::thread::spawn(move || {
    /// #     writer.write("/backend/2/state", "4").unwrap();
    /// #     writer.write("/backend/1/state", "4").unwrap();
    /// # });
    /// use std::time::Duration;
    ///
    /// // All backends are connected, however many there are.
    /// let connected = store.wait_condition(Duration::from_secs(10), |reads| {
    ///     let backends = reads.directory("/backend")?;
    ///     for backend in &backends {
    ///         let state = reads.read_optional(&format!("/backend/{backend}/state"))?;
    ///         if state.as_deref() != Some(b"4") {
    ///             return Ok(None);
    ///         }
    ///     }
    ///     Ok((backends.len() == 2).then_some(backends))
    /// })?;
    /// assert!(connected.is_some());
    /// # Ok(()) }
    /// ```
    pub fn wait_condition<T>(
        &self,
        deadline: impl Into<Deadline>,
        mut check: impl FnMut(&TrackedReads<'_>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        self.within(deadline.into(), |store, wait| match wait {
            Some(deadline) => store.look_at_reads(deadline, check),
            None => check(&TrackedReads::new(store, None)),
        })
    }

    fn look_at_reads<T>(
        &self,
        deadline: Deadline,
        mut check: impl FnMut(&TrackedReads<'_>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let set = self.watch_set()?;
        loop {
            let reads = TrackedReads::new(self, Some(&set));
            let value = check(&reads)?;
            set.members.retain(&reads.paths);
            if value.is_some() || set.members.is_empty() {
                return Ok(value);
            }
            // `next` returns an event that has arrived even if the deadline has passed.
            let is_over = |end: Instant| end <= Instant::now();
            if !set.wait_for_change(deadline)? || deadline.instant().is_some_and(is_over) {
                return Ok(None);
            }
        }
    }
}

impl<'a> TrackedReads<'a> {
    fn new(store: &'a Store, set: Option<&'a WatchSet>) -> Self {
        Self {
            store,
            set,
            paths: Paths::default(),
        }
    }

    /// Adds a dependency: the condition runs again also when something at or below `path` changes.
    /// `path` need not be a node: `@introduceDomain` or `@releaseDomain`.
    ///
    /// # Errors
    ///
    /// As [`Store::watch`].
    pub fn depend_on(&self, path: &str) -> Result<()> {
        let path = StorePath::new(path)?;
        if let Some(set) = self.set.filter(|_| !self.paths.cover(path)) {
            set.add(path.as_str())?;
            self.paths.add(path);
        }
        Ok(())
    }

    pub(crate) fn operate<R: Request>(&self, request: R) -> Result<R::Reply> {
        if let Some(path) = request.encode()?.path_field() {
            self.depend_on(path)?;
        }
        self.store.run(Tx::NONE, &request)
    }

    pub(crate) fn carry<P: Plan>(&self, mut plan: P) -> P::Output {
        for path in plan.paths() {
            if let Err(error) = self.depend_on(&path) {
                plan.refuse(&error);
                break;
            }
        }
        self.store.carry_out(Tx::NONE, plan)
    }
}
