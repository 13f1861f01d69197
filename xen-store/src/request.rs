//! Each operation of the store, once: the bytes of its request and the meaning of its reply.
//!
//! A value of these types is one operation. [`Request::encode`] makes its message and
//! [`Request::decode`] reads the answer; neither does I/O. The methods of [`Store`](crate::Store),
//! [`Transaction`](crate::Transaction) and their tokio twins are made from this list, so no client
//! lacks one. A program with its own event loop passes the bytes to
//! [`Connection::submit`](crate::proto::Connection::submit):
//!
//! ```
//! use xen_store::proto::{Connection, Quirks};
//! use xen_store::request::{Read, Request};
//! use xen_store::wire::{MsgType, encode};
//!
//! let mut connection = Connection::new(Quirks::SOCKET);
//! let read = Read { path: "name" };
//! let id = connection.submit(0, read.encode()?)?;
//! let message = connection.poll_outgoing().unwrap(); // to be written to the daemon
//! connection.handle_input(&encode(MsgType::READ, 1, 0, &[b"guest"])?).unwrap();
//! let answer = connection.poll_reply(id).unwrap();
//! assert_eq!(read.decode(answer)?, b"guest");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::num::NonZeroU32;

use xen_sys::{DomId, Port};

use crate::error::{Error, Invalid, Result};
use crate::path::StorePath;
use crate::perms::{Perm, Permissions};
use crate::wire::{self, Header, MsgType, PAYLOAD_MAX, TooLong};

/// One operation of the store.
///
/// Sealed: these are the requests of the protocol. `&R` and `Box<dyn Request<Reply = T>>` are
/// requests too.
pub trait Request: sealed::Sealed {
    /// The value that a successful reply carries.
    type Reply;

    /// Encodes the request.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if an argument violates the protocol's rules.
    fn encode(&self) -> Result<Encoded>;

    /// Reads the answer: the payload of the reply, or the error in its place.
    ///
    /// # Errors
    ///
    /// The error of `answer`; [`Error::Malformed`] or [`Error::NotText`] if the payload is not of
    /// this request's kind.
    fn decode(&self, answer: Result<Vec<u8>>) -> Result<Self::Reply>;
}

mod sealed {
    pub trait Sealed {}
}

/// An encoded request. Its ids are filled in when it is submitted.
#[derive(Clone, Debug)]
pub struct Encoded {
    kind: MsgType,
    /// Room for the header, then the payload.
    bytes: Vec<u8>,
    /// Length of the payload in bytes. Beyond the protocol's limit no more of it is kept.
    len: usize,
}

/// Bytes of a usual payload.
const USUAL: usize = 64;

impl Encoded {
    pub(crate) fn new(kind: MsgType) -> Self {
        Self::with_room(kind, USUAL)
    }

    fn with_room(kind: MsgType, room: usize) -> Self {
        let mut bytes = Vec::with_capacity(Header::SIZE + room.min(PAYLOAD_MAX));
        bytes.resize(Header::SIZE, 0);
        Self {
            kind,
            bytes,
            len: 0,
        }
    }

    /// A request whose payload is the concatenation of `parts`.
    pub(crate) fn of_parts(kind: MsgType, parts: &[&[u8]]) -> Self {
        let room = parts
            .iter()
            .fold(0_usize, |sum, part| sum.saturating_add(part.len()));
        parts
            .iter()
            .fold(Self::with_room(kind, room), |this, part| this.bytes(part))
    }

    /// A request about one node.
    fn about(kind: MsgType, path: &str) -> Result<Self> {
        Self::with_room(kind, path.len() + 1).path(path)
    }

    /// A request whose fields are numbers.
    fn numbers(kind: MsgType, numbers: &[u64]) -> Self {
        numbers.iter().fold(Self::new(kind), |this, number| {
            this.bytes(number.to_string().as_bytes()).bytes(b"\0")
        })
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.len = self.len.saturating_add(bytes.len());
        if self.len <= PAYLOAD_MAX {
            self.bytes.extend_from_slice(bytes);
        }
        self
    }

    fn path(self, path: &str) -> Result<Self> {
        let path = StorePath::new(path)?.as_str();
        Ok(self.bytes(path.as_bytes()).bytes(b"\0"))
    }

    /// A text field: no NUL inside, because that would start another field.
    fn text(self, text: &str) -> Result<Self> {
        match text.bytes().position(|byte| byte == 0) {
            Some(at) => Err(Invalid::Nul { at }.into()),
            None => Ok(self.bytes(text.as_bytes()).bytes(b"\0")),
        }
    }

