//! A policy as text: what its TOML looks like, and the checks that turn it into a [`Policy`].
//!
//! Every fault is one line that names the row and the key.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::json;
use crate::policy::pattern::Pattern;
use crate::policy::schema::{Member, Schema, Version};
use crate::policy::{EventRow, Limits, Policy, Row};
use crate::text::one_line;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: i64,
    base: Option<String>,
    #[serde(default)]
    deny: Vec<String>,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    row: Vec<RawRow>,
    #[serde(default)]
    event: Vec<RawEvent>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    command: Option<usize>,
    answer: Option<usize>,
    depth: Option<usize>,
    elements: Option<usize>,
    text: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRow {
    command: String,
    name: Option<String>,
    #[serde(default)]
    when: String,
    #[serde(default)]
    arguments: BTreeMap<String, RawSchema>,
    answer: Option<RawSchema>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEvent {
    event: String,
    #[serde(default)]
    data: BTreeMap<String, RawSchema>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSchema {
    optional: Option<bool>,
    nothing: Option<bool>,
    bool: Option<bool>,
    int: Option<[i64; 2]>,
    number: Option<[i64; 2]>,
    integer_since: Option<String>,
    one_of: Option<Vec<String>>,
    form: Option<String>,
    name: Option<usize>,
    ends_with: Option<Vec<String>>,
    line: Option<usize>,
    lines: Option<usize>,
    list: Option<Box<Self>>,
    most: Option<usize>,
    object: Option<BTreeMap<String, Self>>,
}

type Checked<T> = Result<T, String>;

/// The most a limit may be set to, which keeps the proxy within its memory.
const ANSWER_MAX: usize = 1 << 20;
const COMMAND_MAX: usize = 256 << 10;
const ELEMENTS_MAX: usize = 100_000;
const DEPTH_MAX: usize = 100;
/// Rows a policy may have, and the greatest depth of its schemas.
const ROWS_MAX: usize = 1000;
const SCHEMA_DEPTH: usize = 16;

/// Reads a policy.
///
/// # Errors
/// One line that names the fault and its place.
pub(super) fn read(text: &str, built_in: impl FnOnce() -> Checked<Policy>) -> Checked<Policy> {
    let file: File = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(0, |span| {
            let before = text.get(..span.start).unwrap_or(text);
            before.matches('\n').count() + 1
        });
        format!("line {line}: {}", one_line(error.message()))
    })?;
    if file.version != 1 {
        return Err(format!("version {}, where only 1 is known", file.version));
    }
    let mut policy = match file.base.as_deref() {
        Some("nothing") => Policy::nothing(),
        None | Some("built-in") => built_in()?,
        Some(other) => {
            return Err(format!(
                "base {other:?} is neither \"built-in\" nor \"nothing\""
            ));
        }
    };
    for command in &file.deny {
        let before = policy.rows.len();
        policy.rows.retain(|row| row.command != *command);
        if policy.rows.len() == before {
            return Err(format!("deny: {command:?} is not in the base"));
        }
    }
    limits(&mut policy.limits, &file.limits)?;
    let mut rows = Vec::new();
    for (n, raw) in file.row.into_iter().enumerate() {
        let what = format!("row {} ({})", n + 1, one_line(&raw.command));
        rows.push(row(raw).map_err(|why| format!("{what}: {why}"))?);
    }
    rows.append(&mut policy.rows);
    for (n, row) in rows.iter().enumerate() {
        let same = |other: &Row| other.command == row.command && other.arguments == row.arguments;
        if rows.iter().take(n).any(same) {
            return Err(format!("{:?} has the same row twice", row.command));
        }
    }
    if rows.len() > ROWS_MAX {
        return Err(format!("more than {ROWS_MAX} rows"));
    }
    policy.rows = rows;
    for raw in file.event {
        let what = format!("event {:?}", one_line(&raw.event));
        plain(&raw.event).map_err(|why| format!("{what}: {why}"))?;
        let data = members(raw.data, 0).map_err(|why| format!("{what}, data {why}"))?;
        policy.events.push(EventRow {
            name: raw.event,
            data: Schema::Map(data),
        });
    }
    Ok(policy)
}

fn at_most(what: &str, value: usize, most: usize) -> Checked<usize> {
    if (1..=most).contains(&value) {
        Ok(value)
    } else {
        Err(format!("{what}: {value} is not within 1..{most}"))
    }
}

fn limits(limits: &mut Limits, raw: &RawLimits) -> Checked<()> {
    let set = |name: &str, slot: &mut usize, value: Option<usize>, most| -> Checked<()> {
        if let Some(value) = value {
            *slot = at_most(&format!("limits, {name}"), value, most)?;
        }
        Ok(())
    };
    set("command", &mut limits.command, raw.command, COMMAND_MAX)?;
    set("answer", &mut limits.answer, raw.answer, ANSWER_MAX)?;
    let json::Limits {
        bytes: _,
        depth,
        elements,
        text,
    } = &mut limits.json;
    set("depth", depth, raw.depth, DEPTH_MAX)?;
    set("elements", elements, raw.elements, ELEMENTS_MAX)?;
    set("text", text, raw.text, ANSWER_MAX)
}

