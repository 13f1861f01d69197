//! Watches: set and withdrawn properly, events neither lost nor in the way.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_store::wire::MsgType;
use xen_store::{Error, MAX_DISTINCT_PATHS, Store, Watch};

use crate::fake_daemon::{FakeDaemon, pair, token_of};

/// A watch on `path` that the daemon granted, and its token.
fn watch(store: &Store, peer: &mut FakeDaemon, path: &str) -> (Watch, Vec<u8>) {
    thread::scope(|scope| {
        let watch = scope.spawn(|| store.watch(path).unwrap());
        let token = peer.grant_watch(path);
        (watch.join().unwrap(), token)
    })
}

fn readable(fd: impl AsFd, timeout: PollTimeout) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, timeout).unwrap() == 1
}

/// A time no test reaches unless something is stuck.
fn far() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(20))
}

fn next_path(watch: &Watch) -> String {
    watch
        .next(far())
        .unwrap()
        .expect("an event")
        .path
        .to_string()
}

/// The protocol requires the path first and the token second, both ways round.
#[test]
fn unwatch_names_path_then_token() {
    let (store, mut peer) = pair();
    let (watch, token) = watch(&store, &mut peer, "/w");
    drop(watch);
    let request = peer.recv();
    assert_eq!(request.kind, MsgType::UNWATCH);
    assert_eq!(token_of(&request.payload, "/w"), token);
}

#[test]
fn two_watches_on_one_path_have_their_own_tokens() {
    let (store, mut peer) = pair();
    let (one, first) = watch(&store, &mut peer, "/w");
    let (two, second) = watch(&store, &mut peer, "/w");
    assert_ne!(first, second);
    peer.event("/w/1", &first);
    peer.event("/w/2", &second);
    assert_eq!(next_path(&two), "/w/2");
    assert_eq!(next_path(&one), "/w/1");
    assert_eq!(one.try_next().unwrap(), None);
}

#[test]
fn an_event_before_the_reply_belongs_to_the_watch() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let request = peer.recv();
        let token = token_of(&request.payload, "rel/path");
        peer.event("rel/path", &token);
        peer.ok(&request);
        peer
    });
    let watch = store.watch("rel/path").unwrap();
    assert_eq!(next_path(&watch), "rel/path");
    daemon.join().unwrap();
}

/// Far more events than any queue holds, while a reply is awaited by the only thread.
#[test]
fn a_flood_of_events_delays_no_reply_and_loses_nothing() {
    let (store, mut peer) = pair();
    let (few, few_token) = watch(&store, &mut peer, "/few");
    let (many, many_token) = watch(&store, &mut peer, "/many");
    let daemon = thread::spawn(move || {
        let request = peer.expect(MsgType::READ, b"/a\0");
        for n in 0..20_000 {
            peer.event(&format!("/few/{}", n % 7), &few_token);
            peer.event(&format!("/many/{n}"), &many_token);
        }
        peer.reply(&request, b"value");
        peer
    });
    assert_eq!(store.read("/a").unwrap(), b"value");
    let mut seen = HashSet::new();
    while let Some(event) = few.try_next().unwrap() {
        assert!(!event.rescan);
        assert!(seen.insert(event.path.to_string()), "one event per path");
    }
    assert_eq!(seen.len(), 7);
    let event = many.try_next().unwrap().unwrap();
    assert_eq!((&*event.path, event.rescan), ("/many", true));
    assert_eq!(many.try_next().unwrap(), None);
    let mut peer = daemon.join().unwrap();
    peer.event("/many/after", b"2");
    assert_eq!(next_path(&many), "/many/after");
    const { assert!(MAX_DISTINCT_PATHS < 20_000) };
}

