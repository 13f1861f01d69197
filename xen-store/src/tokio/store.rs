//! The operations, watches and transactions, as futures.

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use ::tokio::io::unix::AsyncFd;
use ::tokio::runtime::Handle;
use futures_core::Stream;

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::condition::TrackedReads;
use super::{Driver, Inner, Registered, Store, Wait};
use crate::batch::{Batch, Plan, Requested};
use crate::client::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::error::{Error, Invalid, Result};
use crate::events::WatchEvent;
use crate::mux::{Mux, Place};
use crate::operations::{change_operations, domain_operations, read_operations};
use crate::path::StorePath;
use crate::perms::Permissions;
use crate::proto::{Connection, Ready, Tx, WatchId};
use crate::reconnect::Reconnect;
use crate::request::{
    Control, Directory, EndTransaction, Exists, GetDomainPath, GetFeatures, GetPermissions,
    GetQuota, GetQuotaNames, Introduce, IsIntroduced, Mkdir, Optional, OwnDomain, Read, ReadStr,
    Release, Request, ResetWatches, Resume, Rm, SetFeatures, SetPermissions, SetQuota, SetTarget,
    SetWatch, StartTransaction, Unwatch, Write, takes_depth,
};
use crate::snapshot::{Snapshot, Tree};
use crate::transport::{self, Transport};
use crate::txn;
use xen_sys::{DomId, Port};

