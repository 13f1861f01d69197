//! The handle everything is opened from, and which world it leads to.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[cfg(feature = "sim")]
use crate::DomId;
use crate::{Error, Result};

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
pub struct Xen(Arc<Host>);

impl Xen {
    /// Opens the real hypervisor, by the devices in `/dev/xen`.
    ///
    /// Never looks at the environment, so a program that opens its handle here cannot be
    /// diverted to a simulation. Opens no device yet.
    ///
    /// # Errors
    ///
    /// [`Error::NoXen`] when there is no `/dev/xen`.
    pub fn open() -> Result<Self> {
        Ok(Self(Arc::new(Host::Dev(DevRoot::open("/dev/xen")?))))
    }

    /// Joins a simulated host over a connection to its broker that was made for one of its
    /// domains: [`Simulation::invite`](crate::sim::Simulation::invite). For a child process
    /// with an inherited descriptor.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when the descriptor is no such connection, or the host or the domain is
    /// gone.
    #[cfg(feature = "sim")]
    pub fn join(broker: OwnedFd) -> Result<Self> {
        let client = crate::sim::Client::new(broker, None)?;
        Ok(Self(Arc::new(Host::Sim(client))))
    }

    /// Joins a simulated host by the path of its broker's socket
    /// ([`Simulation::listen`](crate::sim::Simulation::listen)), as a process of domain `me`.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when nobody listens there; [`Error::Os`]: `ESRCH` when the host has no
    /// such domain.
    #[cfg(feature = "sim")]
    pub fn join_path(path: impl AsRef<Path>, me: DomId) -> Result<Self> {
        let client = crate::sim::Client::connect(path.as_ref(), me)?;
        Ok(Self(Arc::new(Host::Sim(client))))
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
        &self.0
    }
}

/// The worlds a [`Xen`] can lead to.
///
/// Not exhaustive even inside the workspace: cargo may build this crate with a world its
/// sibling was built without, and the sibling must still compile (and answer
/// [`Error::Unsupported`]).
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

/// The directory with Xen's device nodes.
#[doc(hidden)]
#[derive(Debug)]
pub struct DevRoot {
    dir: PathBuf,
}

impl DevRoot {
    fn open(dir: &str) -> Result<Self> {
        let dir = PathBuf::from(dir);
        if dir.is_dir() {
            Ok(Self { dir })
        } else {
            Err(Error::NoXen { path: dir })
        }
    }

    /// The directory `dir` unseen, for tests.
    #[cfg(test)]
    pub(crate) fn at(dir: &str) -> Self {
        Self { dir: dir.into() }
    }

    /// Opens one node for reading and writing, close-on-exec. `name` is a plain file name such
    /// as `evtchn`.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] with what `open(2)` said.
    pub fn open_device(&self, name: &str) -> Result<OwnedFd> {
        let path = self.path(name);
        // std opens everything with O_CLOEXEC.
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Ok(file.into()),
            Err(source) => Err(Error::Device { path, source }),
        }
    }

    /// Where a node is, for messages.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        debug_assert!(
            Path::new(name).components().count() == 1,
            "{name}: not a plain name"
        );
        self.dir.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_xen_is_named_as_such() {
        let e = DevRoot::open("/nonexistent/xen").unwrap_err();
        assert!(matches!(e, Error::NoXen { .. }));
        assert!(
            e.to_string().starts_with("/nonexistent/xen is missing"),
            "{e}"
        );
        assert_eq!(e.errno(), Some(libc::ENOENT));
    }

    #[test]
    fn a_missing_node_is_named_by_its_path() {
        let e = DevRoot::open("/dev")
            .unwrap()
            .open_device("no-such-node")
            .unwrap_err();
        assert!(e.to_string().starts_with("/dev/no-such-node: "), "{e}");
    }

    #[test]
    fn nodes_are_opened_close_on_exec() {
        use std::os::fd::AsRawFd;
        let fd = DevRoot::open("/dev").unwrap().open_device("null").unwrap();
        let info = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
        let info = std::fs::read_to_string(info).unwrap();
        let flags = info
            .lines()
            .find_map(|l| l.strip_prefix("flags:"))
            .unwrap()
            .trim();
        let flags = i32::from_str_radix(flags, 8).unwrap();
        assert_eq!(flags & libc::O_CLOEXEC, libc::O_CLOEXEC);
        assert_eq!(flags & libc::O_ACCMODE, libc::O_RDWR);
    }
}
