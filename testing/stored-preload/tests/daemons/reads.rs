//! Many tasks on one connection: each gets the value of its own node.

use tokio::task::JoinSet;
use tokio::time::timeout;
use xen_store::tokio::Store as AsyncStore;

use crate::asynchronous::{connect, runtime};
use crate::daemon::{Daemon, Kind};
use crate::rounds::{LIMIT, reads, rounds};
use crate::with_each_daemon;

const TASKS: usize = 64;

/// A node's value: its number, and what no other node has.
fn value(node: usize) -> Vec<u8> {
    let byte = |at: usize| b'a' + ((node * 31 + at * 7) % 26) as u8;
    let mut value = format!("node {node} ").into_bytes();
    value.extend((0..).map(byte).take(400 - value.len()));
    value
}

async fn read_all(store: AsyncStore, count: usize) -> Result<(), String> {
    let mut tasks = JoinSet::new();
    for node in 0..TASKS {
        let store = store.clone();
        tasks.spawn(async move {
            let (path, want) = (format!("/race/{node}"), value(node));
            for _ in 0..count {
                let got = store
                    .read(&path)
                    .await
                    .map_err(|e| format!("{path}: {e}"))?;
                if got != want {
                    let seen = String::from_utf8_lossy(&got[..got.len().min(12)]).into_owned();
                    return Err(format!("{path} got {} bytes, {seen:?}", got.len()));
                }
            }
            Ok(())
        });
    }
    let mut outcome = Ok(());
    while let Some(task) = tasks.join_next().await {
        outcome = outcome.and(task.unwrap());
    }
    outcome?;
    // The connection lives.
    let last = store.read("/race/0").await.map_err(|e| e.to_string())?;
    if last == value(0) {
        Ok(())
    } else {
        Err("the last read".to_owned())
    }
}

fn reads_are_of_their_own_nodes(kind: Kind, workers: usize) {
    let daemon = Daemon::start(kind);
    let writer = daemon.store();
    for node in 0..TASKS {
        writer.write(&format!("/race/{node}"), value(node)).unwrap();
    }
    let what = format!("{kind:?}, {workers} workers");
    rounds(what, || {
        let runtime = runtime(workers);
        let all = runtime.block_on(async {
            let all = read_all(connect(&daemon.socket()), reads());
            let limit = LIMIT * (1 + reads() as u32 / 100);
            match timeout(limit, all).await {
                Ok(outcome) => outcome,
                Err(_) => Err("some read did not return".to_owned()),
            }
        });
        runtime.shutdown_background();
        all
    });
}

fn every_value_is_its_nodes_on_one_thread(kind: Kind) {
    reads_are_of_their_own_nodes(kind, 0);
}

fn every_value_is_its_nodes_with_1_worker(kind: Kind) {
    reads_are_of_their_own_nodes(kind, 1);
}

fn every_value_is_its_nodes_with_2_workers(kind: Kind) {
    reads_are_of_their_own_nodes(kind, 2);
}

fn every_value_is_its_nodes_with_4_workers(kind: Kind) {
    reads_are_of_their_own_nodes(kind, 4);
}

with_each_daemon!(
    every_value_is_its_nodes_on_one_thread,
    every_value_is_its_nodes_with_1_worker,
    every_value_is_its_nodes_with_2_workers,
    every_value_is_its_nodes_with_4_workers,
);
