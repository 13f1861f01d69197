//! The crate's own test: two domains on a simulated host, in milliseconds, without Xen.

use std::sync::Arc;
use std::thread;

use thermometer::{Thermometer, how_warm};
use xen_store::Store;
use xen_store_server::{Config, Server};
use xen_sys::sim::{Fault, Op, Simulation};
use xen_sys::{DomId, Xen};

/// A host with a store and one guest.
fn host() -> (Simulation, Arc<Server>, DomId) {
    let host = Simulation::start().unwrap();
    let store = xen_store_server::sim::start(&host, Config::new()).unwrap();
    let guest = host.add_domain().unwrap();
    store.add_domain(guest);
    (host, store, guest)
}

/// The handles a process of a domain starts from: in a program, `Xen::open()` in place of the first.
fn process(host: &Simulation, domain: DomId) -> (Xen, Store) {
    let xen = host.xen(domain).unwrap();
    let store = Store::open(&xen).unwrap();
    (xen, store)
}

#[test]
fn the_guest_reads_how_warm_it_is() {
    let (host, _store, guest) = host();
    let (xen, store) = process(&host, DomId::DOM0);
    let mut thermometer = Thermometer::offer(&xen, &store, guest).unwrap();
    let asks = thread::spawn({
        let (xen, store) = process(&host, guest);
        move || how_warm(&xen, &store, guest)
    });
    thermometer.answer(-3).unwrap();
    assert_eq!(asks.join().unwrap().unwrap(), -3);
    // Nothing bound, granted or mapped is left, or this fails and lists it.
    drop(thermometer);
    host.assert_clean();
}

#[test]
fn a_guest_that_dies_as_it_connects_leaves_nothing_behind() {
    let (host, _store, guest) = host();
    let (xen, store) = process(&host, DomId::DOM0);
    let thermometer = Thermometer::offer(&xen, &store, guest).unwrap();
    // The third step of connecting: a port, the page, and then the notification of its death.
    host.inject(Fault::Kill {
        domain: guest,
        op: Op::SetUnmapNotify,
        nth: 1,
    });
    let (guest_xen, guest_store) = process(&host, guest);
    assert!(how_warm(&guest_xen, &guest_store, guest).is_err());
    assert!(!host.domains().contains(&guest));
    drop(thermometer);
    host.assert_clean();
}

#[test]
fn a_host_without_pages_to_share_reports_it() {
    let (host, _store, guest) = host();
    let (xen, store) = process(&host, DomId::DOM0);
    let mut limits = host.limits(DomId::DOM0).unwrap();
    limits.shared_pages = 0;
    host.set_limits(DomId::DOM0, limits).unwrap();
    assert!(Thermometer::offer(&xen, &store, guest).is_err());
    host.assert_clean();
}
