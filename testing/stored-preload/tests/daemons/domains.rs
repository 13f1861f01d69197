//! The fake hypervisor suffices: domains come, talk through their rings, and go.

use xen_store::Permissions;
use xen_sys::DomId;

use crate::daemon::{Daemon, Kind};
use crate::with_each_daemon;

const GUEST: u16 = 7;

fn a_domain_sends_through_its_ring_with_its_own_permissions(kind: Kind) {
    let daemon = Daemon::start(kind);
    let (store, guest) = (daemon.store(), daemon.domain(GUEST));
    let home = format!("/local/domain/{GUEST}");
    store.write(&format!("{home}/data"), "").unwrap();
    let owned = Permissions::owner_none(DomId::new(GUEST));
    store
        .set_permissions(&format!("{home}/data"), &owned)
        .unwrap();
    store.write("/secret", "s").unwrap();

    // Relative paths, several times the ring's size, and the guest's own events.
    let watch = guest.watch("data").unwrap();
    let long = "x".repeat(2000);
    for n in 0..8 {
        guest.write(&format!("data/{n}"), &long).unwrap();
    }
    assert_eq!(store.read_str(&format!("{home}/data/3")).unwrap(), long);
    assert_eq!(guest.directory("data").unwrap().len(), 8);
    assert!(watch.next(None).unwrap().is_some());
    for denied in [
        guest.read("/secret").map(drop),
        guest.write("/mine", "").map(drop),
        guest.introduce(DomId::new(9), 1, xen_sys::Port::new(1)),
    ] {
        assert!(denied.unwrap_err().is_denied());
    }
}

fn a_domain_that_ended_is_announced_and_loses_its_ring(kind: Kind) {
    let daemon = Daemon::start(kind);
    let (store, guest) = (daemon.store(), daemon.domain(GUEST));
    let watch = store.watch("@releaseDomain").unwrap();
    // The first event comes without a domain's end.
    watch.next(None).unwrap().unwrap();
    assert!(store.is_introduced(DomId::new(GUEST)).unwrap());
    assert!(guest.domain_path(DomId::new(GUEST)).is_ok());
    daemon.end_domain(GUEST);
    watch.next(None).unwrap().unwrap();
    assert!(!store.is_introduced(DomId::new(GUEST)).unwrap());
}

with_each_daemon!(
    a_domain_sends_through_its_ring_with_its_own_permissions,
    a_domain_that_ended_is_announced_and_loses_its_ring,
);
