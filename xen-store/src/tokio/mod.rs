//! The client for tokio: the same shared connection behind an [`AsyncFd`].
//!
//! Each connection has one small task, on the runtime that it was made in: it waits on the
//! transport, reads for all and wakes exactly those whose answers came. A task that waits for an
//! answer is therefore never in charge of another one's, however seldom it is polled. The task
//! ends with the last handle; if its runtime ends first, so does the connection.
//!
//! Dropping a future gives its request up, and gives back what the daemon grants to it all the
//! same. Deadlines are the caller's, by `tokio::time::timeout`. Sending on the kernel's device may
//! block for as long as the kernel takes to pass a watch on; sockets never block.

mod store;

use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use ::tokio::io::unix::AsyncFd;
use ::tokio::runtime::Handle;
use ::tokio::task::coop;
use nix::errno::Errno;

pub use store::{Transaction, Watch};

use crate::batch::{Plan, Run};
use crate::directory::{Exchange, Step};
use crate::error::Result;
use crate::mux::{Direction, Mux, Place, Reactor, State, Stream};
use crate::proto::{Failure, Ready, RequestId, WatchId};
use crate::request::{Encoded, Request};
use crate::transport::{Transport, Written};

/// A connection to the store daemon, for tokio. As [`Store`](crate::Store), with futures.
///
/// It belongs to the runtime that it was made in and may be used from any. A child that is forked
/// must not use it, as it must not use the runtime itself; requests there fail with
/// [`Error::Forked`](crate::Error::Forked), and a drop does nothing: the descriptor stays open
/// until the child ends or executes another program.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    mux: Mux<AsyncFd<Transport>>,
}

impl Stream for AsyncFd<Transport> {
    fn read(&self, buf: &mut [u8]) -> std::result::Result<Option<usize>, Errno> {
        self.get_ref().read(buf)
    }

    fn write(&self, bytes: &[u8]) -> Written {
        self.get_ref().write(bytes)
    }

    fn is_drained(&self, count: usize, size: usize) -> bool {
        self.get_ref().is_drained(count, size)
    }
}

impl Reactor for AsyncFd<Transport> {
    fn poll_io(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        io: &mut dyn FnMut() -> bool,
    ) -> Poll<io::Result<()>> {
        let mut guard = ready!(match direction {
            Direction::Read => self.poll_read_ready(cx),
            Direction::Write => self.poll_write_ready(cx),
        })?;
        if io() {
            guard.clear_ready();
        }
        Poll::Ready(Ok(()))
    }
}

impl Inner {
    /// Serves the transport until the connection ends.
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
        // A task that always finds its answer there still lets the others of its thread run.
        let budget = ready!(coop::poll_proceed(cx));
        let value = ready!(self.mux.poll_wait(place, cx, ready));
        budget.made_progress();
        Poll::Ready(value)
    }

    /// One operation, in transaction `tx_id` or in none (0).
    async fn run<R: Request>(&self, tx_id: u32, request: &R) -> Result<R::Reply> {
        let (mut exchange, mut message) = Exchange::begin(request.encode()?);
        loop {
            match exchange.handle_answer(self.call(tx_id, message, None).await) {
                Step::Next(next) => message = next,
                Step::Done(answer) => return request.decode(answer),
            }
        }
    }

    /// Many requests in flight together.
    async fn carry_out<P: Plan>(&self, tx_id: u32, plan: P) -> P::Output {
        let mut run = Run::new(&self.mux, tx_id, plan);
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

    async fn call(&self, tx_id: u32, message: Encoded, watch: Option<WatchId>) -> Result<Vec<u8>> {
        let id = self.mux.submit(tx_id, message)?;
        let mut wait = Wait {
            inner: self,
            place: Place::new(Ready::Reply(id)),
            request: Some((id, watch)),
        };
        let reply = self.wait(&mut wait.place, |state| state.proto.poll_reply(id));
        let reply = reply.await?;
        wait.request = None;
        reply
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

/// The task of a connection. It holds the connection only while it is polled, so that the last
/// handle closes it at once.
struct Driver(Weak<Inner>);

impl Driver {
    fn spawn(inner: &Arc<Inner>, runtime: &Handle) {
        let driver = Self(Arc::downgrade(inner));
        runtime.spawn(async move {
            poll_fn(|cx| match driver.0.upgrade() {
                Some(inner) => inner.poll_drive(cx),
                None => Poll::Ready(()),
            })
            .await;
        });
    }
}

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
    /// To be given up unless its answer was taken.
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
