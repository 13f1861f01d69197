//! Many clients at once, and those that are not worth waiting for.

use std::io::{Read, Write};
use std::thread;

use xen_evtchn::EventChannels;
use xen_store::Store;
use xen_sys::{DomId, GrantRef, Port, Xen};
use xen_vchan::{Channel, ClientBuilder, Error, Listener, PeerState, service_path};

use crate::host::{TestHost, bytes, poll_one, read_all, soon};

fn path(client: DomId) -> String {
    service_path(DomId::DOM0, client, "echo").unwrap()
}

fn listener(host: &TestHost, clients: usize) -> Listener {
    let (xen, store) = host.dom0();
    let builder = Listener::builder().clients_per_domain(clients);
    let mut listener = builder.listen(&xen, &store).unwrap();
    listener.bind(host.guest, path(host.guest)).unwrap();
    listener
}

fn domain(host: &TestHost, guest: DomId) -> (Xen, Store) {
    let store = host.stored.connect(guest).unwrap();
    (host.sim.xen(guest).unwrap(), store)
}

fn dial(host: &TestHost, guest: DomId) -> Channel {
    let (xen, store) = domain(host, guest);
    let builder = ClientBuilder::new(DomId::DOM0, path(guest)).wait_for_server(true);
    builder
        .deadline(soon().unwrap())
        .connect(&xen, &store)
        .unwrap()
}

fn echo(mut channel: Channel) {
    let mut buf = [0; 3000];
    loop {
        match channel.read(&mut buf).unwrap() {
            0 => return,
            len => channel.write_all(&buf[..len]).unwrap(),
        }
    }
}

/// Nothing mapped, and no service left in the store.
fn end(host: TestHost) {
    let (_, store) = host.dom0();
    for guest in store
        .directory("/local/domain/0/data/vchan")
        .unwrap_or_default()
    {
        let names = store.directory(&format!("/local/domain/0/data/vchan/{guest}"));
        assert_eq!(names.unwrap(), [""; 0], "left behind");
    }
    host.end();
}

#[test]
fn clients_of_two_domains_are_served_at_once() {
    let host = TestHost::new();
    let other = host.sim.add_domain().unwrap();
    host.stored.add_domain(other);
    let mut listener = listener(&host, 3);
    listener.bind(other, path(other)).unwrap();
    assert!(matches!(
        listener.bind(other, path(other)),
        Err(Error::Invalid { .. })
    ));
    thread::scope(|scope| {
        for guest in [host.guest, other, host.guest, other, host.guest, other] {
            let host = &host;
            scope.spawn(move || {
                let mut channel = dial(host, guest);
                for round in 0..20 {
                    let question = bytes(round * 777, 777);
                    channel.write_all(&question).unwrap();
                    let mut answer = vec![0; 777];
                    channel.read_exact(&mut answer).unwrap();
                    assert_eq!(answer, question);
                }
            });
        }
        let mut from = Vec::new();
        for _ in 0..6 {
            let channel = listener.accept(soon()).unwrap();
            from.push(channel.peer_domain());
            scope.spawn(move || echo(channel));
        }
        from.sort();
        assert_eq!(from, [[host.guest; 3], [other; 3]].concat());
    });
    assert_eq!(listener.clients(), 0);
    drop(listener);
    end(host);
}

#[test]
fn silent_clients_hold_up_nobody_and_a_domain_gets_its_number_and_no_more() {
    let host = TestHost::new();
    let other = host.sim.add_domain().unwrap();
    host.stored.add_domain(other);
    let mut listener = listener(&host, 2);
    listener.bind(other, path(other)).unwrap();
    // Both places of the first domain, taken by clients that send nothing.
    let silent = [dial(&host, host.guest), {
        let first = listener.accept(soon()).unwrap();
        std::mem::forget(first.peer());
        let second = dial(&host, host.guest);
        let accepted = [first, listener.accept(soon()).unwrap()];
        assert_eq!(listener.clients(), 2);
        assert!(matches!(listener.try_accept(), Err(Error::WouldBlock)));
        // No place, no ring.
        let (xen, store) = domain(&host, host.guest);
        let third = ClientBuilder::new(DomId::DOM0, path(host.guest)).connect(&xen, &store);
        assert!(matches!(third, Err(Error::NoServer { .. })), "{third:?}");

        // The other domain is served as before.
        let mut talker = dial(&host, other);
        let mut served = listener.accept(soon()).unwrap();
        assert_eq!(served.peer_domain(), other);
        talker.write_all(b"hello").unwrap();
        let mut got = [0; 5];
        served.read_exact(&mut got).unwrap();
        drop((talker, served));

        // A place that is given up wakes the listener, and the third client finds a ring.
        thread::scope(|scope| {
            let third = scope.spawn(|| dial(&host, host.guest));
            drop(accepted);
            assert!(poll_one(&listener, 20_000), "nobody told the listener");
            let accepted = listener.accept(soon()).unwrap();
            assert_eq!(accepted.peer().unwrap(), PeerState::Connected);
            drop(third.join().unwrap());
            drop(accepted);
        });
        second
    }];
    drop((silent, listener));
    end(host);
}

