//! The one session with QEMU that all clients of a filtering proxy share, without I/O.
//!
//! ```text
//!  Idle ──wanted──▶ Down ──up──▶ Resync ──new session──▶ Negotiating ──▶ Ready
//!   ▲                              │ old session            │ refused     │ QEMU greets again
//!   └──────────────────────────────┴────────────────────────┴─────────────┘ or the vchan is lost
//! ```
//!
//! The vchan is connected for the first client and then kept. QEMU has one command at a time. Its
//! output is read at all times, within the rate of `BURST`, or it would accumulate in QEMU.
//!
//! A command has no time limit of ours, because `stop` and a save may take any time; one that takes
//! long is reported in the audit. A command whose client has left is abandoned when others wait:
//! the vchan is connected again, which starts a new monitor session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stubdm_qmp::audit::Audit;
use stubdm_qmp::conversation::Request;
use stubdm_qmp::json::Json;
use stubdm_qmp::monitor::{Monitor, MonitorEvent, Reply};
use stubdm_qmp::policy::Policy;
use stubdm_qmp::policy::schema::Version;

use crate::libxl::state_record;
use crate::proxy::resync::{Found, Memory, Resync};
use crate::proxy::{RETRY, VchanAction};
use crate::rt::backoff::Backoff;
use crate::rt::buffer::{Buffer, SIZE};
use crate::rt::token_bucket::TokenBucket;

/// How long QEMU may take to answer the first probe, and then to agree on capabilities, before the
/// vchan is connected again. This ends the session with a server that died without a trace in the
/// ring.
const NEGOTIATION: Duration = Duration::from_secs(10);
/// When a command that takes long is reported first; six times as long for each further time.
const REPORT: Duration = Duration::from_secs(10);
/// Bytes of QEMU's that are read at once: several answers of the greatest length. A QEMU that
/// writes without end would otherwise keep a processor of the host busy; what it writes beyond the
/// rate stays in the ring.
const BURST: u64 = 4 << 20;
/// Bytes that are read after that, each [`PAUSE`]: 1 MiB a second.
const RATE: u64 = (1 << 20) / 10;
const PAUSE: Duration = Duration::from_millis(100);
/// How long others wait for the answer to a command whose client has left.
const GIVEN_UP: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum Phase {
    Idle,
    Down { retry_at: Instant },
    Resync { sync: Box<Resync>, until: Instant },
    Negotiating { until: Instant },
    Ready,
}

/// A command QEMU has.
#[derive(Debug)]
struct Sent {
    name: String,
    client: Option<u64>,
    since: Instant,
    report_at: Instant,
    left_at: Option<Instant>,
}

/// An event of the session.
#[derive(Debug, PartialEq)]
pub enum SessionEvent {
    /// The answer to the command of this client.
    Answer(u64, Reply),
    /// QEMU reports a save, to the command of this client if it is still connected: the answer
    /// waits for a check of the state.
    Saved(Option<u64>, Reply),
    /// An event.
    Event(String, Option<Json>),
    /// The session with QEMU is lost. Holds the client of the command that QEMU had, if it is still
    /// connected.
    Lost(Option<u64>),
}

/// The session.
#[derive(Debug)]
pub struct QemuSession {
    policy: Arc<Policy>,
    phase: Phase,
    memory: Memory,
    monitor: Monitor,
    sent: Option<Sent>,
    out: Buffer,
    retry: Backoff,
    /// It is not connected again before this.
    rest_until: Instant,
    version: Version,
    budget: TokenBucket,
}

impl QemuSession {
    /// No connection yet. `seed` as for [`Memory::new`].
    pub fn new(policy: Arc<Policy>, seed: u64, now: Instant) -> Self {
        Self {
            phase: Phase::Idle,
            memory: Memory::new(seed),
            monitor: Monitor::new(policy.clone()),
            policy,
            sent: None,
            out: Buffer::new(SIZE),
            retry: RETRY,
            rest_until: now,
            version: Version::default(),
            budget: TokenBucket::new(BURST, RATE, PAUSE, now),
        }
    }

    /// Returns the action on the vchan; [`VchanAction::End`] closes it until it is needed again.
    pub fn poll_connection(&self) -> VchanAction {
        match &self.phase {
            Phase::Idle => VchanAction::End,
            Phase::Down { retry_at } => VchanAction::Connect(*retry_at),
            _ => VchanAction::Keep,
        }
    }

    /// QEMU's version, once commands can be sent.
    pub fn ready(&self) -> Option<Version> {
        matches!(self.phase, Phase::Ready).then_some(self.version)
    }

    /// Returns whether a command can be sent now.
    pub fn is_free(&self) -> bool {
        matches!(self.phase, Phase::Ready) && !self.monitor.is_busy()
    }

    /// Returns whether a client needs QEMU.
    pub fn set_wanted(&mut self, wanted: bool, now: Instant) {
        match self.phase {
            Phase::Idle if wanted => {
                let retry_at = now.max(self.rest_until);
                self.phase = Phase::Down { retry_at };
            }
            Phase::Down { .. } if !wanted => self.phase = Phase::Idle,
            _ => {}
        }
    }