    /// For a request without a payload: returns one of the same type that has a payload and no
    /// effect.
    pub(crate) fn question_before(&self) -> Option<Self> {
        let fields: &[u8] = match self.kind {
            MsgType::GET_FEATURE => b"0\0",
            MsgType::GET_QUOTA => b"nodes\0",
            _ => return None,
        };
        (self.len == 0).then(|| Self::of_parts(self.kind, &[fields]))
    }

    /// The type of the request.
    #[must_use]
    pub fn kind(&self) -> MsgType {
        self.kind
    }

    /// The path of a request about a node.
    pub(crate) fn path_field(&self) -> Option<&str> {
        let field = self.payload().split(|byte| *byte == 0).next()?;
        std::str::from_utf8(field).ok()
    }

    /// The payload, whole if its length is within the protocol's limit.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.bytes[Header::SIZE..]
    }

    /// Length of the payload in bytes, also where it is too long to be sent.
    pub(crate) fn payload_len(&self) -> usize {
        self.len
    }

    /// Returns the message as sent on the wire.
    pub(crate) fn into_message(
        mut self,
        req_id: u32,
        tx_id: u32,
    ) -> std::result::Result<Vec<u8>, TooLong> {
        let too_long = TooLong { len: self.len };
        if self.len > PAYLOAD_MAX {
            return Err(too_long);
        }
        let header = Header {
            kind: self.kind,
            req_id,
            tx_id,
            len: u32::try_from(self.len).map_err(|_| too_long)?,
        };
        self.bytes[..Header::SIZE].copy_from_slice(&header.to_bytes());
        Ok(self.bytes)
    }
}

fn malformed(op: MsgType) -> Error {
    Error::Malformed { op }
}

/// A reply that should be text.
fn text(op: MsgType, payload: Vec<u8>) -> Result<String> {
    String::from_utf8(payload).map_err(|_| Error::NotText { op })
}

/// A reply that should be one NUL-terminated string.
fn string(op: MsgType, mut payload: Vec<u8>) -> Result<String> {
    if payload.pop() != Some(0) || payload.contains(&0) {
        return Err(malformed(op));
    }
    text(op, payload)
}

/// A reply that should be one decimal number without a sign.
fn decimal(op: MsgType, payload: &[u8]) -> Result<u32> {
    let digits = payload.strip_suffix(b"\0").unwrap_or_default();
    let digits = std::str::from_utf8(digits).map_err(|_| malformed(op))?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed(op));
    }
    digits.parse().map_err(|_| malformed(op))
}

/// Returns the names of a node's children in the reply to DIRECTORY.
pub(crate) fn names(payload: &[u8]) -> impl Iterator<Item = Result<&str>> {
    let name = |bytes| std::str::from_utf8(bytes).map_err(|_| malformed(MsgType::DIRECTORY));
    wire::strings(payload).map(name)
}

/// The id in the reply to TRANSACTION_START; 0 is not one.
pub(crate) fn transaction_id(payload: &[u8]) -> Option<u32> {
    let text = payload.strip_suffix(b"\0").unwrap_or(payload);
    std::str::from_utf8(text)
        .ok()?
        .parse()
        .ok()
        .filter(|&id| id != 0)
}

fn number(domain: DomId) -> u64 {
    domain.as_u16().into()
}

