//! One conversation between a toolstack and QEMU under a [`Policy`], without I/O.
//!
//! ```text
//!   client ──command──▶ allowed? ──yes──▶ queue ──one at a time, under an id of ours──▶ QEMU
//!          ◀──error──── no                  ◀──── the answer to that id, checked ──────
//! ```
//!
//! QEMU hears one command at a time, under an id made here. Only the answer to that id goes back,
//! under the client's own id and in the order the client asked. Whatever else QEMU says is dropped
//! and counted. An answer that is no proper one becomes an error for the client, who is never left
//! without a word because QEMU lied.

use std::collections::VecDeque;
use std::sync::Arc;

use super::json::{Json, map};
use super::shape::{Shape, Version, Way};
use super::{Limits, Policy};
use crate::error::one_line;
use crate::qmp::lines::{Line, Lines};

/// Commands a client may have waiting; it is not read from beyond that.
const WAITING: usize = 8;
/// Events passed in one conversation.
const EVENTS: usize = 100;
/// Bytes kept of QEMU's explanation of an error.
const DESC: usize = 512;
/// Lines of the audit kept until they are fetched.
const AUDIT: usize = 64;
/// Error classes QEMU has; any other becomes the first.
const CLASSES: [&str; 5] = [
    "GenericError",
    "CommandNotFound",
    "DeviceNotActive",
    "DeviceNotFound",
    "KVMMissingCap",
];

/// What one message from a client came to.
#[derive(Debug)]
enum Open {
    /// For QEMU; `row` is `None` for the negotiation of capabilities.
    Command {
        name: String,
        id: Option<Json>,
        row: Option<usize>,
        arguments: Option<Json>,
    },
    /// Answered here, once those before it are.
    Answered(Vec<u8>),
}

/// The conversation.
#[derive(Debug)]
pub struct Filter {
    policy: Arc<Policy>,
    from_client: Lines,
    from_qemu: Lines,
    version: Version,
    tag: String,
    count: u64,
    open: VecDeque<Open>,
    /// The id under which the first of `open` was sent.
    sent: Option<String>,
    events: usize,
    dropped: u64,
    audit: VecDeque<Json>,
}

/// Bytes that a step brought for either side.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Out {
    /// For QEMU.
    pub to_qemu: Vec<u8>,
    /// For the client.
    pub to_client: Vec<u8>,
}

impl Filter {
    /// A conversation of which nothing was heard. `tag` begins the ids QEMU sees, and should be
    /// another for each conversation.
    pub fn new(policy: Arc<Policy>, tag: String) -> Self {
        let Limits {
            command, answer, ..
        } = policy.limits;
        Self {
            from_client: Lines::new(command),
            from_qemu: Lines::new(answer),
            policy,
            version: Version::default(),
            tag,
            count: 0,
            open: VecDeque::new(),
            sent: None,
            events: 0,
            dropped: 0,
            audit: VecDeque::new(),
        }
    }

    /// The greeting for the client, made of the version numbers in QEMU's and nothing else.
    /// `None` when that is no greeting.
    pub fn greeting(&mut self, line: &[u8]) -> Option<Vec<u8>> {
        let said = Json::read(line, &self.policy.limits.json).ok()?;
        let qemu = said.get("QMP")?.get("version")?.get("qemu")?;
        let part = |key| match qemu.get(key) {
            Some(Json::Int(n)) => u16::try_from(*n).ok().filter(|n| *n < 1000),
            _ => None,
        };
        let version = Version(part("major")?, part("minor")?, part("micro")?);
        self.version = version;
        let qemu = map([
            ("micro", Json::Int(version.2.into())),
            ("minor", Json::Int(version.1.into())),
            ("major", Json::Int(version.0.into())),
        ]);
        let version = map([("qemu", qemu), ("package", Json::from(""))]);
        let capabilities = Json::List(Vec::new());
        Some(line_of(&map([(
            "QMP",
            map([("version", version), ("capabilities", capabilities)]),
        )])))
    }

    /// Whether more of the client's bytes are welcome.
    pub fn has_room(&self) -> bool {
        self.open.len() < WAITING
    }

    /// The client said something. Callers bring at most a few KiB at a time.
    pub fn client_bytes(&mut self, bytes: &[u8]) -> Out {
        let mut lines = Vec::new();
        self.from_client.push(bytes, |line| lines.push(line));
        for line in lines {
            let open = match line {
                Line::Whole(line) => self.judge(&line),
                Line::TooLong(_) => self.deny("", None, "the command is too long"),
            };
            self.open.push_back(open);
        }
        let mut out = Out::default();
        self.advance(&mut out);
        out
    }

