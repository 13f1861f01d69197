//! privcmd's requests, the only ones whose arguments hold addresses.
//!
//! # Safety
//!
//! This file is not safe code because a hypercall's arguments may be addresses that the hypervisor
//! reads and writes. Making one with arguments of the caller's choice is an `unsafe fn`. The typed
//! ones are safe to call, because
//!
//! * the only address they pass is that of a [`HypercallBuffer`] they borrow mutably for the whole
//!   call, so it is mapped and no reference into it is live;
//! * what Xen reads and writes there is stated by the argument's type ([`Operation`],
//!   [`DomctlBody`], [`SysctlBody`], [`SysctlArray`]: unsafe to implement, and implemented only
//!   here), and is checked against the buffer's length before the call;
//! * a device-model operation passes the addresses of a struct and of a slice that it borrows
//!   mutably (by the contract of [`DmOpBody`], Xen finds no others);
//! * the two that map another domain's frames name pages of a [`Pages`], from which no reference is
//!   ever made, and fill only pages of a mapping of this very device;
//! * the one page that the driver uses after the call is kept until it no longer does
//!   ([`AssignedEventFd`]);
//! * the call is one `ioctl(2)` of the calling thread: it has returned before anything can unwind
//!   or be cancelled, and the buffer outlives it in any case.

#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Driver, Node, checked_count, ioctl, set};
use crate::abi::altp2m::{
    HVMOP_ALTP2M_CHANGE_GFN, HVMOP_ALTP2M_CREATE_P2M, HVMOP_ALTP2M_DESTROY_P2M,
    HVMOP_ALTP2M_GET_DOMAIN_STATE, HVMOP_ALTP2M_GET_MEM_ACCESS, HVMOP_ALTP2M_GET_P2M_IDX,
    HVMOP_ALTP2M_SET_DOMAIN_STATE, HVMOP_ALTP2M_SET_MEM_ACCESS, HVMOP_ALTP2M_SWITCH_P2M,
};
use crate::abi::dm_op::{self, DmOpArgument};
use crate::abi::domctl::{self, Domctl};
use crate::abi::hypercall::{self, MulticallEntry};
use crate::abi::sysctl::{self, Sysctl};
use crate::abi::{altp2m, memory, privcmd, version};
use crate::mmap::{HypercallBuffer, Pages, Protection};
use crate::{DevRoot, DomId, Error, PAGE_SIZE, Port, Result};

/// An open `/dev/xen/privcmd`. [`crate::privcmd`] has the typed operations.
#[derive(Debug)]
pub struct PrivCmd(Node<PrivCmdDriver>);

/// The driver behind `/dev/xen/privcmd`.
#[derive(Debug)]
pub(super) struct PrivCmdDriver;

impl Driver for PrivCmdDriver {
    const NODE: &'static str = "privcmd";
}

/// The struct that one operation reads and overwrites.
///
/// # Safety
///
/// Xen must, for operation `COMMAND` of hypercall `CALL`, read and write at most
/// `size_of::<Self>()` bytes, or a page if that is more, at the address it is given; and find no
/// address in what [`bounded`](Self::bounded) returns.
pub(crate) unsafe trait Operation: Copy + FromBytes + IntoBytes + Immutable {
    const CALL: u64;
    const COMMAND: u64;
    const NAME: &'static str;

    /// The argument with its own lengths in it, where it has any.
    fn bounded(self) -> Self {
        self
    }
}

macro_rules! operations {
    ($($type:path = $call:ident, $command:path, $name:literal;)*) => { $(
        // SAFETY: the type is the struct of the header its module cites; its fields are values, and
        // Xen copies it in and out whole (xen/common: kernel.c, memory.c, grant_table.c,
        // sched/core.c, event_channel.c; xen/arch/x86: hvm/hvm.c, physdev.c). `XENVER_commandline`
        // writes its array of 1024 bytes.
        unsafe impl Operation for $type {
            const CALL: u64 = hypercall::$call;
            const COMMAND: u64 = $command;
            const NAME: &'static str = $name;
        }
    )* };
}

operations! {
    version::ExtraVersion =
        HYPERVISOR_XEN_VERSION, version::XENVER_EXTRAVERSION, "XENVER_extraversion";
    version::CompileInfo =
        HYPERVISOR_XEN_VERSION, version::XENVER_COMPILE_INFO, "XENVER_compile_info";
    version::Capabilities =
        HYPERVISOR_XEN_VERSION, version::XENVER_CAPABILITIES, "XENVER_capabilities";
    version::Changeset =
        HYPERVISOR_XEN_VERSION, version::XENVER_CHANGESET, "XENVER_changeset";
    version::PlatformParameters =
        HYPERVISOR_XEN_VERSION, version::XENVER_PLATFORM_PARAMETERS, "XENVER_platform_parameters";
    version::FeatureInfo =
        HYPERVISOR_XEN_VERSION, version::XENVER_GET_FEATURES, "XENVER_get_features";
    version::GuestHandle =
        HYPERVISOR_XEN_VERSION, version::XENVER_GUEST_HANDLE, "XENVER_guest_handle";
    version::CommandLine =
        HYPERVISOR_XEN_VERSION, version::XENVER_COMMANDLINE, "XENVER_commandline";
    hypercall::GnttabQuerySize =
        HYPERVISOR_GRANT_TABLE_OP, hypercall::GNTTABOP_QUERY_SIZE, "GNTTABOP_query_size";
    hypercall::SchedRemoteShutdown =
        HYPERVISOR_SCHED_OP, hypercall::SCHEDOP_REMOTE_SHUTDOWN, "SCHEDOP_remote_shutdown";
    hypercall::EvtchnStatus =
        HYPERVISOR_EVENT_CHANNEL_OP, hypercall::EVTCHNOP_STATUS, "EVTCHNOP_status";
    hypercall::EvtchnAllocUnbound =
        HYPERVISOR_EVENT_CHANNEL_OP, hypercall::EVTCHNOP_ALLOC_UNBOUND, "EVTCHNOP_alloc_unbound";
    hypercall::GnttabGetVersion =
        HYPERVISOR_GRANT_TABLE_OP, hypercall::GNTTABOP_GET_VERSION, "GNTTABOP_get_version";
    hypercall::PhysdevMapPirq =
        HYPERVISOR_PHYSDEV_OP, hypercall::PHYSDEVOP_MAP_PIRQ, "PHYSDEVOP_map_pirq";
    hypercall::PhysdevUnmapPirq =
        HYPERVISOR_PHYSDEV_OP, hypercall::PHYSDEVOP_UNMAP_PIRQ, "PHYSDEVOP_unmap_pirq";
    memory::AddToPhysmap =
        HYPERVISOR_MEMORY_OP, memory::XENMEM_ADD_TO_PHYSMAP, "XENMEM_add_to_physmap";
    memory::RemoveFromPhysmap =
        HYPERVISOR_MEMORY_OP, memory::XENMEM_REMOVE_FROM_PHYSMAP, "XENMEM_remove_from_physmap";
    GetHvmParam = HYPERVISOR_HVM_OP, hypercall::HVMOP_GET_PARAM, "HVMOP_get_param";
    SetHvmParam = HYPERVISOR_HVM_OP, hypercall::HVMOP_SET_PARAM, "HVMOP_set_param";
    CurrentReservation =
        HYPERVISOR_MEMORY_OP, hypercall::XENMEM_CURRENT_RESERVATION, "XENMEM_current_reservation";
    MaximumReservation =
        HYPERVISOR_MEMORY_OP, hypercall::XENMEM_MAXIMUM_RESERVATION, "XENMEM_maximum_reservation";
    MaximumGpfn = HYPERVISOR_MEMORY_OP, hypercall::XENMEM_MAXIMUM_GPFN, "XENMEM_maximum_gpfn";
}

macro_rules! accesses {
    ($($type:ident = $op:ident;)*) => { $(
        // SAFETY: Xen copies `struct xen_mem_access_op` in, and out if it returns a permission
        // (mem_access_memop in xen/common/mem_access.c). It looks at the two addresses for
        // `XENMEM_access_op_set_access_multi` only; `bounded` sets another operation, and zeros.
        unsafe impl Operation for $type {
            const CALL: u64 = hypercall::HYPERVISOR_MEMORY_OP;
            const COMMAND: u64 = hypercall::XENMEM_ACCESS_OP;
            const NAME: &'static str = "XENMEM_access_op";

            fn bounded(self) -> Self {
                Self(hypercall::MemAccessOp {
                    op: hypercall::$op,
                    pfn_list: 0,
                    access_list: 0,
                    ..self.0
                })
            }
        }
    )* };
}

accesses! {
    GetMemAccess = XENMEM_ACCESS_OP_GET_ACCESS;
    SetMemAccess = XENMEM_ACCESS_OP_SET_ACCESS;
}

/// A struct that several operations take, as a type for each of them.
macro_rules! of {
    ($($name:ident($struct:ty);)*) => { $(
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
        #[repr(transparent)]
        pub(crate) struct $name(pub(crate) $struct);
    )* };
}

of! {
    GetHvmParam(hypercall::HvmParamOp);
    SetHvmParam(hypercall::HvmParamOp);
    CurrentReservation(hypercall::MemoryDomain);
    MaximumReservation(hypercall::MemoryDomain);
    MaximumGpfn(hypercall::MemoryDomain);
    MapIoRange(dm_op::IoreqServerRange);
    UnmapIoRange(dm_op::IoreqServerRange);
    GetMemAccess(hypercall::MemAccessOp);
    SetMemAccess(hypercall::MemAccessOp);
    SetMemAccessEach(hypercall::MemAccessOp);
    DecreaseReservation(hypercall::MemoryReservation);
    PopulatePhysmap(hypercall::MemoryReservation);
}

/// A memory operation on a list of frames of another domain.
///
/// # Safety
///
/// For operation `COMMAND` of `memory_op`, Xen must read at most the struct, and read and write at
/// most `count` frame numbers at `frames` and `count` bytes at `bytes`, which
/// [`set_lists`](Self::set_lists) was given; it must find no other address in what that returned.
/// The operation must leave the memory of the calling domain alone.
pub(crate) unsafe trait FrameList: Copy + IntoBytes + Immutable {
    const COMMAND: u64;
    const NAME: &'static str;
    /// Set if the result is the number of frames that were done.
    const COUNTS: bool = false;

