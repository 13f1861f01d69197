//! How a client finds a server, or does not.

use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use xen_store::Permissions;
use xen_store_server::Quota;
use xen_sys::DomId;
use xen_sys::sim::{Fault, Op};
use xen_vchan::{ClientBuilder, Error, PeerState, ServerBuilder};

use crate::host::{PATH, TestHost, poll_one, soon};
use crate::hostile::scribble;

#[test]
fn without_a_server_the_client_fails_at_once_and_names_where_it_looked() {
    let host = TestHost::new();
    let (xen, store) = host.domu();
    match ClientBuilder::new(DomId::DOM0, PATH).connect(&xen, &store) {
        Err(Error::NoServer { path }) => assert_eq!(path, PATH),
        other => panic!("{other:?}"),
    }
    host.end();
}

#[test]
fn waiting_for_a_server_ends_at_the_deadline() {
    let host = TestHost::new();
    let (xen, store) = host.domu();
    let begin = Instant::now();
    let waited = ClientBuilder::new(DomId::DOM0, PATH)
        .wait_for_server(true)
        .timeout(Duration::from_millis(50))
        .connect(&xen, &store);
    assert!(matches!(waited, Err(Error::TimedOut)), "{waited:?}");
    assert!(begin.elapsed() >= Duration::from_millis(50));
    host.end();
}

#[test]
fn a_waiting_client_finds_the_server_that_comes() {
    let host = TestHost::new();
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            let (xen, store) = host.domu();
            let builder = ClientBuilder::new(DomId::DOM0, PATH).wait_for_server(true);
            builder
                .timeout(Duration::from_secs(20))
                .connect(&xen, &store)
                .unwrap()
        });
        let mut server = host.listen(0, 0);
        server.wait_connected(soon()).unwrap();
        let mut client = client.join().unwrap();
        client.wait_connected(soon()).unwrap();
        drop((server, client));
    });
    host.end();
}

#[test]
fn a_second_client_waits_until_the_first_has_left() {
    let host = TestHost::new();
    // The second may come before the server has seen the first leave.
    let mut server = host.listen_with(0, 0, true);
    let mut first = host.connect();
    server.wait_connected(soon()).unwrap();
    first.wait_connected(soon()).unwrap();
    let (xen, store) = host.domu();
    let at_once = ClientBuilder::new(DomId::DOM0, PATH).connect(&xen, &store);
    assert!(
        matches!(at_once, Err(Error::Unreachable { .. })),
        "{at_once:?}"
    );
    thread::scope(|scope| {
        let second = scope.spawn(|| {
            let builder = ClientBuilder::new(DomId::DOM0, PATH).wait_for_server(true);
            builder
                .timeout(Duration::from_secs(20))
                .connect(&xen, &store)
                .unwrap()
        });
        drop(first);
        let mut second = second.join().unwrap();
        crate::host::wait_gone(&mut server);
        server.next_client().unwrap();
        server.wait_connected(soon()).unwrap();
        second.wait_connected(soon()).unwrap();
        drop((server, second));
    });
    host.end();
}

#[test]
fn a_path_longer_than_sixty_four_bytes_works() {
    let host = TestHost::new();
    let path = format!("/local/domain/0/data/{}", "a-long-name/".repeat(20));
    let (xen, store) = host.dom0();
    let server = ServerBuilder::new(host.guest, &path)
        .publish(&xen, &store)
        .unwrap();
    let (xen, store) = host.domu();
    let client = ClientBuilder::new(DomId::DOM0, &path)
        .connect(&xen, &store)
        .unwrap();
    drop((server, client));
    assert!(!host.dom0().1.exists(path.trim_end_matches('/')).unwrap());
    host.end();
}

/// 2048 bytes below a domain's folder are what a store takes, the longest node's name included.
#[test]
fn the_longest_path_works_and_one_byte_more_is_an_error_that_leaves_nothing() {
    let host = TestHost::new();
    let root = "/local/domain/0/data/";
    let longest = "/local/domain/0/".len() + 2048 - root.len() - "/accepts-sessions".len();
    let (xen, store) = host.dom0();
    for (len, fits) in [(longest, true), (longest + 1, false), (4000, false)] {
        let folders = format!("{}/", "p".repeat(99)).repeat(len / 100);
        let path = format!("{root}{folders}{}", "p".repeat(len % 100));
        let listening = ServerBuilder::new(host.guest, &path).publish(&xen, &store);
        if fits {
            let server = listening.unwrap();
            let (xen, store) = host.domu();
            let client = ClientBuilder::new(DomId::DOM0, &path);
            drop((server, client.connect(&xen, &store).unwrap()));
        } else {
            assert!(matches!(listening, Err(Error::Store(_))), "{listening:?}");
        }
        // The folders above it were made by the store and stay, as with libxenvchan.
        assert!(!matches!(store.exists(&path), Ok(true)), "left behind");
    }
    drop(xen);
    host.end();
}

#[test]
fn a_server_that_nobody_came_to_leaves_nothing() {
    let host = TestHost::new();
    drop(host.listen(1 << 16, 0));
    host.end();
}

