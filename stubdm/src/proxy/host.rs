//! One client of the host's proxy, from accept to close, without I/O.
//!
//! ```text
//!  Down ──up──▶ Sync ──probe refused──▶ Pump ──vchan lost──▶ Finish
//!   ▲            │ probe obeyed, or vchan lost                  │
//!   └────────────┘          client gone, anywhere ─▶ End ◀──────┘
//! ```
//!
//! # Finding the session's first byte
//! The ring keeps what an earlier client did not read, and the server may not even have noticed
//! that the client changed. So before a client of ours hears anything we ask QEMU something that
//! is refused while capabilities are not negotiated (`query-version`, under an id nobody used before)
//! and read until its answer:
//!
//! * refused: this is a new monitor session; the last greeting before the answer is its greeting
//!   and everything else was stale. The greeting goes to the client, and from here on bytes are
//!   passed on as they are;
//! * obeyed: the server still serves the client before. The vchan is closed, and opened again
//!   after a pause in which the server can notice.
//!
//! The probe starts with `0xFF` and a line break when no greeting came first, which makes QEMU's
//! parser forget half a command that an earlier client may have left in it.
//!
//! With a policy ([`HostSession::filtered`]) the session's bytes are not passed on but read, judged
//! and written anew, the greeting included ([`Filter`]).
//!
//! With [`Payload::Opaque`] there is no such question to ask, and bytes flow as soon as the vchan
//! is up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Payload;
use super::buffer::Buffer;
use crate::policy::Policy;
use crate::policy::filter::{Filter, Out};
use crate::qmp::lines::{LINE_MAX, Line, Lines};
use crate::qmp::message::{Message, command};

/// Bytes held for each direction.
pub const BUFFER: usize = 64 << 10;
/// How long a greeting is waited for before probing without one.
const GREETING_WAIT: Duration = Duration::from_millis(500);
/// How long a probe's answer is waited for before another is sent.
const PROBE_WAIT: Duration = Duration::from_secs(2);
/// The first pause before connecting again; it doubles up to 1 s.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// How long the last bytes of a client that left, or for one that is to be closed, may take.
const FLUSH_WAIT: Duration = Duration::from_secs(2);
/// How often it is looked whether the other end has taken a gone client's last bytes: what is
/// written is told of when there is room for more, not when all of it is taken.
const FLUSH_LOOK: Duration = Duration::from_millis(5);

/// What is to happen with the vchan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Leave it as it is.
    Keep,
    /// Close it if it is open; connect at the stated time, not before.
    Connect(Instant),
    /// The session is over: close the vchan and the client's socket.
    End,
}

#[derive(Debug)]
struct Sync {
    lines: Lines,
    greeting: Option<Vec<u8>>,
    probe: Option<String>,
    probe_at: Instant,
    out: Buffer,
}

#[derive(Debug)]
enum Phase {
    Down {
        retry_at: Instant,
    },
    Sync(Box<Sync>),
    Pump,
    /// The vchan is gone; what the client is still to get is going out.
    Finish {
        until: Instant,
    },
    /// The client is gone; what it said last is going out.
    Flush {
        until: Instant,
        look_at: Instant,
    },
    End,
}

/// What outlives a session: the greeting last seen, and ids that are never used twice.
#[derive(Debug)]
pub struct Memory {
    greeting: Option<Vec<u8>>,
    seed: u64,
    probes: u64,
}

impl Memory {
    /// `seed` distinguishes this process's probes from those of another before it.
    pub fn new(seed: u64) -> Self {
        Self {
            greeting: None,
            seed,
            probes: 0,
        }
    }

    fn next_probe(&mut self) -> String {
        self.probes += 1;
        format!("stubdm-{:x}-{}", self.seed, self.probes)
    }
}

/// The session.
#[derive(Debug)]
pub struct HostSession {
    payload: Payload,
    phase: Phase,
    to_vchan: Buffer,
    to_client: Buffer,
    client_reads_only: bool,
    retry: Duration,
    filter: Option<Filter>,
}

impl HostSession {
    /// A client was accepted; the vchan is not connected.
    pub fn new(payload: Payload, now: Instant) -> Self {
        Self {
            payload,
            phase: Phase::Down { retry_at: now },
            to_vchan: Buffer::new(BUFFER),
            to_client: Buffer::new(BUFFER),
            client_reads_only: false,
            retry: RETRY_MIN,
            filter: None,
        }
    }