    /// The struct with the lists' addresses and their length in it.
    fn set_lists(self, frames: u64, bytes: u64, count: u32) -> Self;
}

// SAFETY: Xen reads `nr` frame numbers and `nr` bytes (p2m_set_mem_access_multi in
// xen/arch/x86/mm/mem_access.c). The permissions of a domain's own memory cannot be changed by the
// domain (mem_access_memop takes a remote domain only).
unsafe impl FrameList for SetMemAccessEach {
    const COMMAND: u64 = hypercall::XENMEM_ACCESS_OP;
    const NAME: &'static str = "XENMEM_access_op";

    fn set_lists(self, frames: u64, bytes: u64, count: u32) -> Self {
        Self(hypercall::MemAccessOp {
            op: hypercall::XENMEM_ACCESS_OP_SET_ACCESS_MULTI,
            nr: count,
            pfn_list: frames,
            access_list: bytes,
            ..self.0
        })
    }
}

macro_rules! reservations {
    ($($type:ident = $command:ident, $name:literal;)*) => { $(
        // SAFETY: Xen reads `nr_extents` frame numbers and may overwrite them (populate_physmap and
        // decrease_reservation in xen/common/memory.c). The domain is another one than the caller's
        // where the value is made: `Privcmd::enable_monitor`, after it paused the domain, which Xen
        // refuses for the caller's own (`XEN_DOMCTL_pausedomain` in xen/common/domctl.c).
        unsafe impl FrameList for $type {
            const COMMAND: u64 = hypercall::$command;
            const NAME: &'static str = $name;
            const COUNTS: bool = true;

            fn set_lists(self, frames: u64, _: u64, count: u32) -> Self {
                Self(hypercall::MemoryReservation {
                    extent_start: frames,
                    nr_extents: count.into(),
                    extent_order: 0,
                    ..self.0
                })
            }
        }
    )* };
}

reservations! {
    DecreaseReservation = XENMEM_DECREASE_RESERVATION, "XENMEM_decrease_reservation";
    PopulatePhysmap = XENMEM_POPULATE_PHYSMAP, "XENMEM_populate_physmap";
}

/// A claim: [`hypercall::MemoryReservation`] without an address.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(transparent)]
pub(crate) struct ClaimPages(hypercall::MemoryReservation);

impl ClaimPages {
    /// Of `pages` for `domain`.
    pub(crate) fn new(domain: DomId, pages: u64) -> Self {
        Self(hypercall::MemoryReservation {
            extent_start: 0,
            nr_extents: pages,
            extent_order: 0,
            mem_flags: 0,
            domid: domain,
            pad: [0; 3],
        })
    }
}

// SAFETY: Xen reads one `struct xen_memory_reservation`, and refuses one whose address is not null
// (do_memory_op in xen/common/memory.c), which `bounded` makes it.
unsafe impl Operation for ClaimPages {
    const CALL: u64 = hypercall::HYPERVISOR_MEMORY_OP;
    const COMMAND: u64 = memory::XENMEM_CLAIM_PAGES;
    const NAME: &'static str = "XENMEM_claim_pages";

    fn bounded(self) -> Self {
        Self(hypercall::MemoryReservation {
            extent_start: 0,
            ..self.0
        })
    }
}

/// Gives memory at the frames of a [`hypercall::MemoryReservation`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Populate;

/// Takes the memory there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decrease;

/// An operation that [`PrivCmd::extents`] makes.
///
/// # Safety
///
/// For `COMMAND`, Xen must read and write only the frame numbers at the address in the struct.
pub(crate) unsafe trait ExtentsOperation {
    const COMMAND: u64;
    const NAME: &'static str;
}

// SAFETY: Xen reads and, for a guest whose memory is not translated, writes `nr_extents` frame
// numbers (populate_physmap in xen/common/memory.c). Its effects on memory are the caller's matter.
unsafe impl ExtentsOperation for Populate {
    const COMMAND: u64 = hypercall::XENMEM_POPULATE_PHYSMAP;
    const NAME: &'static str = "XENMEM_populate_physmap";
}

// SAFETY: Xen reads `nr_extents` frame numbers (decrease_reservation in xen/common/memory.c).
unsafe impl ExtentsOperation for Decrease {
    const COMMAND: u64 = hypercall::XENMEM_DECREASE_RESERVATION;
    const NAME: &'static str = "XENMEM_decrease_reservation";
}

/// The operation on views numbered `CMD`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(transparent)]
pub(crate) struct Altp2mOperation<const CMD: u32>(pub(crate) altp2m::Altp2mOp);

macro_rules! altp2m {
    ($($command:ident, $name:literal;)*) => { $(
        // SAFETY: Xen copies one `struct xen_hvm_altp2m_op` in and out (do_altp2m_op in
        // xen/arch/x86/hvm/hvm.c). `bounded` sets the command, and the body of that one holds
        // values: only `set_mem_access_multi`, which is not here, has addresses.
        unsafe impl Operation for Altp2mOperation<$command> {
            const CALL: u64 = hypercall::HYPERVISOR_HVM_OP;
            const COMMAND: u64 = altp2m::HVMOP_ALTP2M;
            const NAME: &'static str = $name;

            fn bounded(self) -> Self {
                Self(altp2m::Altp2mOp { cmd: $command, ..self.0 })
            }
        }
    )* };
}

altp2m! {
    HVMOP_ALTP2M_GET_DOMAIN_STATE, "HVMOP_altp2m_get_domain_state";
    HVMOP_ALTP2M_SET_DOMAIN_STATE, "HVMOP_altp2m_set_domain_state";
    HVMOP_ALTP2M_CREATE_P2M, "HVMOP_altp2m_create_p2m";
    HVMOP_ALTP2M_DESTROY_P2M, "HVMOP_altp2m_destroy_p2m";
    HVMOP_ALTP2M_SWITCH_P2M, "HVMOP_altp2m_switch_p2m";
    HVMOP_ALTP2M_SET_MEM_ACCESS, "HVMOP_altp2m_set_mem_access";
    HVMOP_ALTP2M_CHANGE_GFN, "HVMOP_altp2m_change_gfn";
    HVMOP_ALTP2M_GET_MEM_ACCESS, "HVMOP_altp2m_get_mem_access";
    HVMOP_ALTP2M_GET_P2M_IDX, "HVMOP_altp2m_get_p2m_idx";
}

macro_rules! buffers {
    ($($type:ident = $command:ident, $name:literal;)*) => { $(
        // SAFETY: Xen reads `len`, which `bounded` sets to the length of `buf`, and writes at most
        // that many bytes of `buf` (xenver_varbuf_op in xen/common/kernel.c). There is no address.
        unsafe impl Operation for version::$type {
            const CALL: u64 = hypercall::HYPERVISOR_XEN_VERSION;
            const COMMAND: u64 = version::$command;
            const NAME: &'static str = $name;

            fn bounded(self) -> Self {
                Self { len: version::VARBUF_LEN as u32, ..self }
            }
        }
    )* };
}

buffers! {
    BuildId = XENVER_BUILD_ID, "XENVER_build_id";
    ExtraVersion2 = XENVER_EXTRAVERSION2, "XENVER_extraversion2";
    Capabilities2 = XENVER_CAPABILITIES2, "XENVER_capabilities2";
    Changeset2 = XENVER_CHANGESET2, "XENVER_changeset2";
    CommandLine2 = XENVER_COMMANDLINE2, "XENVER_commandline2";
}

/// The body of a domctl.
///
/// # Safety
///
/// For operation `COMMAND`, Xen must find no address in the body.
pub(crate) unsafe trait DomctlBody: Copy + FromBytes + IntoBytes + Immutable {
    const COMMAND: u32;
    const NAME: &'static str;
    /// Set if the operation takes interface version 0.
    const STABLE: bool = false;
}

macro_rules! domctls {
    ($($type:ident = $command:ident, $name:literal $(, stable $stable:literal)?;)*) => { $(
        // SAFETY: the type is the operation's member of the union in `struct xen_domctl`, or empty
        // for an operation without one; its fields are values.
        unsafe impl DomctlBody for domctl::$type {
            const COMMAND: u32 = domctl::$command;
            const NAME: &'static str = $name;
            $(const STABLE: bool = $stable;)?
        }
        const _: () = assert!(size_of::<domctl::$type>() <= 128);
    )* };
}

domctls! {
    Destroy = XEN_DOMCTL_DESTROYDOMAIN, "XEN_DOMCTL_destroydomain";
    Pause = XEN_DOMCTL_PAUSEDOMAIN, "XEN_DOMCTL_pausedomain";
    Unpause = XEN_DOMCTL_UNPAUSEDOMAIN, "XEN_DOMCTL_unpausedomain";
    GetDomainInfo = XEN_DOMCTL_GETDOMAININFO, "XEN_DOMCTL_getdomaininfo";
    MaxMem = XEN_DOMCTL_MAX_MEM, "XEN_DOMCTL_max_mem";
    GetVcpuInfo = XEN_DOMCTL_GETVCPUINFO, "XEN_DOMCTL_getvcpuinfo";
    DebugOp = XEN_DOMCTL_DEBUG_OP, "XEN_DOMCTL_debug_op";
    VmEventOp = XEN_DOMCTL_VM_EVENT_OP, "XEN_DOMCTL_vm_event_op";
    SetAccessRequired = XEN_DOMCTL_SET_ACCESS_REQUIRED, "XEN_DOMCTL_set_access_required";
    MonitorOp = XEN_DOMCTL_MONITOR_OP, "XEN_DOMCTL_monitor_op";
    MaxVcpus = XEN_DOMCTL_MAX_VCPUS, "XEN_DOMCTL_max_vcpus";
    AddressSize = XEN_DOMCTL_GET_ADDRESS_SIZE, "XEN_DOMCTL_get_address_size";
    IrqPermission = XEN_DOMCTL_IRQ_PERMISSION, "XEN_DOMCTL_irq_permission";
    IomemPermission = XEN_DOMCTL_IOMEM_PERMISSION, "XEN_DOMCTL_iomem_permission";
    IoportPermission = XEN_DOMCTL_IOPORT_PERMISSION, "XEN_DOMCTL_ioport_permission";
    SetTarget = XEN_DOMCTL_SET_TARGET, "XEN_DOMCTL_set_target";
    GetDomainState = XEN_DOMCTL_GET_DOMAIN_STATE, "XEN_DOMCTL_get_domain_state", stable true;
}

