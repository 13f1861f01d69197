//! Finding the first byte of a monitor session on a ring that keeps what an earlier one left.
//!
//! The ring keeps what an earlier client did not read, and the server may not even have detected
//! that the client changed. So before anything else we ask QEMU something that is refused while
//! capabilities are not negotiated (`query-version`, under an id nobody used before) and read until
//! its answer:
//!
//! * refused: this is a new monitor session; the last greeting before the answer is its greeting
//!   and everything else was stale ([`Found::New`]);
//! * obeyed: the server still serves the client before ([`Found::Old`]).
//!
//! When no greeting was received first, the probe starts with `0xFF` and a line break. They make
//! QEMU's parser drop half a command that an earlier client may have left in it.

use std::time::{Duration, Instant};

use stubdm_qmp::json::Json;
use stubdm_qmp::lines::{LINE_MAX, Line, Lines};
use stubdm_qmp::message::{Message, command};
use stubdm_qmp::policy::schema::Version;

use crate::rt::buffer::Buffer;

/// How long a greeting is waited for before probing without one.
const GREETING_WAIT: Duration = Duration::from_millis(500);
/// How long a probe's answer is waited for before another is sent.
const PROBE_WAIT: Duration = Duration::from_secs(2);
/// Bytes held for the other end; a probe has about a hundred.
const OUT: usize = 4096;

/// State that outlives a session: the greeting last seen, and ids that are never used twice.
#[derive(Debug)]
pub struct Memory {
    greeting: Option<Greeting>,
    seed: u64,
    ids: u64,
}

impl Memory {
    /// `seed` distinguishes this process's ids from those of another before it.
    pub fn new(seed: u64) -> Self {
        Self {
            greeting: None,
            seed,
            ids: 0,
        }
    }

    /// An id nobody used before, this program's predecessors included.
    fn probe_id(&mut self) -> String {
        self.ids += 1;
        format!("stubdm-{:x}-{}", self.seed, self.ids)
    }

    /// An id this process has not used before, for use in a session whose first byte was found:
    /// nobody else has spoken in it. It is short because QEMU reads its monitor byte by byte, each
    /// with a turn of its main loop.
    pub fn next_id(&mut self) -> String {
        self.ids += 1;
        self.ids.to_string()
    }
}

/// QEMU's greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The line, without its end.
    pub line: Vec<u8>,
    /// QEMU's version, if the greeting has one.
    pub version: Option<Version>,
}

/// The probe's finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A new session.
    New(Greeting),
    /// An old session, or one whose greeting is not known: connect again.
    Old,
}

/// The search.
#[derive(Debug)]
pub struct Resync {
    lines: Lines,
    greeting: Option<Greeting>,
    probe: Option<String>,
    probe_at: Instant,
    out: Buffer,
}

impl Resync {
    /// The vchan has just been connected.
    pub fn new(now: Instant) -> Self {
        Self {
            lines: Lines::new(LINE_MAX),
            greeting: None,
            probe: None,
            probe_at: now + GREETING_WAIT,
            out: Buffer::new(OUT),
        }
    }

    /// Returns when [`Resync::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        self.probe_at
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, memory: &mut Memory, now: Instant) {
        if self.probe_at <= now {
            self.send_probe(memory, now);
        }
    }

    /// Takes bytes up to the one that decides it; those after it stay.
    pub fn handle_bytes(
        &mut self,
        memory: &mut Memory,
        bytes: &mut &[u8],
        now: Instant,
    ) -> Option<Found> {
        while !bytes.is_empty() {
            let end = bytes.iter().position(|b| *b == b'\n');
            let end = end.map_or(bytes.len(), |at| at + 1);
            let (line, rest) = bytes.split_at(end);
            *bytes = rest;
            let mut whole = None;
            self.lines.push(line, |line| whole = Some(line));
            if let Some(Line::Whole(line)) = whole {
                let found = self.line(memory, line, now);
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }

    fn line(&mut self, memory: &mut Memory, line: Vec<u8>, now: Instant) -> Option<Found> {
        match Message::parse(&line) {
            Ok(Message::Greeting(version)) => {
                self.greeting = Some(Greeting { line, version });
                self.send_probe(memory, now);
                None
            }
            Ok(Message::Error { id, .. }) if self.is_answer(&id) => {
                let greeting = self.greeting.take().or_else(|| memory.greeting.clone());
                memory.greeting.clone_from(&greeting);
                Some(greeting.map_or(Found::Old, Found::New))
            }
            Ok(Message::Return { id, .. }) if self.is_answer(&id) => Some(Found::Old),
            _ => None,
        }
    }

    /// Bytes for the other end.
    pub fn poll_transmit(&self) -> &[u8] {
        self.out.front()
    }

    /// Handles that `count` bytes of [`Resync::poll_transmit`] were written.
    pub fn handle_transmitted(&mut self, count: usize) {
        self.out.consume(count);
    }

    fn send_probe(&mut self, memory: &mut Memory, now: Instant) {
        self.probe_at = now + PROBE_WAIT;
        // A server that greets forever and reads nothing gets no more of them.
        if self.out.room() == 0 {
            return;
        }
        let id = memory.probe_id();
        if self.greeting.is_none() || self.probe.is_some() {
            self.out.append(b"\xff\n");
        }
        self.out
            .append(&command("query-version", None, Json::from(id.as_str())));
        self.probe = Some(id);
    }

    /// An error without an id is none: it is QEMU's to the `0xFF`.
    fn is_answer(&self, id: &Json) -> bool {
        self.probe.is_some() && id.text() == self.probe.as_deref()
    }
}
