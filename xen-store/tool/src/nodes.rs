//! The commands about nodes.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde_json::Value;
use xen_store::request::{GetPermissions, SetPermissions, Write as WriteNode};
use xen_store::wire::PAYLOAD_MAX;
use xen_store::{Error, Node, Permissions, Result, Store, StorePath, Transaction};

use crate::cli::{Chmod, List, Ls, Paths, Read, Rm, Write};
use crate::failure::{Failure, Outcome};
use crate::output::{Output, about, add_value, node_object, permissions_word};
use crate::text::{escape, unescape};

/// Shows trees.
pub(crate) fn ls(store: &Store, args: &Ls, output: &mut Output) -> Outcome {
    for path in &args.paths {
        let mut nodes = tree(store, path, args).map_err(Failure::about(path))?;
        // Each node before those below it: `/a`, `/a/b`, `/a-b`.
        nodes.sort_by(|(a, _), (b, _)| a.split('/').cmp(b.split('/')));
        for (found, node) in &nodes {
            // The root was requested, and is not shown.
            if let Some(below) = below(path, found).filter(|below| !below.is_empty()) {
                show(found, below, node, args, output)?;
            }
        }
    }
    Ok(())
}

/// Returns `path` as seen from `base`: empty for itself, `None` for a path elsewhere.
pub(crate) fn below<'a>(base: &str, path: &'a str) -> Option<&'a str> {
    let rest = path.strip_prefix(base)?;
    if rest.is_empty() || base.ends_with('/') {
        return Some(rest);
    }
    rest.strip_prefix('/')
}

fn tree(store: &Store, path: &str, args: &Ls) -> Result<Vec<(String, Node)>> {
    let Some(depth) = args.depth else {
        let snapshot = snapshot(store, path, args.consistent)?;
        let nodes = snapshot.iter();
        return Ok(nodes
            .map(|(path, node)| (path.to_owned(), node.clone()))
            .collect());
    };
    let paths = store.walk(path, depth)?;
    let asked = paths.iter().map(|path| GetPermissions { path });
    let (values, permissions) = (
        store.read_many(&paths),
        store.batch(asked.collect::<Vec<_>>()),
    );
    let mut nodes = Vec::new();
    for ((path, value), permissions) in paths.into_iter().zip(values).zip(permissions) {
        let node = readable(value).and_then(|value| {
            let permissions = readable(permissions)?;
            Ok(Node { value, permissions })
        });
        match node {
            Ok(node) => nodes.push((path, node)),
            // It was removed since the walk.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(nodes)
}

/// Returns a tree, read in a transaction if `consistent`.
pub(crate) fn snapshot(store: &Store, path: &str, consistent: bool) -> Result<xen_store::Snapshot> {
    if consistent {
        store.with_transaction(|t| t.snapshot(path))
    } else {
        store.snapshot(path)
    }
}

/// A node without the right to read it has no value.
fn readable<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_denied() => Ok(None),
        Err(error) => Err(error),
    }
}

fn show(path: &str, below: &str, node: &Node, args: &Ls, output: &mut Output) -> Outcome {
    if output.json {
        return output.object(node_object(path, node));
    }
    let mut line = if args.full {
        output.path(path)
    } else {
        let name = below.rsplit('/').next().unwrap_or(below);
        let levels = below.matches('/').count();
        format!("{}{}", " ".repeat(levels), output.path(name))
    };
    match &node.value {
        Some(value) => line += &format!(" = {}", output.value(value)),
        None => line += &output.remark("no permission to read"),
    }
    if let Some(permissions) = node.permissions.as_ref().filter(|_| args.permissions) {
        line += &format!("  {}", output.remark(&permissions_word(permissions)));
    }
    output.line(&line)
}

/// Prints the names of children.
pub(crate) fn list(store: &Store, args: &List, output: &mut Output) -> Outcome {
    for path in &args.nodes.paths {
        let names = store.directory(path).map_err(Failure::about(path))?;
        if output.json {
            let mut object = about(path);
            object.insert("children".to_owned(), names.into());
            output.object(object)?;
            continue;
        }
        let base = path.strip_suffix('/').unwrap_or(path);
        for name in names {
            let line = if args.prefix {
                output.path(&format!("{base}/{name}"))
            } else {
                output.path(&name)
            };
            output.line(&line)?;
        }
    }
    Ok(())
}

/// Prints values.
pub(crate) fn read(store: &Store, args: &Read, output: &mut Output) -> Outcome {
    let paths = &args.nodes.paths;
    for (path, value) in paths.iter().zip(store.read_many(paths)) {
        let value = value.map_err(Failure::about(path))?;
        if output.json {
            let mut object = about(path);
            add_value(&mut object, Some(&value));
            output.object(object)?;
            continue;
        }
        if args.prefix {
            let path = output.path(path);
            output.raw(format!("{path}: ").as_bytes())?;
        }
        if args.raw {
            output.raw(&value)?;
        } else {
            output.line(&escape(&value))?;
        }
    }
    Ok(())
}