/// [`domctl::AssignDevice`], as a type for each of its operations.
macro_rules! devices {
    ($($type:ident = $command:ident, $name:literal;)*) => { $(
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
        #[repr(transparent)]
        pub(crate) struct $type(domctl::AssignDevice);

        impl $type {
            /// Of the PCI device `sbdf`.
            pub(crate) fn new(sbdf: u32) -> Self {
                Self(domctl::AssignDevice {
                    dev: domctl::XEN_DOMCTL_DEV_PCI,
                    machine_sbdf: sbdf,
                    ..domctl::AssignDevice::default()
                })
            }
        }

        // SAFETY: `new`, which alone makes one, sets the kind of a PCI device, for which Xen reads
        // a number of the union (iommu_do_pci_domctl in xen/drivers/passthrough/pci.c).
        unsafe impl DomctlBody for $type {
            const COMMAND: u32 = domctl::$command;
            const NAME: &'static str = $name;
        }
    )* };
}

devices! {
    Assign = XEN_DOMCTL_ASSIGN_DEVICE, "XEN_DOMCTL_assign_device";
    TestAssign = XEN_DOMCTL_TEST_ASSIGN_DEVICE, "XEN_DOMCTL_test_assign_device";
    Deassign = XEN_DOMCTL_DEASSIGN_DEVICE, "XEN_DOMCTL_deassign_device";
}

/// The body of a domctl that reads or fills a buffer.
///
/// # Safety
///
/// For operation `COMMAND`, Xen must read and write only within the `len` bytes at the address that
/// [`set_bytes`](Self::set_bytes) was given, and find no other address in the body that it
/// returned. `len` is at least `LEAST`; or the address is zero and `len` too, if `LEAST` is.
pub(crate) unsafe trait DomctlBytes:
    Copy + FromBytes + IntoBytes + Immutable
{
    const COMMAND: u32;
    const NAME: &'static str;
    const LEAST: usize = 0;

    /// The body with the buffer's address and length in it.
    fn set_bytes(self, address: u64, len: u32) -> Self;
}

/// The registers of a virtual CPU of a guest with 64-bit addresses.
#[cfg(target_arch = "x86_64")]
// SAFETY: Xen writes one `struct vcpu_guest_context` at `ctxt`, or the shorter one of a 32-bit
// guest (`XEN_DOMCTL_getvcpucontext` in xen/common/domctl.c); `LEAST` is the size of the longer.
unsafe impl DomctlBytes for domctl::VcpuContext {
    const COMMAND: u32 = domctl::XEN_DOMCTL_GETVCPUCONTEXT;
    const NAME: &'static str = "XEN_DOMCTL_getvcpucontext";
    const LEAST: usize = size_of::<crate::abi::vcpu::VcpuGuestContext>();

    fn set_bytes(self, address: u64, _: u32) -> Self {
        Self {
            ctxt: address,
            ..self
        }
    }
}

#[cfg(target_arch = "x86_64")]
of! { SetVcpuContext(domctl::VcpuContext); }

of! {
    GetHvmContext(domctl::HvmContext);
    SetHvmContext(domctl::HvmContext);
}

#[cfg(target_arch = "x86_64")]
// SAFETY: Xen reads one `struct vcpu_guest_context` at `ctxt`, or the shorter one of a 32-bit guest
// (`XEN_DOMCTL_setvcpucontext` in xen/common/domctl.c); `LEAST` is the size of the longer. It
// changes a virtual CPU of another domain, as Xen refuses the caller's own.
unsafe impl DomctlBytes for SetVcpuContext {
    const COMMAND: u32 = domctl::XEN_DOMCTL_SETVCPUCONTEXT;
    const NAME: &'static str = "XEN_DOMCTL_setvcpucontext";
    const LEAST: usize = size_of::<crate::abi::vcpu::VcpuGuestContext>();

    fn set_bytes(self, address: u64, _: u32) -> Self {
        Self(domctl::VcpuContext {
            ctxt: address,
            ..self.0
        })
    }
}

// SAFETY: Xen writes at most `size` bytes at `buffer`, and none if that is null
// (`XEN_DOMCTL_gethvmcontext` in xen/arch/x86/domctl.c).
unsafe impl DomctlBytes for GetHvmContext {
    const COMMAND: u32 = domctl::XEN_DOMCTL_GETHVMCONTEXT;
    const NAME: &'static str = "XEN_DOMCTL_gethvmcontext";

    fn set_bytes(self, address: u64, len: u32) -> Self {
        Self(domctl::HvmContext {
            size: len,
            buffer: address,
            ..self.0
        })
    }
}

// SAFETY: Xen reads `size` bytes at `buffer` (`XEN_DOMCTL_sethvmcontext` in
// xen/arch/x86/domctl.c), which changes the guest: another domain, as it refuses the caller's own.
unsafe impl DomctlBytes for SetHvmContext {
    const COMMAND: u32 = domctl::XEN_DOMCTL_SETHVMCONTEXT;
    const NAME: &'static str = "XEN_DOMCTL_sethvmcontext";

    fn set_bytes(self, address: u64, len: u32) -> Self {
        Self(domctl::HvmContext {
            size: len,
            buffer: address,
            ..self.0
        })
    }
}

// SAFETY: Xen writes at most `bufsz` bytes at `buffer`, and none if that is null (hvm_save_one in
// xen/arch/x86/hvm/save.c).
unsafe impl DomctlBytes for domctl::HvmContextPartial {
    const COMMAND: u32 = domctl::XEN_DOMCTL_GETHVMCONTEXT_PARTIAL;
    const NAME: &'static str = "XEN_DOMCTL_gethvmcontext_partial";

    fn set_bytes(self, address: u64, len: u32) -> Self {
        Self {
            bufsz: len.into(),
            buffer: address,
            ..self
        }
    }
}

/// The body of a sysctl.
///
/// # Safety
///
/// For operation `COMMAND`, Xen must find no address in the body.
pub(crate) unsafe trait SysctlBody: Copy + FromBytes + IntoBytes + Immutable {
    const COMMAND: u32;
    const NAME: &'static str;
}

// SAFETY: `struct xen_sysctl_physinfo` holds values.
unsafe impl SysctlBody for sysctl::PhysInfo {
    const COMMAND: u32 = sysctl::XEN_SYSCTL_PHYSINFO;
    const NAME: &'static str = "XEN_SYSCTL_physinfo";
}

// SAFETY: the operation that `new`, which alone makes one, names answers with a number
// (get_cpufreq_avgfreq in xen/drivers/acpi/pmstat.c); no member of the union is an address for it.
unsafe impl SysctlBody for AverageFrequency {
    const COMMAND: u32 = sysctl::XEN_SYSCTL_PM_OP;
    const NAME: &'static str = "XEN_SYSCTL_pm_op";
}

/// The body of a sysctl that fills an array.
///
/// # Safety
///
/// For operation `COMMAND`, Xen must write at most `items` items at the address that
/// [`set_array`](Self::set_array) was given together with `items`, and find no other address in the
/// body that it returned.
pub(crate) unsafe trait SysctlArray:
    Copy + FromBytes + IntoBytes + Immutable
{
    type Item: FromBytes;
    const COMMAND: u32;
    const NAME: &'static str;

    /// The body with the array's address and length in it.
    fn set_array(self, address: u64, items: u32) -> Self;

    /// Returns the number of items in Xen's answer, which may exceed the number asked for.
    fn items(&self) -> u32;
}

// SAFETY: Xen writes at most `count` bytes at `buffer` (read_console_ring in
// xen/drivers/char/console.c); the other fields are values.
unsafe impl SysctlArray for sysctl::ReadConsole {
    type Item = u8;
    const COMMAND: u32 = sysctl::XEN_SYSCTL_READCONSOLE;
    const NAME: &'static str = "XEN_SYSCTL_readconsole";

    fn set_array(self, address: u64, items: u32) -> Self {
        Self {
            buffer: address,
            count: items,
            ..self
        }
    }

    fn items(&self) -> u32 {
        self.count
    }
}

// SAFETY: Xen writes at most `max_domains` structs at `buffer` (do_sysctl in xen/common/sysctl.c);
// they are as long as ours in the versions it accepts; the other fields are values.
unsafe impl SysctlArray for sysctl::GetDomainInfoList {
    type Item = domctl::GetDomainInfo;
    const COMMAND: u32 = sysctl::XEN_SYSCTL_GETDOMAININFOLIST;
    const NAME: &'static str = "XEN_SYSCTL_getdomaininfolist";

    fn set_array(self, address: u64, items: u32) -> Self {
        Self {
            buffer: address,
            max_domains: items,
            num_domains: 0,
            ..self
        }
    }

    fn items(&self) -> u32 {
        self.num_domains
    }
}

// SAFETY: Xen writes at most `num_cpus` structs at `cputopo` (do_sysctl); there is no other
// address.
unsafe impl SysctlArray for sysctl::CpuTopoInfo {
    type Item = sysctl::CpuTopo;
    const COMMAND: u32 = sysctl::XEN_SYSCTL_CPUTOPOINFO;
    const NAME: &'static str = "XEN_SYSCTL_cputopoinfo";

    fn set_array(self, address: u64, items: u32) -> Self {
        Self {
            cputopo: address,
            num_cpus: items,
            ..self
        }
    }

    fn items(&self) -> u32 {
        self.num_cpus
    }
}

