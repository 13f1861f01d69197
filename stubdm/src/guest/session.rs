//! The stubdomain's end of QMP over vchan, client after client, without I/O.
//!
//! ```text
//!   Idle ──client──▶ Opening ──monitor up──▶ Relay ──monitor closed──▶ Mute
//!    ▲                  │ ▲                   │ │                      │
//!    │                  │ └──── 0x01 ─────────┘ │                      │
//!    └──── client left: all bytes dropped, monitor closed ─────────────┘
//! ```
//!
//! Each client gets a monitor connection of its own, so its first byte is a fresh greeting.
//!
//! A monitor that closes while its client is there is not opened again: a second greeting in the
//! middle of a conversation is an error to libxl. The client gets nothing more and leaves when
//! its patience ends.
//!
//! The byte 0x01, which no JSON text contains, marks the beginning of a session for clients that
//! send it (QubesOS's do): ignored as a session's first byte, a new session anywhere else.

use crate::guest::save::intercept::Intercept;
use crate::libxl::payload::Payload;
use crate::rt::buffer::{Buffer, SIZE};

/// The reconnect marker in QMP.
const MARKER: u8 = 1;

/// An action on the monitor connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MonitorAction {
    /// Leave it as it is.
    Keep,
    /// Close it if it is open.
    Close,
    /// Close it if it is open, and connect again.
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Opening,
    Relay,
    Mute,
}

/// The vchan server's side of things.
#[derive(Debug)]
pub struct GuestSession {
    marker: Option<u8>,
    phase: Phase,
    received: bool,
    to_vchan: Buffer,
    to_monitor: Buffer,
    /// Only where saved states are looked after.
    intercept: Option<Box<Intercept>>,
}

impl GuestSession {
    /// No client yet.
    pub fn new(payload: Payload) -> Self {
        Self {
            marker: (payload == Payload::Qmp).then_some(MARKER),
            phase: Phase::Idle,
            received: false,
            to_vchan: Buffer::new(SIZE),
            to_monitor: Buffer::new(SIZE),
            intercept: None,
        }
    }

    /// Takes this byte for the beginning of a session, whatever the payload.
    pub fn set_marker(&mut self, marker: u8) {
        self.marker = Some(marker);
    }

    /// Holds back QEMU's answer to a save until [`GuestSession::handle_outcome`].
    pub fn look_after_saves(&mut self) {
        self.intercept = Some(Box::default());
    }

    /// Returns whether QEMU has saved and its answer waits.
    pub fn holds_a_save(&self) -> bool {
        self.intercept
            .as_ref()
            .is_some_and(|intercept| intercept.holds())
    }

    /// Returns whether QEMU has refused a save, once for each.
    pub fn was_refused_a_save(&mut self) -> bool {
        self.intercept
            .as_mut()
            .is_some_and(|intercept| intercept.was_refused())
    }

    /// Lets the answer through, or a refusal in its place.
    pub fn handle_outcome(&mut self, outcome: &Result<(), String>) {
        if let Some(intercept) = &mut self.intercept {
            intercept.handle_outcome(outcome, &mut self.to_vchan);
        }
    }

    /// Returns the action on the monitor connection.
    pub fn poll_action(&self) -> MonitorAction {
        match self.phase {
            Phase::Idle | Phase::Mute => MonitorAction::Close,
            Phase::Opening => MonitorAction::Open,
            Phase::Relay => MonitorAction::Keep,
        }
    }

    /// Returns whether a client is there.
    pub fn has_client(&self) -> bool {
        self.phase != Phase::Idle
    }

    /// A client has connected.
    pub fn handle_client_arrived(&mut self) {
        self.begin();
    }

    /// The client has left. The caller also drops what the ring still holds of it.
    pub fn handle_client_left(&mut self) {
        self.begin();
        self.phase = Phase::Idle;
    }

    fn begin(&mut self) {
        self.phase = Phase::Opening;
        self.received = false;
        self.to_vchan.clear();
        self.to_monitor.clear();
        if let Some(intercept) = &mut self.intercept {
            **intercept = Intercept::default();
        }
    }

    /// The monitor connection asked for by [`MonitorAction::Open`] stands.
    pub fn handle_monitor_up(&mut self) {
        self.phase = Phase::Relay;
    }

    /// Handles a monitor connection that is lost, or could not be made.
    pub fn handle_monitor_lost(&mut self) {
        if matches!(self.phase, Phase::Opening | Phase::Relay) {
            self.phase = Phase::Mute;
            self.to_monitor.clear();
        }
    }

    /// Returns how many bytes of the client's may be read now. Without a client there are none, but
    /// the vchan reports a new one only to a caller that tries to read.
    pub fn vchan_room(&self) -> usize {
        match self.phase {
            Phase::Idle | Phase::Mute => 4096,
            Phase::Opening | Phase::Relay => self.to_monitor.room(),
        }
    }

    /// Handles bytes from the client. Returns `true` if they ask for a save.
    pub fn handle_vchan_bytes(&mut self, mut bytes: &[u8]) -> bool {
        if self.phase == Phase::Idle {
            self.begin();
        }
        if let Some(marker) = self.marker {
            if let Some(at) = bytes.iter().rposition(|b| *b == marker) {
                if self.received || at > 0 {
                    self.begin();
                }
                bytes = bytes.get(at + 1..).unwrap_or_default();
                self.received = true;
            }
        }
        self.received |= !bytes.is_empty();
        if self.phase != Phase::Mute {
            self.to_monitor.append(bytes);
        }
        let intercept = self
            .intercept
            .as_mut()
            .filter(|_| self.phase != Phase::Mute);
        intercept.is_some_and(|intercept| intercept.handle_client_bytes(bytes))
    }

