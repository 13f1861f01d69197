//! Many requests in flight together, of tasks that share a connection.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use tokio::time::timeout;
use xen_store::request::{Directory, Exists, Optional, Read, Write};
use xen_store::{Change, Error, MAX_IN_FLIGHT, Permissions};
use xen_sys::DomId;

use crate::runtimes::on_each;
use crate::{client, server};

/// Nothing here takes that long unless a task was not woken.
const STUCK: Duration = Duration::from_secs(60);
const NODES: usize = 3 * MAX_IN_FLIGHT;

fn paths(task: usize) -> Vec<String> {
    (0..NODES).map(|n| format!("/t/{task}/{n}")).collect()
}

/// Writes and reads with a batch each; a value names its node.
async fn rounds(store: &xen_store::tokio::Store, task: usize) {
    let paths = paths(task);
    let write = |path| Write {
        path,
        value: str::as_bytes(path),
    };
    for _ in 0..3 {
        let writes: Vec<Write<'_>> = paths.iter().map(|path| write(path)).collect();
        assert!(
            store
                .batch(writes)
                .await
                .into_iter()
                .all(|done| done.is_ok())
        );
        let values = store.read_many(&paths).await;
        for (path, value) in paths.iter().zip(values) {
            assert_eq!(value.unwrap(), path.as_bytes());
        }
    }
}

#[test]
fn tasks_share_a_connection_while_batches_run() {
    on_each(|| async {
        let (_server, store) = server();
        let tasks: Vec<_> = (0..2)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move { rounds(&store, task).await })
            })
            .collect();
        for n in 0..50 {
            let path = format!("/single/{n}");
            store.write(&path, &path).await.unwrap();
            assert_eq!(store.read_str(&path).await.unwrap(), path);
        }
        for task in tasks {
            timeout(STUCK, task).await.unwrap().unwrap();
        }
        let mut walk = store.walk("/t", 2).await.unwrap();
        assert_eq!(walk.len(), 1 + 2 + 2 * NODES);
        assert_eq!(walk[..3], ["/t", "/t/0", "/t/1"]);
        walk.drain(..3);
        assert!(walk.is_sorted());
    });
}

/// A batch that is dropped at any of its polls does no harm to the next requests.
#[test]
fn a_batch_that_is_dropped_is_given_up() {
    on_each(|| async {
        let (server, store) = server();
        for path in paths(0) {
            store.write(&path, &path).await.unwrap();
        }
        let paths = paths(0);
        for polls in 0..40 {
            {
                let mut batch = pin!(store.read_many(&paths));
                for _ in 0..polls {
                    let done = poll_fn(|cx| Poll::Ready(batch.as_mut().poll(cx).is_ready()));
                    if done.await {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            }
            let read = timeout(STUCK, store.read(&paths[polls])).await.unwrap();
            assert_eq!(read.unwrap(), paths[polls].as_bytes());
        }
        drop(store);
        drop(server);
    });
}

#[tokio::test]
async fn a_batch_is_one_list_of_requests_and_of_results() {
    let (_server, store) = server();
    store.write("/a/b", "x").await.unwrap();
    let (value, names, none, exists) = store
        .batch((
            Read { path: "/a/b" },
            Directory { path: "/a" },
            Optional(Read { path: "/none" }),
            [Exists { path: "/a" }, Exists { path: "/none" }],
        ))
        .await;
    assert_eq!(value.unwrap(), b"x");
    assert_eq!(names.unwrap(), ["b"]);
    assert_eq!(none.unwrap(), None);
    assert_eq!(exists.map(Result::unwrap), [true, false]);
}

#[tokio::test]
async fn a_snapshot_has_values_and_permissions_and_what_changed() {
    let (server, store) = server();
    let guest = DomId::new(5);
    store.write("/s/a", "1").await.unwrap();
    store.write("/s/a/long", "2").await.unwrap();
    for n in 0..1000 {
        store
            .write(&format!("/s/list/child-{n}"), "")
            .await
            .unwrap();
    }
    let open = Permissions::owner_none(DomId::DOM0).grant_read(guest);
    store.set_permissions("/s", &open).await.unwrap();
    let before = store.snapshot("/s").await.unwrap();
    assert_eq!(before.len(), 1 + 2 + 1 + 1000);
    assert_eq!(
        before.get("/s/a").unwrap().value.as_deref(),
        Some(&b"1"[..])
    );
    assert_eq!(before.get("/s").unwrap().permissions.as_ref(), Some(&open));

    let blocking = thread::scope(|scope| {
        let read = || server.connect(DomId::DOM0).unwrap().snapshot("/s").unwrap();
        scope.spawn(read).join().unwrap()
    });
    assert_eq!(blocking, before, "both clients");
    assert!(before.diff(&blocking).is_empty());

    store.rm("/s/a/long").await.unwrap();
    store.write("/s/a", "3").await.unwrap();
    store.write("/s/new", "4").await.unwrap();
    let after = store
        .with_transaction(|t| async move { t.snapshot("/s").await })
        .await
        .unwrap();
    let changes: Vec<String> = before
        .diff(&after)
        .into_iter()
        .map(|change| match change {
            Change::Added { path, .. } => format!("+{path}"),
            Change::Removed { path, .. } => format!("-{path}"),
            Change::Changed { path, after, .. } => {
                let value = after.value.as_deref().unwrap_or_default().escape_ascii();
                format!("{path}={value}")
            }
        })
        .collect();
    assert_eq!(changes, ["/s/a=3", "-/s/a/long", "+/s/new"]);

    // Of another domain: what it may not read is there, without what is in it.
    let limited = client(&server, guest).snapshot("/s").await.unwrap();
    assert_eq!(limited.len(), 4);
    assert!(limited.get("/s").unwrap().value.is_some());
    assert!(limited.get("/s/a").unwrap().value.is_none());
    let error = store.snapshot("/none").await.unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
    assert_eq!(server.stats().transactions, 0);
}

/// Each snapshot of a transaction that was committed is one that was there.
#[test]
fn a_snapshot_of_a_transaction_is_of_one_moment() {
    on_each(|| async {
        let (server, store) = server();
        let writer = client(&server, DomId::DOM0);
        store.write("/m/a", "0").await.unwrap();
        store.write("/m/b", "0").await.unwrap();
        let changes = tokio::spawn(async move {
            for n in 0..20 {
                let value = n.to_string();
                let both = writer.with_transaction(|t| {
                    let value = value.clone();
                    async move {
                        t.write("/m/a", &value).await?;
                        t.write("/m/b", &value).await
                    }
                });
                both.await.unwrap();
            }
        });
        while !changes.is_finished() {
            let seen = store
                .with_transaction(|t| async move { t.snapshot("/m").await })
                .await;
            match seen {
                Ok(seen) => assert_eq!(seen.get("/m/a"), seen.get("/m/b")),
                Err(error) => assert!(matches!(error, Error::Conflict { .. }), "{error:?}"),
            }
        }
        changes.await.unwrap();
    });
}
