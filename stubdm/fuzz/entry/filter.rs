//! Hostile clients and a hostile QEMU against a proxy that filters under the built-in policy.
//!
//! A finding is a panic, a line for a client that is no answer to what it asked, somebody else's
//! answer, a line for QEMU that the policy does not allow, more held than may be, or a client that
//! waits forever once QEMU is honest again.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;
use stubdm::proxy::VchanAction;
use stubdm::proxy::filtered::multiplexer::Multiplexer;
use stubdm::rt::buffer::SIZE;
use stubdm_qmp::policy::Policy;

use super::ends::{ANSWERS, COMMANDS, Client, Due, Qemu, line};
use super::input::Input;

/// More than one answer of the policy's limit and what may wait beside it.
const HELD: usize = SIZE + (1 << 20);
/// Steps after which an honest QEMU must have served everybody.
const STEPS: usize = 3000;

struct Bench {
    multiplexer: Multiplexer,
    now: Instant,
    clients: Vec<Client>,
    qemu: Qemu,
    up: bool,
}

impl Bench {
    /// Does the loop's part: looks at the vchan, takes the output.
    fn settle(&mut self) {
        if !matches!(self.multiplexer.poll_connection(), VchanAction::Keep) {
            self.up = false;
        }
        while !self.multiplexer.poll_vchan().is_empty() {
            let out = self.multiplexer.poll_vchan().to_vec();
            self.multiplexer.handle_vchan_written(out.len());
            self.qemu.handle_bytes(&out);
        }
        while let Some(event) = self.multiplexer.poll_audit() {
            let line = event.to_string();
            assert!(line.len() < 4096 && !line.chars().any(char::is_control));
        }
        for client in &self.clients {
            let held = self.multiplexer.poll_client(client.number).len();
            assert!(held <= HELD, "{held} bytes wait for a client");
        }
    }

    /// The client reads up to `count` bytes.
    fn read(&mut self, at: usize, count: usize) {
        let client = &mut self.clients[at];
        let out = self.multiplexer.poll_client(client.number);
        let some = out[..count.min(out.len())].to_vec();
        self.multiplexer
            .handle_client_written(client.number, some.len(), self.now);
        client.handle_bytes(&some);
    }

    /// The client sends lines, in two pieces.
    fn send(&mut self, at: usize, bytes: &[u8], split: usize) {
        let number = self.clients[at].number;
        let (first, second) = bytes.split_at(split % bytes.len());
        self.multiplexer
            .handle_client_bytes(number, first, self.now);
        self.multiplexer
            .handle_client_bytes(number, second, self.now);
    }

