//! The source of clients of the host's proxy.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use crate::rt::listener::Listener;
use crate::rt::poll::Interest;
use crate::rt::stream::Stream;

/// The source of clients.
#[derive(Debug)]
pub enum Clients {
    /// A listening socket.
    Socket(Listener),
    /// The one client that is there from the start, e.g. stdin and stdout. `None` once served.
    Once(Option<Stream>),
}

impl Clients {
    /// Returns the descriptors through which clients arrive.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Socket(fd) => vec![fd.as_fd()],
            Self::Once(local) => local.iter().flat_map(Stream::descriptors).collect(),
        }
    }

    /// The next client, if one is there.
    ///
    /// # Errors
    /// The system's, about the client.
    pub fn accept(&mut self, now: Instant) -> io::Result<Option<Stream>> {
        match self {
            Self::Once(local) => Ok(local.take()),
            Self::Socket(listener) => listener.accept(now).map(Stream::socket).transpose(),
        }
    }

    /// Returns the descriptor to wait for, if another client may connect.
    pub fn interest(&self) -> Option<Interest<'_>> {
        match self {
            Self::Once(_) => None,
            Self::Socket(listener) => listener.interest(),
        }
    }

    /// Returns when to look for one without an event.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Once(_) => None,
            Self::Socket(listener) => listener.deadline(),
        }
    }
}
