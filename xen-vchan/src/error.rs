//! Errors, divided by who is at fault.
//!
//! | variant | at fault | afterwards |
//! |---|---|---|
//! | [`Error::Peer`] | the other domain, which violated the protocol | the channel is finished: every later call returns the same error |
//! | [`Error::Node`] | the other domain, which published an invalid address | try again, if another server may be published |
//! | [`Error::Closed`] | the other side, which left or died | bytes it had sent can still be read; then the end |
//! | [`Error::ShutDown`] | the caller, which has shut the channel down | bytes of the peer can still be read |
//! | [`Error::WouldBlock`], [`Error::TimedOut`] | nobody | try again |
//! | [`Error::Os`], [`Error::Store`] | the kernel or xenstored, which refused | depends on the source |

use std::fmt;
use std::io;

use crate::NodeValue;

/// The result of a channel operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a channel operation did not succeed.
#[non_exhaustive]
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The peer violated the protocol. Nothing more is read from it; every later call returns this
    /// error.
    #[error("the peer broke the vchan protocol: {0}")]
    Peer(#[source] Violation),
    /// A store node that the server published contains no number in range.
    #[error("the vchan server's store node {key} holds no valid number: {value}")]
    Node {
        /// The node's last component.
        key: &'static str,
        /// Its value.
        value: NodeValue,
    },
    /// The peer left or died, and everything it had sent was read.
    #[error("the vchan peer is gone")]
    Closed,
    /// This side has [shut down](crate::Channel::shutdown) the channel, so it writes no more.
    #[error("this side has shut the vchan down")]
    ShutDown,
    /// The operation cannot proceed now. The notification was requested before this was returned,
    /// so the channel's descriptor becomes readable when that changes.
    #[error("the vchan operation would block")]
    WouldBlock,
    /// The deadline passed before anything could be done.
    #[error("the deadline of the vchan operation passed")]
    TimedOut,
    /// No server has published a channel at this place in the store.
    #[error("no vchan server at {path}")]
    NoServer {
        /// The path asked for.
        path: String,
    },
    /// Something is published at this place, but cannot be reached now: the server is busy with
    /// another client, or it died and left its nodes.
    #[error("the vchan server at {path} is busy with another client or dead: {source}")]
    Unreachable {
        /// The path asked for.
        path: String,
        /// The hypervisor's error.
        source: xen_sys::Error,
    },
    /// The caller's request is invalid.
    #[error("{what}")]
    Invalid {
        /// The fault.
        what: &'static str,
    },
    /// The size exceeds what a ring holds, or the largest possible ring.
    #[error("a vchan {what} of {asked} bytes where {limit} is the most")]
    TooLarge {
        /// The thing that is too large: a packet, a ring.
        what: &'static str,
        /// The bytes asked for.
        asked: usize,
        /// The most there can be.
        limit: usize,
    },
    /// The kernel or the hypervisor refused the operation.
    #[error(transparent)]
    Os(#[from] xen_sys::Error),
    /// The shared pages are smaller than requested. A correct kernel never causes this.
    #[error(transparent)]
    Memory(#[from] xen_gnttab::RegionError),
    /// The store refused the operation.
    #[error(transparent)]
    Store(#[from] xen_store::Error),
}

/// A violation of the protocol by the peer, with the numbers as they were read.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The peer's producer cursor went back, or beyond what the ring can hold.
    Producer {
        /// The value just read.
        prod: u32,
        /// The last value believed.
        last: u32,
        /// Our consumer cursor.
        cons: u32,
        /// The ring's size in bytes.
        size: u32,
    },
    /// The peer's consumer cursor went back, or beyond what was published.
    Consumer {
        /// The value just read.
        cons: u32,
        /// The last value believed.
        last: u32,
        /// The producer cursor that this side published.
        prod: u32,
        /// The ring's size in bytes.
        size: u32,
    },
    /// The cursors found at connection time are further apart than the ring is large.
    Attach {
        /// The producer cursor read.
        prod: u32,
        /// The consumer cursor read.
        cons: u32,
        /// The ring's size in bytes.
        size: u32,
    },
    /// Ring orders outside the protocol, or both rings in the same place.
    Order {
        /// log2 of the bytes from client to server.
        left: u16,
        /// log2 of the bytes from server to client.
        right: u16,
    },
    /// The grant list would run into an in-page ring.
    GrantList {
        /// log2 of the bytes from client to server.
        left: u16,
        /// log2 of the bytes from server to client.
        right: u16,
        /// Where the list would end, in bytes from the page's start.
        end: usize,
        /// Where it must end.
        limit: usize,
    },
    /// A live byte with a value that has no meaning.
    Live {
        /// The value read.
        value: u8,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Producer {
                prod,
                last,
                cons,
                size,
            } => write!(
                f,
                "producer cursor {prod:#x} after {last:#x}, with consumer at {cons:#x} in a ring of {size} bytes"
            ),
            Self::Consumer {
                cons,
                last,
                prod,
                size,
            } => write!(
                f,
                "consumer cursor {cons:#x} after {last:#x}, with producer at {prod:#x} in a ring of {size} bytes"
            ),
            Self::Attach { prod, cons, size } => {
                write!(
                    f,
                    "cursors {prod:#x} and {cons:#x} in a ring of {size} bytes"
                )
            }
            Self::Order { left, right } => write!(f, "ring orders {left} and {right}"),
            Self::GrantList {
                left,
                right,
                end,
                limit,
            } => write!(
                f,
                "grant list of ring orders {left} and {right} ends at byte {end}, a ring begins at {limit}"
            ),
            Self::Live { value } => write!(f, "live byte {value}"),
        }
    }
}

impl std::error::Error for Violation {}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Self {
        Self::Peer(violation)
    }
}

impl Error {
    /// Returns the errno, where the system or the store daemon gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Os(source) | Self::Unreachable { source, .. } => source.errno(),
            Self::Store(source) => source.errno(),
            _ => None,
        }
    }

    /// Returns the nearest [`io::ErrorKind`].
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Os(source) => source.kind(),
            Self::Store(source) => source.kind(),
            Self::Unreachable { .. } => io::ErrorKind::ConnectionRefused,
            Self::Peer(_) | Self::Node { .. } => io::ErrorKind::InvalidData,
            Self::Closed | Self::ShutDown => io::ErrorKind::BrokenPipe,
            Self::WouldBlock => io::ErrorKind::WouldBlock,
            Self::TimedOut => io::ErrorKind::TimedOut,
            Self::NoServer { .. } => io::ErrorKind::NotFound,
            Self::Invalid { .. } | Self::TooLarge { .. } | Self::Memory(_) => {
                io::ErrorKind::InvalidInput
            }
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Os(source) => source.into(),
            Error::Store(source) => source.into(),
            other => Self::new(other.kind(), other),
        }
    }
}
