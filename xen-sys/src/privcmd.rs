//! `/dev/xen/privcmd`: hypercalls from user space, typed.
//!
//! ```
//! use xen_sys::{Error, Xen, privcmd::Privcmd};
//!
//! fn show(xen: &Xen) -> Result<(), Error> {
//!     let privcmd = Privcmd::open(xen)?;
//!     println!("Xen {}", privcmd.xen_version()?);
//!     for domain in privcmd.domains()? {
//!         println!("{}: {:?}, {} pages", domain.id, domain.flags, domain.pages);
//!     }
//!     Ok(())
//! }
//! # #[cfg(feature = "sim")] {
//! # let host = xen_sys::sim::Simulation::start()?;
//! # show(&host.xen(xen_sys::DomId::DOM0)?)?;
//! # }
//! # Ok::<(), Error>(())
//! ```
//!
//! | what | calls |
//! |---|---|
//! | the hypervisor | [`xen_version`](Privcmd::xen_version) and its neighbours |
//! | domains | [`domains`](Privcmd::domains), [`domain_info`](Privcmd::domain_info), [`pause`](Privcmd::pause), [`destroy`](Privcmd::destroy), ... |
//! | the machine | [`phys_info`](Privcmd::phys_info), [`cpu_topology`](Privcmd::cpu_topology), [`console_ring`](Privcmd::console_ring), ... |
//! | one guest | [`hvm_param`](Privcmd::hvm_param), [`port_status`](Privcmd::port_status), [`maximum_gpfn`](Privcmd::maximum_gpfn), ... |
//! | its memory and resources | [`guest`](Privcmd::guest), for `xen_gnttab::foreign` |
//! | its monitor | [`enable_monitor`](Privcmd::enable_monitor), [`enable_event`](Privcmd::enable_event), [`set_mem_access`](Privcmd::set_mem_access), ... |
//! | anything else | [`hypercall`](Privcmd::hypercall) and [`multicall`](Privcmd::multicall), which are `unsafe` |
//!
//! Nothing else in the workspace needs this device: event channels, grants and the store have their
//! own devices. In a domain that is not privileged, kernels with the fix for XSA-482 refuse every
//! hypercall through it: [`Error::HypercallsRefused`].
//!
//! # Versions
//!
//! Xen's interfaces for its toolstack, domctl and sysctl, have version numbers, and Xen supports
//! one version only. The first such call determines the version
//! ([`interfaces`](Privcmd::interfaces)), so one program serves Xen 4.17 to 4.22.
//!
//! # Restriction
//!
//! A restricted handle has its own type, so that calls that the kernel would refuse do not compile:
//!
//! ```text
//!   Privcmd ── restrict(dom) ──> RestrictedPrivcmd ──> DeviceModel
//!                                permanent; no hypercall any more
//! ```
//!
//! [`DeviceModel`](crate::device_model::DeviceModel) has the device-model operations.

mod altp2m;
mod assign;
mod backend;
mod context;
mod domain;
mod guest;
mod machine;
mod memory;
mod pool;
mod raw;
mod reservation;
mod version;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

pub use self::altp2m::{Altp2m, MemoryAccess, ViewId};
pub use self::assign::PirqSource;
use self::backend::Backend;
pub use self::domain::{
    CapabilityFlags, DomainFlags, DomainInfo, DomainState, ShutdownReason, StateFlags, VcpuInfo,
};
pub use self::guest::{GrantTableSize, HvmParam, PortState, PortStatus};
pub use self::machine::{
    ConsoleChunk, CpuTopology, FrequencyState, FrequencyStates, IdleState, IdleStates, NodeMemory,
    PhysCaps, PhysInfo,
};
#[doc(hidden)]
pub use self::memory::{ForeignHold, ForeignPages};
pub use self::memory::{Guest, Resource};
pub use self::pool::Buffer;
pub use self::reservation::MapSpace;
pub use self::version::{CompileInfo, DomainHandle, Features, XenVersion};
use crate::abi::dm_op::RemoteShutdown;
pub use crate::abi::hypercall::MulticallEntry;
use crate::abi::privcmd::SHUTDOWN_CRASH;
#[cfg(target_arch = "x86_64")]
pub use crate::abi::vcpu::VcpuGuestContext;
use crate::ioctl::PrivCmd;
use crate::ioctl::privcmd::DmOpBody;
use crate::{DomId, Error, Result, Xen};

/// An open privcmd device, unrestricted.
///
/// Any number of threads may make calls at the same time.
#[doc(alias = "xencall_handle")]
#[doc(alias = "xencall_close")]
#[doc(alias = "xencall_fd")]
#[doc(alias = "xc_interface")]
#[doc(alias = "xc_interface_close")]
#[derive(Debug)]
pub struct Privcmd {
    backend: Backend,
}

/// The versions of Xen's interfaces for its toolstack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Interfaces {
    /// domctl's.
    #[doc(alias = "XEN_DOMCTL_INTERFACE_VERSION")]
    pub domctl: u32,
    /// sysctl's.
    #[doc(alias = "XEN_SYSCTL_INTERFACE_VERSION")]
    pub sysctl: u32,
}

