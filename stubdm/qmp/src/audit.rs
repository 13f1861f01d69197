//! The audit: one JSON object for each decision, and how much was dropped.
//!
//! Lines wait until they are fetched, [`KEPT`] of them at most. Those that find no room are counted
//! by verdict, and the counts follow as lines of their own: none is lost without a number.

use std::collections::VecDeque;

use crate::encode::cut;
use crate::json::{Json, map};

/// Lines kept until they are fetched.
pub const KEPT: usize = 64;

/// A line of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The decision.
    pub verdict: &'static str,
    /// How many decisions or messages it is about.
    pub count: u64,
    /// The JSON object.
    pub text: String,
}

/// The lines nobody fetched yet.
#[derive(Debug, Default)]
pub struct Audit {
    lines: VecDeque<Line>,
    /// Events that found no room, by verdict.
    left_out: Vec<(&'static str, u64)>,
    dropped: u64,
}

impl Audit {
    /// Something was decided about a command of a client's.
    pub fn note(&mut self, verdict: &'static str, client: u64, command: &str, why: Option<&str>) {
        let why = why.map(|why| ("why", Json::from(cut(why))));
        self.add(verdict, Some(client), command, why);
    }

    /// A command has been in QEMU's hands for so long.
    pub fn waiting(&mut self, client: Option<u64>, command: &str, seconds: u64) {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        let seconds = ("seconds", Json::Int(seconds));
        self.add("waiting", client, command, Some(seconds));
    }

    fn add(
        &mut self,
        verdict: &'static str,
        client: Option<u64>,
        command: &str,
        more: Option<(&str, Json)>,
    ) {
        if self.lines.len() >= KEPT {
            match self.left_out.iter_mut().find(|out| out.0 == verdict) {
                Some((_, count)) => *count = count.saturating_add(1),
                None => self.left_out.push((verdict, 1)),
            }
            return;
        }
        let mut members = vec![("audit".to_owned(), Json::from(verdict))];
        let client = client.and_then(|client| i64::try_from(client).ok());
        members.extend(client.map(|client| ("client".to_owned(), Json::Int(client))));
        members.push(("command".to_owned(), Json::from(cut(command))));
        members.extend(more.map(|(key, value)| (key.to_owned(), value)));
        self.lines.push_back(Line {
            verdict,
            count: 1,
            text: Json::Map(members).to_string(),
        });
    }

    /// A message of QEMU's went nowhere.
    pub fn drop_one(&mut self) {
        self.dropped = self.dropped.saturating_add(1);
    }

    /// The next line; after the last one that was kept, how many were not, one line a verdict.
    pub fn next_line(&mut self) -> Option<Line> {
        if let Some(line) = self.lines.pop_front() {
            return Some(line);
        }
        let (verdict, count) = self.left_out.pop()?;
        let left_out = ("left-out", number(count));
        let text = map([("audit", Json::from(verdict)), left_out]).to_string();
        Some(Line {
            verdict,
            count,
            text,
        })
    }

    /// How many messages of QEMU's were dropped since this was last asked, if any were.
    pub fn dropped(&mut self) -> Option<Line> {
        let count = std::mem::take(&mut self.dropped);
        let verdict = "dropped";
        let text = map([("audit", Json::from(verdict)), ("count", number(count))]).to_string();
        (count > 0).then_some(Line {
            verdict,
            count,
            text,
        })
    }
}

fn number(count: u64) -> Json {
    Json::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_counted_and_the_count_is_a_line() {
        let mut audit = Audit::default();
        for n in 0..1000 {
            audit.note(["denied", "failed"][n % 2], 1, "quit", None);
        }
        let lines: Vec<Line> = std::iter::from_fn(|| audit.next_line()).collect();
        assert_eq!(lines.len(), KEPT + 2);
        for verdict in ["denied", "failed"] {
            let of = lines.iter().filter(|line| line.verdict == verdict);
            assert_eq!(of.map(|line| line.count).sum::<u64>(), 500);
        }
        assert_eq!(
            lines.last().unwrap().text,
            r#"{"audit":"denied","left-out":468}"#
        );
        audit.note("denied", 1, "quit", None);
        assert_eq!(audit.next_line().unwrap().count, 1);
        assert_eq!(audit.next_line(), None);
    }
}
