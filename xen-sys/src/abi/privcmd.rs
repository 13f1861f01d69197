//! `/dev/xen/privcmd`: include/uapi/xen/privcmd.h.

use super::{Opcode, opcode, opcode_write};
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

/// The reason for a domain that cannot continue: `SHUTDOWN_crash`.
#[doc(alias = "SHUTDOWN_crash")]
pub const SHUTDOWN_CRASH: u32 = 3;

/// Permanently limits the open file to operations on one domain.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Restrict {
    /// The domain that stays reachable.
    pub domid: DomId,
}

/// Maps frames of a domain into pages of an mmap of this device, with a separate error for each.
///
/// C: `struct privcmd_mmapbatch_v2`.
#[doc(alias = "privcmd_mmapbatch_v2")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MmapBatchV2 {
    /// How many frames.
    pub num: u32,
    /// The domain.
    pub dom: DomId,
    /// Padding, implicit in C.
    pub pad: u16,
    /// The address of the first page to fill.
    pub addr: u64,
    /// The address of the frame numbers, of 64 bits each.
    pub arr: u64,
    /// The address of the results, an `int` each: 0 or a negative errno.
    pub err: u64,
}

/// Maps a resource of a domain, or returns its size if `num` and `addr` are zero.
///
/// C: `struct privcmd_mmap_resource`.
#[doc(alias = "privcmd_mmap_resource")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MmapResource {
    /// The domain.
    pub dom: DomId,
    /// Padding, implicit in C.
    pub pad: u16,
    /// `XENMEM_resource_*`, xen/include/public/memory.h.
    pub kind: u32,
    /// Which one of that kind.
    pub id: u32,
    /// The first frame of the resource.
    pub idx: u32,
    /// How many frames, in and out.
    pub num: u64,
    /// The address of the first page to fill.
    pub addr: u64,
}

/// Has the kernel make a device-model operation each time an eventfd is signalled.
///
/// C: `struct privcmd_irqfd`.
#[doc(alias = "privcmd_irqfd")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IrqFd {
    /// The address of the operation.
    pub dm_op: u64,
    /// Bytes of it.
    pub size: u32,
    /// The eventfd.
    pub fd: u32,
    /// [`PRIVCMD_IRQFD_FLAG_DEASSIGN`] or 0.
    pub flags: u32,
    /// The domain.
    pub dom: DomId,
    /// Zero.
    pub pad: [u8; 2],
}

/// Has the kernel answer a guest's write to a virtio queue's doorbell by signalling an eventfd.
///
/// C: `struct privcmd_ioeventfd`.
#[doc(alias = "privcmd_ioeventfd")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct IoEventFd {
    /// The address of the mapped page of synchronous requests.
    pub ioreq: u64,
    /// The address of the ports of the virtual CPUs, of 32 bits each.
    pub ports: u64,
    /// The guest-physical address of the virtio device.
    pub addr: u64,
    /// Bytes of a write: 1, 2, 4 or 8.
    pub addr_len: u32,
    /// The eventfd.
    pub event_fd: u32,
    /// The number of ports.
    pub vcpus: u32,
    /// The queue.
    pub vq: u32,
    /// [`PRIVCMD_IOEVENTFD_FLAG_DEASSIGN`] or 0.
    pub flags: u32,
    /// The domain.
    pub dom: DomId,
    /// Zero.
    pub pad: [u8; 2],
}

/// Ends an [`IrqFd`].
pub const PRIVCMD_IRQFD_FLAG_DEASSIGN: u32 = 1 << 0;
/// Ends an [`IoEventFd`].
pub const PRIVCMD_IOEVENTFD_FLAG_DEASSIGN: u32 = 1 << 0;

/// [`Hypercall`].
pub const IOCTL_PRIVCMD_HYPERCALL: Opcode = opcode(b'P', 0, size_of::<Hypercall>());
/// [`DmOp`].
pub const IOCTL_PRIVCMD_DM_OP: Opcode = opcode(b'P', 5, size_of::<DmOp>());
/// [`Restrict`].
pub const IOCTL_PRIVCMD_RESTRICT: Opcode = opcode(b'P', 6, size_of::<Restrict>());
/// [`MmapBatchV2`].
pub const IOCTL_PRIVCMD_MMAPBATCH_V2: Opcode = opcode(b'P', 4, size_of::<MmapBatchV2>());
/// [`MmapResource`].
pub const IOCTL_PRIVCMD_MMAP_RESOURCE: Opcode = opcode(b'P', 7, size_of::<MmapResource>());
/// [`IrqFd`], since Linux 6.6.
pub const IOCTL_PRIVCMD_IRQFD: Opcode = opcode_write(b'P', 8, size_of::<IrqFd>());
/// [`IoEventFd`], since Linux 6.7.
pub const IOCTL_PRIVCMD_IOEVENTFD: Opcode = opcode_write(b'P', 9, size_of::<IoEventFd>());
