//! The end of the peer's domain, of which only the store tells: who asked for it notices.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use xen_sys::DomId;
use xen_vchan::{ClientBuilder, Error, PeerState, ServerBuilder};

use crate::world::{PATH, World, poll_one, soon};

/// Only the store knows of it: the live byte stays as it is, and no event comes.
#[test]
fn the_end_of_the_peers_domain_is_noticed_by_who_asked_for_it() {
    let world = World::new();
    let (xen, store) = world.dom0();
    let builder = ServerBuilder::new(world.guest, PATH).watch_peer_domain(true);
    let mut server = builder.publish(&xen, &store).unwrap();
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
    let mut server = ServerBuilder::new(DomId::DOM0, &path)
        .publish(&xen, &store)
        .unwrap();
    let (xen, store) = world.dom0();
    let builder = ClientBuilder::new(world.guest, &path).watch_peer_domain(true);
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

/// One connection to the store for all of them, used by as many threads as there are channels. One
/// channel's owner looks without a pause, and so reads the answers to the others' requests.
#[test]
fn many_channels_watch_their_peers_domain_on_one_store() {
    const CHANNELS: usize = 120;
    let world = World::new();
    let ends = [world.dom0(), world.domu()];
    let (done, all) = std::sync::mpsc::channel();
    let looks = Arc::new(AtomicBool::new(true));
    let looker = std::thread::spawn({
        let ([(xen, store), _], looks) = (ends.clone(), Arc::clone(&looks));
        let server =
            ServerBuilder::new(world.guest, format!("{PATH}-looks")).watch_peer_domain(true);
        let mut server = server.publish(&xen, &store).unwrap();
        move || {
            while looks.load(Ordering::Relaxed) {
                server.acknowledge_events().unwrap();
                std::thread::yield_now();
            }
        }
    });
    let threads: Vec<_> = (0..CHANNELS)
        .map(|index| {
            let ([(xen, store), (their_xen, their_store)], done) = (ends.clone(), done.clone());
            let (guest, path) = (world.guest, format!("{PATH}-{index}"));
            std::thread::spawn(move || {
                let server = ServerBuilder::new(guest, &path).watch_peer_domain(true);
                let mut server = server.publish(&xen, &store).unwrap();
                // Two watches each: more clients than 64 are beyond a guest's quota.
                let client = ClientBuilder::new(DomId::DOM0, &path).watch_peer_domain(index < 40);
                let mut client = client.connect(&their_xen, &their_store).unwrap();
                server.wait_connected(soon()).unwrap();
                client.wait_connected(soon()).unwrap();
                for round in 0..20u8 {
                    client.write_all(&[round; 10]).unwrap();
                    let mut got = [0; 10];
                    server.read_exact(&mut got).unwrap();
                    assert_eq!(got, [round; 10]);
                    assert!(store.exists(&format!("{path}/ring-ref")).unwrap());
                }
                drop((server, client));
                done.send(()).unwrap();
            })
        })
        .collect();
    let ended = (0..CHANNELS)
        .take_while(|_| all.recv_timeout(Duration::from_secs(60)).is_ok())
        .count();
    assert_eq!(ended, CHANNELS, "the others wait for the store");
    // Nobody else makes the store say anything now.
    let last = std::thread::spawn({
        let ([(_, store), _], done) = (ends.clone(), done.clone());
        move || {
            (0..500).for_each(|_| assert!(!store.exists(PATH).unwrap()));
            done.send(()).unwrap();
        }
    });
    all.recv_timeout(Duration::from_secs(60))
        .expect("the last one waits for the store");
    looks.store(false, Ordering::Relaxed);
    for thread in threads.into_iter().chain([looker, last]) {
        thread.join().unwrap();
    }
    drop(ends);
    world.end();
}