impl Privcmd {
    /// Opens the device, which usually needs root. On a simulated host, a process of domain 0 may
    /// make the typed calls.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when the node does not open.
    #[doc(alias = "xencall_open")]
    #[doc(alias = "xc_interface_open")]
    pub fn open(xen: &Xen) -> Result<Self> {
        let backend = Backend::open(xen)?;
        Ok(Self { backend })
    }

    /// Takes a descriptor of the device that another program opened. A restriction here restricts
    /// that program's file too.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a descriptor of another file; [`Error::Unsupported`] on a simulated
    /// host; those of [`open`](Self::open).
    pub fn adopt(xen: &Xen, fd: OwnedFd) -> Result<Self> {
        let backend = Backend::adopt(xen, fd)?;
        Ok(Self { backend })
    }

    pub(crate) fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Returns the versions of Xen's interfaces, determined once.
    ///
    /// # Errors
    ///
    /// [`Error::InterfaceVersion`] when this crate does not support Xen's;
    /// [`Error::HypercallsRefused`] where the kernel refuses hypercalls. Xen reports the versions
    /// even to a domain that may make no such call.
    pub fn interfaces(&self) -> Result<Interfaces> {
        Ok(Interfaces {
            domctl: self.backend.domctl_version()?,
            sysctl: self.backend.sysctl_version()?,
        })
    }

    /// Returns memory to name in a [`hypercall`](Self::hypercall): zeroed, at least `len` bytes,
    /// whole pages. It is pooled: making one and dropping it costs little.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for no bytes or more than 1 MiB; [`Error::Os`] when there is no memory,
    /// or none may be locked where there is no `/dev/xen/hypercall`; [`Error::Unsupported`] on a
    /// simulated host.
    #[doc(alias = "xencall_alloc_buffer")]
    #[doc(alias = "xencall_alloc_buffer_pages")]
    pub fn buffer(&self, len: usize) -> Result<Buffer<'_>> {
        let mut buffer = self.backend.buffer(len)?;
        buffer.bytes_mut().fill(0);
        Ok(buffer)
    }

    /// Permanently restricts this file, with every copy of the descriptor, to device-model
    /// operations and memory mappings on `domain`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] before Linux 4.16; [`Error::NotPermitted`] (`EINVAL`) if it is
    /// restricted to another domain already. The unrestricted handle is closed even then.
    #[doc(alias = "IOCTL_PRIVCMD_RESTRICT")]
    pub fn restrict(self, domain: DomId) -> Result<RestrictedPrivcmd> {
        if let Ok(dev) = self.backend.device("IOCTL_PRIVCMD_RESTRICT") {
            dev.restrict(domain).map_err(restrict_error)?;
        }
        Ok(RestrictedPrivcmd {
            backend: self.backend,
            domain,
        })
    }
}

/// Converts the error of a failed restriction.
fn restrict_error(error: Error) -> Error {
    match error {
        Error::Os { op, source } => match source.raw_os_error() {
            Some(libc::ENOTTY) => Error::Unsupported { op },
            Some(libc::EINVAL) => Error::NotPermitted { op, source },
            _ => Error::Os { op, source },
        },
        error => error,
    }
}

/// The device. On a simulated host, a descriptor on which every request fails.
impl AsFd for Privcmd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.backend.fd()
    }
}

/// A privcmd device that can reach one domain only and make no arbitrary hypercall.
///
/// On a simulated host the type alone is the restriction.
#[derive(Debug)]
pub struct RestrictedPrivcmd {
    backend: Backend,
    domain: DomId,
}

impl RestrictedPrivcmd {
    /// A file that is not restricted, for tests with a file that is no privcmd.
    #[cfg(test)]
    pub(crate) fn unrestricted(privcmd: Privcmd, domain: DomId) -> Self {
        let backend = privcmd.backend;
        Self { backend, domain }
    }

    /// Returns the domain that stays reachable.
    #[must_use]
    pub fn domain(&self) -> DomId {
        self.domain
    }

    /// Declares that the domain has crashed, which its device model may do. The toolstack then
    /// treats it as the domain's configuration specifies.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] if this is not its device model; [`Error::NoDomain`].
    pub fn crash(&self) -> Result<()> {
        let reason = SHUTDOWN_CRASH;
        self.dm_op(RemoteShutdown { reason }, &mut []).map(drop)
    }

    /// Makes a device-model operation on the domain, as [`PrivCmd::dm_op`].
    pub(crate) fn dm_op<B: DmOpBody>(&self, body: B, second: &mut [u8]) -> Result<B> {
        let done = self.backend.dm_op(self.domain, body, second);
        done.map_err(|e| e.about(self.domain))
    }

    /// Returns the device, for operations that a simulated host does not have.
    pub(crate) fn device(&self, op: &'static str) -> Result<&PrivCmd> {
        self.backend.device(op)
    }

    /// Returns whether hypercalls fail, as they must: the proof that the kernel restricts this
    /// file. False on a simulated host, which has no kernel.
    #[must_use]
    pub fn refuses_hypercalls(&self) -> bool {
        self.backend.refuses_hypercalls()
    }
}

impl AsFd for RestrictedPrivcmd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.backend.fd()
    }
}
