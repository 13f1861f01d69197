//! The end of the peer's domain, which only the store reports: a side that requested it notices.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use xen_store::Store;
use xen_sys::DomId;
use xen_vchan::{ClientBuilder, Error, Listener, PeerState, ServerBuilder};

use crate::host::{PATH, TestHost, poll_one, soon};

/// Only the store has a record of it: the live byte stays as it is, and no event arrives.
#[test]
fn the_end_of_the_peers_domain_is_noticed_by_who_asked_for_it() {
    let host = TestHost::new();
    let (xen, store) = host.dom0();
    let builder = ServerBuilder::new(host.guest, PATH).watch_peer_domain(true);
    let mut server = builder.publish(&xen, &store).unwrap();
    let mut client = host.connect();
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
        host.stored.release(host.guest);
    });
    assert_eq!(server.peer().unwrap(), PeerState::Gone);
    drop((server, client));
    host.end();
}

#[test]
fn the_end_of_the_servers_domain_wakes_an_event_loop() {
    let host = TestHost::new();
    let path = format!("/local/domain/{}/data/vchan-test", host.guest);
    let (xen, store) = host.domu();
    let mut server = ServerBuilder::new(DomId::DOM0, &path)
        .publish(&xen, &store)
        .unwrap();
    let (xen, store) = host.dom0();
    let builder = ClientBuilder::new(host.guest, &path).watch_peer_domain(true);
    let mut client = builder.connect(&xen, &store).unwrap();
    server.wait_connected(soon()).unwrap();
    client.wait_connected(soon()).unwrap();
    // The end of another domain is not the end.
    let other = DomId::new(77);
    host.stored.add_domain(other);
    host.stored.introduce(other);
    for (ended, expected) in [(other, PeerState::Connected), (host.guest, PeerState::Gone)] {
        while client.try_read(&mut [0; 10]).is_ok() {}
        host.stored.release(ended);
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
    host.sim.assert_clean();
}

/// One connection to the store for all of them, used by as many threads as there are channels. One
/// channel's owner looks without a pause, and so reads the answers to the others' requests.
#[test]
fn many_channels_watch_their_peers_domain_on_one_store() {
    const CHANNELS: usize = 120;
    let host = TestHost::new();
    let ends = [host.dom0(), host.domu()];
    let (done, all) = std::sync::mpsc::channel();
    let looks = Arc::new(AtomicBool::new(true));
    let looker = std::thread::spawn({
        let ([(xen, store), _], looks) = (ends.clone(), Arc::clone(&looks));
        let server =
            ServerBuilder::new(host.guest, format!("{PATH}-looks")).watch_peer_domain(true);
        let server = server.publish(&xen, &store).unwrap();
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
            let (guest, path) = (host.guest, format!("{PATH}-{index}"));
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
    // Nothing else makes the store report anything now.
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
    host.end();
}

/// The peer's domain is destroyed while its process keeps its end open: no live byte, no event.
fn destroy(host: &TestHost, domain: DomId) {
    host.sim.destroy_domain(domain).unwrap();
    host.stored.release(domain);
}

/// Builders as they are, and no deadline: both sides in domain 0, blocking, and a descriptor that
/// is polled.
#[test]
fn a_read_without_a_deadline_ends_when_the_peers_domain_is_destroyed() {
    let host = TestHost::new();
    let (xen, store) = host.dom0();
    let (their_xen, their_store) = host.domu();
    let serve = |name: &str| ServerBuilder::new(host.guest, format!("{PATH}-{name}"));
    let theirs = format!("/local/domain/{}/data/vchan-test", host.guest);
    let mut blocking = serve("blocking").publish(&xen, &store).unwrap();
    let mut polled = serve("polled").publish(&xen, &store).unwrap();
    let mut unwatched = serve("unwatched")
        .watch_peer_domain(false)
        .publish(&xen, &store)
        .unwrap();
    let mut their_server = ServerBuilder::new(DomId::DOM0, &theirs)
        .publish(&their_xen, &their_store)
        .unwrap();
    let mut client = ClientBuilder::new(host.guest, &theirs)
        .connect(&xen, &store)
        .unwrap();
    their_server.wait_connected(soon()).unwrap();
    let their_clients = ["blocking", "polled", "unwatched"].map(|name| {
        ClientBuilder::new(DomId::DOM0, format!("{PATH}-{name}"))
            .connect(&their_xen, &their_store)
            .unwrap()
    });
    for server in [&mut blocking, &mut polled, &mut unwatched] {
        server.wait_connected(soon()).unwrap();
    }
    their_server.write_all(b"last").unwrap();
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(blocking.read(&mut [0; 4]).unwrap(), 0);
            assert_eq!(blocking.peer().unwrap(), PeerState::Gone);
            assert!(matches!(
                blocking.write_deadline(b"x", None),
                Err(Error::Closed)
            ));
        });
        scope.spawn(|| {
            let mut last = Vec::new();
            client.read_to_end(&mut last).unwrap();
            assert_eq!(last, b"last");
        });
        scope.spawn(|| {
            while !matches!(polled.try_read(&mut [0; 4]), Err(Error::Closed)) {
                assert!(poll_one(&polled, 20_000), "no word of the end");
                polled.acknowledge_events().unwrap();
            }
        });
        scope.spawn(|| {
            let late = Some(Instant::now() + Duration::from_secs(7));
            let waited = unwatched.read_deadline(&mut [0; 4], late);
            assert!(matches!(waited, Err(Error::TimedOut)), "{waited:?}");
        });
        destroy(&host, host.guest);
    });
    // Five seconds are promised.
    assert!(began.elapsed() < Duration::from_secs(15));
    drop((blocking, polled, unwatched, client));
    drop((their_clients, their_server));
    host.sim.assert_clean();
}

