//! `/dev/xen/gntdev`, which maps pages other domains grant us: include/uapi/xen/gntdev.h.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Opcode, opcode};
use crate::GrantRef;

/// One page to map: the granting domain and its reference.
#[doc(alias = "ioctl_gntdev_grant_ref")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct GrantRefEntry {
    /// The granting domain.
    pub domid: u32,
    /// Its grant reference.
    pub gref: u32,
}

/// The fixed part of the argument that requests pages to be mapped; `count` entries of
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
    /// Out: the offset to pass to `mmap(2)`.
    pub index: u64,
}

/// Gives up pages by the index [`MapGrantRefHead`] returned.
#[doc(alias = "ioctl_gntdev_unmap_grant_ref")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct UnmapGrantRef {
    /// The index.
    pub index: u64,
    /// How many pages: all that were requested.
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
    /// Padding, implicit in C; the driver neither reads nor writes it.
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
    /// Padding, implicit in C.
    pub pad: u32,
    /// The address of the first [`GrantCopySegment`].
    pub segments: u64,
}

bitflags! {
    /// The memory behind an exported dma-buf, of [`DmabufExpFromRefsHead`]; system memory if empty.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct DmaFlags: u32 {
        /// Memory of `dma_alloc_wc`.
        #[doc(alias = "GNTDEV_DMA_FLAG_WC")]
        const WRITE_COMBINE = 1 << 0;
        /// Memory of `dma_alloc_coherent`.
        #[doc(alias = "GNTDEV_DMA_FLAG_COHERENT")]
        const COHERENT = 1 << 1;
    }
}

/// The fixed part of the argument that makes a dma-buf of granted pages; `count` references follow
/// it in memory.
///
/// C: `struct ioctl_gntdev_dmabuf_exp_from_refs`, whose last member is `refs[1]`.
#[doc(alias = "ioctl_gntdev_dmabuf_exp_from_refs")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmabufExpFromRefsHead {
    /// [`DmaFlags`].
    pub flags: u32,
    /// How many references follow.
    pub count: u32,
    /// Out: the dma-buf's descriptor.
    pub fd: u32,
    /// The granting domain.
    pub domid: u32,
}

/// Waits until an exported dma-buf is released.
#[doc(alias = "ioctl_gntdev_dmabuf_exp_wait_released")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DmabufExpWaitReleased {
    /// The number that [`DmabufExpFromRefsHead::fd`] was.
    pub fd: u32,
    /// Milliseconds to wait.
    pub wait_to_ms: u32,
}

/// The fixed part of the argument that grants a dma-buf's pages; `count` references follow it in
/// memory.
///
/// C: `struct ioctl_gntdev_dmabuf_imp_to_refs`, whose last member is `refs[1]`.
#[doc(alias = "ioctl_gntdev_dmabuf_imp_to_refs")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmabufImpToRefsHead {
    /// The dma-buf's descriptor.
    pub fd: u32,
    /// How many references follow: as many as it has pages.
    pub count: u32,
    /// The domain that the pages are granted to.
    pub domid: u32,
    /// Zero.
    pub reserved: u32,
}

/// Ends the grants of an imported dma-buf.
#[doc(alias = "ioctl_gntdev_dmabuf_imp_release")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DmabufImpRelease {
    /// The number that [`DmabufImpToRefsHead::fd`] was.
    pub fd: u32,
    /// Zero.
    pub reserved: u32,
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
/// [`DmabufExpFromRefsHead`] and its references. The size in the opcode is that of one reference.
pub const IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS: Opcode = opcode(
    b'G',
    9,
    size_of::<DmabufExpFromRefsHead>() + size_of::<GrantRef>(),
);
/// [`DmabufExpWaitReleased`].
pub const IOCTL_GNTDEV_DMABUF_EXP_WAIT_RELEASED: Opcode =
    opcode(b'G', 10, size_of::<DmabufExpWaitReleased>());
/// [`DmabufImpToRefsHead`] and its references. The size in the opcode is that of one reference.
pub const IOCTL_GNTDEV_DMABUF_IMP_TO_REFS: Opcode = opcode(
    b'G',
    11,
    size_of::<DmabufImpToRefsHead>() + size_of::<GrantRef>(),
);
/// [`DmabufImpRelease`].
pub const IOCTL_GNTDEV_DMABUF_IMP_RELEASE: Opcode = opcode(b'G', 12, size_of::<DmabufImpRelease>());
