//! All clients of a filtering proxy and the one session with QEMU, without I/O.
//!
//! ```text
//!   client 1 ─▶ Conversation ─┐ in turns, one                 ┌─▶ the client
//!   client 2 ─▶ Conversation ─┼─command at a time─▶ QemuSession ─▶ QEMU whose command it was
//!   client 3 ─▶ (not greeted) ┘
//! ```
//!
//! A client is greeted, with QEMU's version, as soon as the session with QEMU is established; its
//! commands wait for their turn. When a client leaves, its commands that QEMU does not have yet are
//! dropped.
//!
//! # Memory
//! Whatever the stubdomain sends: one line of its output, the value read from it and that value
//! rebuilt; for each client one answer that it has not taken yet, because a client gets no turn
//! while more than [`SIZE`] waits for it; at most 20 events a second. The limits are the policy's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stubdm_qmp::audit::{Audit, Event};
use stubdm_qmp::conversation::Conversation;
use stubdm_qmp::json::Json;
use stubdm_qmp::message::GENERIC_ERROR;
use stubdm_qmp::monitor::Reply;
use stubdm_qmp::policy::Policy;
use stubdm_qmp::text::one_line;

use crate::proxy::VchanAction;
use crate::proxy::counters::Counters;
use crate::proxy::filtered::qemu_session::{QemuSession, SessionEvent};
use crate::rt::buffer::{Buffer, SIZE};

/// Clients served at once; others wait in the socket's queue.
pub const CLIENTS: usize = 16;
/// Events passed to one client in a second.
const EVENTS: u32 = 20;
/// How long a command waits for a session with QEMU that was lost.
const ABSENT: Duration = Duration::from_secs(5);

/// One client.
#[derive(Debug)]
struct Slot {
    number: u64,
    /// `None` until it is greeted.
    talk: Option<Conversation>,
    out: Buffer,
    ends: bool,
    events: (Instant, u32),
}

/// The multiplexer.
#[derive(Debug)]
pub struct Multiplexer {
    policy: Arc<Policy>,
    qemu: QemuSession,
    slots: Vec<Slot>,
    count: u64,
    /// The client that was given the last turn.
    last: u64,
    absent: Option<Instant>,
    /// Answers to saves, with whose they are, oldest first.
    saved: VecDeque<(Option<u64>, Reply)>,
    audit: Audit,
    /// A client left since the log had how much was dropped: a flood makes no lines of its own.
    tells_dropped: bool,
    counters: Counters,
    /// When QEMU was given the command it has.
    asked: Instant,
}

impl Multiplexer {
    /// Without clients. `seed` as for [`crate::proxy::resync::Memory::new`].
    pub fn new(policy: Arc<Policy>, seed: u64, now: Instant) -> Self {
        Self {
            qemu: QemuSession::new(policy.clone(), seed, now),
            policy,
            slots: Vec::new(),
            count: 0,
            last: 0,
            absent: None,
            saved: VecDeque::new(),
            audit: Audit::default(),
            tells_dropped: false,
            counters: Counters::default(),
            asked: now,
        }
    }

    /// Returns the counters, as far as the audit was taken.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns whether another client may connect.
    pub fn has_free_slot(&self) -> bool {
        self.slots.len() < CLIENTS
    }

    /// A client was accepted; its number.
    pub fn handle_client_arrived(&mut self, now: Instant) -> u64 {
        self.count += 1;
        self.counters.sessions = self.count;
        self.slots.push(Slot {
            number: self.count,
            talk: None,
            out: Buffer::new(SIZE),
            ends: false,
            events: (now, 0),
        });
        self.greet();
        self.advance(now);
        self.count
    }

    fn greet(&mut self) {
        let Some(version) = self.qemu.ready() else {
            return;
        };
        for slot in self.slots.iter_mut().filter(|slot| slot.talk.is_none()) {
            let (talk, greeting) = Conversation::begin(self.policy.clone(), slot.number, version);
            slot.talk = Some(talk);
            slot.out.append(&greeting);
        }
    }