    /// Returns when [`QemuSession::handle_timeout`] is due.
    pub fn poll_timeout(&self, others_wait: bool) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Idle => None,
            Phase::Down { retry_at } => Some(*retry_at),
            Phase::Resync { sync, until } => Some(sync.poll_timeout().min(*until)),
            Phase::Negotiating { until } => Some(*until),
            Phase::Ready => None,
        };
        let left = self.sent.as_ref().and_then(|sent| sent.left_at);
        let sent = self.sent.as_ref().map(|sent| sent.report_at);
        let given_up = left.filter(|_| others_wait).map(|at| at + GIVEN_UP);
        let all = [
            phase,
            (self.budget.left() == 0).then(|| self.budget.next()),
            sent,
            given_up,
        ];
        all.into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn handle_timeout(
        &mut self,
        others_wait: bool,
        audit: &mut Audit,
        now: Instant,
    ) -> Option<SessionEvent> {
        self.budget.fill(now);
        if let Some(sent) = self.sent.as_mut().filter(|sent| sent.report_at <= now) {
            let waited = now.saturating_duration_since(sent.since);
            audit.waiting(sent.client, &sent.name, waited.as_secs());
            sent.report_at = now + waited * 5;
        }
        let left = self.sent.as_ref().and_then(|sent| sent.left_at);
        if others_wait && left.is_some_and(|at| at + GIVEN_UP <= now) {
            return Some(self.handle_vchan_lost(now));
        }
        match &mut self.phase {
            Phase::Resync { until, .. } | Phase::Negotiating { until } if *until <= now => {
                return Some(self.handle_vchan_lost(now));
            }
            Phase::Resync { sync, .. } => sync.handle_timeout(&mut self.memory, now),
            _ => {}
        }
        None
    }

    /// The vchan is connected.
    pub fn handle_vchan_up(&mut self, now: Instant) {
        self.monitor = Monitor::new(self.policy.clone());
        self.out.clear();
        self.phase = Phase::Resync {
            sync: Box::new(Resync::new(now)),
            until: now + NEGOTIATION,
        };
    }

    /// Handles a vchan that could not be connected, or is lost: it is connected again if clients
    /// need it.
    pub fn handle_vchan_lost(&mut self, now: Instant) -> SessionEvent {
        self.rest_until = now + self.retry.pause();
        self.phase = Phase::Idle;
        self.out.clear();
        SessionEvent::Lost(self.sent.take().and_then(|sent| sent.client))
    }

    /// Sends QEMU a command. Only when [`QemuSession::is_free`].
    pub fn send(&mut self, client: u64, request: Request, now: Instant) {
        let Request { name, arguments } = request;
        let id = self.memory.next_id();
        let line = self.monitor.send(&name, arguments, id);
        self.out.append(&line);
        self.sent = Some(Sent {
            name,
            client: Some(client),
            since: now,
            report_at: now + REPORT,
            left_at: None,
        });
    }

    /// Handles a client that has left: QEMU's answer to its command is dropped.
    pub fn handle_client_left(&mut self, client: u64, now: Instant) {
        if let Some(sent) = self.sent.as_mut().filter(|s| s.client == Some(client)) {
            sent.client = None;
            sent.left_at = Some(now);
        }
    }

    /// Returns how many bytes of the vchan's may be read now.
    pub fn vchan_room(&self) -> usize {
        match &self.phase {
            Phase::Idle | Phase::Down { .. } => 0,
            _ => self.budget.left().min(4096) as usize,
        }
    }

    /// Handles bytes from the other end.
    pub fn handle_vchan_bytes(
        &mut self,
        mut bytes: &[u8],
        audit: &mut Audit,
        now: Instant,
    ) -> Vec<SessionEvent> {
        self.budget.take(bytes.len() as u64);
        if let Phase::Resync { sync, .. } = &mut self.phase {
            let found = sync.handle_bytes(&mut self.memory, &mut bytes, now);
            let greeting = match found {
                None => return Vec::new(),
                Some(Found::New(greeting)) => greeting.version,
                Some(Found::Old) => None,
            };
            let Some(version) = greeting else {
                return vec![self.handle_vchan_lost(now)];
            };
            self.version = version;
            let id = self.memory.next_id();
            let line = self.monitor.send("qmp_capabilities", None, id);
            self.out.append(&line);
            self.phase = Phase::Negotiating {
                until: now + NEGOTIATION,
            };
        }
        let mut events = Vec::new();
        for event in self.monitor.handle_bytes(bytes) {
            match (event, &self.phase) {
                (MonitorEvent::Reply(Reply::Return(_)), Phase::Negotiating { .. }) => {
                    self.phase = Phase::Ready;
                }
                (MonitorEvent::Reply(_), Phase::Negotiating { .. })
                | (MonitorEvent::Greeting(_), Phase::Negotiating { .. } | Phase::Ready) => {
                    events.push(self.handle_vchan_lost(now));
                    break;
                }
                (MonitorEvent::Reply(reply), _) => {
                    self.retry.reset();
                    let sent = self.sent.take();
                    let saved = matches!(reply, Reply::Return(_))
                        && sent
                            .as_ref()
                            .is_some_and(|sent| sent.name == state_record::COMMAND);
                    match sent.and_then(|sent| sent.client) {
                        client if saved => events.push(SessionEvent::Saved(client, reply)),
                        Some(client) => events.push(SessionEvent::Answer(client, reply)),
                        None => audit.drop_one(),
                    }
                }
                (MonitorEvent::Event(name, data), _) => {
                    events.push(SessionEvent::Event(name, data))
                }
                (MonitorEvent::Noise | MonitorEvent::Greeting(_), _) => audit.drop_one(),
            }
        }
        events
    }

    /// Bytes for the vchan.
    pub fn poll_vchan(&self) -> &[u8] {
        match &self.phase {
            Phase::Idle | Phase::Down { .. } => &[],
            Phase::Resync { sync, .. } => sync.poll_transmit(),
            Phase::Negotiating { .. } | Phase::Ready => self.out.front(),
        }
    }

    /// Handles that `count` bytes of [`QemuSession::poll_vchan`] were written.
    pub fn handle_vchan_written(&mut self, count: usize) {
        match &mut self.phase {
            Phase::Resync { sync, .. } => sync.handle_transmitted(count),
            _ => self.out.consume(count),
        }
    }
}
