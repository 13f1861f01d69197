//! The bounds, refusals and ends of this client: the same as those of the blocking one.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use tokio::time::timeout;
use xen_store::tokio::Store as AsyncStore;
use xen_store::wire::{Decoder, Header, Message, PAYLOAD_MAX, encode};
use xen_store::{Error, Invalid, MAX_ATTEMPTS, MAX_DISTINCT_PATHS, ProtocolError};
use xen_store_server::{Config, Server};
use xen_sys::DomId;

use crate::{client, server};

/// Nothing here takes that long unless a task was not woken.
const STUCK: Duration = Duration::from_secs(20);

/// A client and the daemon's end of its connection.
fn pair() -> (AsyncStore, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (AsyncStore::from_fd(ours.into()).unwrap(), theirs)
}

/// Receives the next `count` requests.
fn receive(stream: &mut UnixStream, count: usize) -> Vec<Message> {
    let (mut decoder, mut requests) = (Decoder::new(), Vec::new());
    let mut buf = [0; 4096];
    while requests.len() < count {
        let got = stream.read(&mut buf).unwrap();
        assert_ne!(got, 0, "the client closed");
        let mut input = &buf[..got];
        while let Some(request) = decoder.next(&mut input).unwrap() {
            requests.push(request);
        }
    }
    requests
}

fn reply(stream: &mut UnixStream, request: &Message, payload: &[u8]) {
    let bytes = encode(request.kind, request.req_id, 0, &[payload]).unwrap();
    stream.write_all(&bytes).unwrap();
}

#[tokio::test]
async fn a_daemon_is_reached_by_the_path_of_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let server = Server::start(Config::new()).unwrap();
    server.listen(&path).unwrap();
    let store = timeout(STUCK, AsyncStore::connect(&path)).await.unwrap();
    let store = store.unwrap();
    store.write("/a", "1").await.unwrap();
    let blocking = xen_store::Store::connect(&path).unwrap();
    assert_eq!(blocking.read("/a").unwrap(), b"1");
    let missing = AsyncStore::connect(dir.path().join("none")).await;
    let missing = missing.unwrap_err();
    assert!(matches!(missing, Error::Connect { .. }), "{missing:?}");
}

/// A process of its own reads the variable: setting it in this one would reach other tests.
#[test]
fn the_environment_names_the_socket_for_tasks() {
    const NAME: &str = "limits::the_environment_names_the_socket_for_tasks";
    const CHILD: &str = "XEN_STORE_TEST_CHILD";
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = runtime.block_on(AsyncStore::connect_from_environment());
    let store = store.unwrap();
    if std::env::var_os(CHILD).is_some() {
        let write = async |store: AsyncStore| store.write("/from/child", "1").await;
        runtime.block_on(write(store.unwrap())).unwrap();
        return;
    }
    assert!(store.is_none(), "the variable is not set");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let server = Server::start(Config::new()).unwrap();
    server.listen(&path).unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(CHILD, "1")
        .env("XENSTORED_PATH", &path)
        .output()
        .unwrap();
    assert!(child.status.success(), "{child:?}");
    let store = server.connect(DomId::DOM0).unwrap();
    assert_eq!(store.read("/from/child").unwrap(), b"1");
}

#[tokio::test]
async fn every_byte_of_a_value_arrives_unchanged() {
    let (_server, store) = server();
    let value: Vec<u8> = (0..=255).collect();
    store.write("/bytes", &value).await.unwrap();
    assert_eq!(store.read("/bytes").await.unwrap(), value);
    store.write("/bytes", "").await.unwrap();
    assert_eq!(store.read("/bytes").await.unwrap(), b"");
}

#[tokio::test]
async fn arguments_that_cannot_be_sent_are_refused_and_nothing_is_sent() {
    let (store, mut peer) = pair();
    let errors = [
        store.read("/a\0b").await.unwrap_err(),
        store.write("/a\0b", "1").await.unwrap_err(),
        store.watch("/a\0b").await.unwrap_err(),
        store.control("check\0", &[]).await.unwrap_err(),
        store.read("/a b").await.unwrap_err(),
        store.mkdir("").await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    }
    // Path and NUL are three bytes.
    let value = vec![0; PAYLOAD_MAX - 2];
    let long = store.write("/a", &value).await.unwrap_err();
    let expected = Invalid::PayloadTooLong {
        len: PAYLOAD_MAX + 1,
        max: PAYLOAD_MAX,
    };
    assert!(
        matches!(long, Error::Invalid(invalid) if invalid == expected),
        "{long:?}"
    );
    drop(store);
    let mut sent = Vec::new();
    peer.read_to_end(&mut sent).unwrap();
    assert!(sent.is_empty(), "{sent:?}");
}

#[tokio::test]
async fn the_largest_request_is_carried_out() {
    let (_server, store) = server();
    let value = vec![7; PAYLOAD_MAX - 3];
    store.write("/a", &value).await.unwrap();
    assert_eq!(store.read("/a").await.unwrap(), value);
}

