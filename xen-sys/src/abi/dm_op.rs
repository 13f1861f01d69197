//! `dm_op`: xen/include/public/hvm/dm_op.h. The guest's requests are in [`ioreq`](super::ioreq).
//!
//! The interface is stable: it has no version.

#![allow(
    missing_debug_implementations,
    reason = "zerocopy makes a type of each field of a struct that a macro makes"
)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Port;

/// The head of every operation, and room for its body.
///
/// C: `struct xen_dm_op`.
#[doc(alias = "xen_dm_op")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmOpArgument {
    /// `XEN_DMOP_*`.
    pub op: u32,
    /// Zero.
    pub pad: u32,
    /// The body.
    pub u: [u64; 3],
}

impl DmOpArgument {
    /// Makes the operation `op`. Bytes of `body` that do not fit are left out; all bodies here fit.
    pub(crate) fn new(op: u32, body: &(impl IntoBytes + Immutable)) -> Self {
        let mut u = [0u64; 3];
        let bytes = body.as_bytes();
        let len = bytes.len().min(size_of_val(&u));
        u.as_mut_bytes()[..len].copy_from_slice(&bytes[..len]);
        Self { op, pad: 0, u }
    }

    /// The body.
    pub(crate) fn body<B: FromBytes>(&self) -> Option<B> {
        B::read_from_prefix(self.u.as_bytes()).ok().map(|(b, _)| b)
    }
}

