//! `/dev/xen/gntalloc`, which makes pages and grants them out: include/uapi/xen/gntalloc.h.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::gntdev::UnmapAction;
use super::{Opcode, opcode};
use crate::DomId;

/// The fixed part of the argument that requests pages to share; the kernel writes `count`
/// references of four bytes after it.
///
/// C: `struct ioctl_gntalloc_alloc_gref`, whose last member is `gref_ids[1]`.
#[doc(alias = "ioctl_gntalloc_alloc_gref")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AllocGrefHead {
    /// The domain that may map the pages.
    pub domid: DomId,
    /// How they may be mapped.
    pub flags: AllocFlags,
    /// How many pages.
    pub count: u32,
    /// Out: the offset to pass to `mmap(2)`.
    pub index: u64,
}

/// The argument as C declares it, with one reference; only its size matters, which includes the
/// padding that makes it a multiple of eight.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct AllocGref {
    /// The fixed part.
    pub head: AllocGrefHead,
    /// Out: the references.
    pub gref_ids: [u32; 1],
}

/// How the other domain may map the pages.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct AllocFlags(u16);

bitflags! {
    impl AllocFlags: u16 {
        /// The other domain may write to them.
        #[doc(alias = "GNTALLOC_FLAG_WRITABLE")]
        const WRITABLE = 1 << 0;
    }
}

/// Gives up pages by the index [`AllocGrefHead`] returned.
#[doc(alias = "ioctl_gntalloc_dealloc_gref")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DeallocGref {
    /// The index.
    pub index: u64,
    /// How many pages: all that were requested.
    pub count: u32,
    /// C's implicit padding; zero.
    pub pad: u32,
}

/// The kernel's actions when the pages are given up; the same layout and actions as
/// [`gntdev::UnmapNotify`](super::gntdev::UnmapNotify).
#[doc(alias = "ioctl_gntalloc_unmap_notify")]
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

/// [`AllocGref`].
pub const IOCTL_GNTALLOC_ALLOC_GREF: Opcode = opcode(b'G', 5, size_of::<AllocGref>());
/// [`DeallocGref`].
pub const IOCTL_GNTALLOC_DEALLOC_GREF: Opcode = opcode(b'G', 6, size_of::<DeallocGref>());
/// [`UnmapNotify`].
pub const IOCTL_GNTALLOC_SET_UNMAP_NOTIFY: Opcode = opcode(b'G', 7, size_of::<UnmapNotify>());
