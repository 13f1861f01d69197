//! One bound port: closed when dropped.

use xen_sys::{Port, Result};

use crate::EventChannels;

/// A local port of an [`EventChannels`] set, closed on drop.
///
/// Keeps the set alive. After the drop the peer's end is as before its connection, unbound, and
/// what it sends goes nowhere; the port number may be given out again.
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

    /// Returns the local port's number: what a peer needs to bind to it, and what
    /// [`EventChannels::pending`] returns for it.
    #[must_use]
    pub fn port(&self) -> Port {
        self.port
    }

    /// Returns the set it belongs to.
    #[must_use]
    pub fn channels(&self) -> &EventChannels {
        &self.channels
    }

    /// Makes the other end pending. Never blocks. If it is pending already, or nobody is
    /// connected, this changes nothing, and is no error.
    ///
    /// # Errors
    ///
    /// [`Error::Os`](xen_sys::Error::Os) when the system refuses, which it has no reason to.
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
    /// As there.
    #[inline]
    pub fn unmask(&self) -> Result<()> {
        self.channels.unmask(self.port)
    }
}

impl Drop for BoundPort {
    fn drop(&mut self) {
        // Nobody could act on a refusal; the port is closed with the set at the latest.
        let _ = self.channels.unbind(self.port);
    }
}