    /// Sends a command that fits a row and names the client.
    fn ask(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let id = client.id();
        let bytes = if client.negotiated {
            let (number, asked) = (client.number, client.asked);
            format!(
                r#"{{"execute":"device_del","arguments":{{"id":"xenusb-{number}-{asked}"}},"id":{id}}}"#
            )
        } else {
            client.negotiated = true;
            format!(r#"{{"execute":"qmp_capabilities","id":{id}}}"#)
        };
        client.due.push_back(Due::Exactly(id));
        self.send(at, format!("{bytes}\r\n").as_bytes(), 0);
    }

    /// Sends any bytes. Only a line that is not empty is answered, once.
    fn babble(&mut self, at: usize, input: &mut Input<'_>) {
        let client = &mut self.clients[at];
        let id = client.id();
        let bytes = line(input, COMMANDS, &id);
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        if text.contains(&b'\n') || text.iter().all(|byte| *byte == b'\r') {
            return;
        }
        let read = serde_json::from_slice::<Value>(text).ok();
        let told = read.as_ref().and_then(|value| value.get("id"));
        client
            .due
            .push_back(Due::Perhaps(told.map(ToString::to_string)));
        // Whether it was taken for a negotiation is seen by asking again, which is refused at
        // worst.
        self.send(at, &bytes, usize::from(input.byte()));
    }

    /// QEMU sends bytes, as fast as they are read.
    fn answer(&mut self, mut bytes: &[u8]) {
        while self.up && !bytes.is_empty() {
            let room = self.multiplexer.vchan_room().min(bytes.len());
            if room == 0 {
                self.pass(Duration::from_millis(100));
                continue;
            }
            let (now, rest) = bytes.split_at(room);
            bytes = rest;
            self.qemu.owes = false;
            self.multiplexer.handle_vchan_bytes(now, self.now);
            self.settle();
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.multiplexer.handle_timeout(self.now);
        self.settle();
    }

    /// Connects a new monitor, if the multiplexer asks for a connection.
    fn connect(&mut self) -> bool {
        let VchanAction::Connect(at) = self.multiplexer.poll_connection() else {
            return false;
        };
        self.now = self.now.max(at);
        let count = self.qemu.count;
        self.qemu = Qemu {
            count,
            ..Qemu::default()
        };
        self.up = true;
        self.multiplexer.handle_vchan_up(self.now);
        true
    }

    fn lose(&mut self) {
        if self.up {
            self.up = false;
            self.qemu.owes = false;
            self.multiplexer.handle_vchan_lost(self.now);
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let code = input.byte();
        let at = usize::from(input.byte());
        let at = (!self.clients.is_empty()).then(|| at % self.clients.len());
        let open = at.filter(|at| self.multiplexer.client_room(self.clients[*at].number) > 0);
        match (code % 16, at, open) {
            (0, ..) if self.clients.len() < 4 => {
                let number = self.multiplexer.handle_client_arrived(self.now);
                self.clients.push(Client {
                    number,
                    due: VecDeque::new(),
                    received: Vec::new(),
                    greeted: false,
                    negotiated: false,
                    asked: 0,
                });
            }
            (1..=3, _, Some(at)) => self.ask(at),
            (4, _, Some(at)) => self.babble(at, input),
            (5, Some(at), _) => self.read(at, input.byte().into()),
            (6, Some(at), _) => self.read(at, usize::MAX),
            (7, Some(at), _) if code < 48 => {
                let client = self.clients.remove(at);
                self.multiplexer.handle_client_gone(client.number, self.now);
            }
            (8, ..) => {
                if self.connect() {
                    self.answer(GREETING.as_bytes());
                }
            }
            (15, ..) if code < 128 => self.looked_at(input.byte() < 128),
            (9..=11, ..) => {
                if let Some(answer) = self.qemu.answer() {
                    self.answer(answer.as_bytes());
                }
            }
            (12 | 13, ..) => {
                let id = match (input.byte(), &self.qemu.last) {
                    (0..160, Some(last)) => format!("{last:?}"),
                    (160..200, _) => format!("\"{}\"", self.qemu.count + 1),
                    (byte, _) => byte.to_string(),
                };
                let bytes = line(input, ANSWERS, &id);
                let times = if input.byte() < 16 { 60 } else { 1 };
                self.answer(&bytes.repeat(times));
            }
            (14, ..) if code < 64 => self.lose(),
            _ => self.pass(Duration::from_millis(u64::from(input.byte()) * 40)),
        }
        self.settle();
    }

    /// Somebody has looked at the state that QEMU reports as saved.
    fn looked_at(&mut self, whole: bool) {
        let outcome = if whole {
            Ok(())
        } else {
            Err("cut\nshort".to_owned())
        };
        self.multiplexer.handle_stored(&outcome, self.now);
    }

    fn waits(&self) -> bool {
        let waits = |client: &Client| !client.due.is_empty() || !client.greeted;
        self.clients.iter().any(waits)
    }

    /// From here on QEMU is honest, and everybody is served.
    fn mend(&mut self) {
        self.lose();
        for _ in 0..STEPS {
            for at in 0..self.clients.len() {
                while !self
                    .multiplexer
                    .poll_client(self.clients[at].number)
                    .is_empty()
                {
                    self.read(at, usize::MAX);
                }
            }
            if !self.waits() {
                return;
            }
            if self.multiplexer.has_saved() {
                self.looked_at(true);
            } else if self.connect() {
                self.answer(GREETING.as_bytes());
            } else if let Some(answer) = self.qemu.answer().filter(|_| self.up) {
                self.answer(answer.as_bytes());
            } else {
                let at = self.multiplexer.poll_timeout().expect("waits for nothing");
                self.pass(at.saturating_duration_since(self.now));
            }
            self.settle();
        }
        panic!("somebody is never answered");
    }
}

const GREETING: &str = "{\"QMP\":{\"version\":{\"qemu\":{\"micro\":22,\"minor\":2,\"major\":7},\"package\":\"\"},\"capabilities\":[]}}\r\n";

/// Runs an input.
pub(crate) fn filter(data: &[u8]) {
    static POLICY: OnceLock<Arc<Policy>> = OnceLock::new();
    let policy = POLICY.get_or_init(|| Arc::new(Policy::built_in().unwrap()));
    let now = Instant::now();
    let mut bench = Bench {
        multiplexer: Multiplexer::new(policy.clone(), 7, now),
        now,
        clients: Vec::new(),
        qemu: Qemu::default(),
        up: false,
    };
    let mut input = Input(data);
    while !input.0.is_empty() {
        bench.act(&mut input);
    }
    bench.mend();
}
