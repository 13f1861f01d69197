//! Deadlines hold whatever the peer does: here it rings before each sleep, and says nothing.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use xen_evtchn::{BoundPort, EventChannels, EventPacer};
use xen_gnttab::{Access, share};
use xen_store::wire::{Decoder, MsgType, encode};
use xen_store::{Permissions, Store};
use xen_sys::{DomId, GrantRef, Port};
use xen_vchan::{Channel, Client, Error, Listener, PeerState};

use crate::world::{PATH, World, poll_one, soon};

const SHORT: Duration = Duration::from_millis(100);
/// The peer rings so long; a call that lasts until it stops has missed its deadline.
const STORM: Duration = Duration::from_secs(4);
const LIVE: [usize; 2] = [20, 21];

fn number(store: &Store, path: &str, key: &str) -> u32 {
    let value = store.read_str(&format!("{path}/{key}")).unwrap();
    value.parse().unwrap()
}

/// A client that has bound the port and set the live byte, and does nothing more.
fn mute_client(world: &World, path: &str) -> BoundPort {
    let (xen, store) = world.domu();
    let events = EventChannels::open(&xen).unwrap();
    let port = Port::new(number(&store, path, "event-channel"));
    let port = events.bind_interdomain(DomId::DOM0, port).unwrap();
    let control = GrantRef::new(number(&store, path, "ring-ref"));
    let host = &world.host;
    host.scribble(DomId::DOM0, control, LIVE[0], &[1]).unwrap();
    port.notify().unwrap();
    port
}

/// Calls `act` while `port` rings without a pause, and returns what it did and how long it took.
fn in_a_storm<T>(port: &BoundPort, act: impl FnOnce() -> T) -> (T, Duration) {
    let (done, began) = (AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) && began.elapsed() < STORM {
                port.notify().unwrap();
                thread::yield_now();
            }
        });
        let result = act();
        let took = began.elapsed();
        done.store(true, Ordering::Release);
        (result, took)
    })
}

#[track_caller]
fn assert_kept<T: std::fmt::Debug>((result, took): (Result<T, Error>, Duration)) {
    assert!(took < STORM / 2, "{took:?} for a deadline of {SHORT:?}");
    assert!(matches!(result, Err(Error::Timeout)), "{result:?}");
}

fn shortly() -> Option<Instant> {
    Some(Instant::now() + SHORT)
}

/// A server whose client can only ring.
pub(crate) fn stormed(world: &World) -> (Channel, BoundPort) {
    let mut server = world.listen(0, 0);
    let bell = mute_client(world, PATH);
    server.wait_connected(soon()).unwrap();
    (server, bell)
}

/// The client moves its cursor by one byte.
pub(crate) fn write_one(world: &World) {
    let control = GrantRef::new(number(&world.dom0().1, PATH, "ring-ref"));
    let prod = 1u32.to_ne_bytes();
    world.host.scribble(DomId::DOM0, control, 4, &prod).unwrap();
}

#[test]
fn a_peer_that_rings_before_each_sleep_keeps_no_reader() {
    let world = World::new();
    let (mut server, bell) = stormed(&world);
    let mut buf = [0; 10];
    assert_kept(in_a_storm(&bell, || {
        server.read_deadline(&mut buf, shortly())
    }));
    let (rx, _) = server.halves();
    assert_kept(in_a_storm(&bell, || rx.recv(&mut buf, shortly())));
    assert_kept(in_a_storm(&bell, || rx.incoming(shortly()).map(drop)));
    rx.set_timeout(Some(SHORT));
    let (result, took) = in_a_storm(&bell, || rx.read(&mut buf));
    assert!(took < STORM / 2, "{took:?}");
    assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    drop((server, bell));
    world.end();
}

#[test]
fn a_peer_that_rings_before_each_sleep_keeps_no_writer() {
    let world = World::new();
    let (mut server, bell) = stormed(&world);
    let full = in_a_storm(&bell, || server.write_deadline(&[0; 5000], shortly()));
    assert!(full.1 < STORM / 2, "{:?}", full.1);
    assert_eq!(full.0.unwrap(), 2048);
    assert_kept(in_a_storm(&bell, || server.write_deadline(b"x", shortly())));
    let (_, tx) = server.halves();
    assert_kept(in_a_storm(&bell, || tx.send(b"x", shortly())));
    assert_kept(in_a_storm(&bell, || tx.reserve(1, shortly()).map(drop)));
    drop((server, bell));
    world.end();
}

