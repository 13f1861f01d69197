//! A host with a domain that has consoles, as libxl writes them.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use xen_console::{Backend, Frontend};
use xen_evtchn::{BoundPort, EventChannels};
use xen_gnttab::{PageAccess, SharedPages, Words, share};
use xen_store::{Permissions, Store};
use xen_store_server::{Config, Server};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, Xen};

pub(crate) const NODE: &str = "device/console/1";
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Sleeps until one of the descriptors is readable, or until the deadline.
#[allow(
    dead_code,
    reason = "the tests of the service have a sleep of their own"
)]
pub(crate) fn sleep(fds: &[BorrowedFd<'_>], deadline: Option<Instant>) -> nix::Result<()> {
    let mut fds: Vec<_> = fds
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        PollTimeout::try_from(left.as_millis() + 1).unwrap()
    });
    poll(&mut fds, timeout).map(drop)
}

pub(crate) struct TestHost {
    pub(crate) simulation: Simulation,
    #[allow(dead_code, reason = "the tests of the service end its connections")]
    pub(crate) server: Arc<Server>,
    pub(crate) store: Store,
    pub(crate) domain: DomId,
    pub(crate) path: String,
}

impl TestHost {
    /// A host with console 1, whose output has no particular place.
    pub(crate) fn new() -> Self {
        let simulation = Simulation::start().unwrap();
        let server = xen_store_server::sim::start(&simulation, Config::new()).unwrap();
        let domain = simulation.add_domain().unwrap();
        server.add_domain(domain);
        server.introduce(domain);
        let store = server.connect(DomId::DOM0).unwrap();
        let host = Self {
            simulation,
            server,
            store,
            domain,
            path: format!("/local/domain/0/backend/console/{domain}/1"),
        };
        host.console(1, None);
        host
    }

    /// Another console, or another output for one; `None` is no output at all.
    pub(crate) fn console(&self, number: u32, output: Option<&str>) {
        let Self { store, domain, .. } = self;
        let path = format!("/local/domain/0/backend/console/{domain}/{number}");
        let frontend = format!("/local/domain/{domain}/device/console/{number}");
        let set = |node: &str, value: &str, perms: &Permissions| {
            store.write(node, value).unwrap();
            store.set_permissions(node, perms).unwrap();
        };
        let theirs = Permissions::owner_none(*domain).grant_read(DomId::DOM0);
        let ours = Permissions::owner_none(DomId::DOM0).grant_read(*domain);
        set(&frontend, "", &theirs);
        set(&path, "", &ours);
        store.write(&format!("{frontend}/backend"), &path).unwrap();
        store.write(&format!("{frontend}/backend-id"), "0").unwrap();
        set(&format!("{frontend}/state"), "1", &theirs);
        set(&format!("{frontend}/type"), "ioemu", &ours);
        if let Some(output) = output {
            set(&format!("{frontend}/output"), output, &ours);
        }
        store.write(&format!("{path}/frontend"), &frontend).unwrap();
        store
            .write(&format!("{path}/frontend-id"), domain.to_string())
            .unwrap();
        store.write(&format!("{path}/state"), "1").unwrap();
    }

    pub(crate) fn dom0(&self) -> Xen {
        self.simulation.xen(DomId::DOM0).unwrap()
    }

    pub(crate) fn backend(&self) -> Backend {
        Backend::new(&self.dom0(), &self.store, &self.path).unwrap()
    }

    pub(crate) fn domu(&self) -> (Xen, Store) {
        let xen = self.simulation.xen(self.domain).unwrap();
        let store = Store::open(&xen).unwrap();
        (xen, store)
    }

    pub(crate) fn frontend(&self) -> Frontend {
        self.frontend_at(NODE)
    }

    pub(crate) fn frontend_at(&self, node: &str) -> Frontend {
        let (xen, store) = self.domu();
        Frontend::publish(&xen, &store, node, &[]).unwrap()
    }

    /// A frontend of a console that can write anything to its ring.
    pub(crate) fn bare(&self, node: &'static str) -> Bare {
        let (xen, store) = self.domu();
        let mut pages = share(&xen, DomId::DOM0, 1, PageAccess::ReadWrite).unwrap();
        let mut page = pages.take_region();
        page.split_to(3072).unwrap();
        let indices = page.take_words(4).unwrap();
        let channels = EventChannels::open(&xen).unwrap();
        let port = channels.bind_unbound(DomId::DOM0).unwrap();
        let bare = Bare {
            pages,
            indices,
            port,
            store,
            node,
        };
        bare.write("ring-ref", &bare.pages.refs()[0].to_string());
        bare.write("port", &bare.port.port().to_string());
        bare
    }

    /// The state of a console's backend.
    pub(crate) fn state(&self, number: u32) -> String {
        let path = format!("/local/domain/0/backend/console/{}/{number}", self.domain);
        self.store.read_str(&format!("{path}/state")).unwrap()
    }

    pub(crate) fn node(&self, name: &str) -> String {
        format!("/local/domain/{}/{NODE}/{name}", self.domain)
    }

    /// Nothing of either end stays.
    pub(crate) fn end(self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.simulation.leaks().is_empty() {
            assert!(Instant::now() < deadline, "{:?}", self.simulation.leaks());
            std::thread::yield_now();
        }
    }
}

/// See [`TestHost::bare`]. Published, and without a state of its own.
pub(crate) struct Bare {
    pages: SharedPages,
    /// `in_cons`, `in_prod`, `out_cons`, `out_prod`.
    indices: Words<AtomicU32>,
    pub(crate) port: BoundPort,
    store: Store,
    node: &'static str,
}

impl Bare {
    pub(crate) fn write(&self, name: &str, value: &str) {
        self.store
            .write(&format!("{}/{name}", self.node), value)
            .unwrap();
    }

    /// Sets one of the ring's indices.
    pub(crate) fn set(&self, offset: usize, index: u32) {
        self.indices[(offset - 3072) / 4].store(index, Ordering::Release);
    }

    /// Unpublishes the ring, and sets the state accordingly.
    pub(crate) fn close(self) {
        let Self {
            pages,
            indices,
            port,
            store,
            ..
        } = self;
        drop((pages, indices, port));
        store.write(&format!("{}/state", self.node), "6").unwrap();
    }
}
