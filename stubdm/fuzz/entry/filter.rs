//! What clients and a QEMU, all of them hostile, may do to a proxy that filters under the built-in policy.
//!
//! A finding is a panic, a line for a client that is no answer to what it asked, somebody else's answer, a line for QEMU that the
//! policy does not allow, more held than may be, or a client that waits for ever once QEMU is honest again.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;
use stubdm::policy::Policy;
use stubdm::proxy::exchange::Exchange;
use stubdm::proxy::host::{BUFFER, Link};

use super::input::Input;

/// Whole commands; `#` stands for an id, `~` for a value.
const COMMANDS: &[&str] = &[
    r#"{"execute":"cont","id":#}"#,
    r#"{"execute":"query-cpus-fast","id":#}"#,
    r#"{"execute":"query-fdsets","id":#}"#,
    r#"{"execute":"quit","id":#}"#,
    r#"{"execute":"qmp_capabilities","arguments":~,"id":#}"#,
    r#"{"execute":"device_del","arguments":{"id":~},"id":#}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":~},"id":#}"#,
    r#"{"execute":~,"arguments":~,"id":#}"#,
    r#"{"arguments":{},"execute":"cont","execute":"stop","id":#}"#,
    r#"{"execute":"cont","id":~}"#,
];
/// What QEMU says.
const ANSWERS: &[&str] = &[
    r#"{"return":{},"id":#}"#,
    r#"{"return":~,"id":#}"#,
    r#"{"return":[{"cpu-index":~,"x":~}],"id":#}"#,
    r#"{"return":[{"fdset-id":~,"fds":[{"fd":~,"opaque":~}]}],"id":#}"#,
    r#"{"error":{"class":~,"desc":~},"id":#}"#,
    r#"{"event":~,"data":~}"#,
    r#"{"event":"RESET","timestamp":{"seconds":~},"data":~}"#,
    r#"{"QMP":{"version":{"qemu":{"major":~,"minor":1,"micro":1}}}}"#,
    r#"{"return":{},"error":{},"id":#,"id":#}"#,
    "[[[[[[[[",
];
const VALUES: &[&str] = &[
    "0",
    "-1",
    "4294967296",
    "1e400",
    "18446744073709551616",
    "true",
    "null",
    "[]",
    "{}",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
    "{\"a\":1,\"a\":2}",
    "\"\"",
    "\"pci-pt-00_1f.0\"",
    "\"GenericError\"",
    "\"stop\"",
    "\"\\u001b[2J\\u0000\\u202e\\r\\n\"",
    "\"\\u001b]0;x\\u0007\\r\\n\"",
    "\"\u{1b}[2J\"",
    "\"\\ud800\"",
    "{\"command-line\":\"info version\"}",
];
/// What the policy lets QEMU be asked, and the two commands of the proxy's own.
const ALLOWED: &[&str] = &[
    "qmp_capabilities",
    "query-version",
    "cont",
    "stop",
    "query-cpus-fast",
    "query-fdsets",
    "device_del",
    "human-monitor-command",
];
/// More than one answer of the policy's limit and what may wait beside it.
const HELD: usize = BUFFER + (1 << 20);
/// Steps after which an honest QEMU must have served everybody.
const STEPS: usize = 3000;

fn pick<'a>(input: &mut Input<'_>, of: &[&'a str]) -> &'a str {
    of[usize::from(input.byte()) % of.len()]
}

fn line(input: &mut Input<'_>, templates: &[&str], id: &str) -> Vec<u8> {
    let mut text = pick(input, templates).replace('#', id);
    while let Some(at) = text.find('~') {
        text.replace_range(at..=at, pick(input, VALUES));
    }
    let mut line = text.into_bytes();
    if input.byte() < 48 {
        let at = input.word() as usize % line.len();
        line[at] = input.byte();
    }
    line.extend_from_slice(if input.byte() < 128 { b"\r\n" } else { b"\n" });
    line
}

/// An answer that is due.
enum Due {
    /// Under this id.
    Exactly(String),
    /// Under this one or, where the command could not be read, under none.
    Perhaps(Option<String>),
}

/// One client and what it was told.
struct Client {
    number: u64,
    due: VecDeque<Due>,
    heard: Vec<u8>,
    greeted: bool,
    negotiated: bool,
    asked: u32,
}

impl Client {
    /// Its commands under ids of its own.
    fn id(&mut self) -> String {
        self.asked += 1;
        (self.number * 1000 + u64::from(self.asked)).to_string()
    }

    fn hear(&mut self, bytes: &[u8]) {
        self.heard.extend_from_slice(bytes);
        while let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.heard.drain(..=end).collect();
            let line = std::str::from_utf8(&line).unwrap();
            let line = line.strip_suffix("\r\n").expect("no CR before LF");
            assert!(!line.chars().any(char::is_control), "{line:?}");
            self.judge(line);
        }
    }

    fn judge(&mut self, line: &str) {
        let value: Value = serde_json::from_str(line).unwrap();
        if !self.greeted {
            assert!(value.get("QMP").is_some() && line.len() < 200, "{line}");
            self.greeted = true;
            return;
        }
        assert!(value.get("event").is_none(), "none is passed: {line}");
        assert!(
            value.get("return").is_some() != value.get("error").is_some(),
            "{line}"
        );
        let desc = value["error"]["desc"].as_str().unwrap_or_default();
        assert!(!desc.chars().any(char::is_control), "{line}");
        assert!(!line.contains("\"x\":"), "no row has this: {line}");
        let told = value.get("id").map(ToString::to_string);
        match self.due.pop_front().expect("an answer to nothing") {
            Due::Exactly(id) => assert_eq!(told, Some(id), "{line}"),
            Due::Perhaps(id) => assert!(told.is_none() || told == id, "{line}, not {id:?}"),
        }
        // Only the honest QEMU says this, of a device it was asked about.
        if let Some((_, rest)) = line.split_once("xenusb-") {
            let theirs = format!("{}-", self.number);
            assert!(rest.starts_with(&theirs), "somebody else's answer: {line}");
        }
    }
}

