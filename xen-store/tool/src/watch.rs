//! The commands that wait for changes.

use std::time::Instant;

use serde_json::Value;
use xen_store::{Deadline, Store, StorePath, WatchEvent};

use crate::cli::{Wait, Watch};
use crate::failure::{Failure, Outcome};
use crate::nodes::value_of;
use crate::output::{Output, about, add_value};
use crate::text::escape;

/// Prints changes.
pub(crate) fn watch(store: &Store, args: &Watch, output: &mut Output) -> Outcome {
    let deadline = args.timeout.map_or(Deadline::NEVER, Deadline::after);
    let failed = Failure::about("the store");
    let set = store.watch_set().map_err(&failed)?;
    for path in &args.nodes.paths {
        let added = match args.depth {
            Some(depth) => set.add_depth(path, depth),
            None => set.add(path),
        };
        added.map_err(Failure::about(path))?;
    }
    let mut left = args.number;
    while left != Some(0) {
        let event = match set.try_next() {
            Ok(None) => {
                // The reader sees the lines so far before the next change.
                output.flush()?;
                set.next(deadline)
            }
            event => event,
        };
        let Some((_, event)) = event.map_err(&failed)? else {
            break;
        };
        show(store, &event, args.values, output)?;
        left = left.map(|left| left - 1);
        // Events may arrive without end.
        if is_over(deadline) {
            break;
        }
    }
    match left {
        None | Some(0) => Ok(()),
        Some(left) => Err(Failure::timed_out(format!("{left} changes did not come"))),
    }
}

/// Returns whether a deadline has passed.
pub(crate) fn is_over(deadline: Deadline) -> bool {
    deadline.instant().is_some_and(|end| end <= Instant::now())
}

/// Prints a change, with the node's value if `values`.
fn show(store: &Store, event: &WatchEvent, values: bool, output: &mut Output) -> Outcome {
    // An event of the daemon is no node, and neither is a path that no request can carry.
    let is_node = StorePath::new(&event.path).is_ok_and(|path| !path.is_special());
    let with_value = values && is_node;
    let value = match with_value.then(|| store.read_optional(&event.path)) {
        Some(Err(error)) if !error.is_denied() => {
            return Err(Failure::about(&event.path)(error));
        }
        value => value,
    };
    if output.json {
        let mut object = about(&event.path);
        object.insert("below".to_owned(), Value::Bool(event.rescan));
        match &value {
            Some(Ok(value)) => {
                object.insert("exists".to_owned(), Value::Bool(value.is_some()));
                if let Some(value) = value {
                    add_value(&mut object, Some(value));
                }
            }
            Some(Err(_)) => add_value(&mut object, None),
            None => {}
        }
        return output.object(object);
    }
    let mut line = output.path(&event.path);
    if event.rescan {
        line += &output.remark("or anything below");
    }
    match value {
        Some(Ok(Some(value))) => line += &format!(" = {}", output.value(&value)),
        Some(Ok(None)) => line += &output.remark("no such node"),
        Some(Err(_)) => line += &output.remark("no permission to read"),
        None => {}
    }
    output.line(&line)
}

/// Waits for a node's state.
pub(crate) fn wait(store: &Store, args: &Wait, output: &mut Output) -> Outcome {
    let wanted = match &args.value {
        Some(word) => Some(value_of(word, false)?),
        None => None,
    };
    let deadline = args.timeout.map_or(Deadline::NEVER, Deadline::after);
    let holds = |value: Option<&[u8]>| match (value, &wanted) {
        (value, _) if args.gone => value.is_none(),
        (None, _) => false,
        (Some(_), None) => true,
        (Some(value), Some(wanted)) => (value == wanted.as_slice()) != args.not,
    };
    let found = store.wait_for(&args.path, deadline, |value| {
        holds(value).then(|| value.map(<[u8]>::to_vec))
    });
    let found = match found {
        Ok(Some(value)) => value,
        Ok(None) => {
            let message = format!("{}: timed out", args.path);
            return Err(Failure::timed_out(message));
        }
        Err(error) => return Err(Failure::about(&args.path)(error)),
    };
    if output.json {
        let mut object = about(&args.path);
        object.insert("exists".to_owned(), Value::Bool(found.is_some()));
        if let Some(value) = &found {
            add_value(&mut object, Some(value));
        }
        return output.object(object);
    }
    match found {
        Some(value) => output.line(&escape(&value)),
        None => Ok(()),
    }
}
