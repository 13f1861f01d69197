//! The names and values a driver passes in and out of a connection.

use crate::error::{Error, ProtocolError};
use crate::wire::{self, Header, MsgType};

/// Names an outstanding request. Never 0 on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u32);

/// Names a watch; its number in hexadecimal is the token on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub(super) u64);

/// Something that a caller may be waiting for has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ready {
    /// [`Connection::poll_reply`](super::Connection::poll_reply) has an answer.
    Reply(RequestId),
    /// [`Connection::poll_event`](super::Connection::poll_event) has a first event.
    Event(WatchId),
    /// The connection was lost and may be made again:
    /// [`Connection::handle_reconnected`](super::Connection::handle_reconnected), or
    /// [`Connection::give_up`](super::Connection::give_up).
    Lost,
    /// The connection is finished: every wait has its answer.
    Ended,
}

/// How a connection differs by transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quirks {
    /// Largest payload that can be sent, in bytes.
    pub max_payload: usize,
    /// The kernel answers WATCH and UNWATCH itself, and some versions do so with request id 0.
    pub anonymous_watch_replies: bool,
    /// A message may be written only when the one before has its reply.
    pub one_at_a_time: bool,
    /// The depth of a watch is passed on.
    pub watch_depth: bool,
}

impl Quirks {
    /// A socket to the daemon.
    pub const SOCKET: Self = Self {
        max_payload: wire::PAYLOAD_MAX,
        anonymous_watch_replies: false,
        one_at_a_time: false,
        watch_depth: true,
    };
    /// `/dev/xen/xenbus`, whose buffer of 4096 bytes also contains the header
    /// (`drivers/xen/xenbus/xenbus_dev_frontend.c`).
    ///
    /// The kernel queues a message by reference to that one buffer and returns from the write. So a
    /// second message written before the first is sent replaces the first one's payload
    /// (`xenbus_dev_request_and_reply` in `xenbus_xs.c`). Only the reply proves that the first was
    /// sent.
    pub const XENBUS: Self = Self {
        max_payload: wire::PAYLOAD_MAX - Header::SIZE,
        anonymous_watch_replies: true,
        one_at_a_time: true,
        watch_depth: false,
    };
}

/// Why a connection is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The other side closed the connection.
    Closed,
    /// The other side violated the protocol.
    Protocol(ProtocolError),
    /// A system call failed: its name and errno.
    Os(&'static str, i32),
}

impl Failure {
    /// Returns whether the transport ended for a reason that the next one need not have.
    pub(super) fn is_loss(self) -> bool {
        matches!(self, Self::Closed | Self::Os(..))
    }
}

/// A transaction, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tx {
    /// The daemon's number; 0 is none.
    pub(crate) id: u32,
    /// The connection that it belongs to, counted by the losses before it.
    pub(crate) epoch: u64,
}

impl Tx {
    /// No transaction.
    pub(crate) const NONE: Self = Self { id: 0, epoch: 0 };
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Closed => Self::Closed,
            Failure::Protocol(violation) => Self::Protocol(violation),
            Failure::Os(op, errno) => Self::Os {
                op,
                source: std::io::Error::from_raw_os_error(errno).into(),
            },
        }
    }
}

/// A message to be sent.
#[derive(Debug)]
pub struct Outgoing {
    pub(super) id: RequestId,
    pub(super) bytes: Vec<u8>,
    pub(super) sent: usize,
    /// The connection that it is for, counted by the losses before it.
    pub(super) epoch: u64,
}

impl Outgoing {
    /// Returns the bytes still to be written.
    #[must_use]
    pub fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// The transaction that this message ends.
    pub(super) fn ended_transaction(&self) -> Option<u32> {
        let header = Header::from_bytes(self.bytes.first_chunk()?);
        (header.kind == MsgType::TRANSACTION_END).then_some(header.tx_id)
    }

    /// Records that `count` more bytes were written; returns whether the message is complete now.
    pub fn advance(&mut self, count: usize) -> bool {
        self.sent = self.bytes.len().min(self.sent.saturating_add(count));
        self.sent == self.bytes.len()
    }
}
