//! Many requests in flight together, with a daemon that answers late, wrongly or not at all.

use std::thread;
use std::time::{Duration, Instant};

use xen_store::proto::MAX_UNANSWERED;
use xen_store::request::{Directory, Exists, Mkdir, Optional, Read, Request, Write};
use xen_store::wire::{Message, MsgType};
use xen_store::{Error, Invalid, MAX_IN_FLIGHT, MAX_TREE, Permissions};
use xen_store_server::{Config, Server};
use xen_sys::DomId;

use crate::fake_daemon::pair;

#[test]
fn requests_of_a_batch_are_sent_before_the_first_is_answered() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let requests: Vec<Message> = (0..4).map(|_| peer.recv()).collect();
        let kinds: Vec<MsgType> = requests.iter().map(|request| request.kind).collect();
        let expected = [
            MsgType::READ,
            MsgType::DIRECTORY,
            MsgType::READ,
            MsgType::WRITE,
        ];
        assert_eq!(kinds, expected);
        // In another order than theirs, which no daemon does.
        peer.refuse(&requests[2], "ENOENT");
        peer.reply(&requests[1], b"a\0b\0");
        peer.refuse(&requests[3], "EACCES");
        peer.reply(&requests[0], b"value");
    });
    let (value, names, missing, written, invalid) = store.batch((
        Read { path: "/v" },
        Directory { path: "/d" },
        Optional(Read { path: "/none" }),
        Write {
            path: "/w",
            value: b"x",
        },
        Exists { path: "no//path" },
    ));
    assert_eq!(value.unwrap(), b"value");
    assert_eq!(names.unwrap(), ["a", "b"]);
    assert_eq!(missing.unwrap(), None);
    assert!(written.unwrap_err().is_denied());
    let invalid = invalid.unwrap_err();
    let at = Invalid::DoubledSlash { at: 2 };
    assert!(matches!(invalid, Error::Invalid(found) if found == at));
    daemon.join().unwrap();
}

#[test]
fn no_more_than_the_limit_is_in_flight() {
    const MANY: usize = 3 * MAX_IN_FLIGHT;
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let mut unanswered = Vec::new();
        let (mut most, mut received) = (0, 0);
        while received < MANY {
            // All that are sent without an answer to any of them.
            unanswered.push(peer.recv());
            received += 1;
            most = most.max(unanswered.len());
            if unanswered.len() == MAX_IN_FLIGHT || received == MANY {
                peer.wait_idle();
                unanswered.drain(..).for_each(|request: Message| {
                    let path = request.payload.clone();
                    peer.reply(&request, &path);
                });
            }
        }
        most
    });
    let paths: Vec<String> = (0..MANY).map(|n| format!("/n/{n}")).collect();
    for (value, path) in store.read_many(&paths).into_iter().zip(&paths) {
        assert_eq!(value.unwrap(), format!("{path}\0").as_bytes());
    }
    assert_eq!(daemon.join().unwrap(), MAX_IN_FLIGHT);
}

#[test]
fn a_deadline_ends_a_batch_and_keeps_what_was_answered() {
    let (store, mut peer) = pair();
    let paths: Vec<String> = (0..2 * MAX_IN_FLIGHT).map(|n| format!("/n/{n}")).collect();
    let (answered, told) = std::sync::mpsc::channel();
    let daemon = thread::spawn(move || {
        // The second is answered and the first is not: the daemon is busy with it.
        let (first, second) = (peer.recv(), peer.recv());
        peer.reply(&second, b"second");
        let first = told.recv().map(|()| first).unwrap();
        for _ in 2..MAX_IN_FLIGHT {
            let request = peer.recv();
            peer.ok(&request);
        }
        peer.reply(&first, b"late");
        // Nothing of the rest was sent.
        let next = peer.expect(MsgType::READ, b"/after\0");
        peer.reply(&next, b"after");
    });
    let hasty = store.with_timeout(Some(Duration::from_millis(500)));
    let begun = Instant::now();
    let values = hasty.read_many(&paths);
    assert!(begun.elapsed() >= Duration::from_millis(500));
    answered.send(()).unwrap();
    for (at, value) in values.into_iter().enumerate() {
        match at {
            1 => assert_eq!(value.unwrap(), b"second"),
            _ => assert!(matches!(value, Err(Error::TimedOut { op: MsgType::READ }))),
        }
    }
    assert_eq!(store.read("/after").unwrap(), b"after");
    daemon.join().unwrap();
}

#[test]
fn the_end_of_the_connection_ends_every_request_of_a_batch() {
    for wrong_id in [false, true] {
        let (store, mut peer) = pair();
        let daemon = thread::spawn(move || {
            let request = peer.recv();
            peer.reply(&request, b"first");
            let request = peer.recv();
            if wrong_id {
                peer.send(MsgType::READ, request.req_id + 4711, 0, b"x");
            }
        });
        let paths: Vec<String> = (0..MAX_UNANSWERED).map(|n| format!("/n/{n}")).collect();
        let values = store.read_many(&paths);
        assert_eq!(values.len(), paths.len());
        for (at, value) in values.into_iter().enumerate() {
            match value {
                Ok(value) => assert_eq!((at, &*value), (0, &b"first"[..])),
                Err(error) => assert!(error.is_fatal() && at > 0, "{at}: {error:?}"),
            }
        }
        daemon.join().unwrap();
    }
}

