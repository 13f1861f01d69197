//! One client connection as a state machine: bytes and requests in, bytes and answers out.
//!
//! No descriptor, no clock, no lock: the shells ([`Store`](crate::Store), and `AsyncStore` with
//! feature `tokio`) bring those. Four kinds of method:
//!
//! * *commands* by the user: [`Connection::request`], [`Connection::cancel`],
//!   [`Connection::add_watch`], [`Connection::remove_watch`];
//! * *outputs* to be written: [`Connection::take_outgoing`] until it is empty, handing back with
//!   [`Connection::put_back`] what a short write left;
//! * *inputs*: [`Connection::receive`] with whatever was read, [`Connection::fail`] when the
//!   transport ended, [`Connection::reject`] when it refused one message;
//! * *answers*: [`Connection::poll_reply`], [`Connection::poll_event`].
//!
//! # Guarantees
//!
//! * Every request gets exactly one answer: the reply, or the reason why none will come.
//! * A reply is matched by its id and must have the type of the request; anything else is a
//!   [`Violation`] and ends the connection.
//! * Watch events never wait for their reader and never hold up a reply; see
//!   [`WatchEvent`] for how they are merged.
//! * Memory is bounded by what the user asked for: the requests and watches it holds, not by what
//!   the daemon sends.
//! * A transaction or watch that was granted after its requester gave up is given back.
//! * Where the transport wants it ([`Quirks::one_at_a_time`]), nothing is handed out to be written
//!   while a request is unanswered, whether anyone waits for the answer or not.

use std::collections::{HashMap, VecDeque};

use crate::error::{Error, Invalid, Violation, XsError};
use crate::events::{EventQueue, WatchEvent};
use crate::wire::{self, Decoder, MsgType};
mod input;
mod parts;

pub(crate) use input::parse_transaction;
pub use parts::{Failure, Outgoing, Quirks, Ready, RequestId, WatchId};

/// Unanswered requests past their deadline that are tolerated before the daemon counts as dead.
pub const MAX_EXPIRED: usize = 1024;

#[derive(Debug)]
enum Outcome {
    Reply(Vec<u8>),
    Refused(XsError),
    /// The transport refused the message with an errno that is not the daemon's.
    Rejected(i32),
}

#[derive(Debug)]
enum Slot {
    Waiting,
    Done(Outcome),
    /// Nobody waits any more. `watch` is to be withdrawn if it is granted after all.
    Abandoned {
        expired: bool,
        watch: Option<(WatchId, Box<str>)>,
    },
}

#[derive(Debug)]
struct Pending {
    kind: MsgType,
    slot: Slot,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Connection {
    quirks: Quirks,
    next_id: u32,
    next_watch: u64,
    pending: HashMap<u32, Pending>,
    /// WATCH and UNWATCH ids in the order sent, kept only for transports that answer with id 0.
    watch_order: VecDeque<u32>,
    expired: usize,
    outgoing: VecDeque<Outgoing>,
    /// The request whose reply the next message has to wait for, if they go one at a time.
    in_flight: Option<u32>,
    decoder: Decoder,
    watches: HashMap<u64, EventQueue>,
    failure: Option<Failure>,
}

impl Connection {
    /// A fresh connection.
    #[must_use]
    pub fn new(quirks: Quirks) -> Self {
        Self {
            quirks,
            next_id: 1,
            next_watch: 1,
            pending: HashMap::new(),
            watch_order: VecDeque::new(),
            expired: 0,
            outgoing: VecDeque::new(),
            in_flight: None,
            decoder: Decoder::new(),
            watches: HashMap::new(),
            failure: None,
        }
    }