/// Defines requests: each its fields, its bytes and the value of its reply.
macro_rules! requests {
    ($(
        $(#[$meta:meta])*
        $visibility:vis $name:ident $(<$life:lifetime>)? { $($(#[$about:meta])* $field:ident: $ty:ty,)* }
        -> $reply:ty;
        encode($self:ident) $encode:block
        decode($answer:ident) $decode:expr;
    )*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        $visibility struct $name $(<$life>)? {
            $($(#[$about])* pub $field: $ty,)*
        }

        impl $(<$life>)? sealed::Sealed for $name $(<$life>)? {}

        impl $(<$life>)? Request for $name $(<$life>)? {
            type Reply = $reply;

            fn encode(&$self) -> Result<Encoded> $encode

            fn decode(&self, $answer: Result<Vec<u8>>) -> Result<$reply> {
                $decode
            }
        }
    )*};
}

requests! {
    /// Reads the value of a node.
    pub Read<'a> {
        /// The node.
        path: &'a str,
    } -> Vec<u8>;
    encode(self) { Encoded::about(MsgType::READ, self.path) }
    decode(answer) answer;

    /// Reads the value of a node as text.
    pub ReadStr<'a> {
        /// The node.
        path: &'a str,
    } -> String;
    encode(self) { Encoded::about(MsgType::READ, self.path) }
    decode(answer) text(MsgType::READ, answer?);

    /// Reads whether a node exists.
    pub Exists<'a> {
        /// The node.
        path: &'a str,
    } -> bool;
    encode(self) { Encoded::about(MsgType::READ, self.path) }
    decode(answer) Ok(optional(answer)?.is_some());

    /// Sets the value of a node, and creates it and its parents if they are missing.
    pub Write<'a> {
        /// The node.
        path: &'a str,
        /// Its new value: any bytes.
        value: &'a [u8],
    } -> ();
    encode(self) {
        let room = self.path.len() + 1 + self.value.len();
        let path = Encoded::with_room(MsgType::WRITE, room).path(self.path)?;
        Ok(path.bytes(self.value))
    }
    decode(answer) answer.map(drop);

    /// Creates a node with an empty value, and its parents.
    pub Mkdir<'a> {
        /// The node.
        path: &'a str,
    } -> ();
    encode(self) { Encoded::about(MsgType::MKDIR, self.path) }
    decode(answer) answer.map(drop);

    /// Removes a node and everything below it.
    pub Rm<'a> {
        /// The node.
        path: &'a str,
    } -> ();
    encode(self) { Encoded::about(MsgType::RM, self.path) }
    decode(answer) answer.map(drop);

    /// Reads the names of a node's children.
    ///
    /// A [`Store`](crate::Store) fetches a list that is too long for one reply in parts. A program
    /// that drives a [`Connection`](crate::proto::Connection) itself gets `E2BIG` for it.
    pub Directory<'a> {
        /// The node.
        path: &'a str,
    } -> Vec<String>;
    encode(self) { Encoded::about(MsgType::DIRECTORY, self.path) }
    decode(answer) names(&answer?).map(|name| name.map(str::to_owned)).collect();

    /// Reads the permissions of a node.
    pub GetPermissions<'a> {
        /// The node.
        path: &'a str,
    } -> Permissions;
    encode(self) { Encoded::about(MsgType::GET_PERMS, self.path) }
    decode(answer) {
        let entry = |field| std::str::from_utf8(field).ok()?.parse::<Perm>().ok();
        let entries: Option<Vec<Perm>> = wire::strings(&answer?).map(entry).collect();
        let perms = entries.and_then(|entries| Permissions::from_entries(entries).ok());
        perms.ok_or_else(|| malformed(MsgType::GET_PERMS))
    };

    /// Replaces the permissions of a node, `@introduceDomain` or `@releaseDomain`.
    pub SetPermissions<'a> {
        /// The node.
        path: &'a str,
        /// All entries.
        permissions: &'a Permissions,
    } -> ();
    encode(self) {
        let path = Encoded::about(MsgType::SET_PERMS, self.path)?;
        let entries = self.permissions.entries().iter();
        Ok(entries.fold(path, |all, entry| all.bytes(format!("{entry}\0").as_bytes())))
    }
    decode(answer) answer.map(drop);

    /// Reads the number of the domain that the connection is of, which the toolstack writes.
    pub OwnDomain {} -> DomId;
    encode(self) { Encoded::about(MsgType::READ, DOMID) }
    decode(answer) {
        let value = text(MsgType::READ, answer?)?;
        let domain = value.trim().parse().ok();
        domain.filter(|domain: &DomId| !domain.is_reserved()).ok_or(Error::Value {
            node: DOMID,
            expected: "domain's number",
        })
    };

    /// Reads the path to which relative paths of a domain are relative.
    pub GetDomainPath {
        /// The domain.
        domain: DomId,
    } -> String;
    encode(self) {
        Ok(Encoded::numbers(MsgType::GET_DOMAIN_PATH, &[number(self.domain)]))
    }
    decode(answer) string(MsgType::GET_DOMAIN_PATH, answer?);

    /// Reads whether the daemon serves a domain.
    pub IsIntroduced {
        /// The domain.
        domain: DomId,
    } -> bool;
    encode(self) {
        Ok(Encoded::numbers(MsgType::IS_DOMAIN_INTRODUCED, &[number(self.domain)]))
    }
    decode(answer) match answer?.as_slice() {
        b"T\0" => Ok(true),
        b"F\0" => Ok(false),
        _ => Err(malformed(MsgType::IS_DOMAIN_INTRODUCED)),
    };

    /// Makes the daemon serve a domain.
    pub Introduce {
        /// The domain.
        domain: DomId,
        /// The guest frame of its ring.
        gfn: u64,
        /// The domain's port of its event channel.
        port: Port,
    } -> ();
    encode(self) {
        let numbers = [number(self.domain), self.gfn, self.port.as_u32().into()];
        Ok(Encoded::numbers(MsgType::INTRODUCE, &numbers))
    }
    decode(answer) answer.map(drop);

    /// Makes the daemon stop serving a domain.
    pub Release {
        /// The domain.
        domain: DomId,
    } -> ();
    encode(self) { Ok(Encoded::numbers(MsgType::RELEASE, &[number(self.domain)])) }
    decode(answer) answer.map(drop);

    /// Makes the daemon expect a domain to shut down again.
    pub Resume {
        /// The domain.
        domain: DomId,
    } -> ();
    encode(self) { Ok(Encoded::numbers(MsgType::RESUME, &[number(self.domain)])) }
    decode(answer) answer.map(drop);

    /// Lets a domain act with the rights of another.
    pub SetTarget {
        /// The domain that gets the rights.
        domain: DomId,
        /// The domain whose rights it gets.
        target: DomId,
    } -> ();
    encode(self) {
        let numbers = [number(self.domain), number(self.target)];
        Ok(Encoded::numbers(MsgType::SET_TARGET, &numbers))
    }
    decode(answer) answer.map(drop);

    /// Drops all watches and transactions of the domain's connection.
    pub ResetWatches {} -> ();
    encode(self) { Ok(Encoded::new(MsgType::RESET_WATCHES).bytes(b"\0")) }
    decode(answer) answer.map(drop);

    /// Sends a command to the daemon itself.
    pub Control<'a> {
        /// Its name.
        command: &'a str,
        /// Its arguments.
        arguments: &'a [&'a str],
    } -> String;
    encode(self) {
        let command = Encoded::new(MsgType::CONTROL).text(self.command)?;
        self.arguments.iter().try_fold(command, |all, argument| all.text(argument))
    }
    decode(answer) {
        let mut payload = answer?;
        if payload.last() == Some(&0) {
            payload.pop();
        }
        text(MsgType::CONTROL, payload)
    };

    /// Reads the protocol features that the daemon offers.
    ///
    /// Without a domain the request has no payload. oxenstored 4.17 leaves such a message
    /// unanswered until it receives another one, so a [`Store`](crate::Store) first requests the
    /// features of domain 0.
    pub GetFeatures {
        /// Those offered to this domain; `None` stands for the caller.
        domain: Option<DomId>,
    } -> u32;
    encode(self) {
        Ok(Encoded::numbers(MsgType::GET_FEATURE, self.domain.map(number).as_slice()))
    }
    decode(answer) decimal(MsgType::GET_FEATURE, &answer?);

    /// Limits the features offered to a domain.
    pub SetFeatures {
        /// The domain.
        domain: DomId,
        /// The features, as bits.
        features: u32,
    } -> ();
    encode(self) {
        let numbers = [number(self.domain), self.features.into()];
        Ok(Encoded::numbers(MsgType::SET_FEATURE, &numbers))
    }
    decode(answer) answer.map(drop);

    /// Reads the names of the daemon's quotas. The request has no payload: see [`GetFeatures`].
    pub GetQuotaNames {} -> Vec<String>;
    encode(self) { Ok(Encoded::new(MsgType::GET_QUOTA)) }
    decode(answer) {
        let names = string(MsgType::GET_QUOTA, answer?)?;
        Ok(names.split_ascii_whitespace().map(str::to_owned).collect())
    };

    /// Reads a quota; `None` is no limit.
    pub GetQuota<'a> {
        /// The domain; `None` for the default of new domains.
        domain: Option<DomId>,
        /// Its name.
        name: &'a str,
    } -> Option<NonZeroU32>;
    encode(self) {
        let domain = self.domain.map(number);
        Encoded::numbers(MsgType::GET_QUOTA, domain.as_slice()).text(self.name)
    }
    // On the wire 0 is no limit.
    decode(answer) decimal(MsgType::GET_QUOTA, &answer?).map(NonZeroU32::new);

    /// Changes a quota.
    pub SetQuota<'a> {
        /// The domain; `None` for the default of new domains.
        domain: Option<DomId>,
        /// Its name.
        name: &'a str,
        /// Its new value; `None` is no limit.
        limit: Option<NonZeroU32>,
    } -> ();
    encode(self) {
        let domain = self.domain.map(number);
        let quota = Encoded::numbers(MsgType::SET_QUOTA, domain.as_slice()).text(self.name)?;
        quota.text(&self.limit.map_or(0, NonZeroU32::get).to_string())
    }
    decode(answer) answer.map(drop);

    /// Starts a transaction. The client that gets the id must end it.
    pub(crate) StartTransaction {} -> u32;
    encode(self) { Ok(Encoded::new(MsgType::TRANSACTION_START).bytes(b"\0")) }
    decode(answer) {
        transaction_id(&answer?).ok_or_else(|| malformed(MsgType::TRANSACTION_START))
    };

    /// Commits or aborts the transaction that it is sent in; `false` after a conflict.
    pub(crate) EndTransaction {
        commit: bool,
    } -> bool;
    encode(self) {
        let field: &[u8] = if self.commit { b"T\0" } else { b"F\0" };
        Ok(Encoded::new(MsgType::TRANSACTION_END).bytes(field))
    }
    decode(answer) match answer {
        Ok(_) => Ok(true),
        Err(error) if error.is_again() => Ok(false),
        Err(error) => Err(error),
    };

    /// Sets a watch.
    pub(crate) SetWatch<'a> {
        path: &'a str,
        token: &'a str,
        depth: Option<u32>,
    } -> ();
    encode(self) {
        let watch = Encoded::about(MsgType::WATCH, self.path)?.text(self.token)?;
        match self.depth {
            Some(depth) => watch.text(&depth.to_string()),
            None => Ok(watch),
        }
    }
    decode(answer) answer.map(drop);

    /// Withdraws a watch.
    pub(crate) Unwatch<'a> {
        path: &'a str,
        token: &'a str,
    } -> ();
    encode(self) { Encoded::about(MsgType::UNWATCH, self.path)?.text(self.token) }
    decode(answer) answer.map(drop);
}

