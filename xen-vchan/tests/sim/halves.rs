//! Packets, loans, corks, vectors and transfers.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use xen_vchan::{Channel, Error};

use crate::host::{TestHost, bytes, soon};

fn ready(left: usize, right: usize) -> (TestHost, Channel, Channel) {
    let host = TestHost::new();
    let (mut server, mut client) = host.pair(left, right);
    server.wait_connected(soon()).unwrap();
    client.wait_connected(soon()).unwrap();
    (host, server, client)
}

#[test]
fn packets_go_whole_or_not_at_all() {
    let (host, mut server, mut client) = ready(4096, 4096);
    let (_, tx) = client.halves();
    tx.send(&bytes(0, 3000), soon()).unwrap();
    assert!(matches!(
        tx.try_send(&bytes(0, 2000)),
        Err(Error::WouldBlock)
    ));
    assert!(matches!(
        tx.try_send(&[0; 4097]),
        Err(Error::TooLarge {
            asked: 4097,
            limit: 4096,
            ..
        })
    ));
    let (rx, _) = server.halves();
    assert_eq!(rx.bytes_readable().unwrap(), 3000);
    assert!(matches!(
        rx.try_recv(&mut [0; 3001]),
        Err(Error::WouldBlock)
    ));
    assert!(matches!(
        rx.recv(&mut [0; 3001], Some(Instant::now())),
        Err(Error::TimedOut)
    ));
    let mut got = vec![0; 3000];
    rx.recv(&mut got, soon()).unwrap();
    assert_eq!(got, bytes(0, 3000));
    tx.try_send(b"rest").unwrap();
    drop(client);
    assert!(matches!(rx.recv(&mut [0; 5], soon()), Err(Error::Closed)));
    assert_eq!(
        rx.read(&mut [0; 5]).unwrap(),
        4,
        "what came can still be read"
    );
    drop(server);
    host.end();
}

#[test]
fn a_loan_is_published_once_or_forgotten() {
    let (host, mut server, mut client) = ready(4096, 4096);
    let (_, tx) = client.halves();
    let mut loan = tx.write_chunk(100, soon()).unwrap();
    assert_eq!(loan.remaining(), 4096);
    for round in 0..10u8 {
        assert!(loan.put_whole(&[round; 10]));
    }
    let (rx, _) = server.halves();
    assert_eq!(rx.bytes_readable().unwrap(), 0);
    loan.commit();
    assert_eq!(rx.bytes_readable().unwrap(), 100);
    let mut forgotten = tx.write_chunk(1, soon()).unwrap();
    assert_eq!(forgotten.put(&[99; 5000]), 3996);
    assert_eq!(forgotten.remaining(), 0);
    assert!(!forgotten.put_whole(&[99]));
    drop(forgotten);
    assert_eq!(rx.bytes_readable().unwrap(), 100);

    let mut incoming = rx.read_chunk(soon()).unwrap();
    for round in 0..9u8 {
        let mut got = [99; 10];
        assert!(incoming.get_exact(&mut got));
        assert_eq!(got, [round; 10]);
    }
    assert!(!incoming.get_exact(&mut [0; 11]));
    assert_eq!(
        tx.space().unwrap(),
        3996,
        "space comes back when the loan ends"
    );
    drop(incoming);
    assert_eq!(tx.space().unwrap(), 4086);
    assert_eq!(rx.bytes_readable().unwrap(), 10);
    drop((server, client));
    host.end();
}

#[test]
fn a_corked_writer_publishes_when_it_should() {
    let (host, mut server, mut client) = ready(1 << 16, 4096);
    let (_, tx) = client.halves();
    tx.set_cork(true);
    let (rx, _) = server.halves();
    for _ in 0..40 {
        tx.write_all(&[1; 100]).unwrap();
        assert_eq!(rx.bytes_readable().unwrap(), 0);
    }
    tx.write_all(&[1; 100]).unwrap();
    assert_eq!(rx.bytes_readable().unwrap(), 4100);
    tx.write_all(&[2; 100]).unwrap();
    tx.flush().unwrap();
    assert_eq!(rx.bytes_readable().unwrap(), 4200);
    tx.write_all(&[3; 100]).unwrap();
    // Its owner waits for an answer: the question must be out.
    assert!(matches!(client.try_read(&mut [0]), Err(Error::WouldBlock)));
    assert_eq!(rx.bytes_readable().unwrap(), 4300);
    let (_, tx) = client.halves();
    tx.write_all(&[4; 100]).unwrap();
    drop(client);
    let mut all = Vec::new();
    rx.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 4400, "the end publishes");
    drop(server);
    host.end();
}