#[test]
fn a_client_that_lies_before_it_is_accepted_costs_its_own_ring() {
    let host = TestHost::new();
    let mut listener = listener(&host, 2);
    let (xen, store) = domain(&host, host.guest);
    for _ in 0..3 {
        let number = |key: &str| -> u32 {
            let node = format!("{}/{key}", path(host.guest));
            store.read_str(&node).unwrap().parse().unwrap()
        };
        let page = GrantRef::new(number("ring-ref"));
        host.sim.scribble(DomId::DOM0, page, 20, &[99]).unwrap();
        let events = EventChannels::open(&xen).unwrap();
        let port = Port::new(number("event-channel"));
        let port = events.bind_interdomain(DomId::DOM0, port).unwrap();
        port.notify().unwrap();
        assert!(poll_one(&listener, 20_000));
        assert!(matches!(listener.try_accept(), Err(Error::WouldBlock)));
        assert_eq!(listener.clients(), 0);
        drop((port, events));
    }
    let mut honest = dial(&host, host.guest);
    let mut accepted = listener.accept(soon()).unwrap();
    honest.write_all(b"hello").unwrap();
    let mut got = [0; 5];
    accepted.read_exact(&mut got).unwrap();
    drop((honest, accepted, listener, xen));
    end(host);
}

#[test]
fn a_client_that_came_wrote_and_left_is_read_and_a_channel_is_one_session() {
    let host = TestHost::new();
    let mut listener = listener(&host, 4);
    // A libxenvchan client does not wait for the server's note before it writes.
    let (xen, store) = domain(&host, host.guest);
    let node = format!("{}/accepts-sessions", path(host.guest));
    host.dom0().1.rm(&node).unwrap();
    let builder = ClientBuilder::new(DomId::DOM0, path(host.guest));
    let mut hasty = builder.connect(&xen, &store).unwrap();
    hasty.write_all(b"in passing").unwrap();
    drop(hasty);
    let mut accepted = listener.accept(soon()).unwrap();
    assert_eq!(read_all(&mut accepted), b"in passing");
    assert!(matches!(accepted.next_client(), Err(Error::Invalid { .. })));

    // The next ring is at the same place.
    let client = dial(&host, host.guest);
    let second = listener.accept(soon()).unwrap();
    assert_eq!(listener.clients(), 2);
    drop((accepted, client, second));

    listener.stop(&path(host.guest));
    let gone = ClientBuilder::new(DomId::DOM0, path(host.guest)).connect(&xen, &store);
    assert!(matches!(gone, Err(Error::NoServer { .. })), "{gone:?}");
    drop((listener, xen));
    end(host);
}

#[test]
fn when_pages_run_out_the_listener_reports_it_and_recovers() {
    use xen_sys::sim::{Fault, Op};
    let host = TestHost::new();
    let mut listener = listener(&host, 4);
    let first = dial(&host, host.guest);
    host.sim.inject(Fault::Fail {
        domain: DomId::DOM0,
        op: Op::Share,
        nth: 1,
        errno: nix::errno::Errno::ENOSPC as i32,
    });
    // The client that came is served; only the fresh ring is missing.
    let accepted = listener.accept(soon()).unwrap();
    let second = dial_later(&host, || {
        assert!(matches!(listener.accept(soon()), Ok(_) | Err(Error::Os(_))));
    });
    drop((first, accepted, second, listener));
    end(host);
}

/// A client that waits while `serve` runs.
fn dial_later(host: &TestHost, serve: impl FnOnce()) -> Channel {
    thread::scope(|scope| {
        let client = scope.spawn(|| dial(host, host.guest));
        serve();
        client.join().unwrap()
    })
}

#[test]
fn a_service_path_is_that_of_the_ocaml_library() {
    assert_eq!(
        service_path(DomId::DOM0, DomId::new(7), "qubes-1_a").unwrap(),
        "/local/domain/0/data/vchan/7/qubes-1_a"
    );
    for name in ["", "a/b", "..", "a b", "ä"] {
        let refused = service_path(DomId::DOM0, DomId::new(7), name);
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{name}");
    }
}
