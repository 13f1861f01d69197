//! Clients that are slow, rude or gone: they harm only themselves.

use std::io::Write;

use proptest::collection::vec;
use proptest::prelude::*;
use xen_store::wire::{MsgType, encode};
use xen_store_server::{Config, Daemon, MAX_EVENTS_PER_WATCH};

use crate::raw::{Raw, clients, dom, start};

/// Somebody else makes far more events than a client who does not read can have queued.
#[test]
fn a_client_that_reads_no_events_gets_a_summary_later() {
    let server = start();
    let (dom0, _) = clients(&server);
    let mut slow = Raw::connect(&server, dom(0));
    slow.ask(MsgType::WATCH, b"/w\0t\0");
    slow.next();
    for n in 0..20_000 {
        dom0.write(&format!("/w/{}", n % 5000), "").unwrap();
    }
    let events = slow.drain();
    assert!(
        events.contains(&"EVENT /w t".to_owned()),
        "look at everything again"
    );
    let socket_holds = 10_000;
    assert!(
        events.len() < socket_holds + 2 * MAX_EVENTS_PER_WATCH,
        "{}",
        events.len()
    );
    dom0.write("/w/after", "").unwrap();
    assert_eq!(slow.drain(), ["EVENT /w/after t"]);
}

/// It sends requests and never reads a reply: at some point its requests are left unread.
#[test]
fn a_client_that_reads_no_replies_is_not_read_from() {
    let server = start();
    let (dom0, _) = clients(&server);
    dom0.write("/big", vec![b'v'; 4000]).unwrap();
    let mut rude = Raw::connect(&server, dom(0));
    rude.stream().set_nonblocking(true).unwrap();
    let request = encode(MsgType::READ, 7, 0, &[b"/big\0"]).unwrap();
    let mut sent = 0;
    let mut partial = 0;
    // Until its own socket is full for good: the daemon answers others in between, so whatever it
    // would read it has had the time to.
    let mut full_in_a_row = 0;
    while full_in_a_row < 50 {
        match rude.stream().write(&request[partial..]) {
            Ok(count) => {
                partial += count;
                if partial == request.len() {
                    partial = 0;
                    sent += 1;
                }
                full_in_a_row = 0;
            }
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                full_in_a_row += 1;
                dom0.write("/tick", "").unwrap();
            }
        }
        assert!(sent < 100_000, "the daemon takes requests without end");
    }
    rude.stream().set_nonblocking(false).unwrap();
    let mut rest = request[partial..].to_vec();
    if partial == 0 {
        rest.clear();
    }
    // Now it reads, and has every reply.
    let writer = rude.stream().try_clone().unwrap();
    let finish = std::thread::spawn(move || (&writer).write_all(&rest).unwrap());
    for _ in 0..sent + usize::from(partial != 0) {
        let reply = rude.recv().unwrap();
        assert_eq!((reply.req_id, reply.payload.len()), (7, 4000));
    }
    finish.join().unwrap();
}

#[test]
fn who_leaves_takes_everything_along() {
    let server = start();
    for _ in 0..20 {
        let mut raw = Raw::connect(&server, dom(5));
        raw.ask(MsgType::WATCH, b"data\0t\0");
        raw.next();
        raw.ask(MsgType::TRANSACTION_START, b"\0");
        raw.ask_in(1, MsgType::WRITE, b"data/x\0v");
        // Half a request, and gone.
        raw.send_bytes(&encode(MsgType::WRITE, 9, 0, &[b"data/y\0v"]).unwrap()[..20]);
    }
    let (dom0, _) = clients(&server);
    // A goodbye is served in the order it came; ask until the last one was.
    while server.stats().connections > 2 {
        dom0.mkdir("/tick").unwrap();
    }
    let stats = server.stats();
    assert_eq!((stats.watches, stats.transactions), (0, 0));
    assert!(dom0.directory("/local/domain/5/data").unwrap().is_empty());
}

