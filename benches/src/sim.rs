//! A connected vchan on a simulated host: shared memory and event channels as on Xen, without its
//! hypercalls.

use std::path::PathBuf;
use std::sync::Arc;

use xen_store::Permissions;
use xen_store_server::{Config, Server as StoreServer};
use xen_sys::DomId;
use xen_sys::sim::Simulation;
use xen_vchan::{Channel, ClientBuilder, RingSize, ServerBuilder};

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
            dom0.set_permissions(
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
    /// As [`xen_vchan::ServerBuilder::publish`].
    pub fn pair(&self, bytes: usize) -> Result<(Channel, Channel), Box<dyn std::error::Error>> {
        let size = RingSize::at_least(bytes);
        let mut server = ServerBuilder::new(self.guest, PATH)
            .rings(size, size)
            .publish(
                &self.sim.xen(DomId::DOM0)?,
                &self.stored.connect(DomId::DOM0)?,
            )?;
        let mut client = ClientBuilder::new(DomId::DOM0, PATH).connect(
            &self.sim.xen(self.guest)?,
            &self.stored.connect(self.guest)?,
        )?;
        server.wait_connected(None)?;
        client.wait_connected(None)?;
        Ok((server, client))
    }
}

/// A simulated host for processes that join it by a path, with a store that C programs can reach
/// too.
#[derive(Debug)]
pub struct SimHost {
    _sim: Simulation,
    _stored: Arc<StoreServer>,
    dir: tempfile::TempDir,
}

impl SimHost {
    /// A host with domain 0.
    ///
    /// # Errors
    ///
    /// If the system has no descriptor, thread or room left.
    pub fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let sim = Simulation::start()?;
        sim.listen(dir.path().join("host"))?;
        let stored = xen_store_server::sim::start(&sim, Config::new())?;
        stored.listen(dir.path().join("store"))?;
        // As libxl does; a vchan's server looks there for its own number.
        stored
            .connect(DomId::DOM0)?
            .write("/local/domain/0/domid", "0")?;
        Ok(Self {
            _sim: sim,
            _stored: stored,
            dir,
        })
    }

    /// `XEN_SIM_SOCKET`.
    #[must_use]
    pub fn host_path(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    /// `XENSTORED_PATH`.
    #[must_use]
    pub fn store_path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// A name for a UNIX socket.
    #[must_use]
    pub fn socket_path(&self) -> String {
        self.dir
            .path()
            .join("socket")
            .to_string_lossy()
            .into_owned()
    }
}
