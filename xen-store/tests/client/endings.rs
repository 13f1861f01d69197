//! How a connection ends: every waiting request and watch learns why, at once.

use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::thread;

use xen_store::proto::MAX_SKIPPED;
use xen_store::wire::{Header, MsgType};
use xen_store::{Error, ProtocolError, Store};

use crate::fake_daemon::{FakeDaemon, pair};

#[test]
fn close_fails_all_waiting_requests_and_watches() {
    let (store, mut peer) = pair();
    thread::scope(|scope| {
        let watch = {
            let watcher = scope.spawn(|| store.watch("/w").unwrap());
            peer.grant_watch("/w");
            watcher.join().unwrap()
        };
        let watcher = scope.spawn(move || watch.next(None));
        let requests: Vec<_> = (0..20).map(|_| scope.spawn(|| store.read("/a"))).collect();
        for _ in 0..requests.len() {
            peer.recv();
        }
        drop(peer);
        for request in requests {
            assert!(matches!(request.join().unwrap(), Err(Error::Closed)));
        }
        assert!(matches!(watcher.join().unwrap(), Err(Error::Closed)));
        assert!(
            matches!(store.read("/a"), Err(Error::Closed)),
            "and so do later requests"
        );
    });
}

#[test]
fn close_in_the_middle_of_a_reply_is_a_close() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let request = peer.recv();
        let whole = xen_store::wire::encode(MsgType::READ, request.req_id, 0, &[b"value"]).unwrap();
        peer.send_raw(&whole[..18]);
    });
    let error = store.read("/a").unwrap_err();
    assert!(matches!(error, Error::Closed), "{error:?}");
    assert!(error.is_fatal());
    assert_eq!(
        std::io::Error::from(error).kind(),
        std::io::ErrorKind::BrokenPipe
    );
    daemon.join().unwrap();
}

#[test]
fn a_peer_that_is_gone_before_the_request_is_a_close() {
    let (store, peer) = pair();
    drop(peer);
    assert!(matches!(store.read("/a"), Err(Error::Closed)));
}

/// The daemon's last words are read even when it no longer takes ours.
#[test]
fn replies_sent_before_the_close_are_delivered() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let store = Store::from_fd(ours.into()).unwrap();
    let mut peer = FakeDaemon::new(theirs);
    let watch = thread::scope(|scope| {
        let watcher = scope.spawn(|| store.watch("/w").unwrap());
        let token = peer.grant_watch("/w");
        peer.event("/w/last", &token);
        watcher.join().unwrap()
    });
    drop(peer);
    assert!(matches!(store.read("/a"), Err(Error::Closed)));
    assert_eq!(&*watch.next(None).unwrap().unwrap().path, "/w/last");
    assert!(matches!(watch.next(None), Err(Error::Closed)));
    assert!(matches!(watch.try_next(), Err(Error::Closed)));
}

/// Two requests wait; the daemon answers one of them with `bytes`; both must learn of `expect`.
#[track_caller]
fn check_violation(bytes: impl Fn(u32) -> Vec<u8> + Sync, expect: impl Fn(ProtocolError) -> bool) {
    let (store, mut peer) = pair();
    thread::scope(|scope| {
        let requests = [
            scope.spawn(|| store.read("/a")),
            scope.spawn(|| store.read("/b")),
        ];
        let first = peer.recv();
        peer.recv();
        peer.send_raw(&bytes(first.req_id));
        for request in requests {
            let error = request.join().unwrap().unwrap_err();
            assert!(
                matches!(error, Error::Protocol(v) if expect(v)),
                "{error:?}"
            );
            assert!(error.is_fatal());
        }
    });
}

#[test]
fn a_reply_to_no_request_is_a_violation() {
    let reply = |_| xen_store::wire::encode(MsgType::READ, 4711, 0, &[b"x"]).unwrap();
    check_violation(reply, |v| {
        v == ProtocolError::UnknownRequest {
            kind: MsgType::READ,
            req_id: 4711,
        }
    });
}

#[test]
fn a_socket_may_not_answer_watches_without_an_id() {
    let reply = |_| xen_store::wire::encode(MsgType::WATCH, 0, 0, &[b"OK\0"]).unwrap();
    check_violation(reply, |v| {
        v == ProtocolError::UnknownRequest {
            kind: MsgType::WATCH,
            req_id: 0,
        }
    });
}

#[test]
fn a_second_reply_is_a_violation() {
    let reply = |id| xen_store::wire::encode(MsgType::READ, id, 0, &[b"x"]).unwrap();
    let (store, mut peer) = pair();
    thread::scope(|scope| {
        let read = scope.spawn(|| store.read("/a"));
        let request = peer.recv();
        peer.send_raw(&reply(request.req_id));
        assert_eq!(read.join().unwrap().unwrap(), b"x");
        peer.send_raw(&reply(request.req_id));
        let error = store.read("/b").unwrap_err();
        let expect = ProtocolError::UnknownRequest {
            kind: MsgType::READ,
            req_id: request.req_id,
        };
        assert!(
            matches!(error, Error::Protocol(v) if v == expect),
            "{error:?}"
        );
    });
}

#[test]
fn a_reply_of_another_type_is_a_violation() {
    let reply = |id| xen_store::wire::encode(MsgType::WRITE, id, 0, &[b"OK\0"]).unwrap();
    check_violation(reply, |v| {
        v == ProtocolError::ReplyType {
            sent: MsgType::READ,
            got: MsgType::WRITE,
        }
    });
}

#[test]
fn a_reply_too_long_to_be_skipped_is_a_violation() {
    for len in [MAX_SKIPPED + 1, u32::MAX as usize] {
        let header = move |id| {
            let len = u32::try_from(len).unwrap();
            let header = Header {
                kind: MsgType::READ,
                req_id: id,
                tx_id: 0,
                len,
            };
            header.to_bytes().to_vec()
        };
        check_violation(header, |v| v == ProtocolError::TooLong { len });
    }
}

#[test]
fn an_event_without_its_fields_is_a_violation() {
    for payload in [&b""[..], b"/w\0", b"/w\0token", b"\0"] {
        let event = |_| xen_store::wire::encode(MsgType::WATCH_EVENT, 0, 0, &[payload]).unwrap();
        check_violation(event, |v| {
            v == ProtocolError::Payload {
                kind: MsgType::WATCH_EVENT,
            }
        });
    }
}

#[test]
fn dropping_the_store_closes_the_connection() {
    let (store, mut peer) = pair();
    let other = store.clone();
    drop(store);
    let started = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            started.wait();
            other.mkdir("/a").unwrap();
            drop(other);
        });
        started.wait();
        let request = peer.recv();
        peer.ok(&request);
        assert_eq!(peer.try_recv(), None);
    });
}
