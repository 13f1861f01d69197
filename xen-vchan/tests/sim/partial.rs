//! A write that is interrupted returns how much it wrote: by a signal, a notify that fails, the
//! peer's end, its lie, a deadline.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::Signal;
use xen_sys::{DomId, GrantRef};
use xen_vchan::{Channel, ClientBuilder, Error, ServerBuilder, Violation};

use crate::host::{PATH, TestHost, bytes, read_all, soon};

const ENOTCONN: i32 = nix::errno::Errno::ENOTCONN as i32;

/// As `TestHost::pair`, and the handle of the client's domain, whose notifies can be made to fail.
fn pair(host: &TestHost) -> (Channel, Channel, xen_sys::Xen) {
    let mut server = host.listen(0, 0);
    let (xen, store) = host.domu();
    let builder = ClientBuilder::new(DomId::DOM0, PATH);
    let mut client = builder.connect(&xen, &store).unwrap();
    server.wait_connected(soon()).unwrap();
    client.wait_connected(soon()).unwrap();
    (server, client, xen)
}

fn fail_notifies(xen: &xen_sys::Xen, nth: u32) {
    xen.simulated().unwrap().fail_notify(nth, ENOTCONN);
}

fn assert_not_connected<T: std::fmt::Debug>(result: Result<T, Error>) {
    match result {
        Err(Error::Os(error)) => assert_eq!(error.errno(), Some(ENOTCONN)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn signals_end_neither_a_write_nor_a_read_and_lose_nothing() {
    let handled = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&handled)).unwrap();
    let host = TestHost::new();
    let (mut server, mut client) = host.pair(0, 0);
    let (me, done) = (pthread_self(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                pthread_kill(me, Signal::SIGUSR1).unwrap();
                thread::yield_now();
            }
        });
        let reader = scope.spawn(|| {
            let mut got = vec![0; 300_000];
            for part in got.chunks_mut(3000) {
                // Lets the writer fall asleep.
                thread::yield_now();
                server.read_exact(part).unwrap();
            }
            assert!(got == bytes(0, 300_000));
            server.write_all(b"thanks").unwrap();
            server
        });
        for at in (0..300_000).step_by(3000) {
            let whole = bytes(at, 3000);
            assert_eq!(client.write_deadline(&whole, soon()).unwrap(), 3000);
        }
        let mut thanks = [0; 6];
        client.read_exact(&mut thanks).unwrap();
        assert_eq!(&thanks, b"thanks");

        // And under signals a deadline is a deadline, with its count.
        let server = reader.join().unwrap();
        let deadline = Instant::now() + Duration::from_millis(50);
        let written = client.write_deadline(&bytes(0, 5000), Some(deadline));
        assert_eq!(written.unwrap(), 1024);
        assert!(Instant::now() >= deadline);
        done.store(true, Ordering::Release);
        drop(server);
    });
    assert!(handled.load(Ordering::Acquire), "no signal came");
    drop(client);
    host.end();
}

#[test]
fn a_notify_that_fails_changes_no_count_and_is_reported_by_the_next_call() {
    let host = TestHost::new();
    let (mut server, mut client, xen) = pair(&host);
    // The server has asked for a notification of the first byte.
    fail_notifies(&xen, 1);
    let whole = bytes(0, 3000);
    let begin = Instant::now();
    assert_eq!(client.write_deadline(&whole, soon()).unwrap(), 1024);
    // Not after the deadline of twenty seconds: the peer was not notified, so it would not have
    // made room.
    assert!(begin.elapsed() < Duration::from_secs(10));
    fail_notifies(&xen, 0);
    assert_not_connected(client.write_deadline(&whole[1024..], soon()));
    // Once; and no byte twice, none left out.
    thread::scope(|scope| {
        scope.spawn(|| {
            let rest = client.write_deadline(&whole[1024..], soon());
            assert_eq!(rest.unwrap(), 3000 - 1024);
        });
        let mut got = vec![0; 3000];
        server.read_exact(&mut got).unwrap();
        assert_eq!(got, whole);
    });
    assert_eq!(server.bytes_readable().unwrap(), 0);

    // A reader whose word that there is room again does not get through has read all the same.
    let (rx, _) = client.halves();
    assert!(matches!(rx.try_read(&mut [0]), Err(Error::WouldBlock)));
    server.write_all(&[7; 2048]).unwrap();
    assert!(matches!(server.try_write(&[8]), Err(Error::WouldBlock)));
    fail_notifies(&xen, 1);
    let mut got = [0; 2048];
    assert_eq!(rx.try_read(&mut got).unwrap(), 2048);
    assert_eq!(got, [7; 2048]);
    fail_notifies(&xen, 0);
    assert_not_connected(rx.try_read(&mut got));
    assert!(matches!(rx.try_read(&mut got), Err(Error::WouldBlock)));
    drop((server, client, xen));
    host.end();
}

