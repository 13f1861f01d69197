//! Creates on demand the moment between finding nothing and requesting a notification.
//!
//! In that moment the peer may act before it sees the request. A caller that does not look once
//! more after the request sleeps forever; the window is a few nanoseconds wide, so no test finds it
//! by chance.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use xen_evtchn::{BoundPort, EventChannels, EventPacer};
use xen_gnttab::{PageAccess, map};
use xen_store::Store;
use xen_store_server::{Config, Server as StoreServer};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, GrantRef, Port, Xen};

use crate::{Channel, ClientBuilder, Error, Listener, PeerState, ServerBuilder};

/// Returns whether it acts in the next such moment as well.
type Peer = Box<dyn FnMut() -> bool>;

thread_local! {
    static PEER: RefCell<Option<Peer>> = const { RefCell::new(None) };
}

/// Called in the moment itself.
pub(crate) fn window() {
    let peer = PEER.with_borrow_mut(Option::take);
    if let Some(mut act) = peer {
        if act() {
            PEER.set(Some(act));
        }
    }
}

fn in_the_window(act: impl FnOnce() + 'static) {
    let mut act = Some(act);
    PEER.set(Some(Box::new(move || {
        act.take().into_iter().for_each(|act| act());
        false
    })));
}

/// As `before_each_sleep`: the peer notifies.
fn rung_before_each_sleep<T>(peer: Channel, call: impl FnOnce() -> T) -> (T, Duration) {
    before_each_sleep(move || peer.shared().doorbell.notify().unwrap(), call)
}

/// The peer acts before each sleep, for four seconds. Returns how long `call` took.
fn before_each_sleep<T>(
    mut act: impl FnMut() + 'static,
    call: impl FnOnce() -> T,
) -> (T, Duration) {
    let began = Instant::now();
    PEER.set(Some(Box::new(move || {
        act();
        began.elapsed() < Duration::from_secs(4)
    })));
    let result = call();
    let took = began.elapsed();
    PEER.set(None);
    (result, took)
}

fn host() -> (Xen, Store, (Simulation, StoreServer)) {
    let host = Simulation::start().unwrap();
    let stored = StoreServer::start(Config::new()).unwrap();
    let store = stored.connect(DomId::DOM0).unwrap();
    store.write("domid", "0").unwrap();
    (host.xen(DomId::DOM0).unwrap(), store, (host, stored))
}

pub(crate) fn pair() -> (Channel, Channel, (Simulation, StoreServer)) {
    let (xen, store, host) = host();
    let mut server = ServerBuilder::new(DomId::DOM0, "race")
        .publish(&xen, &store)
        .unwrap();
    let mut client = ClientBuilder::new(DomId::DOM0, "race")
        .connect(&xen, &store)
        .unwrap();
    server.wait_connected(None).unwrap();
    client.wait_connected(None).unwrap();
    (server, client, host)
}

#[test]
fn bytes_that_come_before_the_request_are_read() {
    let (mut server, mut client, _host) = pair();
    // There is no request for a notification of the second byte, so the peer sends none.
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    in_the_window(move || {
        client.write_all(b"y").unwrap();
        std::mem::forget(client);
    });
    let mut byte = [0];
    assert_eq!(server.try_read(&mut byte).unwrap(), 1);
    assert_eq!(&byte, b"y");
}

#[test]
fn space_that_comes_before_the_request_is_used() {
    let (mut server, mut client, _host) = pair();
    client.write_all(&[0; 1024]).unwrap();
    in_the_window(move || {
        server.read_exact(&mut [0; 100]).unwrap();
        std::mem::forget(server);
    });
    assert_eq!(client.try_write(&[1; 200]).unwrap(), 100);
}