/// A command's or an event's name.
fn plain(name: &str) -> Checked<()> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if name.is_empty() || name.len() > 100 || !name.bytes().all(ok) {
        return Err("is no name that QMP could have".into());
    }
    Ok(())
}

fn row(raw: RawRow) -> Checked<Row> {
    plain(&raw.command)?;
    if raw.command == "qmp_capabilities" {
        return Err("is answered by the proxy and takes no row".into());
    }
    let arguments = members(raw.arguments, 0).map_err(|why| format!("argument {why}"))?;
    let answer = raw
        .answer
        .map_or(Ok(Schema::Nothing), |raw| read_schema(raw, 0).map(|s| s.0));
    Ok(Row {
        name: one_line(&raw.name.unwrap_or_else(|| raw.command.clone())),
        when: one_line(&raw.when),
        arguments: Schema::Map(arguments),
        answer: answer.map_err(|why| format!("answer: {why}"))?,
        command: raw.command,
    })
}

fn members(raw: BTreeMap<String, RawSchema>, depth: usize) -> Checked<Vec<Member>> {
    let each = raw.into_iter().map(|(key, raw)| {
        let (schema, optional) =
            read_schema(raw, depth + 1).map_err(|why| format!("{key}: {why}"))?;
        Ok(Member {
            key,
            schema,
            optional,
        })
    });
    each.collect()
}

fn ordered([low, high]: [i64; 2]) -> Checked<(i64, i64)> {
    if low <= high {
        Ok((low, high))
    } else {
        Err(format!("the range {low}..{high} is empty"))
    }
}

/// The schema, and whether it may be missing.
fn read_schema(raw: RawSchema, depth: usize) -> Checked<(Schema, bool)> {
    if depth > SCHEMA_DEPTH {
        return Err(format!("nested deeper than {SCHEMA_DEPTH}"));
    }
    let optional = raw.optional.unwrap_or(false);
    let mut found = Vec::new();
    if raw.nothing == Some(true) {
        found.push(Schema::Nothing);
    }
    if raw.bool == Some(true) {
        found.push(Schema::Bool);
    }
    if let Some(range) = raw.int {
        let (low, high) = ordered(range)?;
        found.push(Schema::Int(low, high));
    }
    let since = raw.integer_since.as_deref().map(str::parse).transpose()?;
    match (raw.number, since) {
        (Some(range), since) => {
            let (low, high) = ordered(range)?;
            let never = Version(u16::MAX, 0, 0);
            found.push(Schema::Number(low, high, since.unwrap_or(never)));
        }
        (None, Some(_)) => return Err("integer_since goes with number".into()),
        (None, None) => {}
    }
    if let Some(all) = raw.one_of {
        if all.is_empty() {
            return Err("one_of is empty".into());
        }
        found.push(Schema::OneOf(all));
    }
    if let Some(form) = raw.form {
        found.push(Schema::Pattern(Pattern::new(&form)?));
    }
    match (raw.name, raw.ends_with) {
        (Some(most), ends) => {
            let most = at_most("name", most, ANSWER_MAX)?;
            found.push(Schema::Token(most, ends.unwrap_or_default()));
        }
        (None, Some(_)) => return Err("ends_with goes with name".into()),
        (None, None) => {}
    }
    if let Some(most) = raw.line {
        found.push(Schema::Line(at_most("line", most, ANSWER_MAX)?));
    }
    if let Some(most) = raw.lines {
        found.push(Schema::Lines(at_most("lines", most, ANSWER_MAX)?));
    }
    match (raw.list, raw.most) {
        (Some(of), Some(most)) => {
            let most = at_most("most", most, ELEMENTS_MAX)?;
            let of = read_schema(*of, depth + 1)
                .map_err(|why| format!("list: {why}"))?
                .0;
            found.push(Schema::List(Box::new(of), most));
        }
        (Some(_), None) => return Err("a list needs most, the number of items".into()),
        (None, Some(_)) => return Err("most goes with list".into()),
        (None, None) => {}
    }
    if let Some(object) = raw.object {
        found.push(Schema::Map(members(object, depth)?));
    }
    match (found.pop(), found.is_empty()) {
        (Some(schema), true) => Ok((schema, optional)),
        (None, _) => Err("no kind is given (bool, int, number, one_of, form, name, line, lines, list, object, nothing)".into()),
        (Some(_), false) => Err("more than one kind is given".into()),
    }
}
