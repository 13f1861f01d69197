//! The bytes on the wire: message header, message types, limits, and an incremental decoder.
//!
//! ```text
//!  0        4        8        12       16                    16 + len
//!  +--------+--------+--------+--------+----------------------+
//!  | type   | req_id | tx_id  | len    | payload (≤ 4096)     |
//!  +--------+--------+--------+--------+----------------------+
//! ```
//!
//! All four words are in native byte order: the protocol never leaves the machine. The layout and
//! the numbers come from `xen/include/public/io/xs_wire.h`; the meaning of each payload from
//! `docs/misc/xenstore.txt` in the Xen tree.
//!
//! # Guarantees
//!
//! [`Decoder`] holds at most one message, allocates only after the length was checked against
//! [`PAYLOAD_MAX`], and accepts its input cut at any place.

use std::fmt;

/// Longest payload of one message, in bytes, both ways (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_MAX: usize = 4096;
/// Longest absolute path, in bytes without the final NUL (`XENSTORE_ABS_PATH_MAX`).
pub const ABS_PATH_MAX: usize = 3072;
/// Longest relative path, in bytes without the final NUL (`XENSTORE_REL_PATH_MAX`).
pub const REL_PATH_MAX: usize = 2048;

/// The type of a message (`enum xsd_sockmsg_type`).
///
/// A newtype, not an enum: the other side may send numbers that are unknown to this crate.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MsgType(pub u32);

macro_rules! msg_types {
    ($($name:ident = $value:literal, $alias:literal, $doc:literal;)*) => {
        impl MsgType {
            $(#[doc = $doc] #[doc(alias = $alias)] pub const $name: Self = Self($value);)*

            /// Returns the name used in Xen's documentation, if the number is known.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

msg_types! {
    CONTROL = 0, "XS_CONTROL", "A command to the daemon itself; the set is the daemon's own.";
    DIRECTORY = 1, "XS_DIRECTORY", "The names of a node's children.";
    READ = 2, "XS_READ", "The value of a node.";
    GET_PERMS = 3, "XS_GET_PERMS", "The permissions of a node.";
    WATCH = 4, "XS_WATCH", "Ask to be told of changes at or below a path.";
    UNWATCH = 5, "XS_UNWATCH", "Withdraw a watch.";
    TRANSACTION_START = 6, "XS_TRANSACTION_START", "Begin a transaction.";
    TRANSACTION_END = 7, "XS_TRANSACTION_END", "Commit or abort a transaction.";
    INTRODUCE = 8, "XS_INTRODUCE", "Tell the daemon to serve a new domain.";
    RELEASE = 9, "XS_RELEASE", "Tell the daemon to stop serving a domain.";
    GET_DOMAIN_PATH = 10, "XS_GET_DOMAIN_PATH", "The path relative paths of a domain start from.";
    WRITE = 11, "XS_WRITE", "Set a node's value, creating the node and its parents.";
    MKDIR = 12, "XS_MKDIR", "Create a node with an empty value if it does not exist.";
    RM = 13, "XS_RM", "Remove a node and everything below it.";
    SET_PERMS = 14, "XS_SET_PERMS", "Replace a node's permissions.";
    WATCH_EVENT = 15, "XS_WATCH_EVENT", "From the daemon only: a watched path changed.";
    ERROR = 16, "XS_ERROR", "From the daemon only: a request failed; the payload names the error.";
    IS_DOMAIN_INTRODUCED = 17, "XS_IS_DOMAIN_INTRODUCED", "Whether the daemon serves a domain.";
    RESUME = 18, "XS_RESUME", "Expect the domain to shut down again.";
    SET_TARGET = 19, "XS_SET_TARGET", "Let one domain act with another one's rights.";
    RESET_WATCHES = 21, "XS_RESET_WATCHES", "Drop all watches and transactions of the caller.";
    DIRECTORY_PART = 22, "XS_DIRECTORY_PART", "A stretch of a child list too long for one reply.";
    GET_FEATURE = 23, "XS_GET_FEATURE", "The protocol features of the daemon, or of a domain.";
    SET_FEATURE = 24, "XS_SET_FEATURE", "Limit the features offered to a domain.";
    GET_QUOTA = 25, "XS_GET_QUOTA", "Read a quota, or the names of all quotas.";
    SET_QUOTA = 26, "XS_SET_QUOTA", "Change a quota.";
}

impl fmt::Debug for MsgType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for MsgType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "message type {}", self.0),
        }
    }
}

/// The 16 bytes in front of every payload (`struct xsd_sockmsg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The message's type.
    pub kind: MsgType,
    /// Chosen by the client, echoed in the reply.
    pub req_id: u32,
    /// The transaction, or 0.
    pub tx_id: u32,
    /// Length of the payload in bytes, as claimed by the sender: not yet checked.
    pub len: u32,
}

impl Header {
    /// Size of a header in bytes.
    pub const SIZE: usize = 16;