#[test]
fn a_wait_does_not_miss_them_either() {
    let (mut server, mut client, _host) = pair();
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    // The peer's arrival and the first byte have caused events; take them first.
    server.acknowledge_events().unwrap();
    in_the_window(move || {
        client.write_all(b"y").unwrap();
        std::mem::forget(client);
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut byte = [0];
    assert_eq!(server.read_deadline(&mut byte, Some(deadline)).unwrap(), 1);
}

/// Found by the soak: `space` requests nothing, and reads before the request of `wait` caused no
/// event.
#[test]
fn a_wait_sees_the_space_that_came_before_it() {
    let (mut server, mut client, _host) = pair();
    client.write_all(&[0; 1024]).unwrap();
    assert_eq!(client.space().unwrap(), 0);
    // Takes the events so far.
    client.acknowledge_events().unwrap();
    server.read_exact(&mut [0; 100]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    assert!(client.wait(Some(deadline)).unwrap());
    assert_eq!(client.space().unwrap(), 100);
}

/// As soon as the nodes exist a client can write to the page, before the server has finished.
#[test]
fn cursors_moved_while_a_server_publishes_itself_fail_neither_publish_nor_next_client() {
    let (xen, store, (host, _stored)) = host();
    let scribble = |host: &Simulation| {
        let (store, xen) = (store.clone(), host.xen(DomId::DOM0).unwrap());
        in_the_window(move || {
            let control = store.read_str("race/ring-ref").unwrap();
            let control = GrantRef::new(control.parse().unwrap());
            let mut page = map(&xen, DomId::DOM0, &[control], PageAccess::ReadWrite).unwrap();
            // The cursors of both rings, each further apart than its ring is large.
            let cursors = [1u32, 5000, 1, 5000].map(u32::to_ne_bytes).concat();
            page.region_mut().copy_in(0, &cursors).unwrap();
        });
    };
    scribble(&host);
    let builder = ServerBuilder::new(DomId::DOM0, "race");
    let mut server = builder.publish(&xen, &store).unwrap();
    let broken = server.try_read(&mut [0]);
    assert!(matches!(broken, Err(Error::Peer(_))), "{broken:?}");
    drop(server);

    let mut server = ServerBuilder::new(DomId::DOM0, "race")
        .publish(&xen, &store)
        .unwrap();
    let client = ClientBuilder::new(DomId::DOM0, "race").connect(&xen, &store);
    server.wait_connected(None).unwrap();
    drop(client);
    while server.peer().unwrap() != PeerState::Gone {}
    scribble(&host);
    server.next_client().unwrap();
    let broken = server.try_read(&mut [0]);
    assert!(matches!(broken, Err(Error::Peer(_))), "{broken:?}");
}

#[track_caller]
fn assert_kept<T: std::fmt::Debug>((result, took): (crate::Result<T>, Duration)) {
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!(matches!(result, Err(Error::TimedOut)), "{result:?}");
}

#[test]
fn a_peer_that_rings_before_each_sleep_keeps_no_deadline_waiting() {
    let shortly = || Some(Instant::now() + Duration::from_millis(50));
    let (mut server, client, _host) = pair();
    assert_kept(rung_before_each_sleep(client, || {
        server.read_deadline(&mut [0], shortly())
    }));
    let (mut server, client, _host) = pair();
    assert_kept(rung_before_each_sleep(client, || {
        server.halves().0.recv(&mut [0; 9], shortly())
    }));
    let (mut server, client, _host) = pair();
    server.write_all(&[0; 2048]).unwrap();
    assert_kept(rung_before_each_sleep(client, || {
        server.write_deadline(b"x", shortly())
    }));
    let (mut server, client, _host) = pair();
    assert_kept(rung_before_each_sleep(client, || {
        server.halves().0.read_chunk(shortly()).map(drop)
    }));
    let (mut server, client, _host) = pair();
    server.write_all(&[0; 2048]).unwrap();
    assert_kept(rung_before_each_sleep(client, || {
        server.halves().1.send(b"x", shortly())
    }));
    let (mut server, client, _host) = pair();
    server.write_all(&[0; 2048]).unwrap();
    assert_kept(rung_before_each_sleep(client, || {
        server.halves().1.write_chunk(1, shortly()).map(drop)
    }));
}

#[test]
fn a_peer_that_makes_little_room_before_each_sleep_keeps_no_deadline_waiting() {
    let (mut server, mut client, _host) = pair();
    let (written, took) = before_each_sleep(
        move || client.read_exact(&mut [0]).unwrap(),
        || {
            let deadline = Instant::now() + Duration::from_millis(50);
            server.write_deadline(&[0; 1 << 20], Some(deadline))
        },
    );
    assert!(took < Duration::from_secs(2), "{took:?}");
    let written = written.unwrap();
    assert!((2048..1 << 20).contains(&written), "{written}");
}

#[test]
fn a_server_that_takes_no_note_and_rings_before_each_sleep_keeps_no_deadline_waiting() {
    let shortly = || Some(Instant::now() + Duration::from_millis(50));
    let (xen, store, _host) = host();
    let server = ServerBuilder::new(DomId::DOM0, "race").publish(&xen, &store);
    let server = std::rc::Rc::new(server.unwrap());
    let bell = || {
        let server = std::rc::Rc::clone(&server);
        move || server.shared().doorbell.notify().unwrap()
    };
    let builder = ClientBuilder::new(DomId::DOM0, "race");
    let mut client = builder.clone().connect(&xen, &store).unwrap();
    assert_kept(before_each_sleep(bell(), || {
        client.wait_connected(shortly())
    }));
    assert_kept(before_each_sleep(bell(), || {
        client.read_deadline(&mut [0], shortly())
    }));
    assert_kept(before_each_sleep(bell(), || {
        client.write_deadline(b"x", shortly())
    }));
    drop(client);
    let mut line = builder.reconnecting(&xen, &store);
    assert_kept(before_each_sleep(bell(), || {
        line.session(shortly()).map(drop)
    }));
}

#[test]
fn a_server_that_writes_its_node_before_each_sleep_keeps_no_deadline_waiting() {
    let (xen, store, _host) = host();
    let mut server = ServerBuilder::new(DomId::DOM0, "race")
        .publish(&xen, &store)
        .unwrap();
    let mut client = ClientBuilder::new(DomId::DOM0, "race")
        .watch_peer_domain(true)
        .connect(&xen, &store)
        .unwrap();
    server.wait_connected(None).unwrap();
    client.wait_connected(None).unwrap();
    let value = store.read("race/ring-ref").unwrap();
    let deadline = Instant::now() + Duration::from_millis(50);
    assert_kept(before_each_sleep(
        move || store.write("race/ring-ref", &value).unwrap(),
        || client.read_deadline(&mut [0], Some(deadline)),
    ));
}

/// A client that has bound the port of the server at `race`, and does nothing more.
fn bound_client(xen: &Xen, store: &Store) -> BoundPort {
    let port = store.read_str("race/event-channel").unwrap();
    let port = Port::new(port.parse().unwrap());
    let events = EventChannels::open(xen).unwrap();
    events.bind_interdomain(DomId::DOM0, port).unwrap()
}

#[test]
fn a_client_that_rings_and_does_not_come_keeps_no_deadline_waiting() {
    let shortly = || Some(Instant::now() + Duration::from_millis(50));
    let (xen, store, _host) = host();
    let mut server = ServerBuilder::new(DomId::DOM0, "race")
        .publish(&xen, &store)
        .unwrap();
    let bell = bound_client(&xen, &store);
    assert_kept(before_each_sleep(
        move || bell.notify().unwrap(),
        || server.wait_connected(shortly()),
    ));
    drop(server);

    let mut listener = Listener::builder().listen(&xen, &store).unwrap();
    listener.bind(DomId::DOM0, "race").unwrap();
    let bell = bound_client(&xen, &store);
    assert_kept(before_each_sleep(
        move || bell.notify().unwrap(),
        || listener.accept(shortly()),
    ));
}

#[test]
fn paced_events_bound_how_often_a_storm_wakes() {
    for paced in [false, true] {
        let (mut server, client, _host) = pair();
        if paced {
            server.set_event_pacer(Some(EventPacer::new(Duration::from_millis(50))));
        }
        let sleeps = std::rc::Rc::new(std::cell::Cell::new(0));
        let (count, began) = (std::rc::Rc::clone(&sleeps), Instant::now());
        PEER.set(Some(Box::new(move || {
            client.shared().doorbell.notify().unwrap();
            count.set(count.get() + 1);
            began.elapsed() < Duration::from_secs(4)
        })));
        let deadline = Instant::now() + Duration::from_millis(300);
        let result = server.read_deadline(&mut [0], Some(deadline));
        PEER.set(None);
        assert_kept((result, began.elapsed()));
        // The burst, and one each 50 ms; without a pacer, thousands.
        let most = 2 + EventPacer::BURST + 300 / 50;
        assert_eq!(sleeps.get() <= most, paced, "{}", sleeps.get());
    }
}
