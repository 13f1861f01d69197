//! Where one client's session ends and the next begins.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use xen_evtchn::{BoundPort, EventChannels};
use xen_gnttab::{MappedPages, PageAccess, map};
use xen_sys::{DomId, GrantRef, Port};
use xen_vchan::{Error, PeerState};

use crate::host::{TestHost, bytes, poll_one, read_all, soon, wait_gone};

#[test]
fn what_the_peer_wrote_before_it_left_is_read_before_the_end() {
    let host = TestHost::new();
    let (mut server, mut client) = host.pair(4096, 4096);
    client.write_all(b"x").unwrap_or_else(|e| panic!("{e}"));
    drop(client);
    assert_eq!(read_all(&mut server), b"x");
    assert_eq!(server.peer().unwrap(), PeerState::Gone);
    assert!(matches!(server.try_write(b"y"), Err(Error::Closed)));
    drop(server);
    host.end();

    let host = TestHost::new();
    let (mut server, mut client) = host.pair(4096, 4096);
    server.wait_connected(soon()).unwrap();
    server.write_all(&bytes(0, 4000)).unwrap();
    drop(server);
    assert_eq!(read_all(&mut client), bytes(0, 4000));
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "the end stays the end");
    drop(client);
    host.end();
}

#[test]
fn a_server_may_write_before_anybody_is_there() {
    let host = TestHost::new();
    let mut server = host.listen(0, 0);
    assert_eq!(server.peer().unwrap(), PeerState::Waiting);
    server.write_all(b"greeting").unwrap();
    let mut client = host.connect();
    server.wait_connected(soon()).unwrap();
    let mut got = [0; 8];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"greeting");
    drop((server, client));
    host.end();
}

#[test]
fn no_byte_of_one_session_reaches_the_next() {
    each_session_has_its_own_bytes(false);
    each_session_has_its_own_bytes(true);
}

