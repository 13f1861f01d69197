//! Errors, divided by who failed.
//!
//! | variant | who | connection afterwards |
//! |---|---|---|
//! | [`Error::Invalid`] | the caller; nothing was sent | usable |
//! | [`Error::Daemon`] | the daemon refused this request | usable |
//! | [`Error::NotOffered`] | the daemon does not implement this request | usable |
//! | [`Error::NotText`], [`Error::Value`] | the writer of the value | usable |
//! | [`Error::Malformed`], [`Error::TooLong`] | the daemon sent an invalid reply to this request | usable |
//! | [`Error::Conflict`], [`Error::TimedOut`], [`Error::Cancelled`], [`Error::TooLarge`] | nobody in particular | usable |
//! | [`Error::Lost`] | the daemon closed the connection, which is made again | usable |
//! | [`Error::Protocol`] | the daemon violated the protocol | finished |
//! | [`Error::Closed`] | the daemon closed the connection | finished |
//! | [`Error::Os`] | the system; `op` names the call | finished |
//! | [`Error::Connect`], [`Error::Unsupported`] | no daemon could be reached | never began |
//! | [`Error::Forked`] | the caller, in a forked child | usable in the parent |

use std::path::PathBuf;
use std::sync::Arc;
use std::{fmt, io};

use crate::wire::MsgType;

/// The result of a store operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a store operation failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The caller's request cannot be sent. Nothing was sent.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The daemon refused the request with an error.
    #[error("{op}: {code}")]
    Daemon {
        /// The request it refused.
        op: MsgType,
        /// The error it named.
        code: XsError,
    },
    /// The daemon does not implement the request (`ENOSYS`): it is older, or another
    /// implementation.
    #[error("{op}: this store daemon does not offer it")]
    NotOffered {
        /// The request; WATCH stands for one with a depth.
        op: MsgType,
    },
    /// A value that was requested as text is not UTF-8.
    #[error("{op}: the value is not UTF-8 text")]
    NotText {
        /// The request that fetched it.
        op: MsgType,
    },
    /// A node's value is not of the node's kind.
    #[error("the store's node {node} holds no {expected}")]
    Value {
        /// The node.
        node: &'static str,
        /// The kind of value that the node should have.
        expected: &'static str,
    },
    /// The reply to this request violates the protocol; the stream itself is sound.
    #[error("{op}: the reply is malformed")]
    Malformed {
        /// The request it answers.
        op: MsgType,
    },
    /// The reply to this request is longer than the protocol allows. It was skipped.
    #[error("{op}: a reply of {len} bytes, more than the protocol allows")]
    TooLong {
        /// The request it answers.
        op: MsgType,
        /// The length in bytes that its header claimed.
        len: usize,
    },
    /// A walk or a snapshot would take more memory than its limit.
    #[error("the tree takes more than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// Every attempt at a transaction met a conflicting change.
    #[error("the transaction met a conflict {attempts} times in a row")]
    Conflict {
        /// How often it was tried.
        attempts: u32,
    },
    /// The deadline passed before the answer arrived. The request may still take effect.
    #[error("{op}: no answer before the deadline")]
    TimedOut {
        /// The request that was not answered.
        op: MsgType,
    },
    /// Another thread ended the wait ([`Canceller`](crate::Canceller)). A request that was sent may
    /// still take effect.
    #[error("the wait for the store was cancelled")]
    Cancelled,
    /// The connection was lost before the answer arrived. It is made again
    /// ([`Store::reconnecting`](crate::Store::reconnecting)).
    #[error(
        "{op}{}: the store connection was lost{}",
        Within(*transaction),
        Outcome(*may_be_done)
    )]
    Lost {
        /// The request.
        op: MsgType,
        /// The transaction that it was in, by the daemon's number. The daemon has dropped it.
        transaction: Option<u32>,
        /// The daemon may have carried the request out, because it was sent. `false` if it was not
        /// sent whole, and for a request of a lost transaction other than its commit.
        may_be_done: bool,
    },
    /// The daemon violated the protocol; nothing more is read from it.
    #[error("the store daemon broke the protocol: {0}")]
    Protocol(ProtocolError),
    /// The daemon closed the connection.
    #[error("the store daemon closed the connection")]
    Closed,
    /// This process is a child of the one that made the connection. Nothing was sent or read.
    #[error("this store connection belongs to the process that made it, not to its child")]
    Forked,
    /// No socket or device of the daemon could be opened.
    #[error("{}: {source}", path.display())]
    Connect {
        /// The socket or device.
        path: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// This build or host has no store to connect to.
    #[error("no store connection is possible from this handle in this build")]
    Unsupported,
    /// A system call failed.
    #[error("{op}: {source}")]
    Os {
        /// The call, with the file it was about where there is one.
        op: &'static str,
        /// Its error.
        source: Arc<io::Error>,
    },
}

