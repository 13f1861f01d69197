//! `/dev/xen/gntdev`, which maps pages other domains grant us: include/uapi/xen/gntdev.h.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Opcode, opcode};

/// One page to map: whose, and under which reference.
#[doc(alias = "ioctl_gntdev_grant_ref")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GrantRefEntry {
    /// The granting domain.
    pub domid: u32,
    /// Its grant reference.
    pub gref: u32,
}

/// The fixed part of the argument that asks for pages to be mapped; `count` entries of
/// [`GrantRefEntry`] follow it in memory.
///
/// C: `struct ioctl_gntdev_map_grant_ref`, whose last member is `refs[1]`.
#[doc(alias = "ioctl_gntdev_map_grant_ref")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MapGrantRefHead {
    /// How many entries follow.
    pub count: u32,
    /// Zero.
    pub pad: u32,
    /// Out: the offset to give `mmap(2)`.
    pub index: u64,
}

/// Gives up pages by the index [`MapGrantRefHead`] returned.
#[doc(alias = "ioctl_gntdev_unmap_grant_ref")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct UnmapGrantRef {
    /// The index.
    pub index: u64,
    /// How many pages: all that were asked for.
    pub count: u32,
    /// Zero.
    pub pad: u32,
}

/// The kernel's actions when the pages are unmapped, also by the death of this process.
#[doc(alias = "ioctl_gntdev_unmap_notify")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct UnmapNotify {
    /// The index plus the offset of the byte to clear.
    pub index: u64,
    /// The actions; empty for none.
    pub action: UnmapAction,
    /// The local port to send an event through.
    pub event_channel_port: u32,
}

bitflags! {
    /// The actions of [`UnmapNotify`] and of gntalloc's.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct UnmapAction: u32 {
        /// Clear the byte at [`UnmapNotify::index`].
        #[doc(alias = "UNMAP_NOTIFY_CLEAR_BYTE")]
        const CLEAR_BYTE = 1 << 0;
        /// Send an event through [`UnmapNotify::event_channel_port`].
        #[doc(alias = "UNMAP_NOTIFY_SEND_EVENT")]
        const SEND_EVENT = 1 << 1;
    }
}

/// A copy between a granted page and memory of this process, or between two granted pages.
///
/// C: `struct gntdev_grant_copy_segment`.
#[doc(alias = "gntdev_grant_copy_segment")]
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct GrantCopySegment {
    /// An address of this process, or a [`GrantCopyForeign`] as a word.
    pub source: u64,
    /// As [`source`](Self::source).
    pub dest: u64,
    /// Bytes to copy.
    pub len: u16,
    /// Which ends are granted pages: [`GNTCOPY_SOURCE_GREF`], [`GNTCOPY_DEST_GREF`].
    pub flags: u16,
    /// Out: `GNTST_*`, xen/include/public/grant_table.h.
    pub status: i16,
    /// C leaves it implicit; the driver neither looks at it nor writes it.
    pub pad: u16,
}

/// A place in a granted page.
///
/// C: `foreign` in `struct gntdev_grant_copy_segment`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct GrantCopyForeign {
    /// The grant reference.
    pub gref: u32,
    /// The offset in the page, in bytes.
    pub offset: u16,
    /// The granting domain.
    pub domid: u16,
}

/// [`GrantCopySegment::source`] is a granted page.
pub const GNTCOPY_SOURCE_GREF: u16 = 1 << 0;
/// [`GrantCopySegment::dest`] is a granted page.
pub const GNTCOPY_DEST_GREF: u16 = 1 << 1;

/// Copies segments.
///
/// C: `struct ioctl_gntdev_grant_copy`.
#[doc(alias = "ioctl_gntdev_grant_copy")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct GrantCopy {
    /// How many segments.
    pub count: u32,
    /// C leaves it implicit.
    pub pad: u32,
    /// The address of the first [`GrantCopySegment`].
    pub segments: u64,
}

/// [`MapGrantRefHead`] and its entries. The size in the opcode is that of one entry.
pub const IOCTL_GNTDEV_MAP_GRANT_REF: Opcode = opcode(
    b'G',
    0,
    size_of::<MapGrantRefHead>() + size_of::<GrantRefEntry>(),
);
/// [`UnmapGrantRef`].
pub const IOCTL_GNTDEV_UNMAP_GRANT_REF: Opcode = opcode(b'G', 1, size_of::<UnmapGrantRef>());
/// [`UnmapNotify`].
pub const IOCTL_GNTDEV_SET_UNMAP_NOTIFY: Opcode = opcode(b'G', 7, size_of::<UnmapNotify>());
/// [`GrantCopy`].
pub const IOCTL_GNTDEV_GRANT_COPY: Opcode = opcode(b'G', 8, size_of::<GrantCopy>());
