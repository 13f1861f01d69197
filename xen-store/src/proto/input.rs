//! What happens to a message from the daemon.

use super::{Connection, Outcome, Pending, Ready, RequestId, Slot, WatchId, is_watch_op};
use crate::error::{Violation, XsError};
use crate::wire::{self, Message, MsgType};

impl Connection {
    /// Takes one message.
    pub(super) fn accept(
        &mut self,
        message: Message,
        ready: &mut dyn FnMut(Ready),
    ) -> Result<(), Violation> {
        if message.kind == MsgType::WATCH_EVENT {
            return self.accept_event(&message.payload, ready);
        }
        let id = match message.req_id {
            0 if self.quirks.anonymous_watch_replies && is_watch_op(message.kind) => {
                self.watch_order.front().copied().unwrap_or(0)
            }
            id => id,
        };
        let Some(pending) = self
            .pending
            .get(&id)
            .filter(|p| !matches!(p.slot, Slot::Done(_)))
        else {
            return Err(Violation::UnknownRequest {
                kind: message.kind,
                req_id: message.req_id,
            });
        };
        let (sent, got) = (pending.kind, message.kind);
        if got != sent && got != MsgType::ERROR {
            return Err(Violation::ReplyType { sent, got });
        }
        let outcome = if got == MsgType::ERROR {
            let name = message
                .payload
                .strip_suffix(b"\0")
                .unwrap_or(&message.payload);
            let code = XsError::from_name(name).unwrap_or_else(|| {
                tracing::debug!(name = %name.escape_ascii(), "an error of the store unknown here");
                XsError::UNKNOWN
            });
            Outcome::Refused(code)
        } else {
            Outcome::Reply(message.payload)
        };
        self.answered(id);
        self.watch_order.retain(|&other| other != id);
        if let Some(pending) = self.pending.remove(&id) {
            self.settle(id, pending, outcome, ready);
        }
        Ok(())
    }

    /// Hands an outcome to whoever waits, or gives back what nobody wants any more.
    pub(super) fn settle(
        &mut self,
        id: u32,
        pending: Pending,
        outcome: Outcome,
        ready: &mut dyn FnMut(Ready),
    ) {
        match (pending.slot, outcome) {
            (Slot::Abandoned { expired, watch }, outcome) => {
                self.expired -= usize::from(expired);
                if let Outcome::Reply(payload) = outcome {
                    self.give_back(pending.kind, watch, &payload);
                }
            }
            (_, outcome) => {
                self.pending.insert(
                    id,
                    Pending {
                        slot: Slot::Done(outcome),
                        ..pending
                    },
                );
                ready(Ready::Reply(RequestId(id)));
            }
        }
    }

    /// Returns what a request was granted whose requester is gone.
    pub(super) fn give_back(
        &mut self,
        kind: MsgType,
        watch: Option<(WatchId, Box<str>)>,
        payload: &[u8],
    ) {
        // Both requests are far below any length limit, so only a finished connection can refuse
        // them, and then the daemon takes everything back by itself.
        if let Some((watch, path)) = watch {
            let token = Self::token(watch);
            let parts: [&[u8]; 4] = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
            drop(self.send_detached(MsgType::UNWATCH, 0, &parts));
        } else if kind == MsgType::TRANSACTION_START {
            if let Some(tx) = parse_transaction(payload) {
                drop(self.send_detached(MsgType::TRANSACTION_END, tx, &[b"F\0"]));
            }
        }
    }

    fn accept_event(
        &mut self,
        payload: &[u8],
        ready: &mut dyn FnMut(Ready),
    ) -> Result<(), Violation> {
        let mut fields = wire::strings(payload);
        let (Some(path), Some(token), true) =
            (fields.next(), fields.next(), payload.ends_with(&[0]))
        else {
            return Err(Violation::Payload {
                kind: MsgType::WATCH_EVENT,
            });
        };
        let id = std::str::from_utf8(token)
            .ok()
            .and_then(|hex| u64::from_str_radix(hex, 16).ok());
        // An unknown token is an event that was under way when its watch was withdrawn.
        if let Some((id, queue)) = id.and_then(|id| Some((id, self.watches.get_mut(&id)?))) {
            let was_empty = queue.is_empty();
            queue.push(std::str::from_utf8(path).ok());
            if was_empty {
                ready(Ready::Event(WatchId(id)));
            }
        }
        Ok(())
    }
}
/// The id in the reply to TRANSACTION_START; 0 is not one.
pub(crate) fn parse_transaction(payload: &[u8]) -> Option<u32> {
    let text = payload.strip_suffix(b"\0").unwrap_or(payload);
    std::str::from_utf8(text)
        .ok()?
        .parse()
        .ok()
        .filter(|&id| id != 0)
}
