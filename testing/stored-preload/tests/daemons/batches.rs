//! Many requests in flight together.

use std::thread;

use xen_store::request::{Directory, Exists, Optional, Read, Write};
use xen_store::{Permissions, Store};
use xen_sys::DomId;

use crate::asynchronous::{connect, runtime};
use crate::daemon::{Daemon, Kind};
use crate::with_each_daemon;

const NODES: usize = 500;

fn paths(user: usize) -> Vec<String> {
    (0..NODES).map(|n| format!("/t/{user}/{n}")).collect()
}

fn write(path: &str) -> Write<'_> {
    let value = path.as_bytes();
    Write { path, value }
}

fn rounds(store: &Store, user: usize) {
    let paths = paths(user);
    for _ in 0..3 {
        let writes: Vec<Write<'_>> = paths.iter().map(|path| write(path)).collect();
        assert!(store.batch(writes).into_iter().all(|done| done.is_ok()));
        for (path, value) in paths.iter().zip(store.read_many(&paths)) {
            assert_eq!(value.unwrap(), path.as_bytes());
        }
    }
}

fn threads_and_tasks_share_connections_while_batches_run(kind: Kind) {
    let daemon = Daemon::start(kind);
    let store = daemon.store();
    thread::scope(|scope| {
        for user in 0..2 {
            let store = &store;
            scope.spawn(move || rounds(store, user));
        }
    });
    runtime(2).block_on(async {
        let store = connect(&daemon.socket());
        let reads = (0..2).map(|user| {
            let store = store.clone();
            tokio::spawn(async move {
                let paths = paths(user);
                for (path, value) in paths.iter().zip(store.read_many(&paths).await) {
                    assert_eq!(value.unwrap(), path.as_bytes());
                }
            })
        });
        for read in reads.collect::<Vec<_>>() {
            read.await.unwrap();
        }
    });
    assert_eq!(store.walk("/t", 2).unwrap().len(), 1 + 2 + 2 * NODES);
    assert_eq!(store.walk("/t", 1).unwrap(), ["/t", "/t/0", "/t/1"]);
    let (value, names, missing, exists) = store.batch((
        Read { path: "/t/0/7" },
        Directory { path: "/t" },
        Optional(Read { path: "/none" }),
        Exists { path: "/t" },
    ));
    assert_eq!(value.unwrap(), b"/t/0/7");
    assert_eq!(names.unwrap().len(), 2);
    assert_eq!(missing.unwrap(), None);
    assert!(exists.unwrap());
}

fn a_snapshot_is_the_same_inside_and_outside_a_transaction(kind: Kind) {
    let daemon = Daemon::start(kind);
    let store = daemon.store();
    for path in paths(0) {
        store.write(&path, &path).unwrap();
    }
    let open = Permissions::owner_none(DomId::DOM0).grant_read(DomId::new(7));
    store.set_permissions("/t", &open).unwrap();
    let before = store.snapshot("/t").unwrap();
    assert_eq!(before.len(), 2 + NODES);
    assert_eq!(before.get("/t").unwrap().permissions, Some(open));
    let inside = store.with_transaction(|t| t.snapshot("/t")).unwrap();
    assert!(before.diff(&inside).is_empty());
    store.rm("/t/0/1").unwrap();
    let after = store.snapshot("/t").unwrap();
    let changes = before.diff(&after);
    assert!(changes.iter().any(|change| change.path() == "/t/0/1"));
    assert_eq!(changes.len(), 1, "{changes:?}");
}

with_each_daemon!(
    threads_and_tasks_share_connections_while_batches_run,
    a_snapshot_is_the_same_inside_and_outside_a_transaction,
);
