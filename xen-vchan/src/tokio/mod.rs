//! A channel for tokio: feature `tokio`.
//!
//! ```no_run
//! # async fn run(channel: xen_vchan::Channel) -> std::io::Result<()> {
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! let mut channel = xen_vchan::tokio::Channel::new(channel)?;
//! channel.write_all(b"question").await?;
//! let mut answer = [0; 6];
//! channel.read_exact(&mut answer).await?;
//! # Ok(()) }
//! ```

mod listener;
mod reconnecting;
mod timer;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use ::tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use ::tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use ::tokio::task::coop;

use self::listener::failed;
pub use self::listener::{Listener, connect};
pub use self::reconnecting::Reconnecting;
use self::timer::Timer;
use crate::delivery::{Interest, Readiness, Tasks, poll_task};
use crate::{Error, PeerState, Result};

/// A [`crate::Channel`] in a tokio runtime.
///
/// `tokio::io::split` makes halves of it that two tasks can use, on any workers. Cancelling a read
/// or a write loses nothing: bytes leave or enter the ring in the same step in which the call
/// finishes. A read may spin for up to 2 µs, unless [`set_spin`](crate::Channel::set_spin) of
/// [`get_mut`](Self::get_mut) is zero. Each read and write spends the task's cooperative budget, so
/// a peer that always has bytes does not starve the runtime's other tasks.
#[derive(Debug)]
pub struct Channel {
    // Remembers one waker, which is that of all `tasks`.
    ready: AsyncFd<OwnedFd>,
    tasks: Arc<Tasks>,
    channel: crate::Channel,
    /// Made when events are paced.
    timer: Option<Timer>,
}

impl Channel {
    /// Registers a channel with the runtime of the calling task.
    ///
    /// # Errors
    ///
    /// `EMFILE` or `ENFILE` if there is no descriptor left.
    ///
    /// # Panics
    ///
    /// When called outside of a runtime whose I/O driver is enabled.
    pub fn new(channel: crate::Channel) -> io::Result<Self> {
        // Deprecated in favour of an unsafe function, for types whose descriptor can change or
        // close behind their owner's back. An `OwnedFd`'s cannot.
        #[allow(deprecated)]
        let ready = AsyncFd::new(channel.as_fd().try_clone_to_owned()?)?;
        Ok(Self {
            ready,
            tasks: Arc::clone(channel.shared().doorbell.delivery.tasks()),
            channel,
            timer: None,
        })
    }

    /// Returns the channel, for queries of its state. An event that the caller takes there wakes
    /// the tasks that wait.
    #[must_use]
    pub const fn get_ref(&self) -> &crate::Channel {
        &self.channel
    }

    /// Returns the channel, for operations that only it has. Otherwise as
    /// [`get_ref`](Self::get_ref).
    pub const fn get_mut(&mut self) -> &mut crate::Channel {
        &mut self.channel
    }

    /// Takes the channel out of the runtime, for another runtime or none. Nothing is lost.
    #[must_use]
    pub fn into_inner(self) -> crate::Channel {
        self.channel
    }

    /// Waits until the peer is connected.
    ///
    /// # Errors
    ///
    /// As [`crate::Channel::wait_connected`].
    pub async fn connected(&mut self) -> Result<()> {
        std::future::poll_fn(|cx| self.poll_connected(cx)).await
    }

    fn poll_connected(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll(cx, Interest::Connected, |channel| match channel.peer()? {
            PeerState::Connected => Ok(()),
            PeerState::Gone => Err(Error::Closed),
            PeerState::Waiting => Err(Error::WouldBlock),
        })
    }

    /// Writes all of `bytes` in one step, waiting until there is room for them; after an error,
    /// none are written. See [`WriteHalf::send`](crate::WriteHalf::send).
    ///
    /// # Errors
    ///
    /// As [`WriteHalf::try_send`](crate::WriteHalf::try_send), without
    /// [`WouldBlock`](Error::WouldBlock).
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        std::future::poll_fn(|cx| {
            self.poll(cx, Interest::Write, |channel| {
                channel.halves().1.try_send(bytes)
            })
        })
        .await
    }

    /// Reads exactly `buf.len()` bytes, waiting until all of them are there; after an error, none
    /// are read. See [`ReadHalf::recv`](crate::ReadHalf::recv).
    ///
    /// # Errors
    ///
    /// As [`ReadHalf::try_recv`](crate::ReadHalf::try_recv), without
    /// [`WouldBlock`](Error::WouldBlock).
    pub async fn recv(&mut self, buf: &mut [u8]) -> Result<()> {
        std::future::poll_fn(|cx| {
            self.poll(cx, Interest::Read, |channel| {
                channel.halves().0.try_recv(buf)
            })
        })
        .await
    }

    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        interest: Interest,
        mut attempt: impl FnMut(&mut crate::Channel) -> Result<T>,
    ) -> Poll<Result<T>> {
        let turn = ready!(coop::poll_proceed(cx));
        loop {
            let polled = poll_task(
                &mut self.channel,
                (&self.tasks, interest),
                &self.ready,
                cx,
                |channel| match attempt(channel) {
                    Err(Error::WouldBlock) => None,
                    other => Some(other),
                },
                |channel| channel.acknowledge_events(),
            );
            if let Poll::Ready(done) = polled {
                turn.made_progress();
                return Poll::Ready(done?);
            }
            let Some(at) = self.channel.poll_timeout() else {
                return Poll::Pending;
            };
            ready!(self.poll_timer(at))?;
            self.channel.handle_timeout()?;
        }
    }

    /// Waits until the paced port may be unmasked; wakes every task then.
    #[cold]
    fn poll_timer(&mut self, at: Instant) -> Poll<Result<()>> {
        let timer = match &mut self.timer {
            Some(timer) => timer,
            none => none.insert(Timer::new()?),
        };
        timer.set(Some(at))?;
        let everybody = Waker::from(Arc::clone(&self.tasks));
        timer.poll(&mut Context::from_waker(&everybody))
    }
}

impl Readiness for AsyncFd<OwnedFd> {
    type Error = Error;
    type Ready<'a> = AsyncFdReadyGuard<'a, OwnedFd>;

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<Self::Ready<'_>>> {
        self.poll_read_ready(cx).map_err(failed)
    }

    fn forget(mut ready: Self::Ready<'_>) {
        ready.clear_ready();
    }
}

impl AsyncRead for Channel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let into = buf.initialize_unfilled();
        let result = self
            .get_mut()
            .poll(cx, Interest::Read, |channel| channel.try_read(into));
        match ready!(result) {
            Ok(len) => buf.advance(len),
            Err(Error::Closed) => {}
            Err(error) => return Poll::Ready(Err(error.into())),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Channel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = self
            .get_mut()
            .poll(cx, Interest::Write, |channel| channel.try_write(bytes));
        result.map_err(io::Error::from)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = self.get_mut().poll(cx, Interest::Write, |channel| {
            channel.halves().1.try_write_vectored(bufs)
        });
        result.map_err(io::Error::from)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(io::Write::flush(&mut self.get_mut().channel))
    }

    /// Ends this side of the channel in both directions: vchan has no half-close.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.get_mut().channel.shutdown();
        Poll::Ready(ended.map_err(io::Error::from))
    }
}
