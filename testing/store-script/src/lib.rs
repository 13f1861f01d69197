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

mod differences;
mod libxenstore;
mod ours;
mod script;

pub use differences::{Between, DIFFERENCES};
pub use libxenstore::Libxenstore;
pub use ours::Ours;
pub use script::{CONNECTIONS, FIRST_GUEST, GUESTS, Host, IDLE, Line, Op, script};

/// Lines before a difference that are shown.
const SHOWN: usize = 12;
/// Characters of a line, and of an answer, that are shown.
const SHOWN_TEXT: usize = 300;

/// The result of a comparison.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Answers compared.
    pub answers: usize,
    /// Instances of each of [`DIFFERENCES`].
    pub known: [usize; DIFFERENCES.len()],
}

/// Compares two lists of answers to one script.
///
/// # Errors
///
/// The first difference that is not listed, with the lines before it.
pub fn compare(
    between: Between,
    script: &[Line],
    one: &[String],
    other: &[String],
) -> Result<Comparison, String> {
    let mut result = Comparison {
        answers: 0,
        known: [0; DIFFERENCES.len()],
    };
    for (at, line) in script.iter().enumerate() {
        let (a, b) = (&one[at], &other[at]);
        result.answers += line.answers();
        if is_same(line, a, b) {
            continue;
        }
        let listed = DIFFERENCES
            .iter()
            .position(|listed| listed.between == between && (listed.is_it)(line, a, b));
        match listed {
            Some(listed) => result.known[listed] += 1,
            None => {
                let before = (at.saturating_sub(SHOWN)..at).map(|at| short(&script[at], &one[at]));
                let mut lines: Vec<_> = before.collect();
                lines.push(format!("line {at}: {}", short(line, a)));
                lines.push(format!("the other: {}", short(line, b)));
                return Err(lines.join("\n"));
            }
        }
    }
    Ok(result)
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