#[test]
fn a_corked_question_is_out_before_the_rest_of_a_packet_is_waited_for() {
    let (host, mut server, mut client) = ready(1024, 1024);
    server.write_all(b"1half").unwrap();
    client.read_exact(&mut [0]).unwrap();
    assert_eq!(client.bytes_readable().unwrap(), 4);
    client.halves().1.set_cork(true);
    client.write_all(b"question").unwrap();
    let (rx, _) = client.halves();
    let mut packet = [0; 8];
    assert!(matches!(rx.try_recv(&mut packet), Err(Error::WouldBlock)));
    assert_eq!(server.bytes_readable().unwrap(), 8);
    server.write_all(b"rest").unwrap();
    rx.recv(&mut packet, soon()).unwrap();
    assert_eq!(&packet, b"halfrest");
    drop((server, client));
    host.end();
}

#[test]
fn a_corked_writer_that_fills_the_ring_does_not_deadlock() {
    let (host, mut server, mut client) = ready(0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (_, tx) = client.halves();
            tx.set_cork(true);
            for chunk in bytes(0, 50_000).chunks(77) {
                tx.write_all(chunk).unwrap();
            }
            tx.set_cork(false);
        });
        let mut got = vec![0; 50_000];
        server.read_exact(&mut got).unwrap();
        assert_eq!(got, bytes(0, 50_000));
    });
    drop((server, client));
    host.end();
}

/// One of them sleeps in the kernel, the other behind it; what comes is for both.
#[test]
fn whoever_sleeps_behind_the_other_half_is_woken_too() {
    let (host, server, mut client) = ready(4096, 4096);
    let (mut rx, mut tx) = server.split();
    rx.set_spin(Duration::ZERO);
    tx.set_spin(Duration::ZERO);
    while tx.try_write(&[0; 4096]).is_ok() {}
    let (tell, sleepers) = mpsc::channel();
    std::thread::scope(|scope| {
        let me = || std::fs::read_link("/proc/thread-self").unwrap();
        let also = tell.clone();
        let reader = scope.spawn(move || {
            tell.send(me()).unwrap();
            rx.read_deadline(&mut [0], soon())
        });
        let writer = scope.spawn(move || {
            also.send(me()).unwrap();
            tx.write_deadline(&[1], soon())
        });
        for _ in 0..2 {
            let stat = Path::new("/proc")
                .join(sleepers.recv().unwrap())
                .join("stat");
            while !std::fs::read_to_string(&stat).unwrap().contains(") S ") {
                std::thread::yield_now();
            }
        }
        let begin = Instant::now();
        client.write_all(&[1]).unwrap();
        let mut read = 0;
        while read < 4097 {
            read += client.read(&mut [0; 4097]).unwrap();
        }
        assert_eq!(reader.join().unwrap().unwrap(), 1);
        assert_eq!(writer.join().unwrap().unwrap(), 1);
        // Half of what `soon` is: by then no call's own deadline has passed.
        assert!(begin.elapsed() < Duration::from_secs(10), "not woken");
    });
    drop(client);
    host.end();
}

#[test]
fn vectors_are_written_and_read_in_order() {
    let (host, mut server, mut client) = ready(4096, 4096);
    let len = client
        .write_vectored(&[
            IoSlice::new(b"head"),
            IoSlice::new(b""),
            IoSlice::new(&[7; 5000]),
        ])
        .unwrap();
    assert_eq!(len, 4096);
    let (mut head, mut body) = ([0; 4], vec![0; 5000]);
    let (rx, _) = server.halves();
    let got = rx
        .read_vectored(&mut [IoSliceMut::new(&mut head), IoSliceMut::new(&mut body)])
        .unwrap();
    assert_eq!((got, &head), (4096, b"head"));
    assert!(body[..4092].iter().all(|b| *b == 7));
    drop((server, client));
    host.end();
}

#[test]
fn a_file_goes_through_the_ring_and_out_again() {
    let (host, mut server, mut client) = ready(4096, 4096);
    let content = bytes(0, 100_000);
    let mut source: File = tempfile::tempfile().unwrap();
    source.write_all(&content).unwrap();
    source.rewind().unwrap();
    let mut target = tempfile::tempfile().unwrap();
    let (_, tx) = client.halves();
    let (rx, _) = server.halves();
    let mut ended = false;
    loop {
        match tx.try_read_from(&source, 1000) {
            Ok(0) => ended = true,
            Ok(_) | Err(Error::WouldBlock) => {}
            Err(error) => panic!("{error}"),
        }
        match rx.try_write_to(&target) {
            Ok(_) => {}
            Err(Error::WouldBlock) if ended => break,
            Err(error) => panic!("{error}"),
        }
    }
    let mut got = Vec::new();
    target.rewind().unwrap();
    target.read_to_end(&mut got).unwrap();
    assert_eq!(got, content);

    // A descriptor that would block is not mistaken for a ring that would.
    let (a, _b) = UnixStream::pair().unwrap();
    a.set_nonblocking(true).unwrap();
    match tx.try_read_from(OwnedFd::from(a), 10) {
        Err(Error::Os(error)) => assert_eq!(error.errno(), Some(libc_eagain())),
        other => panic!("{other:?}"),
    }
    drop((server, client));
    host.end();
}

fn libc_eagain() -> i32 {
    nix::errno::Errno::EAGAIN as i32
}
