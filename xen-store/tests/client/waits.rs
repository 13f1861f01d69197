//! Waiting for many nodes, for conditions over them, and the end of a wait by another thread.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_store::request::Read;
use xen_store::{Deadline, Error, Store};
use xen_store_server::{Config, Server};
use xen_sys::DomId;

use crate::fake_daemon::pair;
use crate::restarts::{Restarts, quick};

/// Nothing here takes that long unless it hangs.
const STUCK: Duration = Duration::from_secs(20);

fn server() -> (Server, Store, Store) {
    let server = Server::start(Config::new()).unwrap();
    let connect = || {
        let store = server.connect(DomId::DOM0).unwrap();
        store.with_timeout(Some(STUCK))
    };
    let (store, other) = (connect(), connect());
    (server, store, other)
}

#[test]
fn the_watches_of_a_set_take_turns_in_one_queue() {
    let (server, store, other) = server();
    let set = store.watch_set().unwrap();
    assert_eq!(set.try_next().unwrap(), None);
    for path in ["/a", "/b", "/a"] {
        set.add(path).unwrap();
    }
    assert_eq!(set.paths(), ["/a", "/b"]);
    assert_eq!(server.stats().watches, 2);
    let next = || {
        let (watched, event) = set.next(STUCK).unwrap().expect("an event");
        (watched.to_string(), event.path.to_string())
    };
    let own = |path: &str| (path.to_owned(), path.to_owned());
    assert_eq!([next(), next()], [own("/a"), own("/b")]);
    for path in ["/a/1", "/a/2", "/a/3", "/b/1"] {
        other.write(path, "").unwrap();
    }
    // Read by another request, so that all of them are in memory.
    store.exists("/a").unwrap();
    let order: Vec<String> = (0..4).map(|_| next().1).collect();
    assert_eq!(order, ["/a/1", "/b/1", "/a/2", "/a/3"]);
    assert!(set.remove("/b") && !set.remove("/b"));
    store.exists("/a").unwrap();
    assert_eq!(server.stats().watches, 1);
    other.write("/b/2", "").unwrap();
    other.write("/a/4", "").unwrap();
    assert_eq!(next(), ("/a".to_owned(), "/a/4".to_owned()));
    drop(set);
    store.exists("/a").unwrap();
    assert_eq!(server.stats().watches, 0);
}

#[test]
fn the_descriptor_of_a_set_is_readable_while_it_has_events() {
    let (_server, store, other) = server();
    let set = store.watch_set().unwrap();
    let is_ready = |limit: PollTimeout| {
        let fd = set.poll_fd().unwrap();
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], limit).unwrap() == 1
    };
    set.add("/a").unwrap();
    set.add("/b").unwrap();
    while set.try_next().unwrap().is_some() {}
    assert!(!is_ready(PollTimeout::ZERO));
    other.write("/b/1", "").unwrap();
    assert!(is_ready(STUCK.try_into().unwrap()));
    // Another request of the same connection reads the event into memory.
    store.exists("/a").unwrap();
    assert!(is_ready(PollTimeout::ZERO));
    assert!(set.try_next().unwrap().is_some());
    assert!(!is_ready(PollTimeout::ZERO));
}

#[test]
fn a_set_outlives_its_daemon() {
    let mut daemon = Restarts::start();
    let store = daemon.store(quick());
    let set = store.watch_set().unwrap();
    set.add("/a").unwrap();
    set.add("/b").unwrap();
    daemon.restart();
    let mut reconnected = Vec::new();
    while reconnected.len() < 2 {
        let (watched, event) = set.next(STUCK).unwrap().expect("an event");
        if event.reconnected && !reconnected.contains(&watched) {
            reconnected.push(watched);
        }
    }
}

