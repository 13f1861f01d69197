//! A policy written from what was seen: the log of a proxy that passed everything, or QMP messages
//! line by line.
//!
//! ```text
//!   log ──lines──▶ messages ──by id──▶ command, arguments, answer ──▶ a row that fits just these
//! ```
//!
//! It takes what was seen for what is meant, so the log must come from a stubdomain that is not
//! hostile. A person reviews the result before it is used.

mod values;

use std::collections::BTreeMap;

use crate::json::Json;
use crate::learn::values::{Values, quoted};
use crate::policy::schema::Version;
use crate::policy::{Limits, Policy, PolicyError};

/// The longest log that is read, in bytes.
pub const LOG_MAX: u64 = 64 << 20;

/// The words before a message in a proxy's log.
const FROM_CLIENT: &str = " from client: ";
const FROM_QEMU: &str = " from vchan: ";

/// One kind of command: its name and which arguments it has.
type Kind = (String, Vec<String>);

/// The messages seen of one kind.
#[derive(Debug, Default)]
struct Use {
    times: usize,
    arguments: Values,
    answers: Values,
    answered: bool,
}

/// A command whose answer is awaited.
#[derive(Debug)]
struct Pending {
    id: Json,
    kind: Kind,
    arguments: Option<Json>,
}

/// Reads a log, and returns a policy for what it shows, as TOML. If `base` is given, the policy has
/// only rows for what `base` does not allow: they extend the built-in policy's.
///
/// # Errors
/// The log shows no QMP, or what it shows makes no policy.
pub fn learn(log: &str, base: Option<&Policy>) -> Result<String, PolicyError> {
    let mut uses: BTreeMap<Kind, Use> = BTreeMap::new();
    let mut open: Vec<Pending> = Vec::new();
    let mut commands = 0;
    for message in messages(log) {
        if let Some(name) = message.get("execute").and_then(Json::text) {
            commands += 1;
            let arguments = message.get("arguments").cloned();
            let mut keys = match &arguments {
                Some(Json::Map(members)) => members.iter().map(|m| m.0.clone()).collect(),
                _ => Vec::new(),
            };
            keys.sort();
            let id = message.get("id").cloned().unwrap_or(Json::Null);
            let kind = (name.to_owned(), keys);
            open.retain(|asked| asked.id != id);
            open.push(Pending {
                id,
                kind,
                arguments,
            });
            continue;
        }
        let id = message.get("id").cloned().unwrap_or(Json::Null);
        let Some(at) = open.iter().position(|asked| asked.id == id) else {
            continue;
        };
        let asked = open.remove(at);
        note(&mut uses, asked, message.get("return"), base);
    }
    for asked in open {
        note(&mut uses, asked, None, base);
    }
    if commands == 0 {
        return Err(PolicyError("no QMP command is in this log".to_owned()));
    }
    written(&uses, base.is_some())
}

fn note(
    uses: &mut BTreeMap<Kind, Use>,
    asked: Pending,
    answer: Option<&Json>,
    base: Option<&Policy>,
) {
    let (name, given) = (asked.kind.0.as_str(), asked.arguments.as_ref());
    let known = base.is_some_and(|base| match base.command(name, given, Version::default()) {
        Ok(allowed) => answer.is_none_or(|answer| base.answer(allowed.row, answer).is_ok()),
        Err(_) => false,
    });
    if known || name == "qmp_capabilities" {
        return;
    }
    let entry = uses.entry(asked.kind).or_default();
    entry.times += 1;
    if let Some(arguments) = &asked.arguments {
        entry.arguments.add(arguments);
    }
    if let Some(answer) = answer {
        entry.answered = true;
        entry.answers.add(answer);
    }
}

fn written(uses: &BTreeMap<Kind, Use>, on_top: bool) -> Result<String, PolicyError> {
    let base = if on_top { "built-in" } else { "nothing" };
    let mut text = format!(
        "# Written by `stubdm-run policy learn` from what was seen. Read it before it holds.\n\
         version = 1\nbase = \"{base}\"\n"
    );
    for ((name, _), entry) in uses {
        text += &format!(
            "\n# seen {} times\n[[row]]\ncommand = {}\n",
            entry.times,
            quoted(name)
        );
        for (key, schema) in entry.arguments.members(values::Side::Arguments)? {
            text += &format!("arguments.{} = {schema}\n", quoted(&key));
        }
        if !entry.answered {
            text += "# no answer was seen: only success is told\n";
        } else if let Some(schema) = entry.answers.schema(values::Side::Answers)? {
            text += &format!("answer = {schema}\n");
        }
    }
    // The text has to be a policy.
    Policy::from_toml(&text, "as learnt")?;
    Ok(text)
}

/// The messages of a log, in order.
fn messages(log: &str) -> Vec<Json> {
    let limits = Policy::nothing().limits;
    let mut found = Vec::new();
    let mut streams = [String::new(), String::new()];
    for line in log.lines() {
        let piece = |word: &str| line.split_once(word).map(|(_, piece)| piece);
        let (stream, piece) = match (piece(FROM_CLIENT), piece(FROM_QEMU)) {
            (Some(piece), _) => (0, piece),
            (None, Some(piece)) => (1, piece),
            (None, None) if line.trim_start().starts_with('{') => {
                found.extend(Json::read(line.trim().as_bytes(), &limits.json).ok());
                continue;
            }
            _ => continue,
        };
        let Some(text) = streams.get_mut(stream) else {
            continue;
        };
        text.push_str(piece);
        take_whole(text, &limits, &mut found);
    }
    found
}

/// Takes whole messages from the front of a stream; what makes none is given up.
#[allow(clippy::disallowed_methods)] // Finds where a value ends, in a log that a person named, and keeps nothing.
fn take_whole(text: &mut String, limits: &Limits, found: &mut Vec<Json>) {
    loop {
        let mut values =
            serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
        match values.next() {
            Some(Ok(_)) => {
                let end = values.byte_offset();
                let whole = text.get(..end).unwrap_or_default();
                found.extend(Json::read(whole.as_bytes(), &limits.json).ok());
                text.drain(..end);
            }
            Some(Err(error)) if error.is_eof() && text.len() <= limits.answer => return,
            Some(Err(_)) => return text.clear(),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests;