fn each_session_has_its_own_bytes(reuse: bool) {
    let host = TestHost::new();
    let mut server = host.listen_with(4096, 4096, reuse);
    for round in 1..=20u8 {
        let mut client = host.connect();
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
    host.end();
}

#[test]
fn a_client_replaced_before_the_server_looked_is_two_sessions() {
    let host = TestHost::new();
    let mut server = host.listen_with(4096, 4096, true);
    let mut first = host.connect();
    server.wait_connected(soon()).unwrap();
    first.write_all(b"from the first").unwrap();
    server.write_all(b"for the first").unwrap();
    drop(first);
    let mut second = host.connect();
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
    host.end();
}

#[test]
fn a_client_that_comes_to_rings_of_the_session_before_sees_their_end_and_comes_again() {
    let host = TestHost::new();
    let (mut server, first) = host.pair(4096, 4096);
    drop(first);
    let mut early = host.connect();
    assert_eq!(early.peer().unwrap(), PeerState::Waiting);
    assert_eq!(server.peer().unwrap(), PeerState::Gone);
    server.next_client().unwrap();
    assert_eq!(server.peer().unwrap(), PeerState::Waiting);
    assert!(matches!(early.wait_connected(soon()), Err(Error::Closed)));
    assert_eq!(early.sessions(), 0);
    let mut again = host.connect();
    server.wait_connected(soon()).unwrap();
    assert_eq!(server.sessions(), 2);
    again.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    drop((server, early, again));
    host.end();
}

/// A client that keeps its memory and its port, and uses both at any time after it has left.
struct Lingering {
    pages: MappedPages,
    port: BoundPort,
}

impl Lingering {
    fn come(host: &TestHost) -> Self {
        let (xen, store) = host.domu();
        let number = |key: &str| -> u32 {
            let value = store.read_str(&format!("{}/{key}", crate::host::PATH));
            value.unwrap().parse().unwrap()
        };
        let port = Port::new(number("event-channel"));
        let page = GrantRef::new(number("ring-ref"));
        let events = EventChannels::open(&xen).unwrap();
        let mut this = Self {
            port: events.bind_interdomain(DomId::DOM0, port).unwrap(),
            pages: map(&xen, DomId::DOM0, &[page], PageAccess::ReadWrite).unwrap(),
        };
        this.live(1);
        this
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.pages.region_mut().copy_in(at, bytes).unwrap();
        self.port.notify().unwrap();
    }

    fn live(&mut self, live: u8) {
        self.put(20, &[live]);
    }

    fn write(&mut self, bytes: &[u8], at: u32) {
        self.put(1024 + at as usize, bytes);
        let prod = at + bytes.len() as u32;
        self.put(4, &prod.to_ne_bytes());
    }
}

#[test]
fn a_client_that_writes_after_it_left_is_read_by_nobody() {
    // When the second write is made: before and after `next_client`, with the next client there,
    // and after its first bytes.
    for moment in 0..4 {
        let host = TestHost::new();
        let mut server = host.listen(0, 0);
        let mut evil = Lingering::come(&host);
        server.wait_connected(soon()).unwrap();
        evil.write(b"own", 0);
        let mut got = [0; 3];
        server.read_exact(&mut got).unwrap();
        evil.live(0);
        let mut at = |now| {
            if moment == now {
                evil.write(b"EVIL2", 3);
                evil.live(1);
                evil.live(3);
            }
        };
        assert_eq!(server.peer().unwrap(), PeerState::Gone);
        at(0);
        server.next_client().unwrap();
        at(1);
        assert_eq!(server.peer().unwrap(), PeerState::Waiting);
        let mut client = host.connect();
        at(2);
        server.wait_connected(soon()).unwrap();
        assert_eq!(server.sessions(), 2);
        client.write_all(b"he").unwrap();
        at(3);
        client.write_all(b"llo").unwrap();
        drop(client);
        assert_eq!(read_all(&mut server), b"hello", "moment {moment}");
        drop((server, evil));
        host.end();
    }
}

#[test]
fn a_server_keeps_its_descriptor_and_its_settings_from_client_to_client() {
    let host = TestHost::new();
    let mut server = host.listen(4096, 4096);
    let fd = server.as_fd().as_raw_fd();
    server.set_read_timeout(Some(Duration::from_millis(20)));
    for _ in 0..3 {
        let client = host.connect();
        assert!(poll_one(&server, 10_000), "its arrival is not told");
        server.acknowledge_events().unwrap();
        server.wait_connected(soon()).unwrap();
        drop(client);
        wait_gone(&mut server);
        server.next_client().unwrap();
        assert_eq!(server.as_fd().as_raw_fd(), fd);
        let early = server.read(&mut [0]).unwrap_err();
        assert_eq!(early.kind(), std::io::ErrorKind::TimedOut);
    }
    drop(server);
    host.end();
}

#[test]
fn a_server_that_cannot_have_fresh_rings_tries_again() {
    let host = TestHost::new();
    let (mut server, client) = host.pair(0, 0);
    drop(client);
    wait_gone(&mut server);
    let whole = host.sim.limits(DomId::DOM0).unwrap();
    let mut limits = whole;
    limits.shared_pages = 1;
    host.sim.set_limits(DomId::DOM0, limits).unwrap();
    assert!(matches!(server.next_client(), Err(Error::Os(_))));
    assert_eq!(server.peer().unwrap(), PeerState::Gone);
    let node = format!("{}/ring-ref", crate::host::PATH);
    assert!(
        !host.dom0().1.exists(&node).unwrap(),
        "the old ring is on offer"
    );
    host.sim.set_limits(DomId::DOM0, whole).unwrap();
    server.next_client().unwrap();
    let client = host.connect();
    server.wait_connected(soon()).unwrap();
    drop((server, client));
    host.end();
}

#[test]
fn a_client_that_came_and_went_unseen_was_a_session_if_it_left_anything() {
    let host = TestHost::new();
    let mut server = host.listen(0, 0);
    for round in 1..=3 {
        // Without a word: nothing has happened.
        drop(host.connect());
        assert_eq!(server.peer().unwrap(), PeerState::Waiting);
        assert_eq!(server.sessions(), round - 1);
        // As libxenvchan does, which does not wait for a mark.
        let mut hasty = hasty(&host);
        hasty.write_all(b"was here").unwrap();
        drop(hasty);
        assert_eq!(server.peer().unwrap(), PeerState::Gone);
        assert_eq!(server.sessions(), round);
        assert_eq!(read_all(&mut server), b"was here");
        server.next_client().unwrap();
        assert_eq!(server.peer().unwrap(), PeerState::Waiting);
        // It took what had been written ahead for it.
        server.write_all(b"hello").unwrap();
        let mut hasty = self::hasty(&host);
        hasty.read_exact(&mut [0; 5]).unwrap();
        drop(hasty);
        assert_eq!(server.peer().unwrap(), PeerState::Gone);
        assert_eq!(server.sessions(), round + 1);
        server.next_client().unwrap();
        drop(server);
        server = host.listen(0, 0);
        for _ in 0..round {
            let client = host.connect();
            assert_eq!(server.peer().unwrap(), PeerState::Connected);
            drop(client);
            wait_gone(&mut server);
            server.next_client().unwrap();
        }
    }
    drop(server);
    host.end();
}

/// A client that does not look for the server's mark.
fn hasty(host: &TestHost) -> xen_vchan::Channel {
    let node = format!("{}/accepts-sessions", crate::host::PATH);
    let (_, store) = host.dom0();
    if store.exists(&node).unwrap() {
        store.rm(&node).unwrap();
    }
    host.connect()
}

/// A client marks that it leaves, and only then unmaps its pages, at which its kernel marks it once
/// more. The two are one end, not the end of a second client that was never seen.
#[test]
fn an_end_that_is_notified_twice_is_one_end() {
    let host = TestHost::new();
    let mut server = host.listen_with(0, 0, true);
    for round in 1..=3 {
        let mut client = host.connect();
        server.wait_connected(soon()).unwrap();
        client.shutdown().unwrap();
        wait_gone(&mut server);
        server.next_client().unwrap();
        drop(client);
        assert_eq!(server.peer().unwrap(), PeerState::Waiting);
        assert_eq!(server.sessions(), round);
    }
    let client = host.connect();
    server.wait_connected(soon()).unwrap();
    drop((server, client));
    host.end();
}

#[test]
fn next_client_is_for_servers_without_one() {
    let host = TestHost::new();
    let (mut server, mut client) = host.pair(0, 0);
    server.wait_connected(soon()).unwrap();
    assert!(matches!(server.next_client(), Err(Error::Invalid { .. })));
    assert!(matches!(client.next_client(), Err(Error::Invalid { .. })));
    drop(client);
    wait_gone(&mut server);
    server.next_client().unwrap();
    server.next_client().unwrap();
    drop(server);
    host.end();
}

#[test]
fn shutdown_publishes_what_was_corked_and_ends_every_way_of_writing() {
    for server_shuts in [true, false] {
        let host = TestHost::new();
        let (mut one, mut other) = host.pair(4096, 4096);
        if !server_shuts {
            std::mem::swap(&mut one, &mut other);
        }
        one.halves().1.set_cork(true);
        one.write_all(b"last words").unwrap();
        other.write_all(b"an answer").unwrap();
        one.shutdown().unwrap();
        one.shutdown().unwrap();
        let shut = |result: Result<usize, Error>| {
            assert!(matches!(result, Err(Error::ShutDown)), "{result:?}");
        };
        let pipe = |result: std::io::Result<usize>| {
            assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
        };
        let both = [IoSlice::new(b"x"), IoSlice::new(b"y")];
        shut(one.try_write(b"x"));
        shut(one.write_deadline(b"x", soon()));
        pipe(one.write(b"x"));
        pipe(one.write_all(b"x").map(|()| 0));
        pipe(one.write_vectored(&both));
        shut(one.space());
        let (_, tx) = one.halves();
        shut(tx.try_write_vectored(&both));
        shut(tx.try_send(b"x").map(|()| 0));
        shut(tx.send(b"x", soon()).map(|()| 0));
        shut(tx.write_chunk(1, soon()).map(|_| 0));
        let (file, mut end) = std::os::unix::net::UnixStream::pair().unwrap();
        end.write_all(b"x").unwrap();
        shut(tx.try_read_from(&file, 1));
        tx.set_cork(false);
        tx.flush().unwrap();
        assert_eq!(read_all(&mut other), b"last words");
        let mut got = [0; 9];
        one.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"an answer");
        drop((one, other));
        host.end();
    }
}

#[test]
fn a_server_that_shut_down_serves_the_next_client() {
    let host = TestHost::new();
    let (mut server, client) = host.pair(0, 0);
    server.shutdown().unwrap();
    drop(client);
    wait_gone(&mut server);
    server.next_client().unwrap();
    let mut client = host.connect();
    server.wait_connected(soon()).unwrap();
    server.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    drop((server, client));
    host.end();
}

#[test]
fn shutdown_ends_both_directions_and_loses_nothing() {
    let host = TestHost::new();
    let (mut server, mut client) = host.pair(4096, 4096);
    server.wait_connected(soon()).unwrap();
    client.write_all(b"last words").unwrap();
    server.write_all(b"an answer").unwrap();
    client.shutdown().unwrap();
    assert_eq!(read_all(&mut server), b"last words");
    let mut got = [0; 9];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"an answer");
    drop((server, client));
    host.end();
}
