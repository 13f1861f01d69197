//! The policy: which QMP commands pass from the toolstack to a QEMU that may be hostile, with
//! which arguments, and what of its answers passes back.
//!
//! ```text
//!   a line ──json──▶ value ──row's shape──▶ value rebuilt ──json──▶ a line of our own
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`json`] | JSON under limits |
//! | [`form`], [`shape`] | what a value has to look like |
//! | `file`, `default.toml` | the policy as text |
//! | [`conversation`] | one client's conversation under a policy |
//! | [`monitor`] | QEMU's side of it |
//! | [`message`], [`audit`] | the lines this program writes itself |
//! | [`learn`] | a policy from what was seen |
//! | [`person`] | `stubdm-run policy` |
//!
//! Nothing here does I/O but the reading of a policy's file and what a person is shown. `docs/proxy.md` says what holds.

pub mod audit;
pub mod conversation;
mod file;
pub mod form;
pub mod json;
pub mod learn;
pub mod message;
pub mod monitor;
pub mod person;
pub mod shape;

use std::path::{Path, PathBuf};

use self::json::{Json, map};
use self::shape::{Misfit, Shape, Version, Way};
use crate::error::{Context, Failure, Result};
use crate::qmp::lines::LINE_MAX;

/// The policy that is built in.
pub const BUILT_IN: &str = include_str!("default.toml");

/// Where an administrator's own policy is looked for.
pub const PATH: &str = "/etc/stubdm/qmp-policy.toml";

/// How much of anything there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a command.
    pub command: usize,
    /// Bytes of an answer or an event.
    pub answer: usize,
    /// What one message may hold.
    pub json: json::Limits,
}

/// A command with arguments of one kind, and its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What people call it.
    pub name: String,
    /// The QMP command.
    pub command: String,
    /// When the toolstack sends it.
    pub when: String,
    /// Its arguments.
    pub arguments: Shape,
    /// What it returns.
    pub answer: Shape,
}

/// An event that is passed on.
#[derive(Clone, Debug, PartialEq)]
pub struct EventRow {
    /// Its name.
    pub name: String,
    /// Its data.
    pub data: Shape,
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

/// A command that may pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Allowed {
    /// The row that allows it, by number.
    pub row: usize,
    /// The arguments as they go on; `None` when there are none.
    pub arguments: Option<Json>,
}

/// A command that may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The command has no row.
    Unknown,
    /// It has one or more, and the arguments fit none; why not the one that came closest.
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

/// The policy that holds on a host, before it is needed.
#[derive(Debug)]
pub enum Found {
    /// The built-in one, which is right for certain and is not read yet.
    BuiltIn,
    /// One from a file.
    File(Box<Policy>, PathBuf),
}

impl Found {
    /// Looks as [`Policy::of_host`] says.
    ///
    /// # Errors
    /// As for it.
    pub fn on_host(named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(PATH));
        match std::fs::symlink_metadata(path) {
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::BuiltIn)
            }
            _ => Ok(Self::File(
                Box::new(Policy::from_file(path)?),
                path.to_owned(),
            )),
        }
    }

    /// The policy.
    ///
    /// # Errors
    /// None that a test of this program has not seen.
    pub fn policy(self) -> Result<Policy> {
        match self {
            Self::BuiltIn => Policy::built_in(),
            Self::File(policy, _) => Ok(*policy),
        }
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in"),
            Self::File(_, path) => path.display().fmt(f),
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
    pub fn built_in() -> Result<Self> {
        let nested = || Err("the built-in policy has no base".to_owned());
        file::read(BUILT_IN, nested).context("the built-in policy")
    }

    /// A policy from TOML text; `name` says where the text is from.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn from_toml(text: &str, name: &str) -> Result<Self> {
        let built_in = || Self::built_in().map_err(|error| error.to_string());
        file::read(text, built_in).context(format_args!("policy {name}"))
    }

    /// The policy in a file.
    ///
    /// # Errors
    /// It cannot be read, is longer than 1 MiB, or is no policy.
    pub fn from_file(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let what = format!("policy {name}");
        let length = std::fs::metadata(path).context(&what)?.len();
        if length > 1 << 20 {
            return Err(Failure::new(format_args!(
                "{what}: {length} bytes is too long"
            )));
        }
        let text = std::fs::read_to_string(path).context(&what)?;
        Self::from_toml(&text, &name)
    }

    /// The policy that holds on this host: the file named, else the administrator's, else the
    /// built-in one; and where it is from.
    ///
    /// # Errors
    /// As [`Policy::from_file`]. A policy that is there and wrong is never passed over.
    pub fn of_host(named: Option<&Path>) -> Result<(Self, String)> {
        let found = Found::on_host(named)?;
        let source = found.to_string();
        Ok((found.policy()?, source))
    }

    /// Whether a command may pass to a QEMU of this version.
    ///
    /// # Errors
    /// It may not, and why.
    pub fn command(
        &self,
        name: &str,
        arguments: Option<&Json>,
        version: Version,
    ) -> std::result::Result<Allowed, Denied> {
        let empty = map([]);
        let given = arguments.unwrap_or(&empty);
        let mut closest: Option<(usize, Misfit)> = None;
        for (row, entry) in self.rows.iter().enumerate() {
            if entry.command != name {
                continue;
            }
            match entry.arguments.rebuild(given, Way::ToQemu(version)) {
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
    pub fn answer(&self, row: usize, value: &Json) -> std::result::Result<Json, String> {
        let row = self.rows.get(row).ok_or("no such row")?;
        let rebuilt = row.answer.rebuild(value, Way::FromQemu);
        rebuilt.map_err(|misfit| misfit.to_string())
    }

    /// An event's data as it may pass, `None` if the event may not.
    pub fn event(&self, name: &str, data: Option<&Json>) -> Option<Json> {
        let row = self.events.iter().find(|row| row.name == name)?;
        row.data
            .rebuild(data.unwrap_or(&map([])), Way::FromQemu)
            .ok()
    }
}

impl Row {
    /// How many members keep these arguments from fitting.
    fn distance(&self, given: &Json, version: Version) -> usize {
        let (Shape::Map(members), Json::Map(given)) = (&self.arguments, given) else {
            return usize::MAX;
        };
        let unknown = given
            .iter()
            .filter(|g| members.iter().all(|m| m.key != g.0));
        let wrong = members
            .iter()
            .filter(|m| match given.iter().find(|g| g.0 == m.key) {
                Some((_, value)) => m.shape.rebuild(value, Way::ToQemu(version)).is_err(),
                None => !m.optional,
            });
        unknown.count() + wrong.count()
    }
}

#[cfg(test)]
mod tests;
