//! One end of a channel in the hands of several threads.

use std::io::{Read, Write};
use std::sync::Barrier;
use std::thread;

use xen_vchan::{Error, PeerState};

use crate::host::{TestHost, bytes, poll_one, read_all, soon};

#[test]
fn a_thread_writes_asks_and_ends_while_another_is_blocked_in_a_read() {
    let host = TestHost::new();
    let (server, mut client) = host.pair(1024, 4096);
    let (mut rx, mut tx) = server.split();
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        rx.read_to_end(&mut got).unwrap();
        assert_eq!(rx.peer().unwrap(), PeerState::Gone);
        got
    });
    for part in bytes(0, 40_000).chunks(1000) {
        assert_eq!(tx.peer().unwrap(), PeerState::Connected);
        assert_eq!(tx.space().unwrap(), 4096);
        tx.write_all(part).unwrap();
        let mut got = vec![0; part.len()];
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, part);
        client.write_all(&part[..1]).unwrap();
    }
    tx.set_cork(true);
    tx.write_all(b"last").unwrap();
    tx.shutdown().unwrap();
    assert!(matches!(tx.space(), Err(Error::ShutDown)));
    assert!(matches!(tx.try_write(b"more"), Err(Error::ShutDown)));
    assert_eq!(read_all(&mut client), b"last");
    assert!(!reader.is_finished(), "the peer has not left");
    drop(client);
    assert_eq!(reader.join().unwrap().len(), 40);
    drop(tx);
    host.end();
}

#[test]
fn threads_that_share_a_half_see_its_bytes_and_its_space_only_grow() {
    const BYTES: usize = 60_000;
    let host = TestHost::new();
    let (server, client) = host.pair(1 << 16, 1 << 16);
    let (mut rx, mut tx) = server.split();
    let (mut client_rx, mut client_tx) = client.split();
    tx.write_all(&bytes(0, BYTES)).unwrap();
    let full = tx.space().unwrap();
    let together = Barrier::new(6);
    thread::scope(|scope| {
        scope.spawn(|| {
            together.wait();
            for byte in bytes(0, BYTES).chunks(1) {
                client_tx.write_all(byte).unwrap();
            }
        });
        scope.spawn(|| {
            together.wait();
            for _ in 0..BYTES {
                client_rx.read_exact(&mut [0]).unwrap();
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                together.wait();
                let mut before = 0;
                while before < BYTES {
                    let now = rx
                        .arm_read(BYTES)
                        .unwrap()
                        .max(rx.bytes_readable().unwrap());
                    assert!(now >= before, "{now} after {before}");
                    before = now;
                }
            });
            scope.spawn(|| {
                together.wait();
                let mut before = full;
                while before < full + BYTES {
                    let now = tx.arm_write(1 << 16).unwrap().max(tx.space().unwrap());
                    assert!(now >= before, "{now} after {before}");
                    before = now;
                }
            });
        }
    });
    let mut got = vec![0; BYTES];
    rx.read_exact(&mut got).unwrap();
    assert_eq!(got, bytes(0, BYTES));
    drop((rx, tx, client_rx, client_tx));
    host.end();
}

#[test]
fn a_shared_channel_arms_after_its_corked_question_is_out() {
    let host = TestHost::new();
    let (mut server, mut client) = host.pair(1024, 1024);
    server.write_all(b"1half").unwrap();
    client.read_exact(&mut [0]).unwrap();
    client.halves().1.set_cork(true);
    client.write_all(b"question").unwrap();
    let shared = &client;
    assert_eq!(shared.bytes_readable().unwrap(), 4);
    // The event of the half.
    assert!(poll_one(shared, 20_000));
    shared.acknowledge_events().unwrap();
    assert_eq!(server.bytes_readable().unwrap(), 0);
    // Half an answer is there, and the other half waits for the question.
    assert_eq!(shared.arm_read(8).unwrap(), 4);
    let mut question = [0; 8];
    server.halves().0.recv(&mut question, soon()).unwrap();
    assert_eq!(&question, b"question");
    assert!(!poll_one(shared, 0), "nothing has come");
    server.write_all(b"rest").unwrap();
    assert!(poll_one(shared, 20_000), "no event was asked for");
    shared.acknowledge_events().unwrap();
    shared.handle_timeout().unwrap();
    assert_eq!(shared.arm_read(8).unwrap(), 8);
    assert_eq!(shared.arm_write(1024).unwrap(), 1024);
    assert_eq!(shared.space().unwrap(), 1024);
    drop((server, client));
    host.end();
}