    /// Returns the header as sent on the wire.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        for (slot, word) in
            out.chunks_exact_mut(4)
                .zip([self.kind.0, self.req_id, self.tx_id, self.len])
        {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        out
    }

    /// Reads a header, the reverse of [`Header::to_bytes`]; every bit pattern is a header.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            kind: MsgType(word(0)),
            req_id: word(4),
            tx_id: word(8),
            len: word(12),
        }
    }
}

/// One whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The message's type.
    pub kind: MsgType,
    /// Chosen by the client, echoed in the reply.
    pub req_id: u32,
    /// The transaction, or 0.
    pub tx_id: u32,
    /// At most [`PAYLOAD_MAX`] bytes.
    pub payload: Vec<u8>,
}

/// A length that the protocol forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a payload of {len} bytes, more than {PAYLOAD_MAX}")]
pub struct TooLong {
    /// The length in bytes.
    pub len: usize,
}

impl Message {
    /// Returns the message as sent on the wire.
    ///
    /// # Errors
    ///
    /// [`TooLong`] if the payload exceeds [`PAYLOAD_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, TooLong> {
        encode(self.kind, self.req_id, self.tx_id, &[&self.payload])
    }
}

/// Encodes one message whose payload is the concatenation of `parts`.
///
/// # Errors
///
/// [`TooLong`] if the parts together exceed [`PAYLOAD_MAX`].
pub fn encode(kind: MsgType, req_id: u32, tx_id: u32, parts: &[&[u8]]) -> Result<Vec<u8>, TooLong> {
    let len = parts
        .iter()
        .fold(0_usize, |sum, part| sum.saturating_add(part.len()));
    let word = match u32::try_from(len) {
        Ok(word) if len <= PAYLOAD_MAX => word,
        _ => return Err(TooLong { len }),
    };
    let mut out = Vec::with_capacity(Header::SIZE + len);
    out.extend_from_slice(
        &Header {
            kind,
            req_id,
            tx_id,
            len: word,
        }
        .to_bytes(),
    );
    for part in parts {
        out.extend_from_slice(part);
    }
    Ok(out)
}

/// Cuts a byte stream into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    header: [u8; Header::SIZE],
    header_have: usize,
    /// `Some` once the header is complete and its length was accepted.
    body: Option<(Header, Vec<u8>)>,
    /// Payload bytes that are still to be dropped.
    skip: usize,
}

impl Decoder {
    /// Creates a decoder at a message boundary.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes off the front of `input` until one message is complete or `input` is empty.
    ///
    /// Returns `Ok(None)` only with `input` used up. Call again until that happens.
    ///
    /// # Errors
    ///
    /// [`TooLong`] if a header claims more than [`PAYLOAD_MAX`] bytes. The decoder returns the same
    /// error again until [`Decoder::skip_payload`] was called.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Message>, TooLong> {
        let skipped = self.skip.min(input.len());
        *input = &input[skipped..];
        self.skip -= skipped;
        if self.skip > 0 {
            return Ok(None);
        }
        if self.body.is_none() {
            let take = input.len().min(Header::SIZE - self.header_have);
            let (now, rest) = input.split_at(take);
            self.header[self.header_have..self.header_have + take].copy_from_slice(now);
            self.header_have += take;
            *input = rest;
            if self.header_have < Header::SIZE {
                return Ok(None);
            }
            let header = Header::from_bytes(&self.header);
            let len = header.len as usize;
            if len > PAYLOAD_MAX {
                return Err(TooLong { len });
            }
            self.body = Some((header, Vec::with_capacity(len)));
        }
        let Some((header, payload)) = self.body.as_mut() else {
            return Ok(None);
        };
        let take = input.len().min(header.len as usize - payload.len());
        let (now, rest) = input.split_at(take);
        payload.extend_from_slice(now);
        *input = rest;
        if payload.len() < header.len as usize {
            return Ok(None);
        }
        self.header_have = 0;
        Ok(self.body.take().map(|(header, payload)| Message {
            kind: header.kind,
            req_id: header.req_id,
            tx_id: header.tx_id,
            payload,
        }))
    }

    /// After [`TooLong`]: drops exactly the claimed number of bytes from the following input,
    /// without keeping any, and continues with the message behind them. Returns the header of the
    /// message that is dropped.
    ///
    /// Returns `None`, without effect, if the last call of [`Decoder::next`] did not fail.
    pub fn skip_payload(&mut self) -> Option<Header> {
        if self.header_have < Header::SIZE || self.body.is_some() {
            return None;
        }
        let header = Header::from_bytes(&self.header);
        self.header_have = 0;
        self.skip = header.len as usize;
        Some(header)
    }

    /// Returns whether the stream stopped in the middle of a message.
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        self.header_have != 0 || self.skip != 0
    }
}

/// Splits a payload made of NUL-terminated strings; an unterminated tail is a string too.
pub fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let trimmed = payload.strip_suffix(b"\0").unwrap_or(payload);
    let count = if payload.is_empty() { 0 } else { usize::MAX };
    trimmed.split(|&byte| byte == 0).take(count)
}