    fn slot(&self, client: u64) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.number == client)
    }

    fn slot_mut(&mut self, client: u64) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.number == client)
    }

    /// Returns how many bytes of the client's may be read now.
    pub fn client_room(&self, client: u64) -> usize {
        let open = self.slot(client).filter(|slot| !slot.ends);
        let talk = open.and_then(|slot| slot.talk.as_ref());
        let full = open.is_some_and(|slot| slot.out.room() == 0);
        // QEMU's version decides what a command may hold, so the greeting is needed first.
        if talk.is_some_and(Conversation::has_room) && !full {
            4096
        } else {
            0
        }
    }

    /// Handles bytes from the client.
    pub fn handle_client_bytes(&mut self, client: u64, bytes: &[u8], now: Instant) {
        let found = self.slots.iter_mut().find(|slot| slot.number == client);
        if let Some(slot) = found {
            if let Some(talk) = &mut slot.talk {
                slot.out.append(&talk.handle_bytes(bytes, &mut self.audit));
            }
        }
        self.advance(now);
    }

    /// Handles the end of the client's bytes; the client may still be reading.
    pub fn handle_client_ended(&mut self, client: u64) {
        if let Some(slot) = self.slot_mut(client) {
            slot.ends = true;
        }
    }

    /// Returns whether nothing is left to send to a client that has ended.
    pub fn is_over(&self, client: u64) -> bool {
        self.slot(client).is_none_or(|slot| {
            slot.ends
                && slot.out.is_empty()
                && slot.talk.as_ref().is_none_or(|talk| !talk.is_open())
        })
    }

    /// Handles a client that has left.
    pub fn handle_client_gone(&mut self, client: u64, now: Instant) {
        self.qemu.handle_client_left(client, now);
        let at = self.slots.iter().position(|slot| slot.number == client);
        if let Some(talk) = at.and_then(|at| self.slots.remove(at).talk) {
            talk.abandon(&mut self.audit);
        }
        self.tells_dropped = true;
        self.advance(now);
    }

    /// Bytes for the client.
    pub fn poll_client(&self, client: u64) -> &[u8] {
        self.slot(client).map_or(&[], |slot| slot.out.front())
    }

    /// Handles that `count` bytes of [`Multiplexer::poll_client`] were written.
    pub fn handle_client_written(&mut self, client: u64, count: usize, now: Instant) {
        if let Some(slot) = self.slot_mut(client) {
            slot.out.consume(count);
        }
        self.advance(now);
    }

    /// Sends QEMU the next command, of the client whose turn it is.
    fn advance(&mut self, now: Instant) {
        self.qemu.set_wanted(self.wants(), now);
        if !self.qemu.is_free() {
            return;
        }
        let last = self.last;
        let waiting = self.slots.iter_mut().filter(|slot| {
            let has = slot.talk.as_ref().is_some_and(Conversation::has_request);
            has && slot.out.room() > 0
        });
        // The first after the last, round and round.
        let next = waiting.min_by_key(|slot| (slot.number <= last, slot.number));
        let Some(slot) = next else {
            return;
        };
        self.last = slot.number;
        if let Some(request) = slot.talk.as_mut().and_then(Conversation::poll_request) {
            self.qemu.send(self.last, request, now);
            self.asked = now;
        }
    }

    /// Returns whether a client waits for QEMU: to be greeted, or to be given a turn.
    fn wants(&self) -> bool {
        self.slots
            .iter()
            .any(|slot| slot.talk.as_ref().is_none_or(Conversation::has_request))
    }

    /// Returns the action on the vchan; [`VchanAction::End`] closes it until it is needed again.
    pub fn poll_connection(&self) -> VchanAction {
        self.qemu.poll_connection()
    }

    /// Returns when [`Multiplexer::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let absent = self.absent.filter(|_| self.wants()).map(|at| at + ABSENT);
        crate::rt::poll::earlier(self.qemu.poll_timeout(self.wants()), absent)
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let wants = self.wants();
        let events = self.qemu.handle_timeout(wants, &mut self.audit, now);
        self.handle_session_events(events, now);
        if self.absent.is_some_and(|at| at + ABSENT <= now) {
            self.absent = Some(now);
            for slot in &mut self.slots {
                if let Some(talk) = &mut slot.talk {
                    let why = "the device model cannot be reached";
                    slot.out.append(&talk.give_up(why, &mut self.audit));
                }
            }
        }
        self.advance(now);
    }

    /// The vchan is connected.
    pub fn handle_vchan_up(&mut self, now: Instant) {
        self.qemu.handle_vchan_up(now);
    }

    /// Handles a vchan that could not be connected, or is lost.
    pub fn handle_vchan_lost(&mut self, now: Instant) {
        let lost = self.qemu.handle_vchan_lost(now);
        self.handle_session_events([lost], now);
    }

    /// Returns how many bytes of the vchan's may be read now.
    pub fn vchan_room(&self) -> usize {
        self.qemu.vchan_room()
    }

    /// Handles bytes from the other end.
    pub fn handle_vchan_bytes(&mut self, bytes: &[u8], now: Instant) {
        let events = self.qemu.handle_vchan_bytes(bytes, &mut self.audit, now);
        self.handle_session_events(events, now);
    }

    /// Bytes for the vchan.
    pub fn poll_vchan(&self) -> &[u8] {
        self.qemu.poll_vchan()
    }

    /// Handles that `count` bytes of [`Multiplexer::poll_vchan`] were written.
    pub fn handle_vchan_written(&mut self, count: usize) {
        self.qemu.handle_vchan_written(count);
    }

    fn handle_session_events(
        &mut self,
        events: impl IntoIterator<Item = SessionEvent>,
        now: Instant,
    ) {
        for event in events {
            match event {
                SessionEvent::Answer(client, reply) => {
                    let took = now.saturating_duration_since(self.asked);
                    self.counters.latency(took);
                    self.answer(client, reply);
                }
                SessionEvent::Saved(client, reply) => {
                    let took = now.saturating_duration_since(self.asked);
                    self.counters.latency(took);
                    self.saved.push_back((client, reply));
                }
                SessionEvent::Event(name, data) => self.event(&name, data.as_ref(), now),
                SessionEvent::Lost(client) => self.lost(client, now),
            }
        }
        if self.qemu.ready().is_some() {
            self.absent = None;
        }
        self.greet();
        self.advance(now);
    }

    /// Returns whether QEMU has reported a save, and the answer waits for
    /// [`Multiplexer::handle_stored`].
    pub fn has_saved(&self) -> bool {
        !self.saved.is_empty()
    }

    /// Handles the outcome of a save: sends QEMU's answer, or the reason why the state is unusable.
    pub fn handle_stored(&mut self, outcome: &Result<(), String>, now: Instant) {
        let Some((client, reply)) = self.saved.pop_front() else {
            return;
        };
        let reply = match outcome {
            Ok(()) => reply,
            Err(why) => Reply::Error {
                class: GENERIC_ERROR,
                desc: format!("stubdm-run: {}", one_line(why)),
            },
        };
        if let Some(client) = client {
            self.answer(client, reply);
        }
        self.advance(now);
    }

    fn answer(&mut self, client: u64, reply: Reply) {
        let found = self.slots.iter_mut().find(|slot| slot.number == client);
        if let Some(slot) = found {
            if let Some(talk) = &mut slot.talk {
                slot.out.append(&talk.handle_reply(reply, &mut self.audit));
            }
        }
    }

    /// Handles the loss of QEMU's session and its state: answers every open command with an error.
    fn lost(&mut self, client: Option<u64>, now: Instant) {
        self.absent.get_or_insert(now);
        let found = self
            .slots
            .iter_mut()
            .find(|slot| Some(slot.number) == client);
        if let Some(slot) = found {
            if let Some(talk) = &mut slot.talk {
                let why = "the device model went away";
                slot.out.append(&talk.give_up(why, &mut self.audit));
            }
        }
    }

    fn event(&mut self, name: &str, data: Option<&Json>, now: Instant) {
        let mut passed = false;
        for slot in &mut self.slots {
            let (since, count) = &mut slot.events;
            if now.saturating_duration_since(*since) >= Duration::from_secs(1) {
                (*since, *count) = (now, 0);
            }
            let event = slot
                .talk
                .as_ref()
                .and_then(|talk| talk.handle_event(name, data));
            if let Some(event) = event.filter(|_| *count < EVENTS && slot.out.room() > 0) {
                *count += 1;
                passed = true;
                slot.out.append(&event);
            }
        }
        if !passed {
            self.audit.drop_one();
        }
    }

    /// The next event of the audit, which is counted by that.
    pub fn poll_audit(&mut self) -> Option<Event> {
        let mut event = self.audit.next_event();
        if event.is_none() && std::mem::take(&mut self.tells_dropped) {
            event = self.audit.dropped();
        }
        let event = event?;
        self.counters.decided(event.verdict(), event.count());
        Some(event)
    }
}

#[cfg(test)]
mod tests;