// SAFETY: Xen writes at most `num_nodes` structs at `meminfo` (do_sysctl), and nothing at
// `distance`, which is null.
unsafe impl SysctlArray for sysctl::NumaInfo {
    type Item = sysctl::MemInfo;
    const COMMAND: u32 = sysctl::XEN_SYSCTL_NUMAINFO;
    const NAME: &'static str = "XEN_SYSCTL_numainfo";

    fn set_array(self, address: u64, items: u32) -> Self {
        Self {
            meminfo: address,
            distance: 0,
            num_nodes: items,
            ..self
        }
    }

    fn items(&self) -> u32 {
        self.num_nodes
    }
}

// SAFETY: Xen writes at most `max_cpus` structs at `info` (do_sysctl); there is no other address.
unsafe impl SysctlArray for sysctl::GetCpuInfo {
    type Item = sysctl::CpuInfo;
    const COMMAND: u32 = sysctl::XEN_SYSCTL_GETCPUINFO;
    const NAME: &'static str = "XEN_SYSCTL_getcpuinfo";

    fn set_array(self, address: u64, items: u32) -> Self {
        Self {
            info: address,
            max_cpus: items,
            ..self
        }
    }

    fn items(&self) -> u32 {
        self.nr_cpus
    }
}

of! {
    NumaDistances(sysctl::NumaInfo);
}

// SAFETY: Xen writes nothing at `meminfo`, which is null. At `distance` it writes a square of at
// most `num_nodes` times `num_nodes` items (do_sysctl), which is no more than `items`.
unsafe impl SysctlArray for NumaDistances {
    type Item = u32;
    const COMMAND: u32 = sysctl::XEN_SYSCTL_NUMAINFO;
    const NAME: &'static str = "XEN_SYSCTL_numainfo";

    fn set_array(self, address: u64, items: u32) -> Self {
        Self(sysctl::NumaInfo {
            meminfo: 0,
            distance: address,
            num_nodes: items.isqrt(),
            ..self.0
        })
    }

    fn items(&self) -> u32 {
        self.0.num_nodes.saturating_mul(self.0.num_nodes)
    }
}

/// The body of a sysctl that reads or fills several arrays.
///
/// # Safety
///
/// For operation `COMMAND`, Xen must read and write only within `LEN` bytes at the address that
/// [`place`](Self::place) was given, and find no other address in the body that it returned.
pub(crate) unsafe trait SysctlArea: Copy + FromBytes + IntoBytes + Immutable {
    const COMMAND: u32;
    const NAME: &'static str;
    const LEN: usize;

    /// The body with the addresses and lengths of its arrays in it.
    fn place(self, address: u64) -> Self;
}

/// Debug keys pressed by one call at the most.
pub(crate) const DEBUG_KEYS: usize = 256;

// SAFETY: Xen reads `nr_keys` bytes at `keys` (do_sysctl), which `place` bounds to `LEN`.
unsafe impl SysctlArea for sysctl::DebugKeys {
    const COMMAND: u32 = sysctl::XEN_SYSCTL_DEBUG_KEYS;
    const NAME: &'static str = "XEN_SYSCTL_debug_keys";
    const LEN: usize = DEBUG_KEYS;

    fn place(self, address: u64) -> Self {
        Self {
            keys: address,
            nr_keys: self.nr_keys.min(DEBUG_KEYS as u32),
            ..self
        }
    }
}

/// Performance states of a CPU at the most: the largest value of the byte that counts them.
pub(crate) const PX_STATES: usize = 255;
/// The offset of their values, in bytes; the counts of transitions are before them.
pub(crate) const PX_VALUES: usize = PX_STATES * PX_STATES * size_of::<u64>();

// SAFETY: Xen writes as many values at `pt` as the CPU has states, and their square at `trans_pt`
// (do_get_pm_info in xen/drivers/acpi/pmstat.c). From Xen 4.18 on it minds `total`. Before, it
// counts the states that the kernel of the hardware domain gave it, from an ACPI package, which
// has at most 255 elements; Xen itself counts them in a byte.
unsafe impl SysctlArea for sysctl::PmStatPx {
    const COMMAND: u32 = sysctl::XEN_SYSCTL_GET_PMSTAT;
    const NAME: &'static str = "XEN_SYSCTL_get_pmstat";
    const LEN: usize = PX_VALUES + PX_STATES * size_of::<sysctl::PmPxVal>();

    fn place(self, address: u64) -> Self {
        Self {
            kind: sysctl::PMSTAT_GET_PXSTAT,
            total: PX_STATES as u8,
            trans_pt: address,
            pt: address + PX_VALUES as u64,
            ..self
        }
    }
}

/// Idle states of a CPU at the most; each of the four arrays of [`sysctl::PmStatCx`] has as many.
pub(crate) const CX_STATES: usize = 64;

// SAFETY: Xen writes at most `nr` items at `triggers` and `residencies`, at most `nr_pc` at `pc`
// and `nr_cc` at `cc` (pmstat_get_cx_stat in xen/arch/x86/acpi/cpu_idle.c): there is room for
// `CX_STATES` of each, one array behind the other.
unsafe impl SysctlArea for sysctl::PmStatCx {
    const COMMAND: u32 = sysctl::XEN_SYSCTL_GET_PMSTAT;
    const NAME: &'static str = "XEN_SYSCTL_get_pmstat";
    const LEN: usize = 4 * CX_STATES * size_of::<u64>();

    fn place(self, address: u64) -> Self {
        let (count, size) = (CX_STATES as u32, (CX_STATES * size_of::<u64>()) as u64);
        Self {
            kind: sysctl::PMSTAT_GET_CXSTAT,
            nr: count,
            triggers: address,
            residencies: address + size,
            nr_pc: count,
            nr_cc: count,
            pc: address + 2 * size,
            cc: address + 3 * size,
            ..self
        }
    }
}

of! {
    AverageFrequency(sysctl::PmOp);
}

impl AverageFrequency {
    /// Of a CPU.
    pub(crate) fn new(cpuid: u32) -> Self {
        Self(sysctl::PmOp {
            cmd: sysctl::GET_CPUFREQ_AVGFREQ,
            cpuid,
            value: 0,
        })
    }
}

/// The body of a device-model operation.
///
/// # Safety
///
/// For operation `COMMAND`, Xen must take nothing in the body or in the operation's second buffer
/// for an address of the caller's.
pub(crate) unsafe trait DmOpBody: Copy + FromBytes + IntoBytes + Immutable {
    const COMMAND: u32;
    const NAME: &'static str;
}

macro_rules! dm_ops {
    ($($type:path = $command:ident, $name:literal;)*) => { $(
        // SAFETY: the type is the operation's member of the union in `struct xen_dm_op`. Its fields
        // are values, frames and addresses of the guest; Xen reaches the caller's memory through
        // the buffers only (xen/common/dm.c, xen/arch/x86/hvm/dm.c).
        unsafe impl DmOpBody for $type {
            const COMMAND: u32 = dm_op::$command;
            const NAME: &'static str = $name;
        }
    )* };
}

dm_ops! {
    dm_op::CreateIoreqServer = XEN_DMOP_CREATE_IOREQ_SERVER, "XEN_DMOP_create_ioreq_server";
    dm_op::GetIoreqServerInfo = XEN_DMOP_GET_IOREQ_SERVER_INFO, "XEN_DMOP_get_ioreq_server_info";
    MapIoRange =
        XEN_DMOP_MAP_IO_RANGE_TO_IOREQ_SERVER, "XEN_DMOP_map_io_range_to_ioreq_server";
    UnmapIoRange =
        XEN_DMOP_UNMAP_IO_RANGE_FROM_IOREQ_SERVER, "XEN_DMOP_unmap_io_range_from_ioreq_server";
    dm_op::SetIoreqServerState =
        XEN_DMOP_SET_IOREQ_SERVER_STATE, "XEN_DMOP_set_ioreq_server_state";
    dm_op::DestroyIoreqServer = XEN_DMOP_DESTROY_IOREQ_SERVER, "XEN_DMOP_destroy_ioreq_server";
    dm_op::TrackDirtyVram = XEN_DMOP_TRACK_DIRTY_VRAM, "XEN_DMOP_track_dirty_vram";
    dm_op::SetPciIntxLevel = XEN_DMOP_SET_PCI_INTX_LEVEL, "XEN_DMOP_set_pci_intx_level";
    dm_op::SetIsaIrqLevel = XEN_DMOP_SET_ISA_IRQ_LEVEL, "XEN_DMOP_set_isa_irq_level";
    dm_op::SetPciLinkRoute = XEN_DMOP_SET_PCI_LINK_ROUTE, "XEN_DMOP_set_pci_link_route";
    dm_op::ModifiedMemory = XEN_DMOP_MODIFIED_MEMORY, "XEN_DMOP_modified_memory";
    dm_op::SetMemType = XEN_DMOP_SET_MEM_TYPE, "XEN_DMOP_set_mem_type";
    dm_op::InjectEvent = XEN_DMOP_INJECT_EVENT, "XEN_DMOP_inject_event";
    dm_op::InjectMsi = XEN_DMOP_INJECT_MSI, "XEN_DMOP_inject_msi";
    dm_op::MapMemTypeToIoreqServer =
        XEN_DMOP_MAP_MEM_TYPE_TO_IOREQ_SERVER, "XEN_DMOP_map_mem_type_to_ioreq_server";
    dm_op::RemoteShutdown = XEN_DMOP_REMOTE_SHUTDOWN, "XEN_DMOP_remote_shutdown";
    dm_op::RelocateMemory = XEN_DMOP_RELOCATE_MEMORY, "XEN_DMOP_relocate_memory";
    dm_op::PinMemoryCacheattr = XEN_DMOP_PIN_MEMORY_CACHEATTR, "XEN_DMOP_pin_memory_cacheattr";
    dm_op::SetIrqLevel = XEN_DMOP_SET_IRQ_LEVEL, "XEN_DMOP_set_irq_level";
    dm_op::NrVcpus = XEN_DMOP_NR_VCPUS, "XEN_DMOP_nr_vcpus";
}

/// A virtio queue's doorbell, as [`PrivCmd::io_event_fd`] takes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Doorbell {
    /// The guest-physical address of the virtio device.
    pub(crate) address: u64,
    /// Bytes of a write.
    pub(crate) size: u8,
    pub(crate) queue: u32,
}

