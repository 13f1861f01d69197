//! The client for tokio, against the embedded daemon and against peers that misbehave.

// The lint exempts test functions, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod batches;
mod limits;
mod operations;
mod reconnect;
#[path = "../restarts/mod.rs"]
mod restarts;
mod runtimes;
mod sharing;
mod waits;

use std::num::NonZeroU32;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio::time::timeout;
use xen_store::tokio::Store as AsyncStore;
use xen_store::wire::{Decoder, MsgType, encode};
use xen_store::{Error, Permissions};
use xen_store_server::{Config, Server};
use xen_sys::DomId;

fn server() -> (Server, AsyncStore) {
    let server = Server::start(Config::new()).unwrap();
    let store = client(&server, DomId::DOM0);
    (server, store)
}

fn client(server: &Server, domain: DomId) -> AsyncStore {
    let (ours, theirs) = UnixStream::pair().unwrap();
    server.add_connection(theirs.into(), domain);
    AsyncStore::from_fd(ours.into()).unwrap()
}

#[tokio::test]
async fn nodes_and_lists_and_permissions() {
    let (_server, store) = server();
    store.write("/a/b", b"v\0").await.unwrap();
    assert_eq!(store.read("/a/b").await.unwrap(), b"v\0");
    store.mkdir("/a/c").await.unwrap();
    assert_eq!(store.directory("/a").await.unwrap(), ["b", "c"]);
    store.rm("/a/b").await.unwrap();
    assert!(store.read("/a/b").await.unwrap_err().is_not_found());
    assert_eq!(store.read_optional("/a/b").await.unwrap(), None);
    assert_eq!(
        store.read_str_optional("/a/c").await.unwrap().as_deref(),
        Some("")
    );
    assert!(store.own_domain().await.unwrap_err().is_not_found());
    store.write("domid", "0").await.unwrap();
    assert_eq!(store.own_domain().await.unwrap(), DomId::DOM0);
    let perms = Permissions::owner_none(DomId::DOM0).grant_read(DomId::new(5));
    store.set_permissions("/a", &perms).await.unwrap();
    assert_eq!(store.permissions("/a").await.unwrap(), perms);
    for n in 0..1000 {
        store.mkdir(&format!("/long/child-{n}")).await.unwrap();
    }
    assert_eq!(store.directory("/long").await.unwrap().len(), 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_one_connection() {
    let (_server, store) = server();
    let tasks: Vec<_> = (0..40)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..50 {
                    let path = format!("/t/{task}/{n}");
                    store.write(&path, &path).await.unwrap();
                    assert_eq!(store.read_str(&path).await.unwrap(), path);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn watches_see_changes_and_are_withdrawn() {
    let (server, store) = server();
    let watch = store.watch("/w").await.unwrap();
    assert_eq!(&*watch.next().await.unwrap().path, "/w");
    for n in 0..5000 {
        store.write(&format!("/w/{n}"), "").await.unwrap();
    }
    assert!(watch.next().await.is_ok());
    assert_eq!(watch.path(), "/w");
    drop(watch);
    store.mkdir("/after").await.unwrap();
    assert_eq!(server.stats().watches, 0);
}

#[tokio::test]
async fn transactions_commit_and_abort() {
    let (server, store) = server();
    let t = store.transaction().await.unwrap();
    t.write("/a", "1").await.unwrap();
    assert!(t.commit().await.unwrap());
    let (one, two) = (
        store.transaction().await.unwrap(),
        store.transaction().await.unwrap(),
    );
    for t in [&one, &two] {
        t.write("/a", "2").await.unwrap();
    }
    assert!(one.commit().await.unwrap());
    assert!(!two.commit().await.unwrap());
    drop(store.transaction().await.unwrap());
    store.mkdir("/after").await.unwrap();
    assert_eq!(server.stats().transactions, 0);
}

#[tokio::test]
async fn a_future_that_is_dropped_gives_back_what_it_is_granted() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let store = AsyncStore::from_fd(ours.into()).unwrap();
    let soon = Duration::from_millis(1);
    timeout(soon, store.transaction()).await.unwrap_err();
    timeout(soon, store.watch("/w")).await.unwrap_err();
    let daemon = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut decoder, mut stream) = (Decoder::new(), theirs);
        let mut kinds = Vec::new();
        let mut buf = [0; 4096];
        loop {
            let count = stream.read(&mut buf).unwrap();
            if count == 0 {
                return kinds;
            }
            let mut input = &buf[..count];
            while let Some(request) = decoder.next(&mut input).unwrap() {
                kinds.push(request.kind);
                let reply: &[u8] = match request.kind {
                    MsgType::TRANSACTION_START => b"7\0",
                    _ => b"OK\0",
                };
                stream
                    .write_all(&encode(request.kind, request.req_id, 0, &[reply]).unwrap())
                    .unwrap();
            }
        }
    });
    // Once this is answered so are the others, and the ones it takes to give back are sent.
    store.mkdir("/a").await.unwrap();
    store.mkdir("/b").await.unwrap();
    drop(store);
    let kinds = daemon.join().unwrap();
    assert!(kinds.contains(&MsgType::UNWATCH), "{kinds:?}");
    assert!(kinds.contains(&MsgType::TRANSACTION_END), "{kinds:?}");
}

#[tokio::test]
async fn the_end_of_the_daemon_ends_every_wait() {
    let (server, store) = server();
    let watch = store.watch("/w").await.unwrap();
    watch.next().await.unwrap();
    let waiter = tokio::spawn(async move { watch.next().await });
    drop(server);
    assert!(matches!(waiter.await.unwrap(), Err(Error::Closed)));
    assert!(matches!(store.read("/a").await, Err(Error::Closed)));
}

#[tokio::test]
async fn quotas_and_features_are_those_of_the_blocking_client() {
    let server = Server::start(Config::new().extensions(true)).unwrap();
    let (store, guest) = (client(&server, DomId::DOM0), client(&server, DomId::new(5)));
    assert_eq!(store.features().await.unwrap(), 12);
    store.set_features(DomId::new(9), 4).await.unwrap();
    assert_eq!(store.features_of(DomId::new(9)).await.unwrap(), 4);
    let limit = NonZeroU32::new(7);
    let domain = Some(DomId::new(9));
    assert!(
        store
            .quota_names()
            .await
            .unwrap()
            .contains(&"nodes".to_owned())
    );
    store.set_quota(domain, "nodes", limit).await.unwrap();
    assert_eq!(store.quota(domain, "nodes").await.unwrap(), limit);
    store.set_quota(domain, "nodes", None).await.unwrap();
    assert_eq!(store.quota(domain, "nodes").await.unwrap(), None);
    assert!(guest.quota(None, "nodes").await.unwrap_err().is_denied());
    let (_old, store) = self::server();
    let refused = store.quota_names().await.unwrap_err();
    assert!(matches!(refused, Error::NotOffered { .. }), "{refused}");
}