    /// As [`HostSession::new`] for QMP, of which only what the policy allows passes.
    pub fn filtered(policy: &Arc<Policy>, memory: &mut Memory, now: Instant) -> Self {
        let filter = Filter::new(policy.clone(), memory.next_probe());
        Self {
            filter: Some(filter),
            ..Self::new(Payload::Qmp, now)
        }
    }

    /// The next line of the audit.
    pub fn audit(&mut self) -> Option<String> {
        self.filter.as_mut().filter(|f| f.has_audit())?.audit()
    }

    /// The last lines of the audit: those of a session that is over, what was dropped included.
    pub fn last_audit(&mut self) -> Option<String> {
        self.filter.as_mut()?.audit()
    }

    /// What is to happen with the vchan now. `unread` is how many bytes the other end has not
    /// taken yet.
    pub fn link(&self, now: Instant, unread: usize) -> Link {
        match &self.phase {
            Phase::Down { retry_at } => Link::Connect(*retry_at),
            Phase::Sync(_) | Phase::Pump => Link::Keep,
            Phase::Finish { until } if *until <= now || self.to_client.is_empty() => Link::End,
            Phase::Flush { until, .. } if *until <= now => Link::End,
            Phase::Flush { .. } if self.to_vchan.is_empty() && unread == 0 => Link::End,
            Phase::Finish { .. } | Phase::Flush { .. } => Link::Keep,
            Phase::End => Link::End,
        }
    }