    /// Queues a request whose payload is the concatenation of `parts`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if it is too long for the transport; the reason if the connection is
    /// finished.
    pub fn request(
        &mut self,
        kind: MsgType,
        tx_id: u32,
        parts: &[&[u8]],
    ) -> Result<RequestId, Error> {
        if let Some(failure) = self.failure {
            return Err(failure.into());
        }
        let len = parts
            .iter()
            .fold(0_usize, |sum, part| sum.saturating_add(part.len()));
        let max = self.quirks.max_payload;
        let too_long = || Invalid::PayloadTooLong { len, max };
        if len > max {
            return Err(too_long().into());
        }
        let id = self.fresh_id();
        let bytes = wire::encode(kind, id, tx_id, parts).map_err(|_| too_long())?;
        self.pending.insert(
            id,
            Pending {
                kind,
                slot: Slot::Waiting,
            },
        );
        self.outgoing.push_back(Outgoing {
            id: RequestId(id),
            bytes,
            sent: 0,
        });
        if self.quirks.anonymous_watch_replies && is_watch_op(kind) {
            self.watch_order.push_back(id);
        }
        Ok(RequestId(id))
    }

    /// The next message to write, to be handed back with [`Connection::put_back`] if it could
    /// not be written whole before anything else is taken. After every [`Connection::receive`]
    /// there may be one again.
    #[must_use]
    pub fn take_outgoing(&mut self) -> Option<Outgoing> {
        if self.in_flight.is_some() {
            return None;
        }
        let message = self.outgoing.pop_front()?;
        if self.quirks.one_at_a_time {
            self.in_flight = Some(message.id.0);
        }
        Some(message)
    }

    /// Returns a message that is not out yet to the head of the queue.
    pub fn put_back(&mut self, message: Outgoing) {
        self.answered(message.id.0);
        if self.failure.is_none() {
            self.outgoing.push_front(message);
        }
    }

    /// Whether [`Connection::take_outgoing`] has something.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        self.in_flight.is_none() && !self.outgoing.is_empty()
    }

    /// Whether (some of) this request is still in the queue.
    #[must_use]
    pub fn is_unsent(&self, id: RequestId) -> bool {
        self.outgoing.iter().any(|message| message.id == id)
    }

    /// The transport refused a whole message with `errno` and stays usable.
    ///
    /// The kernel's xenbus device reports a refused watch this way.
    pub fn reject(&mut self, message: &Outgoing, errno: i32, ready: &mut dyn FnMut(Ready)) {
        let id = message.id.0;
        let outcome = XsError::from_errno(errno).map_or(Outcome::Rejected(errno), Outcome::Refused);
        self.answered(id);
        self.watch_order.retain(|&other| other != id);
        if let Some(pending) = self.pending.remove(&id) {
            self.settle(id, pending, outcome, ready);
        }
    }

    /// Takes bytes that were read.
    ///
    /// `ready` hears of each reply somebody waits for and of each watch that has its first event.
    ///
    /// # Errors
    ///
    /// The reason why the connection is now finished.
    pub fn receive(
        &mut self,
        mut bytes: &[u8],
        ready: &mut dyn FnMut(Ready),
    ) -> Result<(), Failure> {
        while self.failure.is_none() {
            let violation = match self.decoder.next(&mut bytes) {
                Ok(None) => return Ok(()),
                Ok(Some(message)) => match self.accept(message, ready) {
                    Ok(()) => continue,
                    Err(violation) => violation,
                },
                Err(wire::TooLong { len }) => Violation::TooLong { len },
            };
            self.fail(Failure::Protocol(violation));
        }
        self.failure.map_or(Ok(()), Err)
    }

