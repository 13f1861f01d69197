//! The blocking client.

use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use xen_sys::{DomId, Port, Xen};

use crate::batch::{Batch, Plan, Requested, Run};
use crate::condition::TrackedReads;
use crate::deadline::Deadline;
use crate::directory::{Exchange, Step};
use crate::driver::Until;
use crate::error::{Error, Invalid, Result};
use crate::mux::{Mux, State};
use crate::operations::{change_operations, domain_operations, read_operations};
use crate::perms::Permissions;
use crate::proto::{Answer, Ready, Tx, WatchId};
use crate::reconnect::Reconnect;
use crate::request::{
    Control, Directory, Encoded, Exists, GetDomainPath, GetFeatures, GetPermissions, GetQuota,
    GetQuotaNames, Introduce, IsIntroduced, Mkdir, Optional, OwnDomain, Read, ReadStr, Release,
    Request, ResetWatches, Resume, Rm, SetFeatures, SetPermissions, SetQuota, SetTarget, Write,
};
use crate::snapshot::{Snapshot, Tree};
use crate::spin;
use crate::transport::{self, Polled, Transport};
use crate::txn::{MAX_PAUSE, Transaction};

/// A connection to the store daemon.
///
/// Cheap to clone; the clones share one connection. Any number of threads may use it at the same
/// time: each request has its own id, and no thread waits for another's reply. (The kernel's device
/// takes one request at a time, so there they take turns.) There is no background thread: one
/// waiting thread reads for all the others too, and another takes over when it returns.
///
/// Requests wait for their answer without limit, unless [`Store::with_timeout`] sets one.
///
/// The connection is closed, and the daemon drops the watches and transactions made through it,
/// when the last clone, [`Watch`](crate::Watch) and [`Transaction`](crate::Transaction) is dropped.
///
/// # In a poll loop
///
/// `as_fd()` is the connection itself, to be polled for input. With only one thread using the
/// store: call [`Watch::try_next`](crate::Watch::try_next) until it returns `None`, *then* poll; a
/// request made in between may have read events into memory, so look before each sleep. With
/// several threads poll [`Watch::poll_fd`](crate::Watch::poll_fd). Such a loop may share the
/// connection with threads that block in requests or [`Watch::next`](crate::Watch::next): answers
/// that it reads for them reach them.
///
/// # After `fork`
///
/// The descriptor is close-on-exec. In a child that continues without exec the connection is the
/// parent's: every call fails with [`Error::Forked`], and dropping a store, watch or transaction
/// there sends nothing. Open a new one. The check costs one `getpid` for each request.
///
/// # Deadlines
///
/// A deadline ends the call once it has passed, whatever the daemon or other threads do. Answers
/// that have arrived by then still count: a call whose deadline passed before it began reads the
/// connection once, without waiting.
///
/// | call | its deadline limits | when it has passed |
/// |---|---|---|
/// | a request, with [`Store::with_timeout`] | the wait for its answer | [`Error::TimedOut`] |
/// | [`Watch::next`](crate::Watch::next), [`WatchSet::next`](crate::WatchSet::next) | the wait for an event | `Ok(None)` |
/// | [`Store::wait_for`], [`Store::wait_until`], [`Store::wait_condition`] | the whole call, its requests included | `Ok(None)` |
/// | [`Store::connect_until`] | the wait for room in the daemon's backlog | [`Error::Connect`] |
///
/// The three waits for a condition cannot look without a request to the daemon. If their deadline
/// passed before the call began, they look once and give the daemon [`LOOK_ONCE`] to answer.
///
/// No deadline ends a write to the kernel's device: if the request sets or withdraws a watch, the
/// write sleeps in the kernel until the daemon has answered.
///
/// [`Store::cancellable`] makes a handle whose waits another thread can end.
#[derive(Clone, Debug)]
#[doc(alias = "xs_handle")]
#[doc(alias = "xs_close")]
#[doc(alias = "xs_daemon_close")]
pub struct Store {
    pub(crate) mux: Arc<Mux<Polled>>,
    timeout: Option<Duration>,
    /// The longest look for an answer before the wait for it sleeps.
    spin: Duration,
    /// Requests made through this handle wait no longer than this.
    deadline: Option<Instant>,
    /// Set when the waits of this handle must end.
    cancelled: Option<Arc<AtomicBool>>,
}

/// The first and the longest pause between two attempts to connect to a daemon whose backlog is
/// full.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(1);
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How long a look that must not wait lets the daemon take to answer.
pub const LOOK_ONCE: Duration = Duration::from_secs(1);

