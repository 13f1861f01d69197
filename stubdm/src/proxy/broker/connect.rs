//! Connects the vchan, as a [`Transport`](crate::rt::transport::Transport).

use std::io;
use std::time::Duration;

use xen_evtchn::EventPacer;
use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::ClientBuilder;

use crate::proxy::broker::saves::{FileSaves, StateFile};
use crate::rt::transport::Connect;
use crate::rt::vchan::Vchan;

/// How often a stubdomain that rings for nothing wakes the host's proxy, after a burst.
const PACE: Duration = Duration::from_millis(1);

/// Connects to the server a domain publishes in the store.
#[derive(Debug)]
pub struct VchanConnect {
    xen: Xen,
    store: Store,
    server: DomId,
    node: String,
    marker: Option<u8>,
    file: StateFile,
}

impl VchanConnect {
    /// The server `server` publishes at `node`.
    pub fn new(xen: Xen, store: Store, server: DomId, node: String) -> Self {
        Self {
            file: StateFile::new(store.clone(), server),
            xen,
            store,
            server,
            node,
            marker: None,
        }
    }

    /// Begins each connection with the byte `marker`, by which servers that look for it notice that
    /// the client is another one.
    #[must_use]
    pub fn with_marker(self, marker: Option<u8>) -> Self {
        Self { marker, ..self }
    }

    /// Returns the checks of the file for the stubdomain's saves.
    pub fn saves(&self) -> FileSaves {
        FileSaves::new(self.file.clone())
    }
}

impl Connect for VchanConnect {
    type Transport = Vchan;

    fn connect(&mut self) -> io::Result<Vchan> {
        // The proxy ends with its stubdomain by a watch of its own, without waking up meanwhile.
        let client = ClientBuilder::new(self.server, self.node.as_str()).watch_peer_domain(false);
        let channel = client.connect(&self.xen, &self.store)?;
        channel.set_event_pacer(Some(EventPacer::new(PACE)));
        self.file.hold();
        Vchan::new(channel).with_marker(self.marker)
    }

    fn may_come(&mut self) -> bool {
        // A store that cannot answer does not mean that the domain has ended.
        self.store.is_introduced(self.server).unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::poll::sleep;
    use crate::rt::transport::Transport as _;
    use nix::poll::PollFlags;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;
    use xen_fidelity::hostile::{self, Behaviour};
    use xen_store_server::{Config, Server};
    use xen_sys::sim::Simulation;

    /// Waits for an event or the deadline and reads all there is; returns whether events are held.
    fn is_held_after_a_turn(near: &mut Vchan, end: Instant) -> bool {
        let until = near.deadline().unwrap_or(end);
        sleep(&[(near.poll_fd(), PollFlags::POLLIN)], Some(until)).unwrap();
        assert!(Instant::now() < end, "no event comes any more");
        near.acknowledge().unwrap();
        while near.try_read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
        near.deadline().is_some()
    }

    #[test]
    fn a_stubdomain_that_rings_for_nothing_is_paced_and_read_again() {
        let host = Simulation::start().unwrap();
        let server = Server::start(Config::new()).unwrap();
        let (dom0, store) = (
            host.xen(DomId::DOM0).unwrap(),
            server.connect(DomId::DOM0).unwrap(),
        );
        let stub = host.add_domain().unwrap();
        server.add_domain(stub);
        let node = format!("/local/domain/{stub}/data/qmp-vchan");
        let (theirs, done) = (server.connect(stub).unwrap(), AtomicBool::new(false));
        let xen = host.xen(stub).unwrap();
        let mut connect = VchanConnect::new(dom0, store, stub, node.clone());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let stop = || done.load(Ordering::Acquire);
                let storm = Behaviour::BellStorm;
                hostile::play(&xen, &theirs, DomId::DOM0, &node, storm, 0, &stop).unwrap();
            });
            let end = Instant::now() + Duration::from_secs(60);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let mut near = loop {
                    match connect.connect() {
                        Ok(near) => break near,
                        Err(error) => assert!(Instant::now() < end, "{error}"),
                    }
                };
                // Held back, handled again, held back.
                for _ in 0..2 {
                    let held = (0..20_000).any(|_| is_held_after_a_turn(&mut near, end));
                    assert!(held, "20,000 events in a row were taken at once");
                }
            }));
            done.store(true, Ordering::Release);
            outcome.unwrap();
        });
    }
}