    /// Ends the connection; the first reason stays. All waiting requests have their answer now.
    pub fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
        self.outgoing.clear();
        self.in_flight = None;
        self.watch_order.clear();
        self.pending
            .retain(|_, pending| !matches!(pending.slot, Slot::Abandoned { .. }));
    }

    /// Why the connection is finished, if it is.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// The answer to `id`, once: the payload of the reply, or why there is none.
    #[must_use]
    pub fn poll_reply(&mut self, id: RequestId) -> Option<Result<Vec<u8>, Error>> {
        let pending = self.pending.get(&id.0)?;
        if matches!(pending.slot, Slot::Waiting) && self.failure.is_none() {
            return None;
        }
        let Pending { kind: op, slot } = self.pending.remove(&id.0)?;
        Some(match (slot, self.failure) {
            (Slot::Done(Outcome::Reply(payload)), _) => Ok(payload),
            (Slot::Done(Outcome::Refused(code)), _) => Err(Error::Daemon { op, code }),
            (Slot::Done(Outcome::Rejected(errno)), _) => {
                Err(Failure::Os("write to the xenbus device", errno).into())
            }
            (_, failure) => Err(failure.unwrap_or(Failure::Closed).into()),
        })
    }

    /// The requester no longer waits for `id`, because its time is over (`expired`) or because it
    /// never meant to. If the daemon grants a watch or a transaction to it all the same, that is
    /// given back; `watch` says which watch this request would set. It may be called after the
    /// answer was taken, and does nothing then.
    ///
    /// Returns whether nothing of the request was ever sent.
    pub fn cancel(&mut self, id: RequestId, expired: bool, watch: Option<WatchId>) -> bool {
        let Some(pending) = self.pending.get_mut(&id.0) else {
            return false;
        };
        let watch = watch.and_then(|watch| {
            let path = self.watches.get(&watch.0)?.watched();
            Some((watch, path.into()))
        });
        if self.failure.is_some() || !matches!(pending.slot, Slot::Waiting) {
            let Some(Pending { kind, slot }) = self.pending.remove(&id.0) else {
                return false;
            };
            if let Slot::Done(Outcome::Reply(payload)) = slot {
                self.give_back(kind, watch, &payload);
            }
            return false;
        }
        if let Some(at) = self.outgoing.iter().position(|m| m.id == id && m.sent == 0) {
            // Detached requests (an abort, an unwatch) stay: they are what gives things back.
            if expired {
                self.outgoing.remove(at);
                self.watch_order.retain(|&other| other != id.0);
                self.pending.remove(&id.0);
                return true;
            }
        }
        pending.slot = Slot::Abandoned { expired, watch };
        self.expired += usize::from(expired);
        if self.expired > MAX_EXPIRED {
            let expired = self.expired;
            self.fail(Failure::Protocol(Violation::Unresponsive { expired }));
        }
        false
    }

    /// Queues a request whose answer nobody will ask for.
    ///
    /// # Errors
    ///
    /// As [`Connection::request`].
    pub fn send_detached(
        &mut self,
        kind: MsgType,
        tx_id: u32,
        parts: &[&[u8]],
    ) -> Result<(), Error> {
        let id = self.request(kind, tx_id, parts)?;
        self.cancel(id, false, None);
        Ok(())
    }

    /// Makes room for the events of a watch on `path`. To be called *before* WATCH is requested
    /// with [`Connection::token`], because its first event may come before its reply.
    pub fn add_watch(&mut self, path: &str) -> WatchId {
        let id = self.next_watch;
        self.next_watch += 1;
        self.watches.insert(id, EventQueue::new(path));
        WatchId(id)
    }

    /// The token of a watch, as sent.
    #[must_use]
    pub fn token(watch: WatchId) -> String {
        format!("{:x}", watch.0)
    }

    /// Forgets a watch; events for it that are still on their way are ignored.
    pub fn remove_watch(&mut self, watch: WatchId) {
        self.watches.remove(&watch.0);
    }

    /// The next event of `watch`. Events that came before the connection ended are still given
    /// out, then the reason for the end.
    #[must_use]
    pub fn poll_event(&mut self, watch: WatchId) -> Option<Result<WatchEvent, Error>> {
        match self.watches.get_mut(&watch.0).and_then(EventQueue::pop) {
            Some(event) => Some(Ok(event)),
            None => self.failure.map(|failure| Err(failure.into())),
        }
    }

    /// Whether [`Connection::poll_event`] has something.
    #[must_use]
    pub fn has_event(&self, watch: WatchId) -> bool {
        self.failure.is_some()
            || self
                .watches
                .get(&watch.0)
                .is_some_and(|queue| !queue.is_empty())
    }

    /// The transport is done with message `id`.
    fn answered(&mut self, id: u32) {
        if self.in_flight == Some(id) {
            self.in_flight = None;
        }
    }

    fn fresh_id(&mut self) -> u32 {
        loop {
            let id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1).max(1);
            if !self.pending.contains_key(&id) {
                return id;
            }
        }
    }
}

fn is_watch_op(kind: MsgType) -> bool {
    kind == MsgType::WATCH || kind == MsgType::UNWATCH
}
