//! The handle everything is opened from, and the host that it leads to.

#[cfg(feature = "sim")]
use std::os::fd::OwnedFd;
#[cfg(feature = "sim")]
use std::path::Path;
use std::sync::{Arc, OnceLock};

#[cfg(feature = "sim")]
use crate::DomId;
use crate::Result;
use crate::devices::DevRoot;
use crate::ioctl::GntDev;

/// A way to one hypervisor, as one domain on it.
///
/// One word, cheap to clone, shared freely between threads. Every object of the sibling crates
/// is opened from it and keeps what it needs, so the handle itself may be dropped at any time.
///
/// ```no_run
/// let xen = xen_sys::Xen::open()?;
/// # let _ = xen;
/// # Ok::<(), xen_sys::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Xen(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: Host,
    /// Opened by the first mapping, and kept by every mapping.
    gntdev: OnceLock<Arc<GntDev>>,
}

impl Xen {
    /// Opens the real hypervisor, by the devices in `/dev/xen`.
    ///
    /// Never looks at the environment, so a program that opens its handle here cannot be
    /// diverted to a simulation. Opens no device yet.
    ///
    /// # Errors
    ///
    /// [`Error::NoXen`](crate::Error::NoXen) when there is no `/dev/xen`.
    pub fn open() -> Result<Self> {
        Ok(Self::new(Host::Dev(DevRoot::open("/dev/xen")?)))
    }

    /// Joins a simulated host over a connection to its broker that was made for one of its
    /// domains: [`Simulation::invite`](crate::sim::Simulation::invite). For a child process
    /// with an inherited descriptor.
    ///
    /// # Errors
    ///
    /// [`Error::Os`](crate::Error::Os) when the descriptor is no such connection, or the host or
    /// the domain is gone.
    #[cfg(feature = "sim")]
    pub fn join(broker: OwnedFd) -> Result<Self> {
        let client = crate::sim::Client::new(broker, None)?;
        Ok(Self::new(Host::Sim(client)))
    }

    /// Joins a simulated host by the path of its broker's socket
    /// ([`Simulation::listen`](crate::sim::Simulation::listen)), as a process of domain `me`.
    ///
    /// # Errors
    ///
    /// [`Error::Device`](crate::Error::Device) when nobody listens there;
    /// [`Error::Os`](crate::Error::Os): `ESRCH` when the host has no such domain.
    #[cfg(feature = "sim")]
    pub fn join_path(path: impl AsRef<Path>, me: DomId) -> Result<Self> {
        let client = crate::sim::Client::connect(path.as_ref(), me)?;
        Ok(Self::new(Host::Sim(client)))
    }

    /// Returns the connection to a simulated host, if that is where this handle leads.
    #[cfg(feature = "sim")]
    #[must_use]
    pub fn simulated(&self) -> Option<&crate::sim::Client> {
        match self.host() {
            Host::Sim(client) => Some(client),
            Host::Dev(_) => None,
        }
    }

    /// Which world this handle leads to; for the sibling crates.
    #[doc(hidden)]
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.0.host
    }

    /// The one open gntdev of this handle; for xen-gnttab.
    ///
    /// # Errors
    ///
    /// [`Error::Device`](crate::Error::Device) when it does not open;
    /// [`Error::Unsupported`](crate::Error::Unsupported) on a simulated host.
    #[doc(hidden)]
    pub fn gntdev(&self) -> Result<Arc<GntDev>> {
        if let Some(open) = self.0.gntdev.get() {
            return Ok(Arc::clone(open));
        }
        let opened = match self.host() {
            Host::Dev(root) => Arc::new(GntDev::open(root)?),
            #[cfg(feature = "sim")]
            Host::Sim(_) => return Err(crate::Error::Unsupported { op: "gntdev" }),
        };
        Ok(Arc::clone(self.0.gntdev.get_or_init(|| opened)))
    }

    pub(crate) fn new(host: Host) -> Self {
        let gntdev = OnceLock::new();
        Self(Arc::new(Inner { host, gntdev }))
    }
}

/// The worlds a [`Xen`] can lead to.
///
/// Not exhaustive even inside the workspace: cargo may build this crate with a world its
/// sibling was built without, and the sibling must still compile (and answer
/// [`Error::Unsupported`](crate::Error::Unsupported)).
#[doc(hidden)]
#[derive(Debug)]
#[non_exhaustive]
pub enum Host {
    /// The kernel's drivers.
    Dev(DevRoot),
    /// A simulation's broker.
    #[cfg(feature = "sim")]
    Sim(crate::sim::Client),
}
