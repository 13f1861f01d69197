//! One client of the host's proxy, from accept to close, without I/O.
//!
//! ```text
//!  Down ──up──▶ Resync ──probe refused──▶ Splice ──vchan lost──▶ Finish
//!   ▲            │ probe obeyed, or vchan lost                  │
//!   └────────────┘          client gone, anywhere ─▶ End ◀──────┘
//! ```
//!
//! Before a client of ours receives anything, [`Resync`] finds the session's first byte. Then the
//! client gets the greeting, and from there on bytes are passed on unchanged. If the server still
//! serves the client before, the vchan is closed, and opened again after a pause in which the
//! server can detect that.
//!
//! With [`Payload::Opaque`] there is no such question to ask, and bytes flow as soon as the vchan
//! is up. QMP under a policy is [`crate::proxy::filtered::multiplexer`]'s.

use std::time::{Duration, Instant};

use crate::libxl::payload::Payload;
use crate::proxy::resync::{Found, Memory, Resync};
use crate::proxy::{RETRY, VchanAction};
use crate::rt::backoff::Backoff;
use crate::rt::buffer::{Buffer, SIZE};

/// How long the last bytes of a client that left, or for one that is to be closed, may take.
const FLUSH_WAIT: Duration = Duration::from_secs(2);
/// How often to check whether the other end has taken the last bytes of a client that left. The
/// vchan notifies when there is room for more, not when everything is taken.
const FLUSH_LOOK: Duration = Duration::from_millis(5);

#[derive(Debug)]
enum Phase {
    Down {
        retry_at: Instant,
    },
    Resync(Box<Resync>),
    Splice,
    /// The vchan is lost; what the client is still to get is being sent.
    Finish {
        until: Instant,
    },
    /// The client has left; its last bytes are being sent.
    Flush {
        until: Instant,
        look_at: Instant,
    },
    End,
}

/// The session.
#[derive(Debug)]
pub struct HostSession {
    payload: Payload,
    phase: Phase,
    to_vchan: Buffer,
    to_client: Buffer,
    client_reads_only: bool,
    retry: Backoff,
}

impl HostSession {
    /// A client was accepted; the vchan is not connected.
    pub fn new(payload: Payload, now: Instant) -> Self {
        Self {
            payload,
            phase: Phase::Down { retry_at: now },
            to_vchan: Buffer::new(SIZE),
            to_client: Buffer::new(SIZE),
            client_reads_only: false,
            retry: RETRY,
        }
    }

    /// Returns the action on the vchan. `unread` is how many bytes the other end has not
    /// taken yet.
    pub fn poll_connection(&self, now: Instant, unread: usize) -> VchanAction {
        match &self.phase {
            Phase::Down { retry_at } => VchanAction::Connect(*retry_at),
            Phase::Resync(_) | Phase::Splice => VchanAction::Keep,
            Phase::Finish { until } if *until <= now || self.to_client.is_empty() => {
                VchanAction::End
            }
            Phase::Flush { until, .. } if *until <= now => VchanAction::End,
            Phase::Flush { .. } if self.to_vchan.is_empty() && unread == 0 => VchanAction::End,
            Phase::Finish { .. } | Phase::Flush { .. } => VchanAction::Keep,
            Phase::End => VchanAction::End,
        }
    }