/// Where a sysctl's array starts in its buffer.
const ARRAY: usize = 256;
const _: () = assert!(size_of::<Sysctl>() <= ARRAY && size_of::<Domctl>() <= ARRAY);

/// Bytes that [`PrivCmd::sysctl_array`] needs for `items` items.
pub(crate) fn array_buffer<B: SysctlArray>(items: u32) -> usize {
    let array = (items as usize).saturating_mul(size_of::<B::Item>());
    array.saturating_add(ARRAY)
}

/// Bytes that [`PrivCmd::frame_list`] needs for `count` frames.
pub(crate) fn list_buffer(count: usize) -> usize {
    count
        .saturating_mul(size_of::<u64>() + 1)
        .saturating_add(ARRAY)
}

/// Bytes that [`PrivCmd::domctl_bytes`] and [`PrivCmd::sysctl_area`] need for a buffer of `len`
/// bytes.
pub(crate) fn bytes_buffer(len: usize) -> usize {
    len.saturating_add(ARRAY)
}

/// Bytes of the arrays of [`PrivCmd::add_to_physmap_batch`].
pub(crate) fn batch_len(pairs: usize) -> usize {
    pairs.saturating_mul(2 * size_of::<u64>() + size_of::<i32>())
}

/// Bytes that [`PrivCmd::multicall`] needs for `calls` calls.
pub(crate) fn multicall_buffer(calls: usize) -> usize {
    calls.saturating_mul(size_of::<MulticallEntry>())
}

/// Bytes that [`PrivCmd::domctls`] needs for `calls` calls.
pub(crate) fn domctls_buffer(calls: usize) -> usize {
    multicall_buffer(calls).saturating_add(calls.saturating_mul(size_of::<Domctl>()))
}

impl PrivCmd {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// Those of [`DevRoot::open_device`].
    pub fn open(root: &DevRoot) -> Result<Self> {
        Node::open(root).map(Self)
    }

    /// Takes a descriptor of this device that another program opened.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a descriptor of another file; those of [`open`](Self::open).
    pub fn adopt(root: &DevRoot, fd: OwnedFd) -> Result<Self> {
        Node::adopt(root, fd).map(Self)
    }

    /// Makes hypercall `op`, and returns its result unless that is an error.
    ///
    /// # Errors
    ///
    /// The hypercall's errno, or the driver's: `EPERM` from a restricted file, or in a domain
    /// whose kernel refuses privileged hypercalls.
    ///
    /// # Safety
    ///
    /// As [`Privcmd::hypercall`](crate::privcmd::Privcmd::hypercall).
    pub(crate) unsafe fn hypercall(&self, op: u64, arg: [u64; 5]) -> Result<i64> {
        // SAFETY: the caller's promise.
        unsafe { self.call("IOCTL_PRIVCMD_HYPERCALL", op, arg) }
    }

    /// [`hypercall`](Self::hypercall) under the name `name`.
    ///
    /// # Errors
    ///
    /// The driver's errno, or the hypercall's.
    ///
    /// # Safety
    ///
    /// As [`hypercall`](Self::hypercall).
    unsafe fn call(&self, name: &'static str, op: u64, arg: [u64; 5]) -> Result<i64> {
        let mut call = privcmd::Hypercall { op, arg };
        // SAFETY: the driver reads one `Hypercall`, which `call` is; the caller vouches for the
        // addresses in it; the descriptor is of /dev/xen/privcmd.
        let result = unsafe {
            super::long_ioctl(
                self.0.file.as_fd(),
                name,
                privcmd::IOCTL_PRIVCMD_HYPERCALL,
                ptr::from_mut(&mut call).cast(),
            )
        }?;
        #[allow(clippy::useless_conversion, reason = "a long of 32 bits elsewhere")]
        Ok(i64::from(result))
    }

    /// `xen_version` for an operation without an argument.
    ///
    /// # Errors
    ///
    /// The driver's errno, or the hypercall's.
    pub(crate) fn xen_version(&self, name: &'static str, command: u64) -> Result<i64> {
        let op = hypercall::HYPERVISOR_XEN_VERSION;
        // SAFETY: the only address is null: an operation that expects one fails with EFAULT or, if
        // null is a question for a length, answers it (xen/common/kernel.c).
        unsafe { self.call(name, op, [command, 0, 0, 0, 0]) }
    }

    /// `xen_version(XENVER_version)`: `(major, minor)`.
    ///
    /// # Errors
    ///
    /// The driver's errno, or the hypercall's.
    pub fn xenver_version(&self) -> Result<(u16, u16)> {
        let v = self.xen_version("XENVER_version", version::XENVER_VERSION)? as u32;
        Ok(((v >> 16) as u16, v as u16))
    }

    /// Makes an operation whose argument is one struct; returns its result, and the struct as Xen
    /// left it.
    ///
    /// # Errors
    ///
    /// The driver's errno, or the hypercall's.
    pub(crate) fn operation<A: Operation>(
        &self,
        buffer: &mut HypercallBuffer,
        argument: A,
    ) -> Result<(i64, A)> {
        need(A::NAME, buffer, size_of::<A>().max(PAGE_SIZE))?;
        put(buffer, 0, &argument.bounded());
        let address = buffer.as_ptr().as_ptr() as u64;
        // The third argument is the count that grant_table_op wants; the others look at none.
        // SAFETY: by the contract of `Operation`, Xen reads and writes at most a page or the size
        // of `A` at `address`, and the buffer is at least that long and borrowed mutably; what is
        // there is an `A` from `bounded`, so it holds no address.
        let result = unsafe { self.call(A::NAME, A::CALL, [A::COMMAND, address, 1, 0, 0]) }?;
        Ok((result, get(buffer, 0).unwrap_or(argument)))
    }

    /// Makes an operation on the memory at `frames`, each the first of 2^`order`; returns how many
    /// it was done to.
    ///
    /// # Errors
    ///
    /// The driver's errno, or the hypercall's.
    ///
    /// # Safety
    ///
    /// `domain` must not be the one that this program runs in, or nothing may use memory at those
    /// frames.
    pub(crate) unsafe fn extents<E: ExtentsOperation>(
        &self,
        buffer: &mut HypercallBuffer,
        domain: DomId,
        order: u32,
        frames: &mut [u64],
    ) -> Result<usize> {
        let len = size_of_val(frames);
        need(E::NAME, buffer, bytes_buffer(len))?;
        let address = buffer.as_ptr().as_ptr() as u64;
        let argument = hypercall::MemoryReservation {
            extent_start: address + ARRAY as u64,
            nr_extents: frames.len() as u64,
            extent_order: order,
            mem_flags: 0,
            domid: domain,
            pad: [0; 3],
        };
        put(buffer, 0, &argument);
        buffer.bytes_mut()[ARRAY..ARRAY + len].copy_from_slice(frames.as_bytes());
        let arg = [E::COMMAND, address, 0, 0, 0];
        // SAFETY: Xen reads one `struct xen_memory_reservation` at `address`, which ends before
        // `ARRAY`; by the contract of `ExtentsOperation`, it reads and writes only the frame
        // numbers behind that, which `need` saw in the buffer, which is borrowed mutably. The
        // memory itself is the caller's promise.
        let done = unsafe { self.call(E::NAME, hypercall::HYPERVISOR_MEMORY_OP, arg) }?;
        let bytes = &buffer.bytes()[ARRAY..ARRAY + len];
        frames.as_mut_bytes().copy_from_slice(bytes);
        Ok(usize::try_from(done).unwrap_or(0).min(frames.len()))
    }

    /// Puts what a space (`XENMAPSPACE_*`, and the other domain of a foreign one) has at the first
    /// number of each pair at the guest frame that is the second. Returns an errno for each.
    ///
    /// # Errors
    ///
    /// The driver's errno, or the hypercall's.
    ///
    /// # Safety
    ///
    /// As [`extents`](Self::extents).
    pub(crate) unsafe fn add_to_physmap_batch(
        &self,
        buffer: &mut HypercallBuffer,
        domain: DomId,
        (space, foreign): (u32, u16),
        pairs: &[(u64, u64)],
    ) -> Result<Vec<i32>> {
        const NAME: &str = "XENMEM_add_to_physmap_batch";
        need(NAME, buffer, bytes_buffer(batch_len(pairs.len())))?;
        let refused = |_| Error::Invalid {
            op: NAME,
            what: "the number of frames",
            value: pairs.len() as u64,
        };
        let (address, count) = (buffer.as_ptr().as_ptr() as u64, pairs.len());
        let frames = ARRAY + count * size_of::<u64>();
        let errors = frames + count * size_of::<u64>();
        let argument = memory::AddToPhysmapBatch {
            domid: domain,
            space: space as u16,
            size: count.try_into().map_err(refused)?,
            foreign_domid: foreign,
            idxs: address + ARRAY as u64,
            gpfns: address + frames as u64,
            errs: address + errors as u64,
        };
        put(buffer, 0, &argument);
        for (i, (index, frame)) in pairs.iter().enumerate() {
            put(buffer, ARRAY + i * size_of::<u64>(), index);
            put(buffer, frames + i * size_of::<u64>(), frame);
            put(buffer, errors + i * size_of::<i32>(), &0_i32);
        }
        let arg = [memory::XENMEM_ADD_TO_PHYSMAP_BATCH, address, 0, 0, 0];
        // SAFETY: Xen reads and, where it goes on later, writes one `struct
        // xen_add_to_physmap_batch` at `address`, which ends before `ARRAY`; it reads `size`
        // numbers at `idxs` and at `gpfns` and writes `size` ints at `errs`
        // (xenmem_add_to_physmap_batch in xen/common/memory.c), one array behind the other, which
        // `need` saw in the buffer, which is borrowed mutably. The memory itself is the caller's
        // promise.
        unsafe { self.call(NAME, hypercall::HYPERVISOR_MEMORY_OP, arg) }?;
        let error = |i| get(buffer, errors + i * size_of::<i32>()).unwrap_or(-libc::EIO);
        Ok((0..count).map(error).map(i32::saturating_neg).collect())
    }

