//! The rules on the simulated host: between two domains in both roles, within one, and with the
//! other end in another process.
#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use xen_fidelity::{Area, End, Ends, Kind, Worker, serve};
use xen_store_server::{Config, Server};
use xen_sys::DomId;
use xen_sys::sim::Simulation;

struct Host {
    host: Simulation,
    stored: Arc<Server>,
}

impl Host {
    fn new() -> Self {
        let host = Simulation::start().unwrap();
        let stored = xen_store_server::sim::start(&host, Config::new()).unwrap();
        Self { host, stored }
    }

    /// A domain as a toolstack makes it: introduced, with a folder it may write to.
    fn guest(&self) -> DomId {
        let id = self.host.add_domain().unwrap();
        self.stored.add_domain(id);
        self.stored.introduce(id);
        let dom0 = self.stored.connect(DomId::DOM0).unwrap();
        let home = format!("/local/domain/{id}");
        let own = xen_store::Permissions::owner_none(id);
        let shared = xen_store::Permissions::owner_none(DomId::DOM0).grant_read(id);
        dom0.set_permissions(&home, &shared).unwrap();
        dom0.mkdir(&format!("{home}/data")).unwrap();
        dom0.set_permissions(&format!("{home}/data"), &own).unwrap();
        id
    }

    fn worker(&self, id: DomId) -> Worker {
        let stored = Arc::clone(&self.stored);
        Worker::new(self.host.xen(id).unwrap(), move || {
            let (ours, theirs) = UnixStream::pair()?;
            stored.add_connection(theirs.into(), id);
            Ok(ours.into())
        })
    }

    fn dom0(&self) -> Worker {
        let store = self.stored.connect(DomId::DOM0).unwrap();
        // xen-init-dom0 writes it.
        store.write("/local/domain/0/domid", "0").unwrap();
        self.worker(DomId::DOM0)
    }

    /// A host, and domain 0 with a guest as the ends.
    fn pair() -> (Self, Ends) {
        let host = Self::new();
        let guest = host.guest();
        let ends = [DomId::DOM0, guest].map(|id| End::near(id, host.worker(id)));
        let [a, b] = ends;
        (host, Ends::new(a, b, Kind::Simulated))
    }

    fn check(&self, ends: &Ends, place: &str, areas: &[Area]) {
        if let Err(broken) = xen_fidelity::report(ends, place, areas) {
            panic!("{broken:#}");
        }
    }

    /// Fails if the rules left anything behind.
    fn end(self, ends: Ends) {
        drop(ends);
        self.host.assert_clean();
    }
}

const BETWEEN_DOMAINS: [Area; 3] = [Area::Evtchn, Area::Gnttab, Area::Vchan];

#[test]
fn rules_between_two_domains() {
    let (host, ends) = Host::pair();
    host.check(&ends, "simulated-pair", &BETWEEN_DOMAINS);
    host.check(&ends.turned(), "simulated-pair", &BETWEEN_DOMAINS);
    host.end(ends);
}

#[test]
fn rules_in_a_domain_that_is_its_own_peer() {
    let host = Host::new();
    let end = End::near(DomId::DOM0, host.dom0());
    let ends = Ends::new(end.clone(), end, Kind::Simulated);
    let areas = [
        Area::Evtchn,
        Area::Gnttab,
        Area::Vchan,
        Area::Store,
        Area::Differences,
    ];
    host.check(&ends, "simulated-one", &areas);
    host.end(ends);
}

#[test]
fn rules_of_a_guests_store() {
    let (host, ends) = Host::pair();
    host.check(
        &ends,
        "simulated-pair",
        &[Area::StoreGuest, Area::StoreTarget],
    );
    host.end(ends);
}

/// As on a real host, where the other end is in another domain behind a stream.
#[test]
fn rules_with_an_end_behind_a_stream() {
    let host = Host::new();
    let guest = host.guest();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut worker = host.worker(guest);
    let other = std::thread::spawn(move || serve(&mut worker, theirs));
    let mut ends = Ends::new(
        End::near(DomId::DOM0, host.dom0()),
        End::far(guest, ours),
        Kind::Simulated,
    );
    ends.settle = Duration::from_millis(1);
    host.check(&ends, "simulated-far", &BETWEEN_DOMAINS);
    drop(ends);
    other.join().unwrap().unwrap();
    host.host.assert_clean();
}

/// The checkers themselves can fail.
#[test]
fn a_rule_that_does_not_hold_is_noticed() {
    let host = Host::new();
    let end = End::near(DomId::DOM0, host.dom0());
    let mut ends = Ends::new(end.clone(), end, Kind::Simulated);
    ends.shared_pages = 500;
    let broken = xen_fidelity::run(&ends, Area::Gnttab).broken;
    assert!(!broken.is_empty(), "a limit of 500 pages was found true");
    // This holds on a real host only.
    ends.kind = Kind::Real;
    let broken = xen_fidelity::run(&ends, Area::Differences).broken;
    let all = Area::Differences.rules().len();
    assert_eq!(broken.len(), all, "{broken:?}");
}
