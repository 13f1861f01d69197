//! A peer that scribbles, seen through the whole channel.

use std::io::{Read, Write};

use xen_gnttab::{PageAccess, map};
use xen_sys::{DomId, GrantRef};
use xen_vchan::{Channel, ClientBuilder, Error, Violation};

use crate::host::{PATH, TestHost, bytes, soon};

/// The control page's reference, as published.
fn control(host: &TestHost) -> GrantRef {
    let (_, store) = host.dom0();
    GrantRef::new(
        store
            .read_str(&format!("{PATH}/ring-ref"))
            .unwrap()
            .parse()
            .unwrap(),
    )
}

pub(crate) fn scribble(host: &TestHost, offset: usize, bytes: &[u8]) {
    host.sim
        .scribble(DomId::DOM0, control(host), offset, bytes)
        .unwrap();
}

fn connected(host: &TestHost) -> (Channel, Channel) {
    let (mut server, mut client) = host.pair(0, 0);
    server.wait_connected(soon()).unwrap();
    client.wait_connected(soon()).unwrap();
    (server, client)
}

#[test]
fn a_violation_ends_both_directions_and_stays() {
    let host = TestHost::new();
    let (mut server, client) = connected(&host);
    scribble(&host, 4, &0x7000u32.to_ne_bytes());
    let expected = Violation::Producer {
        prod: 0x7000,
        last: 0,
        cons: 0,
        size: 1024,
    };
    for _ in 0..3 {
        match server.try_read(&mut [0; 10]) {
            Err(Error::Peer(violation)) => assert_eq!(violation, expected),
            other => panic!("{other:?}"),
        }
    }
    match server.try_write(b"x") {
        Err(Error::Peer(violation)) => assert_eq!(violation, expected),
        other => panic!("{other:?}"),
    }
    assert!(matches!(server.peer(), Err(Error::Peer(_))));
    assert!(matches!(server.next_client(), Err(Error::Peer(_))));
    drop((server, client));
    host.end();
}

#[test]
fn a_live_byte_without_meaning_is_reported() {
    let host = TestHost::new();
    let (server, mut client) = connected(&host);
    scribble(&host, 20, &[77]);
    assert!(matches!(
        server.peer(),
        Err(Error::Peer(Violation::Live { value: 77 }))
    ));
    scribble(&host, 21, &[9]);
    assert!(matches!(
        client.try_read(&mut [0]),
        Err(Error::Peer(Violation::Live { value: 9 }))
    ));
    drop((server, client));
    host.end();
}

#[test]
fn orders_and_grants_rewritten_after_the_connection_change_nothing() {
    let host = TestHost::new();
    let (mut server, mut client) = host.pair(4096, 8192);
    scribble(&host, 16, &[0xff; 4]);
    scribble(&host, 24, &[0xff; 1000]);
    for round in 0..20 {
        let question = bytes(round * 3000, 3000);
        client.write_all(&question).unwrap();
        let mut got = vec![0; 3000];
        server.read_exact(&mut got).unwrap();
        assert_eq!(got, question);
        server.write_all(&question).unwrap();
        client.read_exact(&mut got).unwrap();
        assert_eq!(got, question);
    }
    drop((server, client));
    host.end();
}

/// The page is half the server's: its live byte, its cursors and all that it laid down.
#[test]
fn a_client_writes_only_the_words_that_are_its_own() {
    let host = TestHost::new();
    let (xen, _) = host.domu();
    let mut server = host.listen(4096, 4096);
    server.write_all(&bytes(0, 100)).unwrap();
    let page = map(&xen, DomId::DOM0, &[control(&host)], PageAccess::ReadWrite).unwrap();
    let theirs = || {
        let mut all = [0; 4096];
        page.region().copy_out(0, &mut all).unwrap();
        // left.prod, right.cons, its live byte, and the notify bytes, in which both write.
        for own in [4..12, 20..21, 22..24] {
            all[own].fill(0);
        }
        all
    };
    let before = theirs();
    let mut client = host.connect();
    server.wait_connected(soon()).unwrap();
    client.write_all(&bytes(0, 3000)).unwrap();
    client.read_exact(&mut [0; 50]).unwrap();
    client.shutdown().unwrap();
    drop(client);
    assert_eq!(theirs(), before);
    drop((page, server, xen));
    host.end();
}

#[test]
fn orders_that_overlap_are_refused_by_the_client() {
    for (left, right) in [(10u16, 10u16), (10, 20), (9, 12), (12, 21), (65535, 0)] {
        let host = TestHost::new();
        let server = host.listen(0, 0);
        let mut orders = left.to_ne_bytes().to_vec();
        orders.extend_from_slice(&right.to_ne_bytes());
        scribble(&host, 16, &orders);
        let (xen, store) = host.domu();
        let refused = ClientBuilder::new(DomId::DOM0, PATH).connect(&xen, &store);
        assert!(
            matches!(refused, Err(Error::Peer(_))),
            "{left} {right}: {refused:?}"
        );
        drop(server);
        host.end();
    }
}

#[test]
fn a_grant_list_of_nonsense_is_an_error_and_nothing_stays_mapped() {
    let host = TestHost::new();
    let server = host.listen(1 << 16, 1 << 16);
    scribble(&host, 24, &[0xff; 64]);
    let (xen, store) = host.domu();
    let refused = ClientBuilder::new(DomId::DOM0, PATH).connect(&xen, &store);
    assert!(matches!(refused, Err(Error::Os(_))), "{refused:?}");
    drop(server);
    host.end();
}
