//! `/dev/xen/privcmd`: hypercalls from user space, typed.
//!
//! Nothing else in the workspace needs this device: event channels, grants and the store have
//! devices of their own. In a domain that is not privileged, kernels with the fix for XSA-482
//! refuse hypercalls through it altogether (`EPERM`).
//!
//! A restricted handle is a type of its own, so that what the kernel would refuse does not
//! compile:
//!
//! ```text
//!   Privcmd ── restrict(dom) ──> RestrictedPrivcmd     for good; no hypercall any more
//! ```

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use crate::abi::privcmd::{
    SHUTDOWN_CRASH, XEN_CAPABILITIES_INFO_LEN, XENVER_CAPABILITIES, XENVER_EXTRAVERSION,
};
use crate::ioctl::PrivCmd;
use crate::mmap::HypercallBuffer;
use crate::{DomId, Error, Host, Result, Xen};

/// An open privcmd device, unrestricted.
#[doc(alias = "xencall_handle")]
#[doc(alias = "xencall_close")]
#[doc(alias = "xencall_fd")]
#[derive(Debug)]
pub struct Privcmd {
    dev: PrivCmd,
    /// Memory for what a hypercall writes; one call at a time uses it.
    buffer: Mutex<HypercallBuffer>,
}

impl Privcmd {
    /// Opens the device, which usually takes root.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when the node does not open; [`Error::Os`] without memory for a buffer;
    /// [`Error::Unsupported`] on a host that is not real: a simulated hypervisor takes no
    /// hypercalls.
    #[doc(alias = "xencall_open")]
    pub fn open(xen: &Xen) -> Result<Self> {
        match xen.host() {
            Host::Dev(root) => {
                let dev = PrivCmd::open(root)?;
                let buffer = HypercallBuffer::new(root, XEN_CAPABILITIES_INFO_LEN)?;
                Ok(Self {
                    dev,
                    buffer: Mutex::new(buffer),
                })
            }
            #[allow(unreachable_patterns)]
            _ => Err(Error::Unsupported { op: "privcmd" }),
        }
    }

    /// Takes a descriptor of the device that some other program opened: what is restricted here is
    /// restricted there.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if it is of something else; as [`open`](Self::open).
    pub fn adopt(xen: &Xen, fd: OwnedFd) -> Result<Self> {
        match xen.host() {
            Host::Dev(root) => {
                let dev = PrivCmd::adopt(root, fd)?;
                let buffer = HypercallBuffer::new(root, XEN_CAPABILITIES_INFO_LEN)?;
                Ok(Self {
                    dev,
                    buffer: Mutex::new(buffer),
                })
            }
            #[allow(unreachable_patterns)]
            _ => Err(Error::Unsupported { op: "privcmd" }),
        }
    }

    /// The hypervisor's version.
    ///
    /// # Errors
    ///
    /// `EPERM` where the kernel refuses hypercalls.
    ///
    /// ```no_run
    /// # use xen_sys::{Xen, privcmd::Privcmd};
    /// let v = Privcmd::open(&Xen::open()?)?.xen_version()?;
    /// println!("{v}"); // 4.17.5
    /// # Ok::<(), xen_sys::Error>(())
    /// ```
    #[doc(alias = "xc_version")]
    #[doc(alias = "XENVER_version")]
    pub fn xen_version(&self) -> Result<XenVersion> {
        let (major, minor) = self.dev.xenver_version()?;
        let extra = self.text(XENVER_EXTRAVERSION)?;
        Ok(XenVersion {
            major,
            minor,
            extra,
        })
    }

    /// The guest types the hypervisor can run, such as `xen-3.0-x86_64 hvm-3.0-x86_64`.
    ///
    /// # Errors
    ///
    /// As [`xen_version`](Self::xen_version).
    #[doc(alias = "XENVER_capabilities")]
    pub fn capabilities(&self) -> Result<String> {
        self.text(XENVER_CAPABILITIES)
    }

    fn text(&self, cmd: u64) -> Result<String> {
        // A poisoned lock guards bytes that the next call overwrites anyway.
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.dev.xenver_text(cmd, &mut buffer)?;
        Ok(String::from_utf8_lossy(bytes).trim_end().to_owned())
    }

    /// The device, for raw hypercalls.
    #[must_use]
    pub fn device(&self) -> &PrivCmd {
        &self.dev
    }

    /// Gives up, for good and for every copy of the descriptor, all but device-model operations
    /// and memory mappings on `domain`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] before Linux 4.16; else the kernel's. The unrestricted handle is
    /// closed in any case.
    #[doc(alias = "IOCTL_PRIVCMD_RESTRICT")]
    pub fn restrict(self, domain: DomId) -> Result<RestrictedPrivcmd> {
        match self.dev.restrict(domain) {
            Ok(()) => Ok(RestrictedPrivcmd {
                dev: self.dev,
                domain,
            }),
            Err(e) if e.errno() == Some(libc::ENOTTY) => Err(Error::Unsupported {
                op: "IOCTL_PRIVCMD_RESTRICT",
            }),
            Err(e) => Err(e),
        }
    }
}

/// A privcmd device that can reach one domain only and make no hypercall of its own choice.
#[derive(Debug)]
pub struct RestrictedPrivcmd {
    dev: PrivCmd,
    domain: DomId,
}

impl RestrictedPrivcmd {
    /// The domain that stays reachable.
    #[must_use]
    pub fn domain(&self) -> DomId {
        self.domain
    }

    /// Declares that the domain has crashed, which its device model may do. The toolstack then does with it what
    /// its configuration says.
    ///
    /// # Errors
    ///
    /// `EPERM` if this is not its device model.
    #[doc(alias = "xendevicemodel_shutdown")]
    pub fn crash(&self) -> Result<()> {
        self.dev.remote_shutdown(self.domain, SHUTDOWN_CRASH)
    }

    /// Whether hypercalls are refused, as they have to be: the proof that the kernel restricts this file.
    #[must_use]
    pub fn refuses_hypercalls(&self) -> bool {
        let refused = self.dev.xenver_version().err();
        refused.and_then(|error| error.errno()) == Some(libc::EPERM)
    }
}

impl AsFd for RestrictedPrivcmd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dev.as_fd()
    }
}

/// A hypervisor's version; prints as Xen's own tools print it, `4.17.5`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct XenVersion {
    /// 4 of `4.17.5`.
    pub major: u16,
    /// 17 of `4.17.5`.
    pub minor: u16,
    /// `.5` of `4.17.5`; a distribution may put anything here, in at most 15 bytes.
    pub extra: String,
}

impl fmt::Display for XenVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}{}", self.major, self.minor, self.extra)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_prints_as_xens_tools_do() {
        let v = XenVersion {
            major: 4,
            minor: 17,
            extra: ".6-pre".into(),
        };
        assert_eq!(v.to_string(), "4.17.6-pre");
    }
}