impl Error {
    /// Returns whether the daemon reported that the node does not exist (`ENOENT`).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Daemon {
                code: XsError::ENOENT,
                ..
            }
        )
    }

    /// Returns whether trying the whole transaction again may succeed (`EAGAIN`).
    #[must_use]
    pub fn is_again(&self) -> bool {
        matches!(
            self,
            Self::Daemon {
                code: XsError::EAGAIN,
                ..
            } | Self::Conflict { .. }
        )
    }

    /// Returns whether a transaction was lost with its connection and nothing of it was carried
    /// out. The caller may begin it again.
    #[must_use]
    pub fn is_lost_transaction(&self) -> bool {
        match self {
            Self::Lost {
                op,
                transaction,
                may_be_done,
            } => *op == MsgType::TRANSACTION_START || (transaction.is_some() && !may_be_done),
            _ => false,
        }
    }

    /// Returns whether the daemon denied access (`EACCES` or `EPERM`).
    #[must_use]
    pub fn is_denied(&self) -> bool {
        matches!(
            self,
            Self::Daemon {
                code: XsError::EACCES | XsError::EPERM,
                ..
            }
        )
    }

    /// Returns whether the connection is finished and the caller must open a new one.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Protocol(_)
                | Self::Closed
                | Self::Forked
                | Self::Os { .. }
                | Self::Connect { .. }
        )
    }

    /// Returns the errno: the system's or the daemon's, else the nearest one.
    ///
    /// `None` only where the system reported a failure without one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        Some(match self {
            Self::Invalid(Invalid::PayloadTooLong { .. }) => libc::E2BIG,
            Self::Invalid(_) | Self::Value { .. } => libc::EINVAL,
            Self::TooLong { .. } | Self::TooLarge { .. } => libc::E2BIG,
            Self::Forked => libc::EBADF,
            Self::NotOffered { .. } => libc::ENOSYS,
            Self::Daemon { code, .. } => code.errno(),
            Self::NotText { .. } => libc::EILSEQ,
            Self::Conflict { .. } => libc::EAGAIN,
            Self::TimedOut { .. } => libc::ETIMEDOUT,
            Self::Malformed { .. } | Self::Protocol(_) => libc::EPROTO,
            Self::Closed => libc::EPIPE,
            Self::Lost { .. } => libc::ECONNRESET,
            Self::Cancelled => libc::ECANCELED,
            Self::Unsupported => libc::EOPNOTSUPP,
            Self::Connect { source, .. } | Self::Os { source, .. } => {
                return source.raw_os_error();
            }
        })
    }

    /// Returns the nearest [`io::ErrorKind`].
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Protocol(_)
            | Self::Malformed { .. }
            | Self::NotText { .. }
            | Self::Value { .. } => io::ErrorKind::InvalidData,
            Self::Invalid(_) => io::ErrorKind::InvalidInput,
            Self::Connect { source, .. } | Self::Os { source, .. } => source.kind(),
            other => other.errno().map_or(io::ErrorKind::Other, |errno| {
                io::Error::from_raw_os_error(errno).kind()
            }),
        }
    }
}

/// The transaction of a lost request, in its error's text.
struct Within(Option<u32>);

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(id) => write!(f, " in transaction {id}"),
            None => Ok(()),
        }
    }
}

/// The fate of a lost request, in its error's text.
struct Outcome(bool);

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 {
            "; it may have been carried out"
        } else {
            "; it was not carried out"
        })
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}

/// The fault in a caller's argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Invalid {
    /// A path of no characters.
    #[error("an empty string is no store path")]
    EmptyPath,
    /// A path beyond the limit for its form.
    #[error("a store path of {len} bytes, the limit is {max}")]
    PathTooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A byte that no path may contain.
    #[error("byte {byte:#04x} at offset {at} is not allowed in a store path")]
    PathCharacter {
        /// The byte.
        byte: u8,
        /// Its offset.
        at: usize,
    },
    /// `//` in a path.
    #[error("doubled slash at offset {at} of a store path")]
    DoubledSlash {
        /// The offset of the first of the two.
        at: usize,
    },
    /// A slash at the end of a path other than `/`.
    #[error("a store path may not end with a slash")]
    TrailingSlash,
    /// A NUL in a string field: it would start another field.
    #[error("NUL at offset {at} of a text argument")]
    Nul {
        /// Its offset.
        at: usize,
    },
    /// A request beyond what one message carries.
    #[error("a request of {len} payload bytes, the limit is {max}")]
    PayloadTooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A connection that has clones, watches or transactions.
    #[error("a store connection that others use already")]
    Shared,
    /// A connection that was made from a descriptor, which cannot be opened again once it has
    /// ended.
    #[error("a store connection from a descriptor, whose socket or device is not known")]
    NoPlace,
    /// A permission list without its first entry, the owner.
    #[error("a permission list needs at least the owner's entry")]
    NoOwner,
    /// Text that is no permission entry.
    #[error("not a permission entry: expected n, r, w or b and a domain id")]
    Permission,
}