impl Store {
    /// As [`Store::connect`](crate::Store::connect). While the daemon's backlog is full it tries
    /// again, after pauses of 1 ms to 50 ms, and blocks no thread. No runtime timer is needed.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`]; [`Error::Os`] outside a tokio runtime with I/O enabled.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::new(patiently(|| Transport::try_connect(path)).await?)
    }

    /// As [`Store::open`](crate::Store::open), waiting as [`Store::connect`] does.
    ///
    /// # Errors
    ///
    /// As [`Store::connect`].
    pub async fn open(xen: &xen_sys::Xen) -> Result<Self> {
        Self::new(patiently(|| Transport::try_open(xen)).await?)
    }

    /// As [`Store::from_fd`](crate::Store::from_fd).
    ///
    /// # Errors
    ///
    /// As [`Store::connect`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        Self::new(Transport::from_fd(fd)?)
    }

    fn new(transport: Transport) -> Result<Self> {
        let quirks = transport.quirks();
        let runtime = Handle::try_current().map_err(|error| Error::Os {
            op: "register with tokio",
            source: io::Error::other(error).into(),
        })?;
        let inner = Arc::new(Inner {
            mux: Mux::new(Registered::new(transport)?, quirks),
        });
        Driver::spawn(&inner, &runtime);
        Ok(Self(inner))
    }

    /// As [`Store::connect_from_environment`](crate::Store::connect_from_environment), waiting as
    /// [`Store::connect`] does.
    ///
    /// # Errors
    ///
    /// As [`Store::connect`].
    pub async fn connect_from_environment() -> Result<Option<Self>> {
        match transport::path_from_environment() {
            Some(path) => Self::connect(path).await.map(Some),
            None => Ok(None),
        }
    }

    /// Makes the connection again when it is lost, to the same socket or device, according to
    /// `policy`. As [`Store::reconnecting`](crate::Store::reconnecting), but the connection's own
    /// task connects, and clones may exist already.
    ///
    /// # Errors
    ///
    /// [`Invalid::NoPlace`] for a store from a descriptor; the reason if
    /// the connection is finished.
    ///
    /// ```no_run
    /// use xen_store::tokio::Store;
    /// use xen_store::{Reconnect, Repeat};
    /// # async fn f(xen: &xen_sys::Xen) -> xen_store::Result<()> {
    /// let policy = Reconnect::new().repeat(Repeat::Reads);
    /// let store = Store::open(xen).await?.reconnecting(policy)?;
    /// let watch = store.watch("data/answer").await?;
    /// loop {
    ///     if watch.next().await?.reconnected {
    ///         store.write("data/offer", "1").await?;
    ///     }
    /// }
    /// # }
    /// ```
    pub fn reconnecting(self, policy: Reconnect) -> Result<Self> {
        if self.0.mux.stream().place.is_none() {
            return Err(Invalid::NoPlace.into());
        }
        self.0.mux.survive(policy)?;
        Ok(self)
    }

    /// Starts a transaction. Dropping it aborts it, without waiting.
    ///
    /// # Errors
    ///
    /// As [`Store::transaction`](crate::Store::transaction).
    pub async fn transaction(&self) -> Result<Transaction> {
        let start = StartTransaction {};
        let (answer, epoch) = self.0.call(Tx::NONE, start.encode()?, None).await;
        let id = start.decode(answer)?;
        Ok(Transaction(Arc::new(Open {
            store: self.clone(),
            tx: Tx { id, epoch },
            live: AtomicBool::new(true),
        })))
    }

    /// As [`Store::with_transaction`](crate::Store::with_transaction), with an async `body`, which
    /// gets a handle of each attempt's transaction. The commit ends the transaction even if handles
    /// are kept.
    ///
    /// If the future is dropped, the transaction is aborted, or its commit may or may not be
    /// carried out.
    ///
    /// # Errors
    ///
    /// Those of [`Store::with_transaction`](crate::Store::with_transaction).
    ///
    /// ```no_run
    /// # async fn f(store: &xen_store::tokio::Store) -> xen_store::Result<()> {
    /// let count = store.with_transaction(|t| async move {
    ///     let count = t.read_str("/tool/count").await?.parse().unwrap_or(0) + 1;
    ///     t.write("/tool/count", count.to_string()).await?;
    ///     Ok(count)
    /// }).await?;
    /// # Ok(()) }
    /// ```
    pub async fn with_transaction<T, F: Future<Output = Result<T>>>(
        &self,
        mut body: impl FnMut(Transaction) -> F,
    ) -> Result<T> {
        let mut attempt = 1;
        loop {
            let begun = Instant::now();
            let outcome = self.attempt(&mut body).await;
            if let Some(result) = txn::settle(attempt, outcome) {
                return result;
            }
            pause(txn::pause(attempt, begun.elapsed())).await?;
            attempt += 1;
        }
    }

    /// Runs `body` in one transaction; returns `None` after a conflict at its commit.
    async fn attempt<T, F: Future<Output = Result<T>>>(
        &self,
        body: &mut impl FnMut(Transaction) -> F,
    ) -> Result<Option<T>> {
        let transaction = self.transaction().await?;
        let value = body(transaction.clone()).await?;
        Ok(transaction.commit().await?.then_some(value))
    }

    /// Watches `path` and everything below it.
    ///
    /// # Errors
    ///
    /// As [`Store::watch`](crate::Store::watch).
    pub async fn watch(&self, path: &str) -> Result<Watch> {
        self.watch_with(path, None, None).await
    }

    /// As [`Store::watch`], only for changes at most `depth` levels below `path`.
    ///
    /// # Errors
    ///
    /// As [`Store::watch_depth`](crate::Store::watch_depth).
    pub async fn watch_depth(&self, path: &str, depth: u32) -> Result<Watch> {
        StorePath::new(path)?;
        self.check_depth().await?;
        self.watch_with(path, Some(depth), None).await
    }

    /// Fails unless the connection and the daemon support the depth of a watch.
    pub(super) async fn check_depth(&self) -> Result<()> {
        self.0.mux.passes_depth()?;
        takes_depth(self.features().await)
    }

    /// Sets a single watch, or one whose events are those of a set.
    pub(super) async fn watch_with(
        &self,
        path: &str,
        depth: Option<u32>,
        set: Option<WatchId>,
    ) -> Result<Watch> {
        let path = StorePath::new(path)?.as_str();
        let id = self.0.mux.enter()?.proto.add_watch_to(set, path);
        let mut watch = Watch {
            store: self.clone(),
            id,
            path: path.into(),
            set: false,
            ended: false,
            place: Place::new(Ready::Event(id)),
        };
        let token = Connection::token(id);
        let set = SetWatch {
            path,
            token: &token,
            depth,
        };
        self.0.call(Tx::NONE, set.encode()?, Some(id)).await.0?;
        watch.set = true;
        Ok(watch)
    }

    /// Waits until `check` returns a value, calling it again whenever something at or below `path`
    /// changed. As [`Store::wait_until`](crate::Store::wait_until), without a deadline: the caller
    /// sets one with `tokio::time::timeout`.
    ///
    /// # Errors
    ///
    /// The error of `check`; those of [`Store::watch`].
    pub async fn wait_until<T, F: Future<Output = Result<Option<T>>>>(
        &self,
        path: &str,
        mut check: impl FnMut(Self) -> F,
    ) -> Result<T> {
        let watch = self.watch(path).await?;
        loop {
            watch.next_change().await?;
            if let Some(value) = check(self.clone()).await? {
                return Ok(value);
            }
        }
    }

    /// Waits until `check` returns a value, calling it again whenever the node at `path` may have
    /// changed. As [`Store::wait_for`](crate::Store::wait_for), without a deadline: the caller sets
    /// one with `tokio::time::timeout`.
    ///
    /// `check` gets the node's value, or `None` while it does not exist.
    ///
    /// # Errors
    ///
    /// As [`Store::read`] apart from `ENOENT`, and those of [`Store::watch`].
    pub async fn wait_for<T>(
        &self,
        path: &str,
        mut check: impl FnMut(Option<&[u8]>) -> Option<T>,
    ) -> Result<T> {
        let watch = self.watch(path).await?;
        loop {
            watch.next_change().await?;
            if let Some(value) = check(self.read_optional(path).await?.as_deref()) {
                return Ok(value);
            }
        }
    }
}

