//! Random store operations, carried out by our client and by libxenstore, and compared.
//!
//! `cargo xtask soak store-conformance` runs them on processes of C's daemons, the tests
//! `store/as_libxenstore_*` of the testbed's agent on real Xen.
//!
//! A script has the operations of four connections, one at a time, and follows from its seed alone.
//! Every answer is compared; so are the events of every watch, which are asked for by operations of
//! their own. Permitted differences are listed in [`DIFFERENCES`].

#![allow(
    clippy::unwrap_used,
    reason = "a script that cannot be carried out ends the test"
)]

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

mod differences;
mod libxenstore;
mod ours;
mod script;

use differences::Difference;
pub use differences::{Between, DIFFERENCES};
pub use libxenstore::Libxenstore;
pub use ours::Ours;
pub use script::{CONNECTIONS, FIRST_GUEST, GUESTS, Host, IDLE, Line, Op, script};

/// Lines before a difference that are shown.
const SHOWN: usize = 12;
/// Characters of a line, and of an answer, that are shown.
const SHOWN_TEXT: usize = 300;

/// Lines of a script.
const LENGTH: usize = 1500;

/// A comparison that has found no difference but those of the list.
#[derive(Clone, Debug)]
pub struct Comparison {
    between: Between,
    /// Answers compared.
    pub answers: u64,
    /// Instances of each of [`DIFFERENCES`].
    known: [usize; DIFFERENCES.len()],
    seeds: Range<u64>,
}

impl Comparison {
    /// Compares scripts from the seed `first` on until there are `wanted` answers. `answers`
    /// carries a script out on both sides.
    ///
    /// # Errors
    ///
    /// The first difference that is not listed, with its seed and the lines before it.
    pub fn run<E: fmt::Display>(
        between: Between,
        host: Host,
        first: u64,
        wanted: u64,
        mut answers: impl FnMut(u64, &[Line]) -> Result<[Vec<String>; 2], E>,
    ) -> Result<Self, String> {
        let mut this = Self {
            between,
            answers: 0,
            known: [0; DIFFERENCES.len()],
            seeds: first..first,
        };
        while this.answers < wanted {
            let seed = this.seeds.end;
            let script = script(seed, LENGTH, host);
            let compared = answers(seed, &script)
                .map_err(|error| format!("{error:#}"))
                .and_then(|[one, other]| this.compare(&script, &one, &other));
            compared
                .map_err(|difference| format!("STORE_CONFORMANCE_SEED={seed}: {difference}"))?;
            this.seeds.end += 1;
        }
        Ok(this)
    }

    fn compare(&mut self, script: &[Line], one: &[String], other: &[String]) -> Result<(), String> {
        for (at, line) in script.iter().enumerate() {
            let (a, b) = (&one[at], &other[at]);
            self.answers += line.answers() as u64;
            if is_same(line, a, b) {
                continue;
            }
            let is_it =
                |listed: &Difference| listed.between == self.between && (listed.is_it)(line, a, b);
            if let Some(listed) = DIFFERENCES.iter().position(is_it) {
                self.known[listed] += 1;
                continue;
            }
            let before = (at.saturating_sub(SHOWN)..at).map(|at| short(&script[at], &one[at]));
            let mut lines: Vec<_> = before.collect();
            lines.push(format!("line {at}: {}", short(line, a)));
            lines.push(format!("the other: {}", short(line, b)));
            return Err(lines.join("\n"));
        }
        Ok(())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answers, ", self.answers)?;
        match (self.seeds.clone().min(), self.seeds.clone().max()) {
            (Some(first), Some(last)) => write!(f, "seeds {first} to {last}")?,
            _ => f.write_str("no seed")?,
        }
        for (listed, times) in DIFFERENCES.iter().zip(self.known) {
            if listed.between == self.between {
                write!(f, "\n    {times} times: {}", listed.reason)?;
            }
        }
        Ok(())
    }
}

