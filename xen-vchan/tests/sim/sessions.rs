//! Where one client's session ends and the next begins.

use std::io::{Read, Write};

use xen_vchan::{Error, PeerState};

use crate::world::{World, bytes, read_all, soon, wait_gone};

#[test]
fn what_the_peer_wrote_before_it_left_is_read_before_the_end() {
    let world = World::new();
    let (mut server, mut client) = world.pair(4096, 4096);
    client.write_all(b"x").unwrap_or_else(|e| panic!("{e}"));
    drop(client);
    assert_eq!(read_all(&mut server), b"x");
    assert_eq!(server.peer().unwrap(), PeerState::Gone);
    assert!(matches!(server.try_write(b"y"), Err(Error::Closed)));
    drop(server);
    world.end();

    let world = World::new();
    let (mut server, mut client) = world.pair(4096, 4096);
    server.wait_connected(soon()).unwrap();
    server.write_all(&bytes(0, 4000)).unwrap();
    drop(server);
    assert_eq!(read_all(&mut client), bytes(0, 4000));
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "the end stays the end");
    drop(client);
    world.end();
}

#[test]
fn a_server_may_write_before_anybody_is_there() {
    let world = World::new();
    let mut server = world.listen(0, 0);
    assert_eq!(server.peer().unwrap(), PeerState::Waiting);
    server.write_all(b"greeting").unwrap();
    let mut client = world.connect();
    server.wait_connected(soon()).unwrap();
    let mut got = [0; 8];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"greeting");
    drop((server, client));
    world.end();
}

#[test]
fn no_byte_of_one_session_reaches_the_next() {
    let world = World::new();
    let mut server = world.listen(4096, 4096);
    for round in 1..=20u8 {
        let mut client = world.connect();
        server.wait_connected(soon()).unwrap();
        assert_eq!(server.sessions(), u64::from(round));
        client.write_all(&[round; 100]).unwrap();
        server.write_all(&[round; 200]).unwrap();
        let mut got = [0; 60];
        server.read_exact(&mut got).unwrap();
        assert_eq!(got, [round; 60]);
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, [round; 60]);
        // Both leave something unread.
        drop(client);
        wait_gone(&mut server);
        server.next_client().unwrap();
        assert_eq!(server.peer().unwrap(), PeerState::Waiting);
    }
    drop(server);
    world.end();
}

#[test]
fn a_client_replaced_before_the_server_looked_is_two_sessions() {
    let world = World::new();
    let (mut server, mut first) = world.pair(4096, 4096);
    server.wait_connected(soon()).unwrap();
    first.write_all(b"from the first").unwrap();
    server.write_all(b"for the first").unwrap();
    drop(first);
    let mut second = world.connect();
    // The server has not looked since; the live byte went 1, 0, 1.
    let would_block = second.try_write(b"from the second");
    assert!(
        matches!(would_block, Err(Error::WouldBlock)),
        "the second waits for the server's note"
    );
    assert_eq!(second.peer().unwrap(), PeerState::Waiting);

    assert_eq!(server.peer().unwrap(), PeerState::Gone);
    assert_eq!(server.sessions(), 1);
    server.next_client().unwrap();
    assert_eq!(server.peer().unwrap(), PeerState::Connected);
    assert_eq!(server.sessions(), 2);
    second.write_all(b"from the second").unwrap();
    let mut got = [0; 15];
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"from the second");
    assert!(matches!(
        second.try_read(&mut [0; 10]),
        Err(Error::WouldBlock)
    ));
    drop((server, second));
    world.end();
}

#[test]
fn a_client_that_came_and_went_unseen_was_a_session_if_it_left_anything() {
    let world = World::new();
    let mut server = world.listen(0, 0);
    for round in 1..=3 {
        // Without a word: nothing has happened.
        drop(world.connect());
        assert_eq!(server.peer().unwrap(), PeerState::Waiting);
        assert_eq!(server.sessions(), round - 1);
        // As libxenvchan does, which does not wait for a mark.
        let mut hasty = hasty(&world);
        hasty.write_all(b"was here").unwrap();
        drop(hasty);
        assert_eq!(server.peer().unwrap(), PeerState::Gone);
        assert_eq!(server.sessions(), round);
        assert_eq!(read_all(&mut server), b"was here");
        server.next_client().unwrap();
        assert_eq!(server.peer().unwrap(), PeerState::Waiting);
        // It took what had been written ahead for it.
        server.write_all(b"hello").unwrap();
        let mut hasty = self::hasty(&world);
        hasty.read_exact(&mut [0; 5]).unwrap();
        drop(hasty);
        assert_eq!(server.peer().unwrap(), PeerState::Gone);
        assert_eq!(server.sessions(), round + 1);
        server.next_client().unwrap();
        drop(server);
        server = world.listen(0, 0);
        for _ in 0..round {
            let client = world.connect();
            assert_eq!(server.peer().unwrap(), PeerState::Connected);
            drop(client);
            wait_gone(&mut server);
            server.next_client().unwrap();
        }
    }
    drop(server);
    world.end();
}

/// A client that does not look for the server's mark.
fn hasty(world: &World) -> xen_vchan::Channel {
    let node = format!("{}/accepts-sessions", crate::world::PATH);
    let (_, store) = world.dom0();
    if store.exists(&node).unwrap() {
        store.rm(&node).unwrap();
    }
    world.connect()
}

/// A client says that it leaves, and only then unmaps its pages, at which its kernel says it once
/// more. That is one end, not the end of a second client that nobody saw.
#[test]
fn an_end_that_is_told_twice_is_one_end() {
    let world = World::new();
    let mut server = world.listen(0, 0);
    for round in 1..=3 {
        let mut client = world.connect();
        server.wait_connected(soon()).unwrap();
        client.shutdown();
        wait_gone(&mut server);
        server.next_client().unwrap();
        drop(client);
        assert_eq!(server.peer().unwrap(), PeerState::Waiting);
        assert_eq!(server.sessions(), round);
    }
    let client = world.connect();
    server.wait_connected(soon()).unwrap();
    drop((server, client));
    world.end();
}

#[test]
fn next_client_is_for_servers_without_one() {
    let world = World::new();
    let (mut server, mut client) = world.pair(0, 0);
    server.wait_connected(soon()).unwrap();
    assert!(matches!(server.next_client(), Err(Error::Invalid { .. })));
    assert!(matches!(client.next_client(), Err(Error::Invalid { .. })));
    drop(client);
    wait_gone(&mut server);
    server.next_client().unwrap();
    server.next_client().unwrap();
    drop(server);
    world.end();
}

#[test]
fn shutdown_ends_both_directions_and_loses_nothing() {
    let world = World::new();
    let (mut server, mut client) = world.pair(4096, 4096);
    server.wait_connected(soon()).unwrap();
    client.write_all(b"last words").unwrap();
    server.write_all(b"an answer").unwrap();
    client.shutdown();
    assert_eq!(read_all(&mut server), b"last words");
    let mut got = [0; 9];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"an answer");
    drop((server, client));
    world.end();
}