    /// Returns how many bytes of the monitor's may be read now.
    pub fn monitor_room(&self) -> usize {
        if self.phase == Phase::Relay && !self.holds_a_save() {
            self.to_vchan.room()
        } else {
            0
        }
    }

    /// Handles bytes from the monitor.
    pub fn handle_monitor_bytes(&mut self, bytes: &[u8]) {
        match &mut self.intercept {
            Some(intercept) => intercept.handle_monitor_bytes(bytes, &mut self.to_vchan),
            None => self.to_vchan.append(bytes),
        }
    }

    /// Returns bytes for the client. A monitor's bytes before its close are still sent.
    pub fn poll_vchan(&self) -> &[u8] {
        self.to_vchan.front()
    }

    /// Handles that `count` bytes of [`GuestSession::poll_vchan`] were written.
    pub fn handle_vchan_written(&mut self, count: usize) {
        self.to_vchan.consume(count);
    }

    /// Bytes for the monitor.
    pub fn poll_monitor(&self) -> &[u8] {
        if self.phase == Phase::Relay {
            self.to_monitor.front()
        } else {
            &[]
        }
    }

    /// Handles that `count` bytes of [`GuestSession::poll_monitor`] were written.
    pub fn handle_monitor_written(&mut self, count: usize) {
        self.to_monitor.consume(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relaying() -> GuestSession {
        let mut session = GuestSession::new(Payload::Qmp);
        assert_eq!(session.poll_action(), MonitorAction::Close);
        session.handle_client_arrived();
        assert_eq!(session.poll_action(), MonitorAction::Open);
        session.handle_monitor_up();
        session
    }

    #[test]
    fn a_client_that_leaves_takes_its_bytes_with_it() {
        let mut session = relaying();
        session.handle_vchan_bytes(b"{\"execute\":");
        session.handle_monitor_bytes(b"{\"return\":");
        session.handle_client_left();
        assert_eq!(session.poll_action(), MonitorAction::Close);
        session.handle_client_arrived();
        assert_eq!(session.poll_action(), MonitorAction::Open);
        session.handle_monitor_up();
        assert!(session.poll_vchan().is_empty() && session.poll_monitor().is_empty());
    }

    #[test]
    fn a_monitor_that_closes_is_not_opened_for_the_same_client() {
        let mut session = relaying();
        session.handle_monitor_bytes(b"last words");
        session.handle_monitor_lost();
        assert_eq!(session.poll_action(), MonitorAction::Close);
        assert_eq!(session.poll_vchan(), b"last words");
        session.handle_vchan_bytes(b"anyone there?");
        assert!(session.vchan_room() > 0, "the ring must not fill up");
        assert!(session.poll_monitor().is_empty());
        session.handle_client_left();
        session.handle_client_arrived();
        assert_eq!(session.poll_action(), MonitorAction::Open);
    }

    #[test]
    fn the_marker_is_ignored_first_and_a_new_session_later() {
        let mut session = relaying();
        session.handle_vchan_bytes(b"\x01");
        assert_eq!(session.poll_action(), MonitorAction::Keep);
        session.handle_vchan_bytes(b"first");
        session.handle_monitor_bytes(b"for the first");
        session.handle_vchan_bytes(b" more\x01second");
        assert_eq!(session.poll_action(), MonitorAction::Open);
        session.handle_monitor_up();
        assert_eq!(session.poll_monitor(), b"second");
        assert!(session.poll_vchan().is_empty());
        session.handle_vchan_bytes(b"\x01");
        assert_eq!(session.poll_action(), MonitorAction::Open);
    }

    #[test]
    fn opaque_bytes_may_hold_the_marker() {
        let mut session = GuestSession::new(Payload::Opaque);
        session.handle_client_arrived();
        session.handle_monitor_up();
        session.handle_vchan_bytes(b"a\x01b");
        assert_eq!(session.poll_monitor(), b"a\x01b");
    }

    #[test]
    fn a_marker_that_was_asked_for_is_honoured_whatever_the_payload() {
        let mut session = GuestSession::new(Payload::Opaque);
        session.set_marker(7);
        session.handle_client_arrived();
        session.handle_monitor_up();
        session.handle_vchan_bytes(b"\x07a\x01b");
        assert_eq!(session.poll_monitor(), b"a\x01b");
        session.handle_vchan_bytes(b"c\x07d");
        assert_eq!(session.poll_action(), MonitorAction::Open);
        session.handle_monitor_up();
        assert_eq!(session.poll_monitor(), b"d");
    }

    #[test]
    fn a_client_whose_bytes_come_first_has_arrived() {
        let mut session = GuestSession::new(Payload::Qmp);
        assert!(session.vchan_room() > 0, "who does not read is not told");
        session.handle_vchan_bytes(b"early");
        assert!(session.has_client());
        assert_eq!(session.poll_action(), MonitorAction::Open);
        session.handle_monitor_up();
        assert_eq!(session.poll_monitor(), b"early");
    }

    #[test]
    fn each_direction_stops_at_its_limit() {
        let mut session = relaying();
        session.handle_vchan_bytes(&vec![b'x'; session.vchan_room()]);
        assert_eq!(session.vchan_room(), 0);
        session.handle_monitor_bytes(&vec![b'y'; session.monitor_room()]);
        assert_eq!(session.monitor_room(), 0);
        session.handle_monitor_written(10);
        assert_eq!(session.vchan_room(), 10);
    }
}