/// The node that the toolstack writes for each domain, in its home.
const DOMID: &str = "domid";

/// A request about a node that may be missing: then its reply is `None`.
#[derive(Clone, Copy, Debug)]
pub struct Optional<R>(pub R);

impl<R: Request> sealed::Sealed for Optional<R> {}

impl<R: Request> Request for Optional<R> {
    type Reply = Option<R::Reply>;

    fn encode(&self) -> Result<Encoded> {
        self.0.encode()
    }

    fn decode(&self, answer: Result<Vec<u8>>) -> Result<Self::Reply> {
        optional(answer)?
            .map(|payload| self.0.decode(Ok(payload)))
            .transpose()
    }
}

/// Converts the error of a missing node to `None`.
fn optional<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The daemon's feature of watches with a depth (`XENSTORE_SERVER_FEATURE_WATCHDEPTH`).
const WATCH_DEPTH: u32 = 4;

/// Checks that a daemon with this answer to a request for its features supports the depth of a
/// watch.
///
/// # Errors
///
/// [`Error::NotOffered`] if it does not; otherwise the error of `features`.
pub(crate) fn takes_depth(features: Result<u32>) -> Result<()> {
    let op = MsgType::WATCH;
    match features {
        Ok(features) if features & WATCH_DEPTH != 0 => Ok(()),
        Ok(_) | Err(Error::NotOffered { .. }) => Err(Error::NotOffered { op }),
        Err(error) => Err(error),
    }
}

