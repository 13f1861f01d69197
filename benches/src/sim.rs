//! A connected vchan on a simulated host: shared memory and event channels as on Xen, without its
//! hypercalls.

use xen_store::Permissions;
use xen_store::server::{Config, Server as StoreServer};
use xen_sys::DomId;
use xen_sys::sim::Simulation;
use xen_vchan::{Channel, Client, RingSize, Server};

/// A host with a server in domain 0 and its client in domain 1. Drop the channels first.
#[derive(Debug)]
pub struct Host {
    sim: Simulation,
    stored: StoreServer,
    guest: DomId,
}

const PATH: &str = "/local/domain/0/data/bench";

impl Host {
    /// A host.
    ///
    /// # Errors
    ///
    /// If the system has no descriptor or thread left.
    pub fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let sim = Simulation::start()?;
        let guest = sim.add_domain()?;
        let stored = StoreServer::start(Config::new())?;
        stored.add_domain(guest);
        let dom0 = stored.connect(DomId::DOM0)?;
        for domain in [DomId::DOM0, guest] {
            let node = format!("/local/domain/{domain}/domid");
            dom0.write(&node, domain.to_string())?;
            dom0.set_perms(
                &node,
                &Permissions::owner_none(DomId::DOM0).grant_read(domain),
            )?;
        }
        Ok(Self { sim, stored, guest })
    }

    /// A server and a client with rings of `bytes` bytes.
    ///
    /// # Errors
    ///
    /// As [`xen_vchan::ServerBuilder::listen`].
    pub fn pair(&self, bytes: usize) -> Result<(Channel, Channel), Box<dyn std::error::Error>> {
        let size = RingSize::at_least(bytes);
        let mut server = Server::builder(self.guest, PATH).rings(size, size).listen(
            &self.sim.xen(DomId::DOM0)?,
            &self.stored.connect(DomId::DOM0)?,
        )?;
        let mut client = Client::builder(DomId::DOM0, PATH).connect(
            &self.sim.xen(self.guest)?,
            &self.stored.connect(self.guest)?,
        )?;
        server.wait_connected(None)?;
        client.wait_connected(None)?;
        Ok((server, client))
    }
}