/// A watch, for tokio. As [`Watch`](crate::Watch).
///
/// It is a [`Stream`] of events that ends after the first error, which is the end of the
/// connection.
#[derive(Debug)]
pub struct Watch {
    store: Store,
    id: WatchId,
    path: Box<str>,
    set: bool,
    /// The stream has ended.
    ended: bool,
    /// The place of the stream among those who wait.
    place: Place,
}

impl Watch {
    /// Returns the watched path, as given.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Waits for the next event. Cancelling loses no event.
    ///
    /// # Errors
    ///
    /// Why the connection is finished. Events that arrived before are returned first.
    pub async fn next(&self) -> Result<WatchEvent> {
        let inner = &*self.store.0;
        let mut wait = Wait {
            inner,
            place: Place::new(Ready::Event(self.id)),
            request: None,
        };
        let event = inner.wait(&mut wait.place, |state| state.proto.poll_event(self.id));
        event.await?
    }

    /// Returns the next event, without waiting. Reads the connection if none is in memory.
    ///
    /// # Errors
    ///
    /// As [`Watch::next`].
    pub fn try_next(&self) -> Result<Option<WatchEvent>> {
        let mux = &self.store.0.mux;
        let mut state = mux.enter()?;
        if !state.proto.has_event(self.id) {
            state = mux.turn(state);
        }
        state.proto.poll_event(self.id).transpose()
    }

    /// Waits for an event and takes the events behind it, which one look answers together. Takes
    /// only those in memory, because others may keep arriving.
    async fn next_change(&self) -> Result<()> {
        self.next().await?;
        let mut state = self.store.0.mux.enter()?;
        while let Some(event) = state.proto.poll_event(self.id) {
            event?;
        }
        Ok(())
    }
}

impl Stream for Watch {
    type Item = Result<WatchEvent>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let watch = self.get_mut();
        if watch.ended {
            return Poll::Ready(None);
        }
        let (id, inner) = (watch.id, &*watch.store.0);
        let event =
            ready!(inner.poll_wait(&mut watch.place, cx, |state| state.proto.poll_event(id)));
        let event = event.and_then(|event| event);
        watch.ended = event.is_err();
        Poll::Ready(Some(event))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let inner = &self.store.0;
        // In a child of the process that set it, the watch is the parent's.
        let Ok(mut state) = inner.mux.enter() else {
            return;
        };
        self.place.leave(&mut state);
        state.proto.remove_watch(self.id);
        drop(state);
        if self.set {
            let token = Connection::token(self.id);
            let unwatch = Unwatch {
                path: &self.path,
                token: &token,
            };
            inner.mux.send_detached(Tx::NONE, &unwatch);
        }
    }
}

