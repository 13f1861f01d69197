//! One bound port: closed when dropped.

use xen_sys::{Port, Result};

use crate::EventChannels;

/// A local port of an [`EventChannels`] set, closed on drop.
///
/// Keeps the set alive. After the drop the peer's end is unbound, as it was before the connection.
/// Events that the peer sends then are lost; the port number may be allocated again.
#[doc(alias = "xenevtchn_unbind")]
#[doc(alias = "IOCTL_EVTCHN_UNBIND")]
#[derive(Debug)]
pub struct BoundPort {
    channels: EventChannels,
    port: Port,
}

impl BoundPort {
    pub(crate) fn new(channels: EventChannels, port: Port) -> Self {
        Self { channels, port }
    }

    /// Returns the local port's number: the peer binds to this number, and
    /// [`EventChannels::pending`] returns it.
    #[must_use]
    pub fn port(&self) -> Port {
        self.port
    }

    /// Returns the set it belongs to.
    #[must_use]
    pub fn channels(&self) -> &EventChannels {
        &self.channels
    }

    /// Makes the other end pending. Never blocks. If that end is pending already, or no peer is
    /// connected, this changes nothing and is no error.
    ///
    /// # Errors
    ///
    /// [`Error::Os`](xen_sys::Error::Os) when the system call fails, for which there is no known
    /// cause.
    #[doc(alias = "xenevtchn_notify")]
    #[doc(alias = "IOCTL_EVTCHN_NOTIFY")]
    #[inline]
    pub fn notify(&self) -> Result<()> {
        self.channels.notify(self.port)
    }

    /// Lets the port be delivered again: [`EventChannels::unmask`].
    ///
    /// # Errors
    ///
    /// Those of [`EventChannels::unmask`].
    #[inline]
    pub fn unmask(&self) -> Result<()> {
        self.channels.unmask(self.port)
    }
}

impl Drop for BoundPort {
    fn drop(&mut self) {
        // No caller could act on an error; the port is closed with the set at the latest.
        let _ = self.channels.unbind(self.port);
    }
}
