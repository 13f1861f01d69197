//! Hypercalls: their numbers (xen/include/public/xen.h) and the structs of the small ones.
//!
//! Version, domctl and sysctl have their own modules.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{DomId, Port};

/// `memory_op(cmd, arg)`: xen/include/public/memory.h.
#[doc(alias = "__HYPERVISOR_memory_op")]
pub const HYPERVISOR_MEMORY_OP: u64 = 12;
/// `multicall(entries, count)`.
#[doc(alias = "__HYPERVISOR_multicall")]
pub const HYPERVISOR_MULTICALL: u64 = 13;
/// `xen_version(cmd, arg)`: xen/include/public/version.h.
#[doc(alias = "__HYPERVISOR_xen_version")]
pub const HYPERVISOR_XEN_VERSION: u64 = 17;
/// `grant_table_op(cmd, arg, count)`: xen/include/public/grant_table.h.
#[doc(alias = "__HYPERVISOR_grant_table_op")]
pub const HYPERVISOR_GRANT_TABLE_OP: u64 = 20;
/// `sched_op(cmd, arg)`: xen/include/public/sched.h.
#[doc(alias = "__HYPERVISOR_sched_op")]
pub const HYPERVISOR_SCHED_OP: u64 = 29;
/// `event_channel_op(cmd, arg)`: xen/include/public/event_channel.h.
#[doc(alias = "__HYPERVISOR_event_channel_op")]
pub const HYPERVISOR_EVENT_CHANNEL_OP: u64 = 32;
/// `hvm_op(cmd, arg)`: xen/include/public/hvm/hvm_op.h.
#[doc(alias = "__HYPERVISOR_hvm_op")]
pub const HYPERVISOR_HVM_OP: u64 = 34;
/// `sysctl(arg)`: xen/include/public/sysctl.h.
#[doc(alias = "__HYPERVISOR_sysctl")]
pub const HYPERVISOR_SYSCTL: u64 = 35;
/// `domctl(arg)`: xen/include/public/domctl.h.
#[doc(alias = "__HYPERVISOR_domctl")]
pub const HYPERVISOR_DOMCTL: u64 = 36;
/// `dm_op`. Privcmd has a separate request for it.
#[doc(alias = "__HYPERVISOR_dm_op")]
pub const HYPERVISOR_DM_OP: u64 = 41;

/// One hypercall of a multicall.
///
/// C: `struct multicall_entry`, xen/include/public/xen.h.
#[doc(alias = "multicall_entry")]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MulticallEntry {
    /// `__HYPERVISOR_*`.
    pub op: u64,
    /// Written by Xen: the result of the hypercall; negative errors as Xen's errno.
    pub result: u64,
    /// The arguments; addresses are of this process.
    pub args: [u64; 6],
}

/// The domain that a memory operation is about.
///
/// C: `struct xen_memory_domain`.
#[doc(alias = "xen_memory_domain")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryDomain {
    /// The domain, or [`DomId::SELF`].
    pub domid: DomId,
}

/// Frames that are given to a domain or taken from it.
///
/// C: `struct xen_memory_reservation`.
#[doc(alias = "xen_memory_reservation")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryReservation {
    /// In: the address of `nr_extents` frame numbers.
    pub extent_start: u64,
    /// In: extents.
    pub nr_extents: u64,
    /// In: an extent has 2 to this power pages.
    pub extent_order: u32,
    /// In: `XENMEMF_*`.
    pub mem_flags: u32,
    /// In: the domain.
    pub domid: DomId,
    /// Padding, implicit in C.
    pub pad: [u16; 3],
}

/// Permissions of frames, for the monitor.
///
/// C: `struct xen_mem_access_op`.
#[doc(alias = "xen_mem_access_op")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemAccessOp {
    /// In: `XENMEM_access_op_*`.
    pub op: u8,
    /// In or out: `XENMEM_access_*`.
    pub access: u8,
    /// In: the domain.
    pub domid: DomId,
    /// In: frames.
    pub nr: u32,
    /// In: the first frame; all ones for the permission of frames that have none.
    pub pfn: u64,
    /// In: the address of `nr` frame numbers.
    pub pfn_list: u64,
    /// In: the address of `nr` permissions.
    pub access_list: u64,
}

