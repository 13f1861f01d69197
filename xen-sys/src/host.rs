//! The handle from which everything is opened, and the host that it refers to.

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

/// A handle to one hypervisor, as one domain on it.
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
    /// Opened by the first mapping and kept by every mapping.
    gntdev: OnceLock<Arc<GntDev>>,
}

impl Xen {
    /// Opens the real hypervisor, through the devices in `/dev/xen`.
    ///
    /// Never reads the environment, so a program that opens its handle here cannot be diverted to a
    /// simulation. Opens no device yet.
    ///
    /// # Errors
    ///
    /// [`Error::NoXen`](crate::Error::NoXen) when there is no `/dev/xen`.
    pub fn open() -> Result<Self> {
        Ok(Self::new(Host::Dev(DevRoot::open("/dev/xen")?)))
    }

    /// Joins a simulated host over a connection to its broker that was made for one of its domains:
    /// [`Simulation::invite`](crate::sim::Simulation::invite). For a child process with an
    /// inherited descriptor.
    ///
    /// # Errors
    ///
    /// [`Error::Os`](crate::Error::Os) when the descriptor is no such connection, or the host or
    /// the domain has ended.
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
    /// [`Error::Device`](crate::Error::Device) when no broker listens there;
    /// [`Error::Os`](crate::Error::Os): `ESRCH` when the host has no such domain.
    #[cfg(feature = "sim")]
    pub fn join_path(path: impl AsRef<Path>, me: DomId) -> Result<Self> {
        let client = crate::sim::Client::connect(path.as_ref(), me)?;
        Ok(Self::new(Host::Sim(client)))
    }

    /// Joins the simulated host that the environment names, or opens the real hypervisor if it
    /// names none. `XEN_SIM_SOCKET` is the path of the broker's socket
    /// ([`Simulation::listen`](crate::sim::Simulation::listen)). `XEN_SIM_DOMAIN` is the number of
    /// the domain that this program is a process of, 0 by default.
    ///
    /// For programs that are run in tests. It exists with the feature `sim` only, so a program that
    /// is shipped without cannot be diverted:
    ///
    /// ```
    /// # use xen_sys::{Result, Xen};
    /// fn open() -> Result<Xen> {
    ///     #[cfg(feature = "sim")]
    ///     return Xen::from_env();
    ///     #[cfg(not(feature = "sim"))]
    ///     Xen::open()
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`](crate::Error::Invalid) if `XEN_SIM_DOMAIN` is no domain's number; as
    /// [`join_path`](Self::join_path) and [`open`](Self::open).
    #[cfg(feature = "sim")]
    pub fn from_env() -> Result<Self> {
        Self::named_by(|name| std::env::var_os(name))
    }

    #[cfg(feature = "sim")]
    fn named_by(lookup: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<Self> {
        let Some(path) = lookup("XEN_SIM_SOCKET") else {
            return Self::open();
        };
        let me = match lookup("XEN_SIM_DOMAIN") {
            None => Some(DomId::DOM0),
            Some(text) => text.to_str().and_then(|text| text.parse().ok()),
        };
        let me = me.ok_or(crate::Error::Invalid {
            op: "join a simulated host",
            what: "XEN_SIM_DOMAIN, which is no domain's number,",
            value: 0,
        })?;
        Self::join_path(path, me)
    }

    /// Returns the connection to a simulated host, if this handle refers to one.
    #[cfg(feature = "sim")]
    #[must_use]
    pub fn simulated(&self) -> Option<&crate::sim::Client> {
        match self.host() {
            Host::Sim(client) => Some(client),
            Host::Dev(_) => None,
        }
    }

    /// Returns the directory of the kernel's device nodes, for [`ioctl`](crate::ioctl); `None` on a
    /// simulated host.
    #[must_use]
    pub fn dev_root(&self) -> Option<&DevRoot> {
        match self.host() {
            Host::Dev(root) => Some(root),
            #[cfg(feature = "sim")]
            Host::Sim(_) => None,
        }
    }

    /// Returns the host that this handle refers to; for the sibling crates.
    #[doc(hidden)]
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.0.host
    }

    /// Returns the one open gntdev of this handle; for xen-gnttab.
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

/// The hosts that a [`Xen`] can refer to.
///
/// Not exhaustive even inside the workspace: cargo may build this crate with a host that its
/// sibling was built without, and the sibling must still compile (and fail with
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

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::Error;
    use crate::sim::Simulation;

    #[test]
    fn the_environment_names_a_simulated_host_and_a_domain_of_it() {
        let host = Simulation::start().unwrap();
        let guest = host.add_domain().unwrap();
        let path = std::env::temp_dir().join(format!("xen-sys-env-{}", std::process::id()));
        host.listen(&path).unwrap();
        let open = |domain: Option<&str>| {
            Xen::named_by(|name| match name {
                "XEN_SIM_SOCKET" => Some(path.clone().into()),
                "XEN_SIM_DOMAIN" => domain.map(Into::into),
                other => panic!("{other}"),
            })
        };
        let domain = |xen: Xen| xen.simulated().map(crate::sim::Client::domain);
        assert_eq!(domain(open(None).unwrap()), Some(DomId::DOM0));
        assert!(open(None).unwrap().dev_root().is_none());
        assert_eq!(domain(open(Some("1")).unwrap()), Some(guest));
        for no_number in ["", "x", "65536", "-1"] {
            let error = open(Some(no_number)).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{error}");
        }
        assert_eq!(open(Some("7")).unwrap_err().errno(), Some(libc::ESRCH));
        drop(host);
        assert!(matches!(open(None), Err(Error::Device { .. })));
        // The environment names none: the devices, which may or may not exist.
        assert!(!Xen::named_by(|_| None).is_ok_and(|xen| xen.simulated().is_some()));
    }
}
