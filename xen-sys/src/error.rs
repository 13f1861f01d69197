//! One error type for every operation on the hypervisor or its drivers.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::{DomId, PciFunction};

/// The result of an operation on the hypervisor.
pub type Result<T> = std::result::Result<T, Error>;

/// The reason why an operation on the hypervisor failed.
///
/// Divided by what the caller can do about it: run elsewhere ([`NoXen`](Self::NoXen)), load a
/// module or gain a privilege ([`Device`](Self::Device), [`NotPermitted`](Self::NotPermitted),
/// [`HypercallsRefused`](Self::HypercallsRefused)), assign only available parts of the machine
/// ([`ResourceRefused`](Self::ResourceRefused)), look at the errno ([`Os`](Self::Os),
/// [`ForeignFrame`](Self::ForeignFrame)), correct the call ([`Invalid`](Self::Invalid),
/// [`NoDomain`](Self::NoDomain)), do without ([`Unsupported`](Self::Unsupported),
/// [`InterfaceVersion`](Self::InterfaceVersion)), release something
/// ([`LimitReached`](Self::LimitReached)), or start over ([`EventOverflow`](Self::EventOverflow)).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no `/dev/xen`: this machine is not a Xen domain.
    #[error(
        "{} is missing: this is not a Xen domain, or its kernel has no Xen drivers",
        path.display()
    )]
    NoXen {
        /// The directory that was looked for.
        path: PathBuf,
    },
    /// A device node could not be opened.
    #[error("{}: {source}{}", path.display(), device_hint(source))]
    Device {
        /// The node.
        path: PathBuf,
        /// The error of `open(2)`.
        source: Arc<io::Error>,
    },
    /// A system call failed; `op` names the call.
    #[error("{op}: {source}")]
    Os {
        /// The ioctl or system call by its C name.
        op: &'static str,
        /// The errno.
        source: Arc<io::Error>,
    },
    /// An argument is invalid; nothing was done.
    #[error("{op}: {what} cannot be {value}")]
    Invalid {
        /// The operation.
        op: &'static str,
        /// The name of the argument.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// This host, kernel or build has no such operation.
    #[error("{op} is not supported here")]
    Unsupported {
        /// The operation.
        op: &'static str,
    },
    /// Xen (`EPERM`) or its security policy (`EACCES`) does not let this domain make the call.
    #[error("{op}: this domain may not do that: {source}")]
    NotPermitted {
        /// The hypercall's operation by its C name.
        op: &'static str,
        /// The errno.
        source: Arc<io::Error>,
    },
    /// The kernel refuses every hypercall through this file (`EPERM`), so the call did not reach
    /// Xen.
    ///
    /// This is the case in a domain that is not a control domain, from the kernels with the fix for
    /// XSA-482 on (they log `No target domain found`), and on a file that is restricted to one
    /// domain.
    #[error(
        "{op}: the kernel refuses hypercalls from this program (XSA-482, or a restricted file)"
    )]
    HypercallsRefused {
        /// The hypercall's operation by its C name.
        op: &'static str,
    },
    /// Xen or the kernel has no room for more of these; nothing was done. The errno is `ENOSPC` or
    /// `E2BIG`, that of a mapping of grants `EINVAL`, and that of an ioreq server's range `ENOMEM`.
    #[error("{op}: a limit{} is reached: {source}", of(*limit))]
    LimitReached {
        /// The hypercall's operation, or the ioctl, by its C name.
        op: &'static str,
        /// The limit, in units of the request, where it is known.
        limit: Option<u64>,
        /// The errno.
        source: Arc<io::Error>,
    },
    /// Xen's interface has a version that this crate does not support.
    ///
    /// Never a matter of permission: Xen checks the version first.
    #[error("{op}: Xen has none of interface versions {lowest:#x} to {highest:#x}")]
    InterfaceVersion {
        /// `domctl` or `sysctl`.
        op: &'static str,
        /// The lowest version known.
        lowest: u32,
        /// The highest version known.
        highest: u32,
    },
    /// There is no such domain (`ESRCH`).
    #[error("{op}: there is no domain {domain}")]
    NoDomain {
        /// The hypercall's operation by its C name.
        op: &'static str,
        /// The domain.
        domain: DomId,
    },
    /// Xen does not let this domain give a part of the machine to a domain, or take it back.
    ///
    /// `EPERM`: this domain may not use the part itself. `EOPNOTSUPP`: there is no IOMMU for the
    /// domain. `ENODEV`: the device is missing, or belongs to another domain. `EINVAL`: there is no
    /// such part.
    #[error("{op}: {resource} and domain {domain}: {source}")]
    ResourceRefused {
        /// The hypercall's operation by its C name.
        op: &'static str,
        /// The part.
        resource: MachineResource,
        /// The domain.
        domain: DomId,
        /// The errno.
        source: Arc<io::Error>,
    },
    /// A frame of another domain could not be mapped.
    ///
    /// `EINVAL`: there is no memory at that frame. `ENOENT`: it stayed paged out.
    #[error("frame {frame:#x} of domain {domain} cannot be mapped: {source}")]
    ForeignFrame {
        /// The domain.
        domain: DomId,
        /// The guest frame number.
        frame: u64,
        /// The errno.
        source: Arc<io::Error>,
    },
    /// The page of a guest's monitor contains impossible values: a domain that has it mapped wrote
    /// to it, or Xen's records are of another version.
    #[error("the monitor's ring: {what} cannot be {value}")]
    MonitorRing {
        /// The name of the value.
        what: &'static str,
        /// The value.
        value: u32,
    },
    /// The kernel's event buffer overflowed and no event is delivered until a reset.
    ///
    /// Linux: `EFBIG` from `/dev/xen/evtchn`.
    #[error("the event buffer overflowed: it delivers nothing until it is reset")]
    EventOverflow,
}

