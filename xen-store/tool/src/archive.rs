//! Trees in files: export, import, and what differs.
//!
//! A file has one JSON object a line. The first one describes the whole:
//! `{"root":"/local/domain/5","xstore_export":1}`. Each of the others is a node, its path relative
//! to that root, and empty for the root itself:
//! `{"path":"data/name","permissions":["n5","r0"],"value":"guest"}`. A value that is no text is in
//! hexadecimal digits, as `value_hex`; one that could not be read is `null`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::mem::size_of;
use std::path::Path;

use serde_json::{Map, Value};
use xen_store::request::{Mkdir, Request, SetPermissions, Write};
use xen_store::{Change, MAX_TREE, Node, Perm, Permissions, Result, Snapshot, Store, StorePath};
use xen_store::{Transaction, path};

use crate::cli::{Diff, Export, Import};
use crate::failure::{Failure, Outcome};
use crate::nodes::{below, first_error, snapshot, transact};
use crate::output::{Output, Part, about, node_object, permissions_word};
use crate::text::{from_hex, quote};

/// The name of the field that marks a file as an export, and its version.
const FORMAT: (&str, u64) = ("xstore_export", 1);
/// Limit of one line of a file in bytes. The longest path and value take less than half of it.
const LINE: u64 = 64 << 10;
/// Bytes counted for a node beside its path, value and permissions, as a snapshot counts them.
const NODE: usize = 64;

/// A tree with paths relative to its root.
#[derive(Debug)]
struct Tree {
    root: String,
    nodes: Snapshot,
}

/// Writes a tree to standard output.
pub(crate) fn export(store: &Store, args: &Export, output: &mut Output) -> Outcome {
    let tree = of_store(store, &args.path, args.consistent)?;
    let mut head = Map::new();
    head.insert("root".to_owned(), tree.root.into());
    head.insert(FORMAT.0.to_owned(), FORMAT.1.into());
    output.object(head)?;
    for (path, node) in tree.nodes.iter() {
        output.object(node_object(path, node))?;
    }
    Ok(())
}

fn of_store(store: &Store, root: &str, consistent: bool) -> Outcome<Tree> {
    let snapshot = snapshot(store, root, consistent).map_err(Failure::about(root))?;
    let nodes = snapshot.iter().filter_map(|(path, node)| {
        let below = below(root, path)?;
        Some((below.to_owned(), node.clone()))
    });
    Ok(Tree {
        root: root.to_owned(),
        nodes: nodes.collect(),
    })
}

/// Returns the tree in a file; `-` is standard input.
fn of_file(file: &Path) -> Outcome<Tree> {
    let name = file.display().to_string();
    if file == Path::new("-") {
        return load(&name, io::stdin().lock());
    }
    let file = File::open(file).map_err(Failure::file(&name))?;
    load(&name, BufReader::new(file))
}

/// Reads an exported tree. A file may contain anything.
fn load(name: &str, lines: impl BufRead) -> Outcome<Tree> {
    load_within(MAX_TREE, name, lines)
}

/// Reads an exported tree of at most `limit` bytes, counted as for a snapshot.
fn load_within(limit: usize, name: &str, mut lines: impl BufRead) -> Outcome<Tree> {
    let (mut root, mut nodes, mut size) = (None, BTreeMap::new(), 0_usize);
    for number in 1_u64.. {
        let wrong = |what: &str| Failure::failed(format!("{name}: line {number}: {what}"));
        let mut line = Vec::new();
        let mut limited = (&mut lines).take(LINE);
        let count = limited
            .read_until(b'\n', &mut line)
            .map_err(Failure::file(name))?;
        if count == 0 {
            break;
        }
        if count as u64 == LINE && !line.ends_with(b"\n") {
            return Err(wrong("too long"));
        }
        let object: Map<String, Value> =
            serde_json::from_slice(&line).map_err(|_| wrong("no JSON object"))?;
        if root.is_none() {
            let is_export = object.get(FORMAT.0).and_then(Value::as_u64) == Some(FORMAT.1);
            let path = object.get("root").and_then(Value::as_str);
            let path = path.filter(|path| is_export && StorePath::new(path).is_ok());
            root = Some(
                path.ok_or_else(|| wrong("not the beginning of an export"))?
                    .to_owned(),
            );
            continue;
        }
        let (path, node) = node(&object).ok_or_else(|| wrong("no node"))?;
        let value = node.value.as_ref().map_or(0, Vec::len);
        let entries = node.permissions.as_ref().map_or(0, |p| p.entries().len());
        let entries = entries.saturating_mul(size_of::<Perm>());
        size = size.saturating_add(NODE + path.len() + value + entries);
        if size > limit {
            return Err(wrong("the tree is too large"));
        }
        if nodes.insert(path, node).is_some() {
            return Err(wrong("a second line about the same node"));
        }
    }
    let root = root.ok_or_else(|| Failure::failed(format!("{name}: empty")))?;
    Ok(Tree {
        root,
        nodes: nodes.into_iter().collect(),
    })
}