    fn judge(&mut self, line: &[u8]) -> Open {
        let command = match Json::read(line, &self.policy.limits.json) {
            Ok(command) => command,
            Err(why) => return self.deny("", None, &format!("no proper JSON: {why}")),
        };
        let Json::Map(members) = &command else {
            return self.deny("", None, "a command is an object");
        };
        let id = match command.get("id") {
            None => None,
            Some(id @ Json::Int(_)) => Some(id.clone()),
            Some(Json::Text(text)) if text.len() <= 128 => Some(Json::Text(text.clone())),
            Some(_) => return self.deny("", None, "an id is an integer or a short string"),
        };
        let Some(name) = command.get("execute").and_then(Json::text) else {
            return self.deny("", id, "execute is missing");
        };
        let known = |key: &str| matches!(key, "execute" | "arguments" | "id");
        if let Some((key, _)) = members.iter().find(|m| !known(&m.0)) {
            return self.deny(name, id, &format!("{key} is not expected"));
        }
        let given = command.get("arguments");
        if name == "qmp_capabilities" {
            let nothing = map([]);
            let fits = Shape::Map(Vec::new()).rebuild(given.unwrap_or(&nothing), Way::FromQemu);
            let enables = match given.and_then(|given| given.get("enable")) {
                Some(Json::List(list)) => !list.is_empty(),
                other => other.is_some(),
            };
            if fits.is_err() || enables {
                return self.deny(name, id, "no capability is offered");
            }
            return Open::Command {
                name: name.to_owned(),
                id,
                row: None,
                arguments: None,
            };
        }
        match self.policy.command(name, given, self.version) {
            Ok(allowed) => Open::Command {
                name: name.to_owned(),
                id,
                row: Some(allowed.row),
                arguments: allowed.arguments,
            },
            Err(denied) => self.deny(name, id, &denied.to_string()),
        }
    }

    fn deny(&mut self, name: &str, id: Option<Json>, why: &str) -> Open {
        self.note("denied", name, Some(why));
        let class = match why {
            "the command is not in the policy" => "CommandNotFound",
            _ => "GenericError",
        };
        Open::Answered(error(class, &format!("stubdm-run: {why}"), id))
    }

    /// Answers what can be answered, and sends the next command if QEMU has none.
    fn advance(&mut self, out: &mut Out) {
        while self.sent.is_none() {
            match self.open.front() {
                None => return,
                Some(Open::Answered(_)) => {
                    if let Some(Open::Answered(bytes)) = self.open.pop_front() {
                        out.to_client.extend(bytes);
                    }
                }
                Some(Open::Command {
                    name, arguments, ..
                }) => {
                    self.count += 1;
                    let id = format!("{}-{}", self.tag, self.count);
                    let mut members = vec![("execute".to_owned(), Json::from(name.as_str()))];
                    let arguments = arguments.clone().map(|a| ("arguments".to_owned(), a));
                    members.extend(arguments);
                    members.push(("id".to_owned(), Json::from(id.as_str())));
                    out.to_qemu.extend(line_of(&Json::Map(members)));
                    self.sent = Some(id);
                }
            }
        }
    }

    /// QEMU said something. Callers bring at most a few KiB at a time.
    pub fn qemu_bytes(&mut self, bytes: &[u8]) -> Out {
        let mut lines = Vec::new();
        self.from_qemu.push(bytes, |line| lines.push(line));
        let mut out = Out::default();
        for line in lines {
            match line {
                Line::Whole(line) => self.heard(&line, &mut out),
                Line::TooLong(_) => self.fail("the answer is too long", &mut out),
            }
        }
        out
    }

