//! `/dev/xen/privcmd`: include/uapi/xen/privcmd.h.

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

/// A device-model operation on a domain, with its arguments in buffers.
#[doc(alias = "privcmd_dm_op")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DmOp {
    /// The domain.
    pub domid: DomId,
    /// How many buffers.
    pub count: u16,
    /// The address of the first [`DmOpBuffer`].
    pub buffers: u64,
}

/// Memory of this process.
#[doc(alias = "privcmd_dm_op_buf")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DmOpBuffer {
    /// Its address.
    pub address: u64,
    /// Its length in bytes.
    pub size: u64,
}

/// `struct xen_dm_op` with `struct xen_dm_op_remote_shutdown` in it:
/// xen/include/public/hvm/dm_op.h.
#[doc(alias = "xen_dm_op_remote_shutdown")]
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct RemoteShutdown {
    op: u32,
    pad: u32,
    reason: u32,
}

impl RemoteShutdown {
    /// For one of the [`SHUTDOWN_CRASH`]es of xen/include/public/sched.h.
    #[must_use]
    pub const fn new(reason: u32) -> Self {
        const XEN_DMOP_REMOTE_SHUTDOWN: u32 = 16;
        Self {
            op: XEN_DMOP_REMOTE_SHUTDOWN,
            pad: 0,
            reason,
        }
    }
}

/// The reason of a domain that cannot go on: `SHUTDOWN_crash`.
#[doc(alias = "SHUTDOWN_crash")]
pub const SHUTDOWN_CRASH: u32 = 3;

/// Limits the open file for good to operations on one domain.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Restrict {
    /// The domain that stays reachable.
    pub domid: DomId,
}

/// [`Hypercall`].
pub const IOCTL_PRIVCMD_HYPERCALL: Opcode = opcode(b'P', 0, size_of::<Hypercall>());
/// [`DmOp`].
pub const IOCTL_PRIVCMD_DM_OP: Opcode = opcode(b'P', 5, size_of::<DmOp>());
/// [`Restrict`].
pub const IOCTL_PRIVCMD_RESTRICT: Opcode = opcode(b'P', 6, size_of::<Restrict>());