    /// Makes a domctl; returns the domain and the body as Xen left them.
    ///
    /// # Errors
    ///
    /// The driver's errno, or the hypercall's. `EACCES` when Xen's interface is of another version.
    pub(crate) fn domctl<B: DomctlBody>(
        &self,
        buffer: &mut HypercallBuffer,
        interface: u32,
        domain: DomId,
        body: B,
    ) -> Result<(DomId, B)> {
        need(B::NAME, buffer, size_of::<Domctl>())?;
        let whole = Domctl::new(B::COMMAND, interface, domain, &body);
        put(buffer, 0, &whole);
        let address = buffer.as_ptr().as_ptr() as u64;
        // SAFETY: Xen reads and writes one `struct xen_domctl` at `address`, where the buffer,
        // which is borrowed mutably, has room for one; by the contract of `DomctlBody`, there is no
        // address in it.
        unsafe { self.call(B::NAME, hypercall::HYPERVISOR_DOMCTL, [address, 0, 0, 0, 0]) }?;
        let whole = get(buffer, 0).unwrap_or(whole);
        Ok((whole.domain, whole.body().unwrap_or(body)))
    }

    /// Makes a domctl that reads or fills `bytes`; without any bytes, it asks for their length.
    /// Returns the body as Xen left it.
    ///
    /// # Errors
    ///
    /// As [`domctl`](Self::domctl).
    pub(crate) fn domctl_bytes<B: DomctlBytes>(
        &self,
        buffer: &mut HypercallBuffer,
        interface: u32,
        domain: DomId,
        body: B,
        bytes: &mut [u8],
    ) -> Result<B> {
        need(B::NAME, buffer, bytes_buffer(bytes.len().max(B::LEAST)))?;
        let len = checked_len(B::NAME, bytes, B::LEAST)?;
        let address = buffer.as_ptr().as_ptr() as u64;
        let at = if len == 0 { 0 } else { address + ARRAY as u64 };
        let body = body.set_bytes(at, len);
        let whole = Domctl::new(B::COMMAND, interface, domain, &body);
        put(buffer, 0, &whole);
        buffer.bytes_mut()[ARRAY..ARRAY + bytes.len()].copy_from_slice(bytes);
        // SAFETY: one `struct xen_domctl` is at `address`, and it ends before `ARRAY`. By the
        // contract of `DomctlBytes`, the only address in it is the one `set_bytes` put there, at
        // which Xen reads and writes at most `len` bytes, or the address is null: `need` saw that
        // they are within the buffer, which is borrowed mutably.
        unsafe { self.call(B::NAME, hypercall::HYPERVISOR_DOMCTL, [address, 0, 0, 0, 0]) }?;
        let whole: Domctl = get(buffer, 0).unwrap_or(whole);
        bytes.copy_from_slice(&buffer.bytes()[ARRAY..ARRAY + bytes.len()]);
        Ok(whole.body().unwrap_or(body))
    }

    /// Makes the same domctl on several domains by one multicall. The results are Xen's: an error
    /// is negative.
    ///
    /// # Errors
    ///
    /// The driver's errno, or the hypercall's.
    pub(crate) fn domctls<B: DomctlBody>(
        &self,
        buffer: &mut HypercallBuffer,
        interface: u32,
        domains: &[DomId],
        body: B,
    ) -> Result<Vec<(i64, DomId, B)>> {
        need(B::NAME, buffer, domctls_buffer(domains.len()))?;
        let at = |i: usize| multicall_buffer(domains.len()) + i * size_of::<Domctl>();
        let address = buffer.as_ptr().as_ptr() as u64;
        let call = |i: usize| MulticallEntry {
            op: hypercall::HYPERVISOR_DOMCTL,
            args: [address + at(i) as u64, 0, 0, 0, 0, 0],
            ..MulticallEntry::default()
        };
        let mut calls: Vec<MulticallEntry> = (0..domains.len()).map(call).collect();
        for (i, &domain) in domains.iter().enumerate() {
            let whole = Domctl::new(B::COMMAND, interface, domain, &body);
            put(buffer, at(i), &whole);
        }
        // SAFETY: each call is a domctl as in `domctl`, whose struct is at `at(i)`, which with its
        // length is within the buffer, behind the room for the entries, and no two overlap.
        unsafe { self.multicall(buffer, &mut calls) }?;
        let result = |(i, call): (usize, &MulticallEntry)| {
            let whole: Option<Domctl> = get(buffer, at(i));
            let domain = whole.map_or(DomId::INVALID, |whole| whole.domain);
            let body = whole.and_then(|whole| whole.body()).unwrap_or(body);
            (call.result as i64, domain, body)
        };
        Ok(calls.iter().enumerate().map(result).collect())
    }

    /// Makes several hypercalls by one; `calls` gets their results. The start of `buffer` is used
    /// for the entries; what is behind them is left alone.
    ///
    /// # Errors
    ///
    /// The driver's errno, or the hypercall's. Each entry holds its own call's result.
    ///
    /// # Safety
    ///
    /// As [`hypercall`](Self::hypercall), for each of the calls.
    pub(crate) unsafe fn multicall(
        &self,
        buffer: &mut HypercallBuffer,
        calls: &mut [MulticallEntry],
    ) -> Result<()> {
        const NAME: &str = "multicall";
        need(NAME, buffer, multicall_buffer(calls.len()))?;
        let bytes = calls.as_bytes();
        buffer.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        let address = buffer.as_ptr().as_ptr() as u64;
        let arg = [address, calls.len() as u64, 0, 0, 0];
        // SAFETY: Xen reads that many entries at `address` and writes their results (do_multicall
        // in xen/common/multicall.c); the buffer has them and is borrowed mutably; the caller
        // vouches for the addresses in them.
        unsafe { self.call(NAME, hypercall::HYPERVISOR_MULTICALL, arg) }?;
        let bytes = &buffer.bytes()[..size_of_val(calls)];
        calls.as_mut_bytes().copy_from_slice(bytes);
        Ok(())
    }

    /// Makes a sysctl; returns the body as Xen left it.
    ///
    /// # Errors
    ///
    /// As [`domctl`](Self::domctl).
    pub(crate) fn sysctl<B: SysctlBody>(
        &self,
        buffer: &mut HypercallBuffer,
        interface: u32,
        body: B,
    ) -> Result<B> {
        need(B::NAME, buffer, size_of::<Sysctl>())?;
        let whole = Sysctl::new(B::COMMAND, interface, &body);
        put(buffer, 0, &whole);
        let address = buffer.as_ptr().as_ptr() as u64;
        // SAFETY: as in `domctl`: one `struct xen_sysctl`, in which the contract of `SysctlBody`
        // has no address.
        unsafe { self.call(B::NAME, hypercall::HYPERVISOR_SYSCTL, [address, 0, 0, 0, 0]) }?;
        let whole: Sysctl = get(buffer, 0).unwrap_or(whole);
        Ok(whole.body().unwrap_or(body))
    }

    /// Makes a sysctl that fills an array of at most `items` items; returns the body and the items
    /// that were written.
    ///
    /// # Errors
    ///
    /// As [`domctl`](Self::domctl).
    pub(crate) fn sysctl_array<B: SysctlArray>(
        &self,
        buffer: &mut HypercallBuffer,
        interface: u32,
        body: B,
        items: u32,
    ) -> Result<(B, Vec<B::Item>)> {
        need(B::NAME, buffer, array_buffer::<B>(items))?;
        let address = buffer.as_ptr().as_ptr() as u64;
        let body = body.set_array(address + ARRAY as u64, items);
        let whole = Sysctl::new(B::COMMAND, interface, &body);
        put(buffer, 0, &whole);
        // SAFETY: one `struct xen_sysctl` is at `address`, and it ends before `ARRAY`. By the
        // contract of `SysctlArray`, the only address in it is the one `set_array` put there, at
        // which Xen writes at most `items` items: `need` saw that they are within the buffer, which
        // is borrowed mutably.
        unsafe { self.call(B::NAME, hypercall::HYPERVISOR_SYSCTL, [address, 0, 0, 0, 0]) }?;
        let whole: Sysctl = get(buffer, 0).unwrap_or(whole);
        let body: B = whole.body().unwrap_or(body);
        let written = body.items().min(items) as usize;
        let size = size_of::<B::Item>();
        let bytes = &buffer.bytes()[ARRAY..ARRAY + written * size];
        let items = bytes.chunks_exact(size);
        let items = items.filter_map(|bytes| B::Item::read_from_bytes(bytes).ok());
        Ok((body, items.collect()))
    }

    /// Makes a memory operation on a list of frames, each with a byte, or with none at all.
    ///
    /// # Errors
    ///
    /// The driver's errno, or the hypercall's; [`Error::Invalid`] when there is not a byte for each
    /// frame.
    pub(crate) fn frame_list<L: FrameList>(
        &self,
        buffer: &mut HypercallBuffer,
        argument: L,
        frames: &[u64],
        each: &[u8],
    ) -> Result<i64> {
        need(L::NAME, buffer, list_buffer(frames.len()))?;
        let count = checked_count(L::NAME, frames.len())?;
        if !each.is_empty() && each.len() != frames.len() {
            return Err(Error::Invalid {
                op: L::NAME,
                what: "the length of the second list",
                value: each.len() as u64,
            });
        }
        let bytes = ARRAY + size_of_val(frames);
        put(buffer, ARRAY, frames);
        put(buffer, bytes, each);
        let address = buffer.as_ptr().as_ptr() as u64;
        let (frames, each) = (address + ARRAY as u64, address + bytes as u64);
        put(buffer, 0, &argument.set_lists(frames, each, count));
        // SAFETY: the struct is at `address` and ends before `ARRAY`. By the contract of
        // `FrameList`, the only addresses in it are those `set_lists` put there, at which Xen reads
        // and writes at most `count` frame numbers and `count` bytes: `need` saw that they are
        // within the buffer, which is borrowed mutably. The operation changes no memory of this
        // domain.
        unsafe {
            let op = hypercall::HYPERVISOR_MEMORY_OP;
            self.call(L::NAME, op, [L::COMMAND, address, 0, 0, 0])
        }
    }

