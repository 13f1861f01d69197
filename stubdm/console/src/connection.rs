//! A console's ring with its event channel: what both ends are once they are connected.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use crate::Result;
use crate::doorbell::Doorbell;
use crate::ring::{Consumer, Producer};

/// One end of a connected console. Never blocks.
///
/// Its descriptor is readable when the peer has put something in, or taken something out. Call
/// [`acknowledge`](Self::acknowledge), *then* read and write until both return 0, then poll until
/// [`deadline`](Self::deadline).
#[derive(Debug)]
pub struct Connection {
    consumer: Consumer,
    producer: Producer,
    // The pages that the ring is in are dropped before the port, so that the peer is notified of
    // our end.
    bell: Doorbell,
    /// The grant reference and the port that the peer published.
    published: (u32, u32),
}

impl Connection {
    pub(super) fn new((consumer, producer): (Consumer, Producer), bell: Doorbell) -> Self {
        Self {
            consumer,
            producer,
            bell,
            published: (0, 0),
        }
    }

    /// With the numbers that the peer published.
    pub(super) fn published(self, reference: u32, port: u32) -> Self {
        Self {
            published: (reference, port),
            ..self
        }
    }

    /// Returns the grant reference and the port that the peer published for this ring.
    pub fn identity(&self) -> (u32, u32) {
        self.published
    }

    /// Takes note of the peer's notifications, so that the next one makes the descriptor readable
    /// again: at once, or at the [`deadline`](Self::deadline) if the peer notifies for nothing all
    /// the time.
    ///
    /// # Errors
    /// The system's.
    pub fn acknowledge(&mut self, now: Instant) -> Result<()> {
        Ok(self.bell.acknowledge(now)?)
    }

    /// Returns when [`acknowledge`](Self::acknowledge) is to be called without an event.
    pub fn deadline(&self) -> Option<Instant> {
        self.bell.deadline()
    }

    /// Reads what is there into `buffer` and returns how much that was; 0 for nothing.
    ///
    /// # Errors
    /// [`Error::Ring`](crate::Error::Ring): the peer broke it; the system's. The connection is of
    /// no more use.
    pub fn try_read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let got = self.peek(buffer)?;
        self.consume(got)
    }

    /// Copies what is there into `buffer` and returns the count; 0 for nothing. The bytes stay in
    /// the ring until [`consume`](Self::consume) returns their room to the peer.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read).
    pub fn peek(&self, buffer: &mut [u8]) -> Result<usize> {
        Ok(self.consumer.peek(buffer)?)
    }

    /// Returns the room of `len` bytes to the peer, at most of those there are. Returns the count.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read).
    pub fn consume(&mut self, len: usize) -> Result<usize> {
        let len = self.consumer.consume(len)?;
        if len > 0 {
            self.bell.note_found();
            self.bell.notify()?;
        }
        Ok(len)
    }

    /// Returns the index of the next byte to read: it runs freely and wraps at 2³².
    pub fn position(&self) -> u32 {
        self.consumer.position()
    }

    /// Writes what fits and returns how much that was; 0 for no room.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read).
    pub fn try_write(&mut self, bytes: &[u8]) -> Result<usize> {
        let took = self.producer.write(bytes)?;
        if took > 0 {
            self.bell.note_found();
            self.bell.notify()?;
        }
        Ok(took)
    }

    /// Returns how many bytes there are to read, as of now.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read).
    pub fn available(&self) -> Result<usize> {
        Ok(self.consumer.available()?)
    }

    /// Returns how many written bytes the peer has not taken out yet, as of now.
    ///
    /// # Errors
    /// As [`try_read`](Self::try_read).
    pub fn unread(&self) -> Result<usize> {
        Ok(self.producer.unread()?)
    }

    /// Ends it and returns what the peer has not taken out; nothing if it broke the ring.
    pub fn take_back(self) -> Vec<u8> {
        self.producer.take_back().unwrap_or_default()
    }

    /// Notifies the peer.
    ///
    /// # Errors
    /// The system's.
    pub fn notify(&self) -> Result<()> {
        Ok(self.bell.notify()?)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