    /// When [`HostSession::tick`] is wanted next.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Down { retry_at } => Some(*retry_at),
            Phase::Sync(sync) => Some(sync.probe_at),
            Phase::Finish { until } => Some(*until),
            Phase::Flush { look_at, .. } => Some(*look_at),
            Phase::Pump | Phase::End => None,
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, memory: &mut Memory, now: Instant) {
        match &mut self.phase {
            Phase::Sync(sync) if sync.probe_at <= now => sync.send_probe(memory, now),
            Phase::Flush { look_at, .. } => *look_at = now + FLUSH_LOOK,
            _ => {}
        }
    }

    /// The vchan is connected.
    pub fn vchan_up(&mut self, now: Instant) {
        self.phase = match self.payload {
            Payload::Opaque => Phase::Pump,
            Payload::Qmp => Phase::Sync(Box::new(Sync {
                lines: Lines::new(LINE_MAX),
                greeting: None,
                probe: None,
                probe_at: now + GREETING_WAIT,
                out: Buffer::new(BUFFER),
            })),
        };
    }

    /// The vchan could not be connected, or is gone: retried while the client has heard nothing,
    /// the end otherwise, for what was lost cannot be made good.
    pub fn vchan_lost(&mut self, now: Instant) {
        match self.phase {
            Phase::Down { .. } | Phase::Sync(_) => self.reconnect(now),
            Phase::Pump => {
                if let Some(filter) = &mut self.filter {
                    let told = filter.lost();
                    self.to_client.append(&told);
                }
                self.phase = Phase::Finish {
                    until: now + FLUSH_WAIT,
                }
            }
            Phase::Flush { .. } => self.phase = Phase::End,
            Phase::Finish { .. } | Phase::End => {}
        }
    }

    fn reconnect(&mut self, now: Instant) {
        self.phase = Phase::Down {
            retry_at: now + self.retry,
        };
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }

    /// How many bytes of the client's may be read now.
    pub fn client_room(&self) -> usize {
        let open =
            !self.client_reads_only && !matches!(self.phase, Phase::Finish { .. } | Phase::End);
        // What a command may hold is decided by the greeting, so a filter waits for that.
        let ready = match &self.filter {
            Some(filter) => matches!(self.phase, Phase::Pump) && filter.has_room(),
            None => true,
        };
        if open && ready {
            self.to_vchan.room()
        } else {
            0
        }
    }

    /// The client said something.
    pub fn client_bytes(&mut self, bytes: &[u8]) {
        match &mut self.filter {
            Some(filter) => {
                let out = filter.client_bytes(bytes);
                self.take(&out);
            }
            None => self.to_vchan.append(bytes),
        }
    }

    fn take(&mut self, out: &Out) {
        self.to_vchan.append(&out.to_qemu);
        self.to_client.append(&out.to_client);
    }

    /// The client will say nothing more, but may still be listening.
    pub fn client_half_closed(&mut self) {
        self.client_reads_only = true;
    }

    /// The client is gone; [`HostSession::client_bytes`] got all that it said.
    pub fn client_gone(&mut self, now: Instant) {
        self.client_reads_only = true;
        self.to_client.clear();
        match self.phase {
            Phase::Pump => {
                self.phase = Phase::Flush {
                    until: now + FLUSH_WAIT,
                    look_at: now,
                }
            }
            Phase::Flush { .. } => {}
            _ => self.phase = Phase::End,
        }
    }

    /// Whether [`HostSession::client_gone`] was told.
    pub fn client_is_gone(&self) -> bool {
        matches!(self.phase, Phase::Flush { .. } | Phase::End)
    }

    /// How many bytes of the vchan's may be read now.
    pub fn vchan_room(&self) -> usize {
        match &self.phase {
            Phase::Sync(_) | Phase::Flush { .. } => 4096,
            Phase::Pump => self.to_client.room(),
            Phase::Down { .. } | Phase::Finish { .. } | Phase::End => 0,
        }
    }

    /// The other end said something.
    pub fn vchan_bytes(&mut self, memory: &mut Memory, mut bytes: &[u8], now: Instant) {
        while let Phase::Sync(_) = self.phase {
            let end = bytes
                .iter()
                .position(|b| *b == b'\n')
                .map_or(bytes.len(), |at| at + 1);
            if end == 0 {
                return;
            }
            let (line, rest) = bytes.split_at(end);
            self.sync_bytes(memory, line, now);
            bytes = rest;
        }
        if let Phase::Pump = self.phase {
            match &mut self.filter {
                Some(filter) => {
                    let out = filter.qemu_bytes(bytes);
                    self.take(&out);
                }
                None => self.to_client.append(bytes),
            }
        }
    }

    fn sync_bytes(&mut self, memory: &mut Memory, bytes: &[u8], now: Instant) {
        let Phase::Sync(sync) = &mut self.phase else {
            return;
        };
        let mut found = None;
        sync.lines.push(bytes, |line| found = Some(line));
        let Some(Line::Whole(line)) = found else {
            return;
        };
        match Message::parse(&line) {
            Ok(Message::Greeting(_)) => {
                sync.greeting = Some(line);
                sync.send_probe(memory, now);
            }
            Ok(Message::Error { id, .. }) if sync.is_answer(&id) => {
                let Some(greeting) = sync.greeting.take().or_else(|| memory.greeting.clone())
                else {
                    self.reconnect(now);
                    return;
                };
                match self
                    .filter
                    .as_mut()
                    .map(|filter| filter.greeting(&greeting))
                {
                    Some(None) => return self.reconnect(now),
                    Some(Some(clean)) => self.to_client.append(&clean),
                    None => {
                        self.to_client.append(&greeting);
                        self.to_client.append(b"\r\n");
                    }
                }
                memory.greeting = Some(greeting);
                self.phase = Phase::Pump;
            }
            Ok(Message::Return { id, .. }) if sync.is_answer(&id) => self.reconnect(now),
            _ => {}
        }
    }

    /// Bytes for the vchan.
    pub fn vchan_out(&self) -> &[u8] {
        match &self.phase {
            Phase::Sync(sync) => sync.out.front(),
            Phase::Pump | Phase::Flush { .. } => self.to_vchan.front(),
            Phase::Down { .. } | Phase::Finish { .. } | Phase::End => &[],
        }
    }

    /// `count` bytes of [`HostSession::vchan_out`] went out.
    pub fn vchan_wrote(&mut self, count: usize) {
        match &mut self.phase {
            Phase::Sync(sync) => sync.out.consume(count),
            _ => self.to_vchan.consume(count),
        }
    }

    /// Bytes for the client.
    pub fn client_out(&self) -> &[u8] {
        self.to_client.front()
    }

    /// `count` bytes of [`HostSession::client_out`] went out.
    pub fn client_wrote(&mut self, count: usize) {
        self.to_client.consume(count);
    }
}

impl Sync {
    fn send_probe(&mut self, memory: &mut Memory, now: Instant) {
        let id = memory.next_probe();
        if self.greeting.is_none() || self.probe.is_some() {
            self.out.append(b"\xff\n");
        }
        self.out
            .append(&command("query-version", None, &Value::from(id.as_str())));
        self.probe = Some(id);
        self.probe_at = now + PROBE_WAIT;
    }

    fn is_answer(&self, id: &Value) -> bool {
        self.probe.is_some() && id.as_str() == self.probe.as_deref()
    }
}