/// Events of each watch in the order in which they came, each path once: how a watch of ours keeps
/// them, and all that a program may conclude from libxenstore's.
fn by_watch(events: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut watches: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for event in events.split(' ').skip(1) {
        let (watch, path) = event.split_once('=').unwrap();
        let paths = watches.entry(watch).or_default();
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    watches
}

fn is_same(line: &Line, one: &str, other: &str) -> bool {
    match line.op {
        Op::Events => by_watch(one) == by_watch(other),
        _ => one == other,
    }
}

/// A line and its answer, of bounded length.
#[must_use]
pub fn short(line: &Line, answer: &str) -> String {
    let cut = |text: String| match text.char_indices().nth(SHOWN_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    };
    let (line, answer) = (cut(format!("{line:?}")), cut(answer.to_owned()));
    format!("{line}: {answer}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(second: impl Fn(u64, usize, &Line) -> String) -> Result<Comparison, String> {
        let between = Between::Clients;
        Comparison::run(between, Host::Live, 7, 2000, |seed, script| {
            let other = script.iter().enumerate();
            let other = other.map(|(at, line)| second(seed, at, line)).collect();
            Ok::<_, String>([vec!["OK".to_owned(); script.len()], other])
        })
    }

    #[test]
    fn scripts_are_compared_until_there_are_enough_answers() {
        let compared = run(|_, _, _| "OK".to_owned()).unwrap();
        assert!(compared.answers >= 2000);
        assert!(compared.to_string().contains(" answers, seeds 7 to 8\n"));
    }

    #[test]
    fn a_comparison_of_nothing_has_a_summary() {
        let between = Between::Clients;
        let nothing = |_, _: &[Line]| Ok::<_, String>([vec![], vec![]]);
        let compared = Comparison::run(between, Host::Live, 0, 0, nothing).unwrap();
        let text = compared.to_string();
        assert!(text.starts_with("0 answers, no seed\n"), "{text}");
    }

    #[test]
    fn a_difference_is_an_error_with_its_seed_and_line() {
        let differs = |seed, at, line: &Line| match (seed, at) {
            (8, 3) if line.op != Op::Events => "E2".to_owned(),
            _ => "OK".to_owned(),
        };
        let error = run(differs).unwrap_err();
        assert!(error.starts_with("STORE_CONFORMANCE_SEED=8: "), "{error}");
        assert!(
            error.contains("\nline 3: ") && error.ends_with(": E2"),
            "{error}"
        );
    }

    #[test]
    fn events_are_compared_by_watch_and_path() {
        let (on, op) = (0, Op::Events);
        let line = Line { on, op };
        assert!(is_same(
            &line,
            "OK 0.1=/a 1.2=/b 0.1=/a",
            "OK 1.2=/b 0.1=/a"
        ));
        assert!(!is_same(&line, "OK 0.1=/a 0.1=/b", "OK 0.1=/b 0.1=/a"));
        assert!(!is_same(&line, "OK 0.1=/a", "OK 0.2=/a"));
    }

    #[test]
    fn scripts_for_a_live_host_change_nothing_outside_their_folder() {
        for line in (0..40).flat_map(|seed| script(seed, LENGTH, Host::Live)) {
            let changes = !matches!(line.op, Op::DomainPath { .. } | Op::IsIntroduced { .. });
            for path in line.paths().into_iter().filter(|_| changes) {
                let is_valid = xen_store::StorePath::new(path).is_ok();
                assert!(
                    !is_valid || path.starts_with("/t") || path.starts_with('@'),
                    "{line:?}"
                );
            }
            let is_about_a_domain = matches!(
                line.op,
                Op::Introduce { .. }
                    | Op::Release { .. }
                    | Op::SetTarget { .. }
                    | Op::Resume { .. }
            );
            assert!(!is_about_a_domain, "{line:?}");
        }
    }
}
