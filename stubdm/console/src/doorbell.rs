//! A bound event channel whose peer may notify for nothing, which is paced.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use xen_evtchn::{BoundPort, EventChannels, EventPacer};
use xen_sys::{DomId, Port, Xen};

/// One end of an event channel. Never blocks.
///
/// Its descriptor is readable when the peer has notified. Call
/// [`acknowledge`](Self::acknowledge), *then* look for what the peer may have announced, and
/// [`note_found`](Self::note_found) if there is anything; then poll until
/// [`deadline`](Self::deadline).
#[derive(Debug)]
pub struct Doorbell {
    port: BoundPort,
    channels: EventChannels,
    pacer: EventPacer,
    /// The last event, if it was taken: whether it announced anything.
    found: Option<bool>,
    /// The port stays masked until the pacer lets it be unmasked.
    masked: bool,
}

impl Doorbell {
    /// Binds a port that `domain` allocated for this one. While the peer notifies for nothing, it is
    /// acknowledged at intervals of `pace`.
    ///
    /// # Errors
    /// There is no such port, or the system's.
    pub fn bind(xen: &Xen, domain: DomId, port: Port, pace: Duration) -> xen_sys::Result<Self> {
        let channels = EventChannels::open(xen)?;
        let port = channels.bind_interdomain(domain, port)?;
        Ok(Self::new(port, channels, pace))
    }

    /// Takes a port of `channels`, which has no other. A `pace` of zero is none.
    pub fn new(port: BoundPort, channels: EventChannels, pace: Duration) -> Self {
        Self {
            port,
            channels,
            pacer: EventPacer::new(pace),
            found: None,
            masked: false,
        }
    }

    /// Takes note of the peer's notifications, so that the next one makes the descriptor readable
    /// again: at once, or at the [`deadline`](Self::deadline) if the peer notifies for nothing all
    /// the time.
    ///
    /// # Errors
    /// The system's.
    pub fn acknowledge(&mut self, now: Instant) -> xen_sys::Result<()> {
        self.pacer.handle_timeout(now);
        self.unmask_if_due()?;
        // One port, which stays masked until it is unmasked: there is no second turn but by a race.
        for _ in 0..4 {
            if self.channels.pending()?.is_none() {
                break;
            }
            if let Some(found) = self.found.replace(false) {
                self.pacer.handle_event(found, now);
            }
            self.masked = true;
            self.unmask_if_due()?;
        }
        Ok(())
    }

    fn unmask_if_due(&mut self) -> xen_sys::Result<()> {
        if self.masked && self.pacer.poll_timeout().is_none() {
            self.masked = false;
            self.channels.unmask(self.port.port())?;
        }
        Ok(())
    }

    /// Returns when [`acknowledge`](Self::acknowledge) is to be called without an event.
    pub fn deadline(&self) -> Option<Instant> {
        self.pacer.poll_timeout().filter(|_| self.masked)
    }

    /// Notes that the last notification announced something.
    pub fn note_found(&mut self) {
        self.found = self.found.map(|_| true);
    }

    /// Notifies the peer.
    ///
    /// # Errors
    /// The system's.
    pub fn notify(&self) -> xen_sys::Result<()> {
        self.port.notify()
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channels.as_fd()
    }
}
