//! Event channels for tokio: feature `tokio`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use ::tokio::io::unix::AsyncFd;
use ::tokio::task::coop::consume_budget;
use xen_sys::{Error, Port, Result};

/// A [`crate::EventChannels`] in a tokio runtime.
///
/// Any number of tasks may wait; each event goes to one of them. Binding, notifying and unmasking
/// never block and stay with the [set](Self::get_ref).
#[derive(Debug)]
pub struct EventChannels {
    ready: AsyncFd<OwnedFd>,
    channels: crate::EventChannels,
}

impl EventChannels {
    /// Takes a set into the runtime of the calling task.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if there is no descriptor left.
    ///
    /// # Panics
    ///
    /// Outside of a runtime whose I/O driver is enabled.
    pub fn new(channels: crate::EventChannels) -> Result<Self> {
        let fd = channels.as_fd().try_clone_to_owned().map_err(failed)?;
        // Deprecated in favour of an unsafe function, for types whose descriptor can change or
        // close behind their owner's back. An `OwnedFd`'s cannot.
        #[allow(deprecated)]
        let ready = AsyncFd::new(fd).map_err(failed)?;
        Ok(Self { ready, channels })
    }

    /// Waits for a pending port and returns it masked, as
    /// [`wait`](crate::EventChannels::wait). Cancelling loses no event.
    ///
    /// # Errors
    ///
    /// [`Error::EventOverflow`]; see [`reset`](crate::EventChannels::reset). [`Error::Os`] when
    /// the runtime is shutting down.
    pub async fn wait(&self) -> Result<Port> {
        loop {
            consume_budget().await;
            if let Some(port) = self.channels.pending()? {
                return Ok(port);
            }
            let mut ready = self.ready.readable().await.map_err(failed)?;
            // Before the next look, which takes the event that this announced.
            ready.clear_ready();
        }
    }

    /// Returns the set.
    #[must_use]
    pub const fn get_ref(&self) -> &crate::EventChannels {
        &self.channels
    }

    /// Takes the set out of the runtime. No event is lost.
    #[must_use]
    pub fn into_inner(self) -> crate::EventChannels {
        self.channels
    }
}

fn failed(error: io::Error) -> Error {
    Error::os("poll", error)
}
