//! The client for tokio: the same shared connection behind an [`AsyncFd`].
//!
//! Each connection has one small task, on the runtime in which it was made. The task waits on the
//! transport, reads for all and wakes exactly those whose answers have arrived. So no task that
//! waits for an answer ever depends on another such task being polled. The connection's task ends
//! with the last handle; if its runtime ends first, so does the connection. It also makes a lost
//! connection again.
//!
//! Dropping a future cancels its request, and gives back what the daemon grants to it all the same.
//! The caller sets deadlines with `tokio::time::timeout`. Sending on the kernel's device may block
//! until the kernel has passed a watch on; sockets never block.

mod condition;
mod store;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use ::tokio::io::unix::AsyncFd;
use ::tokio::runtime::Handle;
use ::tokio::task::coop;
use nix::errno::Errno;

pub use condition::{TrackedReads, WatchSet};
pub use store::{Transaction, Watch};

use crate::batch::{Plan, Run};
use crate::directory::{Exchange, Step};
use crate::error::{Error, Invalid, Result};
use crate::mux::{Direction, Mux, Place, Reactor, State, Stream};
use crate::proto::{Answer, Failure, Quirks, Ready, RequestId, Tx, WatchId};
use crate::request::{Encoded, Request};
use crate::transport::{Origin, Transport, Written, lock};

/// A connection to the store daemon, for tokio. As [`Store`](crate::Store), with futures.
///
/// It belongs to the runtime in which it was made and may be used from any. A forked child must not
/// use it, as it must not use the runtime itself. Requests there fail with [`Error::Forked`], and a
/// drop does nothing: the descriptor stays open until the child ends or executes another program.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    mux: Mux<Registered>,
}

/// A transport that is registered with a runtime.
#[derive(Debug)]
struct Registered {
    /// Where it can be opened again, unless it was made from a descriptor.
    place: Option<Origin>,
    /// `None` while it is lost.
    current: Mutex<Option<Arc<AsyncFd<Transport>>>>,
    /// Made by [`Stream::connect_again`], for [`Stream::install`].
    next: Mutex<Option<Arc<AsyncFd<Transport>>>>,
}

impl Registered {
    /// # Errors
    ///
    /// [`Error::Os`] outside a runtime with I/O enabled.
    fn new(transport: Transport) -> Result<Self> {
        let place = transport.place().ok();
        Ok(Self {
            place,
            current: Mutex::new(Some(Arc::new(register(transport)?))),
            next: Mutex::new(None),
        })
    }

    fn current(&self) -> Option<Arc<AsyncFd<Transport>>> {
        lock(&self.current).clone()
    }
}

fn register(transport: Transport) -> Result<AsyncFd<Transport>> {
    // The deprecation is about types that do not own the descriptor they report. `Transport`
    // owns it until it is dropped, so the replacement's contract is met without its `unsafe`.
    #[allow(deprecated)]
    AsyncFd::new(transport).map_err(|source| Error::Os {
        op: "register with tokio",
        source: source.into(),
    })
}

impl Stream for Registered {
    fn read(&self, buf: &mut [u8]) -> std::result::Result<Option<usize>, Errno> {
        self.current().map_or(Ok(None), |fd| fd.get_ref().read(buf))
    }

    fn writer(&self) -> impl Fn(&[u8]) -> Written {
        let current = self.current();
        move |bytes| match &current {
            Some(fd) => fd.get_ref().write(bytes),
            None => Written::Gone,
        }
    }

    fn is_drained(&self, count: usize, size: usize) -> bool {
        self.current()
            .is_none_or(|fd| fd.get_ref().is_drained(count, size))
    }

    fn handle_loss(&self, _: Instant) {
        *lock(&self.current) = None;
    }

    fn connect_again(&self) -> Result<Quirks> {
        let transport = self.place.as_ref().ok_or(Invalid::NoPlace)?.connect()?;
        let quirks = transport.quirks();
        *lock(&self.next) = Some(Arc::new(register(transport)?));
        Ok(quirks)
    }

    fn install(&self) {
        *lock(&self.current) = lock(&self.next).take();
    }
}

impl Reactor for Registered {
    fn poll_io(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        io: &mut dyn FnMut() -> bool,
    ) -> Poll<io::Result<()>> {
        // Without a transport there is nothing to wait for: the caller looks at the loss again.
        let Some(fd) = self.current() else {
            return Poll::Ready(Ok(()));
        };
        let mut guard = ready!(match direction {
            Direction::Read => fd.poll_read_ready(cx),
            Direction::Write => fd.poll_write_ready(cx),
        })?;
        if io() {
            guard.clear_ready();
        }
        Poll::Ready(Ok(()))
    }
}

impl Inner {
    /// Serves the transport until the connection is lost or ends.
    fn poll_drive(&self, cx: &mut Context<'_>) -> Poll<()> {
        let driven = ready!(self.mux.poll_transport(cx));
        if let Err(error) = driven {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            self.mux.abandon(Failure::Os("wait for the store", errno));
        }
        Poll::Ready(())
    }

