//! privcmd's requests, the only ones whose arguments hold addresses.
//!
//! # Safety
//!
//! This file is not safe code because a hypercall's arguments may be addresses that the hypervisor reads and writes: making one
//! with arguments of the caller's choice is an `unsafe fn`, and the typed ones prove that theirs are of memory of their own.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;

use super::{Driver, Node, ioctl, set};
use crate::abi::privcmd;
use crate::mmap::HypercallBuffer;
use crate::{DevRoot, DomId, Error, Result};

/// An open `/dev/xen/privcmd`. [`crate::privcmd`] has the typed operations.
#[derive(Debug)]
pub struct PrivCmd(Node<PrivCmdDriver>);

/// The driver behind `/dev/xen/privcmd`.
#[derive(Debug)]
pub(super) struct PrivCmdDriver;

impl Driver for PrivCmdDriver {
    const NODE: &'static str = "privcmd";
}

impl PrivCmd {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// What [`DevRoot::open_device`] says.
    pub fn open(root: &DevRoot) -> Result<Self> {
        Node::open(root).map(Self)
    }

    /// Takes a descriptor of this device that some other program opened.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if it is of something else; what [`open`](Self::open) says.
    pub fn adopt(root: &DevRoot, fd: OwnedFd) -> Result<Self> {
        Node::adopt(root, fd).map(Self)
    }

    /// Makes hypercall `op`, and returns what it returned, which is not negative.
    ///
    /// # Errors
    ///
    /// The hypercall's errno, or the driver's: `EPERM` from a restricted file, or in a domain
    /// whose kernel refuses privileged hypercalls.
    ///
    /// # Safety
    ///
    /// Arguments that are addresses must be valid, for as long as and for what that hypercall
    /// reads and writes, and the hypercall itself must not change memory this program relies
    /// on. Memory that Xen writes must not be reachable by a live reference. An address should
    /// be in a [`HypercallBuffer`]: Xen does not fault pages in, so the call fails with
    /// `EFAULT` when ordinary memory happens not to be mapped.
    #[doc(alias = "IOCTL_PRIVCMD_HYPERCALL")]
    #[doc(alias = "xencall0")]
    #[doc(alias = "xencall1")]
    #[doc(alias = "xencall2")]
    #[doc(alias = "xencall3")]
    #[doc(alias = "xencall4")]
    #[doc(alias = "xencall5")]
    pub unsafe fn hypercall(&self, op: u64, arg: [u64; 5]) -> Result<c_int> {
        let mut call = privcmd::Hypercall { op, arg };
        // SAFETY: the driver reads one `Hypercall`, which `call` is; the caller vouches for the
        // addresses in it; the descriptor is of /dev/xen/privcmd.
        unsafe {
            ioctl(
                self.0.file.as_fd(),
                "IOCTL_PRIVCMD_HYPERCALL",
                privcmd::IOCTL_PRIVCMD_HYPERCALL,
                ptr::from_mut(&mut call).cast(),
            )
        }
    }

    /// `xen_version(XENVER_version)`: `(major, minor)`.
    ///
    /// # Errors
    ///
    /// As [`hypercall`](Self::hypercall).
    pub fn xenver_version(&self) -> Result<(u16, u16)> {
        let arg = [privcmd::XENVER_VERSION, 0, 0, 0, 0];
        // SAFETY: this operation takes no address (xen/include/public/version.h: "arg == NULL").
        let v = unsafe { self.hypercall(privcmd::HYPERVISOR_XEN_VERSION, arg) }? as u32;
        Ok(((v >> 16) as u16, v as u16))
    }

