//! The audit: one event for each decision, and how many were left out.
//!
//! Events wait until they are fetched, [`KEPT`] of them at most. Those that find no room are
//! counted by verdict, and the counts follow as events of their own: none is lost without a number.

use std::collections::VecDeque;
use std::fmt;

use crate::json::Json;
use crate::message::cut;

/// Events kept until they are fetched.
pub const KEPT: usize = 64;

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// QEMU answered the command, and the answer passed.
    Answered,
    /// The policy did not let the command pass.
    Denied,
    /// QEMU answered with an error.
    Failed,
    /// QEMU's answer did not pass.
    Refused,
    /// QEMU has had the command for long.
    Waiting,
    /// A message of QEMU's that nobody asked for.
    Dropped,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answered => "answered",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Waiting => "waiting",
            Self::Dropped => "dropped",
        })
    }
}

/// The details of an event besides its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
enum About {
    /// One command.
    Command {
        client: Option<u64>,
        name: String,
        why: Option<String>,
        seconds: Option<u64>,
    },
    /// So many that found no room.
    LeftOut(u64),
    /// So many messages.
    Messages(u64),
}

/// One event. Displayed, it is a JSON object on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    verdict: Verdict,
    about: About,
}

impl Event {
    /// The decision.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The number of decisions or messages.
    pub fn count(&self) -> u64 {
        match self.about {
            About::Command { .. } => 1,
            About::LeftOut(count) | About::Messages(count) => count,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, r#"{{"audit":"{}""#, self.verdict)?;
        match &self.about {
            About::Command {
                client,
                name,
                why,
                seconds,
            } => {
                if let Some(client) = client {
                    write!(f, r#","client":{client}"#)?;
                }
                write!(f, r#","command":{}"#, Json::from(name.as_str()))?;
                if let Some(why) = why {
                    write!(f, r#","why":{}"#, Json::from(why.as_str()))?;
                }
                if let Some(seconds) = seconds {
                    write!(f, r#","seconds":{seconds}"#)?;
                }
            }
            About::LeftOut(count) => write!(f, r#","left-out":{count}"#)?,
            About::Messages(count) => write!(f, r#","count":{count}"#)?,
        }
        f.write_str("}")
    }
}

/// The events nobody fetched yet.
#[derive(Debug, Default)]
pub struct Audit {
    events: VecDeque<Event>,
    /// The number that found no room, by verdict.
    left_out: Vec<(Verdict, u64)>,
    dropped: u64,
}

impl Audit {
    /// Notes what was decided about a client's command.
    pub fn note(&mut self, verdict: Verdict, client: u64, command: &str, why: Option<&str>) {
        self.add(verdict, Some(client), command, why, None);
    }

    /// Records that QEMU has had a command for `seconds` without an answer.
    pub fn waiting(&mut self, client: Option<u64>, command: &str, seconds: u64) {
        self.add(Verdict::Waiting, client, command, None, Some(seconds));
    }

    fn add(
        &mut self,
        verdict: Verdict,
        client: Option<u64>,
        command: &str,
        why: Option<&str>,
        seconds: Option<u64>,
    ) {
        if self.events.len() >= KEPT {
            match self.left_out.iter_mut().find(|out| out.0 == verdict) {
                Some((_, count)) => *count = count.saturating_add(1),
                None => self.left_out.push((verdict, 1)),
            }
            return;
        }
        let about = About::Command {
            client,
            name: cut(command).to_owned(),
            why: why.map(|why| cut(why).to_owned()),
            seconds,
        };
        self.events.push_back(Event { verdict, about });
    }

    /// Counts a message of QEMU's that was dropped.
    pub fn drop_one(&mut self) {
        self.dropped = self.dropped.saturating_add(1);
    }

    /// The next event; after the last one that was kept, how many were not, one event a verdict.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front().or_else(|| {
            let (verdict, count) = self.left_out.pop()?;
            let about = About::LeftOut(count);
            Some(Event { verdict, about })
        })
    }

    /// Returns how many messages of QEMU's were dropped since the last call, if any were.
    pub fn dropped(&mut self) -> Option<Event> {
        let count = std::mem::take(&mut self.dropped);
        (count > 0).then_some(Event {
            verdict: Verdict::Dropped,
            about: About::Messages(count),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_counted_and_the_count_is_a_line() {
        let mut audit = Audit::default();
        for n in 0..1000 {
            audit.note([Verdict::Denied, Verdict::Failed][n % 2], 1, "quit", None);
        }
        let events: Vec<Event> = std::iter::from_fn(|| audit.next_event()).collect();
        assert_eq!(events.len(), KEPT + 2);
        for verdict in [Verdict::Denied, Verdict::Failed] {
            let of = events.iter().filter(|event| event.verdict() == verdict);
            assert_eq!(of.map(Event::count).sum::<u64>(), 500);
        }
        assert_eq!(
            events.last().unwrap().to_string(),
            r#"{"audit":"denied","left-out":468}"#
        );
        audit.note(Verdict::Denied, 1, "quit", None);
        assert_eq!(audit.next_event().unwrap().count(), 1);
        assert_eq!(audit.next_event(), None);
    }
}
