//! A vchan as a [`Transport`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use xen_vchan::{Channel, Error, PeerState};

use crate::rt::transport::{Peer, Transport};

/// One end of a vchan.
#[derive(Debug)]
pub struct Vchan {
    channel: Channel,
    /// The most room there ever was for writing: the ring's size once it has been empty.
    size: usize,
    marker: Option<u8>,
}

impl Vchan {
    /// Takes a channel over.
    pub fn new(channel: Channel) -> Self {
        Self {
            channel,
            size: 0,
            marker: None,
        }
    }

    /// Sends the byte `marker` before all others, as soon as there is room.
    ///
    /// # Errors
    /// The channel is of no more use.
    pub fn with_marker(mut self, marker: Option<u8>) -> io::Result<Self> {
        // Nothing is unread before the first byte: the ring's size shows itself.
        self.unread();
        self.marker = marker;
        match self.send_marker() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(self),
        }
    }

    /// Sends the marker if it has not been sent.
    fn send_marker(&mut self) -> io::Result<()> {
        if let Some(marker) = self.marker {
            self.channel.try_write(&[marker])?;
            self.marker = None;
        }
        Ok(())
    }
}

impl Transport for Vchan {
    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    fn acknowledge(&mut self) -> io::Result<()> {
        self.channel.acknowledge_events()?;
        self.channel.handle_timeout()?;
        // There may be room by now. The next read or write finds any other fault.
        let _ = self.send_marker();
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.channel.poll_timeout()
    }

    fn peer(&mut self) -> io::Result<Peer> {
        Ok(match self.channel.peer()? {
            PeerState::Connected => Peer::Connected,
            PeerState::Gone => Peer::Gone,
            _ => Peer::Waiting,
        })
    }

    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.channel.try_read(buffer) {
            Err(Error::Closed) => Ok(0),
            other => Ok(other?),
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send_marker()?;
        Ok(self.channel.try_write(bytes)?)
    }

    fn unread(&mut self) -> usize {
        match self.channel.space() {
            Ok(space) => {
                self.size = self.size.max(space);
                self.size - space
            }
            // Nobody is left who could take them.
            Err(_) => 0,
        }
    }

    fn next_client(&mut self) -> io::Result<()> {
        Ok(self.channel.next_client()?)
    }
}