#[test]
fn a_notify_that_fails_is_reported_to_the_half_that_made_it() {
    let host = TestHost::new();
    let (mut server, mut client, xen) = pair(&host);
    // The writer's: the server has asked for a notification of the first byte.
    fail_notifies(&xen, 1);
    assert_eq!(client.write_deadline(b"x", soon()).unwrap(), 1);
    fail_notifies(&xen, 0);
    assert!(matches!(client.try_read(&mut [0]), Err(Error::WouldBlock)));
    assert_not_connected(client.write_deadline(b"y", soon()));
    assert_eq!(client.write_deadline(b"y", soon()).unwrap(), 1);

    // The reader's: the server waits for room.
    server.write_all(&[7; 2048]).unwrap();
    assert!(matches!(server.try_write(&[8]), Err(Error::WouldBlock)));
    fail_notifies(&xen, 1);
    assert_eq!(client.try_read(&mut [0; 2048]).unwrap(), 2048);
    fail_notifies(&xen, 0);
    assert_eq!(client.write_deadline(b"z", soon()).unwrap(), 1);
    assert_not_connected(client.try_read(&mut [0]));
    assert!(matches!(client.try_read(&mut [0]), Err(Error::WouldBlock)));
    drop((server, client, xen));
    host.end();
}

#[test]
fn a_peer_that_leaves_in_the_middle_leaves_a_true_count() {
    let host = TestHost::new();
    let (mut server, mut client) = host.pair(0, 0);
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let written = client.write_deadline(&bytes(0, 5000), soon()).unwrap();
            assert!(matches!(
                client.write_deadline(b"x", soon()),
                Err(Error::Closed)
            ));
            assert!(matches!(client.try_write(b"x"), Err(Error::Closed)));
            written
        });
        let mut got = [0; 100];
        server.read_exact(&mut got).unwrap();
        assert_eq!(got[..], bytes(0, 100)[..]);
        drop(server);
        writer.join().unwrap()
    });
    // The bytes that fitted, with the hundred bytes of room if the writer saw them in time.
    assert!((100..=1124).contains(&written), "{written}");
    drop(client);
    host.end();
}

#[test]
fn a_peer_that_lies_in_the_middle_leaves_a_true_count() {
    let host = TestHost::new();
    let (mut server, mut client) = host.pair(0, 0);
    let (_, store) = host.dom0();
    let control = store.read_str(&format!("{PATH}/ring-ref")).unwrap();
    let control = GrantRef::new(control.parse().unwrap());
    let lie = 0x7777u32.to_ne_bytes();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let written = client.write_deadline(&bytes(0, 5000), soon()).unwrap();
            assert_eq!(written, 1024);
            for _ in 0..2 {
                match client.write_deadline(b"x", soon()) {
                    Err(Error::Peer(Violation::Consumer { cons, prod, .. })) => {
                        assert_eq!((cons, prod), (0x7777, 1024));
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
        // It has filled the ring; then the lie, then the bell: the client asked for the first byte.
        while server.bytes_readable().unwrap() < 1024 {
            thread::yield_now();
        }
        host.sim.scribble(DomId::DOM0, control, 0, &lie).unwrap();
        server.write_all(b"x").unwrap();
        writer.join().unwrap();
    });
    drop((server, client));
    host.end();
}

#[test]
fn vectors_that_do_not_fit_return_how_much_did() {
    let host = TestHost::new();
    let (mut server, mut client, xen) = pair(&host);
    client.set_nonblocking(true);
    let (a, b) = (bytes(0, 700), bytes(700, 700));
    let both = [IoSlice::new(&a), IoSlice::new(&[]), IoSlice::new(&b)];
    assert_eq!(client.write_vectored(&both).unwrap(), 1024);
    let full = client.write_vectored(&both).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::WouldBlock);
    server.set_nonblocking(true);
    let (mut one, mut two) = ([0; 300], [0; 1000]);
    let mut into = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
    assert_eq!(server.read_vectored(&mut into).unwrap(), 1024);
    assert_eq!([&one[..], &two[..724]].concat(), bytes(0, 1024));
    let mut into = [IoSliceMut::new(&mut one)];
    let empty = server.read_vectored(&mut into).unwrap_err();
    assert_eq!(empty.kind(), std::io::ErrorKind::WouldBlock);

    fail_notifies(&xen, 1);
    assert_eq!(client.write_vectored(&both).unwrap(), 1024);
    fail_notifies(&xen, 0);
    assert!(client.write_vectored(&both).is_err());
    drop(client);
    assert_eq!(read_all(&mut server), bytes(0, 1024));
    drop((server, xen));
    host.end();
}