    /// Returns when [`HostSession::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Down { retry_at } => Some(*retry_at),
            Phase::Resync(sync) => Some(sync.poll_timeout()),
            Phase::Finish { until } => Some(*until),
            Phase::Flush { look_at, .. } => Some(*look_at),
            Phase::Splice | Phase::End => None,
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, memory: &mut Memory, now: Instant) {
        match &mut self.phase {
            Phase::Resync(sync) => sync.handle_timeout(memory, now),
            Phase::Flush { look_at, .. } => *look_at = now + FLUSH_LOOK,
            _ => {}
        }
    }

    /// The vchan is connected.
    pub fn handle_vchan_up(&mut self, now: Instant) {
        self.phase = match self.payload {
            Payload::Opaque => Phase::Splice,
            Payload::Qmp => Phase::Resync(Box::new(Resync::new(now))),
        };
    }

    /// Handles a vchan that could not be connected, or is lost. Retries while the client has
    /// received nothing. Otherwise ends the session, because lost bytes cannot be recovered.
    pub fn handle_vchan_lost(&mut self, now: Instant) {
        match self.phase {
            Phase::Down { .. } | Phase::Resync(_) => self.reconnect(now),
            Phase::Splice => {
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
            retry_at: now + self.retry.pause(),
        };
    }

    /// Returns how many bytes of the client's may be read now.
    pub fn client_room(&self) -> usize {
        let open =
            !self.client_reads_only && !matches!(self.phase, Phase::Finish { .. } | Phase::End);
        if open { self.to_vchan.room() } else { 0 }
    }

    /// Handles bytes from the client.
    pub fn handle_client_bytes(&mut self, bytes: &[u8]) {
        self.to_vchan.append(bytes);
    }

    /// Handles the end of the client's bytes; the client may still be reading.
    pub fn handle_client_half_closed(&mut self) {
        self.client_reads_only = true;
    }

    /// Handles a client that has left; [`HostSession::handle_client_bytes`] got all its bytes.
    pub fn handle_client_gone(&mut self, now: Instant) {
        self.client_reads_only = true;
        self.to_client.clear();
        match self.phase {
            Phase::Splice => {
                self.phase = Phase::Flush {
                    until: now + FLUSH_WAIT,
                    look_at: now,
                }
            }
            Phase::Flush { .. } => {}
            _ => self.phase = Phase::End,
        }
    }

    /// Returns whether [`HostSession::handle_client_gone`] was called.
    pub fn client_is_gone(&self) -> bool {
        matches!(self.phase, Phase::Flush { .. } | Phase::End)
    }

    /// Returns how many bytes of the vchan's may be read now.
    pub fn vchan_room(&self) -> usize {
        match &self.phase {
            Phase::Resync(_) | Phase::Flush { .. } => 4096,
            Phase::Splice => self.to_client.room(),
            Phase::Down { .. } | Phase::Finish { .. } | Phase::End => 0,
        }
    }

    /// Handles bytes from the other end.
    pub fn handle_vchan_bytes(&mut self, memory: &mut Memory, mut bytes: &[u8], now: Instant) {
        if let Phase::Resync(sync) = &mut self.phase {
            match sync.handle_bytes(memory, &mut bytes, now) {
                None => return,
                Some(Found::Old) => return self.reconnect(now),
                Some(Found::New(greeting)) => {
                    self.to_client.append(&greeting.line);
                    self.to_client.append(b"\r\n");
                    self.phase = Phase::Splice;
                }
            }
        }
        if let Phase::Splice = self.phase {
            self.to_client.append(bytes);
        }
    }

    /// Bytes for the vchan.
    pub fn poll_vchan(&self) -> &[u8] {
        match &self.phase {
            Phase::Resync(sync) => sync.poll_transmit(),
            Phase::Splice | Phase::Flush { .. } => self.to_vchan.front(),
            Phase::Down { .. } | Phase::Finish { .. } | Phase::End => &[],
        }
    }

    /// Handles that `count` bytes of [`HostSession::poll_vchan`] were written.
    pub fn handle_vchan_written(&mut self, count: usize) {
        match &mut self.phase {
            Phase::Resync(sync) => sync.handle_transmitted(count),
            _ => self.to_vchan.consume(count),
        }
    }

    /// Bytes for the client.
    pub fn poll_client(&self) -> &[u8] {
        self.to_client.front()
    }

    /// Handles that `count` bytes of [`HostSession::poll_client`] were written.
    pub fn handle_client_written(&mut self, count: usize) {
        self.to_client.consume(count);
    }
}
