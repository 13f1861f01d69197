//! The operations beyond nodes: domains, transactions, waits and streams.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_core::Stream;
use tokio::time::timeout;
use xen_store::Error;
use xen_store_server::{Config, Server};
use xen_sys::{DomId, Port};

use crate::runtimes::on_each;
use crate::{client, server};

/// Nothing here takes that long unless a task was not woken.
const STUCK: Duration = Duration::from_secs(20);

#[tokio::test]
async fn requests_about_domains_are_those_of_the_blocking_client() {
    let (server, store) = server();
    let blocking = server.connect(DomId::DOM0).unwrap();
    let (domain, other) = (DomId::new(7), DomId::new(8));
    let path = store.domain_path(domain).await.unwrap();
    assert_eq!(path, blocking.domain_path(domain).unwrap());
    assert!(!store.is_introduced(domain).await.unwrap());
    let results = [
        (
            store.introduce(domain, 5, Port::new(3)).await,
            blocking.introduce(other, 5, Port::new(3)),
        ),
        (
            store.set_target(domain, other).await,
            blocking.set_target(other, domain),
        ),
        (store.resume(domain).await, blocking.resume(other)),
        (store.release(domain).await, blocking.release(other)),
        (store.release(domain).await, blocking.release(other)),
    ];
    for (ours, theirs) in results {
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    }
    assert_eq!(
        format!("{:?}", store.control("help", &[]).await),
        format!("{:?}", blocking.control("help", &[]))
    );
    assert!(store.exists("/").await.unwrap());
    assert!(!store.exists("/none").await.unwrap());
    let watch = store.watch("/w").await.unwrap();
    store.reset_watches().await.unwrap();
    assert_eq!(server.stats().watches, 0);
    drop(watch);
}

#[tokio::test]
async fn a_watch_with_a_depth_sees_no_change_below_it() {
    let server = Server::start(Config::new().extensions(true)).unwrap();
    let store = client(&server, DomId::DOM0);
    let watch = store.watch_depth("/w", 1).await.unwrap();
    let set = store.watch_set().unwrap();
    set.add_depth("/w", 2).await.unwrap();
    assert_eq!(&*watch.next().await.unwrap().path, "/w");
    assert_eq!(&*set.next().await.unwrap().1.path, "/w");
    store.write("/w/a/deep", "").await.unwrap();
    store.write("/w/b", "").await.unwrap();
    let mut seen = Vec::new();
    while let Some(event) = watch.try_next().unwrap() {
        seen.push(event.path.to_string());
    }
    assert_eq!(seen, ["/w/b"]);
    for path in ["/w/a/deep", "/w/b"] {
        assert_eq!(&*set.next().await.unwrap().1.path, path);
    }
}

/// Each task adds to the same node; no addition is lost, and none meets too many conflicts.
#[test]
fn a_transaction_that_met_a_conflict_is_run_again() {
    const TASKS: u32 = 32;
    const EACH: u32 = 20;
    on_each(|| async {
        let (server, store) = server();
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| {
                let store = client(&server, DomId::DOM0);
                tokio::spawn(async move {
                    for _ in 0..EACH {
                        let added = store.with_transaction(|t| async move {
                            let sum: u32 = t
                                .read_str_optional("/sum")
                                .await?
                                .map_or(0, |sum| sum.parse().unwrap());
                            t.write("/sum", (sum + 1).to_string()).await
                        });
                        added.await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            timeout(STUCK, task).await.unwrap().unwrap();
        }
        let sum = store.read_str("/sum").await.unwrap();
        assert_eq!(sum, (TASKS * EACH).to_string());
        assert_eq!(server.stats().transactions, 0);
    });
}

#[tokio::test]
async fn a_body_that_fails_aborts_its_transaction() {
    let (server, store) = server();
    let failed: Result<(), Error> = store
        .with_transaction(|t| async move {
            t.write("/a", "1").await?;
            t.read("/none").await.map(drop)
        })
        .await;
    assert!(failed.unwrap_err().is_not_found());
    let t = store.transaction().await.unwrap();
    t.write("/a", "1").await.unwrap();
    t.abort().await.unwrap();
    assert!(!store.exists("/a").await.unwrap());
    assert_eq!(server.stats().transactions, 0);
}

#[test]
fn a_wait_ends_when_its_condition_holds() {
    on_each(|| async {
        let (server, store) = server();
        let writer = client(&server, DomId::DOM0);
        let changes = tokio::spawn(async move {
            for state in 1..=4 {
                writer.write("/w/state", state.to_string()).await.unwrap();
            }
        });
        let connected = store.wait_for("/w/state", |value| (value? == b"4").then_some(()));
        timeout(STUCK, connected).await.unwrap().unwrap();
        let looks = AtomicU32::new(0);
        let below = store.wait_until("/w", |store| {
            looks.fetch_add(1, Ordering::Relaxed);
            async move { Ok((store.directory("/w").await? == ["state"]).then_some(7)) }
        });
        assert_eq!(timeout(STUCK, below).await.unwrap().unwrap(), 7);
        assert_eq!(looks.into_inner(), 1);
        let failed = store.wait_until(
            "/w",
            |store| async move { store.read("/none").await.map(Some) },
        );
        assert!(
            timeout(STUCK, failed)
                .await
                .unwrap()
                .unwrap_err()
                .is_not_found()
        );
        changes.await.unwrap();
        store.mkdir("/after").await.unwrap();
        assert_eq!(server.stats().watches, 0);
    });
}

/// The next item of a stream, as `StreamExt::next` has it.
async fn item<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}

#[test]
fn a_watch_is_a_stream_that_ends_with_the_connection() {
    on_each(|| async {
        let (server, store) = server();
        let mut watch = store.watch("/w").await.unwrap();
        let paths = tokio::spawn(async move {
            let mut paths = Vec::new();
            while let Some(event) = item(&mut watch).await {
                match event {
                    Ok(event) => paths.push(event.path.to_string()),
                    Err(error) => assert!(matches!(error, Error::Closed), "{error:?}"),
                }
                if paths.len() == 3 {
                    break;
                }
            }
            (paths, watch)
        });
        // Each once the one before was taken or merged: they differ.
        store.write("/w/a", "").await.unwrap();
        store.write("/w/b", "").await.unwrap();
        let (paths, mut watch) = timeout(STUCK, paths).await.unwrap().unwrap();
        assert_eq!(paths, ["/w", "/w/a", "/w/b"]);
        let end = tokio::spawn(async move { (item(&mut watch).await, item(&mut watch).await) });
        tokio::task::yield_now().await;
        drop(server);
        let (first, second) = timeout(STUCK, end).await.unwrap().unwrap();
        assert!(matches!(first, Some(Err(Error::Closed))), "{first:?}");
        assert!(second.is_none());
    });
}

#[tokio::test]
async fn a_daemon_that_lacks_a_request_is_named_by_both_clients() {
    let (server, store) = server();
    let blocking = server.connect(DomId::DOM0).unwrap();
    let (ours, theirs) = (
        store.features().await.unwrap_err(),
        blocking.features().unwrap_err(),
    );
    assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    assert!(matches!(ours, Error::NotOffered { .. }), "{ours:?}");
    let depth = store.watch_depth("/w", 1).await.unwrap_err();
    assert!(matches!(depth, Error::NotOffered { .. }), "{depth:?}");
    let set = store.watch_set().unwrap();
    let depth = set.add_depth("/w", 1).await.unwrap_err();
    assert!(matches!(depth, Error::NotOffered { .. }), "{depth:?}");
    assert_eq!(server.stats().watches, 0);
}
