//! A channel for tokio: feature `tokio`.
//!
//! ```no_run
//! # async fn run(channel: xen_vchan::Channel) -> std::io::Result<()> {
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! let mut channel = xen_vchan::tokio::AsyncChannel::new(channel)?;
//! channel.write_all(b"question").await?;
//! let mut answer = [0; 6];
//! channel.read_exact(&mut answer).await?;
//! # Ok(()) }
//! ```

mod arrive;
mod redial;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::tokio::io::unix::AsyncFd;
use ::tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub use self::arrive::{AsyncListener, connect};
pub use self::redial::AsyncRedial;
use crate::{Channel, Error, PeerState, Result};

/// A [`Channel`] in a tokio runtime.
///
/// `tokio::io::split` makes halves of it that two tasks can use. Cancelling a
/// read or a write loses nothing: bytes leave or enter the ring in the same step in which the call
/// is done.
#[derive(Debug)]
pub struct AsyncChannel {
    // One registration per direction, because each keeps one task to be woken; both are of the same
    // open file, so an event wakes both.
    readers: AsyncFd<OwnedFd>,
    writers: AsyncFd<OwnedFd>,
    channel: Channel,
}

impl AsyncChannel {
    /// Takes a channel into the runtime of the calling task.
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    ///
    /// # Panics
    ///
    /// Outside of a runtime whose I/O driver is enabled.
    pub fn new(channel: Channel) -> io::Result<Self> {
        // Deprecated in favour of an unsafe function, for types whose descriptor can change or
        // close behind their owner's back. An `OwnedFd`'s cannot.
        #[allow(deprecated)]
        let registered = || AsyncFd::new(channel.as_fd().try_clone_to_owned()?);
        Ok(Self {
            readers: registered()?,
            writers: registered()?,
            channel,
        })
    }

    /// The channel. What is done to it is seen by the waiting tasks at the next event only.
    pub const fn get_mut(&mut self) -> &mut Channel {
        &mut self.channel
    }

    /// Waits until the peer is connected.
    ///
    /// # Errors
    ///
    /// As [`Channel::wait_connected`].
    pub async fn connected(&mut self) -> Result<()> {
        std::future::poll_fn(|cx| self.poll_connected(cx)).await
    }

    fn poll_connected(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll(cx, Direction::Read, |channel| match channel.peer()? {
            PeerState::Connected => Ok(()),
            PeerState::Gone => Err(Error::Closed),
            PeerState::Waiting => Err(Error::WouldBlock),
        })
    }

    /// Writes all of `bytes` in one step, waiting until there is room for them; or nothing. See
    /// [`WriteHalf::send`](crate::WriteHalf::send).
    ///
    /// # Errors
    ///
    /// As [`WriteHalf::try_send`](crate::WriteHalf::try_send), without
    /// [`WouldBlock`](Error::WouldBlock).
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        std::future::poll_fn(|cx| {
            self.poll(cx, Direction::Write, |channel| {
                channel.halves().1.try_send(bytes)
            })
        })
        .await
    }

    /// Reads exactly `buf.len()` bytes, waiting until all of them are there; or none. See
    /// [`ReadHalf::recv`](crate::ReadHalf::recv).
    ///
    /// # Errors
    ///
    /// As [`ReadHalf::try_recv`](crate::ReadHalf::try_recv), without
    /// [`WouldBlock`](Error::WouldBlock).
    pub async fn recv(&mut self, buf: &mut [u8]) -> Result<()> {
        std::future::poll_fn(|cx| {
            self.poll(cx, Direction::Read, |channel| {
                channel.halves().0.try_recv(buf)
            })
        })
        .await
    }

    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        direction: Direction,
        mut attempt: impl FnMut(&mut Channel) -> Result<T>,
    ) -> Poll<Result<T>> {
        loop {
            match attempt(&mut self.channel) {
                Err(Error::WouldBlock) => {}
                other => return Poll::Ready(other),
            }
            let registered = match direction {
                Direction::Read => &self.readers,
                Direction::Write => &self.writers,
            };
            let failed = |error| Error::Os(xen_sys::Error::os("poll", error));
            let mut guard = ready!(registered.poll_read_ready(cx)).map_err(failed)?;
            // In this order: the port is masked from the first step until the next attempt unmasks
            // it, so no event can come in between and be cleared with the old one.
            self.channel.acknowledge_events()?;
            guard.clear_ready();
        }
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

impl AsyncRead for AsyncChannel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let into = buf.initialize_unfilled();
        let result = self
            .get_mut()
            .poll(cx, Direction::Read, |channel| channel.try_read(into));
        match ready!(result) {
            Ok(len) => buf.advance(len),
            Err(Error::Closed) => {}
            Err(error) => return Poll::Ready(Err(error.into())),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for AsyncChannel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = self
            .get_mut()
            .poll(cx, Direction::Write, |channel| channel.try_write(bytes));
        result.map_err(io::Error::from)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = self.get_mut().poll(cx, Direction::Write, |channel| {
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

    /// Tells the peer that this side is done, in both directions: vchan has no half-close.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().channel.shutdown();
        Poll::Ready(Ok(()))
    }
}