impl Store {
    /// Connects to the daemon of this host.
    ///
    /// Tries `/run/xenstored/socket`, `/var/run/xenstored/socket`, `/dev/xen/xenbus` and
    /// `/proc/xen/xenbus`, and takes the first that answers. The environment is not consulted:
    /// [`Store::connect_from_environment`] does that.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`] for the first of these that exists.
    #[doc(alias = "xs_open")]
    #[doc(alias = "xs_daemon_open")]
    #[doc(alias = "xs_daemon_open_readonly")]
    #[doc(alias = "xs_domain_open")]
    pub fn open(xen: &Xen) -> Result<Self> {
        Self::new(Transport::open(xen)?)
    }

    /// Connects to a daemon's socket, or opens the kernel's device if `path` names that. Blocks
    /// while the daemon's backlog is full.
    ///
    /// # Errors
    ///
    /// [`Error::Connect`], with `ENOTSOCK` if the file is neither; nothing is written to such a
    /// file.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(Transport::connect(path.as_ref())?)
    }

    /// As [`Store::connect`], but while the daemon's backlog is full it tries again until
    /// `deadline`, after pauses of 1 ms to 50 ms. It tries once if the deadline has passed.
    ///
    /// # Errors
    ///
    /// As [`Store::connect`], with `EAGAIN` if the backlog was still full at the deadline.
    pub fn connect_until(path: impl AsRef<Path>, deadline: impl Into<Deadline>) -> Result<Self> {
        let (path, deadline) = (path.as_ref(), deadline.into().instant());
        let mut pause = FIRST_PAUSE;
        loop {
            match Transport::try_connect(path) {
                Err(error) if error.errno() == Some(libc::EAGAIN) => {
                    let now = Instant::now();
                    let left = deadline.map_or(pause, |end| end.saturating_duration_since(now));
                    if left.is_zero() {
                        return Err(error);
                    }
                    std::thread::sleep(pause.min(left));
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
                connected => return Self::new(connected?),
            }
        }
    }

    /// Uses a connected stream socket or an open xenbus device as the connection.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if the descriptor is neither.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        Self::new(Transport::from_fd(fd)?)
    }

    fn new(transport: Transport) -> Result<Self> {
        let quirks = transport.quirks();
        Ok(Self {
            mux: Arc::new(Mux::new(Polled::new(transport)?, quirks)),
            timeout: None,
            spin: spin::LIMIT,
            deadline: None,
            cancelled: None,
        })
    }

    /// Connects to the daemon that the environment names: to the socket or device in
    /// `XENSTORED_PATH`, as libxenstore does. Returns `None` if the variable is not set.
    ///
    /// Needs no Xen. Must not be used by a program that runs with more rights than its caller.
    ///
    /// ```no_run
    /// # fn f() -> Result<(), Box<dyn std::error::Error>> {
    /// use xen_store::Store;
    ///
    /// let store = match Store::connect_from_environment()? {
    ///     Some(store) => store,
    ///     None => Store::open(&xen_sys::Xen::open()?)?,
    /// };
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Store::connect`].
    pub fn connect_from_environment() -> Result<Option<Self>> {
        let path = transport::path_from_environment();
        path.map(Self::connect).transpose()
    }

    /// Makes the connection again when it is lost, to the same socket or device, according to
    /// `policy`. Call this before the connection is shared.
    ///
    /// There is no background thread: a call that waits connects, and so does the next request or
    /// [`Watch::try_next`](crate::Watch::try_next). Requests made while the connection is lost wait
    /// for the next one, within their deadlines.
    ///
    /// * Watches are set again before anything else is sent. Each gets an event with
    ///   [`WatchEvent::reconnected`](crate::WatchEvent::reconnected): look again, and write again
    ///   what a restarted daemon has lost.
    /// * Requests that were pending at the loss end with [`Error::Lost`], which reports whether
    ///   they can have been carried out, or are sent again: see [`Repeat`](crate::Repeat).
    /// * A transaction ends: its requests fail with [`Error::Lost`], which names it.
    ///   [`Store::with_transaction`] begins again if nothing of it was carried out.
    /// * When the attempts are used up, everything ends with [`Error::Os`] (`op` is "connect to the
    ///   store again").
    ///
    /// `as_fd()` is then a descriptor that is readable when the connection is, or when it is time
    /// to connect.
    ///
    /// # Errors
    ///
    /// [`Invalid::Shared`](crate::Invalid::Shared) if there is a clone, watch or transaction;
    /// [`Invalid::NoPlace`](crate::Invalid::NoPlace) for a store from a descriptor; [`Error::Os`]
    /// if no descriptor is left; the reason if the connection is finished.
    ///
    /// ```no_run
    /// use xen_store::{Reconnect, Repeat, Store};
    /// # fn f(xen: &xen_sys::Xen) -> xen_store::Result<()> {
    /// let policy = Reconnect::new().repeat(Repeat::Reads);
    /// let store = Store::open(xen)?.reconnecting(policy)?;
    /// let watch = store.watch("data/answer")?;
    /// while let Some(event) = watch.next(None)? {
    ///     if event.reconnected {
    ///         store.write("data/offer", "1")?;
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub fn reconnecting(self, policy: Reconnect) -> Result<Self> {
        let Self {
            mux,
            timeout,
            spin,
            deadline,
            cancelled,
        } = self;
        let mux = Arc::try_unwrap(mux).map_err(|_| Invalid::Shared)?;
        let mux = mux.map_stream(Polled::renewable)?;
        mux.survive(policy)?;
        Ok(Self {
            mux: Arc::new(mux),
            timeout,
            spin,
            deadline,
            cancelled,
        })
    }

    /// Returns the same connection, with a limit on how long each request made through *this*
    /// handle (and its clones, watches and transactions) waits for its answer.
    ///
    /// A request that exceeds the limit fails with [`Error::TimedOut`] and the connection stays
    /// usable; the request may still take effect. `None` waits without limit.
    #[must_use]
    pub fn with_timeout(&self, timeout: Option<Duration>) -> Self {
        Self {
            timeout,
            ..self.clone()
        }
    }

    /// Returns the same connection, with a limit on how long each wait of *this* handle (and its
    /// clones, watches and transactions) looks for an answer or event before it sleeps.
    ///
    /// A sleep costs a wake-up, tens of microseconds. Where the daemon answers sooner, a sequence
    /// of requests takes half the time without sleeps. The default is 50 µs. A look that finds
    /// nothing, or during which another process had the processor, makes the next ones rare, down
    /// to one in 64 sleeps. A wait that sleeps stays asleep, and none looks while other threads
    /// wait for answers. Zero switches it off, and on the kernel's device it is off. More than a
    /// second counts as a second.
    #[must_use]
    pub fn with_spin(&self, limit: Duration) -> Self {
        Self {
            spin: limit.min(spin::GREATEST_LIMIT),
            ..self.clone()
        }
    }

    /// Returns the same connection; no request made through this handle waits beyond `deadline`.
    pub(crate) fn until(&self, deadline: Instant) -> Self {
        Self {
            deadline: Some(self.deadline.map_or(deadline, |own| own.min(deadline))),
            ..self.clone()
        }
    }

    /// Returns the same connection; `cancelled` ends the waits of this handle.
    pub(crate) fn with_cancel(&self, cancelled: Arc<AtomicBool>) -> Self {
        Self {
            cancelled: Some(cancelled),
            ..self.clone()
        }
    }

    /// Returns the causes that end a wait through this handle.
    pub(crate) fn until_by(&self, deadline: Option<Instant>) -> Until<'_> {
        Until {
            deadline,
            spin: self.spin,
            cancelled: self.cancelled.as_deref(),
        }
    }

    /// Sleeps for `time`, at most [`MAX_PAUSE`], but not beyond the deadline of this handle.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`].
    pub(crate) fn pause(&self, time: Duration) -> Result<()> {
        let now = Instant::now();
        let left = self
            .deadline
            .map_or(time, |end| end.saturating_duration_since(now));
        let time = time.min(left).min(MAX_PAUSE);
        if self.cancelled.is_none() {
            std::thread::sleep(time);
            return Ok(());
        }
        // `poll` counts milliseconds, so this is less exact. It ends with the connection too.
        let finished = |state: &mut State| state.proto.failure().map(drop);
        let until = Until {
            spin: Duration::ZERO,
            ..self.until_by(Some(now + time))
        };
        self.mux.wait(Ready::Ended, until, finished).map(drop)
    }

    /// Returns the deadline of a request made now.
    pub(crate) fn request_deadline(&self) -> Option<Instant> {
        let timeout = self
            .timeout
            .and_then(|timeout| Instant::now().checked_add(timeout));
        [timeout, self.deadline].into_iter().flatten().min()
    }

    /// Reads what has arrived and sends what is queued, without waiting.
    ///
    /// For poll loops that must fill the queues of all watches. The next request or event returns
    /// any error.
    pub fn process(&self) {
        // In a child of the process that made the connection there is nothing to read.
        if let Ok(state) = self.mux.enter() {
            drop(self.mux.look(state));
        }
    }

    /// Carries out one operation, in a transaction or in none.
    pub(crate) fn run<R: Request>(&self, tx: Tx, request: &R) -> Result<R::Reply> {
        let (mut exchange, mut message) = Exchange::begin(request.encode()?);
        loop {
            let (answer, epoch) = self.call(tx, message, None);
            match exchange.handle_answer(answer, epoch) {
                Step::Next(next) => message = next,
                Step::Done(answer) => return request.decode(answer),
            }
        }
    }

    /// Carries out many requests, in flight together.
    pub(crate) fn carry_out<P: Plan>(&self, tx: Tx, plan: P) -> P::Output {
        let mut run = Run::new(&self.mux, tx, plan);
        while let Some((id, until)) = run.turn(self.request_deadline()) {
            let answered = |state: &mut State| state.proto.is_answered(id).then_some(());
            let until = self.until_by(until);
            match self.mux.wait(Ready::Reply(id), until, answered) {
                // Answers that are always there already do not postpone the deadline.
                Ok(Some(())) if self.deadline.is_none_or(|end| Instant::now() < end) => {}
                Ok(_) => run.expire(),
                Err(error) => run.stop(|_| error.clone()),
            }
        }
        run.finish()
    }

    /// Sends one request and returns its answer; `watch` is the watch that a WATCH request sets.
    pub(crate) fn call(&self, tx: Tx, message: Encoded, watch: Option<WatchId>) -> Answer {
        let deadline = self.request_deadline();
        let op = message.kind();
        // One visit under the lock to submit, send and look.
        let submitted = self.mux.enter().and_then(|mut state| {
            let id = state.proto.submit_in(tx, message)?;
            Ok((state, id))
        });
        let (state, id) = match submitted {
            Ok(submitted) => submitted,
            Err(error) => return (Err(error), tx.epoch),
        };
        let until = self.until_by(deadline);
        let taken = |state: &mut State| state.proto.take_reply(id);
        let answer = self.mux.wait_in(state, Ready::Reply(id), until, taken);
        let error = match answer {
            Ok(Some(answer)) => return answer,
            Ok(None) => Error::TimedOut { op },
            Err(error) => error,
        };
        self.mux.cancel(id, watch);
        (Err(error), tx.epoch)
    }
}