/// A reader that takes a byte at a time makes room at each turn.
#[test]
fn a_peer_that_makes_little_room_keeps_no_writer() {
    let world = World::new();
    let (mut server, bell) = stormed(&world);
    let control = GrantRef::new(number(&world.dom0().1, PATH, "ring-ref"));
    let taken = std::sync::atomic::AtomicU32::new(0);
    let mut act = || server.write_deadline(&vec![0; 1 << 20], shortly());
    let (done, began) = (AtomicBool::new(false), Instant::now());
    let (written, took) = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) && began.elapsed() < STORM {
                let cons = taken.fetch_add(1, Ordering::Relaxed).to_ne_bytes();
                world.host.scribble(DomId::DOM0, control, 8, &cons).unwrap();
                bell.notify().unwrap();
                thread::sleep(Duration::from_micros(200));
            }
        });
        let written = act();
        let took = began.elapsed();
        done.store(true, Ordering::Release);
        (written.unwrap(), took)
    });
    assert!(took < STORM / 2, "{took:?}");
    assert!((2048..1 << 20).contains(&written), "{written}");
    drop((server, bell));
    world.end();
}

#[test]
fn a_client_that_rings_and_does_not_come_keeps_no_server_and_no_listener() {
    let world = World::new();
    let mut server = world.listen(0, 0);
    let (xen, store) = world.domu();
    let events = EventChannels::open(&xen).unwrap();
    let bind = |path: &str| {
        let port = Port::new(number(&store, path, "event-channel"));
        events.bind_interdomain(DomId::DOM0, port).unwrap()
    };
    let bell = bind(PATH);
    assert_kept(in_a_storm(&bell, || server.wait_connected(shortly())));
    drop((server, bell));

    let (xen0, store0) = world.dom0();
    let mut listener = Listener::builder().listen(&xen0, &store0).unwrap();
    listener.serve(world.guest, PATH).unwrap();
    let bell = bind(PATH);
    assert_kept(in_a_storm(&bell, || listener.accept(shortly())));
    drop((listener, bell));
    world.end();
}

/// A server that can be rung for, takes no note of its client, and writes its node again and again.
struct MuteServer {
    bell: BoundPort,
    store: Store,
    node: String,
    value: String,
    _page: xen_gnttab::SharedPages,
}

fn mute_server(world: &World) -> MuteServer {
    let (xen, store) = world.dom0();
    let page = share(&xen, world.guest, 1, Access::ReadWrite).unwrap();
    let control = page.refs()[0];
    let put = |offset, bytes: &[u8]| {
        let host = &world.host;
        host.scribble(DomId::DOM0, control, offset, bytes).unwrap();
    };
    put(16, &[10u16.to_ne_bytes(), 11u16.to_ne_bytes()].concat());
    put(LIVE[0], &[2, 1]);
    let bell = EventChannels::open(&xen).unwrap();
    let bell = bell.bind_unbound(world.guest).unwrap();
    let readable = Permissions::owner_none(DomId::DOM0).grant_read(world.guest);
    let nodes = [
        ("event-channel", bell.port().as_u32().to_string()),
        ("accepts-sessions", "1".to_owned()),
        ("ring-ref", control.as_u32().to_string()),
    ];
    for (key, value) in &nodes {
        let node = format!("{PATH}/{key}");
        store.write(&node, value).unwrap();
        store.set_perms(&node, &readable).unwrap();
    }
    MuteServer {
        bell,
        store,
        node: format!("{PATH}/ring-ref"),
        value: nodes[2].1.clone(),
        _page: page,
    }
}

#[test]
fn a_server_that_rings_before_each_sleep_keeps_no_client() {
    let world = World::new();
    let server = mute_server(&world);
    let (xen, store) = world.domu();
    let mut client = Client::builder(DomId::DOM0, PATH)
        .connect(&xen, &store)
        .unwrap();
    assert_eq!(client.peer().unwrap(), PeerState::Waiting);
    assert_kept(in_a_storm(&server.bell, || {
        client.wait_connected(shortly())
    }));
    assert_kept(in_a_storm(&server.bell, || {
        client.read_deadline(&mut [0], shortly())
    }));
    assert_kept(in_a_storm(&server.bell, || {
        client.write_deadline(b"x", shortly())
    }));
    drop(client);
    let mut line = Client::builder(DomId::DOM0, PATH).redial(&xen, &store);
    assert_kept(in_a_storm(&server.bell, || {
        line.session(shortly()).map(drop)
    }));
    server.store.rm(PATH).unwrap();
    drop((line, server));
    world.end();
}

