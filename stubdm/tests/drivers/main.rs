//! The loops over sockets and a stand-in vchan, stepped by hand: no thread, no clock, no sleep.
//!
//! A part is called only if `poll` would have woken it or its deadline has passed, so a
//! notification that nobody asked for is a hang here, and fails the test.

#![allow(clippy::unwrap_used)]

mod bench;
mod fake;
mod filtered;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use serde_json::json;
use stubdm::libxl::payload::Payload;
use stubdm::proxy::clients::Clients;
use stubdm::proxy::driver;
use stubdm::rt::event_loop::Progress;

use bench::Bench;
use fake::client::Client;
use fake::{Connector, ServerEnd, is_woken};

#[test]
fn two_hundred_clients_in_turn() {
    for ours in [true, false] {
        let mut bench = Bench::new(ours);
        for n in 0..200 {
            bench.converse(&format!("command-{n}"));
        }
        bench.settle();
        assert_eq!(bench.qemu.accepted, 200, "one monitor session each");
        assert!(bench.qemu.connections.is_empty(), "none is left open");
    }
}

#[test]
fn a_client_that_leaves_at_any_moment_leaves_nothing_to_the_next() {
    for ours in [true, false] {
        for moment in 0..60 {
            let mut bench = Bench::new(ours);
            bench.converse("first");
            bench.leave_after(moment);
            bench.converse("second");
            bench.converse("third");
        }
    }
}

#[test]
fn a_far_side_that_sleeps_through_the_change_of_clients_is_found_out() {
    for ours in [true, false] {
        for moment in 0..40 {
            let mut bench = Bench::new(ours);
            bench.converse("first");
            let mut client = bench.client();
            bench.receive(&mut client);
            client.send(&json!({"execute": "qmp_capabilities", "id": 2_020_371_713}));
            client.send(&json!({"execute": "big", "id": 2_020_371_712}));
            for _ in 0..moment {
                bench.step();
            }
            let connections = bench.page.borrow().connections;
            bench.far_runs = false;
            client.stream.write_all(b"{\"execute\": \"half").unwrap();
            drop(client);
            let client = bench.client();
            // The far side runs again only when the next client's vchan is up.
            assert!(
                bench.run(Duration::from_secs(5), |b| b.page.borrow().connections
                    > connections)
            );
            bench.far_runs = true;
            drop(client);
            bench.converse("second");
        }
    }
}

#[test]
fn a_client_waits_for_a_server_that_is_not_there_yet() {
    let mut bench = Bench::ours();
    bench.page.borrow_mut().server_live = false;
    let mut client = bench.client();
    bench.run(Duration::from_secs(30), |_| false);
    assert_eq!(client.message(), None);
    assert!(!client.ended, "never closed first");
    bench.page.borrow_mut().server_live = true;
    assert!(bench.receive(&mut client).get("QMP").is_some());
}

#[test]
fn a_client_that_gives_up_on_a_missing_server_does_not_hold_up_the_next() {
    let mut bench = Bench::ours();
    bench.page.borrow_mut().server_live = false;
    for _ in 0..50 {
        let client = bench.client();
        bench.settle();
        drop(client);
    }
    bench.page.borrow_mut().server_live = true;
    bench.converse("after all");
}

#[test]
fn a_lost_server_ends_the_session_and_the_next_finds_the_new_one() {
    let mut bench = Bench::ours();
    let mut client = bench.client();
    bench.receive(&mut client);
    {
        let page = &mut *bench.page.borrow_mut();
        page.server_live = false;
        let wake = &mut page.client_bell;
        fake::ring(wake);
    }
    assert!(
        bench.run(Duration::from_secs(5), |_| client.message().is_none()
            && client.ended)
    );
    bench.page.borrow_mut().server_live = true;
    bench.converse("again");
}

