//! Clients of libxenvchan, several: one after another on one ring, and many at once.
//!
//! Each has a key of its own, so that a byte of another's session would be a wrong one.

use std::thread;
use std::time::Duration;

use xen_sys::DomId;
use xen_vchan::{Backoff, ClientBuilder, Listener};

use crate::host::{PATH, Peer, TestHost, wait_gone};
use crate::stream::{receive, send, soon, stream_both_ways};

/// Each way.
const BYTES: u64 = 300_000;
/// More than the one that is killed will see.
const ENDLESS: u64 = 1 << 40;

/// A C client, connected, with `bytes` to send and to receive.
fn client(host: &TestHost, key: u64, bytes: u64) -> Peer {
    let (key, bytes) = (key.to_string(), bytes.to_string());
    let options = ["--key", &key, "--send", &bytes, "--recv", &bytes];
    let mut client = host.c_peer("client", &host.guest_path(), &options);
    assert_eq!(client.line(), "connected");
    client
}

fn done() -> String {
    format!("ok sent={BYTES} received={BYTES}")
}

#[test]
fn c_clients_one_after_another_on_fresh_rings() {
    one_after_another(false);
}

#[test]
fn c_clients_one_after_another_on_the_same_ring() {
    one_after_another(true);
}

fn one_after_another(reuse: bool) {
    let host = TestHost::new();
    let mut ours = host.serve_with(4096, reuse);
    for round in 0..6 {
        let key = 10 * round;
        if round % 3 == 1 {
            // Killed with bytes of its own and of ours in the rings.
            let c = client(&host, key, ENDLESS);
            ours.wait_connected(soon()).unwrap();
            send(&mut ours, key, 100_000).unwrap();
            assert_eq!(receive(&mut ours, key + 1, 0..50_001).unwrap(), 50_001);
            c.kill();
        } else {
            let c = client(&host, key, BYTES);
            ours.wait_connected(soon()).unwrap();
            stream_both_ways(&mut ours, BYTES, key, key + 1);
            c.finish(&done());
        }
        assert_eq!(ours.sessions(), round + 1);
        wait_gone(&mut ours);
        ours.next_client().unwrap();
    }
    drop(ours);
    host.end();
}

#[test]
fn c_clients_at_once_have_a_ring_each_and_one_that_is_killed_costs_its_own() {
    let host = TestHost::new();
    let (xen, store) = host.guest();
    let builder = Listener::builder().rings(4096, 4096).clients_per_domain(5);
    let mut listener = builder.listen(&xen, &store).unwrap();
    listener.bind(DomId::DOM0, host.guest_path()).unwrap();
    thread::scope(|scope| {
        let (mut last_ring, mut rest) = (Vec::new(), Vec::new());
        let node = format!("{}/ring-ref", host.guest_path());
        for key in [10, 20, 30, 40, 50, 60] {
            let ring = store.read(&node).unwrap();
            assert_ne!(ring, last_ring, "a ring on offer twice");
            last_ring = ring;
            // The second and the fifth are killed in the middle of their streams.
            let killed = key % 30 == 20;
            let c = client(&host, key, if killed { ENDLESS } else { BYTES });
            let mut ours = listener.accept(soon()).unwrap();
            if killed {
                send(&mut ours, key, 100_000).unwrap();
                let (rx, _) = ours.halves();
                assert_eq!(receive(&mut *rx, key + 1, 0..50_001).unwrap(), 50_001);
                c.kill();
                receive(rx, key + 1, 50_001..ENDLESS).unwrap();
            } else {
                rest.push((key, c, ours));
            }
        }
        assert_eq!(listener.clients(), 4);
        for (key, c, mut ours) in rest {
            scope.spawn(move || {
                stream_both_ways(&mut ours, BYTES, key, key + 1);
                let rest = receive(&mut ours, key + 1, BYTES..ENDLESS);
                assert_eq!(rest.unwrap(), BYTES);
                c.finish(&done());
            });
        }
    });
    assert_eq!(listener.clients(), 0);
    drop((listener, xen, store));
    host.end();
}

#[test]
fn a_client_of_ours_dials_again_when_a_c_server_comes_back() {
    let host = TestHost::new();
    let (xen, store) = host.guest();
    let quick = Backoff::new(Duration::from_millis(1), Duration::from_millis(20));
    let builder = ClientBuilder::new(DomId::DOM0, PATH);
    let mut line = builder.reconnecting(&xen, &store).backoff(quick);
    let total = BYTES.to_string();
    for round in 0..4 {
        let key = 10 * round;
        let word = key.to_string();
        let mut c = host.c_peer(
            "server",
            PATH,
            &["--key", &word, "--send", &total, "--recv", &total],
        );
        let ours = line.session(soon()).unwrap();
        assert_eq!(c.line(), "connected");
        if round % 2 == 1 {
            stream_both_ways(ours, BYTES, key + 1, key);
            c.finish(&done());
        } else {
            // It leaves its nodes, and no farewell.
            send(&mut *ours, key + 1, 100_000).unwrap();
            c.kill();
            receive(ours, key, 0..ENDLESS).unwrap();
        }
        assert_eq!(line.sessions(), round + 1);
    }
    drop((line, xen, store));
    host.end();
}
