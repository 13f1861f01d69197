//! Waiting for servers and for clients in a runtime.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use ::tokio::io::unix::AsyncFd;
use xen_store::Store;
use xen_sys::Xen;

use super::AsyncChannel;
use crate::client::ClientBuilder;
use crate::{Connecting, Error, Listener, Result};

/// Connects, waiting for the server without blocking the runtime; give it up by dropping the future.
///
/// It asks the store now and then, which answers at once.
///
/// # Errors
///
/// As [`Connecting::try_finish`](crate::Connecting::try_finish), without
/// [`WouldBlock`](Error::WouldBlock).
pub async fn connect(builder: ClientBuilder, xen: &Xen, store: &Store) -> Result<AsyncChannel> {
    let mut connecting = builder.start(xen, store)?;
    let ready = registered(&connecting)?;
    finish(&mut connecting, &ready).await
}

/// Connects; cancelling leaves the client on its way.
pub(super) async fn finish(
    connecting: &mut Connecting,
    ready: &AsyncFd<OwnedFd>,
) -> Result<AsyncChannel> {
    loop {
        let mut guard = match connecting.try_finish() {
            Ok(channel) => return AsyncChannel::new(channel).map_err(failed),
            Err(Error::WouldBlock) => ready.readable().await.map_err(failed)?,
            Err(error) => return Err(error),
        };
        // Before the next look, which empties what is ready.
        guard.clear_ready();
    }
}

/// A [`Listener`] in a tokio runtime.
#[derive(Debug)]
pub struct AsyncListener {
    ready: AsyncFd<OwnedFd>,
    listener: Listener,
}

impl AsyncListener {
    /// Takes a listener into the runtime of the calling task.
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    ///
    /// # Panics
    ///
    /// Outside of a runtime whose I/O driver is enabled.
    pub fn new(listener: Listener) -> Result<Self> {
        let ready = registered(&listener)?;
        Ok(Self { ready, listener })
    }

    /// The next client. Cancelling loses none.
    ///
    /// # Errors
    ///
    /// As [`Listener::accept`], without [`Timeout`](Error::Timeout).
    pub async fn accept(&mut self) -> Result<AsyncChannel> {
        loop {
            match self.listener.try_accept() {
                Ok(channel) => return AsyncChannel::new(channel).map_err(failed),
                Err(Error::WouldBlock) => {}
                Err(error) => return Err(error),
            }
            if self.listener.has_more() {
                // Clients keep ringing. The runtime would not tell of what it has told already.
                ::tokio::task::yield_now().await;
                continue;
            }
            let mut guard = self.ready.readable().await.map_err(failed)?;
            // Before the next look, which takes every event that is there.
            guard.clear_ready();
        }
    }

    /// The listener, to serve more paths or fewer.
    pub const fn get_mut(&mut self) -> &mut Listener {
        &mut self.listener
    }
}

pub(super) fn registered(source: impl AsFd) -> Result<AsyncFd<OwnedFd>> {
    let fd = source.as_fd().try_clone_to_owned().map_err(failed)?;
    // As in `AsyncChannel::new`.
    #[allow(deprecated)]
    AsyncFd::new(fd).map_err(failed)
}

pub(super) fn failed(error: io::Error) -> Error {
    Error::Os(xen_sys::Error::os("poll", error))
}
