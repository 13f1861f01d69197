//! The end of a domain, seen by another to which the store reports no ends.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use xen_sys::DomId;
use xen_vchan::{Channel, ClientBuilder, Error, Listener, PeerState, ServerBuilder, service_path};

use crate::death::path_of;
use crate::host::{TestHost, soon};

/// A server in the guest for domain `other`, and its client, each with the other's arrival noted.
fn pair(
    host: &TestHost,
    other: DomId,
    with: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> (Channel, Channel) {
    let path = path_of(host.guest);
    let (xen, store) = host.domu();
    let server = ServerBuilder::new(other, &path);
    let mut server = server.publish(&xen, &store).unwrap();
    let (xen, store) = host.of(other);
    let client = with(ClientBuilder::new(host.guest, &path));
    let mut client = client.connect(&xen, &store).unwrap();
    server.wait_connected(soon()).unwrap();
    client.wait_connected(soon()).unwrap();
    (server, client)
}

/// As libxl does it: the nodes first, then the domain.
#[test]
fn a_domain_that_loses_its_node_and_then_its_life_is_missed_by_another() {
    let host = TestHost::new();
    let other = host.another();
    let path = path_of(host.guest);
    let (mut server, mut client) = pair(&host, other, |client| client.watch_peer_domain(true));
    // A node that is back within the second is no end.
    let (_, toolstack) = host.dom0();
    let node = format!("{path}/ring-ref");
    let value = toolstack.read(&node).unwrap();
    let rights = toolstack.permissions(&node).unwrap();
    toolstack.rm(&node).unwrap();
    toolstack.write(&node, value).unwrap();
    toolstack.set_permissions(&node, &rights).unwrap();
    let later = Some(Instant::now() + Duration::from_millis(1500));
    let waited = client.read_deadline(&mut [0; 4], later);
    assert!(matches!(waited, Err(Error::TimedOut)), "{waited:?}");
    assert_eq!(client.peer().unwrap(), PeerState::Connected);

    // Bytes sent before are still there.
    server.write_all(b"last").unwrap();
    toolstack.rm(&path).unwrap();
    host.stored.release(host.guest);
    let mut last = [0; 4];
    client.read_exact(&mut last).unwrap();
    assert_eq!(&last, b"last");
    let ended = client.read_deadline(&mut last, soon());
    assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
    assert_eq!(client.peer().unwrap(), PeerState::Gone);
    drop((client, server));
    host.sim.assert_clean();
}

/// A listener that removes its nodes when its client has connected is not gone.
#[test]
fn an_offer_withdrawn_is_no_end() {
    let host = TestHost::new();
    let other = host.another();
    let path = service_path(host.guest, other, "echo").unwrap();
    let (xen, store) = host.domu();
    let mut listener = Listener::builder()
        .clients_per_domain(1)
        .listen(&xen, &store)
        .unwrap();
    listener.bind(other, &path).unwrap();
    let (xen, store) = host.of(other);
    let mut client = ClientBuilder::new(host.guest, &path)
        .watch_peer_domain(true)
        .connect(&xen, &store)
        .unwrap();
    let server = listener.accept(soon()).unwrap();
    client.wait_connected(soon()).unwrap();
    let (_, toolstack) = host.dom0();
    assert!(!toolstack.exists(&format!("{path}/ring-ref")).unwrap());
    let later = Some(Instant::now() + Duration::from_millis(1500));
    let waited = client.read_deadline(&mut [0; 4], later);
    assert!(matches!(waited, Err(Error::TimedOut)), "{waited:?}");
    assert_eq!(client.peer().unwrap(), PeerState::Connected);
    drop((client, server, listener));
    host.sim.assert_clean();
}

/// Nothing reports it to a server in a domU: it asks the hypervisor.
#[test]
fn a_client_whose_domain_ends_is_missed_by_a_server_in_a_domu() {
    let host = TestHost::new();
    let other = host.another();
    let path = path_of(host.guest);
    let (xen, store) = host.domu();
    let mut server = ServerBuilder::new(other, &path)
        .watch_peer_domain(true)
        .publish(&xen, &store)
        .unwrap();
    let (xen, store) = host.of(other);
    let mut client = ClientBuilder::new(host.guest, &path)
        .connect(&xen, &store)
        .unwrap();
    server.wait_connected(soon()).unwrap();
    client.write_all(b"last").unwrap();
    host.sim.destroy_domain(other).unwrap();
    let mut last = [0; 4];
    server.read_exact(&mut last).unwrap();
    assert_eq!(&last, b"last");
    let ended = server.read_deadline(&mut last, soon());
    assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
    assert_eq!(server.peer().unwrap(), PeerState::Gone);
    drop((client, server));
    host.sim.assert_clean();
}

/// A domain that is not there when its vchan is offered may come later, and its end counts then.
#[test]
fn a_domain_that_is_still_to_be_made_has_not_ended() {
    let host = TestHost::new();
    let later = DomId::new(77);
    let path = path_of(host.guest);
    let (xen, store) = host.domu();
    let mut server = ServerBuilder::new(later, &path)
        .watch_peer_domain(true)
        .publish(&xen, &store)
        .unwrap();
    let two_questions = Some(Instant::now() + Duration::from_secs(11));
    let waited = server.read_deadline(&mut [0; 4], two_questions);
    assert!(matches!(waited, Err(Error::TimedOut)), "{waited:?}");
    assert_eq!(server.peer().unwrap(), PeerState::Waiting);

    host.sim.add_domain_as(later).unwrap();
    host.stored.add_domain(later);
    let (xen, store) = host.of(later);
    let client = ClientBuilder::new(host.guest, &path)
        .connect(&xen, &store)
        .unwrap();
    server.wait_connected(soon()).unwrap();
    host.sim.destroy_domain(later).unwrap();
    let ended = server.read_deadline(&mut [0; 4], soon());
    assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
    drop((client, server));
    host.sim.assert_clean();
}

/// Builders as they are, between two domUs, to which the store reports nothing: the server asks the
/// hypervisor, its client looks at the server's node.
#[test]
fn two_domus_notice_each_others_end_by_default() {
    for server_ends in [false, true] {
        let host = TestHost::new();
        let other = host.another();
        let path = path_of(host.guest);
        let (mut server, mut client) = pair(&host, other, |client| client);
        let ended = if server_ends {
            let (_, toolstack) = host.dom0();
            toolstack.rm(&path).unwrap();
            host.stored.release(host.guest);
            client.read_deadline(&mut [0; 4], soon())
        } else {
            host.sim.destroy_domain(other).unwrap();
            server.read_deadline(&mut [0; 4], soon())
        };
        assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
        drop((client, server));
        host.sim.assert_clean();
    }
}

/// By default a server's node has to be missing at two questions, five seconds apart, and counts
/// for servers of this crate only: Qubes's remove theirs when their client has come.
#[test]
fn a_node_that_is_missing_once_or_of_another_kind_of_server_is_no_end() {
    let host = TestHost::new();
    let other = host.another();
    let (_, toolstack) = host.dom0();
    let (xen, store) = host.domu();
    let (their_xen, their_store) = host.of(other);
    let connect = |path: &str, of_this_crate: bool| {
        let server = ServerBuilder::new(other, path)
            .publish(&xen, &store)
            .unwrap();
        if !of_this_crate {
            toolstack.rm(&format!("{path}/accepts-sessions")).unwrap();
        }
        let client = ClientBuilder::new(host.guest, path);
        (server, client.connect(&their_xen, &their_store).unwrap())
    };
    let paths = ["once", "qubes"].map(|name| format!("{}-{name}", path_of(host.guest)));
    let began = Instant::now();
    let (first, mut once) = connect(&paths[0], true);
    let (second, mut qubes) = connect(&paths[1], false);
    let [node, foreign] = paths.map(|path| format!("{path}/ring-ref"));
    toolstack.rm(&foreign).unwrap();
    let (value, rights) = (
        toolstack.read(&node).unwrap(),
        toolstack.permissions(&node).unwrap(),
    );
    toolstack.rm(&node).unwrap();
    let mut open_until = |seconds| {
        let until = Some(began + Duration::from_secs(seconds));
        for client in [&mut once, &mut qubes] {
            let waited = client.read_deadline(&mut [0; 4], until);
            assert!(matches!(waited, Err(Error::TimedOut)), "{waited:?}");
        }
    };
    // Between the first question, after five seconds, and the second.
    open_until(7);
    toolstack.write(&node, value).unwrap();
    toolstack.set_permissions(&node, &rights).unwrap();
    open_until(13);
    drop((once, qubes, first, second));
    host.sim.assert_clean();
}
