//! The parts of the store that change most.
//!
//! The store does not report the writer. A path nearly always shows it: a guest writes in its own
//! home, a backend in that of its domain, the toolstack in `/libxl` and `/vm`. Changes of one node
//! that are faster than the reads count once.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use serde_json::{Map, Value};
use xen_store::{Deadline, Store, WatchEvent};

use crate::cli::Top;
use crate::failure::{Failure, Outcome};
use crate::output::Output;
use crate::text::escape;
use crate::watch::is_over;

/// Limit of the paths that are counted one by one in a round; others count for their part only.
const PATHS: usize = 10_000;
/// Limit of the parts in a round; other changes are lost from the count.
const PARTS: usize = 10_000;

/// Changes of a part of the store.
#[derive(Debug, Default)]
struct Part {
    changes: u64,
    /// Some of them stand for an unknown number.
    is_more: bool,
    paths: HashMap<String, u64>,
}

/// The changes of one round.
#[derive(Debug, Default)]
struct Round {
    parts: BTreeMap<String, Part>,
    /// The paths that are counted one by one.
    paths: usize,
}

impl Round {
    fn count(&mut self, event: &WatchEvent) {
        let name = part_of(&event.path);
        if self.parts.len() >= PARTS && !self.parts.contains_key(name) {
            return;
        }
        let part = self.parts.entry(name.to_owned()).or_default();
        part.changes += 1;
        part.is_more |= event.rescan;
        if let Some(count) = part.paths.get_mut(&*event.path) {
            *count += 1;
        } else if self.paths < PATHS {
            self.paths += 1;
            part.paths.insert(event.path.to_string(), 1);
        }
    }
}

/// Shows the changes of each span of time.
pub(crate) fn top(store: &Store, args: &Top, output: &mut Output) -> Outcome {
    let failed = Failure::about(&args.path);
    let watch = store.watch(&args.path).map_err(&failed)?;
    // The first event is no change.
    watch.next(None).map_err(&failed)?;
    let mut left = args.number;
    while left != Some(0) {
        let begun = Instant::now();
        let end = Deadline::after(args.interval);
        let mut round = Round::default();
        while let Some(event) = watch.next(end).map_err(&failed)? {
            round.count(&event);
            // Events may arrive without end.
            if is_over(end) {
                break;
            }
        }
        show(store, &round.parts, begun, args.lines, output)?;
        output.flush()?;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

/// Returns the part that a path belongs to: a domain's home, or the top of the tree.
fn part_of(path: &str) -> &str {
    let levels = if path.starts_with("/local/domain/") {
        4
    } else {
        2
    };
    match path.match_indices('/').nth(levels - 1) {
        Some((end, _)) if path.starts_with('/') => &path[..end],
        _ => path,
    }
}

fn show(
    store: &Store,
    parts: &BTreeMap<String, Part>,
    begun: Instant,
    lines: usize,
    output: &mut Output,
) -> Outcome {
    let seconds = begun.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
    let mut order: Vec<_> = parts.iter().collect();
    order.sort_by_key(|(_, part)| std::cmp::Reverse(part.changes));
    order.truncate(lines);
    let asked: Vec<String> = order
        .iter()
        .map(|(path, _)| format!("{path}/name"))
        .collect();
    // A part without a name, or a path too long for one, is shown without.
    let names = store.read_many(&asked);
    output.page()?;
    if !output.json {
        output.line(&format!(
            "{:<24} {:<16} {:>9} {:>10}  {}",
            "WHERE", "NAME", "CHANGES", "A SECOND", "MOST IN"
        ))?;
    }
    for ((path, part), name) in order.into_iter().zip(names) {
        let name = name.unwrap_or_default();
        let rate = part.changes as f64 / seconds;
        let most = part
            .paths
            .iter()
            .max_by_key(|(path, count)| (**count, *path));
        let most = most.map_or("", |(path, _)| path.as_str());
        if output.json {
            let object = Map::from_iter([
                ("where".to_owned(), Value::from(path.as_str())),
                ("name".to_owned(), String::from_utf8_lossy(&name).into()),
                ("changes".to_owned(), part.changes.into()),
                ("more".to_owned(), part.is_more.into()),
                ("per_second".to_owned(), rate.into()),
                ("most_in".to_owned(), most.into()),
            ]);
            output.object(object)?;
            continue;
        }
        let sign = if part.is_more { "+" } else { "" };
        let within = most.strip_prefix(path.as_str()).unwrap_or(most);
        output.line(&format!(
            "{:<24} {:<16} {:>9} {rate:>10.1}  {}",
            escape(path.as_bytes()),
            escape(&name),
            format!("{}{sign}", part.changes),
            escape(within.trim_start_matches('/').as_bytes()),
        ))?;
    }
    if !output.json {
        output.line("")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_changes_often_leaves_room_for_others() {
        let event = |path: &str| WatchEvent {
            path: path.into(),
            rescan: false,
            reconnected: false,
        };
        let mut round = Round::default();
        for _ in 0..=PATHS {
            round.count(&event("/vm/busy"));
        }
        round.count(&event("/libxl/5"));
        assert_eq!(round.parts["/vm"].paths["/vm/busy"], PATHS as u64 + 1);
        assert_eq!(round.parts["/libxl"].paths["/libxl/5"], 1);
        for n in 0..=PATHS {
            round.count(&event(&format!("/tool/{n}")));
            round.count(&event(&format!("/{n}")));
        }
        let paths = round.parts.values().map(|part| part.paths.len());
        assert_eq!(paths.sum::<usize>(), PATHS);
        assert_eq!(round.parts.len(), PARTS);
        assert_eq!(round.parts["/tool"].changes, PATHS as u64 + 1);
    }

    #[test]
    fn a_path_belongs_to_a_home_or_to_the_top_of_the_tree() {
        for (path, part) in [
            ("/local/domain/5/data/a", "/local/domain/5"),
            ("/local/domain/5", "/local/domain/5"),
            ("/local/domain", "/local"),
            ("/vm/abc/name", "/vm"),
            ("/vm", "/vm"),
            ("/", "/"),
            ("data/a", "data/a"),
            ("@releaseDomain", "@releaseDomain"),
            ("", ""),
        ] {
            assert_eq!(part_of(path), part, "{path}");
        }
    }
}