#[test]
fn strange_tokens_and_paths_do_no_harm() {
    let (store, mut peer) = pair();
    let (watch, token) = watch(&store, &mut peer, "/w");
    for token in [
        &b"not-a-number"[..],
        b"",
        b"ffffffffffffffffffff",
        b"\xff",
        b"999",
    ] {
        peer.event("/w/x", token);
    }
    let payload = [b"/w/\xff\xfe\0", token.as_slice(), b"\0"].concat();
    peer.send(MsgType::WATCH_EVENT, 4711, 7, &payload);
    let event = watch.next(far()).unwrap().unwrap();
    assert_eq!(
        (&*event.path, event.rescan),
        ("/w", true),
        "an unreadable path means: look"
    );
    assert_eq!(watch.try_next().unwrap(), None);
    peer.event("/w/after", &token);
    assert_eq!(next_path(&watch), "/w/after");
}

#[test]
fn events_after_the_unwatch_are_ignored() {
    let (store, mut peer) = pair();
    let (watch, token) = watch(&store, &mut peer, "/w");
    drop(watch);
    peer.event("/w", &token);
    let daemon = thread::spawn(move || peer.serve_ok());
    store.mkdir("/a").unwrap();
    drop(store);
    daemon.join().unwrap();
}

#[test]
fn a_refused_watch_leaves_nothing() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let request = peer.recv();
        peer.refuse(&request, "EACCES");
        assert_eq!(peer.try_recv(), None, "nothing to withdraw");
    });
    assert!(store.watch("@releaseDomain").unwrap_err().is_denied());
    drop(store);
    daemon.join().unwrap();
}

#[test]
fn a_watch_granted_too_late_is_withdrawn() {
    let (store, mut peer) = pair();
    store
        .with_timeout(Some(Duration::from_millis(1)))
        .watch("/w")
        .unwrap_err();
    let daemon = thread::spawn(move || {
        let request = peer.recv();
        let token = token_of(&request.payload, "/w");
        let read = peer.recv();
        peer.ok(&request);
        let unwatch = peer.recv();
        assert_eq!(unwatch.kind, MsgType::UNWATCH);
        assert_eq!(token_of(&unwatch.payload, "/w"), token);
        peer.ok(&unwatch);
        peer.reply(&read, b"x");
    });
    assert_eq!(store.read("/a").unwrap(), b"x");
    daemon.join().unwrap();
}

#[test]
fn waiting_ends_at_the_deadline() {
    let (store, mut peer) = pair();
    let (watch, _) = watch(&store, &mut peer, "/w");
    let begun = Instant::now();
    assert_eq!(
        watch.next(Some(begun + Duration::from_millis(5))).unwrap(),
        None
    );
    assert!(begun.elapsed() >= Duration::from_millis(5));
}

#[test]
fn depth_is_sent_as_a_third_field() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        peer.features(b"4\0");
        let request = peer.recv();
        assert!(request.payload.starts_with(b"/w\0"));
        assert!(request.payload.ends_with(b"\x001\0"));
        peer.ok(&request);
        peer
    });
    let watch = store.watch_depth("/w", 1).unwrap();
    assert_eq!(watch.path(), "/w");
    let mut peer = daemon.join().unwrap();
    let daemon = thread::spawn(move || {
        peer.features(b"4\0");
        let request = peer.recv();
        assert!(request.payload.starts_with(b"/x\0"));
        assert!(request.payload.ends_with(b"\x002\0"));
        peer.ok(&request);
        peer
    });
    let set = store.watch_set().unwrap();
    set.add_depth("/x", 2).unwrap();
    assert_eq!(set.paths(), ["/x"]);
    daemon.join().unwrap();
}

/// Such a daemon might ignore the depth, and the watch would see more than it should.
#[test]
fn depth_is_not_sent_to_a_daemon_that_does_not_offer_it() {
    let old = [None, Some(b"11\0".as_slice()), Some(b"0\0")];
    for (features, is_set) in old.into_iter().flat_map(|old| [(old, false), (old, true)]) {
        let (store, mut peer) = pair();
        let daemon = thread::spawn(move || {
            match features {
                None => {
                    let question = peer.expect(MsgType::GET_FEATURE, b"0\0");
                    peer.refuse(&question, "ENOSYS");
                }
                Some(features) => peer.features(features),
            }
            assert_eq!(peer.try_recv(), None);
        });
        let error = match is_set {
            false => store.watch_depth("/w", 1).unwrap_err(),
            true => store.watch_set().unwrap().add_depth("/w", 1).unwrap_err(),
        };
        let named = matches!(error, Error::NotOffered { op: MsgType::WATCH });
        assert!(named, "{error:?}");
        assert_eq!(error.errno(), Some(libc::ENOSYS));
        drop(store);
        daemon.join().unwrap();
    }
}

