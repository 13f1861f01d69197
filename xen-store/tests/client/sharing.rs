//! Several threads of which some poll, some read and some sleep: a thread that reads bytes wakes
//! those whose answers are among them, and the end of the connection reaches all.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_store::proto::MAX_UNANSWERED;
use xen_store::wire::{Header, MsgType};
use xen_store::{Error, ProtocolError, Store};

use crate::fake_daemon::{FakeDaemon, pair};

/// Nothing here takes that long unless a thread was not woken.
const STUCK: Duration = Duration::from_secs(20);

#[track_caller]
fn received<T>(from: &Receiver<T>) -> T {
    from.recv_timeout(STUCK).expect("somebody was not woken")
}

fn sleeps(thread: &thread::JoinHandle<()>) -> bool {
    !thread.is_finished()
}

/// A poll loop on `Watch::poll_fd` reads the connection; the answer of a thread that sleeps in
/// `poll(2)` is among what it reads.
#[test]
fn a_poll_loop_wakes_the_thread_whose_answer_it_reads() {
    const READS: usize = 200;
    let (store, mut peer) = pair();
    let daemon = thread::spawn(move || {
        let token = peer.grant_watch("/w");
        while let Some(request) = peer.try_recv() {
            match request.kind {
                MsgType::READ => {
                    peer.event("/w/a", &token);
                    peer.reply(&request, b"x");
                }
                // The watch is dropped, and the connection with it.
                _ => break,
            }
        }
    });
    let watch = store.watch("/w").unwrap();
    let (tell, reads) = channel();
    let reader = {
        let store = store.clone();
        thread::spawn(move || {
            for _ in 0..READS {
                tell.send(store.read("/a").unwrap()).unwrap();
            }
        })
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let fd = watch.poll_fd().unwrap();
            while !done.load(Ordering::Relaxed) {
                let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(100_u16)).unwrap();
                while watch.try_next().unwrap().is_some() {}
            }
        });
        // Stuck threads would keep the scope from ending: the failure is reported after it.
        let got = (0..READS)
            .take_while(|_| reads.recv_timeout(STUCK).is_ok())
            .count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(got, READS, "reads that returned");
    });
    reader.join().unwrap();
    drop((store, watch));
    daemon.join().unwrap();
}

/// The thread sleeps in `poll(2)` for certain: its answer is taken in by another one's `process`.
#[test]
fn process_wakes_the_thread_whose_answer_it_reads() {
    for _ in 0..50 {
        let (store, mut peer) = pair();
        let (tell, reads) = channel();
        let reader = {
            let store = store.clone();
            thread::spawn(move || tell.send(store.read("/a").unwrap()).unwrap())
        };
        let request = peer.recv();
        let (begun, done) = (Barrier::new(2), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                begun.wait();
                while !done.load(Ordering::Relaxed) {
                    store.process();
                }
            });
            begun.wait();
            thread::sleep(Duration::from_millis(1));
            peer.reply(&request, b"x");
            let read = reads.recv_timeout(STUCK);
            done.store(true, Ordering::Relaxed);
            assert_eq!(read.expect("the reader was not woken"), b"x");
        });
        reader.join().unwrap();
    }
}

/// Beside a poll loop for one watch another thread waits for a node.
#[test]
fn wait_for_beside_a_poll_loop_returns() {
    use xen_store_server::{Config, Server};
    let server = Server::start(Config::new()).unwrap();
    let store = server.connect(xen_sys::DomId::DOM0).unwrap();
    let writer = server.connect(xen_sys::DomId::DOM0).unwrap();
    let watch = store.watch("/w").unwrap();
    let (tell, found) = channel();
    let waiter = {
        let store = store.clone();
        thread::spawn(move || {
            for n in 0..100 {
                let path = format!("/n/{n}");
                store
                    .wait_for(&path, None, |value| value.map(drop))
                    .unwrap();
                tell.send(n).unwrap();
            }
        })
    };
    let done = AtomicBool::new(false);
    let got = thread::scope(|scope| {
        scope.spawn(|| {
            let fd = watch.poll_fd().unwrap();
            while !done.load(Ordering::Relaxed) {
                let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::from(100_u16)).unwrap();
                while watch.try_next().unwrap().is_some() {}
            }
        });
        let got = (0..100)
            .take_while(|n| {
                writer.write(&format!("/w/{n}"), "x").unwrap();
                writer.write(&format!("/n/{n}"), "x").unwrap();
                found.recv_timeout(STUCK).is_ok()
            })
            .count();
        done.store(true, Ordering::Relaxed);
        got
    });
    assert_eq!(got, 100, "waits that returned");
    waiter.join().unwrap();
}

