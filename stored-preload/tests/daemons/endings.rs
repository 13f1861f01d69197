//! The end of a connection, told to all who wait.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::asynchronous::{connect, runtime};
use crate::rounds::{Calls, LIMIT, rounds};
use crate::world::{Daemon, Kind};
use crate::{with_each_daemon, with_each_process};

const REQUESTS: usize = 100;

/// Each of a hundred threads reads until it is told that the daemon is gone.
fn the_end_is_told_to_every_thread(kind: Kind) {
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

fn the_end_is_told_to_every_task(kind: Kind) {
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
fn the_end_is_told_to_every_request_that_is_owed(kind: Kind) {
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

with_each_daemon!(
    the_end_is_told_to_every_thread,
    the_end_is_told_to_every_task,
);
with_each_process!(the_end_is_told_to_every_request_that_is_owed);
