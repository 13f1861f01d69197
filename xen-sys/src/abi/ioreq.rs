//! Requests of a guest to its device model: xen/include/public/hvm/ioreq.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Port;

/// A synchronous request: one for each virtual CPU, side by side from the start of the page.
///
/// C: `struct ioreq`.
#[doc(alias = "ioreq_t")]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Ioreq {
    /// The port or the guest-physical address; or a PCI function and register.
    pub addr: u64,
    /// The data, or the guest-physical address of it.
    pub data: u64,
    /// Repetitions.
    pub count: u32,
    /// Bytes of each.
    pub size: u32,
    /// The event channel, Xen's end.
    pub vp_eport: Port,
    /// `_pad0`.
    pub pad: u16,
    /// [`STATE_MASK`], [`DATA_IS_PTR`], [`DIR_READ`] and [`DF`]: bit fields in C.
    pub bits: u8,
    /// `IOREQ_TYPE_*`.
    pub kind: u8,
}

/// The buffered requests' page.
///
/// C: `struct buffered_iopage`.
#[doc(alias = "buffered_iopage_t")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BufferedIopage {
    /// Slots that the device model has read.
    pub read_pointer: u32,
    /// Slots that Xen has written.
    pub write_pointer: u32,
    /// The slots: two words each, [`BufferedHead`] and the data.
    pub buf_ioreq: [[u32; 2]; IOREQ_BUFFER_SLOT_NUM],
}

/// Slots in the ring of buffered requests.
pub const IOREQ_BUFFER_SLOT_NUM: usize = 511;

/// The first word of a buffered request, bit fields in C: the type (8 bits), one unused, the
/// direction (1), the size (2, as a power of two), the address (20).
#[doc(alias = "buf_ioreq_t")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferedHead(pub u32);

impl BufferedHead {
    /// `IOREQ_TYPE_*`.
    #[must_use]
    pub const fn kind(self) -> u8 {
        self.0 as u8
    }

    /// Returns whether the guest reads.
    #[must_use]
    pub const fn is_read(self) -> bool {
        self.0 & 1 << 9 != 0
    }

    /// Bytes of data: 1, 2, 4 or 8.
    #[must_use]
    pub const fn size(self) -> u8 {
        1 << (self.0 >> 10 & 3)
    }

    /// The address, of 20 bits.
    #[must_use]
    pub const fn address(self) -> u32 {
        self.0 >> 12
    }
}

/// Of [`Ioreq::bits`]: the state.
pub const STATE_MASK: u8 = 0xf;
/// Of [`Ioreq::bits`]: the data is in the guest's memory.
pub const DATA_IS_PTR: u8 = 1 << 4;
/// Of [`Ioreq::bits`]: the guest reads.
#[doc(alias = "IOREQ_READ")]
pub const DIR_READ: u8 = 1 << 5;
/// Of [`Ioreq::bits`]: addresses descend.
pub const DF: u8 = 1 << 6;

/// There is no request.
pub const STATE_IOREQ_NONE: u8 = 0;
/// The device model may take the request.
pub const STATE_IOREQ_READY: u8 = 1;
/// The device model has taken it.
pub const STATE_IOREQ_INPROCESS: u8 = 2;
/// Xen may take the answer.
pub const STATE_IORESP_READY: u8 = 3;

/// Port I/O.
pub const IOREQ_TYPE_PIO: u8 = 0;
/// Memory-mapped I/O.
pub const IOREQ_TYPE_COPY: u8 = 1;
/// The configuration space of a PCI function.
pub const IOREQ_TYPE_PCI_CONFIG: u8 = 2;
/// The guest's wall clock was set.
pub const IOREQ_TYPE_TIMEOFFSET: u8 = 7;
/// The device model must discard its mappings of the guest's memory.
pub const IOREQ_TYPE_INVALIDATE: u8 = 8;
