//! The simulated host, and a stand-in for the toolstack: a guest, its stubdomain, and in the store
//! what libxl writes for them.

use std::ffi::OsString;
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use xen_store::{Permissions, Store};
use xen_store_server::{Config, Server};
use xen_sys::DomId;
use xen_sys::sim::Simulation;

use crate::rt::error::{Context, Failure, Result};

/// The VM of the guest.
const VM: &str = "/vm/00000000-0000-4000-8000-000000000001";
/// How long processes that have ended may take to be noticed.
const CLEAN_LIMIT: Duration = Duration::from_secs(5);

/// The host, until this value is dropped.
#[derive(Debug)]
pub struct Host {
    store: Store,
    broker: PathBuf,
    simulation: Simulation,
    /// The store's daemon runs while somebody holds it.
    _server: Arc<Server>,
    /// The guest.
    pub guest: DomId,
    /// Its stubdomain.
    pub stub: DomId,
}

impl Host {
    /// A host with a guest and its stubdomain, and the broker's socket in `directory`.
    ///
    /// # Errors
    /// The system has no descriptor or thread left, or the path is no good for a socket.
    pub fn start(directory: &Path) -> Result<Self> {
        let what = "starting a simulated host";
        let simulation = Simulation::start().context(what)?;
        let server = xen_store_server::sim::start(&simulation, Config::new()).context(what)?;
        let broker = directory.join("broker");
        let place = format!("the broker's socket {}", broker.display());
        simulation.listen(&broker).context(place)?;
        let store = server.connect(DomId::DOM0).context(what)?;
        let guest = simulation.add_domain().context(what)?;
        let stub = simulation.add_domain().context(what)?;
        for domain in [guest, stub] {
            server.add_domain(domain);
            server.introduce(domain);
        }
        server.set_target(stub, guest);
        Ok(Self {
            store,
            broker,
            simulation,
            _server: server,
            guest,
            stub,
        })
    }

    /// Returns where processes join.
    pub fn broker(&self) -> &Path {
        &self.broker
    }

    /// The store, as domain 0 sees it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Writes the two domains' nodes as libxl does, and QEMU's arguments, one to a node. Returns
    /// the directory these are in.
    ///
    /// # Errors
    /// The store's.
    pub fn describe(&self, argv: &[OsString]) -> Result<String> {
        let (guest, stub) = (self.guest, self.stub);
        let for_guest = Permissions::owner_none(DomId::DOM0).grant_read(guest);
        let for_stub = Permissions::owner_none(DomId::DOM0).grant_read(stub);
        let of_stub = Permissions::owner_none(stub).grant_read(guest);
        let guest_home = format!("/local/domain/{guest}");
        let stub_home = format!("/local/domain/{stub}");
        self.set(&guest_home, "", &for_guest)?;
        self.set(&format!("{guest_home}/vm"), VM, &for_guest)?;
        self.set(&format!("{guest_home}/domid"), guest, &for_guest)?;
        let image = format!("{guest_home}/image");
        let private = Permissions::owner_none(DomId::DOM0);
        self.set(&image, "", &private)?;
        self.set(&format!("{image}/device-model-domid"), stub, &private)?;
        self.set(VM, "", &for_guest)?;
        self.set(&format!("{VM}/image"), "", &for_guest)?;
        self.set(&stub_home, "", &for_stub)?;
        self.set(&format!("{stub_home}/domid"), stub, &for_stub)?;
        self.set(&format!("{stub_home}/target"), guest, &for_stub)?;
        self.set(&format!("{stub_home}/data"), "", &of_stub)?;
        self.set(&format!("{stub_home}/device-model/{guest}"), "", &of_stub)?;
        let directory = format!("{VM}/image/dm-argv");
        self.set(&directory, "", &for_stub)?;
        for (n, arg) in (1..).zip(argv) {
            let node = format!("{directory}/{n:03}");
            let written = self.store.write(&node, arg.as_bytes());
            written.context(format_args!("writing {node}"))?;
        }
        Ok(directory)
    }

    fn set(&self, node: &str, value: impl Display, perms: &Permissions) -> Result<()> {
        let written = self.store.write(node, value.to_string());
        let written = written.and_then(|()| self.store.set_permissions(node, perms));
        written.context(format_args!("writing {node}"))
    }

    /// Returns the node in which the stubdomain's init reports its phase.
    pub fn phase_node(&self) -> String {
        format!("/local/domain/{}/data/stubdm", self.stub)
    }

    /// Returns where the stubdomain offers its vchan.
    pub fn vchan_node(&self) -> String {
        format!(
            "/local/domain/{}/device-model/{}/qmp-vchan",
            self.stub, self.guest
        )
    }

    /// Returns the node in which the proxy reports that it is ready.
    pub fn proxy_node(&self) -> String {
        format!("/local/domain/0/device-model/{}/qmp-proxy-state", self.stub)
    }

    /// Ends the host, of whose domains no process is left.
    ///
    /// # Errors
    /// A port, a reference or a mapping was not given back.
    pub fn end(self) -> Result<()> {
        let deadline = Instant::now() + CLEAN_LIMIT;
        loop {
            let leaks = self.simulation.leaks();
            if leaks.is_empty() {
                return Ok(());
            }
            if deadline <= Instant::now() {
                return Err(Failure::new(format_args!(
                    "left behind on the simulated host: {}",
                    leaks.join(", ")
                )));
            }
            // The broker detects a process's end after this one does, and reports it to nobody.
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