#[test]
fn a_packet_that_meets_an_error_is_not_sent_at_all() {
    let host = TestHost::new();
    let (mut server, mut client) = host.pair(0, 0);
    let (_, tx) = client.halves();
    tx.send(&bytes(0, 1000), soon()).unwrap();
    assert!(matches!(
        tx.send(&[1; 25], Some(Instant::now() + Duration::from_millis(20))),
        Err(Error::TimedOut)
    ));
    let (rx, _) = server.halves();
    assert_eq!(rx.bytes_readable().unwrap(), 1000);
    drop(server);
    assert!(matches!(tx.send(&[1; 25], soon()), Err(Error::Closed)));
    drop(client);
    host.end();
}

#[test]
fn every_errno_of_the_making_of_a_channel_comes_out_and_nothing_stays() {
    use xen_sys::sim::{Fault, Op};
    const ENOSPC: i32 = nix::errno::Errno::ENOSPC as i32;
    let host = TestHost::new();
    let ops = [Op::BindUnbound, Op::Share, Op::SetUnmapNotify];
    for (op, nth) in ops
        .into_iter()
        .flat_map(|op| (1..=3).map(move |nth| (op, nth)))
    {
        let (xen, store) = host.dom0();
        let domain = DomId::DOM0;
        let errno = ENOSPC;
        host.sim.inject(Fault::Fail {
            domain,
            op,
            nth,
            errno,
        });
        let builder = ServerBuilder::new(host.guest, PATH).rings(1 << 16, 1 << 16);
        match builder.publish(&xen, &store) {
            Err(Error::Os(error)) => assert_eq!(error.errno(), Some(errno), "{op:?} {nth}"),
            Ok(_) => assert!(op != Op::Share && nth > 1, "{op:?} {nth} was not met"),
            other => panic!("{op:?} {nth}: {other:?}"),
        }
        host.sim.clear_faults();
        drop(xen);
        host.sim.assert_clean();
        assert!(!store.exists(PATH).unwrap());
    }
    let server = ServerBuilder::new(host.guest, PATH).rings(1 << 16, 1 << 16);
    let (xen, store) = host.dom0();
    let server = server.publish(&xen, &store).unwrap();
    for (op, nth) in [
        (Op::BindInterdomain, 1),
        (Op::Map, 1),
        (Op::Map, 2),
        (Op::Map, 3),
        (Op::SetUnmapNotify, 1),
    ] {
        let (xen, store) = host.domu();
        let (domain, errno) = (host.guest, ENOSPC);
        host.sim.inject(Fault::Fail {
            domain,
            op,
            nth,
            errno,
        });
        let source = match ClientBuilder::new(DomId::DOM0, PATH).connect(&xen, &store) {
            Err(Error::Os(source)) => source,
            other => panic!("{op:?} {nth}: {other:?}"),
        };
        assert_eq!(source.errno(), Some(errno), "{op:?} {nth}");
        host.sim.clear_faults();
    }
    // Those attempts were no sessions, and the server takes a client as before.
    let mut client = host.connect();
    let mut server = server;
    server.wait_connected(soon()).unwrap();
    client.wait_connected(soon()).unwrap();
    assert_eq!(server.sessions(), 1);
    drop((server, client, xen));
    host.end();
}
