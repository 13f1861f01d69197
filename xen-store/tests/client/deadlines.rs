//! A deadline that has passed ends the call; what has arrived by then still counts.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Backlog, listen};
use xen_store::wire::MsgType;
use xen_store::{Error, LOOK_ONCE, Store};
use xen_store_server::{Config, Server};
use xen_sys::DomId;

use crate::fake_daemon::pair;

/// Longer than a call with a deadline ever takes here, however busy the machine.
const LONG: Duration = Duration::from_secs(20);

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(200))
}

#[test]
fn connecting_to_a_full_backlog_ends_at_its_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let mut clients = Vec::new();
    let full = loop {
        match Store::connect_until(&socket, Duration::from_millis(20)) {
            Ok(store) => clients.push(store),
            Err(error) => break error,
        }
        assert!(clients.len() < 100, "the backlog is full");
    };
    assert!(matches!(full, Error::Connect { .. }), "{full:?}");
    assert_eq!(full.errno(), Some(libc::EAGAIN));
    let accepting = thread::spawn(move || {
        let accepted = (0..=clients.len()).map(|_| listener.accept().unwrap());
        accepted.collect::<Vec<_>>()
    });
    Store::connect_until(&socket, LONG).unwrap();
    accepting.join().unwrap();
}

#[test]
fn wait_for_returns_at_its_deadline_although_the_daemon_is_silent() {
    let (store, _silent) = pair();
    let begun = Instant::now();
    let deadline = begun + Duration::from_millis(200);
    let found = within(LONG, move || {
        store.wait_for("/a", Some(deadline), |value| value.map(drop))
    });
    assert_eq!(found.unwrap(), None);
    assert!(begun.elapsed() >= Duration::from_millis(200));
}

/// The daemon grants the watch and then sends nothing more, in the middle of the first look.
#[test]
fn wait_for_returns_at_its_deadline_although_its_look_is_not_answered() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let token = peer.grant_watch("/a");
        peer.event("/a", &token);
        peer.expect(MsgType::READ, b"/a\0");
        peer
    });
    let found = within(LONG, move || {
        store.wait_for("/a", soon(), |value| value.map(drop))
    });
    assert_eq!(found.unwrap(), None);
    drop(daemon.join().unwrap());
}

#[test]
fn wait_for_with_a_deadline_that_has_passed_looks_once() {
    let server = Server::start(Config::new()).unwrap();
    let store = server.connect(DomId::DOM0).unwrap();
    store.write("/a", "here").unwrap();
    let mut none = 0;
    for _ in 0..200 {
        let now = Some(Instant::now());
        let found = store.wait_for("/a", now, |value| value.map(<[u8]>::to_vec));
        none += usize::from(found.unwrap().is_none());
        let found = store.wait_for("/b", now, |value| value.map(<[u8]>::to_vec));
        assert_eq!(found.unwrap(), None);
    }
    assert_eq!(none, 0, "of 200 looks at a node that is there");
    assert_eq!(server.stats().watches, 0);
}

#[test]
fn a_look_at_a_silent_daemon_ends_too() {
    let (store, _silent) = pair();
    let begun = Instant::now();
    let found = within(LONG, move || {
        store.wait_for("/a", Some(begun), |value| value.map(drop))
    });
    assert_eq!(found.unwrap(), None);
    assert!(begun.elapsed() >= LOOK_ONCE);
}

#[test]
fn next_with_a_deadline_that_has_passed_reads_the_connection_once() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let token = peer.grant_watch("/w");
        (peer, token)
    });
    let watch = store.watch("/w").unwrap();
    let (mut peer, token) = daemon.join().unwrap();
    let past = Some(Instant::now());
    assert_eq!(watch.next(past).unwrap(), None);
    peer.event("/w/a", &token);
    let event = watch.next(past).unwrap().expect("the event has arrived");
    assert_eq!(&*event.path, "/w/a");
    assert_eq!(watch.next(past).unwrap(), None);
    drop(peer);
    assert!(matches!(watch.next(past), Err(Error::Closed)));
}

/// Events of another watch and answers of other threads wake the waiting thread all the time.
#[test]
fn a_deadline_ends_the_wait_although_others_are_busy() {
    let server = Server::start(Config::new()).unwrap();
    let store = server.connect(DomId::DOM0).unwrap();
    let other = store.watch("/busy").unwrap();
    let quiet = store.watch("/quiet").unwrap();
    quiet.next(None).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for writer in 0..2 {
            let (store, done) = (&store, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    store.write(&format!("/busy/{writer}"), "x").unwrap();
                }
            });
        }
        let begun = Instant::now();
        for _ in 0..20 {
            let deadline = Instant::now() + Duration::from_millis(10);
            assert_eq!(quiet.next(Some(deadline)).unwrap(), None);
        }
        done.store(true, Ordering::Relaxed);
        assert!(begun.elapsed() < LONG);
    });
    drop(other);
}

/// At each look there is another change already.
#[test]
fn wait_until_returns_at_its_deadline_although_changes_keep_coming() {
    let server = Server::start(Config::new()).unwrap();
    let store = server.connect(DomId::DOM0).unwrap();
    let writer = server.connect(DomId::DOM0).unwrap();
    let deadline = Instant::now() + Duration::from_millis(200);
    let late = deadline + LONG;
    let found = store.wait_until("/busy", Some(deadline), |_| {
        writer.write("/busy", "x")?;
        let mut fds = [PollFd::new(store.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(20_000_u16)).unwrap(), 1);
        Ok((Instant::now() >= late).then_some(()))
    });
    assert_eq!(found.unwrap(), None, "it went on beyond its deadline");
}

/// `body` in a thread of its own; fails if it takes longer than `limit`.
#[track_caller]
fn within<T: Send + 'static>(limit: Duration, body: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || tell.send(body()));
    told.recv_timeout(limit).expect("the call returns")
}