/// Sets values.
pub(crate) fn write(store: &Store, args: &Write) -> Outcome {
    let text = |word: &OsStr| match word.to_str() {
        Some(path) => Ok(path.to_owned()),
        None => Err(Failure::usage(format!(
            "{}: no store path",
            word.to_string_lossy()
        ))),
    };
    let mut nodes = Vec::new();
    if let Some(file) = &args.from {
        let [path] = args.words.as_slice() else {
            return Err(Failure::usage("--from takes one path, and no value"));
        };
        nodes.push((text(path)?, contents(file)?));
    } else {
        for pair in args.words.chunks(2) {
            let [path, value] = pair else {
                return Err(Failure::usage("the last path has no value"));
            };
            nodes.push((text(path)?, value_of(value, args.raw)?));
        }
    }
    if let [(path, value)] = nodes.as_slice() {
        return store.write(path, value).map_err(Failure::about(path));
    }
    transact(store, |t, at| {
        let writes = nodes.iter().map(|(path, value)| WriteNode { path, value });
        let answers = t.batch(writes.collect::<Vec<_>>());
        first_error(nodes.iter().map(|(path, _)| path), answers, at)
    })
}

/// Returns the value that a word of the command line stands for.
pub(crate) fn value_of(word: &OsStr, raw: bool) -> Outcome<Vec<u8>> {
    let bytes = word.as_bytes();
    if raw {
        return Ok(bytes.to_vec());
    }
    // The report escapes the word.
    unescape(bytes).ok_or_else(|| {
        let word = word.to_string_lossy();
        Failure::usage(format!("{word}: unknown escape; a backslash is doubled"))
    })
}

/// Returns what is in a file. Fails if it is more than a message can carry.
fn contents(file: &Path) -> Outcome<Vec<u8>> {
    let name = file.display().to_string();
    let mut value = Vec::new();
    let limit = PAYLOAD_MAX as u64 + 1;
    let read = if file == Path::new("-") {
        io::stdin().lock().take(limit).read_to_end(&mut value)
    } else {
        let open = File::open(file);
        open.and_then(|file| file.take(limit).read_to_end(&mut value))
    };
    read.map_err(Failure::file(&name))?;
    if value.len() > PAYLOAD_MAX {
        return Err(Failure::failed(format!(
            "{name}: more than the {PAYLOAD_MAX} bytes of a message"
        )));
    }
    Ok(value)
}

/// Carries out `body` in a transaction. `body` names the current node, for the error.
pub(crate) fn transact(
    store: &Store,
    mut body: impl FnMut(&Transaction, &mut String) -> Result<()>,
) -> Outcome {
    let mut at = String::new();
    let done = store.with_transaction(|t| body(t, &mut at));
    done.map_err(|error| match error {
        Error::Conflict { .. } => Failure::about("the store")(error),
        error => Failure::about(&at)(error),
    })
}

/// Returns the first error of a batch, and puts the path that it is about into `at`.
pub(crate) fn first_error<'a>(
    paths: impl Iterator<Item = &'a String>,
    answers: Vec<Result<()>>,
    at: &mut String,
) -> Result<()> {
    for (path, answer) in paths.zip(answers) {
        at.clone_from(path);
        answer?;
    }
    Ok(())
}

/// Removes nodes.
pub(crate) fn rm(store: &Store, args: &Rm) -> Outcome {
    transact(store, |t, at| {
        for path in &args.nodes.paths {
            at.clone_from(path);
            t.rm(path)?;
            if args.tidy {
                tidy(t, path)?;
            }
        }
        Ok(())
    })
}

/// Removes the parents of a removed node that have neither a value nor children.
fn tidy(t: &Transaction, path: &str) -> Result<()> {
    let mut above = StorePath::new(path)?.parent();
    while let Some(parent) = above.filter(|parent| parent.as_str() != "/") {
        match t.read_optional(parent.as_str())? {
            Some(value) if value.is_empty() => {
                if !t.directory(parent.as_str())?.is_empty() {
                    break;
                }
                t.rm(parent.as_str())?;
            }
            Some(_) => break,
            None => {}
        }
        above = parent.parent();
    }
    Ok(())
}

/// Creates nodes.
pub(crate) fn mkdir(store: &Store, args: &Paths) -> Outcome {
    for path in &args.paths {
        store.mkdir(path).map_err(Failure::about(path))?;
    }
    Ok(())
}

/// Sets permissions.
pub(crate) fn chmod(store: &Store, args: &Chmod) -> Outcome {
    let permissions = Permissions::from_entries(args.entries.clone())
        .map_err(|error| Failure::usage(error.to_string()))?;
    transact(store, |t, at| {
        at.clone_from(&args.path);
        let mut paths = if args.recurse {
            t.walk(&args.path, u32::MAX)?
        } else {
            vec![args.path.clone()]
        };
        let mut above = StorePath::new(&args.path)?.parent();
        while let Some(parent) = above.filter(|parent| args.upto && parent.as_str() != "/") {
            paths.push(parent.as_str().to_owned());
            above = parent.parent();
        }
        let sets = paths.iter().map(|path| SetPermissions {
            path,
            permissions: &permissions,
        });
        let answers = t.batch(sets.collect::<Vec<_>>());
        first_error(paths.iter(), answers, at)
    })
}

/// Fails with [`Failure::no`] unless all nodes exist.
pub(crate) fn exists(store: &Store, args: &Paths, output: &mut Output) -> Outcome {
    let mut all = true;
    for path in &args.paths {
        let exists = store.exists(path).map_err(Failure::about(path))?;
        all &= exists;
        if output.json {
            let mut object = about(path);
            object.insert("exists".to_owned(), Value::Bool(exists));
            output.object(object)?;
        }
    }
    if all { Ok(()) } else { Err(Failure::no()) }
}