/// QEMU, as far as it heard anything.
#[derive(Default)]
struct Qemu {
    heard: Vec<u8>,
    asked: VecDeque<Value>,
    last: Option<String>,
    /// It has a command and said nothing since.
    owes: bool,
    negotiated: bool,
    /// Of the proxy's ids.
    count: u64,
}

impl Qemu {
    fn hear(&mut self, bytes: &[u8]) {
        self.heard.extend_from_slice(bytes);
        while let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.heard.drain(..=end).collect();
            if line != b"\xff\n" {
                self.judge(serde_json::from_slice(&line).unwrap());
            }
        }
    }

    fn judge(&mut self, said: Value) {
        let keys = said.as_object().unwrap().keys();
        let known = |key: &String| matches!(key.as_str(), "execute" | "arguments" | "id");
        assert!(keys.into_iter().all(known), "{said}");
        let name = said["execute"].as_str().unwrap();
        assert!(ALLOWED.contains(&name), "{said}");
        let id = said["id"].as_str().unwrap();
        let number = id.strip_prefix("stubdm-7-").expect("a client's id");
        let number: u64 = number.parse().unwrap();
        assert!(number > self.count, "an id is used twice: {said}");
        self.count = number;
        if name != "query-version" {
            assert!(!self.owes, "it has a command already: {said}");
            self.owes = true;
        }
        self.last = Some(id.to_owned());
        self.asked.push_back(said);
        self.asked.truncate(64);
    }

    /// What an honest one says to the oldest it was asked.
    fn answer(&mut self) -> Option<String> {
        let said = self.asked.pop_front()?;
        let (id, name) = (&said["id"], said["execute"].as_str().unwrap());
        let refused = r#""error":{"class":"CommandNotFound","desc":"negotiate first"}"#;
        let words = match (name, self.negotiated) {
            ("qmp_capabilities", false) => {
                self.negotiated = true;
                r#""return":{}"#.to_owned()
            }
            (_, false) | ("qmp_capabilities", true) => refused.to_owned(),
            ("device_del", true) => {
                let device = &said["arguments"]["id"];
                let desc = Value::from(format!("Device {device} not found"));
                format!(r#""error":{{"class":"DeviceNotFound","desc":{desc}}}"#)
            }
            ("query-cpus-fast", true) => r#""return":[{"cpu-index":0}]"#.to_owned(),
            ("query-fdsets", true) => r#""return":[]"#.to_owned(),
            _ => r#""return":{}"#.to_owned(),
        };
        Some(format!("{{{words},\"id\":{id}}}\r\n"))
    }
}

struct Bench {
    exchange: Exchange,
    now: Instant,
    clients: Vec<Client>,
    qemu: Qemu,
    up: bool,
}

impl Bench {
    /// What the loop would do: look at the link, take what goes out.
    fn settle(&mut self) {
        if !matches!(self.exchange.link(), Link::Keep) {
            self.up = false;
        }
        while !self.exchange.vchan_out().is_empty() {
            let out = self.exchange.vchan_out().to_vec();
            self.exchange.vchan_wrote(out.len());
            self.qemu.hear(&out);
        }
        while let Some(line) = self.exchange.audit() {
            assert!(line.len() < 4096 && !line.chars().any(char::is_control));
        }
        for client in &self.clients {
            let held = self.exchange.client_out(client.number).len();
            assert!(held <= HELD, "{held} bytes wait for a client");
        }
    }

    /// The client reads up to `count` bytes.
    fn read(&mut self, at: usize, count: usize) {
        let client = &mut self.clients[at];
        let out = self.exchange.client_out(client.number);
        let some = out[..count.min(out.len())].to_vec();
        self.exchange
            .client_wrote(client.number, some.len(), self.now);
        client.hear(&some);
    }