/// Returns the node that a line describes, with its relative path.
fn node(object: &Map<String, Value>) -> Option<(String, Node)> {
    let path = object.get("path")?.as_str()?;
    // Relative, and below any root.
    if !path.is_empty() {
        path::join("/", path).ok()?;
    }
    let value = match (object.get("value"), object.get("value_hex")) {
        (Some(Value::String(text)), None) => Some(text.as_bytes().to_vec()),
        (None, Some(Value::String(digits))) => Some(from_hex(digits)?),
        (Some(Value::Null), None) => None,
        _ => return None,
    };
    let permissions = match object.get("permissions") {
        None | Some(Value::Null) => None,
        Some(entries) => {
            let entries = entries.as_array()?.iter();
            let entries = entries.map(|entry| entry.as_str()?.parse().ok());
            Some(Permissions::from_entries(entries.collect::<Option<_>>()?).ok()?)
        }
    };
    Some((path.to_owned(), Node { value, permissions }))
}

/// Writes an exported tree into the store.
pub(crate) fn import(store: &Store, args: &Import) -> Outcome {
    let tree = of_file(&args.file)?;
    let root = args.at.as_ref().unwrap_or(&tree.root);
    let mut nodes = BTreeMap::new();
    for (below, node) in tree.nodes.iter() {
        let path = full(root, below);
        StorePath::new(&path).map_err(|error| Failure::failed(format!("{path}: {error}")))?;
        nodes.insert(path, node);
    }
    transact(store, |t, at| {
        at.clone_from(root);
        if args.replace {
            remove_others(t, root, &nodes)?;
        }
        let mut requests: Vec<Box<dyn Request<Reply = ()> + '_>> = Vec::new();
        let mut paths = Vec::new();
        for (path, node) in &nodes {
            match &node.value {
                Some(value) if path != "/" || !value.is_empty() => {
                    requests.push(Box::new(Write { path, value }));
                }
                _ => requests.push(Box::new(Mkdir { path })),
            }
            paths.push(path);
            if let Some(permissions) = node.permissions.as_ref().filter(|_| !args.no_permissions) {
                requests.push(Box::new(SetPermissions { path, permissions }));
                paths.push(path);
            }
        }
        first_error(paths.into_iter(), t.batch(requests), at)
    })
}

/// Removes the nodes at and below `root` that are not among `wanted`.
fn remove_others(t: &Transaction, root: &str, wanted: &BTreeMap<String, &Node>) -> Result<()> {
    let paths = match t.walk(root, u32::MAX) {
        Ok(paths) => paths,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error),
    };
    for path in paths.iter().filter(|path| *path != root) {
        let parent = StorePath::new(path)?.parent();
        // It is removed with its parent.
        let is_top = parent
            .is_some_and(|parent| parent.as_str() == root || wanted.contains_key(parent.as_str()));
        if is_top && !wanted.contains_key(path) {
            t.rm(path)?;
        }
    }
    Ok(())
}

/// Returns the path of what is at `below`, seen from `root`.
fn full(root: &str, below: &str) -> String {
    if below.is_empty() {
        return root.to_owned();
    }
    format!("{}/{below}", root.strip_suffix('/').unwrap_or(root))
}

/// Shows what differs.
pub(crate) fn diff(args: &Diff, open: impl Fn() -> Outcome<Store>, output: &mut Output) -> Outcome {
    let load = |operand: &OsStr| match operand
        .to_str()
        .and_then(|word| word.strip_prefix("store:"))
    {
        Some(root) => of_store(&open()?, root, false),
        None => of_file(Path::new(operand)),
    };
    let before = load(&args.before)?;
    let after = match &args.after {
        Some(operand) => load(operand)?,
        None => of_store(&open()?, &before.root, false)?,
    };
    let [earlier, later] = [&before, &after].map(|tree| {
        let nodes = tree.nodes.iter().map(|(below, node)| {
            let mut node = node.clone();
            node.permissions = node.permissions.filter(|_| args.permissions);
            (below.to_owned(), node)
        });
        nodes.collect::<Snapshot>()
    });
    let changes = earlier.diff(&later);
    if changes.is_empty() {
        return Ok(());
    }
    for change in &changes {
        // The status reports a difference even if the reader has closed the output.
        show(change, &before.root, &after.root, output)
            .map_err(|failure| failure.or_worse(Failure::no()))?;
    }
    Err(Failure::no())
}

