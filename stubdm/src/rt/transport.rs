//! Anything that carries a session's bytes: a vchan, or in tests whatever stands in for one.
//!
//! A vchan's descriptor reports only *that something happened*: check the rings after
//! [`Transport::acknowledge`]. [`Transport::try_read`] and [`Transport::try_write`] request the
//! next notification when they return `WouldBlock`, so a loop that tries until then may sleep in
//! `poll`. A loop that did not try gets no notification, not even of a client that connected or a
//! peer that left.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

/// The peer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Nobody yet.
    Waiting,
    /// Somebody.
    Connected,
    /// Nobody any more; what was sent can still be read.
    Gone,
}

/// A byte stream both ways that never blocks.
pub trait Transport {
    /// Readable when something happened.
    fn poll_fd(&self) -> BorrowedFd<'_>;

    /// Takes note of what made the descriptor readable, so that the next thing makes it readable
    /// again. Harmless when nothing happened.
    ///
    /// # Errors
    /// The system's; the transport is of no more use.
    fn acknowledge(&mut self) -> io::Result<()>;

    /// Returns when [`Transport::acknowledge`] is due although the descriptor is not readable:
    /// events of a peer that rings for nothing are held back until then.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Returns the peer's state.
    ///
    /// # Errors
    /// The other end broke the protocol, or the system's error.
    fn peer(&mut self) -> io::Result<Peer>;

    /// Reads what is there.
    ///
    /// # Errors
    /// `WouldBlock` for nothing, with a notification asked for; anything else is the end.
    /// `Ok(0)` means that the peer left and nothing is left of it.
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes what fits.
    ///
    /// # Errors
    /// `WouldBlock` for no room, with a notification asked for; anything else is the end.
    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Returns how many written bytes the peer has not taken yet.
    fn unread(&mut self) -> usize;

    /// For a server whose client has left: forgets all of that session and waits for the next.
    ///
    /// # Errors
    /// The system's, or that the rings cannot be made fit for another client.
    fn next_client(&mut self) -> io::Result<()>;
}

/// Makes the client's end of a [`Transport`].
pub trait Connect {
    /// The transport it makes.
    type Transport: Transport;

    /// Connects at once or not at all.
    ///
    /// # Errors
    /// `NotFound` while there is no server; another kind for any other failure.
    fn connect(&mut self) -> io::Result<Self::Transport>;

    /// Returns whether a server can still appear: its domain exists.
    fn may_come(&mut self) -> bool;
}
