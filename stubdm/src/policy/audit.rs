//! The audit: one JSON object for each decision, and how much was dropped.

use std::collections::VecDeque;

use super::json::Json;
use super::message::cut;

/// Lines kept until they are fetched.
const KEPT: usize = 64;

/// The lines nobody fetched yet.
#[derive(Debug, Default)]
pub struct Audit {
    lines: VecDeque<Json>,
    dropped: u64,
}

impl Audit {
    /// Something was decided about a command of a client's.
    pub fn note(&mut self, verdict: &str, client: u64, command: &str, why: Option<&str>) {
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
        verdict: &str,
        client: Option<u64>,
        command: &str,
        more: Option<(&str, Json)>,
    ) {
        if self.lines.len() >= KEPT {
            return;
        }
        let mut members = vec![("audit".to_owned(), Json::from(verdict))];
        let client = client.and_then(|client| i64::try_from(client).ok());
        members.extend(client.map(|client| ("client".to_owned(), Json::Int(client))));
        members.push(("command".to_owned(), Json::from(cut(command))));
        members.extend(more.map(|(key, value)| (key.to_owned(), value)));
        self.lines.push_back(Json::Map(members));
    }

    /// A message of QEMU's went nowhere.
    pub fn drop_one(&mut self) {
        self.dropped = self.dropped.saturating_add(1);
    }

    /// The next line: a JSON object.
    pub fn next_line(&mut self) -> Option<String> {
        self.lines.pop_front().map(|line| line.to_string())
    }

    /// How many messages of QEMU's were dropped since this was last asked, if any were.
    pub fn dropped(&mut self) -> Option<String> {
        if self.dropped == 0 {
            return None;
        }
        let count = i64::try_from(std::mem::take(&mut self.dropped)).unwrap_or(i64::MAX);
        let members = [
            ("audit", Json::from("dropped")),
            ("count", Json::Int(count)),
        ];
        Some(super::json::map(members).to_string())
    }
}
