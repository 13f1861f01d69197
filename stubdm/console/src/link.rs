//! A console's ring with its event channel: what both ends are once they are connected.

use std::os::fd::{AsFd, BorrowedFd};

use xen_evtchn::{BoundPort, EventChannels};

use crate::Result;
use crate::ring::{Consumer, Producer};

/// One end of a connected console. Never blocks.
///
/// Its descriptor is readable when the peer has put something in, or taken something out. Call
/// [`acknowledge`](Self::acknowledge), *then* read and write until both say 0, then poll.
#[derive(Debug)]
pub struct Link {
    consumer: Consumer,
    producer: Producer,
    // The pages that the ring is in go before the port, so that an end of ours is heard.
    port: BoundPort,
    channels: EventChannels,
}

impl Link {
    pub(super) fn new(
        (consumer, producer): (Consumer, Producer),
        port: BoundPort,
        channels: EventChannels,
    ) -> Self {
        Self {
            consumer,
            producer,
            port,
            channels,
        }
    }

    /// Takes note of the peer's notifications, so that the next one makes the descriptor readable
    /// again.
    ///
    /// # Errors
    /// The system's.
    pub fn acknowledge(&self) -> Result<()> {
        // One port, which stays masked until it is unmasked: there is no second turn but by a race.
        for _ in 0..4 {
            match self.channels.pending()? {
                Some(port) => self.channels.unmask(port)?,
                None => break,
            }
        }
        Ok(())
    }

    /// Reads what is there into `buffer` and says how much that was; 0 for nothing.
    ///
    /// # Errors
    /// [`Error::Ring`](crate::Error::Ring): the peer broke it; the system's. The link is of no more
    /// use.
    pub fn try_read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let got = self.consumer.read(buffer)?;
        if got > 0 {
            self.port.notify()?;
        }
        Ok(got)
    }

    /// Writes what fits and says how much that was; 0 for no room.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read).
    pub fn try_write(&mut self, bytes: &[u8]) -> Result<usize> {
        let took = self.producer.write(bytes)?;
        if took > 0 {
            self.port.notify()?;
        }
        Ok(took)
    }

    /// How many bytes there are to read, as of now.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read).
    pub fn available(&self) -> Result<usize> {
        Ok(self.consumer.available()?)
    }

    /// How many written bytes the peer has not taken out yet, as of now.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read).
    pub fn unread(&self) -> Result<usize> {
        Ok(self.producer.unread()?)
    }

    /// Ends it and gives what the peer has not taken out; nothing if it broke the ring.
    pub fn take_back(self) -> Vec<u8> {
        self.producer.take_back().unwrap_or_default()
    }

    /// Tells the peer to look.
    ///
    /// # Errors
    /// The system's.
    pub fn notify(&self) -> Result<()> {
        Ok(self.port.notify()?)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channels.as_fd()
    }
}