#[test]
fn a_server_that_writes_its_node_again_and_again_keeps_no_client() {
    let world = World::new();
    let server = mute_server(&world);
    // Somebody else has the port.
    let other = world.connect();
    let (xen, store) = world.domu();
    let (done, began) = (AtomicBool::new(false), Instant::now());
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) && began.elapsed() < STORM {
                server.store.write(&server.node, &server.value).unwrap();
            }
        });
        let builder = Client::builder(DomId::DOM0, PATH).wait_for_server(true);
        let result = builder.timeout(SHORT).connect(&xen, &store).map(drop);
        let took = began.elapsed();
        done.store(true, Ordering::Release);
        (result, took)
    });
    assert_kept(result);
    server.store.rm(PATH).unwrap();
    drop((other, server));
    world.end();
}

/// Events of one watch, as many as a client keeps apart.
fn batch(token: &[u8]) -> Vec<u8> {
    let event = |n| {
        let path = format!("/n/{n}\0");
        encode(MsgType::WATCH_EVENT, 0, 0, &[path.as_bytes(), token]).unwrap()
    };
    (0..500).flat_map(event).collect()
}

/// A store that always has another event of a watch, for as long as a storm lasts.
fn flood(mut socket: UnixStream) {
    let (mut decoder, mut events, began) = (Decoder::new(), Vec::new(), Instant::now());
    loop {
        // Each request is answered between two batches of events.
        while events.is_empty() || poll_one(&socket, 0) || began.elapsed() >= STORM {
            let mut bytes = [0; 4096];
            let count = socket.read(&mut bytes).unwrap_or(0);
            if count == 0 {
                return;
            }
            let mut bytes = &bytes[..count];
            while let Some(request) = decoder.next(&mut bytes).unwrap() {
                let (kind, payload): (_, &[u8]) = match request.kind {
                    MsgType::READ => (MsgType::ERROR, b"ENOENT\0"),
                    other => (other, b"OK\0"),
                };
                if request.kind == MsgType::WATCH {
                    let at = request.payload.iter().position(|byte| *byte == 0).unwrap();
                    events = batch(&request.payload[at + 1..]);
                }
                let reply = encode(kind, request.req_id, 0, &[payload]).unwrap();
                if socket.write_all(&reply).is_err() {
                    return;
                }
            }
        }
        if socket.write_all(&events).is_err() {
            return;
        }
    }
}

#[test]
fn events_without_end_keep_no_client() {
    let world = World::new();
    let (xen, _) = world.domu();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let store = Store::from_fd(ours.into()).unwrap();
    let daemon = thread::spawn(move || flood(theirs));
    let builder = Client::builder(DomId::DOM0, PATH).wait_for_server(true);
    let began = Instant::now();
    let result = builder.timeout(SHORT).connect(&xen, &store).map(drop);
    assert_kept((result, began.elapsed()));
    drop(store);
    daemon.join().unwrap();
    drop(xen);
    world.end();
}

#[test]
fn a_paced_channel_in_an_event_loop_says_when_to_go_on() {
    let world = World::new();
    let (mut server, bell) = stormed(&world);
    server.set_event_pacer(Some(EventPacer::new(Duration::from_millis(700))));
    let mut rung = 0;
    loop {
        assert!(matches!(server.try_read(&mut [0]), Err(Error::WouldBlock)));
        if server.poll_timeout().is_some() {
            break;
        }
        bell.notify().unwrap();
        assert!(poll_one(&server, 10_000));
        server.acknowledge_events().unwrap();
        rung += 1;
        assert!(rung < 100, "never paced");
    }
    assert!(rung > EventPacer::BURST, "{rung}");
    // A byte comes meanwhile: it is announced when it is time.
    write_one(&world);
    bell.notify().unwrap();
    assert!(!poll_one(&server, 20), "masked");
    let at = server.poll_timeout().unwrap();
    thread::sleep(at.saturating_duration_since(Instant::now()));
    server.handle_timeout().unwrap();
    assert_eq!(server.poll_timeout(), None);
    assert!(poll_one(&server, 10_000), "the event was lost");
    server.acknowledge_events().unwrap();
    assert_eq!(server.try_read(&mut [0; 2]).unwrap(), 1);
    drop((server, bell));
    world.end();
}