/// Takes frames from a domain: [`MemoryReservation`].
pub const XENMEM_DECREASE_RESERVATION: u64 = 1;
/// Gives a domain memory at frames: [`MemoryReservation`].
pub const XENMEM_POPULATE_PHYSMAP: u64 = 6;
/// [`MemAccessOp`].
pub const XENMEM_ACCESS_OP: u64 = 21;
/// One permission for a range.
pub const XENMEM_ACCESS_OP_SET_ACCESS: u8 = 0;
/// Returns the permission of one frame.
pub const XENMEM_ACCESS_OP_GET_ACCESS: u8 = 1;
/// A permission for each of several frames.
pub const XENMEM_ACCESS_OP_SET_ACCESS_MULTI: u8 = 4;
/// Returns the pages a domain has.
pub const XENMEM_CURRENT_RESERVATION: u64 = 3;
/// Returns the pages a domain may have.
pub const XENMEM_MAXIMUM_RESERVATION: u64 = 4;
/// Returns the highest guest frame number in use.
pub const XENMEM_MAXIMUM_GPFN: u64 = 14;

/// The pages of requests that a device model's server shares with Xen.
pub const XENMEM_RESOURCE_IOREQ_SERVER: u32 = 0;
/// The frames of a domain's grant table.
pub const XENMEM_RESOURCE_GRANT_TABLE: u32 = 1;
/// The buffer of a virtual CPU's processor trace.
pub const XENMEM_RESOURCE_VMTRACE_BUF: u32 = 2;
/// The resource id of the grants themselves.
pub const XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED: u32 = 0;
/// The resource id of the status words of grants of version 2.
pub const XENMEM_RESOURCE_GRANT_TABLE_ID_STATUS: u32 = 1;

/// The size of a domain's grant table.
///
/// C: `struct gnttab_query_size`.
#[doc(alias = "gnttab_query_size")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GnttabQuerySize {
    /// In: the domain, or [`DomId::SELF`].
    pub dom: DomId,
    /// Padding, implicit in C.
    pub pad: u16,
    /// Out: frames there are.
    pub nr_frames: u32,
    /// Out: frames there may be.
    pub max_nr_frames: u32,
    /// Out: `GNTST_*`.
    pub status: i16,
    /// Padding, implicit in C.
    pub pad2: u16,
}

/// [`GnttabQuerySize`].
pub const GNTTABOP_QUERY_SIZE: u64 = 6;
/// Success.
pub const GNTST_OKAY: i16 = 0;
/// No such domain.
pub const GNTST_BAD_DOMAIN: i16 = -2;
/// Not enough privilege.
pub const GNTST_PERMISSION_DENIED: i16 = -8;

/// Declares that a domain has shut down.
///
/// C: `struct sched_remote_shutdown`.
#[doc(alias = "sched_remote_shutdown")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SchedRemoteShutdown {
    /// The domain.
    pub domain_id: DomId,
    /// Padding, implicit in C.
    pub pad: u16,
    /// `SHUTDOWN_*`.
    pub reason: u32,
}

/// [`SchedRemoteShutdown`].
pub const SCHEDOP_REMOTE_SHUTDOWN: u64 = 4;

/// The state of one event-channel port.
///
/// C: `struct evtchn_status`.
#[doc(alias = "evtchn_status")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EvtchnStatus {
    /// In: the domain, or [`DomId::SELF`].
    pub dom: DomId,
    /// Padding, implicit in C.
    pub pad: u16,
    /// In: its port.
    pub port: Port,
    /// Out: `EVTCHNSTAT_*`.
    pub status: u32,
    /// Out: the virtual CPU that is notified.
    pub vcpu: u32,
    /// Out: a union: the remote domain (two bytes), or a number of four bytes.
    pub u: u32,
    /// Out: the remote port of an interdomain channel.
    pub remote_port: Port,
}

