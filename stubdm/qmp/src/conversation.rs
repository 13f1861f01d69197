//! One client's conversation under a [`Policy`], without I/O.
//!
//! ```text
//!   client ──line──▶ judged ──allowed──▶ queue ──next()──▶ QEMU, when it is this client's turn
//!          ◀─in the order asked─ answered here │ answered() ◀── what QEMU said, checked
//! ```
//!
//! The greeting, the negotiation of capabilities and every denial are answered here: QEMU receives
//! only what a row allows. Answers are sent in the order the client asked, under the client's own
//! ids.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::audit::{Audit, Verdict};
use crate::json::{Json, map};
use crate::lines::{Line, Lines};
use crate::message::{
    ALREADY_NEGOTIATED, COMMAND_NOT_FOUND, GENERIC_ERROR, NOT_NEGOTIATED, cut, error, greeting,
    line_of, success,
};
use crate::monitor::Reply;
use crate::policy::schema::{Direction, Schema, Version};
use crate::policy::{Denied, Policy};

/// Commands a client may have waiting; it is not read from beyond that.
pub const WAITING: usize = 8;

/// The outcome of one message from a client.
#[derive(Debug)]
enum Open {
    /// For QEMU.
    Command {
        name: String,
        id: Option<Json>,
        row: usize,
        arguments: Option<Json>,
    },
    /// QEMU has it.
    Sent {
        name: String,
        id: Option<Json>,
        row: usize,
    },
    /// Answered here, once those before it are.
    Answered(Vec<u8>),
}

/// A command for QEMU.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Its name.
    pub name: String,
    /// Its arguments.
    pub arguments: Option<Json>,
}

/// The conversation.
#[derive(Debug)]
pub struct Conversation {
    policy: Arc<Policy>,
    number: u64,
    version: Version,
    lines: Lines,
    negotiated: bool,
    open: VecDeque<Open>,
}

impl Conversation {
    /// With client number `number`, about a QEMU of this version; and the greeting for it.
    pub fn begin(policy: Arc<Policy>, number: u64, version: Version) -> (Self, Vec<u8>) {
        let conversation = Self {
            lines: Lines::new(policy.limits.command),
            policy,
            number,
            version,
            negotiated: false,
            open: VecDeque::new(),
        };
        (conversation, greeting(version, ""))
    }

    /// Returns whether more of the client's bytes may be read.
    pub fn has_room(&self) -> bool {
        self.open.len() < WAITING
    }

    /// Returns whether a command of the client's waits for its answer.
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Takes bytes of the client, a few KiB at a time at most, and returns bytes for the client.
    pub fn handle_bytes(&mut self, bytes: &[u8], audit: &mut Audit) -> Vec<u8> {
        let mut lines = Vec::new();
        self.lines.push(bytes, |line| lines.push(line));
        for line in lines {
            let open = match line {
                Line::Whole(line) => self.judge(&line, audit),
                Line::TooLong(_) => self.deny("", None, "the command is too long", audit),
            };
            self.open.push_back(open);
        }
        self.ready()
    }

    fn judge(&mut self, line: &[u8], audit: &mut Audit) -> Open {
        let command = match Json::read(line, &self.policy.limits.json) {
            Ok(command) => command,
            Err(why) => {
                let what = match why.is_json() {
                    true => "a command beyond what is taken",
                    false => "no proper JSON",
                };
                return self.deny("", None, &format!("{what}: {why}"), audit);
            }
        };
        let Json::Map(members) = &command else {
            return self.deny("", None, "a command is an object", audit);
        };
        let id = match command.get("id") {
            None => None,
            Some(id @ Json::Int(_)) => Some(id.clone()),
            Some(Json::Text(text)) if text.len() <= 128 => Some(Json::Text(text.clone())),
            Some(_) => return self.deny("", None, "an id is an integer or a short string", audit),
        };
        let Some(name) = command.get("execute").and_then(Json::text) else {
            return self.deny("", id, "execute is missing", audit);
        };
        let known = |key: &str| matches!(key, "execute" | "arguments" | "id");
        if let Some((key, _)) = members.iter().find(|m| !known(&m.0)) {
            return self.deny(name, id, &format!("{key} is not expected"), audit);
        }
        let given = command.get("arguments");
        match (name == "qmp_capabilities", self.negotiated) {
            (true, false) => return self.negotiate(given, id, audit),
            (true, true) => {
                return Open::Answered(error(COMMAND_NOT_FOUND, ALREADY_NEGOTIATED, id));
            }
            (false, false) => {
                return Open::Answered(error(COMMAND_NOT_FOUND, NOT_NEGOTIATED, id));
            }
            (false, true) => {}
        }
        match self.policy.command(name, given, self.version) {
            Ok(allowed) => Open::Command {
                name: name.to_owned(),
                id,
                row: allowed.row,
                arguments: allowed.arguments,
            },
            Err(denied) => {
                let class = match denied {
                    Denied::Unknown => COMMAND_NOT_FOUND,
                    Denied::Arguments(_) => GENERIC_ERROR,
                };
                self.deny_as(class, name, id, &denied.to_string(), audit)
            }
        }
    }