    /// The client says lines, in two pieces.
    fn say(&mut self, at: usize, said: &[u8], split: usize) {
        let number = self.clients[at].number;
        let (first, second) = said.split_at(split % said.len());
        self.exchange.client_bytes(number, first, self.now);
        self.exchange.client_bytes(number, second, self.now);
    }

    /// One that fits a row and names the client.
    fn ask(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let id = client.id();
        let said = if client.negotiated {
            let (number, asked) = (client.number, client.asked);
            format!(
                r#"{{"execute":"device_del","arguments":{{"id":"xenusb-{number}-{asked}"}},"id":{id}}}"#
            )
        } else {
            client.negotiated = true;
            format!(r#"{{"execute":"qmp_capabilities","id":{id}}}"#)
        };
        client.due.push_back(Due::Exactly(id));
        self.say(at, format!("{said}\r\n").as_bytes(), 0);
    }

    /// What may be anything. Only what ends as one line and is not empty is answered once.
    fn babble(&mut self, at: usize, input: &mut Input<'_>) {
        let client = &mut self.clients[at];
        let id = client.id();
        let said = line(input, COMMANDS, &id);
        let text = said.strip_suffix(b"\n").unwrap_or(&said);
        if text.contains(&b'\n') || text.iter().all(|byte| *byte == b'\r') {
            return;
        }
        let read = serde_json::from_slice::<Value>(text).ok();
        let told = read.as_ref().and_then(|value| value.get("id"));
        client
            .due
            .push_back(Due::Perhaps(told.map(ToString::to_string)));
        // Whether it was taken for a negotiation is seen by asking again, which is refused at worst.
        self.say(at, &said, usize::from(input.byte()));
    }

    /// QEMU says something, as fast as it is read from.
    fn tell(&mut self, mut said: &[u8]) {
        while self.up && !said.is_empty() {
            let room = self.exchange.vchan_room().min(said.len());
            if room == 0 {
                self.pass(Duration::from_millis(100));
                continue;
            }
            let (now, rest) = said.split_at(room);
            said = rest;
            self.qemu.owes = false;
            self.exchange.vchan_bytes(now, self.now);
            self.settle();
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.exchange.tick(self.now);
        self.settle();
    }

    /// A new monitor behind a new connection, if one is wanted.
    fn connect(&mut self) -> bool {
        let Link::Connect(at) = self.exchange.link() else {
            return false;
        };
        self.now = self.now.max(at);
        let count = self.qemu.count;
        self.qemu = Qemu {
            count,
            ..Qemu::default()
        };
        self.up = true;
        self.exchange.vchan_up(self.now);
        true
    }

    fn lose(&mut self) {
        if self.up {
            self.up = false;
            self.qemu.owes = false;
            self.exchange.vchan_lost(self.now);
        }
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let code = input.byte();
        let at = usize::from(input.byte());
        let at = (!self.clients.is_empty()).then(|| at % self.clients.len());
        let heard = at.filter(|at| self.exchange.client_room(self.clients[*at].number) > 0);
        match (code % 16, at, heard) {
            (0, ..) if self.clients.len() < 4 => {
                let number = self.exchange.client_arrived(self.now);
                self.clients.push(Client {
                    number,
                    due: VecDeque::new(),
                    heard: Vec::new(),
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
                self.exchange.client_gone(client.number, self.now);
            }
            (8, ..) => {
                if self.connect() {
                    self.tell(GREETING.as_bytes());
                }
            }
            (9..=11, ..) => {
                if let Some(answer) = self.qemu.answer() {
                    self.tell(answer.as_bytes());
                }
            }
            (12 | 13, ..) => {
                let id = match (input.byte(), &self.qemu.last) {
                    (0..160, Some(last)) => format!("{last:?}"),
                    (160..200, _) => format!("\"stubdm-7-{}\"", self.qemu.count + 1),
                    (byte, _) => byte.to_string(),
                };
                let said = line(input, ANSWERS, &id);
                let times = if input.byte() < 16 { 60 } else { 1 };
                self.tell(&said.repeat(times));
            }
            (14, ..) if code < 64 => self.lose(),
            _ => self.pass(Duration::from_millis(u64::from(input.byte()) * 40)),
        }
        self.settle();
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
                while !self.exchange.client_out(self.clients[at].number).is_empty() {
                    self.read(at, usize::MAX);
                }
            }
            if !self.waits() {
                return;
            }
            if self.connect() {
                self.tell(GREETING.as_bytes());
            } else if let Some(answer) = self.qemu.answer().filter(|_| self.up) {
                self.tell(answer.as_bytes());
            } else {
                let at = self.exchange.deadline().expect("waits for nothing");
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
        exchange: Exchange::new(policy.clone(), 7, now),
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
