//! Lists of children, short and long.

use std::thread;

use xen_store::Error;
use xen_store::wire::{Header, MsgType};

use crate::fake_daemon::{FakeDaemon, pair};

#[test]
fn a_short_list_takes_one_request() {
    for (reply, expect) in [
        (&b""[..], vec![]),
        (b"a\0", vec!["a"]),
        (b"a\0bc\0d\0", vec!["a", "bc", "d"]),
    ] {
        let (store, mut peer) = pair();
        let daemon = thread::spawn(move || {
            let request = peer.expect(MsgType::DIRECTORY, b"/d\0");
            peer.reply(&request, reply);
        });
        assert_eq!(store.directory("/d").unwrap(), expect);
        daemon.join().unwrap();
    }
}

/// Refuses DIRECTORY, then answers DIRECTORY_PART with each of `parts` in turn.
fn serve(mut peer: FakeDaemon, parts: &[(&str, &[u8])]) {
    let whole = peer.expect(MsgType::DIRECTORY, b"/d\0");
    peer.refuse(&whole, "E2BIG");
    for (offset, reply) in parts {
        let request = peer.expect(
            MsgType::DIRECTORY_PART,
            format!("/d\0{offset}\0").as_bytes(),
        );
        peer.reply(&request, reply);
    }
    assert_eq!(peer.try_recv(), None);
}

#[track_caller]
fn check(parts: &'static [(&str, &[u8])], expect: Option<&[&str]>) {
    let (store, peer) = pair();
    let daemon = thread::spawn(move || serve(peer, parts));
    let result = store.directory("/d");
    drop(store);
    daemon.join().unwrap();
    match expect {
        Some(names) => assert_eq!(result.unwrap(), names),
        None => assert!(matches!(result, Err(Error::Malformed { .. })), "{result:?}"),
    }
}

#[test]
fn a_long_list_is_read_in_parts() {
    check(
        &[("0", b"7\0a\0b\0"), ("4", b"7\0c\0\0")],
        Some(&["a", "b", "c"]),
    );
    check(&[("0", b"7\0a\0"), ("2", b"7\0\0")], Some(&["a"]));
    check(&[("0", b"7\0\0")], Some(&[]));
}

#[test]
fn a_list_that_changes_meanwhile_is_read_again() {
    check(
        &[
            ("0", b"7\0a\0b\0"),
            ("4", b"8\0c\0\0"),
            ("0", b"8\0a\0"),
            ("2", b"8\0c\0\0"),
        ],
        Some(&["a", "c"]),
    );
}

#[test]
fn parts_that_lead_nowhere_are_refused() {
    check(&[("0", b"7\0")], None);
    check(&[("0", b"7")], None);
    check(&[("0", b"")], None);
    check(&[("0", b"7\0a")], None);
}

#[test]
fn a_list_that_never_stands_still_is_a_conflict() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let whole = peer.recv();
        peer.refuse(&whole, "E2BIG");
        let mut generation = 0;
        while let Some(request) = peer.try_recv() {
            generation += 1;
            peer.reply(&request, format!("{generation}\0a\0").as_bytes());
        }
    });
    let error = store.directory("/d").unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error:?}");
    drop(store);
    daemon.join().unwrap();
}

/// oxenstored sends such a list in one message, whatever the protocol's limit.
#[test]
fn a_list_too_long_for_the_protocol_is_read_in_parts() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        for known in [true, false] {
            let whole = peer.expect(MsgType::DIRECTORY, b"/a\0");
            let header = Header {
                kind: MsgType::DIRECTORY,
                req_id: whole.req_id,
                tx_id: 0,
                len: 66_000,
            };
            peer.send_raw(&header.to_bytes());
            peer.send_raw(&b"name\0".repeat(66_000 / 5));
            let part = peer.expect(MsgType::DIRECTORY_PART, b"/a\x000\0");
            if known {
                peer.reply(&part, b"7\0name\0other\0\0");
            } else {
                peer.refuse(&part, "ENOSYS");
            }
        }
        peer.serve_ok();
    });
    assert_eq!(store.directory("/a").unwrap(), ["name", "other"]);
    let error = store.directory("/a").unwrap_err();
    let expect = "DIRECTORY: a reply of 66000 bytes, more than the protocol allows";
    assert_eq!(error.to_string(), expect);
    store.mkdir("/the/connection/goes/on").unwrap();
    drop(store);
    daemon.join().unwrap();
}