    async fn wait<T>(
        &self,
        place: &mut Place,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T> {
        poll_fn(|cx| self.poll_wait(place, cx, &mut ready)).await
    }

    fn poll_wait<T>(
        &self,
        place: &mut Place,
        cx: &mut Context<'_>,
        ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Poll<Result<T>> {
        // A task that always finds its answer there still lets the other tasks of its thread run.
        let budget = ready!(coop::poll_proceed(cx));
        let value = ready!(self.mux.poll_wait(place, cx, ready));
        budget.made_progress();
        Poll::Ready(value)
    }

    /// Carries out one operation, in a transaction or in none.
    async fn run<R: Request>(&self, tx: Tx, request: &R) -> Result<R::Reply> {
        let (mut exchange, mut message) = Exchange::begin(request.encode()?);
        loop {
            let (answer, epoch) = self.call(tx, message, None).await;
            match exchange.handle_answer(answer, epoch) {
                Step::Next(next) => message = next,
                Step::Done(answer) => return request.decode(answer),
            }
        }
    }

    /// Carries out many requests, in flight together.
    async fn carry_out<P: Plan>(&self, tx: Tx, plan: P) -> P::Output {
        let mut run = Run::new(&self.mux, tx, plan);
        while let Some((id, _)) = run.turn(None) {
            let mut wait = Wait {
                inner: self,
                place: Place::new(Ready::Reply(id)),
                request: None,
            };
            let answered = |state: &mut State| state.proto.is_answered(id).then_some(());
            if let Err(error) = self.wait(&mut wait.place, answered).await {
                run.stop(|_| error.clone());
            }
        }
        run.finish()
    }

    async fn call(&self, tx: Tx, message: Encoded, watch: Option<WatchId>) -> Answer {
        let id = match self.mux.submit(tx, message) {
            Ok(id) => id,
            Err(error) => return (Err(error), tx.epoch),
        };
        let mut wait = Wait {
            inner: self,
            place: Place::new(Ready::Reply(id)),
            request: Some((id, watch)),
        };
        let answer = self.wait(&mut wait.place, |state| state.proto.take_reply(id));
        match answer.await {
            Ok(answer) => {
                wait.request = None;
                answer
            }
            Err(error) => (Err(error), tx.epoch),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.mux.release();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if self.0.mux.is_inherited() {
            // The descriptor is never dropped here: tokio would take it out of the epoll set that
            // the parent's runtime waits on.
            std::mem::forget(Arc::clone(&self.0));
        }
    }
}

/// The task of a connection. It holds the connection only while it is polled, so that dropping the
/// last handle closes it immediately.
struct Driver(Weak<Inner>);

impl Driver {
    fn spawn(inner: &Arc<Inner>, runtime: &Handle) {
        let driver = Self(Arc::downgrade(inner));
        runtime.spawn(driver.run());
    }

    async fn run(self) {
        loop {
            poll_fn(|cx| match self.0.upgrade() {
                Some(inner) => inner.poll_drive(cx),
                None => Poll::Ready(()),
            })
            .await;
            let retry = self.0.upgrade().and_then(|i| i.mux.lock().retry_at());
            let Some(retry) = retry else {
                return;
            };
            let slept = self.sleep_until(retry).await;
            let Some(inner) = self.0.upgrade() else {
                return;
            };
            if let Err(error) = slept {
                let errno = error.errno().unwrap_or(libc::EIO);
                return inner.mux.abandon(Failure::Os(PAUSE, errno));
            }
            drop(inner.mux.reconnect(inner.mux.lock()));
        }
    }

    /// Sleeps until `time`, or until the last handle is dropped.
    async fn sleep_until(&self, time: Instant) -> Result<()> {
        let pause = store::pause(time.saturating_duration_since(Instant::now()));
        let mut pause = pin!(pause);
        poll_fn(|cx| match self.0.strong_count() {
            0 => Poll::Ready(Ok(())),
            _ => pause.as_mut().poll(cx),
        })
        .await
    }
}

/// Names the failure of a task that cannot wait before it connects again.
const PAUSE: &str = "pause before connecting to the store again";

impl Drop for Driver {
    fn drop(&mut self) {
        // After the end of the connection, or of the runtime.
        if let Some(inner) = self.0.upgrade() {
            let failure = Failure::Os("the runtime of the store connection", libc::ECANCELED);
            inner.mux.abandon(failure);
        }
    }
}

/// A wait that leaves no trace when it is dropped.
struct Wait<'a> {
    inner: &'a Inner,
    place: Place,
    /// The request to cancel unless its answer was taken.
    request: Option<(RequestId, Option<WatchId>)>,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if self.request.is_none() && !self.place.is_taken() {
            return;
        }
        let Ok(mut state) = self.inner.mux.enter() else {
            return;
        };
        self.place.leave(&mut state);
        if let Some((id, watch)) = self.request {
            state.proto.cancel(id, true, watch);
            drop(self.inner.mux.flush(state));
        }
    }
}