    /// Makes a sysctl that reads or fills arrays at the start of `area`; returns the body as Xen
    /// left it.
    ///
    /// # Errors
    ///
    /// As [`domctl`](Self::domctl).
    pub(crate) fn sysctl_area<B: SysctlArea>(
        &self,
        buffer: &mut HypercallBuffer,
        interface: u32,
        body: B,
        area: &mut [u8],
    ) -> Result<B> {
        need(B::NAME, buffer, bytes_buffer(B::LEN))?;
        checked_len(B::NAME, area, B::LEN)?;
        let area = &mut area[..B::LEN];
        let address = buffer.as_ptr().as_ptr() as u64;
        let body = body.place(address + ARRAY as u64);
        let whole = Sysctl::new(B::COMMAND, interface, &body);
        put(buffer, 0, &whole);
        buffer.bytes_mut()[ARRAY..ARRAY + B::LEN].copy_from_slice(area);
        // SAFETY: one `struct xen_sysctl` is at `address`, and it ends before `ARRAY`. By the
        // contract of `SysctlArea`, Xen reads and writes only the `LEN` bytes behind that, which
        // `need` saw in the buffer, which is borrowed mutably.
        unsafe { self.call(B::NAME, hypercall::HYPERVISOR_SYSCTL, [address, 0, 0, 0, 0]) }?;
        let whole: Sysctl = get(buffer, 0).unwrap_or(whole);
        area.copy_from_slice(&buffer.bytes()[ARRAY..ARRAY + B::LEN]);
        Ok(whole.body().unwrap_or(body))
    }

    /// Makes a device-model operation on `domain`; returns the body as Xen left it. `second` is the
    /// operation's second buffer, where it has one, or empty. Xen writes to both.
    ///
    /// # Errors
    ///
    /// The hypercall's errno or the driver's: `EPERM` from a file restricted to another domain,
    /// `E2BIG` for a buffer longer than the driver's limit.
    pub(crate) fn dm_op<B: DmOpBody>(
        &self,
        domain: DomId,
        body: B,
        second: &mut [u8],
    ) -> Result<B> {
        let mut argument = DmOpArgument::new(B::COMMAND, &body);
        let buffers = [
            privcmd::DmOpBuffer {
                address: ptr::from_mut(&mut argument) as u64,
                size: size_of::<DmOpArgument>() as u64,
            },
            privcmd::DmOpBuffer {
                address: second.as_mut_ptr() as u64,
                size: second.len() as u64,
            },
        ];
        let mut call = privcmd::DmOp {
            domid: domain,
            count: if second.is_empty() { 1 } else { 2 },
            buffers: buffers.as_ptr() as u64,
        };
        // SAFETY: the descriptor is of /dev/xen/privcmd, whose driver for this request reads one
        // `DmOp`, which `call` is, and `count` `DmOpBuffer`s at the address in it, which `buffers`
        // has, and pins the `size` bytes at the address of each for the hypercall
        // (privcmd_ioctl_dm_op in drivers/xen/privcmd.c): all of `argument` and of `second`, both
        // borrowed mutably to the end of the call and of types of which any bytes are a value.
        // Xen reads and writes those bytes and no others of this process: by the contract of
        // `DmOpBody` it takes nothing in them for an address of the caller's.
        unsafe {
            ioctl(
                self.0.file.as_fd(),
                B::NAME,
                privcmd::IOCTL_PRIVCMD_DM_OP,
                ptr::from_mut(&mut call).cast(),
            )
        }?;
        Ok(argument.body().unwrap_or(body))
    }

    /// Has the kernel make the device-model operation `argument` on `domain` each time `event` is
    /// signalled; with `None`, has it stop.
    ///
    /// # Errors
    ///
    /// The driver's errno: `EBUSY` if it does so already, `ENOTTY` before Linux 6.6, `EOPNOTSUPP`
    /// when it was built without.
    pub(crate) fn irq_fd(
        &self,
        domain: DomId,
        event: BorrowedFd<'_>,
        argument: Option<&DmOpArgument>,
    ) -> Result<()> {
        let mut call = privcmd::IrqFd {
            dm_op: argument.map_or(0, |argument| ptr::from_ref(argument) as u64),
            size: argument.map_or(0, size_of_val) as u32,
            fd: event.as_raw_fd() as u32,
            flags: match argument {
                Some(_) => 0,
                None => privcmd::PRIVCMD_IRQFD_FLAG_DEASSIGN,
            },
            dom: domain,
            pad: [0; 2],
        };
        // SAFETY: the descriptor is of /dev/xen/privcmd, whose driver for this request reads one
        // `IrqFd`, which `call` is, and copies `size` bytes at the address in it, which are all of
        // `argument`; later it uses the copy (privcmd_ioctl_irqfd in drivers/xen/privcmd.c).
        unsafe {
            ioctl(
                self.0.file.as_fd(),
                "IOCTL_PRIVCMD_IRQFD",
                privcmd::IOCTL_PRIVCMD_IRQFD,
                ptr::from_mut(&mut call).cast(),
            )
        }
        .map(drop)
    }

    /// Maps the synchronous requests of ioreq server `id` of `domain`, for
    /// [`io_event_fd`](Self::io_event_fd).
    ///
    /// # Errors
    ///
    /// The hypercall's errno or the driver's.
    pub(crate) fn map_requests(&self, domain: DomId, id: u16) -> Result<RequestPage> {
        let (kind, id) = (hypercall::XENMEM_RESOURCE_IOREQ_SERVER, u32::from(id));
        let page = Pages::map_shared(self.as_fd(), 0, PAGE_SIZE, Protection::ReadWrite);
        let page = page.map_err(|e| Error::os("mmap /dev/xen/privcmd", e))?;
        self.mmap_resource(domain, (kind, id), 1, &page)?;
        Ok(RequestPage { page, domain })
    }

    /// Has the kernel answer writes to a virtio doorbell by signalling `event`, until
    /// [`AssignedEventFd::end`]. `ports` are this domain's ends of the virtual CPUs' event
    /// channels.
    ///
    /// # Errors
    ///
    /// The driver's errno, as for [`irq_fd`](Self::irq_fd), but since Linux 6.7;
    /// [`Error::Unsupported`] in a PV domain; [`Error::Os`] when `/sys` does not give the kind.
    pub(crate) fn io_event_fd(
        &self,
        requests: &Arc<RequestPage>,
        ports: &[Port],
        doorbell: Doorbell,
        event: OwnedFd,
    ) -> Result<AssignedEventFd> {
        // The driver keeps no pages for a mapping in a domain whose memory is not translated, and
        // would take what is in their place for some: an unknown kind must not pass for another.
        let kind = std::fs::read_to_string("/sys/hypervisor/guest_type");
        let kind = kind.map_err(|e| Error::os("read /sys/hypervisor/guest_type", e))?;
        if kind.trim() == "PV" {
            return Err(Error::Unsupported { op: IOEVENTFD });
        }
        self.set_io_event_fd(requests, ports, doorbell, event.as_fd(), 0)?;
        Ok(AssignedEventFd {
            requests: ManuallyDrop::new(Arc::clone(requests)),
            ports: ports.to_vec(),
            doorbell,
            event,
        })
    }

    /// Makes the request.
    fn set_io_event_fd(
        &self,
        requests: &RequestPage,
        ports: &[Port],
        doorbell: Doorbell,
        event: BorrowedFd<'_>,
        flags: u32,
    ) -> Result<()> {
        let mut call = privcmd::IoEventFd {
            ioreq: requests.page.as_ptr().as_ptr().addr() as u64,
            ports: ports.as_ptr() as u64,
            addr: doorbell.address,
            addr_len: u32::from(doorbell.size),
            event_fd: event.as_raw_fd() as u32,
            vcpus: checked_count(IOEVENTFD, ports.len())?,
            vq: doorbell.queue,
            flags,
            dom: requests.domain,
            pad: [0; 2],
        };
        // SAFETY: the descriptor is of /dev/xen/privcmd, whose driver for this request reads one
        // `IoEventFd`, which `call` is, and `vcpus` numbers of 32 bits at the address in it, which
        // `ports` has (a `Port` is a `u32`, transparent). From then until the request that ends it,
        // it reads and writes the page at `ioreq`, without asking what the mapping there is or
        // whether it still exists (alloc_ioreq in drivers/xen/privcmd.c). A `RequestPage` is made
        // by `map_requests` only, so it is a mapping of this device that the driver filled; it is
        // of one page, so the page is its first. `AssignedEventFd` keeps it mapped until that
        // request has succeeded, forever if it never does. No reference into a `Pages` exists.
        unsafe {
            ioctl(
                self.0.file.as_fd(),
                IOEVENTFD,
                privcmd::IOCTL_PRIVCMD_IOEVENTFD,
                ptr::from_mut(&mut call).cast(),
            )
        }
        .map(drop)
    }

    /// Maps `frames` of `domain` into the pages of `pages` from the page numbered `first` on, where
    /// nothing is mapped yet. Returns an errno for each frame, 0 for one that is mapped.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for frames beyond the pages; the driver's errno, such as `EPERM` from a
    /// file restricted to another domain. Then no frame was mapped.
    #[doc(alias = "IOCTL_PRIVCMD_MMAPBATCH_V2")]
    pub(crate) fn mmap_batch(
        &self,
        domain: DomId,
        pages: &Pages,
        first: usize,
        frames: &[u64],
    ) -> Result<Vec<i32>> {
        const NAME: &str = "IOCTL_PRIVCMD_MMAPBATCH_V2";
        let num = checked_count(NAME, frames.len())?;
        let addr = page_address(NAME, pages, first, frames.len())?;
        let mut errors = vec![0i32; frames.len()];
        let mut call = privcmd::MmapBatchV2 {
            num,
            dom: domain,
            pad: 0,
            addr,
            arr: frames.as_ptr() as u64,
            err: errors.as_mut_ptr() as u64,
        };
        // SAFETY: the descriptor is of /dev/xen/privcmd, whose driver for this request reads one
        // `MmapBatchV2`, which `call` is, reads `num` frame numbers at `arr`, which `frames` has,
        // and writes `num` ints at `err`, which `errors` has and lends mutably
        // (privcmd_ioctl_mmap_batch in drivers/xen/privcmd.c). It fills the pages from `addr` on
        // only if they are of a mapping of this device and nothing is mapped there; they are within
        // `pages`, of which no reference exists.
        let done = unsafe {
            ioctl(
                self.0.file.as_fd(),
                NAME,
                privcmd::IOCTL_PRIVCMD_MMAPBATCH_V2,
                ptr::from_mut(&mut call).cast(),
            )
        };
        match done {
            Ok(_) => {}
            // At least one frame is paged out; the array shows which.
            Err(e) if e.errno() == Some(libc::ENOENT) => {}
            Err(e) => return Err(e),
        }
        errors.iter_mut().for_each(|e| *e = e.saturating_neg());
        Ok(errors)
    }