/// Defines a blocking method for each operation, which `$by` carries out.
macro_rules! blocking {
    ($type:ty, $by:ident: $(
        $(#[$meta:meta])*
        fn $name:ident $([$($generics:tt)*])? ($($field:ident: $ty:ty),*) -> $output:ty
            = $value:expr;
    )*) => {
        impl $type {$(
            $(#[$meta])*
            pub fn $name $(<$($generics)*>)? (&self, $($field: $ty),*) -> $output {
                self.$by($value)
            }
        )*}
    };
}

read_operations!(blocking!(Store));
read_operations!(blocking!(Transaction));
read_operations!(blocking!(TrackedReads<'_>));
change_operations!(blocking!(Store));
change_operations!(blocking!(Transaction));
domain_operations!(blocking!(Store));

impl Store {
    fn operate<R: Request>(&self, request: R) -> Result<R::Reply> {
        self.run(Tx::NONE, &request)
    }

    fn carry<P: Plan>(&self, plan: P) -> P::Output {
        self.carry_out(Tx::NONE, plan)
    }
}

impl Transaction {
    fn operate<R: Request>(&self, request: R) -> Result<R::Reply> {
        self.store().run(self.tx(), &request)
    }

    fn carry<P: Plan>(&self, plan: P) -> P::Output {
        self.store().carry_out(self.tx(), plan)
    }
}

impl AsFd for Store {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mux.stream().as_fd()
    }
}

const _: fn() = || {
    fn assert<T: Send + Sync>() {}
    assert::<Store>();
    assert::<crate::Watch>();
    assert::<Transaction>();
    assert::<Error>();
};

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_limit_of_looks_belongs_to_the_handle() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let store = Store::from_fd(ours.into()).unwrap();
        let limit = |store: &Store| store.until_by(None).spin;
        let asleep = store.with_spin(Duration::ZERO);
        assert_eq!(limit(&asleep), Duration::ZERO);
        assert_eq!(limit(&asleep.with_timeout(None)), Duration::ZERO);
        let day = Duration::from_secs(24 * 60 * 60);
        assert_eq!(limit(&store.with_spin(day)), Duration::from_secs(1));
        assert_eq!(limit(&store), Duration::from_micros(50));
    }
}
