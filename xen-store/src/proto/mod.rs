//! One client connection as a state machine: bytes and requests in, bytes and answers out.
//!
//! No descriptor, no clock, no lock: the drivers ([`Store`](crate::Store), and `tokio::Store` with
//! feature `tokio`) provide those. Five kinds of method:
//!
//! * *commands* by the user: [`Connection::submit`], [`Connection::request`],
//!   [`Connection::cancel`], [`Connection::add_watch`], [`Connection::remove_watch`];
//! * *outputs* to be written: [`Connection::poll_outgoing`] until it is empty, with
//!   [`Connection::put_back`] for the rest of a short write;
//! * *inputs*: [`Connection::handle_input`] with whatever was read, [`Connection::handle_failure`]
//!   when the transport ended, [`Connection::handle_rejection`] when it refused one message;
//! * *answers*: [`Connection::poll_reply`], [`Connection::poll_event`];
//! * *notices*: [`Connection::poll_ready`], which names each answer that a caller may be waiting
//!   for. After any other method there may be some; the end of the connection is one of them.
//!
//! # Guarantees
//!
//! * Every request that is not cancelled gets exactly one answer: the reply, or the reason why
//!   there is none.
//! * A reply is matched by its id and must have the type of the request; anything else is a
//!   [`ProtocolError`](crate::ProtocolError) and ends the connection.
//! * A reply longer than the protocol allows ends its request with [`Error::TooLong`]; its bytes
//!   are skipped and not kept. Only a length above [`MAX_SKIPPED`] ends the connection.
//! * Watch events never wait for their reader and never hold up a reply; see [`WatchEvent`] for how
//!   they are merged.
//! * Memory is bounded by what the user holds at the same time (requests, watches, transactions)
//!   and by [`MAX_UNANSWERED`], not by what the daemon sends or leaves unanswered.
//! * A transaction or watch that was granted after its requester cancelled is given back.
//! * Where the transport requires it ([`Quirks::one_at_a_time`]), nothing is returned for writing
//!   while a request is unanswered, whether or not a caller waits for the answer.
//!
//! # A connection that is made again
//!
//! After [`Connection::survive`] the end of the transport is a *loss* and does not finish the
//! connection. [`Ready::Lost`] is announced, nothing is returned for writing, and requests may be
//! made. With the next transport, [`Connection::handle_reconnected`] sets the granted watches
//! again, before anything else is sent, and gives each an event with
//! [`WatchEvent::reconnected`](crate::WatchEvent::reconnected). Requests that were pending at the
//! loss end with [`Error::Lost`] or are sent again: see [`Repeat`]. Transactions end with their
//! connection; the numbers of later ones may be the same.
//!
//! # Requests that were given up
//!
//! A request may be sent and then cancelled (its deadline passed, its future was dropped), or sent
//! without a waiter (an abort, an unwatch). It is kept until its answer was read. Giving up is
//! healthy use, however often it happens, and is no evidence about the daemon. Two bounds keep a
//! daemon that does not answer from filling the memory, and neither uses a clock:
//!
//! * *Back-pressure*: while [`MAX_UNANSWERED`] such requests are unanswered, nothing more is
//!   returned for writing. New requests wait in the queue, are removed whole if they are cancelled
//!   there, and are sent as answers are read.
//! * *Overtaking*: xenstored and oxenstored answer one connection in order. When more than
//!   [`MAX_OVERTAKEN`] given-up requests are still unanswered although requests made after them
//!   were answered, these answers will never arrive:
//!   [`ProtocolError::Unresponsive`](crate::ProtocolError::Unresponsive) ends the connection.

use std::collections::{BTreeSet, VecDeque};

use rustc_hash::FxHashMap;

use crate::error::{Error, Invalid, XsError};
use crate::events::{EventQueue, WatchEvent};
use crate::reconnect::Repeat;
use crate::request::Encoded;
use crate::wire::{self, Decoder, MsgType};
use sets::WatchSet;
mod input;
mod loss;
mod sets;
mod types;

pub(crate) use types::Tx;
pub use types::{Failure, Outgoing, Quirks, Ready, RequestId, WatchId};

/// Sending stops at this many requests that were given up after they were sent and are unanswered.
pub const MAX_UNANSWERED: usize = 1024;
/// The number of given-up requests that may be unanswered although later ones were answered.
pub const MAX_OVERTAKEN: usize = 512;
/// Payload bytes of the longest message that is skipped and does not end the connection.
///
/// oxenstored answers DIRECTORY with all names in one message, regardless of the protocol's limit.
/// A list of this length names some hundred thousand nodes.
pub const MAX_SKIPPED: usize = 16 << 20;

