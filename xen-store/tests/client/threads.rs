//! Several threads on one connection.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use xen_store::wire::Message;

use crate::fake_daemon::pair;

#[test]
fn replies_may_come_in_any_order() {
    let (store, mut peer) = pair();
    thread::scope(|scope| {
        let reads: Vec<_> = (0..30)
            .map(|n| {
                let store = &store;
                scope.spawn(move || (n, store.read(&format!("/{n}")).unwrap()))
            })
            .collect();
        let mut requests: Vec<_> = (0..reads.len()).map(|_| peer.recv()).collect();
        requests.reverse();
        for request in &requests {
            let name = &request.payload[1..request.payload.len() - 1];
            peer.reply(request, name);
        }
        for read in reads {
            let (n, value) = read.join().unwrap();
            assert_eq!(value, n.to_string().as_bytes());
        }
    });
}

/// Threads take turns as the one that reads; none is left asleep with its answer there.
#[test]
fn many_threads_many_requests() {
    const THREADS: usize = 8;
    const EACH: usize = 400;
    let (store, mut peer) = pair();
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, done) = (&store, &done);
            scope.spawn(move || {
                for n in 0..EACH {
                    let path = format!("/{thread}/{n}");
                    assert_eq!(store.read(&path).unwrap(), path.as_bytes());
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Every third request is answered after the one that follows it, as long as another
        // thread is sure to send one.
        let mut received = [0; THREADS];
        let mut held: Option<Message> = None;
        for n in 0..THREADS * EACH {
            let request = peer.recv();
            let thread = thread_of(&request);
            received[thread] += 1;
            let more = (0..THREADS).any(|t| t != thread && received[t] < EACH);
            if held.is_none() && n % 3 == 0 && more {
                held = Some(request);
                continue;
            }
            for request in [Some(request), held.take()].into_iter().flatten() {
                peer.reply(&request, &request.payload[..request.payload.len() - 1]);
            }
        }
    });
    assert_eq!(done.into_inner(), THREADS * EACH);
}

/// The first component of the requested path.
fn thread_of(request: &Message) -> usize {
    let path = std::str::from_utf8(&request.payload).unwrap();
    path.split('/').nth(1).unwrap().parse().unwrap()
}

/// A thread that waits for events reads for the others too.
#[test]
fn a_waiting_watcher_serves_requests_of_others() {
    let (store, mut peer) = pair();
    thread::scope(|scope| {
        let watching = scope.spawn(|| store.watch("/w").unwrap());
        let token = peer.grant_watch("/w");
        let watch = watching.join().unwrap();
        let watcher = scope.spawn(move || {
            let path = watch.next(None).unwrap().unwrap().path;
            (watch, path)
        });
        for _ in 0..100 {
            let read = scope.spawn(|| store.read("/a").unwrap());
            let request = peer.recv();
            peer.reply(&request, b"x");
            assert_eq!(read.join().unwrap(), b"x");
        }
        peer.event("/w/a", &token);
        let (watch, path) = watcher.join().unwrap();
        assert_eq!(&*path, "/w/a");
        drop(watch);
    });
}

/// When the reading thread leaves because its time is over, another one takes its place.
#[test]
fn a_reader_that_gives_up_hands_over() {
    let (store, mut peer) = pair();
    thread::scope(|scope| {
        for _ in 0..50 {
            let hasty = store.with_timeout(Some(Duration::from_millis(2)));
            let first = scope.spawn(move || hasty.read("/slow").unwrap_err());
            let slow = peer.recv();
            let second = scope.spawn(|| store.read("/a").unwrap());
            let request = peer.recv();
            first.join().unwrap();
            peer.reply(&request, b"x");
            assert_eq!(second.join().unwrap(), b"x");
            peer.reply(&slow, b"late");
        }
    });
}

#[test]
fn a_follower_keeps_its_own_deadline() {
    let (store, mut peer) = pair();
    thread::scope(|scope| {
        let patient = scope.spawn(|| store.read("/a").unwrap());
        let request = peer.recv();
        let hasty = store.with_timeout(Some(Duration::from_millis(10)));
        let begun = Instant::now();
        hasty.read("/b").unwrap_err();
        assert!(begun.elapsed() >= Duration::from_millis(10));
        peer.reply(&request, b"x");
        assert_eq!(patient.join().unwrap(), b"x");
    });
}
