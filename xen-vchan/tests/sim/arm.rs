//! Loops that poll the descriptor themselves, as Qubes's agents do: look, and sleep in poll when
//! there is too little.

use std::io::{Read, Write};
use std::thread;

use xen_vchan::{Channel, Error};

use crate::host::{TestHost, poll_one};

const MESSAGES: u32 = 300;
/// Bytes of a message: a header and a body, which are written one by one.
const LEN: usize = 8;

fn sleep(channel: &Channel) {
    assert!(
        poll_one(channel, 20_000),
        "the loop stalled: no event for 20 s"
    );
}

/// Writes each message in two parts, after the answer to the one before.
fn ask(mut client: Channel) {
    for n in 0..MESSAGES {
        client.write_all(&n.to_le_bytes()).unwrap();
        thread::yield_now();
        client.write_all(&n.to_le_bytes()).unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(u32::from_le_bytes(answer), n);
    }
}

/// Takes one message and answers it.
fn answer(server: &mut Channel, next: &mut u32) {
    let mut message = [0; LEN];
    server.read_exact(&mut message).unwrap();
    assert_eq!(message[..4], next.to_le_bytes());
    server.write_all(&message[4..]).unwrap();
    *next += 1;
}

#[test]
fn a_poll_loop_that_only_arms_does_not_stall() {
    let host = TestHost::new();
    let (mut server, client) = host.pair(1024, 1024);
    let client = thread::spawn(|| ask(client));
    let mut next = 0;
    while next < MESSAGES {
        while next < MESSAGES && server.arm_read(LEN).unwrap() >= LEN {
            answer(&mut server, &mut next);
        }
        if next < MESSAGES {
            sleep(&server);
            server.acknowledge_events().unwrap();
        }
    }
    client.join().unwrap();
    drop(server);
    host.end();
}

#[test]
fn arming_consumes_nothing_and_sees_what_is_there() {
    let host = TestHost::new();
    let (mut server, mut client) = host.pair(1024, 1024);
    assert_eq!(server.arm_read(1).unwrap(), 0);
    server.acknowledge_events().unwrap();
    assert_eq!(server.arm_read(1).unwrap(), 0);
    assert!(!poll_one(&server, 0));
    client.write_all(b"abc").unwrap();
    sleep(&server);
    server.acknowledge_events().unwrap();
    for _ in 0..3 {
        assert_eq!(server.arm_read(4).unwrap(), 3);
    }
    // Armed with bytes there: more of them are an event.
    client.write_all(b"de").unwrap();
    sleep(&server);
    let mut all = [0; 5];
    server.read_exact(&mut all).unwrap();
    assert_eq!(&all, b"abcde");

    // The writer's side: a full ring, and the room that a reader gives back.
    server.acknowledge_events().unwrap();
    let room = server.arm_write(1).unwrap();
    server.write_all(&vec![7; room]).unwrap();
    assert_eq!(server.arm_write(1).unwrap(), 0);
    server.acknowledge_events().unwrap();
    assert_eq!(server.arm_write(1).unwrap(), 0);
    let mut taken = vec![0; room / 2];
    client.read_exact(&mut taken).unwrap();
    sleep(&server);
    assert_eq!(server.arm_write(1).unwrap(), room / 2);

    // The end: what is there first.
    client.write_all(b"last").unwrap();
    drop(client);
    assert_eq!(server.arm_read(1).unwrap(), 4);
    let mut last = [0; 4];
    server.read_exact(&mut last).unwrap();
    assert!(matches!(server.arm_read(1), Err(Error::Closed)));
    assert!(matches!(server.arm_write(1), Err(Error::Closed)));
    drop(server);
    host.end();
}

#[test]
fn a_peer_that_leaves_within_a_message_ends_the_loop() {
    let host = TestHost::new();
    let (mut server, mut client) = host.pair(1024, 1024);
    client.write_all(b"part").unwrap();
    assert_eq!(server.arm_read(LEN).unwrap(), 4);
    drop(client);
    sleep(&server);
    server.acknowledge_events().unwrap();
    // Not a count, after which the loop would sleep: there is no other event.
    assert!(matches!(server.arm_read(LEN), Err(Error::Closed)));
    assert_eq!(server.arm_read(4).unwrap(), 4);
    let mut part = [0; 4];
    server.read_exact(&mut part).unwrap();
    assert_eq!(&part, b"part");
    drop(server);
    host.end();
}