/// A body: `repr(C)`, of values, all of its bytes named.
macro_rules! bodies {
    ($(
        $(#[doc = $doc:literal])*
        $op:ident = $number:literal, $c_op:literal: $type:ident, $c_type:literal {
            $( $(#[doc = $field_doc:literal])* $field:ident: $field_type:ty, )*
        }
    )*) => { $(
        #[doc = concat!("[`", stringify!($type), "`].")]
        #[doc(alias = $c_op)]
        pub const $op: u32 = $number;

        $(#[doc = $doc])*
        ///
        #[doc = concat!("C: `struct ", $c_type, "`.")]
        #[doc(alias = $c_type)]
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
        #[repr(C)]
        pub struct $type {
            $( $(#[doc = $field_doc])* pub $field: $field_type, )*
        }

        const _: () = assert!(size_of::<$type>() <= size_of::<DmOpArgument>() - 8);
    )* };
}

bodies! {
    /// Creates an ioreq server.
    XEN_DMOP_CREATE_IOREQ_SERVER = 1, "XEN_DMOP_create_ioreq_server":
    CreateIoreqServer, "xen_dm_op_create_ioreq_server" {
        /// In: `HVM_IOREQSRV_BUFIOREQ_*`.
        handle_bufioreq: u8,
        /// Zero.
        pad: [u8; 3],
        /// Out: its number.
        id: u16,
    }
    /// Returns how to reach an ioreq server's requests.
    XEN_DMOP_GET_IOREQ_SERVER_INFO = 2, "XEN_DMOP_get_ioreq_server_info":
    GetIoreqServerInfo, "xen_dm_op_get_ioreq_server_info" {
        /// In: the server.
        id: u16,
        /// In: [`XEN_DMOP_NO_GFNS`] or 0.
        flags: u16,
        /// Out: the port of the buffered requests.
        bufioreq_port: Port,
        /// Out: the guest frame of the synchronous requests.
        ioreq_gfn: u64,
        /// Out: the guest frame of the buffered requests.
        bufioreq_gfn: u64,
    }
    /// Passes a range's accesses to an ioreq server.
    XEN_DMOP_MAP_IO_RANGE_TO_IOREQ_SERVER = 3, "XEN_DMOP_map_io_range_to_ioreq_server":
    IoreqServerRange, "xen_dm_op_ioreq_server_range" {
        /// The server.
        id: u16,
        /// Zero.
        pad: u16,
        /// `XEN_DMOP_IO_RANGE_*`.
        kind: u32,
        /// The first address.
        start: u64,
        /// The last address.
        end: u64,
    }
    /// Enables or disables an ioreq server.
    XEN_DMOP_SET_IOREQ_SERVER_STATE = 5, "XEN_DMOP_set_ioreq_server_state":
    SetIoreqServerState, "xen_dm_op_set_ioreq_server_state" {
        /// The server.
        id: u16,
        /// 1 to enable, 0 to disable.
        enabled: u8,
        /// Zero.
        pad: u8,
    }
    /// Destroys an ioreq server with its ranges.
    XEN_DMOP_DESTROY_IOREQ_SERVER = 6, "XEN_DMOP_destroy_ioreq_server":
    DestroyIoreqServer, "xen_dm_op_destroy_ioreq_server" {
        /// The server.
        id: u16,
        /// Zero.
        pad: u16,
    }
    /// Reports the pages of a range that were written to, as a bitmap in a second buffer.
    XEN_DMOP_TRACK_DIRTY_VRAM = 7, "XEN_DMOP_track_dirty_vram":
    TrackDirtyVram, "xen_dm_op_track_dirty_vram" {
        /// Pages in the range; 0 ends the tracking.
        nr: u32,
        /// Zero.
        pad: u32,
        /// The first guest frame.
        first_pfn: u64,
    }
    /// Sets the level of a PCI interrupt pin.
    XEN_DMOP_SET_PCI_INTX_LEVEL = 8, "XEN_DMOP_set_pci_intx_level":
    SetPciIntxLevel, "xen_dm_op_set_pci_intx_level" {
        /// The PCI segment.
        domain: u16,
        /// The bus.
        bus: u8,
        /// The device.
        device: u8,
        /// The pin, 0 to 3.
        intx: u8,
        /// 1 for asserted.
        level: u8,
    }
    /// Sets the level of an ISA interrupt line.
    XEN_DMOP_SET_ISA_IRQ_LEVEL = 9, "XEN_DMOP_set_isa_irq_level":
    SetIsaIrqLevel, "xen_dm_op_set_isa_irq_level" {
        /// The line, 0 to 15.
        isa_irq: u8,
        /// 1 for asserted.
        level: u8,
    }
    /// Routes a PCI interrupt link to an ISA interrupt line.
    XEN_DMOP_SET_PCI_LINK_ROUTE = 10, "XEN_DMOP_set_pci_link_route":
    SetPciLinkRoute, "xen_dm_op_set_pci_link_route" {
        /// The link, 0 to 3.
        link: u8,
        /// The line, 1 to 15, or 0 to disable the link.
        isa_irq: u8,
    }
    /// Declares pages written to by the device model; the extents are in a second buffer.
    XEN_DMOP_MODIFIED_MEMORY = 11, "XEN_DMOP_modified_memory":
    ModifiedMemory, "xen_dm_op_modified_memory" {
        /// In: extents; out: not useful, since Xen writes it back only when it succeeds.
        nr_extents: u32,
        /// Zero.
        opaque: u32,
    }
    /// Sets how Xen treats memory.
    XEN_DMOP_SET_MEM_TYPE = 12, "XEN_DMOP_set_mem_type":
    SetMemType, "xen_dm_op_set_mem_type" {
        /// Pages.
        nr: u32,
        /// `HVMMEM_*`.
        mem_type: u16,
        /// Zero.
        pad: u16,
        /// The first guest frame.
        first_pfn: u64,
    }
    /// Injects an event into a virtual CPU.
    XEN_DMOP_INJECT_EVENT = 13, "XEN_DMOP_inject_event":
    InjectEvent, "xen_dm_op_inject_event" {
        /// The virtual CPU.
        vcpuid: u32,
        /// The vector.
        vector: u8,
        /// `XEN_DMOP_EVENT_*`.
        kind: u8,
        /// The length of the instruction, in bytes.
        insn_len: u8,
        /// Zero.
        pad0: u8,
        /// The error code, or all ones for none.
        error_code: u32,
        /// Zero.
        pad1: u32,
        /// The address of a page fault, the pending bits of a debug exception.
        cr2: u64,
    }
    /// Injects a message-signalled interrupt.
    XEN_DMOP_INJECT_MSI = 14, "XEN_DMOP_inject_msi":
    InjectMsi, "xen_dm_op_inject_msi" {
        /// The message's data.
        data: u32,
        /// Zero.
        pad: u32,
        /// The message's address.
        addr: u64,
    }
    /// Passes accesses to memory of a type to an ioreq server.
    XEN_DMOP_MAP_MEM_TYPE_TO_IOREQ_SERVER = 15, "XEN_DMOP_map_mem_type_to_ioreq_server":
    MapMemTypeToIoreqServer, "xen_dm_op_map_mem_type_to_ioreq_server" {
        /// The server.
        id: u16,
        /// `HVMMEM_ioreq_server`.
        kind: u16,
        /// `XEN_DMOP_IOREQ_MEM_ACCESS_*`, or 0 to end it.
        flags: u32,
        /// Zero.
        opaque: u64,
    }
    /// Shuts the domain down.
    XEN_DMOP_REMOTE_SHUTDOWN = 16, "XEN_DMOP_remote_shutdown":
    RemoteShutdown, "xen_dm_op_remote_shutdown" {
        /// `SHUTDOWN_*`, xen/include/public/sched.h.
        reason: u32,
    }
    /// Moves guest frames.
    XEN_DMOP_RELOCATE_MEMORY = 17, "XEN_DMOP_relocate_memory":
    RelocateMemory, "xen_dm_op_relocate_memory" {
        /// Frames.
        size: u32,
        /// Zero.
        pad: u32,
        /// The first frame now.
        src_gfn: u64,
        /// The first frame then.
        dst_gfn: u64,
    }
    /// Sets the caching type of memory.
    XEN_DMOP_PIN_MEMORY_CACHEATTR = 18, "XEN_DMOP_pin_memory_cacheattr":
    PinMemoryCacheattr, "xen_dm_op_pin_memory_cacheattr" {
        /// The first frame.
        start: u64,
        /// The last frame.
        end: u64,
        /// `XEN_DMOP_MEM_CACHEATTR_*`.
        kind: u32,
        /// Zero.
        pad: u32,
    }
    /// Sets the level of a shared peripheral interrupt on Arm.
    XEN_DMOP_SET_IRQ_LEVEL = 19, "XEN_DMOP_set_irq_level":
    SetIrqLevel, "xen_dm_op_set_irq_level" {
        /// The interrupt.
        irq: u32,
        /// 1 for asserted.
        level: u8,
        /// Zero.
        pad: [u8; 3],
    }
    /// Returns how many virtual CPUs the domain has.
    XEN_DMOP_NR_VCPUS = 20, "XEN_DMOP_nr_vcpus":
    NrVcpus, "xen_dm_op_nr_vcpus" {
        /// Out: how many.
        vcpus: u32,
    }
}

/// [`IoreqServerRange`], to take the range back.
#[doc(alias = "XEN_DMOP_unmap_io_range_from_ioreq_server")]
pub const XEN_DMOP_UNMAP_IO_RANGE_FROM_IOREQ_SERVER: u32 = 4;

/// One extent of [`ModifiedMemory`].
///
/// C: `struct xen_dm_op_modified_memory_extent`.
#[doc(alias = "xen_dm_op_modified_memory_extent")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ModifiedMemoryExtent {
    /// Pages.
    pub nr: u32,
    /// Zero.
    pub pad: u32,
    /// The first guest frame.
    pub first_pfn: u64,
}

macro_rules! constants {
    ($($name:ident: $type:ty = $value:expr, $(as $c:literal,)? $doc:literal;)*) => { $(
        #[doc = $doc]
        $(#[doc(alias = $c)])?
        pub const $name: $type = $value;
    )* };
}

constants! {
    XEN_DMOP_NO_GFNS: u16 = 1, as "XEN_DMOP_no_gfns",
        "Of [`GetIoreqServerInfo`]: allocate no guest frames for the requests.";
    HVM_IOREQSRV_BUFIOREQ_OFF: u8 = 0, "Of [`CreateIoreqServer`]: no buffered requests.";
    HVM_IOREQSRV_BUFIOREQ_LEGACY: u8 = 1,
        "Of [`CreateIoreqServer`]: a ring whose read pointer is not updated atomically.";
    HVM_IOREQSRV_BUFIOREQ_ATOMIC: u8 = 2,
        "Of [`CreateIoreqServer`]: a ring whose read pointer is updated atomically.";
    XEN_DMOP_IO_RANGE_PORT: u32 = 0, "Of [`IoreqServerRange`]: I/O ports.";
    XEN_DMOP_IO_RANGE_MEMORY: u32 = 1, "Of [`IoreqServerRange`]: guest-physical addresses.";
    XEN_DMOP_IO_RANGE_PCI: u32 = 2, "Of [`IoreqServerRange`]: PCI functions.";
    XEN_DMOP_IOREQ_MEM_ACCESS_READ: u32 = 1 << 0,
        "Of [`MapMemTypeToIoreqServer`]: reading accesses, which no Xen passes on.";
    XEN_DMOP_IOREQ_MEM_ACCESS_WRITE: u32 = 1 << 1,
        "Of [`MapMemTypeToIoreqServer`]: writing accesses.";
    HVMMEM_RAM_RW: u16 = 0, as "HVMMEM_ram_rw", "Of [`SetMemType`]: ordinary memory.";
    HVMMEM_RAM_RO: u16 = 1, as "HVMMEM_ram_ro",
        "Of [`SetMemType`]: memory whose writes are ignored.";
    HVMMEM_MMIO_DM: u16 = 2, as "HVMMEM_mmio_dm",
        "Of [`SetMemType`]: no memory; accesses are the device model's.";
    HVMMEM_IOREQ_SERVER: u16 = 4, as "HVMMEM_ioreq_server",
        "Of [`SetMemType`], [`MapMemTypeToIoreqServer`]: memory whose writes an ioreq server gets.";
    XEN_DMOP_EVENT_EXT_INT: u8 = 0, as "XEN_DMOP_EVENT_ext_int", "An external interrupt.";
    XEN_DMOP_EVENT_NMI: u8 = 2, as "XEN_DMOP_EVENT_nmi", "A non-maskable interrupt.";
    XEN_DMOP_EVENT_HW_EXC: u8 = 3, as "XEN_DMOP_EVENT_hw_exc", "An exception of the hardware.";
    XEN_DMOP_EVENT_SW_INT: u8 = 4, as "XEN_DMOP_EVENT_sw_int", "The instruction `INT n`.";
    XEN_DMOP_EVENT_PRI_SW_EXC: u8 = 5, as "XEN_DMOP_EVENT_pri_sw_exc", "The instruction `ICEBP`.";
    XEN_DMOP_EVENT_SW_EXC: u8 = 6, as "XEN_DMOP_EVENT_sw_exc", "The instruction `INT3` or `INTO`.";
    XEN_DMOP_MEM_CACHEATTR_UC: u32 = 0, "Uncacheable.";
    XEN_DMOP_MEM_CACHEATTR_WC: u32 = 1, "Write-combining.";
    XEN_DMOP_MEM_CACHEATTR_WT: u32 = 4, "Write-through.";
    XEN_DMOP_MEM_CACHEATTR_WP: u32 = 5, "Write-protected.";
    XEN_DMOP_MEM_CACHEATTR_WB: u32 = 6, "Write-back.";
    XEN_DMOP_MEM_CACHEATTR_UCM: u32 = 7, "Uncacheable, which memory-type registers may override.";
    XEN_DMOP_DELETE_MEM_CACHEATTR: u32 = u32::MAX, "The range's caching type is set no longer.";
}
