//! QEMU's side of the conversation, without I/O: sends one command at a time under an id made here,
//! and sorts QEMU's messages into the answer that is due and everything else.
//!
//! Memory: one line of up to the policy's limit, and its value, whatever QEMU sends.

use std::sync::Arc;

use crate::json::Json;
use crate::lines::{Line, Lines};
use crate::message::{class, command, cut, greeted};
use crate::policy::Policy;
use crate::policy::schema::Version;
use crate::text::one_line;

/// QEMU's reply to a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// QEMU obeyed; the value is not checked yet.
    Return(Json),
    /// QEMU refused: one of its classes, and one line.
    Error {
        /// The class.
        class: &'static str,
        /// QEMU's words, made harmless.
        desc: String,
    },
    /// The answer was unusable, with the reason.
    Unusable(String),
}

/// A message of QEMU's.
#[derive(Clone, Debug, PartialEq)]
pub enum MonitorEvent {
    /// The answer to the command it has, which it now has no longer.
    Reply(Reply),
    /// An event.
    Event(String, Option<Json>),
    /// A greeting: a session of the monitor began.
    Greeting(Version),
    /// Late, twice, guessed, or no message at all.
    Noise,
}

/// A session with QEMU's monitor.
#[derive(Debug)]
pub struct Monitor {
    policy: Arc<Policy>,
    lines: Lines,
    sent: Option<String>,
}

impl Monitor {
    /// Starts a session before its greeting.
    pub fn new(policy: Arc<Policy>) -> Self {
        Self {
            lines: Lines::new(policy.limits.answer),
            policy,
            sent: None,
        }
    }

    /// A command for QEMU, which must have none. `id` must not have been used before.
    pub fn send(&mut self, name: &str, arguments: Option<Json>, id: String) -> Vec<u8> {
        let line = command(name, arguments, Json::from(id.as_str()));
        self.sent = Some(id);
        line
    }

    /// Returns whether QEMU has a command.
    pub fn is_busy(&self) -> bool {
        self.sent.is_some()
    }

    /// Takes bytes of QEMU's, a few KiB at a time at most.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Vec<MonitorEvent> {
        let mut lines = Vec::new();
        self.lines.push(bytes, |line| lines.push(line));
        let events = lines.into_iter().map(|line| match line {
            Line::Whole(line) => self.handle_line(&line),
            Line::TooLong(length) => {
                self.unusable(&format!("the answer is too long: {length} bytes and more"))
            }
        });
        events.collect()
    }

    fn handle_line(&mut self, line: &[u8]) -> MonitorEvent {
        let mut message = match Json::read(line, &self.policy.limits.json) {
            Ok(message @ Json::Map(_)) => message,
            Ok(_) => return self.unusable("the answer is no object"),
            Err(why) if why.is_json() => {
                return self.unusable(&format!("the answer is beyond what is taken: {why}"));
            }
            Err(why) => return self.unusable(&format!("the answer is no proper JSON: {why}")),
        };
        if let Some(name) = message.get("event").and_then(Json::text) {
            let name = name.to_owned();
            return MonitorEvent::Event(name, message.take("data"));
        }
        if let Some(version) = message.get("QMP").and_then(greeted) {
            return MonitorEvent::Greeting(version);
        }
        // QEMU answers a command that it cannot parse with an error without its id.
        let id = message.get("id");
        let is_unparsed = id.is_none() && message.get("error").is_some();
        let is_due = is_unparsed || id.and_then(Json::text) == self.sent.as_deref();
        if self.sent.is_none() || !is_due {
            return MonitorEvent::Noise;
        }
        self.sent = None;
        MonitorEvent::Reply(match (message.take("return"), message.get("error")) {
            (Some(value), None) => Reply::Return(value),
            (None, Some(problem)) => {
                let text = |key| problem.get(key).and_then(Json::text).unwrap_or_default();
                Reply::Error {
                    class: class(text("class")),
                    desc: cut(&one_line(text("desc"))).to_owned(),
                }
            }
            _ => Reply::Unusable("the answer is neither return nor error".into()),
        })
    }

    /// Treats an unusable message as the answer, if one is due, so that no client waits forever.
    fn unusable(&mut self, why: &str) -> MonitorEvent {
        match self.sent.take() {
            Some(_) => MonitorEvent::Reply(Reply::Unusable(cut(why).to_owned())),
            None => MonitorEvent::Noise,
        }
    }
}
