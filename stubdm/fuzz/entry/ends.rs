//! The hostile ends of a proxy that filters: what clients and QEMU may send, and the checks of what
//! they receive.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;

use serde_json::Value;

use super::input::Input;

/// Whole commands; `#` stands for an id, `~` for a value.
pub(crate) const COMMANDS: &[&str] = &[
    r#"{"execute":"cont","id":#}"#,
    r#"{"execute":"query-cpus-fast","id":#}"#,
    r#"{"execute":"query-fdsets","id":#}"#,
    r#"{"execute":"xen-save-devices-state","arguments":{"filename":"/dev/fdset/1"},"id":#}"#,
    r#"{"execute":"quit","id":#}"#,
    r#"{"execute":"qmp_capabilities","arguments":~,"id":#}"#,
    r#"{"execute":"device_del","arguments":{"id":~},"id":#}"#,
    r#"{"execute":"human-monitor-command","arguments":{"command-line":~},"id":#}"#,
    r#"{"execute":~,"arguments":~,"id":#}"#,
    r#"{"arguments":{},"execute":"cont","execute":"stop","id":#}"#,
    r#"{"execute":"cont","id":~}"#,
];
/// QEMU's answers.
pub(crate) const ANSWERS: &[&str] = &[
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
/// The commands that the policy allows, and the proxy's own two.
const ALLOWED: &[&str] = &[
    "qmp_capabilities",
    "query-version",
    "cont",
    "stop",
    "xen-save-devices-state",
    "query-cpus-fast",
    "query-fdsets",
    "device_del",
    "human-monitor-command",
];
fn pick<'a>(input: &mut Input<'_>, of: &[&'a str]) -> &'a str {
    of[usize::from(input.byte()) % of.len()]
}

pub(crate) fn line(input: &mut Input<'_>, templates: &[&str], id: &str) -> Vec<u8> {
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
pub(crate) enum Due {
    /// Under this id.
    Exactly(String),
    /// Under this one or, where the command could not be read, under none.
    Perhaps(Option<String>),
}

/// One client and what it received.
pub(crate) struct Client {
    pub(crate) number: u64,
    pub(crate) due: VecDeque<Due>,
    pub(crate) received: Vec<u8>,
    pub(crate) greeted: bool,
    pub(crate) negotiated: bool,
    pub(crate) asked: u32,
}

impl Client {
    /// Its commands under ids of its own.
    pub(crate) fn id(&mut self) -> String {
        self.asked += 1;
        (self.number * 1000 + u64::from(self.asked)).to_string()
    }

    pub(crate) fn handle_bytes(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
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
        // Only the honest QEMU sends this, about a device of this client's command.
        if let Some((_, rest)) = line.split_once("xenusb-") {
            let theirs = format!("{}-", self.number);
            assert!(rest.starts_with(&theirs), "somebody else's answer: {line}");
        }
    }
}

/// QEMU, as far as it received anything.
#[derive(Default)]
pub(crate) struct Qemu {
    pub(crate) received: Vec<u8>,
    pub(crate) asked: VecDeque<Value>,
    pub(crate) last: Option<String>,
    /// It has a command and has sent nothing since.
    pub(crate) owes: bool,
    pub(crate) negotiated: bool,
    /// Of the proxy's ids.
    pub(crate) count: u64,
}

impl Qemu {
    pub(crate) fn handle_bytes(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
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
        let number = match name {
            "query-version" => id.strip_prefix("stubdm-7-").unwrap_or(id),
            _ => id,
        };
        let number: u64 = number.parse().expect("a client's id");
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

    /// Returns an honest answer to the oldest request.
    pub(crate) fn answer(&mut self) -> Option<String> {
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
