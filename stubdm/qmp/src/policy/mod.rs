//! The policy: which QMP commands pass from the toolstack to a QEMU that may be hostile, with
//! which arguments, and what of its answers passes back.
//!
//! ```text
//!   a line ──json──▶ value ──row's schema──▶ value rebuilt ──json──▶ a line of our own
//! ```

mod file;
pub mod pattern;
pub mod schema;

use crate::json::{self, Json, map};
use crate::lines::LINE_MAX;
use crate::policy::schema::{Direction, Misfit, Schema, Version};
use crate::text::one_line;

/// The policy that is built in.
pub const BUILT_IN: &str = include_str!("default.toml");

/// How much of anything there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a command.
    pub command: usize,
    /// Bytes of an answer or an event.
    pub answer: usize,
    /// The limits of one message.
    pub json: json::Limits,
}

/// A command with arguments of one kind, and its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its name for people.
    pub name: String,
    /// The QMP command.
    pub command: String,
    /// When the toolstack sends it.
    pub when: String,
    /// Its arguments.
    pub arguments: Schema,
    /// Its answer.
    pub answer: Schema,
}

/// An event that is passed on.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow {
    /// Its name.
    pub name: String,
    /// Its data.
    pub data: Schema,
}

/// The policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The limits.
    pub limits: Limits,
    /// The rows; the first that fits is taken.
    pub rows: Vec<Row>,
    /// The events.
    pub events: Vec<EventRow>,
}

/// Text that is no policy, and why, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PolicyError(pub(crate) String);

/// A command that may pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Allowed {
    /// The row that allows it, by number.
    pub row: usize,
    /// The arguments as they are passed on; `None` when there are none.
    pub arguments: Option<Json>,
}

/// A command that may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The command has no row.
    Unknown,
    /// It has one or more, and the arguments fit none. Holds the reason of the closest one.
    Arguments(String),
}

impl std::fmt::Display for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown => f.write_str("the command is not in the policy"),
            Self::Arguments(why) => write!(f, "arguments outside the policy: {why}"),
        }
    }
}

impl Policy {
    /// Nothing passes, under the built-in limits.
    pub fn nothing() -> Self {
        Self {
            limits: Limits {
                command: 64 << 10,
                answer: 256 << 10,
                json: json::Limits {
                    bytes: LINE_MAX,
                    depth: 32,
                    elements: 20_000,
                    text: 128 << 10,
                },
            },
            rows: Vec::new(),
            events: Vec::new(),
        }
    }

    /// The built-in policy.
    ///
    /// # Errors
    /// None in a program whose tests ran.
    pub fn built_in() -> Result<Self, PolicyError> {
        let nested = || Err("the built-in policy has no base".to_owned());
        file::read(BUILT_IN, nested)
            .map_err(|why| PolicyError(format!("the built-in policy: {why}")))
    }

    /// Parses a policy from TOML text; errors use `name` for the origin of the text.
    ///
    /// # Errors
    /// One line that names the fault and its place.
    pub fn from_toml(text: &str, name: &str) -> Result<Self, PolicyError> {
        let built_in = || Self::built_in().map_err(|error| error.to_string());
        file::read(text, built_in)
            .map_err(|why| PolicyError(one_line(&format!("policy {name}: {why}"))))
    }

    /// Returns whether a command may pass to a QEMU of this version.
    ///
    /// # Errors
    /// It may not, and why.
    pub fn command(
        &self,
        name: &str,
        arguments: Option<&Json>,
        version: Version,
    ) -> Result<Allowed, Denied> {
        let empty = map([]);
        let given = arguments.unwrap_or(&empty);
        let mut closest: Option<(usize, Misfit)> = None;
        for (row, entry) in self.rows.iter().enumerate() {
            if entry.command != name {
                continue;
            }
            match entry.arguments.rebuild(given, Direction::ToQemu(version)) {
                Ok(rebuilt) => {
                    let arguments = (rebuilt != empty).then_some(rebuilt);
                    return Ok(Allowed { row, arguments });
                }
                Err(misfit) => {
                    let distance = entry.distance(given, version);
                    if closest.as_ref().is_none_or(|(best, _)| distance < *best) {
                        closest = Some((distance, misfit));
                    }
                }
            }
        }
        Err(closest.map_or(Denied::Unknown, |(_, misfit)| {
            Denied::Arguments(misfit.to_string())
        }))
    }

    /// A command's answer as it may pass back.
    ///
    /// # Errors
    /// It does not look like an answer to that command.
    pub fn answer(&self, row: usize, value: &Json) -> Result<Json, String> {
        let row = self.rows.get(row).ok_or("no such row")?;
        let rebuilt = row.answer.rebuild(value, Direction::FromQemu);
        rebuilt.map_err(|misfit| misfit.to_string())
    }

    /// An event's data as it may pass, `None` if the event may not.
    pub fn event(&self, name: &str, data: Option<&Json>) -> Option<Json> {
        let row = self.events.iter().find(|row| row.name == name)?;
        row.data
            .rebuild(data.unwrap_or(&map([])), Direction::FromQemu)
            .ok()
    }
}

impl Row {
    /// Returns how many members keep these arguments from fitting.
    fn distance(&self, given: &Json, version: Version) -> usize {
        let (Schema::Map(members), Json::Map(given)) = (&self.arguments, given) else {
            return usize::MAX;
        };
        let unknown = given
            .iter()
            .filter(|g| members.iter().all(|m| m.key != g.0));
        let wrong = members
            .iter()
            .filter(|m| match given.iter().find(|g| g.0 == m.key) {
                Some((_, value)) => m.schema.rebuild(value, Direction::ToQemu(version)).is_err(),
                None => !m.optional,
            });
        unknown.count() + wrong.count()
    }
}

#[cfg(test)]
mod tests;