/// Shows a node that differs, with the path that it has in its own tree.
fn show(change: &Change<'_>, before: &str, after: &str, output: &mut Output) -> Outcome {
    let (old, new) = match *change {
        Change::Added { node, .. } => (None, Some(node)),
        Change::Removed { node, .. } => (Some(node), None),
        Change::Changed { before, after, .. } => (Some(before), Some(after)),
    };
    let old = old.map(|node| (full(before, change.path()), node));
    let new = new.map(|node| (full(after, change.path()), node));
    if output.json {
        let mut object = about(change.path());
        for (name, side) in [("before", old), ("after", new)] {
            let side = side.map(|(path, node)| Value::Object(node_object(&path, node)));
            object.insert(name.to_owned(), side.into());
        }
        return output.object(object);
    }
    for (part, sign, side) in [(Part::Removed, '-', old), (Part::Added, '+', new)] {
        if let Some((path, node)) = side {
            let line = output.paint(part, &format!("{sign} {}", line(&path, node)));
            output.line(&line)?;
        }
    }
    Ok(())
}

/// Returns a node as text; its path has no foreign characters.
fn line(path: &str, node: &Node) -> String {
    let mut line = match &node.value {
        Some(value) => format!("{path} = {}", quote(value)),
        None => format!("{path} (no permission to read)"),
    };
    if let Some(permissions) = &node.permissions {
        line += &format!("  ({})", permissions_word(permissions));
    }
    line
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: &str = "{\"root\":\"/a\",\"xstore_export\":1}\n";

    proptest! {
        #[test]
        fn any_file_is_read_or_refused(bytes: Vec<u8>, with_head: bool) {
            let head = if with_head { HEAD } else { "" };
            let file = [head.as_bytes(), &bytes].concat();
            let _ = load("file", file.as_slice());
        }
    }

    #[test]
    fn a_line_that_is_no_node_is_named() {
        let load = |lines: &str| load("file", format!("{HEAD}{lines}").as_bytes());
        let tree =
            load("{\"path\":\"b\",\"value_hex\":\"ff\",\"permissions\":[\"n0\"]}\n").unwrap();
        assert_eq!(
            tree.nodes.get("b").unwrap().value.as_deref(),
            Some(&b"\xff"[..])
        );
        for wrong in [
            "x",
            "[]",
            "{}",
            r#"{"path":"b"}"#,
            r#"{"path":"/b","value":""}"#,
            r#"{"path":"b/../c","value":""}"#,
            r#"{"path":"b\u0000","value":""}"#,
            r#"{"path":"b","value":"","value_hex":""}"#,
            r#"{"path":"b","value_hex":"f"}"#,
            r#"{"path":"b","value":"","permissions":[]}"#,
            r#"{"path":"b","value":"","permissions":["q5"]}"#,
            r#"{"path":"b","value":5}"#,
            "{\"path\":\"b\",\"value\":\"\"}\n{\"path\":\"b\",\"value\":\"\"}",
        ] {
            let failure = format!("{:?}", load(wrong).unwrap_err());
            let last = format!("line {}:", 1 + wrong.lines().count());
            assert!(failure.contains(&last), "{wrong}: {failure}");
        }
        let long = format!("{{\"path\":\"{}\"", "x".repeat(LINE as usize));
        assert!(format!("{:?}", load(&long).unwrap_err()).contains("too long"));
        assert!(super::load("file", &b"{\"root\":\"/a\"}"[..]).is_err());
        assert!(super::load("file", &b""[..]).is_err());
    }

    #[test]
    fn the_limit_of_a_file_counts_paths_values_and_permissions() {
        let load = |lines: &str| {
            let file = format!("{HEAD}{lines}");
            load_within(1000, "file", file.as_bytes())
        };
        let entries = vec!["\"n0\""; 1000 / size_of::<Perm>()].join(",");
        for (path, value, entries) in [
            ("b", "", entries.as_str()),
            ("b", &"v".repeat(1000), "\"n0\""),
            (&"b".repeat(1000), "", "\"n0\""),
        ] {
            let line = format!(
                "{{\"path\":\"{path}\",\"value\":\"{value}\",\"permissions\":[{entries}]}}"
            );
            let failure = format!("{:?}", load(&line).unwrap_err());
            assert!(failure.contains("too large"), "{failure}");
        }
        let lines = |count: usize| -> String {
            (0..count)
                .map(|n| format!("{{\"path\":\"{n}\",\"value\":\"\"}}\n"))
                .collect()
        };
        assert!(load(&lines(10)).is_ok());
        assert!(load(&lines(1000 / NODE + 1)).is_err());
    }
}