#[test]
fn a_domain_that_is_gone_ends_the_proxy() {
    let mut bench = Bench::ours();
    {
        let page = &mut *bench.page.borrow_mut();
        page.server_live = false;
        page.domain_lives = false;
    }
    let _client = bench.client();
    assert!(is_woken(&bench.proxy.interests()));
    assert_eq!(bench.proxy.turn(bench.now).unwrap(), Progress::Done);
}

#[test]
fn a_monitor_that_closes_never_greets_the_same_client_twice() {
    let mut bench = Bench::ours();
    let mut client = bench.client();
    bench.receive(&mut client);
    client.send(&json!({"execute": "qmp_capabilities", "id": 1}));
    bench.receive(&mut client);
    bench.qemu.connections.clear();
    client.send(&json!({"execute": "stop", "id": 2}));
    bench.settle();
    assert_eq!(client.message(), None);
    assert!(!client.ended);
    drop(client);
    bench.converse("next");
}

#[test]
fn a_large_answer_to_a_slow_reader_arrives_whole() {
    let mut bench = Bench::ours();
    let mut client = bench.client();
    bench.receive(&mut client);
    client.send(&json!({"execute": "qmp_capabilities", "id": 1}));
    bench.receive(&mut client);
    client.send(&json!({"execute": "big", "id": 2}));
    // It does not read: everything becomes idle without a busy loop.
    bench.settle();
    let answer = bench.receive(&mut client);
    assert_eq!(answer["return"].as_str().unwrap().len(), 300_000);
}

#[test]
fn many_clients_at_once_are_served_one_after_another() {
    let mut bench = Bench::ours();
    let mut clients: Vec<Client> = (0..20).map(|_| bench.client()).collect();
    // Some have already left before their turn.
    clients.retain_mut({
        let mut n = 0;
        move |_| {
            n += 1;
            n % 3 != 0
        }
    });
    for mut client in clients {
        assert!(bench.receive(&mut client).get("QMP").is_some());
    }
    bench.converse("last");
}

/// As with no descriptors left: who waits keeps the socket readable.
#[test]
fn a_socket_that_lets_nobody_in_is_looked_at_once_a_second() {
    let policy = stubdm_qmp::policy::Policy::built_in().unwrap();
    for policy in [Some(policy), None] {
        let (no_listener, _far) = UnixStream::pair().unwrap();
        let listener = UnixListener::from(OwnedFd::from(no_listener));
        let (clients, connector) = (
            Clients::Socket(listener.into()),
            Connector(fake::page(true)),
        );
        let mut proxy = driver(
            clients,
            connector,
            Payload::Qmp,
            policy.map(fake::filter),
            7,
        );
        let now = Instant::now();
        for _ in 0..3 {
            let second = Some(now + Duration::from_secs(1));
            assert_eq!(proxy.turn(now).unwrap(), Progress::Sleep(second));
            assert_eq!(proxy.interests().len(), 0);
        }
    }
}

#[test]
fn stdin_and_stdout_are_one_client() {
    let page = fake::page(true);
    let (near, mut far) = UnixStream::pair().unwrap();
    let local = stubdm::rt::stream::Stream::socket(near.into()).unwrap();
    let clients = Clients::Once(Some(local));
    let mut proxy = driver(clients, Connector(page.clone()), Payload::Opaque, None, 7);
    let mut vchan = ServerEnd::new(&page);
    let now = Instant::now();
    far.write_all(b"\x00anything\xff").unwrap();
    let mut got = Vec::new();
    let mut buffer = [0; 64];
    for _ in 0..20 {
        assert_ne!(proxy.turn(now).unwrap(), Progress::Done);
        use stubdm::rt::transport::Transport as _;
        if let Ok(count) = vchan.try_read(&mut buffer) {
            got.extend_from_slice(&buffer[..count]);
        }
    }
    assert_eq!(got, b"\x00anything\xff");
    far.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(
        (0..20).any(|_| proxy.turn(now).unwrap() == Progress::Done),
        "ends at the end of input"
    );
    assert!(far.as_fd().try_clone_to_owned().is_ok());
}