    fn heard(&mut self, line: &[u8], out: &mut Out) {
        let said = match Json::read(line, &self.policy.limits.json) {
            Ok(said @ Json::Map(_)) => said,
            Ok(_) => return self.fail("the answer is no object", out),
            Err(why) => return self.fail(&format!("the answer is no proper JSON: {why}"), out),
        };
        if let Some(name) = said.get("event").and_then(Json::text) {
            match self.policy.event(name, said.get("data")) {
                Some(data) if self.events < EVENTS => {
                    self.events += 1;
                    let event = map([("event", Json::from(name)), ("data", data)]);
                    out.to_client.extend(line_of(&event));
                }
                _ => self.dropped += 1,
            }
            return;
        }
        let id = said.get("id").and_then(Json::text);
        if self.sent.is_none() || id != self.sent.as_deref() {
            // Late, twice, guessed, or a second greeting.
            self.dropped += 1;
            return;
        }
        let row = match self.open.front() {
            Some(Open::Command { row, .. }) => *row,
            _ => None,
        };
        match (said.get("return"), said.get("error")) {
            (Some(value), None) => {
                let answer = match row {
                    Some(row) => self.policy.answer(row, value),
                    None => Ok(map([])),
                };
                match answer {
                    Ok(value) => self.finish(out, "answered", None, |id| success(value, id)),
                    Err(why) => self.fail(&format!("the answer is outside the policy: {why}"), out),
                }
            }
            (None, Some(problem)) => {
                let text = |key| problem.get(key).and_then(Json::text).unwrap_or_default();
                let class = CLASSES.iter().find(|class| **class == text("class"));
                let class = class.unwrap_or(&CLASSES[0]);
                let mut desc = one_line(text("desc"));
                let cut = (0..=DESC.min(desc.len())).rfind(|n| desc.is_char_boundary(*n));
                desc.truncate(cut.unwrap_or(0));
                self.finish(out, "failed", None, |id| error(class, &desc, id));
            }
            _ => self.fail("the answer is neither return nor error", out),
        }
    }

    /// Gives the answer to the command QEMU has, and goes on.
    fn finish(
        &mut self,
        out: &mut Out,
        verdict: &str,
        why: Option<&str>,
        answer: impl FnOnce(Option<Json>) -> Vec<u8>,
    ) {
        self.sent = None;
        if let Some(Open::Command { name, id, .. }) = self.open.pop_front() {
            self.note(verdict, &name, why);
            out.to_client.extend(answer(id));
        }
        self.advance(out);
    }

    /// What QEMU said is no answer anybody should see.
    fn fail(&mut self, why: &str, out: &mut Out) {
        if self.sent.is_none() {
            self.dropped += 1;
            return;
        }
        let desc = format!("stubdm-run: {}", cut(why));
        self.finish(out, "refused", Some(cut(why)), |id| {
            error("GenericError", &desc, id)
        });
    }

    /// The connection to QEMU is gone: what was asked is answered with an error.
    pub fn lost(&mut self) -> Vec<u8> {
        let mut out = Out::default();
        while !self.open.is_empty() {
            // Each of them would be sent, and is lost.
            self.fail("the device model went away", &mut out);
            self.advance(&mut out);
        }
        out.to_client
    }

    /// The next line of the audit: a JSON object.
    pub fn audit(&mut self) -> Option<String> {
        if self.audit.is_empty() && self.dropped > 0 {
            let count = i64::try_from(std::mem::take(&mut self.dropped)).unwrap_or(i64::MAX);
            let line = map([
                ("audit", Json::from("dropped")),
                ("count", Json::Int(count)),
            ]);
            return Some(line.to_string());
        }
        self.audit.pop_front().map(|line| line.to_string())
    }

    /// Whether commands were judged that [`Filter::audit`] has not told of.
    pub fn has_audit(&self) -> bool {
        !self.audit.is_empty()
    }

    fn note(&mut self, verdict: &str, command: &str, why: Option<&str>) {
        if self.audit.len() >= AUDIT {
            return;
        }
        let mut members = vec![
            ("audit".to_owned(), Json::from(verdict)),
            ("command".to_owned(), Json::from(cut(command))),
        ];
        members.extend(why.map(|why| ("why".to_owned(), Json::from(cut(why)))));
        self.audit.push_back(Json::Map(members));
    }
}

/// At most [`DESC`] bytes of a text.
fn cut(text: &str) -> &str {
    let end = (0..=DESC.min(text.len())).rfind(|n| text.is_char_boundary(*n));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

fn line_of(value: &Json) -> Vec<u8> {
    let mut line = Vec::new();
    value.write(&mut line);
    line.extend_from_slice(b"\r\n");
    line
}

fn with_id(mut members: Vec<(String, Json)>, id: Option<Json>) -> Vec<u8> {
    members.extend(id.map(|id| ("id".to_owned(), id)));
    line_of(&Json::Map(members))
}

fn success(value: Json, id: Option<Json>) -> Vec<u8> {
    with_id(vec![("return".to_owned(), value)], id)
}

fn error(class: &str, desc: &str, id: Option<Json>) -> Vec<u8> {
    let error = map([("class", Json::from(class)), ("desc", Json::from(desc))]);
    with_id(vec![("error".to_owned(), error)], id)
}

#[cfg(test)]
mod tests;