#[test]
fn requests_with_the_same_reply_fit_one_list() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || peer.serve_ok());
    let path = "/a";
    let value: &[u8] = b"";
    let changes: Vec<Box<dyn Request<Reply = ()>>> =
        vec![Box::new(Mkdir { path }), Box::new(Write { path, value })];
    assert!(store.batch(changes).into_iter().all(|done| done.is_ok()));
    let nested = store.batch([
        (Read { path: "/a" }, Exists { path: "/a" }),
        (Read { path: "/b" }, Exists { path: "/b" }),
    ]);
    for (value, exists) in nested {
        assert_eq!(value.unwrap(), b"OK\0");
        assert!(exists.unwrap());
    }
    assert!(store.batch(Vec::<Read<'_>>::new()).is_empty());
    drop(store);
    daemon.join().unwrap();
}

/// A daemon whose every node has another child.
#[test]
fn a_tree_without_an_end_is_given_up() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        // As many names as fit a reply.
        let names: String = (0..400).map(|n| format!("child-{n}\0")).collect();
        let mut requests = 0_u64;
        while let Some(request) = peer.try_recv() {
            requests += 1;
            peer.reply(&request, names.as_bytes());
        }
        requests
    });
    let error = store.walk("/", u32::MAX).unwrap_err();
    let limit = matches!(error, Error::TooLarge { limit: MAX_TREE });
    assert!(limit, "{error:?}");
    store.mkdir("/the-connection-goes-on").unwrap();
    drop(store);
    // Each list has 400 nodes of at least 64 bytes.
    let most = MAX_TREE / (400 * 64) + 2 * MAX_IN_FLIGHT;
    assert!(daemon.join().unwrap() < most as u64);
}

/// Its answers are always there already, so no wait for one is ever cut short.
#[test]
fn a_deadline_ends_a_walk_of_a_daemon_that_always_has_an_answer() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let token = peer.grant_watch("/");
        peer.event("/", &token);
        let names: String = (0..400).map(|n| format!("child-{n}\0")).collect();
        while let Some(request) = peer.try_recv() {
            match request.kind {
                MsgType::DIRECTORY => peer.reply(&request, names.as_bytes()),
                _ => peer.ok(&request),
            }
        }
    });
    let begun = Instant::now();
    let deadline = begun + Duration::from_millis(20);
    let waited = store.wait_until("/", Some(deadline), |store| {
        store.walk("/", u32::MAX).map(Some)
    });
    assert!(matches!(waited, Ok(None)), "{waited:?}");
    store.mkdir("/the-connection-goes-on").unwrap();
    drop(store);
    daemon.join().unwrap();
}

#[test]
fn a_tree_of_malformed_names_is_the_daemons_fault() {
    for name in ["", "a/b", "a b", "a\u{e9}", &"x".repeat(3072)] {
        let (store, mut peer) = pair();
        let reply = format!("{name}\0");
        let daemon = thread::spawn(move || {
            let request = peer.expect(MsgType::DIRECTORY, b"/\0");
            peer.reply(&request, reply.as_bytes());
            assert_eq!(peer.try_recv(), None);
        });
        let error = store.walk("/", 9).unwrap_err();
        assert!(
            matches!(error, Error::Malformed { .. }),
            "{name:?}: {error:?}"
        );
        drop(store);
        daemon.join().unwrap();
    }
}

/// `@` begins a special name only at the start of a path, and a guest may make such a node.
#[test]
fn a_name_of_a_guests_choice_ends_no_walk_of_its_home() {
    let server = Server::start(Config::new()).unwrap();
    let store = server.connect(DomId::DOM0).unwrap();
    let (guest, home) = (DomId::new(7), "/local/domain/7/data");
    store.mkdir(home).unwrap();
    let owned = Permissions::owner_none(guest);
    store.set_permissions(home, &owned).unwrap();
    let odd = server.connect(guest).unwrap();
    odd.write("data/@a", "x").unwrap();
    let path = format!("{home}/@a");
    assert_eq!(store.walk(home, 1).unwrap(), [home, &path]);
    let tree = store.snapshot("/").unwrap();
    assert_eq!(tree.get(&path).unwrap().value.as_deref(), Some(&b"x"[..]));
}

#[test]
fn a_walk_leaves_out_what_went_and_what_may_not_be_read() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let root = peer.expect(MsgType::DIRECTORY, b"/r\0");
        peer.reply(&root, b"went\0secret\0open\0");
        for (path, answer) in [
            ("/r/went", Err("ENOENT")),
            ("/r/secret", Err("EACCES")),
            ("/r/open", Ok(&b"b\0a\0"[..])),
        ] {
            let request = peer.expect(MsgType::DIRECTORY, format!("{path}\0").as_bytes());
            match answer {
                Ok(names) => peer.reply(&request, names),
                Err(name) => peer.refuse(&request, name),
            }
        }
        assert_eq!(peer.try_recv(), None, "the depth is 2");
    });
    let paths = store.walk("/r", 2).unwrap();
    let expected = ["/r", "/r/open", "/r/secret", "/r/open/a", "/r/open/b"];
    assert_eq!(paths, expected);
    drop(store);
    daemon.join().unwrap();
}

/// Lists in parts are fetched one after the other: each may take much memory.
#[test]
fn one_list_of_a_batch_is_fetched_in_parts_at_a_time() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let lists = [peer.recv(), peer.recv(), peer.recv()];
        for list in &lists {
            peer.refuse(list, "E2BIG");
        }
        for path in ["/0", "/1", "/2"] {
            for (offset, part) in [("0", &b"7\0a\0"[..]), ("2", b"7\0b\0\0")] {
                let fields = format!("{path}\0{offset}\0");
                let request = peer.expect(MsgType::DIRECTORY_PART, fields.as_bytes());
                peer.wait_idle();
                peer.reply(&request, part);
            }
        }
    });
    for names in store.batch(["/0", "/1", "/2"].map(|path| Directory { path })) {
        assert_eq!(names.unwrap(), ["a", "b"]);
    }
    daemon.join().unwrap();
}
