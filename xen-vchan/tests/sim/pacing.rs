//! Events that are paced: the peer rings for nothing, and then for something.

use std::thread;
use std::time::{Duration, Instant};

use xen_evtchn::{BoundPort, EventChannels, EventPacer};
use xen_store::Store;
use xen_sys::{DomId, GrantRef, Port};
use xen_vchan::{Channel, Error};

use crate::host::{PATH, TestHost, poll_one, soon};

const CLI_LIVE: usize = 20;

fn number(store: &Store, key: &str) -> u32 {
    let value = store.read_str(&format!("{PATH}/{key}")).unwrap();
    value.parse().unwrap()
}

/// A client that has bound the port and set the live byte, and does nothing more.
fn mute_client(host: &TestHost) -> BoundPort {
    let (xen, store) = host.domu();
    let events = EventChannels::open(&xen).unwrap();
    let port = Port::new(number(&store, "event-channel"));
    let port = events.bind_interdomain(DomId::DOM0, port).unwrap();
    let control = GrantRef::new(number(&store, "ring-ref"));
    let host = &host.sim;
    host.scribble(DomId::DOM0, control, CLI_LIVE, &[1]).unwrap();
    port.notify().unwrap();
    port
}

/// A server whose client can only ring.
pub(crate) fn stormed(host: &TestHost) -> (Channel, BoundPort) {
    let mut server = host.listen(0, 0);
    let bell = mute_client(host);
    server.wait_connected(soon()).unwrap();
    (server, bell)
}

/// The client moves its cursor by one byte.
pub(crate) fn write_one(host: &TestHost) {
    let control = GrantRef::new(number(&host.dom0().1, "ring-ref"));
    let prod = 1u32.to_ne_bytes();
    host.sim.scribble(DomId::DOM0, control, 4, &prod).unwrap();
}

#[test]
fn a_paced_channel_in_an_event_loop_has_a_deadline() {
    let host = TestHost::new();
    let (mut server, bell) = stormed(&host);
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
    write_one(&host);
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
    host.end();
}
