//! The moment between finding nothing and asking to be told, made to order.
//!
//! In that moment the peer may act without knowing that it should ring. Who does not look once more
//! after asking sleeps for ever; the window is a few nanoseconds wide, so no test finds it by
//! chance.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::io::{Read, Write};

use xen_store::server::{Config, Server as StoreServer};
use xen_sys::DomId;
use xen_sys::sim::Simulation;

use crate::{Channel, Client, Server};

type Peer = Box<dyn FnOnce()>;

thread_local! {
    static PEER: RefCell<Option<Peer>> = const { RefCell::new(None) };
}

/// Called in the moment itself.
pub(crate) fn window() {
    let peer = PEER.with_borrow_mut(Option::take);
    if let Some(act) = peer {
        act();
    }
}

fn in_the_window(act: impl FnOnce() + 'static) {
    PEER.set(Some(Box::new(act)));
}

fn pair() -> (Channel, Channel, (Simulation, StoreServer)) {
    let host = Simulation::start().unwrap();
    let stored = StoreServer::start(Config::new()).unwrap();
    let store = stored.connect(DomId::DOM0).unwrap();
    store.write("domid", "0").unwrap();
    let xen = host.xen(DomId::DOM0).unwrap();
    let mut server = Server::builder(DomId::DOM0, "race")
        .listen(&xen, &store)
        .unwrap();
    let mut client = Client::builder(DomId::DOM0, "race")
        .connect(&xen, &store)
        .unwrap();
    server.wait_connected(None).unwrap();
    client.wait_connected(None).unwrap();
    (server, client, (host, stored))
}

#[test]
fn bytes_that_come_before_the_request_are_read() {
    let (mut server, mut client, _host) = pair();
    // Nobody has asked to be told of the second byte: it rings no bell.
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
    // The peer's arrival and the first byte have rung; let that be over.
    server.acknowledge_events().unwrap();
    in_the_window(move || {
        client.write_all(b"y").unwrap();
        std::mem::forget(client);
    });
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let mut byte = [0];
    assert_eq!(server.read_deadline(&mut byte, Some(deadline)).unwrap(), 1);
}

/// Found by the soak: `space` asks for nothing, and what was read before `wait` asked rang no bell.
#[test]
fn a_wait_sees_the_space_that_came_before_it() {
    let (mut server, mut client, _host) = pair();
    client.write_all(&[0; 1024]).unwrap();
    assert_eq!(client.space().unwrap(), 0);
    // Whatever has rung so far is over.
    client.acknowledge_events().unwrap();
    server.read_exact(&mut [0; 100]).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    assert!(client.wait(Some(deadline)).unwrap());
    assert_eq!(client.space().unwrap(), 100);
}