    /// `xen_version(cmd)` for one of the two operations that write text: the bytes Xen wrote,
    /// which end at the first zero.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for an operation other than [`privcmd::XENVER_EXTRAVERSION`] and
    /// [`privcmd::XENVER_CAPABILITIES`] or a buffer too small for it; else as
    /// [`hypercall`](Self::hypercall).
    pub fn xenver_text<'b>(&self, cmd: u64, buffer: &'b mut HypercallBuffer) -> Result<&'b [u8]> {
        const OP: &str = "xen_version";
        let len = match cmd {
            privcmd::XENVER_EXTRAVERSION => privcmd::XEN_EXTRAVERSION_LEN,
            privcmd::XENVER_CAPABILITIES => privcmd::XEN_CAPABILITIES_INFO_LEN,
            _ => {
                return Err(Error::Invalid {
                    op: OP,
                    what: "the operation",
                    value: cmd,
                });
            }
        };
        if buffer.len() < len {
            let value = buffer.len() as u64;
            return Err(Error::Invalid {
                op: OP,
                what: "the buffer's length",
                value,
            });
        }
        let arg = [cmd, buffer.as_ptr().as_ptr() as u64, 0, 0, 0];
        // SAFETY: this operation writes `len` bytes at its second argument
        // (xen/include/public/version.h) and nothing else; the buffer has that many, and is
        // borrowed mutably, so no reference into it is live.
        unsafe { self.hypercall(privcmd::HYPERVISOR_XEN_VERSION, arg) }?;
        let bytes = &buffer.bytes()[..len];
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(len);
        Ok(&bytes[..end])
    }

    /// `dm_op(remote_shutdown)`: declares that `domain`, whose device model this domain is, has shut
    /// down, for `reason`. A restricted file may do this to its own domain.
    ///
    /// # Errors
    ///
    /// The hypercall's errno or the driver's: `EPERM` if this is not that domain's device model.
    #[doc(alias = "xendevicemodel_shutdown")]
    #[doc(alias = "XEN_DMOP_remote_shutdown")]
    pub fn remote_shutdown(&self, domain: DomId, reason: u32) -> Result<()> {
        let op = privcmd::RemoteShutdown::new(reason);
        let buffer = privcmd::DmOpBuffer {
            address: ptr::from_ref(&op) as u64,
            size: size_of_val(&op) as u64,
        };
        let mut call = privcmd::DmOp {
            domid: domain,
            count: 1,
            buffers: ptr::from_ref(&buffer) as u64,
        };
        // SAFETY: the descriptor is of /dev/xen/privcmd, whose driver for this request reads one `DmOp`, which
        // `call` is, and `count` = 1 `DmOpBuffer` at the address in it, which `buffer` is, and
        // pins the `size` bytes at that one's address, all of `op`, for the hypercall
        // (privcmd_ioctl_dm_op in drivers/xen/privcmd.c). Xen reads those and, for an operation
        // without results, writes none (xen/arch/x86/hvm/dm.c). All three live to the end of this function.
        unsafe {
            ioctl(
                self.0.file.as_fd(),
                "IOCTL_PRIVCMD_DM_OP",
                privcmd::IOCTL_PRIVCMD_DM_OP,
                ptr::from_mut(&mut call).cast(),
            )
        }
        .map(drop)
    }

    /// Limits this file for good to operations on `domain`.
    ///
    /// # Errors
    ///
    /// The driver's; `EINVAL` when it is limited to another domain already.
    pub fn restrict(&self, domain: DomId) -> Result<()> {
        set(&self.0, &privcmd::Restrict { domid: domain }).map(drop)
    }
}

impl AsFd for PrivCmd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_of_something_else_is_not_adopted() {
        // A folder in whose `privcmd` /dev/null is found, as in an image with nodes of its own.
        let dir = std::env::temp_dir().join(format!("xen-sys-adopt-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let _ = std::fs::remove_file(dir.join("privcmd"));
        std::os::unix::fs::symlink("/dev/null", dir.join("privcmd")).unwrap();
        let root = DevRoot::at(dir.to_str().unwrap());
        let open = |path: &str| OwnedFd::from(std::fs::File::open(path).unwrap());
        let same = PrivCmd::adopt(&root, open("/dev/null"));
        for other in ["/dev/zero", "/proc/self/status", "/"] {
            let refused = PrivCmd::adopt(&root, open(other)).unwrap_err();
            assert!(
                matches!(refused, Error::Invalid { .. }),
                "{other}: {refused}"
            );
        }
        std::fs::remove_dir_all(&dir).unwrap();
        let error = same.unwrap().remote_shutdown(DomId::DOM0, 3).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOTTY));
    }
}