/// [`EvtchnStatus`].
pub const EVTCHNOP_STATUS: u64 = 5;
/// Not in use.
pub const EVTCHNSTAT_CLOSED: u32 = 0;
/// Waits for a domain to bind to it.
pub const EVTCHNSTAT_UNBOUND: u32 = 1;
/// Connected to a port of a domain.
pub const EVTCHNSTAT_INTERDOMAIN: u32 = 2;
/// Bound to a physical interrupt.
pub const EVTCHNSTAT_PIRQ: u32 = 3;
/// Bound to a virtual interrupt.
pub const EVTCHNSTAT_VIRQ: u32 = 4;
/// Bound to an interrupt between virtual CPUs.
pub const EVTCHNSTAT_IPI: u32 = 5;

/// A parameter of an HVM guest.
///
/// C: `struct xen_hvm_param`, xen/include/public/hvm/hvm_op.h.
#[doc(alias = "xen_hvm_param")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HvmParamOp {
    /// In: the guest.
    pub domid: DomId,
    /// Zero.
    pub pad: u16,
    /// In: `HVM_PARAM_*`.
    pub index: u32,
    /// The value, in or out.
    pub value: u64,
}

/// Sets [`HvmParamOp`].
pub const HVMOP_SET_PARAM: u64 = 0;
/// Gets [`HvmParamOp`].
pub const HVMOP_GET_PARAM: u64 = 1;

/// `physdev_op(cmd, arg)`: xen/include/public/physdev.h.
#[doc(alias = "__HYPERVISOR_physdev_op")]
pub const HYPERVISOR_PHYSDEV_OP: u64 = 33;

/// Makes the unbound end of an event channel.
///
/// C: `struct evtchn_alloc_unbound`.
#[doc(alias = "evtchn_alloc_unbound")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EvtchnAllocUnbound {
    /// In: the domain that owns the port.
    pub dom: DomId,
    /// In: the domain that may bind to it.
    pub remote_dom: DomId,
    /// Out: the port.
    pub port: Port,
}

/// [`EvtchnAllocUnbound`].
#[doc(alias = "EVTCHNOP_alloc_unbound")]
pub const EVTCHNOP_ALLOC_UNBOUND: u64 = 6;

/// The version of a domain's grant table.
///
/// C: `struct gnttab_get_version`.
#[doc(alias = "gnttab_get_version")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GnttabGetVersion {
    /// In: the domain, or [`DomId::SELF`].
    pub dom: DomId,
    /// Zero.
    pub pad: u16,
    /// Out: 1 or 2.
    pub version: u32,
}

/// [`GnttabGetVersion`].
pub const GNTTABOP_GET_VERSION: u64 = 10;

/// Maps an interrupt of the machine.
///
/// C: `struct physdev_map_pirq`.
#[doc(alias = "physdev_map_pirq")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PhysdevMapPirq {
    /// In: the domain, or [`DomId::SELF`].
    pub domid: DomId,
    /// Padding, implicit in C.
    pub pad: u16,
    /// In: `MAP_PIRQ_TYPE_*`.
    pub kind: i32,
    /// In: the interrupt's number, by its type.
    pub index: i32,
    /// In: the number wanted, or negative; out: the number given.
    pub pirq: i32,
    /// In: the device's segment and bus.
    pub bus: i32,
    /// In: its device and function.
    pub devfn: i32,
    /// In: the entry of its table.
    pub entry_nr: i32,
    /// Padding, implicit in C.
    pub pad2: u32,
    /// In: the machine address of its table, or zero.
    pub table_base: u64,
}

/// Unmaps an interrupt of the machine.
///
/// C: `struct physdev_unmap_pirq`.
#[doc(alias = "physdev_unmap_pirq")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PhysdevUnmapPirq {
    /// In: the domain, or [`DomId::SELF`].
    pub domid: DomId,
    /// Padding, implicit in C.
    pub pad: u16,
    /// In: the number.
    pub pirq: i32,
}

/// [`PhysdevMapPirq`].
#[doc(alias = "PHYSDEVOP_map_pirq")]
pub const PHYSDEVOP_MAP_PIRQ: u64 = 13;
/// [`PhysdevUnmapPirq`].
#[doc(alias = "PHYSDEVOP_unmap_pirq")]
pub const PHYSDEVOP_UNMAP_PIRQ: u64 = 14;
/// A line of an interrupt controller.
pub const MAP_PIRQ_TYPE_GSI: i32 = 1;
/// A message of a device in any segment.
pub const MAP_PIRQ_TYPE_MSI_SEG: i32 = 3;
