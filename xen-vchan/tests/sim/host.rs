//! A host with a store and two domains, and the check that nothing is left behind.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use xen_store::Store;
use xen_store_server::{Config, Server as StoreServer};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, ClientBuilder, Error, PeerState, RingSize, ServerBuilder};

pub(crate) const PATH: &str = "/local/domain/0/data/vchan-test";

/// Domain 0 serves, `guest` is the client.
pub(crate) struct TestHost {
    pub(crate) sim: Simulation,
    pub(crate) stored: Arc<StoreServer>,
    pub(crate) guest: DomId,
}

impl TestHost {
    pub(crate) fn new() -> Self {
        let sim = Simulation::start().unwrap();
        let guest = sim.add_domain().unwrap();
        let stored = xen_store_server::sim::start(&sim, Config::new()).unwrap();
        let host = Self { sim, stored, guest };
        host.dom0().1.write("domid", "0").unwrap();
        host.stored.add_domain(guest);
        host
    }

    /// A domain besides domain 0 and `guest`.
    pub(crate) fn another(&self) -> DomId {
        let domain = self.sim.add_domain().unwrap();
        self.stored.add_domain(domain);
        domain
    }

    pub(crate) fn of(&self, domain: DomId) -> (Xen, Store) {
        (
            self.sim.xen(domain).unwrap(),
            self.stored.connect(domain).unwrap(),
        )
    }

    pub(crate) fn dom0(&self) -> (Xen, Store) {
        self.of(DomId::DOM0)
    }

    pub(crate) fn domu(&self) -> (Xen, Store) {
        self.of(self.guest)
    }

    pub(crate) fn listen(&self, left: usize, right: usize) -> Channel {
        self.listen_with(left, right, false)
    }

    /// A server that has the same memory for all clients, if it is to `reuse` it.
    pub(crate) fn listen_with(&self, left: usize, right: usize, reuse: bool) -> Channel {
        let (xen, store) = self.dom0();
        let rings = (RingSize::at_least(left), RingSize::at_least(right));
        ServerBuilder::new(self.guest, PATH)
            .rings(rings.0, rings.1)
            .reuse_memory(reuse)
            .publish(&xen, &store)
            .unwrap()
    }

    pub(crate) fn connect(&self) -> Channel {
        let (xen, store) = self.domu();
        ClientBuilder::new(DomId::DOM0, PATH)
            .connect(&xen, &store)
            .unwrap()
    }

    /// A server and its client, each with the other's arrival noted.
    pub(crate) fn pair(&self, left: usize, right: usize) -> (Channel, Channel) {
        let mut server = self.listen(left, right);
        let mut client = self.connect();
        server.wait_connected(soon()).unwrap();
        client.wait_connected(soon()).unwrap();
        (server, client)
    }

    /// After each test, with every channel closed.
    pub(crate) fn end(self) {
        self.sim.assert_clean();
        let (_, store) = self.dom0();
        assert!(!store.exists(PATH).unwrap(), "store nodes left behind");
    }
}

/// Far longer than anything here takes.
pub(crate) fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(20))
}

/// Waits until the peer is gone, asleep in between.
pub(crate) fn wait_gone(channel: &mut Channel) {
    let deadline = soon();
    while channel.peer().unwrap() != PeerState::Gone {
        assert!(
            channel.wait(deadline).unwrap(),
            "the peer's end was not noticed"
        );
    }
}

pub(crate) fn read_all(channel: &mut Channel) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buf = [0; 999];
    loop {
        match channel.read_deadline(&mut buf, soon()) {
            Ok(len) => all.extend_from_slice(&buf[..len]),
            Err(Error::Closed) => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Byte `at` of a stream: neighbours differ, and so do places a ring apart.
pub(crate) fn byte(at: usize) -> u8 {
    (at ^ (at >> 7) ^ (at >> 11) ^ (at >> 16)) as u8
}

pub(crate) fn bytes(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(byte).collect()
}

/// Whether a descriptor becomes ready within `timeout` milliseconds.
pub(crate) fn poll_one(fd: impl AsFd, timeout: u16) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(timeout)).unwrap() == 1
}

/// CPU time this thread has used.
pub(crate) fn thread_cpu() -> Duration {
    let used = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
    Duration::from_nanos(used.tv_sec() as u64 * 1_000_000_000 + used.tv_nsec() as u64)
}
