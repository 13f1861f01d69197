//! The end of the peer's domain, of which only the store tells: who asked for it notices.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use xen_sys::DomId;
use xen_vchan::{Client, Error, PeerState, Server};

use crate::world::{PATH, World, poll_one, soon};

/// Only the store knows of it: the live byte stays as it is, and no event comes.
#[test]
fn the_end_of_the_peers_domain_is_noticed_by_who_asked_for_it() {
    let world = World::new();
    let (xen, store) = world.dom0();
    let builder = Server::builder(world.guest, PATH).watch_peer_domain(true);
    let mut server = builder.listen(&xen, &store).unwrap();
    let mut client = world.connect();
    server.wait_connected(soon()).unwrap();
    client.wait_connected(soon()).unwrap();
    client.write_all(b"last").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = [0; 4];
            server.read_exact(&mut last).unwrap();
            assert_eq!(&last, b"last");
            let ended = server.read_deadline(&mut last, soon());
            assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
        });
        world.stored.release(world.guest);
    });
    assert_eq!(server.peer().unwrap(), PeerState::Gone);
    drop((server, client));
    world.end();
}

#[test]
fn the_end_of_the_servers_domain_wakes_an_event_loop() {
    let world = World::new();
    let path = format!("/local/domain/{}/data/vchan-test", world.guest);
    let (xen, store) = world.domu();
    let mut server = Server::builder(DomId::DOM0, &path)
        .listen(&xen, &store)
        .unwrap();
    let (xen, store) = world.dom0();
    let builder = Client::builder(world.guest, &path).watch_peer_domain(true);
    let mut client = builder.connect(&xen, &store).unwrap();
    server.wait_connected(soon()).unwrap();
    client.wait_connected(soon()).unwrap();
    // The end of another domain is not the end.
    let other = DomId::new(77);
    world.stored.add_domain(other);
    world.stored.introduce(other);
    for (ended, expected) in [
        (other, PeerState::Connected),
        (world.guest, PeerState::Gone),
    ] {
        while client.try_read(&mut [0; 10]).is_ok() {}
        world.stored.release(ended);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            assert!(
                Instant::now() < deadline && poll_one(&client, 20_000),
                "no word of {ended}"
            );
            client.acknowledge_events().unwrap();
            if client.peer().unwrap() == expected {
                break;
            }
        }
    }
    assert!(matches!(client.try_read(&mut [0; 10]), Err(Error::Closed)));
    drop((client, server));
    world.host.assert_clean();
}
