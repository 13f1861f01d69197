//! Bytes in both directions, at every ring size, with every kind of call.

use std::io::{ErrorKind, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use xen_vchan::{Channel, Error};

use crate::host::{TestHost, byte, bytes, poll_one, soon, thread_cpu};

/// Writes `total` bytes in steps of changing size.
fn send(mut write: impl FnMut(&[u8]) -> usize, total: usize) {
    let (mut sent, mut step) = (0, 1);
    while sent < total {
        step = step * 7 % 70_001 + 1;
        let part = bytes(sent, step.min(total - sent));
        sent += write(&part);
    }
}

fn receive(mut read: impl FnMut(&mut [u8]) -> usize, total: usize) {
    let (mut got, mut step) = (0, 1);
    let mut buf = vec![0; 80_000];
    while got < total {
        step = step * 5 % 79_999 + 1;
        let len = read(&mut buf[..step]);
        assert_ne!(len, 0, "the stream ended after {got} bytes");
        for (index, value) in buf[..len].iter().enumerate() {
            assert_eq!(*value, byte(got + index), "byte {}", got + index);
        }
        got += len;
    }
}

#[test]
fn every_byte_arrives_in_both_directions_at_every_ring_size() {
    for (left, right, total) in [
        (0, 0, 300_000),
        (1024, 1024, 200_000),
        (2048, 1 << 20, 3_000_000),
        (4096, 4096, 500_000),
        (4097, 1 << 16, 2_000_000),
        (1 << 16, 1 << 16, 8_000_000),
        (1 << 20, 1 << 20, 16_000_000),
    ] {
        let host = TestHost::new();
        let (server, client) = host.pair(left, right);
        let run = |channel: Channel| {
            let (mut rx, mut tx) = channel.split();
            thread::scope(|scope| {
                scope.spawn(|| send(|part| tx.write(part).unwrap(), total));
                scope.spawn(|| receive(|buf| rx.read(buf).unwrap(), total));
            });
            (rx, tx)
        };
        thread::scope(|scope| {
            // Handed back, so that neither end closes while the other still reads.
            let a = scope.spawn(|| run(server));
            let b = scope.spawn(|| run(client));
            drop((a.join().unwrap(), b.join().unwrap()));
        });
        host.end();
    }
}

/// Echoes with one thread per side and nothing but `poll`.
#[test]
fn an_event_loop_that_reads_until_would_block_misses_nothing() {
    let host = TestHost::new();
    let (mut server, mut client) = host.pair(4096, 2048);
    let total = 400_000;
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut held, mut echoed) = (Vec::new(), 0);
            let mut buf = [0; 3000];
            while echoed < total {
                assert!(poll_one(&server, 20_000), "no event for twenty seconds");
                server.acknowledge_events().unwrap();
                loop {
                    let mut stuck = true;
                    if held.is_empty() {
                        match server.try_read(&mut buf) {
                            Ok(len) => {
                                held.extend_from_slice(&buf[..len]);
                                stuck = false;
                            }
                            Err(Error::WouldBlock) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    if !held.is_empty() {
                        match server.try_write(&held) {
                            Ok(len) => {
                                held.drain(..len);
                                echoed += len;
                                stuck = false;
                            }
                            Err(Error::WouldBlock) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    if stuck {
                        break;
                    }
                }
            }
        });
        let (rx, tx) = client.halves();
        thread::scope(|scope| {
            scope.spawn(|| send(|part| tx.write(part).unwrap(), total));
            scope.spawn(|| receive(|buf| rx.read(buf).unwrap(), total));
        });
    });
    drop((server, client));
    host.end();
}

#[test]
fn a_deadline_ends_a_read_and_a_write_with_the_count_of_what_went() {
    let host = TestHost::new();
    let (mut server, mut client) = host.pair(0, 0);
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    let begin = Instant::now();
    let deadline = Some(begin + Duration::from_millis(50));
    assert!(matches!(
        server.read_deadline(&mut [0; 10], deadline),
        Err(Error::TimedOut)
    ));
    assert!(begin.elapsed() >= Duration::from_millis(50));

    let deadline = Some(Instant::now() + Duration::from_millis(50));
    assert_eq!(
        client.write_deadline(&bytes(0, 5000), deadline).unwrap(),
        1024
    );
    assert!(matches!(
        client.write_deadline(b"more", Some(Instant::now())),
        Err(Error::TimedOut)
    ));
    let mut got = vec![0; 1024];
    server.read_exact(&mut got).unwrap();
    assert_eq!(got, bytes(0, 1024));

    server.set_read_timeout(Some(Duration::from_millis(10)));
    assert_eq!(
        server.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    // Beyond what the clock can count: forever, and no panic.
    server.set_read_timeout(Some(Duration::MAX));
    client.set_write_timeout(Some(Duration::MAX));
    client.write_all(b"!").unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 1);
    server.set_nonblocking(true);
    assert_eq!(
        server.read(&mut [0]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    drop((server, client));
    host.end();
}

#[test]
fn a_channel_that_nobody_uses_costs_no_cpu() {
    let host = TestHost::new();
    let (mut server, client) = host.pair(4096, 4096);
    let before = thread_cpu();
    let deadline = Some(Instant::now() + Duration::from_millis(500));
    assert!(matches!(
        server.read_deadline(&mut [0], deadline),
        Err(Error::TimedOut)
    ));
    let used = thread_cpu() - before;
    assert!(
        used < Duration::from_millis(50),
        "an idle read used {used:?} of 500 ms"
    );
    drop((server, client));
    host.end();
}

#[test]
fn small_answers_to_small_questions() {
    let host = TestHost::new();
    let (mut server, mut client) = host.pair(1 << 16, 1 << 16);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut question = [0; 64];
            for _ in 0..5000 {
                server.read_exact(&mut question).unwrap();
                question.reverse();
                server.write_all(&question).unwrap();
            }
        });
        for round in 0..5000 {
            let question = bytes(round * 64, 64);
            client.write_all(&question).unwrap();
            let mut answer = [0; 64];
            let mut at = 0;
            while at < 64 {
                at += client.read_deadline(&mut answer[at..], soon()).unwrap();
            }
            answer.reverse();
            assert_eq!(&answer[..], &question[..]);
        }
    });
    drop((server, client));
    host.end();
}