/// How the daemon violated the protocol. Every variant ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A message longer than the protocol allows that is no reply, or too long to be skipped
    /// ([`MAX_SKIPPED`](crate::proto::MAX_SKIPPED)).
    #[error("a message of {len} payload bytes")]
    TooLong {
        /// The length its header claimed.
        len: usize,
    },
    /// A reply to a request that was not made.
    #[error("a reply ({kind}) to request {req_id}, which is not outstanding")]
    UnknownRequest {
        /// The type of the reply.
        kind: MsgType,
        /// The id in it.
        req_id: u32,
    },
    /// A reply of another type than its request.
    #[error("the reply to {sent} has type {got}")]
    ReplyType {
        /// The type of the request.
        sent: MsgType,
        /// The type of the reply.
        got: MsgType,
    },
    /// A payload that is invalid for this kind of message.
    #[error("a malformed {kind} payload")]
    Payload {
        /// The type of the message.
        kind: MsgType,
    },
    /// The daemon left too many cancelled requests unanswered while it answered later ones.
    #[error("{expired} requests unanswered although later ones were answered")]
    Unresponsive {
        /// The number of unanswered requests.
        expired: usize,
    },
}

/// An error that the daemon named.
///
/// On the wire errors are names (`"ENOENT"`), so that clients need not share the daemon's numbers;
/// [`XsError::errno`] is the number of this system. An unknown name is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct XsError {
    /// 0 if the name is unknown to this crate.
    errno: i32,
    /// The unknown name, filled up with zeros; empty if it is known.
    other: [u8; LONGEST_NAME],
}

/// Bytes that are kept of a name. The longest errno name of Linux has 15.
const LONGEST_NAME: usize = 16;

macro_rules! xs_errors {
    ($($name:ident),*) => {
        impl XsError {
            $(
                #[doc = concat!("`", stringify!($name), "`")]
                pub const $name: Self = Self::known(libc::$name);
            )*

            /// Returns the error with this name on the wire. Of an unknown name, 16 bytes are kept.
            #[must_use]
            pub fn from_name(name: &[u8]) -> Self {
                $(if name == stringify!($name).as_bytes() { return Self::$name; })*
                let mut other = [0; LONGEST_NAME];
                for (slot, byte) in other.iter_mut().zip(name) {
                    // Any other byte is not part of a name and must not reach a terminal.
                    *slot = if byte.is_ascii_graphic() { *byte } else { b'?' };
                }
                Self { errno: 0, other }
            }

            /// Returns the name on the wire.
            #[must_use]
            pub fn name(&self) -> &str {
                match self.errno {
                    $(libc::$name => stringify!($name),)*
                    _ => self.other_name(),
                }
            }

            /// Returns the error with this number, if the protocol has a name for it.
            #[must_use]
            pub const fn from_errno(errno: i32) -> Option<Self> {
                match errno {
                    $(libc::$name => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

xs_errors!(
    EINVAL, EACCES, EEXIST, EISDIR, ENOENT, ENOMEM, ENOSPC, EIO, ENOTEMPTY, ENOSYS, EROFS, EBUSY,
    EAGAIN, EISCONN, E2BIG, EPERM
);

impl XsError {
    const fn known(errno: i32) -> Self {
        Self {
            errno,
            other: [0; LONGEST_NAME],
        }
    }

    /// Returns whether the daemon sent a name that is unknown to this crate.
    #[must_use]
    pub const fn is_unknown(self) -> bool {
        self.errno == 0
    }

    fn other_name(&self) -> &str {
        let end = self.other.iter().position(|&byte| byte == 0);
        let name = &self.other[..end.unwrap_or(LONGEST_NAME)];
        // Its bytes are graphic ASCII.
        match std::str::from_utf8(name) {
            Ok(name) if !name.is_empty() => name,
            _ => "an error without a name",
        }
    }

    /// Returns the number of this error; `EINVAL` for an unknown name, as in libxenstore.
    #[must_use]
    pub const fn errno(self) -> i32 {
        if self.errno == 0 {
            libc::EINVAL
        } else {
            self.errno
        }
    }
}

impl fmt::Debug for XsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for XsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match *self {
            Self::EINVAL => "invalid argument",
            Self::EACCES => "permission denied",
            Self::EEXIST => "it exists already",
            Self::ENOENT => "no such node",
            Self::ENOSPC => "quota exceeded",
            Self::ENOSYS => "not supported by this daemon",
            Self::EBUSY => "busy",
            Self::EAGAIN => "conflicting change, try again",
            Self::E2BIG => "too large",
            Self::EPERM => "operation not permitted",
            _ => return f.write_str(self.name()),
        };
        write!(f, "{text} ({})", self.name())
    }
}