#[test]
fn requests_sent_before_leaving_are_carried_out() {
    let server = start();
    let dom0 = server.connect(dom(0)).unwrap();
    for n in 0..50 {
        let mut raw = Raw::connect(&server, dom(0));
        raw.send(MsgType::WRITE, 0, format!("/left/{n}\0v").as_bytes());
        drop(raw);
    }
    while server.stats().connections > 1 {
        dom0.mkdir("/tick").unwrap();
    }
    assert_eq!(dom0.directory("/left").unwrap().len(), 50);
}

#[test]
fn many_domains_do_not_disturb_each_other() {
    let server = xen_store_server::Server::start(Config::new()).unwrap();
    let guests: Vec<_> = (1..=150)
        .map(|id| {
            assert!(server.add_domain(dom(id)));
            let store = server.connect(dom(id)).unwrap();
            let watch = store.watch("data").unwrap();
            watch.next(None).unwrap();
            (store, watch)
        })
        .collect();
    for (n, (store, _)) in guests.iter().enumerate() {
        store.write("data/n", n.to_string()).unwrap();
    }
    for (n, (store, watch)) in guests.iter().enumerate() {
        assert_eq!(&*watch.next(None).unwrap().unwrap().path, "data/n");
        assert_eq!(watch.try_next().unwrap(), None);
        assert_eq!(store.read_str("data/n").unwrap(), n.to_string());
    }
    let before = server.stats();
    assert_eq!((before.connections, before.watches), (150, 150));
    (1..=150).for_each(|id| server.release(dom(id)));
    let dom0 = server.connect(dom(0)).unwrap();
    while server.stats().connections > 1 {
        dom0.mkdir("/tick").unwrap();
    }
    let after = server.stats();
    assert_eq!((after.domains, after.watches), (1, 0));
    assert_eq!(dom0.control("check", &[]).unwrap(), "OK");
}

/// A request with a plausible type and a payload made of pieces that mean something.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just("/a".to_owned()),
        Just("/a/b".to_owned()),
        Just("data/x".to_owned()),
        Just("@releaseDomain".to_owned()),
        Just("T".to_owned()),
        "[nrwb]?[0-9]{0,6}",
        "[ -~]{0,8}",
    ];
    (0_u32..30, 0_u32..3, vec(piece, 0..5), any::<bool>()).prop_map(|(kind, tx, pieces, end)| {
        let mut payload = pieces.join("\0").into_bytes();
        if end {
            payload.push(0);
        }
        encode(MsgType(kind), 1, tx, &[&payload]).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// No input makes the daemon panic or breaks the tree.
    #[test]
    fn any_requests_leave_a_sound_store(
        requests in vec((any::<bool>(), request()), 0..60),
        extensions: bool,
    ) {
        let mut daemon = Daemon::new(Config::new().extensions(extensions));
        daemon.add_domain(dom(5));
        let conns = [daemon.connect(dom(0)), daemon.connect(dom(5))];
        for (which, bytes) in requests {
            let conn = conns[usize::from(which)];
            daemon.handle_input(conn, &bytes);
            while !daemon.output(conn).is_empty() {
                let count = daemon.output(conn).len();
                daemon.handle_written(conn, count);
            }
        }
        let dom0 = daemon.connect(dom(0));
        daemon.handle_input(dom0, &encode(MsgType::CONTROL, 1, 0, &[b"check\0"]).unwrap());
        prop_assert_eq!(&daemon.output(dom0)[16..], b"OK\0");
    }

    #[test]
    fn any_bytes_are_survived(pieces in vec(vec(any::<u8>(), 0..200), 0..20)) {
        let mut daemon = Daemon::new(Config::new());
        let conn = daemon.connect(dom(5));
        for bytes in pieces {
            daemon.handle_input(conn, &bytes);
        }
        let _ = daemon.output(conn);
    }
}