/// Threads that wait on `store`: one for an answer, one for an event.
fn waiters(store: &Store, peer: &mut FakeDaemon) -> (Receiver<Error>, Vec<thread::JoinHandle<()>>) {
    let (tell, told) = channel();
    let mut threads = Vec::new();
    {
        let (store, tell) = (store.clone(), tell.clone());
        threads.push(thread::spawn(move || {
            let watch = store.watch("/w").unwrap();
            tell.send(watch.next(None).unwrap_err()).unwrap();
        }));
    }
    peer.grant_watch("/w");
    for _ in 0..2 {
        let (store, tell) = (store.clone(), tell.clone());
        threads.push(thread::spawn(move || {
            tell.send(store.read("/a").unwrap_err()).unwrap();
        }));
    }
    peer.recv();
    peer.recv();
    assert!(threads.iter().all(sleeps));
    (told, threads)
}

/// The violation is seen first by a thread that waits for nothing.
#[test]
fn a_violation_seen_by_process_reaches_everybody_who_waits() {
    for _ in 0..20 {
        let (store, mut peer) = pair();
        let (told_of, threads) = waiters(&store, &mut peer);
        let fd_watch = {
            let granted = thread::spawn({
                let store = store.clone();
                move || store.watch("/fd").unwrap()
            });
            peer.grant_watch("/fd");
            granted.join().unwrap()
        };
        let fd = fd_watch.poll_fd().unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    store.process();
                }
            });
            peer.send(MsgType::READ, 4711, 0, b"x");
            let errors: Vec<_> = (0..3).map(|_| told_of.recv_timeout(STUCK)).collect();
            done.store(true, Ordering::Relaxed);
            for error in errors {
                let error = error.expect("somebody was not told");
                assert!(
                    matches!(error, Error::Protocol(ProtocolError::UnknownRequest { .. })),
                    "{error:?}"
                );
            }
        });
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::ZERO).unwrap(), 1);
        threads.into_iter().for_each(|t| t.join().unwrap());
    }
}

/// The end is found in what one thread reads after its deadline.
#[test]
fn an_end_seen_by_a_call_without_time_reaches_everybody_who_waits() {
    for _ in 0..20 {
        let (store, mut peer) = pair();
        let (told_of, threads) = waiters(&store, &mut peer);
        let hasty = store.with_timeout(Some(Duration::ZERO));
        let header = Header {
            kind: MsgType::READ,
            req_id: 1,
            tx_id: 0,
            len: u32::MAX,
        };
        peer.send_raw(&header.to_bytes());
        while !hasty.read("/b").unwrap_err().is_fatal() {}
        for _ in 0..3 {
            assert!(matches!(received(&told_of), Error::Protocol(_)));
        }
        threads.into_iter().for_each(|t| t.join().unwrap());
    }
}

/// Each call is given up before its answer, which the daemon sends once it has had its turn.
#[test]
fn calls_without_time_end_no_healthy_connection() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut answers = FakeDaemon::new(theirs.try_clone().unwrap());
    let mut requests = FakeDaemon::new(theirs);
    let (tell, received) = channel();
    let daemon = thread::spawn(move || {
        while let Some(request) = requests.try_recv() {
            tell.send(request).unwrap();
        }
    });
    let store = Store::from_fd(ours.into()).unwrap();
    let hasty = store.with_timeout(Some(Duration::ZERO));
    let mut held = Vec::new();
    for _ in 0..2 * MAX_UNANSWERED {
        let error = hasty.read("/a").unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        // The daemon takes each in, so that it is never the socket that is full.
        held.extend(received.recv_timeout(Duration::from_millis(1)));
    }
    let patient = thread::spawn(move || store.read("/b").unwrap());
    for request in held {
        answers.ok(&request);
    }
    while !patient.is_finished() {
        if let Ok(request) = received.recv_timeout(Duration::from_millis(10)) {
            answers.reply(&request, b"x");
        }
    }
    assert_eq!(patient.join().unwrap(), b"x");
    drop(hasty);
    daemon.join().unwrap();
}

/// Replies and events of one thread's making, in numbers, with every kind of caller at once.
#[test]
fn all_kinds_of_callers_together_lose_nothing() {
    use xen_store_server::{Config, Server};
    let server = Server::start(Config::new()).unwrap();
    let store = server.connect(xen_sys::DomId::DOM0).unwrap();
    let (tell, finished) = channel();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for n in 0..4 {
            let (store, tell) = (&store, tell.clone());
            scope.spawn(move || {
                for round in 0..100 {
                    let path = format!("/r/{n}");
                    store.write(&path, round.to_string()).unwrap();
                    assert_eq!(store.read_str(&path).unwrap(), round.to_string());
                }
                tell.send(()).unwrap();
            });
        }
        scope.spawn(|| {
            let watch = store.watch("/r").unwrap();
            while !done.load(Ordering::Relaxed) {
                while watch.try_next().unwrap().is_some() {}
                store.process();
                thread::yield_now();
            }
        });
        scope.spawn(|| {
            let hasty = store.with_timeout(Some(Duration::from_micros(50)));
            while !done.load(Ordering::Relaxed) {
                let _ = hasty.read("/r/0");
                let _ = hasty.watch("/h");
            }
        });
        let all = (0..4).all(|_| finished.recv_timeout(STUCK).is_ok());
        done.store(true, Ordering::Relaxed);
        assert!(all, "a reader is stuck");
    });
}