/// A store lets a guest have few transactions at once, and none of them is needed here.
#[test]
fn publishing_and_finding_take_no_transaction() {
    let host = TestHost::new();
    let few = Quota {
        transactions: 1,
        ..Quota::default()
    };
    host.stored.set_quota(host.guest, Some(few));
    let (xen, store) = host.domu();
    let mut taken = Vec::new();
    while let Ok(transaction) = store.transaction() {
        taken.push(transaction);
        assert!(taken.len() < 5, "the quota does not count");
    }
    let path = format!("/local/domain/{}/data/own", host.guest);
    let server = ServerBuilder::new(DomId::DOM0, &path)
        .publish(&xen, &store)
        .unwrap();
    let other = host.listen(0, 0);
    let client = ClientBuilder::new(DomId::DOM0, PATH)
        .connect(&xen, &store)
        .unwrap();
    drop((server, other, client, taken));
    assert!(!store.exists(&path).unwrap());
    host.end();
}

#[test]
fn rings_above_a_mebibyte_are_refused() {
    let host = TestHost::new();
    let (xen, store) = host.dom0();
    let refused = ServerBuilder::new(host.guest, PATH)
        .rings((1 << 20) + 1, 0)
        .publish(&xen, &store);
    match refused {
        Err(Error::TooLarge { asked, limit, .. }) => {
            assert_eq!((asked, limit), ((1 << 20) + 1, 1 << 20));
        }
        other => panic!("{other:?}"),
    }
    host.end();
}

#[test]
fn the_nodes_of_a_later_server_survive_the_end_of_an_earlier_one() {
    let host = TestHost::new();
    let first = host.listen(0, 0);
    let second = host.listen(0, 0);
    drop(first);
    let client = host.connect();
    assert_eq!(second.peer().unwrap(), PeerState::Connected);
    drop((second, client));
    host.end();
}

#[test]
fn nodes_that_hold_no_number_are_the_servers_fault() {
    let host = TestHost::new();
    let (_, store) = host.dom0();
    let node = format!("{PATH}/ring-ref");
    let (xen, domu) = host.domu();
    let long = [b"8".as_slice(), &[b'\n'; 1999]].concat();
    for (value, shown) in [
        (b"eight".as_slice(), r#"holds no valid number: "eight""#),
        (b"4294967296", r#"holds no valid number: "4294967296""#),
        (b"8\x1b[2J", r#"holds no valid number: "8\x1b[2J""#),
        (
            &[long.as_slice(), b"!"].concat(),
            r#"\n" and 1937 bytes more"#,
        ),
    ] {
        store.write(&node, value).unwrap();
        let readable = Permissions::owner_none(DomId::DOM0).grant_read(host.guest);
        store.set_permissions(&node, &readable).unwrap();
        let refused = ClientBuilder::new(DomId::DOM0, PATH).connect(&xen, &domu);
        let Err(
            error @ Error::Node {
                key: "ring-ref", ..
            },
        ) = refused
        else {
            panic!("{refused:?}");
        };
        assert!(error.to_string().ends_with(shown), "{error}");
        assert_eq!(std::io::Error::from(error).kind(), ErrorKind::InvalidData);
    }
    drop(xen);
    store.rm(PATH).unwrap();
    host.end();
}

/// The nodes of a server that was killed, and the next one has just got the same port and grant.
#[test]
fn a_page_in_the_making_is_no_server_yet() {
    let host = TestHost::new();
    // Where the orders are, and the first grant of the list.
    for (offset, unfinished) in [(16, &[0; 4]), (24, &[0; 4])] {
        let old = host.listen(4096, 4096);
        let (xen, store) = host.domu();
        scribble(&host, offset, unfinished);
        let builder = ClientBuilder::new(DomId::DOM0, PATH);
        let at_once = builder.clone().connect(&xen, &store);
        assert!(
            matches!(at_once, Err(Error::NoServer { .. })),
            "{at_once:?}"
        );
        let mut waits = builder.start(&xen, &store).unwrap();
        assert!(matches!(waits.try_finish(), Err(Error::WouldBlock)));
        let new = host.listen(4096, 4096);
        assert!(poll_one(&waits, 20_000), "nobody said that it is there");
        drop((waits.try_finish().unwrap(), waits, new, old));
    }
    host.end();
}

#[test]
fn the_nodes_of_a_killed_server_go_before_the_next_one_has_a_port() {
    let host = TestHost::new();
    let (xen, store) = host.dom0();
    let node = format!("{PATH}/ring-ref");
    for op in [Op::BindUnbound, Op::Share] {
        store.write(&node, "8").unwrap();
        host.sim.inject(Fault::Fail {
            domain: DomId::DOM0,
            op,
            nth: 1,
            errno: nix::errno::Errno::ENOSPC as i32,
        });
        let refused = ServerBuilder::new(host.guest, PATH).publish(&xen, &store);
        assert!(matches!(refused, Err(Error::Os(_))), "{refused:?}");
        assert!(!store.exists(&node).unwrap());
    }
    store.rm(PATH).unwrap();
    drop(xen);
    host.end();
}
