//! The embedded daemon as the store of a simulated host.
//!
//! With a daemon attached, [`Store::open`](xen_store::Store::open) on a handle of the simulation
//! returns a connection as the handle's domain, in whichever process the handle is. A domain that
//! is destroyed in the simulation is removed from the store.
//!
//! ```
//! use xen_store::Store;
//! use xen_store_server::Config;
//! use xen_sys::DomId;
//! use xen_sys::sim::Simulation;
//!
//! let host = Simulation::start()?;
//! let daemon = xen_store_server::sim::start(&host, Config::new())?;
//! let guest = host.add_domain()?;
//! daemon.add_domain(guest);
//!
//! let store = Store::open(&host.xen(guest)?)?;
//! store.write("data/greeting", "hello")?;
//! let dom0 = Store::open(&host.xen(DomId::DOM0)?)?;
//! assert_eq!(dom0.read_str(&format!("/local/domain/{guest}/data/greeting"))?, "hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use xen_store::{Error, Result};
use xen_sys::DomId;
use xen_sys::sim::{Simulation, StoreServer};

use crate::{Config, Server};

/// Starts a daemon and attaches it to a host. Domain 0's number is in `domid`, where xen-init-dom0
/// writes it.
///
/// # Errors
///
/// [`Error::Os`] if there is no descriptor or thread left.
pub fn start(host: &Simulation, config: Config) -> Result<Arc<Server>> {
    let op = "start the store of a simulated host";
    let server = Arc::new(Server::start(config).map_err(|source| Error::Os {
        op,
        source: Arc::new(source),
    })?);
    server.connect(DomId::DOM0)?.write("domid", "0")?;
    attach(host, &server);
    Ok(server)
}

/// Makes a running daemon the store of a host, which keeps it running.
pub fn attach(host: &Simulation, server: &Arc<Server>) {
    host.attach_store(Box::new(Attached(Arc::clone(server))));
}

#[derive(Debug)]
struct Attached(Arc<Server>);

impl StoreServer for Attached {
    fn connect(&mut self, domain: DomId) -> io::Result<OwnedFd> {
        let (ours, theirs) = UnixStream::pair()?;
        self.0.add_connection(ours.into(), domain);
        Ok(theirs.into())
    }

    fn domain_destroyed(&mut self, domain: DomId) {
        self.0.release(domain);
    }
}
