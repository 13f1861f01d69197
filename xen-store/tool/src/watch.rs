//! The commands that wait for changes.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use xen_store::{Store, StorePath, WatchEvent};

use crate::cli::{Wait, Watch};
use crate::failure::{Failure, Outcome};
use crate::nodes::value_of;
use crate::output::{Output, about, add_value};
use crate::text::escape;

/// Returns the end of a span of time; `None` for a span without an end.
pub(crate) fn deadline(span: Option<Duration>) -> Option<Instant> {
    // A span beyond what the clock counts has no end either.
    span.and_then(|span| Instant::now().checked_add(span))
}

/// Prints changes.
pub(crate) fn watch(store: &Store, args: &Watch, output: &mut Output) -> Outcome {
    let deadline = deadline(args.timeout);
    let mut watches = Vec::new();
    for path in &args.nodes.paths {
        let watch = match args.depth {
            Some(depth) => store.watch_depth(path, depth),
            None => store.watch(path),
        };
        watches.push(watch.map_err(Failure::about(path))?);
    }
    let mut left = args.number;
    loop {
        let mut shown = false;
        for watch in &watches {
            let about = Failure::about(watch.path());
            while left != Some(0) {
                let Some(event) = watch.try_next().map_err(&about)? else {
                    break;
                };
                show(store, &event, args.values, output)?;
                left = left.map(|left| left - 1);
                shown = true;
            }
        }
        output.flush()?;
        if left == Some(0) {
            return Ok(());
        }
        if shown {
            // The requests for values may have read events of other watches into memory.
            continue;
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return match left {
                Some(left) => Err(Failure::timed_out(format!("{left} changes did not come"))),
                None => Ok(()),
            };
        }
        sleep(store, deadline)?;
    }
}

/// Sleeps until the store's connection has something to read, or until the deadline.
fn sleep(store: &Store, deadline: Option<Instant>) -> Outcome {
    let limit = match deadline {
        // In milliseconds, rounded up: the last one is not spent spinning.
        Some(deadline) => {
            let left = deadline
                .saturating_duration_since(Instant::now())
                .as_millis()
                + 1;
            let left = i32::try_from(left).unwrap_or(i32::MAX);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        }
        None => PollTimeout::NONE,
    };
    match poll(&mut [PollFd::new(store.as_fd(), PollFlags::POLLIN)], limit) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(Failure::failed(format!("poll: {errno}"))),
    }
}

/// Prints a change, with the node's value if `values`.
fn show(store: &Store, event: &WatchEvent, values: bool, output: &mut Output) -> Outcome {
    // An event of the daemon is no node, and neither is a path that no request can carry.
    let is_node = StorePath::new(&event.path).is_ok_and(|path| !path.is_special());
    let with_value = values && is_node;
    let value = match with_value.then(|| store.read_optional(&event.path)) {
        None => None,
        Some(Ok(value)) => Some(value),
        Some(Err(error)) if error.is_denied() => None,
        Some(Err(error)) => return Err(Failure::about(&event.path)(error)),
    };
    if output.json {
        let mut object = about(&event.path);
        object.insert("below".to_owned(), Value::Bool(event.rescan));
        if let Some(value) = &value {
            object.insert("exists".to_owned(), Value::Bool(value.is_some()));
            if let Some(value) = value {
                add_value(&mut object, Some(value));
            }
        }
        return output.object(object);
    }
    let mut line = output.path(&event.path);
    if event.rescan {
        line += &output.remark("or anything below");
    }
    match value {
        Some(Some(value)) => line += &format!(" = {}", output.value(&value)),
        Some(None) => line += &output.remark("no such node"),
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
    let deadline = deadline(args.timeout);
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
            let message = format!("{}: it did not come to that in time", args.path);
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