/// The event is read by a thread that waits for its reply only; a thread that polls must be
/// notified.
#[test]
fn poll_fd_is_readable_for_events_others_have_read() {
    let (store, mut peer) = pair();
    let (watch, token) = watch(&store, &mut peer, "/w");
    let fd = watch.poll_fd().unwrap();
    assert!(!readable(fd, PollTimeout::ZERO));

    let daemon = thread::spawn(move || {
        let request = peer.recv();
        peer.event("/w/a", &token);
        peer.reply(&request, b"x");
        (peer, token)
    });
    store.read("/a").unwrap();
    let (mut peer, token) = daemon.join().unwrap();
    assert!(
        !readable(&store, PollTimeout::ZERO),
        "nothing left on the connection itself"
    );
    assert!(readable(fd, PollTimeout::ZERO));
    assert_eq!(&*watch.try_next().unwrap().unwrap().path, "/w/a");
    assert!(!readable(fd, PollTimeout::ZERO));

    peer.event("/w/b", &token);
    assert!(readable(fd, PollTimeout::NONE), "unread bytes count too");
    assert_eq!(&*watch.try_next().unwrap().unwrap().path, "/w/b");
    assert!(!readable(fd, PollTimeout::ZERO));

    drop(peer);
    assert!(readable(fd, PollTimeout::NONE));
    assert!(matches!(watch.try_next(), Err(Error::Closed)));
    assert!(readable(fd, PollTimeout::ZERO), "the end stays visible");
}

#[test]
fn poll_fd_asked_for_late_shows_what_waits() {
    let (store, mut peer) = pair();
    let (watch, token) = watch(&store, &mut peer, "/w");
    peer.event("/w/a", &token);
    assert!(readable(&store, PollTimeout::NONE));
    store.process();
    assert!(!readable(&store, PollTimeout::ZERO));
    assert!(readable(watch.poll_fd().unwrap(), PollTimeout::ZERO));
}

#[test]
fn wait_for_looks_first_and_after_every_change() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let token = peer.grant_watch("/s");
        peer.event("/s", &token);
        let read = peer.expect(MsgType::READ, b"/s\0");
        peer.refuse(&read, "ENOENT");
        for value in [b"1", b"4"] {
            peer.event("/s", &token);
            let read = peer.expect(MsgType::READ, b"/s\0");
            peer.reply(&read, value);
        }
        assert_eq!(peer.recv().kind, MsgType::UNWATCH);
    });
    let mut seen = Vec::new();
    let found = store.wait_for("/s", far(), |value| {
        seen.push(value.map(<[u8]>::to_vec));
        value.filter(|value| *value == b"4").map(|_| "four")
    });
    assert_eq!(found.unwrap(), Some("four"));
    assert_eq!(seen, [None, Some(b"1".to_vec()), Some(b"4".to_vec())]);
    daemon.join().unwrap();
}

#[test]
fn wait_for_ends_at_its_deadline_and_with_the_daemon() {
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let token = peer.grant_watch("/s");
        peer.event("/s", &token);
        loop {
            let request = peer.recv();
            match request.kind {
                MsgType::READ => peer.refuse(&request, "ENOENT"),
                MsgType::UNWATCH => peer.ok(&request),
                _ => break peer.ok(&request),
            }
        }
    });
    let soon = Instant::now() + Duration::from_millis(50);
    assert_eq!(
        store
            .wait_for("/s", Some(soon), |value| value.map(drop))
            .unwrap(),
        None
    );
    let gone = store.wait_for("/s", None, |value| value.map(drop));
    assert!(matches!(gone, Err(Error::Closed)), "{gone:?}");
    daemon.join().unwrap();
}
