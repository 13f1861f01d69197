//! The script of a hostile QMP server, without I/O.

use std::time::Duration;

use serde_json::{Value, json};

use super::Behaviour;

/// The ids libxl uses begin here and go up by one.
const LIBXL_IDS: u32 = 0x786c_7100;

/// How long the slow one waits between two bytes.
const DRIP: Duration = Duration::from_millis(400);

/// The most bytes in one [`Act::Send`].
const CHUNK: usize = 16 << 10;

/// The server's next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Waits.
    Pause(Duration),
    /// Closes the vchan and offers it again.
    Leave,
}

/// One conversation.
#[derive(Debug)]
pub struct Script {
    behaviour: Behaviour,
    /// Bytes left of a flood.
    left: usize,
    /// The repeated bytes of a flood, and the bytes after it.
    flood: Vec<u8>,
    then: Vec<u8>,
    drip: Vec<u8>,
    negotiated: bool,
}

fn line(value: &Value) -> Vec<u8> {
    format!("{value}\r\n").into_bytes()
}

fn greeting(package: &str) -> Value {
    json!({"QMP": {
        "version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": package},
        "capabilities": ["oob"],
    }})
}

/// The answer of an honest QEMU.
fn honest(command: &str) -> Option<Value> {
    Some(match command {
        "query-version" => json!({"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}),
        "query-status" => json!({"status": "running", "singlestep": false, "running": true}),
        "query-cpus-fast" => json!([{
            "cpu-index": 0, "thread-id": 100, "qom-path": "/machine/unattached/device[0]",
            "props": {"core-id": 0, "thread-id": 0, "socket-id": 0}, "target": "x86_64",
        }]),
        "query-hotpluggable-cpus" => json!([{
            "type": "qemu32-i386-cpu", "vcpus-count": 1,
            "props": {"core-id": 0, "thread-id": 0, "socket-id": 0},
        }]),
        "query-fdsets" | "query-pci" => json!([]),
        "cont"
        | "stop"
        | "device_add"
        | "device_del"
        | "xen-save-devices-state"
        | "xen-set-global-dirty-log"
        | "system_wakeup" => json!({}),
        _ => return None,
    })
}

impl Script {
    /// A conversation in which `flood` is how many bytes much is.
    #[must_use]
    pub fn new(behaviour: Behaviour, flood: usize) -> Self {
        Self {
            behaviour,
            left: flood,
            flood: Vec::new(),
            then: Vec::new(),
            drip: Vec::new(),
            negotiated: false,
        }
    }

    /// A client is there.
    pub fn handle_client(&mut self) -> Vec<Act> {
        let mut sent = line(&greeting("Debian 1:7.2"));
        match self.behaviour {
            Behaviour::Silent => return Vec::new(),
            Behaviour::GreetingFlood => self.flood = sent.clone(),
            Behaviour::GreetingLong => {
                let whole = line(&greeting("@"));
                let at = whole.iter().position(|byte| *byte == b'@').unwrap_or(0);
                let (before, after) = whole.split_at(at);
                sent = before.to_vec();
                self.flood = vec![b'a'; CHUNK];
                self.then = after.to_vec();
            }
            Behaviour::GreetingLies => {
                sent.clear();
                for number in ["-1", "1e99", "18446744073709551616", "\"7\"", "null", "[]"] {
                    let version = format!("{{\"micro\":{number},\"minor\":2,\"major\":{number}}}");
                    let text = format!("{{\"QMP\":{{\"version\":{{\"qemu\":{version}}}}}}}\r\n");
                    sent.extend(text.into_bytes());
                }
                sent.extend(b"{\"QMP\": {}}\r\n{\"QMP\": 3}\r\n[]\r\n\"QMP\"\r\nQMP\r\n\r\n");
            }
            Behaviour::WideLine => {
                let mut wide = wide();
                wide.extend_from_slice(b"\r\n");
                wide.append(&mut sent);
                sent = wide;
            }
            Behaviour::LeavesAfterGreeting => return vec![Act::Send(sent), Act::Leave],
            Behaviour::GuessesIds => sent.extend(guesses()),
            _ => {}
        }
        vec![Act::Send(sent)]
    }

    /// A line came; its end is not part of it.
    pub fn handle_line(&mut self, bytes: &[u8]) -> Vec<Act> {
        let from = bytes.iter().position(|byte| *byte == b'{').unwrap_or(0);
        let command: Value = match serde_json::from_slice(&bytes[from..]) {
            Ok(command) => command,
            Err(_) => return Vec::new(),
        };
        let (id, name) = (command["id"].clone(), command["execute"].as_str());
        let name = name.unwrap_or_default();
        if self.behaviour == Behaviour::Silent {
            return Vec::new();
        }
        if !self.negotiated {
            if name == "qmp_capabilities" {
                self.negotiated = true;
                let mut sent = line(&json!({"return": {}, "id": id}));
                if self.behaviour == Behaviour::GuessesIds {
                    sent.extend(guesses());
                }
                return vec![Act::Send(sent)];
            }
            let desc = "Expecting capabilities negotiation with 'qmp_capabilities'";
            let error = json!({"class": "CommandNotFound", "desc": desc});
            return vec![Act::Send(line(&json!({"error": error, "id": id})))];
        }
        let answer = match honest(name) {
            Some(value) => json!({"return": value, "id": id}),
            None => json!({"error": {"class": "CommandNotFound", "desc": name}, "id": id}),
        };
        self.strike(&line(&answer), &id)
    }

    /// All was sent and nothing came; `None` for nothing to send.
    pub fn poll_act(&mut self) -> Option<Act> {
        if let Some(byte) = self.drip.pop() {
            return Some(Act::Send(vec![byte]));
        }
        if self.left > 0 && !self.flood.is_empty() {
            let times = (CHUNK / self.flood.len()).max(1);
            let sent = self.flood.repeat(times);
            self.left = self.left.saturating_sub(sent.len());
            return Some(Act::Send(sent));
        }
        self.flood.clear();
        let then = std::mem::take(&mut self.then);
        (!then.is_empty()).then_some(Act::Send(then))
    }

    /// The pause between two [`poll_act`](Self::poll_act).
    #[must_use]
    pub fn pace(&self) -> Option<Duration> {
        (!self.drip.is_empty()).then_some(DRIP)
    }

    fn strike(&mut self, answer: &[u8], id: &Value) -> Vec<Act> {
        let text = |text: String| vec![Act::Send(text.into_bytes())];
        match self.behaviour {
            Behaviour::LeavesMidAnswer => {
                let half = answer.get(..answer.len() / 2).unwrap_or_default();
                vec![Act::Send(half.to_vec()), Act::Leave]
            }
            Behaviour::AnswersTwice => vec![Act::Send(answer.repeat(100))],
            Behaviour::LongString | Behaviour::EndlessString => {
                self.flood = vec![b'a'; CHUNK];
                if self.behaviour == Behaviour::LongString {
                    self.then = format!("\", \"id\": {id}}}\r\n").into_bytes();
                }
                text("{\"return\": \"".to_owned())
            }
            Behaviour::NestedArrays => {
                // Shorter than a line may be, so that it is the depth that counts.
                let depth = 20_000;
                let (open, close) = ("[".repeat(depth), "]".repeat(depth));
                text(format!("{{\"return\": {open}{close}, \"id\": {id}}}\r\n"))
            }
            Behaviour::NestedObjects => {
                let depth = 4_000;
                let (open, close) = ("{\"a\":1,\"a\":".repeat(depth), "}".repeat(depth));
                text(format!("{{\"return\": {open}0{close}, \"id\": {id}}}\r\n"))
            }
            Behaviour::ControlCharacters => {
                let mut sent = format!("{{\"id\": {id}, \"return\": \"").into_bytes();
                sent.extend(
                    b"\x1b]0;owned\x07\x1b[2J\\u0000\\u001b[31m\x00\xff\xfe\xc0\x80\x08\"}\r\n",
                );
                vec![Act::Send(sent)]
            }
            Behaviour::EventFlood => {
                let event = json!({
                    "event": "RTC_CHANGE", "data": {"offset": 1, "text": "x".repeat(200)},
                    "timestamp": {"seconds": 1, "microseconds": 2},
                });
                self.flood = line(&event);
                self.then = answer.to_vec();
                Vec::new()
            }
            Behaviour::SlowDrip => {
                self.drip = answer.iter().rev().copied().collect();
                Vec::new()
            }
            Behaviour::FdsetLies => {
                let set = |id: &str| {
                    format!(
                        "{{\"fdset-id\": {id}, \"fds\": [{{\"fd\": -1, \"opaque\": \"stub-devid:5632\"}}]}}"
                    )
                };
                let sets = ["-6", "4294967296", "-9223372036854775808", "1"].map(set);
                text(format!(
                    "{{\"return\": [{}], \"id\": {id}}}\r\n",
                    sets.join(", ")
                ))
            }
            Behaviour::NeverAnswers => Vec::new(),
            Behaviour::WrongShape => text(format!("{{\"return\": \"5\", \"id\": {id}}}\r\n")),
            Behaviour::BothAnswers => text(format!(
                "{{\"return\": {{}}, \"id\": {id}, \"error\": {{\"class\": \"GenericError\", \"desc\": \"no\"}}, \
                 \"return\": [], \"id\": {id}}}\r\n"
            )),
            Behaviour::ErrorTricks => {
                let desc = format!(
                    "\\u001b[2J\\r\\nlibxl: error: forged line\\n\\u202e{}",
                    "%s%n".repeat(20_000)
                );
                text(format!(
                    "{{\"error\": {{\"class\": \"../../etc\", \"desc\": \"{desc}\"}}, \"id\": {id}}}\r\n"
                ))
            }
            Behaviour::HugeNumbers => text(format!(
                "{{\"return\": [1e999999, -1e400, {}, 0.1e-999, -0], \"id\": {id}}}\r\n",
                "9".repeat(5000)
            )),
            Behaviour::WideLine => {
                let mut sent = b"{\"return\": ".to_vec();
                sent.extend(wide());
                sent.extend(format!(", \"id\": {id}}}\r\n").into_bytes());
                vec![Act::Send(sent)]
            }
            Behaviour::IdlessError => text(
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\r\n"
                    .to_owned(),
            ),
            _ => vec![Act::Send(answer.to_vec())],
        }
    }
}

/// An array of many objects, a little shorter than libxl's buffer.
fn wide() -> Vec<u8> {
    let mut sent = b"[".to_vec();
    sent.extend(b"{\"\":0},".repeat(((1 << 20) - 200) / 7));
    sent.extend(b"0]");
    sent
}

/// Successful answers under ids that libxl has not used yet.
fn guesses() -> Vec<u8> {
    let guess = |n| line(&json!({"return": {}, "id": LIBXL_IDS + n}));
    (0..16).flat_map(guess).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(acts: &[Act]) -> String {
        let bytes = acts.iter().filter_map(|act| match act {
            Act::Send(bytes) => Some(bytes.as_slice()),
            _ => None,
        });
        String::from_utf8_lossy(&bytes.collect::<Vec<_>>().concat()).into_owned()
    }

    #[test]
    fn every_behaviour_ends_what_it_sends() {
        for &(name, behaviour) in Behaviour::ALL {
            assert_eq!(Behaviour::named(name), Some(behaviour));
            let mut script = Script::new(behaviour, 100_000);
            let mut acts = script.handle_client();
            for command in ["query-version", "qmp_capabilities", "query-cpus-fast"] {
                let command = json!({"execute": command, "id": 7});
                acts.extend(script.handle_line(command.to_string().as_bytes()));
                for round in 0.. {
                    assert!(round < 10_000, "{name} does not end");
                    match script.poll_act() {
                        Some(act) => acts.push(act),
                        None => break,
                    }
                }
            }
            assert_eq!(acts.is_empty(), behaviour == Behaviour::Silent, "{name}");
        }
    }

    #[test]
    fn the_honest_one_negotiates_first_and_then_answers() {
        let mut script = Script::new(Behaviour::Honest, 0);
        assert!(sent(&script.handle_client()).starts_with("{\"QMP\""));
        let ask = br#"{"execute": "query-status", "id": 1}"#;
        assert!(sent(&script.handle_line(ask)).contains("CommandNotFound"));
        let negotiate = b"\xff\n{\"execute\": \"qmp_capabilities\", \"id\": 2}";
        assert!(sent(&script.handle_line(negotiate)).contains("\"id\":2"));
        assert!(sent(&script.handle_line(ask)).contains("\"running\":true"));
    }
}
