//! A thread that polls a watch's descriptor beside threads that sleep: none takes another's
//! wake-up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_store::{Result, Store};

use crate::daemon::{Daemon, Kind};
use crate::rounds::{Calls, rounds};
use crate::with_each_daemon;

const CALLS: usize = 200;

/// An event loop that also reads, as [`xen_store::Store`] documents, until the watched node has the
/// value `end`.
fn poll_events(store: &Store, path: &str) -> Result<()> {
    let watch = store.watch(path)?;
    loop {
        while watch.try_next()?.is_some() {}
        if store.read(path)? == b"end" {
            return Ok(());
        }
        let mut fds = [PollFd::new(watch.poll_fd()?, PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).unwrap();
    }
}

/// As an event loop that looks whenever its descriptor is readable, and asks for nothing itself.
fn poll_only(store: &Store, path: &str, ended: &AtomicBool) -> Result<()> {
    let watch = store.watch(path)?;
    loop {
        while watch.try_next()?.is_some() {}
        // It is set before the last event is made: the thread that took that event sees it here.
        if ended.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut fds = [PollFd::new(watch.poll_fd()?, PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::NONE).unwrap();
    }
}

/// Calls of one thread beside one that polls. The daemon's end wakes what is stuck.
fn beside_poll_fd(kind: Kind, what: &str, call: fn(&Store, &Store, usize) -> Result<()>) {
    rounds(format_args!("{kind:?}, {what}"), || {
        let mut daemon = Daemon::start(kind);
        let (store, other) = (daemon.store(), daemon.store());
        other.write("/value", "0").unwrap();
        other.write("/watched", "").unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let (shared, end) = (store.clone(), Arc::clone(&ended));
        let poller = thread::spawn(move || poll_only(&shared, "/watched", &end));
        let mut calls = Calls::new();
        calls.spawn(move || {
            let called = (0..CALLS).try_for_each(|n| call(&store, &other, n));
            ended.store(true, Ordering::SeqCst);
            other.write("/watched", "end")?;
            called.and(poller.join().unwrap())
        });
        let outcome = all_well(calls);
        daemon.kill();
        outcome
    });
}

fn all_well(calls: Calls<Result<()>>) -> std::result::Result<(), String> {
    let well: Result<Vec<()>> = calls.join()?.into_iter().collect();
    well.map(drop).map_err(|error| error.to_string())
}

fn reads_return_beside_a_thread_that_polls(kind: Kind) {
    beside_poll_fd(kind, "reads beside poll_fd", |store, _, _| {
        store.read("/value").map(drop)
    });
}

fn wait_for_returns_beside_a_thread_that_polls(kind: Kind) {
    beside_poll_fd(kind, "wait_for beside poll_fd", |store, other, n| {
        let text = n.to_string();
        other.write("/value", &text)?;
        let same = |value: Option<&[u8]>| (value == Some(text.as_bytes())).then_some(());
        store.wait_for("/value", None, same).map(Option::unwrap)
    });
}

/// Two that poll, each its own watch, and four that read.
fn two_that_poll_and_four_that_read(kind: Kind) {
    rounds(
        format_args!("{kind:?}, two that poll, four that read"),
        || {
            let mut daemon = Daemon::start(kind);
            let (store, other) = (daemon.store(), daemon.store());
            let mut calls = Calls::new();
            for n in 0..2 {
                let (store, path) = (store.clone(), format!("/watched/{n}"));
                other.write(&path, "").unwrap();
                calls.spawn(move || poll_events(&store, &path));
            }
            let mut readers = Calls::new();
            for n in 0..4 {
                let (store, path) = (store.clone(), format!("/value/{n}"));
                other.write(&path, &path).unwrap();
                readers.spawn(move || {
                    for _ in 0..CALLS {
                        assert_eq!(store.read(&path)?, path.as_bytes());
                    }
                    Ok(())
                });
            }
            for n in 0..CALLS {
                other
                    .write(&format!("/watched/{}", n % 2), n.to_string())
                    .unwrap();
            }
            let mut outcome = all_well(readers);
            for n in 0..2 {
                other.write(&format!("/watched/{n}"), "end").unwrap();
            }
            if outcome.is_ok() {
                outcome = all_well(calls);
            }
            daemon.kill();
            outcome
        },
    );
}

with_each_daemon!(
    reads_return_beside_a_thread_that_polls,
    wait_for_returns_beside_a_thread_that_polls,
    two_that_poll_and_four_that_read,
);
