//! The arguments of device-model operations.

use std::ops::RangeInclusive;

use crate::abi::dm_op as abi;
use crate::{Error, PciFunction, Result};

/// The logical level of an interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Level {
    /// The device needs no service.
    Deasserted = 0,
    /// The device requests service.
    Asserted = 1,
}

/// The interrupt pin of a PCI device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum IntxPin {
    /// `INTA#`.
    A = 0,
    /// `INTB#`.
    B = 1,
    /// `INTC#`.
    C = 2,
    /// `INTD#`.
    D = 3,
}

/// A link from PCI interrupt pins to ISA lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PciLink {
    /// `PIRQA`.
    A = 0,
    /// `PIRQB`.
    B = 1,
    /// `PIRQC`.
    C = 2,
    /// `PIRQD`.
    D = 3,
}

/// How Xen treats memory: the values of `hvmmem_type_t` that a device model may set.
#[doc(alias = "hvmmem_type_t")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum MemoryType {
    /// Ordinary memory.
    Ram = abi::HVMMEM_RAM_RW,
    /// Memory whose writes are ignored.
    ReadOnly = abi::HVMMEM_RAM_RO,
    /// No memory: the device model answers accesses.
    Mmio = abi::HVMMEM_MMIO_DM,
    /// Memory whose writes are passed to an ioreq server:
    /// [`map_written_memory`](super::IoreqServer::map_written_memory).
    IoreqServer = abi::HVMMEM_IOREQ_SERVER,
}

/// A caching type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CacheAttribute {
    /// Uncacheable.
    Uncacheable = abi::XEN_DMOP_MEM_CACHEATTR_UC,
    /// Write-combining.
    WriteCombining = abi::XEN_DMOP_MEM_CACHEATTR_WC,
    /// Write-through.
    WriteThrough = abi::XEN_DMOP_MEM_CACHEATTR_WT,
    /// Write-protected.
    WriteProtected = abi::XEN_DMOP_MEM_CACHEATTR_WP,
    /// Write-back.
    WriteBack = abi::XEN_DMOP_MEM_CACHEATTR_WB,
    /// Uncacheable, which memory-type registers may override.
    UncacheableMinus = abi::XEN_DMOP_MEM_CACHEATTR_UCM,
}

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EventKind {
    /// An external interrupt.
    ExternalInterrupt = abi::XEN_DMOP_EVENT_EXT_INT,
    /// A non-maskable interrupt.
    Nmi = abi::XEN_DMOP_EVENT_NMI,
    /// A hardware exception.
    HardwareException = abi::XEN_DMOP_EVENT_HW_EXC,
    /// The instruction `INT n`.
    SoftwareInterrupt = abi::XEN_DMOP_EVENT_SW_INT,
    /// The instruction `ICEBP`.
    PrivilegedSoftwareException = abi::XEN_DMOP_EVENT_PRI_SW_EXC,
    /// The instruction `INT3` or `INTO`.
    SoftwareException = abi::XEN_DMOP_EVENT_SW_EXC,
}

/// An ISA interrupt line, 0 to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IsaIrq(u8);

impl IsaIrq {
    /// Returns the line numbered `irq`, or `None` beyond 15.
    #[must_use]
    pub const fn new(irq: u8) -> Option<Self> {
        if irq < 16 { Some(Self(irq)) } else { None }
    }

    /// Returns the number.
    #[must_use]
    pub const fn as_u8(self) -> u8 {
        self.0
    }
}

/// Guest frames, of 4 KiB each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FrameRange {
    /// The first.
    pub first: u64,
    /// The number of them.
    pub count: u32,
}

impl FrameRange {
    /// The last frame.
    pub(super) fn last(self, op: &'static str) -> Result<u64> {
        let behind_first = self.count.checked_sub(1);
        let last = behind_first.and_then(|count| self.first.checked_add(u64::from(count)));
        last.ok_or(Error::Invalid {
            op,
            what: "the number of frames",
            value: u64::from(self.count),
        })
    }
}

/// Addresses whose accesses are passed to an ioreq server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IoRange {
    kind: u32,
    start: u64,
    end: u64,
}

impl IoRange {
    /// I/O ports.
    #[must_use]
    pub const fn ports(ports: RangeInclusive<u16>) -> Self {
        Self {
            kind: abi::XEN_DMOP_IO_RANGE_PORT,
            start: *ports.start() as u64,
            end: *ports.end() as u64,
        }
    }

    /// Guest-physical addresses.
    #[must_use]
    pub const fn memory(addresses: RangeInclusive<u64>) -> Self {
        Self {
            kind: abi::XEN_DMOP_IO_RANGE_MEMORY,
            start: *addresses.start(),
            end: *addresses.end(),
        }
    }

    /// The configuration space of a PCI function.
    #[must_use]
    pub const fn pci(function: PciFunction) -> Self {
        let sbdf = function.sbdf() as u64;
        Self {
            kind: abi::XEN_DMOP_IO_RANGE_PCI,
            start: sbdf,
            end: sbdf,
        }
    }

    pub(super) fn body(self, id: u16) -> abi::IoreqServerRange {
        abi::IoreqServerRange {
            id,
            pad: 0,
            kind: self.kind,
            start: self.start,
            end: self.end,
        }
    }
}

/// A message-signalled interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// The address, on x86 `0xfeexxxxx`.
    pub address: u64,
    /// The data.
    pub data: u32,
}

impl MsiMessage {
    pub(super) fn body(self) -> abi::InjectMsi {
        abi::InjectMsi {
            data: self.data,
            pad: 0,
            addr: self.address,
        }
    }
}

/// An event for a virtual CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InjectedEvent {
    /// The virtual CPU.
    pub vcpu: u32,
    /// The vector.
    pub vector: u8,
    /// The kind.
    pub kind: EventKind,
    /// The length of the instruction that caused it, in bytes, or 0.
    pub instruction_length: u8,
    /// The error code, if the vector has one.
    pub error_code: Option<u32>,
    /// The address of a page fault, or the pending bits of a debug exception.
    pub extra: u64,
}

impl InjectedEvent {
    pub(super) fn body(self) -> abi::InjectEvent {
        abi::InjectEvent {
            vcpuid: self.vcpu,
            vector: self.vector,
            kind: self.kind as u8,
            insn_len: self.instruction_length,
            pad0: 0,
            error_code: self.error_code.unwrap_or(u32::MAX),
            pad1: 0,
            cr2: self.extra,
        }
    }
}

/// Pages that the guest wrote to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyPages {
    range: FrameRange,
    bitmap: Vec<u8>,
}

/// Pages that can be tracked: 1 GiB, Xen's limit.
const MAX_TRACKED: u32 = 1 << 18;

impl DirtyPages {
    pub(super) fn none(range: FrameRange) -> Result<Self> {
        if range.count == 0 || range.count > MAX_TRACKED {
            return Err(Error::Invalid {
                op: "XEN_DMOP_track_dirty_vram",
                what: "the number of frames",
                value: u64::from(range.count),
            });
        }
        let bitmap = vec![0; range.count.div_ceil(8) as usize];
        Ok(Self { range, bitmap })
    }

    pub(super) fn bitmap_mut(&mut self) -> &mut [u8] {
        &mut self.bitmap
    }

    /// Returns the frames, ascending.
    pub fn frames(&self) -> impl Iterator<Item = u64> + '_ {
        let range = self.range;
        let dirty = move |&at: &u32| self.bitmap[at as usize / 8] & 1 << (at % 8) != 0;
        let frames = (0..range.count).filter(dirty);
        frames.map(move |at| range.first.wrapping_add(u64::from(at)))
    }
}