#[derive(Debug)]
enum Outcome {
    Reply(Vec<u8>),
    Refused(XsError),
    /// A reply of this many bytes, more than the protocol allows.
    TooLong(usize),
    /// The transport refused the message with an errno that is not the daemon's.
    Rejected(i32),
    /// The connection was lost before the answer arrived.
    Lost {
        may_be_done: bool,
    },
}

/// An answer, and the connection that it is from.
pub(crate) type Answer = (Result<Vec<u8>, Error>, u64);

#[derive(Debug)]
enum Slot {
    Waiting,
    Done(Outcome),
    /// No caller waits any more. `watch` must be withdrawn if it is granted after all.
    Abandoned {
        watch: Option<(WatchId, Box<str>)>,
    },
    /// It sets a granted watch again, on a new connection.
    Renewal(WatchId),
}

#[derive(Debug)]
struct Pending {
    kind: MsgType,
    /// Its place in the order of requests; ids may be used again, these are not.
    seq: u64,
    slot: Slot,
    /// The transaction that it is in; 0 is none.
    tx_id: u32,
    /// The connection that answered it.
    epoch: u64,
    /// The watch that it sets.
    watch: Option<WatchId>,
    /// The message, if it may be sent again after a loss.
    copy: Option<Box<[u8]>>,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Connection {
    quirks: Quirks,
    next_id: u32,
    next_watch: u64,
    // This client chooses the keys of both maps, so no peer can make them collide.
    pending: FxHashMap<u32, Pending>,
    /// WATCH and UNWATCH ids in the order sent, kept only for transports that answer with id 0.
    watch_order: VecDeque<u32>,
    next_seq: u64,
    /// The `seq` of each request that was given up, may have been sent and is not answered.
    given_up: BTreeSet<u64>,
    /// The largest `seq` that was answered.
    newest_answer: u64,
    outgoing: VecDeque<Outgoing>,
    /// The request whose reply the next message has to wait for, if they go one at a time.
    in_flight: Option<u32>,
    decoder: Decoder,
    watches: FxHashMap<u64, EventQueue>,
    /// Their numbers are of the same series as those of the watches.
    sets: FxHashMap<u64, WatchSet>,
    failure: Option<Failure>,
    /// The end of the transport is a loss, after which these are sent again.
    repeat: Option<Repeat>,
    /// Why the connection is lost, while it is.
    loss: Option<Failure>,
    /// Losses so far.
    epoch: u64,
    ready: VecDeque<Ready>,
}

impl Connection {
    /// Creates a fresh connection.
    #[must_use]
    pub fn new(quirks: Quirks) -> Self {
        Self {
            quirks,
            next_id: 1,
            next_watch: 1,
            pending: FxHashMap::default(),
            watch_order: VecDeque::new(),
            next_seq: 1,
            given_up: BTreeSet::new(),
            newest_answer: 0,
            outgoing: VecDeque::new(),
            in_flight: None,
            decoder: Decoder::new(),
            watches: FxHashMap::default(),
            sets: FxHashMap::default(),
            failure: None,
            repeat: None,
            loss: None,
            epoch: 0,
            ready: VecDeque::new(),
        }
    }

    /// Makes the end of the transport a loss, which does not finish the connection. `repeat` sets
    /// which requests are sent again.
    pub fn survive(&mut self, repeat: Repeat) {
        self.repeat = Some(repeat);
    }

    /// Returns why the connection is lost, from its loss to [`Connection::handle_reconnected`].
    #[must_use]
    pub fn loss(&self) -> Option<Failure> {
        self.loss
    }

    /// Returns the number of losses so far: it names the connection that messages belong to.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the transport's quirks.
    pub(crate) fn quirks(&self) -> Quirks {
        self.quirks
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
        self.submit(tx_id, Encoded::of_parts(kind, parts))
    }

    /// Queues a request of [`request`](crate::request).
    ///
    /// # Errors
    ///
    /// As [`Connection::request`].
    pub fn submit(&mut self, tx_id: u32, message: Encoded) -> Result<RequestId, Error> {
        let epoch = self.epoch;
        self.submit_in(Tx { id: tx_id, epoch }, message)
    }