    fn negotiate(&mut self, given: Option<&Json>, id: Option<Json>, audit: &mut Audit) -> Open {
        let nothing = map([]);
        let fits = Schema::Map(Vec::new()).rebuild(given.unwrap_or(&nothing), Direction::FromQemu);
        let enables = match given.and_then(|given| given.get("enable")) {
            Some(Json::List(list)) => !list.is_empty(),
            other => other.is_some(),
        };
        if fits.is_err() || enables {
            return self.deny("qmp_capabilities", id, "no capability is offered", audit);
        }
        self.negotiated = true;
        Open::Answered(success(nothing, id))
    }

    fn deny(&self, name: &str, id: Option<Json>, why: &str, audit: &mut Audit) -> Open {
        self.deny_as(GENERIC_ERROR, name, id, why, audit)
    }

    fn deny_as(
        &self,
        class: &str,
        name: &str,
        id: Option<Json>,
        why: &str,
        audit: &mut Audit,
    ) -> Open {
        audit.note(Verdict::Denied, self.number, name, Some(why));
        Open::Answered(error(class, &format!("stubdm-run: {why}"), id))
    }

    /// The answers that are due.
    fn ready(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(Open::Answered(_)) = self.open.front() {
            if let Some(Open::Answered(bytes)) = self.open.pop_front() {
                out.extend(bytes);
            }
        }
        out
    }

    /// Returns whether [`Conversation::poll_request`] has one.
    pub fn has_request(&self) -> bool {
        matches!(self.open.front(), Some(Open::Command { .. }))
    }

    /// The next command for QEMU, which has it from now on. None while QEMU has one.
    pub fn poll_request(&mut self) -> Option<Request> {
        if !self.has_request() {
            return None;
        }
        let Some(Open::Command {
            name,
            id,
            row,
            arguments,
        }) = self.open.pop_front()
        else {
            return None;
        };
        let sent = name.clone();
        self.open.push_front(Open::Sent {
            name: sent,
            id,
            row,
        });
        Some(Request { name, arguments })
    }

    /// Takes QEMU's reply to the command in progress, and returns bytes for the client.
    pub fn handle_reply(&mut self, reply: Reply, audit: &mut Audit) -> Vec<u8> {
        if !matches!(self.open.front(), Some(Open::Sent { .. })) {
            return Vec::new();
        }
        let Some(Open::Sent { name, id, row }) = self.open.pop_front() else {
            return Vec::new();
        };
        let refused = |why: &str, id, audit: &mut Audit| {
            audit.note(Verdict::Refused, self.number, &name, Some(why));
            error(GENERIC_ERROR, &format!("stubdm-run: {}", cut(why)), id)
        };
        let mut out = match reply {
            Reply::Return(value) => match self.policy.answer(row, &value) {
                Ok(value) => {
                    audit.note(Verdict::Answered, self.number, &name, None);
                    success(value, id)
                }
                Err(why) => {
                    let why = format!("the answer is outside the policy: {why}");
                    refused(&why, id, audit)
                }
            },
            Reply::Error { class, desc } => {
                audit.note(Verdict::Failed, self.number, &name, None);
                error(class, &desc, id)
            }
            Reply::Unusable(why) => refused(&why, id, audit),
        };
        out.extend(self.ready());
        out
    }

    /// Answers everything open with an error that contains `why`, because QEMU cannot be asked.
    pub fn give_up(&mut self, why: &str, audit: &mut Audit) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(open) = self.open.pop_front() {
            match open {
                Open::Answered(bytes) => out.extend(bytes),
                Open::Command { name, id, .. } | Open::Sent { name, id, .. } => {
                    audit.note(Verdict::Refused, self.number, &name, Some(why));
                    out.extend(error(GENERIC_ERROR, &format!("stubdm-run: {why}"), id));
                }
            }
        }
        out
    }

    /// The client left: what QEMU does not have yet, it will not get.
    pub fn abandon(self, audit: &mut Audit) {
        for open in self.open {
            if let Open::Command { name, .. } = open {
                let why = "the client left before its turn";
                audit.note(Verdict::Denied, self.number, &name, Some(why));
            }
        }
    }

    /// An event for the client, if the policy passes it. Callers bound how many.
    pub fn handle_event(&self, name: &str, data: Option<&Json>) -> Option<Vec<u8>> {
        if !self.negotiated {
            return None;
        }
        let data = self.policy.event(name, data)?;
        Some(line_of(&map([("event", Json::from(name)), ("data", data)])))
    }
}
