//! Waiting for servers and for clients in a runtime.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use ::tokio::io::unix::AsyncFd;
use xen_store::Store;
use xen_sys::Xen;

use super::Channel;
use crate::client::ClientBuilder;
use crate::{Connecting, Error, Result};

/// Connects, waiting for the server without blocking the runtime. Dropping the future gives up.
///
/// Its requests to the store block the thread; see [`Reconnecting`](super::Reconnecting#blocking).
///
/// # Errors
///
/// As [`Connecting::try_finish`](crate::Connecting::try_finish), without
/// [`WouldBlock`](Error::WouldBlock).
pub async fn connect(builder: ClientBuilder, xen: &Xen, store: &Store) -> Result<Channel> {
    let mut connecting = builder.start(xen, store)?;
    let ready = registered(&connecting)?;
    finish(&mut connecting, &ready).await
}

/// Connects; cancelling leaves `connecting` usable.
pub(super) async fn finish(
    connecting: &mut Connecting,
    ready: &AsyncFd<OwnedFd>,
) -> Result<Channel> {
    loop {
        let mut guard = match connecting.try_finish() {
            Ok(channel) => return Channel::new(channel).map_err(failed),
            Err(Error::WouldBlock) => ready.readable().await.map_err(failed)?,
            Err(error) => return Err(error),
        };
        // Before the next look, which takes what is ready.
        guard.clear_ready();
    }
}

/// A [`crate::Listener`] in a tokio runtime.
///
/// # Blocking
///
/// Waiting for clients never blocks a thread. Requests to the store do, inside the call: each takes
/// one round trip to the daemon (5 µs or more over its socket). A daemon that does not answer
/// blocks the thread without limit, unless the store was given one with [`Store::with_timeout`],
/// which holds for each request.
///
/// | call | requests |
/// |---|---|
/// | [`accept`](Self::accept) | for each client that connected or whose ring failed: removing the old ring's nodes and publishing a fresh ring, about twenty |
/// | [`crate::Listener::bind`] through [`get_mut`](Self::get_mut) | publishing a ring |
/// | [`crate::Listener::stop`], dropping the listener | removing the nodes of each ring on offer |
/// | a channel that [watches the peer's domain](crate::ListenerBuilder::watch_peer_domain) | by default one each five seconds, limited to 250 ms |
/// | dropping an accepted channel | none: its nodes were removed when it was accepted |
///
/// A runtime that cannot afford this gives the listener a `Store` connection of its own, so that no
/// other user of the connection is waited for, with a limit; calls `bind` and drops the listener in
/// `tokio::task::spawn_blocking`; or runs the blocking [`crate::Listener::accept`] there or in a
/// thread, and takes each channel into the runtime with [`Channel::new`].
#[derive(Debug)]
pub struct Listener {
    ready: AsyncFd<OwnedFd>,
    listener: crate::Listener,
}

impl Listener {
    /// Registers a listener with the runtime of the calling task.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if there is no descriptor left.
    ///
    /// # Panics
    ///
    /// When called outside of a runtime whose I/O driver is enabled.
    pub fn new(listener: crate::Listener) -> Result<Self> {
        let ready = registered(&listener)?;
        Ok(Self { ready, listener })
    }

    /// Waits for the next client. Cancelling loses none. Its requests to the store
    /// [block](Self#blocking).
    ///
    /// # Errors
    ///
    /// As [`crate::Listener::accept`], without [`TimedOut`](Error::TimedOut).
    pub async fn accept(&mut self) -> Result<Channel> {
        loop {
            match self.listener.try_accept() {
                Ok(channel) => return Channel::new(channel).map_err(failed),
                Err(Error::WouldBlock) => {}
                Err(error) => return Err(error),
            }
            if self.listener.has_more() {
                // Clients keep notifying. The runtime would not report the same readiness again.
                ::tokio::task::yield_now().await;
                continue;
            }
            let mut guard = self.ready.readable().await.map_err(failed)?;
            // Before the next look, which takes every event that is there.
            guard.clear_ready();
        }
    }

    /// Returns the listener, to serve more paths or fewer.
    pub const fn get_mut(&mut self) -> &mut crate::Listener {
        &mut self.listener
    }
}

pub(super) fn registered(source: impl AsFd) -> Result<AsyncFd<OwnedFd>> {
    let fd = source.as_fd().try_clone_to_owned().map_err(failed)?;
    // As in `Channel::new`.
    #[allow(deprecated)]
    AsyncFd::new(fd).map_err(failed)
}

pub(super) fn failed(error: io::Error) -> Error {
    Error::Os(xen_sys::Error::os("poll", error))
}