/// A transaction, for tokio. As [`Transaction`](crate::Transaction).
///
/// Clones are handles of the same transaction. Dropping the last one aborts it.
#[derive(Clone, Debug)]
#[must_use = "dropping a transaction aborts it"]
pub struct Transaction(Arc<Open>);

/// A transaction that the daemon keeps.
#[derive(Debug)]
struct Open {
    store: Store,
    tx: Tx,
    /// Its end was not requested yet.
    live: AtomicBool,
}

impl Transaction {
    /// As [`Transaction::commit`](crate::Transaction::commit). If the future is dropped, the
    /// changes may or may not be carried out. The other handles are unusable afterwards: their
    /// requests fail with `ENOENT`.
    ///
    /// # Errors
    ///
    /// Those of [`Transaction::commit`](crate::Transaction::commit).
    #[must_use = "`false` means that nothing was carried out"]
    pub async fn commit(self) -> Result<bool> {
        self.end(true).await
    }

    /// As [`Transaction::abort`](crate::Transaction::abort). If the future is dropped, the
    /// transaction is aborted all the same.
    ///
    /// # Errors
    ///
    /// Those of [`Transaction::abort`](crate::Transaction::abort).
    pub async fn abort(self) -> Result<()> {
        self.end(false).await.map(drop)
    }

    async fn end(self, commit: bool) -> Result<bool> {
        self.0.live.store(false, Ordering::Relaxed);
        self.operate(EndTransaction { commit }).await
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if *self.live.get_mut() {
            let end = EndTransaction { commit: false };
            self.store.0.mux.send_detached(self.tx, &end);
        }
    }
}

/// Defines an async method for each operation, which `$by` carries out.
macro_rules! asynchronous {
    ($type:ty, $by:ident: $(
        $(#[$meta:meta])*
        fn $name:ident $([$($generics:tt)*])? ($($field:ident: $ty:ty),*) -> $output:ty
            = $value:expr;
    )*) => {
        impl $type {$(
            $(#[$meta])*
            pub async fn $name $(<$($generics)*>)? (&self, $($field: $ty),*) -> $output {
                self.$by($value).await
            }
        )*}
    };
}

read_operations!(asynchronous!(Store));
read_operations!(asynchronous!(Transaction));
read_operations!(asynchronous!(TrackedReads));
change_operations!(asynchronous!(Store));
change_operations!(asynchronous!(Transaction));
domain_operations!(asynchronous!(Store));

impl Store {
    async fn operate<R: Request>(&self, request: R) -> Result<R::Reply> {
        self.0.run(Tx::NONE, &request).await
    }

    async fn carry<P: Plan>(&self, plan: P) -> P::Output {
        self.0.carry_out(Tx::NONE, plan).await
    }
}

impl Transaction {
    async fn operate<R: Request>(&self, request: R) -> Result<R::Reply> {
        self.0.store.0.run(self.0.tx, &request).await
    }

    async fn carry<P: Plan>(&self, plan: P) -> P::Output {
        self.0.store.0.carry_out(self.0.tx, plan).await
    }
}

/// Tries again while the daemon's backlog is full.
async fn patiently(attempt: impl Fn() -> Result<Transport>) -> Result<Transport> {
    let mut pause = FIRST_PAUSE;
    loop {
        match attempt() {
            Err(Error::Connect { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                self::pause(pause).await?;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
            other => return other,
        }
    }
}

/// Sleeps without blocking a thread.
pub(super) async fn pause(time: Duration) -> Result<()> {
    sleep(time).await.map_err(|source| Error::Os {
        op: "pause between two attempts",
        source: source.into(),
    })
}

/// Sleeps on a timer of the system, because a runtime may have none.
async fn sleep(time: Duration) -> io::Result<()> {
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
    // A timer that is set to a zero duration never fires.
    let time = time.max(Duration::from_nanos(1));
    timer.set(Expiration::OneShot(time.into()), TimerSetTimeFlags::empty())?;
    // The deprecation is about types that do not own the descriptor they report; this one does.
    #[allow(deprecated)]
    let timer = AsyncFd::new(TimerSource(timer))?;
    timer.readable().await.map(drop)
}

/// A timer's descriptor, for tokio.
struct TimerSource(TimerFd);

impl AsRawFd for TimerSource {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