/// Domain 0 loses its store: open channels stay, and their end is asked of the hypervisor.
#[test]
fn a_channel_outlives_its_store_and_still_ends_with_the_peers_domain() {
    let host = TestHost::new();
    let (xen, store) = host.dom0();
    for watch in [None, Some(true)] {
        let guest = host.another();
        let builder = ServerBuilder::new(guest, format!("{PATH}-{guest}"));
        let builder = match watch {
            Some(watch) => builder.watch_peer_domain(watch),
            None => builder,
        };
        let own = host.stored.connect(DomId::DOM0).unwrap();
        let mut server = builder.publish(&xen, &own).unwrap();
        let (their_xen, their_store) = host.of(guest);
        let client = ClientBuilder::new(DomId::DOM0, format!("{PATH}-{guest}"));
        let mut client = client.connect(&their_xen, &their_store).unwrap();
        server.wait_connected(soon()).unwrap();
        host.stored.drop_connections(DomId::DOM0);
        client.write_all(b"on").unwrap();
        let mut got = [0; 2];
        server.read_exact(&mut got).unwrap();
        let later = Some(Instant::now() + Duration::from_secs(6));
        let waited = server.read_deadline(&mut got, later);
        assert!(matches!(waited, Err(Error::TimedOut)), "{waited:?}");
        host.sim.destroy_domain(guest).unwrap();
        let ended = server.read_deadline(&mut got, soon());
        assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
        drop((server, client));
    }
    drop(store);
    host.sim.assert_clean();
}

/// A ring offered to a domain that ends without a client becomes no client.
#[test]
fn a_listener_accepts_nobody_when_a_domain_ends() {
    let host = TestHost::new();
    let (xen, store) = host.dom0();
    let mut listener = Listener::builder().listen(&xen, &store).unwrap();
    listener.bind(host.guest, PATH).unwrap();
    destroy(&host, host.guest);
    let accepted = listener.accept(Some(Instant::now() + Duration::from_secs(7)));
    assert!(matches!(accepted, Err(Error::TimedOut)), "{accepted:?}");
    assert_eq!(listener.clients(), 0);
    drop(listener);
    host.sim.assert_clean();
}

/// A server of domain 0 for a domain that the toolstack has not introduced yet.
#[test]
fn a_domain_that_is_not_introduced_yet_has_not_ended() {
    let host = TestHost::new();
    let later = DomId::new(77);
    let (xen, store) = host.dom0();
    for watch in [None, Some(true)] {
        let mut builder = ServerBuilder::new(later, PATH);
        if let Some(watch) = watch {
            builder = builder.watch_peer_domain(watch);
        }
        let mut server = builder.publish(&xen, &store).unwrap();
        // The end of another is a word of an end.
        let other = host.another();
        host.stored.release(other);
        let waited =
            server.read_deadline(&mut [0; 4], Some(Instant::now() + Duration::from_secs(6)));
        assert!(matches!(waited, Err(Error::TimedOut)), "{waited:?}");
        assert_eq!(server.peer().unwrap(), PeerState::Waiting);
    }
    host.end();
}

/// Domain 0's store stops answering. No call of the channel waits for it for long, bytes pass, and
/// the end of the peer's domain is asked of the hypervisor.
#[test]
fn a_silent_store_holds_no_call_up_for_long_and_hides_no_end() {
    let host = TestHost::new();
    let guest = host.another();
    let silent = AtomicBool::new(false);
    let (ours, near) = UnixStream::pair().unwrap();
    let (far, theirs) = UnixStream::pair().unwrap();
    host.stored.add_connection(theirs.into(), DomId::DOM0);
    let (xen, _) = host.dom0();
    let forward = |mut from: &UnixStream, mut to: &UnixStream| {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if !silent.load(Ordering::SeqCst) {
                to.write_all(&buffer[..count]).unwrap();
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| forward(&near, &far));
        scope.spawn(|| forward(&far, &near));
        let store = Store::from_fd(ours.into()).unwrap();
        let path = format!("{PATH}-{guest}");
        let mut server = ServerBuilder::new(guest, &path)
            .publish(&xen, &store)
            .unwrap();
        let (their_xen, their_store) = host.of(guest);
        let mut client = ClientBuilder::new(DomId::DOM0, &path)
            .connect(&their_xen, &their_store)
            .unwrap();
        server.wait_connected(soon()).unwrap();
        silent.store(true, Ordering::SeqCst);
        // Longer than the interval of the questions.
        let (mut longest, mut got) = (Duration::ZERO, [0; 1]);
        let until = Instant::now() + Duration::from_secs(7);
        while Instant::now() < until {
            let began = Instant::now();
            let waited = server.read_deadline(&mut got, Some(began + Duration::from_millis(50)));
            longest = longest.max(began.elapsed());
            assert!(matches!(waited, Err(Error::TimedOut)), "{waited:?}");
        }
        assert!(longest < Duration::from_secs(2), "{longest:?}");
        client.write_all(b"x").unwrap();
        server.read_exact(&mut got).unwrap();
        host.sim.destroy_domain(guest).unwrap();
        let ended = server.read_deadline(&mut got, soon());
        assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
        drop((client, their_store));
        // The relay is cut first: removing the nodes would wait for an answer.
        for end in [&near, &far] {
            end.shutdown(Shutdown::Both).unwrap();
        }
        drop((server, store));
    });
    host.sim.assert_clean();
}
