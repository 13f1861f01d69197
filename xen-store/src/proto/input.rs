//! The handling of a message from the daemon.

use super::{
    Connection, MAX_OVERTAKEN, MAX_SKIPPED, Outcome, Pending, Ready, RequestId, Slot, WatchId,
    is_watch_op,
};
use crate::error::{ProtocolError, XsError};
use crate::request::transaction_id;
use crate::wire::{self, Message, MsgType};

impl Connection {
    /// Takes one message.
    pub(super) fn accept(&mut self, message: Message) -> Result<(), ProtocolError> {
        if message.kind == MsgType::WATCH_EVENT {
            return self.accept_event(&message.payload);
        }
        let id = self.outstanding(message.kind, message.req_id)?;
        let outcome = if message.kind == MsgType::ERROR {
            let name = message
                .payload
                .strip_suffix(b"\0")
                .unwrap_or(&message.payload);
            let code = XsError::from_name(name);
            Outcome::Refused(code)
        } else {
            Outcome::Reply(message.payload)
        };
        self.answer(id, outcome)
    }

    /// Takes a header that claims `len` payload bytes, more than the protocol allows. The payload
    /// of a reply is skipped as it arrives.
    pub(super) fn accept_too_long(&mut self, len: usize) -> Result<(), ProtocolError> {
        let violation = ProtocolError::TooLong { len };
        if len > MAX_SKIPPED {
            return Err(violation);
        }
        let header = self.decoder.skip_payload().ok_or(violation)?;
        // An event without its token could be about any watch; no daemon sends one that long.
        let id = self
            .outstanding(header.kind, header.req_id)
            .map_err(|_| violation)?;
        self.answer(id, Outcome::TooLong(len))
    }

    /// Returns the unanswered request that a reply of this type with this id is about.
    fn outstanding(&self, got: MsgType, req_id: u32) -> Result<u32, ProtocolError> {
        let id = match req_id {
            0 if self.quirks.anonymous_watch_replies && is_watch_op(got) => {
                self.watch_order.front().copied().unwrap_or(0)
            }
            id => id,
        };
        let pending = self
            .pending
            .get(&id)
            .filter(|pending| !matches!(pending.slot, Slot::Done(_)))
            .ok_or(ProtocolError::UnknownRequest { kind: got, req_id })?;
        let sent = pending.kind;
        if got != sent && got != MsgType::ERROR {
            return Err(ProtocolError::ReplyType { sent, got });
        }
        Ok(id)
    }

    /// Records that the daemon answered `id`. Fails when too many earlier requests are still
    /// unanswered.
    fn answer(&mut self, id: u32, outcome: Outcome) -> Result<(), ProtocolError> {
        if let Some(seq) = self.finish(id, outcome) {
            self.newest_answer = self.newest_answer.max(seq);
        }
        let expired = self.given_up.range(..self.newest_answer).count();
        if expired > MAX_OVERTAKEN {
            return Err(ProtocolError::Unresponsive { expired });
        }
        Ok(())
    }

    /// Gives an outcome to the waiter, or gives back what no caller wants any more. Returns the
    /// place of the request in their order.
    pub(super) fn finish(&mut self, id: u32, outcome: Outcome) -> Option<u64> {
        self.answered(id);
        self.watch_order.retain(|&other| other != id);
        let pending = self.pending.get_mut(&id)?;
        let seq = pending.seq;
        pending.epoch = self.epoch;
        pending.copy = None;
        if let (Some(watch), Outcome::Reply(_)) = (pending.watch, &outcome) {
            if let Some(queue) = self.watches.get_mut(&watch.0) {
                queue.is_granted = true;
            }
        }
        if let Slot::Renewal(watch) = pending.slot {
            self.pending.remove(&id);
            self.finish_renewal(watch, &outcome);
        } else if matches!(pending.slot, Slot::Abandoned { .. }) {
            self.given_up.remove(&seq);
            let Pending { kind, slot, .. } = self.pending.remove(&id)?;
            if let (Slot::Abandoned { watch }, Outcome::Reply(payload)) = (slot, outcome) {
                self.give_back(kind, watch, &payload);
            }
        } else {
            pending.slot = Slot::Done(outcome);
            self.ready.push_back(Ready::Reply(RequestId(id)));
        }
        Some(seq)
    }

    /// Records that a watch is set again, or that the daemon refuses that; its reader then gets the
    /// error.
    fn finish_renewal(&mut self, watch: WatchId, outcome: &Outcome) {
        let code = match outcome {
            Outcome::Reply(_) | Outcome::Lost { .. } => return,
            Outcome::Refused(code) => *code,
            Outcome::TooLong(_) | Outcome::Rejected(_) => XsError::EIO,
        };
        if let Some(queue) = self.watches.get_mut(&watch.0) {
            queue.refused = Some(code);
            self.announce_event(watch);
        }
    }

    /// Gives back what a request was granted after its requester had gone.
    pub(super) fn give_back(
        &mut self,
        kind: MsgType,
        watch: Option<(WatchId, Box<str>)>,
        payload: &[u8],
    ) {
        // Both requests are far below any length limit, so only a finished connection can reject
        // them, and then the daemon takes everything back by itself.
        if let Some((watch, path)) = watch {
            let token = Self::token(watch);
            let parts: [&[u8]; 4] = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
            drop(self.send_detached(MsgType::UNWATCH, 0, &parts));
        } else if kind == MsgType::TRANSACTION_START {
            if let Some(tx) = transaction_id(payload) {
                self.abort(tx);
            }
        }
    }

    /// Aborts a transaction that no other request will end.
    pub(super) fn abort(&mut self, tx_id: u32) {
        // As above.
        drop(self.send_detached(MsgType::TRANSACTION_END, tx_id, &[b"F\0"]));
    }

    fn accept_event(&mut self, payload: &[u8]) -> Result<(), ProtocolError> {
        let mut fields = wire::strings(payload);
        let (Some(path), Some(token), true) =
            (fields.next(), fields.next(), payload.ends_with(&[0]))
        else {
            return Err(ProtocolError::Payload {
                kind: MsgType::WATCH_EVENT,
            });
        };
        let id = super::watch_of(token);
        // An unknown token is an event that was in flight when its watch was withdrawn.
        if let Some((id, queue)) = id.and_then(|id| Some((id, self.watches.get_mut(&id)?))) {
            let was_empty = queue.is_empty();
            queue.push(std::str::from_utf8(path).ok());
            if was_empty {
                self.announce_event(WatchId(id));
            }
        }
        Ok(())
    }
}