#[test]
fn a_condition_is_run_again_when_a_node_that_it_read_has_changed() {
    let (server, store, other) = server();
    other.write("/a", "1").unwrap();
    let looks = AtomicU32::new(0);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            store.wait_condition(STUCK, |reads| {
                looks.fetch_add(1, Ordering::Relaxed);
                // A list, a node that may be missing, and many at a time.
                let list = reads.directory("/list").unwrap_or_default();
                let paths: Vec<String> = list.iter().map(|n| format!("/list/{n}")).collect();
                let values = reads.read_many(&paths);
                let all = values
                    .iter()
                    .all(|value| matches!(value, Ok(v) if v == b"4"));
                let is_there = reads.exists("/b")?;
                Ok((is_there && all && list.len() == 2).then_some(reads.read("/a")?))
            })
        });
        // Each change may be the last one that it waits for.
        for (path, value) in [
            ("/list/x", "1"),
            ("/list/y", "4"),
            ("/b", ""),
            ("/a", "2"),
            ("/list/x", "4"),
        ] {
            other.write(path, value).unwrap();
        }
        let value = waiter.join().unwrap().unwrap();
        assert_eq!(value.as_deref(), Some(&b"2"[..]));
    });
    assert!(looks.load(Ordering::Relaxed) <= 12, "it is run for nothing");
    store.exists("/a").unwrap();
    assert_eq!(server.stats().watches, 0, "a watch stays behind");
}

#[test]
fn a_condition_watches_what_it_read_last_and_nothing_twice() {
    let (server, store, other) = server();
    other.write("/which", "a").unwrap();
    let mut looks = 0;
    let value = store.wait_condition(STUCK, |reads| {
        looks += 1;
        let which = reads.read_str("/which")?;
        reads.walk(&format!("/{which}"), 3).unwrap_or_default();
        // Below what is watched already.
        reads.exists(&format!("/{which}/below/it"))?;
        reads.depend_on("@releaseDomain")?;
        // The reads of this look are watched, and those of the look before: it is not over yet.
        let watches = server.stats().watches;
        if which == "a" {
            assert_eq!(watches, 3);
            other.write("/which", "b")?;
            return Ok(None);
        }
        if watches == 4 {
            other.write("/b/below", "")?;
            return Ok(None);
        }
        Ok(Some(watches))
    });
    assert_eq!(value.unwrap(), Some(3));
    assert!(looks >= 3);
}

#[test]
fn a_condition_ends_at_its_deadline_and_without_reads_at_once() {
    let (_server, store, _) = server();
    let unmet = |reads: &xen_store::TrackedReads<'_>| {
        reads.exists("/a")?;
        Ok(None::<()>)
    };
    let soon = Duration::from_millis(20);
    assert_eq!(store.wait_condition(soon, unmet).unwrap(), None);
    let past = Instant::now();
    let there = store.wait_condition(past, |reads| Ok(Some(reads.exists("/")?)));
    assert_eq!(there.unwrap(), Some(true));
    let nothing = store.wait_condition(None, |_| Ok(None::<()>));
    assert_eq!(nothing.unwrap(), None);
    let failed = store.wait_condition(Deadline::NEVER, |reads| reads.read("/none").map(Some));
    assert!(failed.unwrap_err().is_not_found());
}

/// A daemon that does not answer: some wait for it in `poll(2)`, the others for the one that does.
#[test]
fn another_thread_ends_the_waits_of_one_handle_only() {
    let (store, mut peer) = pair();
    let (waiting, canceller) = store.with_timeout(Some(STUCK)).cancellable();
    thread::scope(|scope| {
        let requests: Vec<_> = (0..6)
            .map(|n| {
                let waiting = &waiting;
                scope.spawn(move || match n % 2 {
                    0 => waiting.read("/a"),
                    _ => waiting.batch((Read { path: "/a" },)).0,
                })
            })
            .collect();
        // It has a limit, so that this test fails and does not hang.
        let other = store.with_timeout(Some(STUCK));
        let other = scope.spawn(move || other.mkdir("/b"));
        let sent: Vec<_> = (0..=requests.len()).map(|_| peer.recv()).collect();
        let begun = Instant::now();
        canceller.clone().cancel();
        for request in requests {
            let error = request.join().unwrap().unwrap_err();
            assert!(matches!(error, Error::Cancelled), "{error:?}");
            assert_eq!(error.errno(), Some(libc::ECANCELED));
        }
        assert!(begun.elapsed() < STUCK / 2, "a waiter was not woken");
        assert!(canceller.is_cancelled());
        let error = waiting.watch("/w").unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error:?}");
        // Late answers to those are dropped, and the other handle gets its own.
        sent.iter().for_each(|request| peer.ok(request));
        other.join().unwrap().unwrap();
    });
}