/// Formats a limit to follow the word, if it is known.
fn of(limit: Option<u64>) -> String {
    limit.map_or_else(String::new, |limit| format!(" of {limit}"))
}

/// Returns the first thing to check when a node does not open.
fn device_hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => " (is its kernel module loaded?)",
        io::ErrorKind::PermissionDenied => " (it usually belongs to root)",
        _ => "",
    }
}

/// A part of the machine that a domain may be given, in [`Error::ResourceRefused`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MachineResource {
    /// I/O ports.
    IoPorts {
        /// The first one.
        first: u32,
        /// The number of them.
        count: u32,
    },
    /// Frames of the machine's physical address space.
    Frames {
        /// The first one.
        first: u64,
        /// The number of them.
        count: u64,
    },
    /// An interrupt, by the caller's number for it.
    Irq(u32),
    /// A PCI device.
    Device(PciFunction),
}

impl fmt::Display for MachineResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::IoPorts { first, count } => {
                let last = u64::from(first) + u64::from(count).saturating_sub(1);
                write!(f, "I/O ports {first:#x} to {last:#x}")
            }
            Self::Frames { first, count } => {
                let last = first.saturating_add(count.saturating_sub(1));
                write!(f, "machine frames {first:#x} to {last:#x}")
            }
            Self::Irq(irq) => write!(f, "interrupt {irq}"),
            Self::Device(device) => write!(f, "device {device}"),
        }
    }
}

impl Error {
    /// Makes an error from the system's errno for `op`.
    #[doc(hidden)]
    #[must_use]
    pub fn os(op: &'static str, source: io::Error) -> Self {
        Self::Os {
            op,
            source: source.into(),
        }
    }

    /// Converts an error of a device-model operation or a mapping to one that names the cause.
    /// `domain` is the domain whose device model or memory it is about.
    pub(crate) fn about(self, domain: DomId) -> Self {
        let Self::Os { op, source } = self else {
            return self;
        };
        match source.raw_os_error() {
            Some(libc::ESRCH) => Self::NoDomain { op, domain },
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { op, source },
            Some(libc::ENOTTY | libc::ENOSYS | libc::EOPNOTSUPP) => Self::Unsupported { op },
            Some(libc::ENOSPC | libc::E2BIG) => Self::LimitReached {
                op,
                limit: None,
                source,
            },
            _ => Self::Os { op, source },
        }
    }

    /// Returns the errno, where the system returned one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Device { source, .. }
            | Self::Os { source, .. }
            | Self::ForeignFrame { source, .. }
            | Self::ResourceRefused { source, .. }
            | Self::NotPermitted { source, .. }
            | Self::LimitReached { source, .. } => source.raw_os_error(),
            Self::HypercallsRefused { .. } => Some(libc::EPERM),
            Self::InterfaceVersion { .. } => Some(libc::EACCES),
            Self::NoDomain { .. } => Some(libc::ESRCH),
            Self::NoXen { .. } => Some(libc::ENOENT),
            Self::EventOverflow => Some(libc::EFBIG),
            Self::Invalid { .. } | Self::Unsupported { .. } | Self::MonitorRing { .. } => None,
        }
    }

    /// Returns the nearest [`io::ErrorKind`].
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Device { source, .. }
            | Self::Os { source, .. }
            | Self::ResourceRefused { source, .. }
            | Self::ForeignFrame { source, .. } => source.kind(),
            Self::NoXen { .. } | Self::NoDomain { .. } => io::ErrorKind::NotFound,
            Self::NotPermitted { .. } | Self::HypercallsRefused { .. } => {
                io::ErrorKind::PermissionDenied
            }
            Self::Invalid { .. } => io::ErrorKind::InvalidInput,
            Self::Unsupported { .. } | Self::InterfaceVersion { .. } => io::ErrorKind::Unsupported,
            Self::MonitorRing { .. } => io::ErrorKind::InvalidData,
            Self::LimitReached { .. } => io::ErrorKind::QuotaExceeded,
            Self::EventOverflow => io::ErrorKind::Other,
        }
    }
}

impl From<Error> for io::Error {
    /// Keeps the kind and the whole message; the errno is in the wrapped [`Error`].
    fn from(e: Error) -> Self {
        Self::new(e.kind(), e)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_and_kind_survive_the_way_into_io_error() {
        let e = Error::os("IOCTL_X", io::Error::from_raw_os_error(libc::EACCES));
        assert_eq!(e.errno(), Some(libc::EACCES));
        let e = io::Error::from(e);
        assert_eq!(e.kind(), io::ErrorKind::PermissionDenied);
        let inner = e.get_ref().and_then(|e| e.downcast_ref::<Error>());
        assert_eq!(inner.and_then(Error::errno), Some(libc::EACCES));
        assert!(e.to_string().starts_with("IOCTL_X: "), "{e}");
    }

    #[test]
    fn a_missing_node_names_what_to_look_at() {
        let e = Error::Device {
            path: "/dev/xen/gntalloc".into(),
            source: io::Error::from_raw_os_error(libc::ENOENT).into(),
        };
        let text = e.to_string();
        assert!(
            text.contains("/dev/xen/gntalloc") && text.contains("module"),
            "{text}"
        );
    }
}