#[tokio::test]
async fn a_long_reply_ends_its_request_and_one_without_end_the_connection() {
    let (store, mut peer) = pair();
    let header = |request: &Message, len| {
        let header = Header {
            kind: request.kind,
            req_id: request.req_id,
            tx_id: 0,
            len,
        };
        header.to_bytes()
    };
    let daemon = thread::spawn(move || {
        let request = &receive(&mut peer, 1)[0];
        let len = PAYLOAD_MAX + 1;
        peer.write_all(&header(request, len.try_into().unwrap()))
            .unwrap();
        peer.write_all(&vec![b'x'; len]).unwrap();
        let request = &receive(&mut peer, 1)[0];
        reply(&mut peer, request, b"short");
        let request = &receive(&mut peer, 1)[0];
        peer.write_all(&header(request, u32::MAX)).unwrap();
        peer
    });
    let long = timeout(STUCK, store.read("/a")).await.unwrap();
    let long = long.unwrap_err();
    assert!(matches!(long, Error::TooLong { len: 4097, .. }), "{long:?}");
    let short = timeout(STUCK, store.read("/a")).await.unwrap();
    assert_eq!(short.unwrap(), b"short");
    let endless = timeout(STUCK, store.read("/a")).await.unwrap();
    let endless = endless.unwrap_err();
    let is_violation = matches!(endless, Error::Protocol(ProtocolError::TooLong { .. }));
    assert!(is_violation, "{endless:?}");
    drop(daemon.join().unwrap());
}

#[tokio::test]
async fn a_request_whose_time_is_over_leaves_the_connection_usable() {
    let (store, mut peer) = pair();
    let slow = timeout(Duration::from_millis(20), store.read("/slow"));
    slow.await.unwrap_err();
    let daemon = thread::spawn(move || {
        // The late answer arrives first, and is dropped.
        for request in receive(&mut peer, 2) {
            let path = request.payload.strip_suffix(b"\0").unwrap().to_vec();
            reply(&mut peer, &request, &path);
        }
        peer
    });
    let quick = timeout(STUCK, store.read("/quick")).await.unwrap();
    assert_eq!(quick.unwrap(), b"/quick");
    drop(daemon.join().unwrap());
}

#[tokio::test]
async fn a_watch_that_is_not_read_delays_no_reply_and_loses_no_change() {
    let (_server, store) = server();
    let watch = store.watch("/w").await.unwrap();
    assert_eq!(&*watch.next().await.unwrap().path, "/w");
    for n in 0..4 * MAX_DISTINCT_PATHS {
        let path = format!("/w/{n}");
        let write = store.write(&path, "");
        timeout(STUCK, write).await.unwrap().unwrap();
    }
    // More paths than are kept: all of them stand in one event, about the watched path.
    let event = timeout(STUCK, watch.next()).await.unwrap().unwrap();
    assert!(event.rescan && &*event.path == "/w", "{event:?}");
    // Answered after the events before it, so none is on its way.
    store.write("/w/last", "").await.unwrap();
    let event = timeout(STUCK, watch.next()).await.unwrap().unwrap();
    assert_eq!(&*event.path, "/w/last");
    assert!(watch.try_next().unwrap().is_none());
}

/// Each attempt meets a change by another client.
#[tokio::test]
async fn a_transaction_is_given_up_after_its_attempts() {
    let (server, store) = server();
    let other = client(&server, DomId::DOM0);
    let mut attempts = 0;
    let given_up = store.with_transaction(|t| {
        attempts += 1;
        let other = other.clone();
        async move {
            t.write("/a", "ours").await?;
            other.write("/a", "theirs").await
        }
    });
    let error = timeout(STUCK, given_up).await.unwrap().unwrap_err();
    let is_conflict = matches!(error, Error::Conflict { attempts } if attempts == MAX_ATTEMPTS);
    assert!(is_conflict, "{error:?}");
    assert_eq!(attempts, MAX_ATTEMPTS);
    assert_eq!(store.read("/a").await.unwrap(), b"theirs");
    assert_eq!(server.stats().transactions, 0);
}

#[tokio::test]
async fn a_task_that_panics_or_is_cancelled_aborts_its_transaction() {
    let (server, store) = server();
    let task = {
        let store = store.clone();
        tokio::spawn(async move {
            let t = store.transaction().await.unwrap();
            t.write("/a", "1").await.unwrap();
            panic!("of this test");
        })
    };
    assert!(timeout(STUCK, task).await.unwrap().unwrap_err().is_panic());
    let (begun, started) = tokio::sync::oneshot::channel();
    let task = {
        let store = store.clone();
        tokio::spawn(async move {
            let t = store.transaction().await.unwrap();
            t.write("/a", "1").await.unwrap();
            begun.send(()).unwrap();
            std::future::pending::<()>().await;
            drop(t);
        })
    };
    timeout(STUCK, started).await.unwrap().unwrap();
    task.abort();
    assert!(
        timeout(STUCK, task)
            .await
            .unwrap()
            .unwrap_err()
            .is_cancelled()
    );
    // Answered after the aborts.
    assert!(!store.exists("/a").await.unwrap());
    assert_eq!(server.stats().transactions, 0);
}
