//! The end of a connection, and what must not be one.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::asynchronous::{connect, runtime};
use crate::daemon::{Daemon, Kind};
use crate::rounds::{Calls, LIMIT, rounds};
use crate::{with_each_daemon, with_each_process};

const REQUESTS: usize = 100;
/// More than the client lets expire.
const DROPPED: usize = 1025;

/// Each of a hundred threads reads until its read fails because the daemon has ended.
fn the_end_reaches_every_thread(kind: Kind) {
    rounds(format_args!("{kind:?}, the end, threads"), || {
        let mut daemon = Daemon::start(kind);
        let store = daemon.store();
        store.write("/value", "v").unwrap();
        let mut calls = Calls::new();
        for _ in 0..REQUESTS {
            let store = store.clone();
            calls.spawn(move || while store.read("/value").is_ok() {});
        }
        for _ in 0..REQUESTS {
            store.read("/value").unwrap();
        }
        daemon.kill();
        calls.join().map(drop)
    });
}

fn the_end_reaches_every_task(kind: Kind) {
    for workers in [0, 2] {
        rounds(
            format_args!("{kind:?}, the end, tasks, {workers} workers"),
            || {
                let mut daemon = Daemon::start(kind);
                daemon.store().write("/value", "v").unwrap();
                let runtime = runtime(workers);
                let outcome = runtime.block_on(async {
                    let store = connect(&daemon.socket());
                    let mut tasks = JoinSet::new();
                    for _ in 0..REQUESTS {
                        let store = store.clone();
                        tasks.spawn(async move { while store.read("/value").await.is_ok() {} });
                    }
                    store.read("/value").await.unwrap();
                    daemon.kill();
                    let mut told = 0;
                    while let Ok(Some(task)) = timeout(LIMIT, tasks.join_next()).await {
                        task.unwrap();
                        told += 1;
                    }
                    told
                });
                runtime.shutdown_background();
                if outcome == REQUESTS {
                    Ok(())
                } else {
                    Err(format!("{outcome} were told"))
                }
            },
        );
    }
}

/// A hundred requests that a daemon owes an answer when it is killed.
fn the_end_fails_every_request_that_is_owed(kind: Kind) {
    rounds(format_args!("{kind:?}, the end, owed requests"), || {
        let mut daemon = Daemon::start(kind);
        let store = daemon.store();
        store.write("/value", "v").unwrap();
        daemon.stop();
        let mut calls = Calls::new();
        for _ in 0..REQUESTS {
            let store = store.clone();
            calls.spawn(move || store.read("/value").is_ok());
        }
        let hasty = store.with_timeout(Some(Duration::from_millis(1)));
        for _ in 0..REQUESTS {
            assert!(hasty.read("/value").is_err(), "a stopped daemon answered");
        }
        daemon.kill();
        let answers = calls.join()?;
        assert_eq!(answers, [false; REQUESTS], "a stopped daemon answered");
        Ok(())
    });
}

/// Futures that are polled once and dropped, with a daemon that answers each before the next.
fn dropped_futures_leave_the_connection_alive(kind: Kind) {
    for workers in [0, 2] {
        rounds(
            format_args!("{kind:?}, dropped futures, {workers} workers"),
            || {
                let daemon = Daemon::start(kind);
                daemon.store().write("/value", "v").unwrap();
                let runtime = runtime(workers);
                let other = daemon.store();
                let outcome = runtime.block_on(async {
                    let store = connect(&daemon.socket());
                    for _ in 0..DROPPED {
                        let mut read = pin!(store.read("/value"));
                        poll_fn(|cx| {
                            let _ = read.as_mut().poll(cx);
                            Poll::Ready(())
                        })
                        .await;
                        other.read("/value").unwrap();
                    }
                    timeout(LIMIT, store.read("/value")).await
                });
                runtime.shutdown_background();
                match outcome {
                    Ok(Ok(value)) if value == b"v" => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            },
        );
    }
}

/// Calls that are given no time at all, with a daemon that answers each before the next.
fn calls_without_time_leave_the_connection_alive(kind: Kind) {
    rounds(format_args!("{kind:?}, calls without time"), || {
        let daemon = Daemon::start(kind);
        let (store, other) = (daemon.store(), daemon.store());
        store.write("/value", "v").unwrap();
        let hasty = store.with_timeout(Some(Duration::ZERO));
        for _ in 0..DROPPED {
            let _ = hasty.read("/value");
            other.read("/value").unwrap();
        }
        match store.with_timeout(Some(LIMIT)).read("/value") {
            Ok(value) if value == b"v" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

with_each_daemon!(
    the_end_reaches_every_thread,
    the_end_reaches_every_task,
    dropped_futures_leave_the_connection_alive,
    calls_without_time_leave_the_connection_alive,
);
with_each_process!(the_end_fails_every_request_that_is_owed);
