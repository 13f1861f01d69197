//! xenstored replaced by another process image while clients use it: their connections and watches
//! stay, and no answer or event is lost.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use xen_store::Store;

use crate::host::{PATIENCE, TestHost, command, soon};
use crate::suite::{Needs, Test};

/// xenstored's number, written at its start.
const PROCESS: &str = "/run/xen/xenstored.pid";
const PLACES: [(&str, &str); 2] = [
    ("socket", "/run/xenstored/socket"),
    ("device", "/dev/xen/xenbus"),
];
/// Changes by each client before the update, and after it.
const CHANGES: u64 = 50;

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "store/live_update_dom0",
        Needs::Dom0,
        live_update,
    ));
}

fn live_update(host: &TestHost) -> Result<()> {
    let process = fs::read_to_string(PROCESS).context(PROCESS)?;
    // Addresses, which each exec chooses again.
    let addresses = format!("/proc/{}/auxv", process.trim());
    let before = fs::read(&addresses)?;
    let counts = PLACES.map(|_| AtomicU64::new(0));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let client = |(name, place), count| {
            let result = change(name, place, count, &is_over);
            // Nobody waits for one that has failed.
            is_over.store(true, Relaxed);
            result
        };
        let clients: Vec<_> = PLACES
            .into_iter()
            .zip(&counts)
            .map(|(place, count)| scope.spawn(move || client(place, count)))
            .collect();
        let updated = (|| {
            wait_for_changes(&counts, &is_over)?;
            command(&["xenstore-control", "live-update", "/usr/bin/xenstored"])?;
            wait_for_changes(&counts, &is_over)
        })();
        is_over.store(true, Relaxed);
        for client in clients {
            client
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        updated
    })?;
    println!("changes by socket and device: {counts:?}");
    ensure!(
        fs::read(&addresses)? != before,
        "xenstored was not replaced"
    );
    host.store.rm("/live-update")?;
    Ok(())
}

/// Waits until each client has made more changes.
fn wait_for_changes(counts: &[AtomicU64], is_over: &AtomicBool) -> Result<()> {
    let enough: Vec<u64> = counts.iter().map(|n| n.load(Relaxed) + CHANGES).collect();
    let end = soon();
    while counts
        .iter()
        .zip(&enough)
        .any(|(n, e)| n.load(Relaxed) < *e)
    {
        ensure!(!is_over.load(Relaxed), "a client failed");
        ensure!(Instant::now() < end, "only {counts:?} changes");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Changes a node, sees the event, and reads the node, again and again.
fn change(name: &str, place: &str, count: &AtomicU64, is_over: &AtomicBool) -> Result<()> {
    let store = Store::connect(place)?.with_timeout(Some(PATIENCE));
    let node = format!("/live-update/{name}");
    let watch = store.watch(&node)?;
    let event = || watch.next(Some(soon()))?.context("no event");
    event()?;
    while !is_over.load(Relaxed) {
        let value = count.load(Relaxed).to_string();
        store.write(&node, &value)?;
        ensure!(*event()?.path == *node, "an event of another node");
        let read = store.read_str(&node)?;
        ensure!(read == value, "{name} wrote {value} and read {read}");
        count.fetch_add(1, Relaxed);
    }
    Ok(())
}
