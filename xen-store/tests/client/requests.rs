//! The request of each operation, and the result made of its reply.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use xen_store::wire::{MsgType, PAYLOAD_MAX};
use xen_store::{Access, Error, Invalid, Permissions, Store};
use xen_sys::{DomId, Port};

use crate::fake_daemon::{FakeDaemon, pair};

/// Runs `call` against one expected request, answered with `reply`.
#[track_caller]
fn exchange<T: Send>(
    kind: MsgType,
    request: &[u8],
    reply: &[u8],
    call: impl FnOnce(&Store) -> T + Send,
) -> T {
    let (store, mut peer) = pair();
    thread::scope(|scope| {
        let result = scope.spawn(move || call(&store));
        let message = peer.expect(kind, request);
        assert_ne!(message.req_id, 0);
        assert_eq!(message.tx_id, 0);
        peer.reply(&message, reply);
        result.join().unwrap()
    })
}

#[test]
fn values_are_bytes_and_arrive_unchanged() {
    for value in [&b"ab\0"[..], b"", b"\0", b"a\0b", b"\xff\xfe", b"plain"] {
        let got = exchange(MsgType::READ, b"/v\0", value, |s| s.read("/v").unwrap());
        assert_eq!(got, value);
        let request = [b"/v\0", value].concat();
        exchange(MsgType::WRITE, &request, b"OK\0", |s| {
            s.write("/v", value).unwrap()
        });
    }
}

#[test]
fn text_is_checked_and_its_trailing_nul_kept() {
    let got = exchange(MsgType::READ, b"/v\0", b"ab\0", |s| {
        s.read_str("/v").unwrap()
    });
    assert_eq!(got, "ab\0");
    let got = exchange(MsgType::READ, b"/v\0", b"\xff", |s| s.read_str("/v"));
    assert!(
        matches!(got, Err(Error::NotText { op: MsgType::READ })),
        "{got:?}"
    );
}

#[test]
fn each_operation_sends_its_fields() {
    let dom = DomId::new(7);
    let ok = b"OK\0";
    exchange(MsgType::MKDIR, b"a/b\0", ok, |s| s.mkdir("a/b").unwrap());
    exchange(MsgType::RM, b"/a\0", ok, |s| s.rm("/a").unwrap());
    exchange(MsgType::SET_PERMS, b"/a\0n7\0r3\0", ok, |s| {
        s.set_permissions(
            "/a",
            &Permissions::owner_none(dom).grant_read(DomId::new(3)),
        )
        .unwrap();
    });
    let perms = exchange(MsgType::GET_PERMS, b"/a\0", b"r7\0b3\0", |s| {
        s.permissions("/a").unwrap()
    });
    assert_eq!(
        perms,
        Permissions::new(dom, Access::Read).grant(DomId::new(3), Access::ReadWrite)
    );
    let path = exchange(
        MsgType::GET_DOMAIN_PATH,
        b"7\0",
        b"/local/domain/7\0",
        |s| s.domain_path(dom).unwrap(),
    );
    assert_eq!(path, "/local/domain/7");
    for (reply, expect) in [(b"T\0", true), (b"F\0", false)] {
        let got = exchange(MsgType::IS_DOMAIN_INTRODUCED, b"7\0", reply, |s| {
            s.is_introduced(dom).unwrap()
        });
        assert_eq!(got, expect);
    }
    exchange(MsgType::INTRODUCE, b"7\x009\x0011\0", ok, |s| {
        s.introduce(dom, 9, Port::new(11)).unwrap();
    });
    exchange(MsgType::RELEASE, b"7\0", ok, |s| s.release(dom).unwrap());
    exchange(MsgType::RESUME, b"7\0", ok, |s| s.resume(dom).unwrap());
    exchange(MsgType::SET_TARGET, b"7\08\0", ok, |s| {
        s.set_target(dom, DomId::new(8)).unwrap()
    });
    exchange(MsgType::RESET_WATCHES, b"\0", ok, |s| {
        s.reset_watches().unwrap()
    });
    let text = exchange(MsgType::CONTROL, b"print\0hello\0", b"said\0", |s| {
        s.control("print", &["hello"]).unwrap()
    });
    assert_eq!(text, "said");
}

/// oxenstored 4.17 leaves a message without a payload unanswered until the next one comes.
#[test]
fn a_message_without_a_payload_is_sent_only_to_a_daemon_that_has_its_type() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        peer.features(b"7\0");
        for (kind, question) in [
            (MsgType::GET_FEATURE, &b"0\0"[..]),
            (MsgType::GET_QUOTA, b"nodes\0"),
        ] {
            let request = peer.expect(kind, question);
            peer.refuse(&request, "ENOSYS");
        }
        let question = peer.expect(MsgType::GET_QUOTA, b"nodes\0");
        peer.reply(&question, b"1000\0");
        let request = peer.expect(MsgType::GET_QUOTA, b"");
        peer.reply(&request, b"nodes memory\0");
        assert_eq!(peer.try_recv(), None);
    });
    assert_eq!(store.features().unwrap(), 7);
    let op = MsgType::GET_FEATURE;
    let error = store.features().unwrap_err();
    assert!(matches!(error, Error::NotOffered { op: found } if found == op));
    let error = store.quota_names().unwrap_err();
    assert!(matches!(error, Error::NotOffered { .. }), "{error:?}");
    assert_eq!(store.quota_names().unwrap(), ["nodes", "memory"]);
    drop(store);
    daemon.join().unwrap();
}