    /// As [`Connection::submit`], in a transaction that may have ended with its connection.
    pub(crate) fn submit_in(&mut self, tx: Tx, message: Encoded) -> Result<RequestId, Error> {
        if let Some(failure) = self.failure {
            return Err(failure.into());
        }
        let (kind, tx_id) = (message.kind(), tx.id);
        if tx_id != 0 && tx.epoch != self.epoch {
            return Err(Error::Lost {
                op: kind,
                transaction: Some(tx_id),
                may_be_done: false,
            });
        }
        let (len, max) = (message.payload_len(), self.quirks.max_payload);
        let too_long = || Invalid::PayloadTooLong { len, max };
        if len > max {
            return Err(too_long().into());
        }
        let watch = self.note_registration(&message);
        let id = self.fresh_id();
        let bytes = message.into_message(id, tx_id).map_err(|_| too_long())?;
        let repeats = tx_id == 0 && self.repeat.is_some_and(|repeat| repeat.covers(kind));
        let seq = self.next_seq;
        self.next_seq += 1;
        self.pending.insert(
            id,
            Pending {
                kind,
                seq,
                slot: Slot::Waiting,
                tx_id,
                epoch: self.epoch,
                watch,
                copy: repeats.then(|| bytes.as_slice().into()),
            },
        );
        self.outgoing.push_back(Outgoing {
            id: RequestId(id),
            bytes,
            sent: 0,
            epoch: self.epoch,
        });
        if self.quirks.anonymous_watch_replies && is_watch_op(kind) {
            self.watch_order.push_back(id);
        }
        Ok(RequestId(id))
    }

    /// Returns the next message to write. If it could not be written whole, give it back with
    /// [`Connection::put_back`] before taking anything else. After every
    /// [`Connection::handle_input`] there may be one again.
    #[must_use]
    pub fn poll_outgoing(&mut self) -> Option<Outgoing> {
        if !self.has_outgoing() {
            return None;
        }
        let message = self.outgoing.pop_front()?;
        if self.quirks.one_at_a_time {
            self.in_flight = Some(message.id.0);
        }
        if let Some(seq) = self.given_up_seq(message.id) {
            self.given_up.insert(seq);
        }
        Some(message)
    }

    /// Returns a message that is not written completely to the head of the queue.
    pub fn put_back(&mut self, message: Outgoing) {
        // A message of an earlier connection was handled at the loss.
        if self.failure.is_some() || message.epoch != self.epoch {
            return;
        }
        self.answered(message.id.0);
        if message.sent == 0 {
            if let Some(seq) = self.given_up_seq(message.id) {
                self.given_up.remove(&seq);
            }
        }
        self.outgoing.push_front(message);
    }

