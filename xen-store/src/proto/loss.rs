//! The loss of a connection, and the next one.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::{
    Connection, Failure, Outcome, Outgoing, Pending, Quirks, Ready, RequestId, Slot, WatchId,
};
use crate::reconnect::Repeat;
use crate::request::Encoded;
use crate::wire::{Decoder, MsgType, strings};

impl Connection {
    /// Records that the transport ended and another may follow.
    pub(super) fn lose(&mut self, failure: Failure, repeat: Repeat) {
        if self.failure.is_some() || self.loss.is_some() {
            return;
        }
        self.loss = Some(failure);
        self.epoch += 1;
        self.decoder = Decoder::new();
        self.in_flight = None;
        self.watch_order.clear();
        self.given_up.clear();
        self.newest_answer = 0;
        // These were not sent whole, so the daemon cannot have carried them out.
        let unsent = self.outgoing.drain(..).map(|m| (m.id.0, m));
        let mut unsent: FxHashMap<u32, Outgoing> = unsent.collect();
        let mut ids: Vec<(u64, u32)> = self.pending.iter().map(|(id, p)| (p.seq, *id)).collect();
        ids.sort_unstable();
        for (_, id) in ids {
            self.lose_request(id, unsent.remove(&id), repeat);
        }
        self.ready.push_back(Ready::Lost);
    }

    /// Keeps a request for the next connection, or ends it.
    fn lose_request(&mut self, id: u32, unsent: Option<Outgoing>, repeat: Repeat) {
        let Some(pending) = self.pending.get_mut(&id) else {
            return;
        };
        match pending.slot {
            Slot::Done(_) => return,
            // No caller waits for these, and the daemon has forgotten what they are about.
            Slot::Abandoned { .. } | Slot::Renewal(_) => {
                self.pending.remove(&id);
                return;
            }
            Slot::Waiting => {}
        }
        let was_sent = unsent.is_none();
        let again = match unsent {
            Some(message) if pending.tx_id == 0 && repeat != Repeat::Never => Some(message.bytes),
            Some(_) => None,
            None => pending.copy.as_deref().map(<[u8]>::to_vec),
        };
        if let Some(bytes) = again {
            self.outgoing.push_back(Outgoing {
                id: RequestId(id),
                bytes,
                sent: 0,
                epoch: self.epoch,
            });
            return;
        }
        // The daemon undoes a transaction without a commit.
        let takes_effect = pending.tx_id == 0 || pending.kind == MsgType::TRANSACTION_END;
        pending.slot = Slot::Done(Outcome::Lost {
            may_be_done: was_sent && takes_effect,
        });
        pending.epoch = self.epoch;
        pending.copy = None;
        self.ready.push_back(Ready::Reply(RequestId(id)));
    }

    /// Records that there is a new transport, which differs by `quirks`. The granted watches are
    /// set again first, then requests are sent. Does nothing unless the connection is lost.
    pub fn handle_reconnected(&mut self, quirks: Quirks) {
        if self.loss.take().is_none() {
            return;
        }
        self.quirks = quirks;
        let granted = self.watches.iter().filter(|(_, queue)| queue.is_granted);
        let mut ids: Vec<u64> = granted.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        let mut renewals: VecDeque<Outgoing> = ids
            .into_iter()
            .filter_map(|id| self.renew(WatchId(id)))
            .collect();
        if self.quirks.anonymous_watch_replies {
            let kept = self.outgoing.iter().filter(|message| {
                let pending = self.pending.get(&message.id.0);
                pending.is_some_and(|pending| super::is_watch_op(pending.kind))
            });
            let sent_first = renewals.iter().chain(kept);
            self.watch_order = sent_first.map(|message| message.id.0).collect();
        }
        renewals.append(&mut self.outgoing);
        self.outgoing = renewals;
    }

    /// Returns the message that sets a watch again. Its reader is notified that changes may have
    /// been missed.
    fn renew(&mut self, watch: WatchId) -> Option<Outgoing> {
        let id = self.fresh_id();
        let queue = self.watches.get_mut(&watch.0)?;
        let payload: &[u8] = queue.registration.as_deref()?;
        let message = Encoded::of_parts(MsgType::WATCH, &[payload]);
        let bytes = message.into_message(id, 0).ok()?;
        queue.refused = None;
        queue.push_reconnected();
        self.announce_event(watch);
        // It is sent before requests that were made earlier, and overtakes none of them.
        let seq = 0;
        self.pending.insert(
            id,
            Pending {
                kind: MsgType::WATCH,
                seq,
                slot: Slot::Renewal(watch),
                tx_id: 0,
                epoch: self.epoch,
                watch: None,
                copy: None,
            },
        );
        Some(Outgoing {
            id: RequestId(id),
            bytes,
            sent: 0,
            epoch: self.epoch,
        })
    }

    /// Records what a WATCH requests, to request it again on the next connection.
    pub(super) fn note_registration(&mut self, message: &Encoded) -> Option<WatchId> {
        if message.kind() != MsgType::WATCH {
            return None;
        }
        let token = strings(message.payload()).nth(1)?;
        let id = super::watch_of(token)?;
        let queue = self.watches.get_mut(&id)?;
        queue.registration = Some(message.payload().into());
        Some(WatchId(id))
    }

    /// Names a watch whose queue has an event, once until it is named.
    pub(super) fn announce_event(&mut self, watch: WatchId) {
        if let Some(queue) = self.watches.get_mut(&watch.0) {
            let is_new = !std::mem::replace(&mut queue.announced, true);
            match queue.set {
                Some(set) => self.announce_in_set(set, watch, is_new),
                None if is_new => self.ready.push_back(Ready::Event(watch)),
                None => {}
            }
        }
    }
}