#[test]
fn a_missing_node_is_none_and_no_error() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        for name in ["ENOENT", "ENOENT", "EACCES"] {
            let request = peer.recv();
            peer.refuse(&request, name);
        }
        peer.serve_ok();
    });
    assert_eq!(store.read_optional("/a").unwrap(), None);
    assert_eq!(store.read_str_optional("/a").unwrap(), None);
    assert!(store.read_optional("/a").unwrap_err().is_denied());
    assert_eq!(store.read_optional("/a").unwrap().unwrap(), b"OK\0");
    drop(store);
    daemon.join().unwrap();
}

#[test]
fn the_own_domain_is_a_number_or_an_error_that_names_the_node() {
    let own = |value| exchange(MsgType::READ, b"domid\0", value, Store::own_domain);
    assert_eq!(own(b"17").unwrap(), DomId::new(17));
    assert_eq!(own(b" 0\n").unwrap(), DomId::DOM0);
    // The last is DOMID_SELF, which no domain has.
    for value in [&b""[..], b"-1", b"65536", b"x", b"32752"] {
        let error = own(value).unwrap_err();
        assert!(
            matches!(error, Error::Value { node: "domid", .. }),
            "{error}"
        );
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    }
    assert!(matches!(own(b"\xff"), Err(Error::NotText { .. })));
}

#[test]
fn errors_are_distinguished_by_name() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let hostile = format!("E\x1b[2J{}", "x".repeat(4000));
        for name in ["ENOENT", "EACCES", "EAGAIN", "ENEW", &hostile, ""] {
            let request = peer.recv();
            peer.refuse(&request, name);
        }
        peer.serve_ok();
    });
    let missing = store.read("/a").unwrap_err();
    assert!(missing.is_not_found());
    assert_eq!(missing.errno(), Some(libc::ENOENT));
    assert_eq!(
        std::io::Error::from(missing).kind(),
        std::io::ErrorKind::NotFound
    );
    assert!(store.read("/a").unwrap_err().is_denied());
    assert!(store.read("/a").unwrap_err().is_again());
    let new = store.read("/a").unwrap_err();
    assert_eq!(new.to_string(), "READ: ENEW", "the name is kept");
    assert_eq!(new.errno(), Some(libc::EINVAL), "as libxenstore has it");
    let hostile = store.read("/a").unwrap_err();
    assert_eq!(
        hostile.to_string(),
        "READ: E?[2Jxxxxxxxxxxx",
        "16 bytes of it"
    );
    let empty = store.read("/a").unwrap_err();
    assert_eq!(empty.to_string(), "READ: an error without a name");
    assert_eq!(store.read("/a").unwrap(), b"OK\0", "an error ends nothing");
    drop(store);
    daemon.join().unwrap();
}

#[test]
fn exists_is_a_read_that_may_fail_with_enoent_only() {
    for (name, expect) in [("ENOENT", Some(false)), ("EACCES", None)] {
        let (store, mut peer) = pair();
        let daemon = thread::spawn(move || {
            let request = peer.expect(MsgType::READ, b"/a\0");
            peer.refuse(&request, name);
        });
        assert_eq!(store.exists("/a").ok(), expect);
        daemon.join().unwrap();
    }
}

/// A NUL in an argument would begin another field of the request.
#[test]
fn nul_and_other_malformed_arguments_are_never_sent() {
    let (store, mut peer) = pair();
    let perms = Permissions::owner_none(DomId::DOM0);
    for path in ["/a\0b", "a\0", "", "/a/", "/a b"] {
        let errors = [
            store.read(path).unwrap_err(),
            store.write(path, b"x").unwrap_err(),
            store.mkdir(path).unwrap_err(),
            store.rm(path).unwrap_err(),
            store.directory(path).unwrap_err(),
            store.permissions(path).unwrap_err(),
            store.set_permissions(path, &perms).unwrap_err(),
            store.watch(path).unwrap_err(),
        ];
        assert!(
            errors.iter().all(|e| matches!(e, Error::Invalid(_))),
            "{path:?}: {errors:?}"
        );
    }
    let nul = store.control("print", &["a\0b"]).unwrap_err();
    assert!(
        matches!(nul, Error::Invalid(Invalid::Nul { at: 1 })),
        "{nul:?}"
    );
    drop(store);
    assert_eq!(peer.try_recv(), None);
}