/// Implements the request for a pointer to one.
macro_rules! pointers {
    ($($pointer:ty),*) => {$(
        impl<R: Request + ?Sized> sealed::Sealed for $pointer {}

        impl<R: Request + ?Sized> Request for $pointer {
            type Reply = R::Reply;

            fn encode(&self) -> Result<Encoded> {
                (**self).encode()
            }

            fn decode(&self, answer: Result<Vec<u8>>) -> Result<R::Reply> {
                (**self).decode(answer)
            }
        }
    )*};
}

pointers!(&R, Box<R>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_a_reply_is_digits_and_one_nul() {
        let kind = MsgType::GET_QUOTA;
        assert_eq!(decimal(kind, b"0\0").unwrap(), 0);
        assert_eq!(decimal(kind, b"4294967295\0").unwrap(), u32::MAX);
        for payload in [
            "",
            "\0",
            "7",
            "+7\0",
            "-7\0",
            "7 \0",
            "7\0\0",
            "4294967296\0",
            "é\0",
        ] {
            assert!(decimal(kind, payload.as_bytes()).is_err(), "{payload:?}");
        }
    }

    /// The length is that of the caller's value, but its bytes are not copied.
    #[test]
    fn a_payload_beyond_the_limit_is_counted_and_not_kept() {
        let value = vec![0; 10 * PAYLOAD_MAX];
        let (path, value) = ("/a", value.as_slice());
        let encoded = Write { path, value }.encode().unwrap();
        assert_eq!(encoded.payload_len(), 3 + 10 * PAYLOAD_MAX);
        assert!(encoded.bytes.capacity() <= Header::SIZE + PAYLOAD_MAX);
        assert!(encoded.into_message(1, 0).is_err());
    }
}
