//! `/dev/xen/privcmd`: include/uapi/xen/privcmd.h; and the numbers of the hypercalls we type.

use super::{Opcode, opcode};
use crate::DomId;

/// A hypercall: its number and up to five arguments.
#[doc(alias = "privcmd_hypercall")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Hypercall {
    /// `__HYPERVISOR_*`.
    pub op: u64,
    /// The arguments; addresses are of this process.
    pub arg: [u64; 5],
}

/// Limits the open file for good to operations on one domain.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Restrict {
    /// The domain that stays reachable.
    pub domid: DomId,
}

/// [`Hypercall`].
pub const IOCTL_PRIVCMD_HYPERCALL: Opcode = opcode(b'P', 0, size_of::<Hypercall>());
/// [`Restrict`].
pub const IOCTL_PRIVCMD_RESTRICT: Opcode = opcode(b'P', 6, size_of::<Restrict>());

/// `xen_version(cmd, buffer)`: xen/include/public/version.h.
#[doc(alias = "__HYPERVISOR_xen_version")]
pub const HYPERVISOR_XEN_VERSION: u64 = 17;

/// Returns `major << 16 | minor`; no buffer.
pub const XENVER_VERSION: u64 = 0;
/// Writes `char[16]`.
pub const XENVER_EXTRAVERSION: u64 = 1;
/// Writes `char[1024]`.
pub const XENVER_CAPABILITIES: u64 = 3;
/// Bytes in `xen_extraversion_t`.
pub const XEN_EXTRAVERSION_LEN: usize = 16;
/// Bytes in `xen_capabilities_info_t`.
pub const XEN_CAPABILITIES_INFO_LEN: usize = 1024;