    /// Returns whether [`Connection::poll_outgoing`] has something.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        let open = |first: &Outgoing| {
            // A message that was begun is finished: the daemon cannot answer in the middle of a
            // message.
            first.sent > 0 || self.given_up.len() < MAX_UNANSWERED
        };
        self.loss.is_none() && self.in_flight.is_none() && self.outgoing.front().is_some_and(open)
    }

    /// Returns the `seq` of a request that no caller waits for.
    fn given_up_seq(&self, id: RequestId) -> Option<u64> {
        let pending = self.pending.get(&id.0)?;
        matches!(pending.slot, Slot::Abandoned { .. }).then_some(pending.seq)
    }

    /// Returns whether (some of) this request is still in the queue.
    #[must_use]
    pub fn is_unsent(&self, id: RequestId) -> bool {
        self.outgoing.iter().any(|message| message.id == id)
    }

    /// Records that the transport refused a whole message with `errno` and stays usable.
    ///
    /// The kernel's xenbus device reports a refused watch this way.
    pub fn handle_rejection(&mut self, message: &Outgoing, errno: i32) {
        if message.epoch != self.epoch {
            return;
        }
        let id = message.id.0;
        let outcome = XsError::from_errno(errno).map_or(Outcome::Rejected(errno), Outcome::Refused);
        self.finish(id, outcome);
    }

    /// Takes bytes that were read.
    ///
    /// # Errors
    ///
    /// The reason why the connection is now finished.
    pub fn handle_input(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while self.failure.is_none() && self.loss.is_none() {
            let accepted = match self.decoder.next(&mut bytes) {
                Ok(None) => return Ok(()),
                Ok(Some(message)) => self.accept(message),
                Err(wire::TooLong { len }) => self.accept_too_long(len),
            };
            if let Err(violation) = accepted {
                self.handle_failure(Failure::Protocol(violation));
            }
        }
        self.failure.map_or(Ok(()), Err)
    }

    /// Returns whether a part of a message has arrived, and the rest has not.
    pub(crate) fn is_mid_message(&self) -> bool {
        self.failure.is_none() && self.loss.is_none() && self.decoder.is_mid_message()
    }

    /// Ends the connection for the transport's reason. The connection is lost if it survives that
    /// ([`Connection::survive`]), otherwise finished as by [`Connection::give_up`].
    pub fn handle_failure(&mut self, failure: Failure) {
        match self.repeat {
            Some(repeat) if failure.is_loss() => self.lose(failure, repeat),
            _ => self.give_up(failure),
        }
    }

    /// Finishes the connection; the first reason stays. All waiting requests have their answer
    /// now, and [`Ready::Ended`] is announced.
    pub fn give_up(&mut self, failure: Failure) {
        if self.failure.is_some() {
            return;
        }
        self.failure = Some(failure);
        self.loss = None;
        self.outgoing.clear();
        self.in_flight = None;
        self.watch_order.clear();
        self.given_up.clear();
        self.pending.retain(|_, pending| {
            !matches!(pending.slot, Slot::Abandoned { .. } | Slot::Renewal(_))
        });
        self.ready.push_back(Ready::Ended);
    }

    /// Returns what has become ready since the last call, in order.
    ///
    /// Each reply with a waiter is named once, each watch when it has its first event, and the end
    /// of the connection once.
    #[must_use]
    pub fn poll_ready(&mut self) -> Option<Ready> {
        let ready = self.ready.pop_front()?;
        if let Ready::Event(watch) = ready {
            if let Some(queue) = self.watches.get_mut(&watch.0) {
                queue.announced = false;
            } else if let Some(set) = self.sets.get_mut(&watch.0) {
                set.announced = false;
            }
        }
        Some(ready)
    }

    /// Returns why the connection is finished, if it is.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.failure
    }

    /// Returns the answer to `id`, once: the payload of the reply, or why there is none. A
    /// cancelled request has no answer.
    #[must_use]
    pub fn poll_reply(&mut self, id: RequestId) -> Option<Result<Vec<u8>, Error>> {
        self.take_reply(id).map(|(answer, _)| answer)
    }

    /// As [`Connection::poll_reply`], with the connection that the answer is from.
    pub(crate) fn take_reply(&mut self, id: RequestId) -> Option<Answer> {
        match self.pending.get(&id.0)?.slot {
            Slot::Waiting if self.failure.is_none() => return None,
            // The request is kept until the daemon has answered it.
            Slot::Abandoned { .. } | Slot::Renewal(_) => return None,
            Slot::Waiting | Slot::Done(_) => {}
        }
        let Pending {
            kind: op,
            slot,
            tx_id,
            epoch,
            ..
        } = self.pending.remove(&id.0)?;
        let answer = match (slot, self.failure) {
            (Slot::Done(Outcome::Reply(payload)), _) => Ok(payload),
            (Slot::Done(Outcome::Refused(XsError::ENOSYS)), _) => Err(Error::NotOffered { op }),
            (Slot::Done(Outcome::Refused(code)), _) => Err(Error::Daemon { op, code }),
            (Slot::Done(Outcome::TooLong(len)), _) => Err(Error::TooLong { op, len }),
            (Slot::Done(Outcome::Rejected(errno)), _) => {
                Err(Failure::Os("write to the xenbus device", errno).into())
            }
            (Slot::Done(Outcome::Lost { may_be_done }), _) => Err(Error::Lost {
                op,
                transaction: (tx_id != 0).then_some(tx_id),
                may_be_done,
            }),
            (_, failure) => Err(failure.unwrap_or(Failure::Closed).into()),
        };
        Some((answer, epoch))
    }

    /// Returns whether [`Connection::poll_reply`] has something.
    pub(crate) fn is_answered(&self, id: RequestId) -> bool {
        self.pending
            .get(&id.0)
            .is_none_or(|pending| match pending.slot {
                Slot::Waiting => self.failure.is_some(),
                Slot::Done(_) => true,
                Slot::Abandoned { .. } | Slot::Renewal(_) => false,
            })
    }

    /// Cancels the wait for `id`, because its deadline has passed (`expired`) or because no caller
    /// waits for its answer. If the daemon grants a watch or a transaction to it all the same, that
    /// is given back; `watch` names the watch that this request would set. The end of a transaction
    /// that was not sent becomes an abort, because no other request ends that transaction. It may
    /// be called after the answer was taken, and does nothing then.
    ///
    /// Returns whether nothing of the request was ever sent.
    pub fn cancel(&mut self, id: RequestId, expired: bool, watch: Option<WatchId>) -> bool {
        let Some(pending) = self.pending.get_mut(&id.0) else {
            return false;
        };
        if matches!(pending.slot, Slot::Abandoned { .. }) {
            return false;
        }
        let watch = watch.and_then(|watch| {
            let path = self.watches.get(&watch.0)?.watched();
            Some((watch, path.as_ref().into()))
        });
        if self.failure.is_some() || !matches!(pending.slot, Slot::Waiting) {
            let Some(pending) = self.pending.remove(&id.0) else {
                return false;
            };
            if let Slot::Done(Outcome::Reply(payload)) = pending.slot {
                // A transaction ended with its connection; a watch was set again on the next.
                if watch.is_some() || pending.epoch == self.epoch {
                    self.give_back(pending.kind, watch, &payload);
                }
            }
            return false;
        }
        if let Some(at) = self.outgoing.iter().position(|m| m.id == id && m.sent == 0) {
            // Detached requests (an abort, an unwatch) stay: they give things back.
            if expired {
                let message = self.outgoing.remove(at);
                self.watch_order.retain(|&other| other != id.0);
                self.pending.remove(&id.0);
                let ended = message.as_ref().and_then(Outgoing::ended_transaction);
                if let Some(tx_id) = ended {
                    self.abort(tx_id);
                }
                return true;
            }
        }
        pending.slot = Slot::Abandoned { watch };
        let seq = pending.seq;
        let unsent = |message: &Outgoing| message.id == id && message.sent == 0;
        if !self.outgoing.iter().any(unsent) {
            self.given_up.insert(seq);
        }
        false
    }

    /// Queues a request whose answer no caller will take.
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
        let epoch = self.epoch;
        self.submit_detached(Tx { id: tx_id, epoch }, Encoded::of_parts(kind, parts))
    }

    /// As [`Connection::send_detached`], for a request that is encoded already.
    pub(crate) fn submit_detached(&mut self, tx: Tx, message: Encoded) -> Result<(), Error> {
        // Nothing is left to give back: the loss ended it.
        if self.loss.is_some() {
            return Ok(());
        }
        let id = self.submit_in(tx, message)?;
        self.cancel(id, false, None);
        Ok(())
    }

    /// Registers a watch on `path` and a queue for its events. Call it *before* requesting WATCH
    /// with [`Connection::token`], because the first event may arrive before the reply.
    pub fn add_watch(&mut self, path: &str) -> WatchId {
        let id = self.next_watch;
        self.next_watch += 1;
        self.watches.insert(id, EventQueue::new(path));
        WatchId(id)
    }

    /// Returns the token of a watch, as sent.
    #[must_use]
    pub fn token(watch: WatchId) -> String {
        format!("{:x}", watch.0)
    }

    /// Forgets a watch; events for it that arrive later are ignored.
    pub fn remove_watch(&mut self, watch: WatchId) {
        let queue = self.watches.remove(&watch.0);
        let set = queue.and_then(|queue| self.sets.get_mut(&queue.set?.0));
        if let Some(set) = set {
            set.waiting.retain(|other| *other != watch);
        }
    }

    /// Returns the next event of `watch`. Events that arrived before the connection ended are still
    /// returned, then the reason for the end. For a watch that the daemon refuses on a new
    /// connection, that error takes the place of later events.
    #[must_use]
    pub fn poll_event(&mut self, watch: WatchId) -> Option<Result<WatchEvent, Error>> {
        let queue = self.watches.get_mut(&watch.0);
        let refused = queue.as_ref().and_then(|queue| queue.refused);
        match queue.and_then(EventQueue::pop) {
            Some(event) => Some(Ok(event)),
            None => match (self.failure, refused) {
                (Some(failure), _) => Some(Err(failure.into())),
                (None, Some(code)) => {
                    let op = MsgType::WATCH;
                    Some(Err(Error::Daemon { op, code }))
                }
                (None, None) => None,
            },
        }
    }

    /// Returns whether [`Connection::poll_event`] has something.
    #[must_use]
    pub fn has_event(&self, watch: WatchId) -> bool {
        self.failure.is_some()
            || self
                .sets
                .get(&watch.0)
                .is_some_and(|set| !set.waiting.is_empty())
            || self
                .watches
                .get(&watch.0)
                .is_some_and(|queue| !queue.is_empty() || queue.refused.is_some())
    }

    /// Records that the transport has finished message `id`.
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

/// Returns the number of the watch that a token names.
fn watch_of(token: &[u8]) -> Option<u64> {
    let hex = std::str::from_utf8(token).ok()?;
    u64::from_str_radix(hex, 16).ok()
}

fn is_watch_op(kind: MsgType) -> bool {
    kind == MsgType::WATCH || kind == MsgType::UNWATCH
}