#[test]
fn payload_limit_is_the_callers_error_and_exact() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let request = peer.recv();
        assert_eq!(request.payload.len(), PAYLOAD_MAX);
        peer.ok(&request);
        assert_eq!(peer.try_recv(), None);
    });
    let most = PAYLOAD_MAX - "/a\0".len();
    let error = store.write("/a", vec![b'x'; most + 1]).unwrap_err();
    let expect = Invalid::PayloadTooLong {
        len: PAYLOAD_MAX + 1,
        max: PAYLOAD_MAX,
    };
    assert!(
        matches!(error, Error::Invalid(invalid) if invalid == expect),
        "{error:?}"
    );
    store.write("/a", vec![b'x'; most]).unwrap();
    drop(store);
    daemon.join().unwrap();
}

#[test]
fn malformed_replies_are_reported_and_the_connection_goes_on() {
    for (kind, reply) in [
        (MsgType::GET_PERMS, &b""[..]),
        (MsgType::GET_PERMS, b"x1\0"),
        (MsgType::GET_PERMS, b"r99999\0"),
        (MsgType::GET_DOMAIN_PATH, b"/no/nul"),
        (MsgType::IS_DOMAIN_INTRODUCED, b"Y\0"),
        (MsgType::TRANSACTION_START, b"0\0"),
        (MsgType::TRANSACTION_START, b"x\0"),
        (MsgType::DIRECTORY, b"\xff\0"),
    ] {
        let (store, mut peer) = pair();
        let daemon = thread::spawn(move || {
            let request = peer.recv();
            assert_eq!(request.kind, kind);
            peer.reply(&request, reply);
            peer.serve_ok();
        });
        let error = match kind {
            MsgType::GET_PERMS => store.permissions("/a").unwrap_err(),
            MsgType::GET_DOMAIN_PATH => store.domain_path(DomId::DOM0).unwrap_err(),
            MsgType::IS_DOMAIN_INTRODUCED => store.is_introduced(DomId::DOM0).unwrap_err(),
            MsgType::DIRECTORY => store.directory("/a").unwrap_err(),
            _ => store.transaction().unwrap_err(),
        };
        assert!(
            matches!(error, Error::Malformed { op } if op == kind),
            "{error:?}"
        );
        assert!(!error.is_fatal());
        store.mkdir("/a").unwrap();
        drop(store);
        daemon.join().unwrap();
    }
}

#[test]
fn replies_cut_anywhere_are_put_together() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let request = peer.recv();
        let mut bytes = Vec::new();
        for (kind, payload) in [
            (MsgType::WATCH_EVENT, &b"/w\0none\0"[..]),
            (MsgType::READ, b"value"),
        ] {
            let req_id = if kind == MsgType::READ {
                request.req_id
            } else {
                0
            };
            bytes.extend(xen_store::wire::encode(kind, req_id, 0, &[payload]).unwrap());
        }
        for byte in bytes {
            peer.send_raw(&[byte]);
        }
    });
    assert_eq!(store.read("/a").unwrap(), b"value");
    daemon.join().unwrap();
}

/// A socket that takes only a little at a time.
#[test]
fn requests_are_written_in_pieces_if_need_be() {
    use nix::sys::socket::{setsockopt, sockopt};
    let (ours, theirs) = UnixStream::pair().unwrap();
    setsockopt(&ours, sockopt::SndBuf, &1).unwrap();
    let store = Store::from_fd(ours.into()).unwrap();
    let mut peer = FakeDaemon::new(theirs);
    let value = vec![b'v'; 4000];
    thread::scope(|scope| {
        let writers: Vec<_> = (0..12)
            .map(|_| scope.spawn(|| store.write("/a", &value).unwrap()))
            .collect();
        for _ in 0..writers.len() {
            let request = peer.recv();
            assert_eq!(&request.payload[3..], value);
            peer.ok(&request);
        }
    });
}

#[test]
fn a_deadline_ends_the_wait_and_the_late_reply_is_dropped() {
    let (store, mut peer) = pair();
    let hasty = store.with_timeout(Some(Duration::from_millis(5)));
    let begun = Instant::now();
    let error = hasty.read("/slow").unwrap_err();
    assert!(
        matches!(error, Error::TimedOut { op: MsgType::READ }),
        "{error:?}"
    );
    assert!(begun.elapsed() >= Duration::from_millis(5));
    assert!(!error.is_fatal());
    let daemon = thread::spawn(move || {
        let late = peer.expect(MsgType::READ, b"/slow\0");
        let next = peer.expect(MsgType::READ, b"/next\0");
        peer.reply(&late, b"late");
        peer.reply(&next, b"next");
    });
    assert_eq!(store.read("/next").unwrap(), b"next");
    daemon.join().unwrap();
}
