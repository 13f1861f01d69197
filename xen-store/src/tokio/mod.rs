//! The client for tokio: the same [`Connection`] behind an [`AsyncFd`].
//!
//! Like the blocking one it has no task of its own: whoever waits reads for all. Dropping a future
//! gives its request up, and gives back what the daemon grants to it all the same. Deadlines are
//! the caller's, by `tokio::time::timeout`. Sending on the kernel's device may block for as long as
//! the kernel takes to pass a watch on; sockets never block.

mod store;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use ::tokio::io::unix::AsyncFd;
use ::tokio::sync::Notify;

pub use store::{AsyncTransaction, AsyncWatch};

use crate::error::{Error, Result};
use crate::proto::{Connection, Failure, RequestId, WatchId};
use crate::transport::{Transport, Written};
use crate::wire::MsgType;

/// Bytes read in one go, and how often before other tasks get a turn.
const READ_SIZE: usize = 8192;
const READS_PER_TURN: usize = 16;

/// A connection to the store daemon, for tokio. As [`Store`](crate::Store), with futures.
#[derive(Clone, Debug)]
pub struct AsyncStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fd: AsyncFd<Transport>,
    proto: Mutex<Connection>,
    /// Something arrived: look whether it is yours.
    news: Notify,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.proto.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, failure: Failure) {
        self.lock().fail(failure);
        self.news.notify_waiters();
    }

    /// Sends what can be sent now; `false` if the socket is full.
    fn flush(&self) -> bool {
        let mut proto = self.lock();
        while let Some(mut message) = proto.take_outgoing() {
            match self.fd.get_ref().write(message.unsent()) {
                Written::Some(count) => {
                    if !message.advance(count) {
                        proto.put_back(message);
                    }
                }
                Written::NotNow => {
                    proto.put_back(message);
                    return false;
                }
                Written::Refused(errno) => {
                    proto.reject(&message, errno, &mut |_| self.news.notify_waiters());
                }
                // What the daemon said last is still to be read; the end shows there.
                Written::Gone => break,
                Written::Failed(op, errno) => {
                    drop(proto);
                    self.fail(Failure::Os(op, errno));
                    break;
                }
            }
        }
        true
    }

    /// Takes in what can be read now; `false` if that was all.
    fn read(&self) -> bool {
        let mut buf = [0; READ_SIZE];
        for _ in 0..READS_PER_TURN {
            // Two workers may read at the same time, so bytes are read under the lock that orders
            // them.
            let mut proto = self.lock();
            let failure = match self.fd.get_ref().read(&mut buf) {
                Ok(None) => return false,
                Ok(Some(0)) => Failure::Closed,
                Ok(Some(count)) => {
                    let mut any = false;
                    let received = proto.receive(&buf[..count], &mut |_| any = true);
                    if any {
                        self.news.notify_waiters();
                    }
                    match received {
                        Ok(()) => continue,
                        Err(failure) => failure,
                    }
                }
                Err(errno) => Failure::Os("read from the store", errno as i32),
            };
            drop(proto);
            self.fail(failure);
            return true;
        }
        true
    }

    async fn wait<T>(&self, mut ready: impl FnMut(&mut Connection) -> Option<T>) -> Result<T> {
        let os = |source| Error::Os {
            op: "wait for the store",
            source,
        };
        loop {
            let news = self.news.notified();
            let mut news = pin!(news);
            // From here on no news is missed.
            news.as_mut().enable();
            let flushed = self.flush();
            if let Some(value) = ready(&mut self.lock()) {
                return Ok(value);
            }
            let mut readable = pin!(self.fd.readable());
            let mut writable = pin!(self.fd.writable());
            let event = poll_fn(|cx| {
                if news.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                if let Poll::Ready(guard) = readable.as_mut().poll(cx) {
                    return Poll::Ready(Some((guard, true)));
                }
                if flushed {
                    return Poll::Pending;
                }
                writable.as_mut().poll(cx).map(|guard| Some((guard, false)))
            });
            if let Some((guard, to_read)) = event.await {
                let mut guard = guard.map_err(os)?;
                let more = if to_read { self.read() } else { self.flush() };
                if !more {
                    guard.clear_ready();
                }
            }
        }
    }

    async fn call(
        &self,
        kind: MsgType,
        tx: u32,
        parts: &[&[u8]],
        watch: Option<WatchId>,
    ) -> Result<Vec<u8>> {
        let id = self.lock().request(kind, tx, parts)?;
        let _given_up = GiveUp {
            inner: self,
            id,
            watch,
        };
        self.wait(|proto| proto.poll_reply(id)).await?
    }

    fn send_detached(&self, kind: MsgType, tx: u32, parts: &[&[u8]]) {
        // A finished connection has nothing to give back.
        if self.lock().send_detached(kind, tx, parts).is_ok() {
            self.flush();
        }
    }
}

/// Cancels a request unless its answer was taken.
struct GiveUp<'a> {
    inner: &'a Inner,
    id: RequestId,
    watch: Option<WatchId>,
}

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        self.inner.lock().cancel(self.id, true, self.watch);
    }
}
