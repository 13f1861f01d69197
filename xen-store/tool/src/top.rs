//! The parts of the store that change most.
//!
//! The store does not say who wrote. A path tells it nearly always: a guest writes in its own home,
//! a backend in that of its domain, the toolstack in `/libxl` and `/vm`. Changes of one node that
//! come faster than they are read count once.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use serde_json::{Map, Value};
use xen_store::{Store, StorePath};

use crate::cli::Top;
use crate::failure::{Failure, Outcome};
use crate::output::Output;
use crate::text::escape;
use crate::watch::deadline;

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

/// Shows the changes of each span of time.
pub(crate) fn top(store: &Store, args: &Top, output: &mut Output) -> Outcome {
    let failed = Failure::about(&args.path);
    let watch = store.watch(&args.path).map_err(&failed)?;
    // The first event is no change.
    watch.next(None).map_err(&failed)?;
    let mut left = args.number;
    while left != Some(0) {
        let begun = Instant::now();
        let end = deadline(Some(args.interval));
        let (mut parts, mut counted) = (BTreeMap::<String, Part>::new(), 0);
        while let Some(event) = watch.next(end).map_err(&failed)? {
            let name = part_of(&event.path);
            if parts.len() < PARTS || parts.contains_key(name) {
                let part = parts.entry(name.to_owned()).or_default();
                part.changes += 1;
                part.is_more |= event.rescan;
                if counted < PATHS || part.paths.contains_key(&*event.path) {
                    counted += 1;
                    *part.paths.entry(event.path.to_string()).or_default() += 1;
                }
            }
            // Events may arrive without end.
            if end.is_some_and(|end| end <= Instant::now()) {
                break;
            }
        }
        show(store, &parts, begun, args.lines, output)?;
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
        let within = StorePath::new(most).map_or("", |most| most.as_str());
        let within = within.strip_prefix(path.as_str()).unwrap_or(within);
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