    /// Maps frames of a resource of `domain` over all of `pages`, from the resource's frame `first`
    /// on.
    ///
    /// # Errors
    ///
    /// The hypercall's errno or the driver's.
    #[doc(alias = "IOCTL_PRIVCMD_MMAP_RESOURCE")]
    pub(crate) fn mmap_resource(
        &self,
        domain: DomId,
        (kind, id): (u32, u32),
        first: u32,
        pages: &Pages,
    ) -> Result<()> {
        const NAME: &str = "IOCTL_PRIVCMD_MMAP_RESOURCE";
        let num = pages.len() / PAGE_SIZE;
        let addr = page_address(NAME, pages, 0, num)?;
        self.resource(privcmd::MmapResource {
            dom: domain,
            pad: 0,
            kind,
            id,
            idx: first,
            num: num as u64,
            addr,
        })
        .map(drop)
    }

    /// Returns how many frames a resource of `domain` has.
    ///
    /// # Errors
    ///
    /// The hypercall's errno or the driver's: `EINVAL` before Linux 5.12.
    pub(crate) fn resource_size(&self, domain: DomId, (kind, id): (u32, u32)) -> Result<u64> {
        let size = self.resource(privcmd::MmapResource {
            dom: domain,
            pad: 0,
            kind,
            id,
            idx: 0,
            num: 0,
            addr: 0,
        })?;
        checked_resource_size(size)
    }

    /// Makes the request; `addr` must be zero or the address of `num` pages of a [`Pages`].
    fn resource(&self, mut call: privcmd::MmapResource) -> Result<u64> {
        // SAFETY: the descriptor is of /dev/xen/privcmd, whose driver for this request reads and
        // writes one `MmapResource`, which `call` is (privcmd_ioctl_mmap_resource in
        // drivers/xen/privcmd.c). It fills pages from `addr` on only if they are of a mapping of
        // this device; both callers pass either no pages, or pages within a `Pages`, of which no
        // reference exists.
        unsafe {
            ioctl(
                self.0.file.as_fd(),
                "IOCTL_PRIVCMD_MMAP_RESOURCE",
                privcmd::IOCTL_PRIVCMD_MMAP_RESOURCE,
                ptr::from_mut(&mut call).cast(),
            )
        }?;
        Ok(call.num)
    }

    /// Permanently limits this file to operations on `domain`.
    ///
    /// # Errors
    ///
    /// The driver's errno; `EINVAL` when it is limited to another domain already.
    pub fn restrict(&self, domain: DomId) -> Result<()> {
        set(&self.0, &privcmd::Restrict { domid: domain }).map(drop)
    }
}

/// The address of page `first` of `pages`, from which `count` pages are within them.
fn page_address(op: &'static str, pages: &Pages, first: usize, count: usize) -> Result<u64> {
    let there = pages.len() / PAGE_SIZE;
    if first > there || count > there - first {
        return Err(Error::Invalid {
            op,
            what: "the number of pages",
            value: count as u64,
        });
    }
    Ok(pages.as_ptr().as_ptr().addr() as u64 + (first * PAGE_SIZE) as u64)
}

/// The length of `bytes`, of which there have to be `least`.
fn checked_len(op: &'static str, bytes: &[u8], least: usize) -> Result<u32> {
    let len = u32::try_from(bytes.len()).ok();
    let enough = len.filter(|_| bytes.len() >= least);
    enough.ok_or(Error::Invalid {
        op,
        what: "the number of bytes",
        value: bytes.len() as u64,
    })
}

const IOEVENTFD: &str = "IOCTL_PRIVCMD_IOEVENTFD";

/// A mapped page of an ioreq server's synchronous requests, which nothing here accesses.
#[derive(Debug)]
pub(crate) struct RequestPage {
    page: Pages,
    domain: DomId,
}

/// An eventfd that the kernel signals; it keeps the page that the kernel uses for that, which stays
/// mapped for the life of the process unless [`end`](Self::end) succeeds.
#[derive(Debug)]
pub(crate) struct AssignedEventFd {
    requests: ManuallyDrop<Arc<RequestPage>>,
    ports: Vec<Port>,
    doorbell: Doorbell,
    event: OwnedFd,
}

impl AssignedEventFd {
    /// Has the kernel stop.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    pub(crate) fn end(self, dev: &PrivCmd) -> Result<()> {
        let flags = privcmd::PRIVCMD_IOEVENTFD_FLAG_DEASSIGN;
        let event = self.event.as_fd();
        dev.set_io_event_fd(&self.requests, &self.ports, self.doorbell, event, flags)?;
        drop(ManuallyDrop::into_inner(self.requests));
        Ok(())
    }
}

/// Fails for a buffer that is too small.
fn need(op: &'static str, buffer: &HypercallBuffer, bytes: usize) -> Result<()> {
    if buffer.len() >= bytes {
        return Ok(());
    }
    Err(Error::Invalid {
        op,
        what: "the buffer's length",
        value: buffer.len() as u64,
    })
}

/// Writes a struct into a buffer that [`need`] found long enough.
fn put(buffer: &mut HypercallBuffer, at: usize, value: &(impl IntoBytes + Immutable + ?Sized)) {
    let bytes = value.as_bytes();
    buffer.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Reads a struct from a buffer that [`need`] found long enough.
fn get<T: FromBytes>(buffer: &HypercallBuffer, at: usize) -> Option<T> {
    let bytes = buffer.bytes().get(at..)?;
    T::read_from_prefix(bytes).ok().map(|(value, _)| value)
}

impl AsFd for PrivCmd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}

/// Xen 4.17 succeeds when the size of a resource of an unknown kind is requested, and returns the
/// negative errno as the 32-bit size (`resource_max_frames` in xen/common/memory.c).
fn checked_resource_size(size: u64) -> Result<u64> {
    match u32::try_from(size).map(|size| i32::from_ne_bytes(size.to_ne_bytes())) {
        Ok(errno @ -4095..=-1) => Err(Error::os(
            "IOCTL_PRIVCMD_MMAP_RESOURCE",
            io::Error::from_raw_os_error(-errno),
        )),
        _ => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_of_something_else_is_not_adopted() {
        // A folder whose `privcmd` is /dev/null, as in an image with its own nodes.
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
        let body = dm_op::RemoteShutdown { reason: 3 };
        let done = same.unwrap().dm_op(DomId::DOM0, body, &mut []);
        assert_eq!(done.unwrap_err().errno(), Some(libc::ENOTTY));
    }

    /// Returns a privcmd on which every request fails, and a buffer of one page.
    fn null() -> (PrivCmd, HypercallBuffer) {
        let root = DevRoot::at("/nonexistent");
        let file = DevRoot::at("/dev").open_device("null").unwrap().into();
        let node = Node {
            file,
            driver: std::marker::PhantomData,
        };
        (PrivCmd(node), HypercallBuffer::new(&root, 1).unwrap())
    }

    #[test]
    fn a_refused_call_names_the_operation() {
        let (privcmd, mut buffer) = null();
        let text = |error: Error| {
            assert_eq!(error.errno(), Some(libc::ENOTTY), "{error}");
            error.to_string()
        };
        let e = privcmd.operation(&mut buffer, version::Changeset::default());
        assert!(text(e.unwrap_err()).starts_with("XENVER_changeset: "));
        let e = privcmd.domctl(&mut buffer, 0x15, DomId::DOM0, domctl::Pause);
        assert!(text(e.unwrap_err()).starts_with("XEN_DOMCTL_pausedomain: "));
        let e = privcmd.sysctl(&mut buffer, 0x15, sysctl::PhysInfo::default());
        assert!(text(e.unwrap_err()).starts_with("XEN_SYSCTL_physinfo: "));
    }

    #[test]
    fn an_array_is_within_its_buffer_before_xen_is_asked() {
        let (privcmd, mut buffer) = null();
        let room = (PAGE_SIZE - ARRAY) as u32;
        let body = sysctl::ReadConsole::default();
        let mut ask = |bytes| {
            let refused = privcmd.sysctl_array(&mut buffer, 0x15, body, bytes);
            refused.unwrap_err()
        };
        assert_eq!(ask(room).errno(), Some(libc::ENOTTY));
        for bytes in [room + 1, u32::MAX] {
            let error = ask(bytes);
            assert!(matches!(error, Error::Invalid { .. }), "{error}");
        }
        let domains = [DomId::DOM0; 32];
        let error = privcmd.domctls(&mut buffer, 0x15, &domains, domctl::Pause);
        assert!(matches!(error, Err(Error::Invalid { .. })));
    }

    #[test]
    fn the_length_that_bounds_xen_is_ours() {
        let told = version::BuildId {
            len: u32::MAX,
            ..version::BuildId::default()
        };
        assert_eq!(told.bounded().len as usize, version::VARBUF_LEN);
    }

    #[test]
    fn a_size_that_is_an_errno_is_an_error() {
        let refused = checked_resource_size(u64::from(95_u32.wrapping_neg()));
        assert_eq!(refused.unwrap_err().errno(), Some(libc::EOPNOTSUPP));
        for size in [0, 1, 64, 1 << 31] {
            assert_eq!(checked_resource_size(size).unwrap(), size);
        }
    }
}
