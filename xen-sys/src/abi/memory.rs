//! `memory_op` on the memory of a domain: xen/include/public/memory.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::DomId;

/// [`AddToPhysmap`].
#[doc(alias = "XENMEM_add_to_physmap")]
pub const XENMEM_ADD_TO_PHYSMAP: u64 = 7;
/// [`RemoveFromPhysmap`].
#[doc(alias = "XENMEM_remove_from_physmap")]
pub const XENMEM_REMOVE_FROM_PHYSMAP: u64 = 15;
/// [`AddToPhysmapBatch`].
#[doc(alias = "XENMEM_add_to_physmap_batch")]
pub const XENMEM_ADD_TO_PHYSMAP_BATCH: u64 = 23;
/// Sets memory aside for a domain:
/// [`MemoryReservation`](super::hypercall::MemoryReservation) without frames.
#[doc(alias = "XENMEM_claim_pages")]
pub const XENMEM_CLAIM_PAGES: u64 = 24;

/// The shared info page.
pub const XENMAPSPACE_SHARED_INFO: u32 = 0;
/// The grant table.
pub const XENMAPSPACE_GRANT_TABLE: u32 = 1;
/// The domain's own frames.
pub const XENMAPSPACE_GMFN: u32 = 2;
/// The frames of another domain; [`AddToPhysmapBatch`] only.
pub const XENMAPSPACE_GMFN_FOREIGN: u32 = 4;

/// Puts something at a guest frame.
///
/// C: `struct xen_add_to_physmap`.
#[doc(alias = "xen_add_to_physmap")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AddToPhysmap {
    /// In: the domain.
    pub domid: DomId,
    /// In: the number of frames of a range; other spaces ignore it.
    pub size: u16,
    /// In: `XENMAPSPACE_*`.
    pub space: u32,
    /// In: the index within the space.
    pub idx: u64,
    /// In: the guest frame.
    pub gpfn: u64,
}

/// Empties a guest frame.
///
/// C: `struct xen_remove_from_physmap`.
#[doc(alias = "xen_remove_from_physmap")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RemoveFromPhysmap {
    /// In: the domain.
    pub domid: DomId,
    /// Padding, implicit in C.
    pub pad: [u16; 3],
    /// In: the guest frame.
    pub gpfn: u64,
}

/// Puts several things at guest frames.
///
/// C: `struct xen_add_to_physmap_batch`.
#[doc(alias = "xen_add_to_physmap_batch")]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AddToPhysmapBatch {
    /// In: the domain.
    pub domid: DomId,
    /// In: `XENMAPSPACE_*`.
    pub space: u16,
    /// In: how many.
    pub size: u16,
    /// In: the other domain for [`XENMAPSPACE_GMFN_FOREIGN`]; otherwise zero.
    pub foreign_domid: u16,
    /// In: the address of `size` numbers of the space.
    pub idxs: u64,
    /// In: the address of `size` guest frames.
    pub gpfns: u64,
    /// In: the address of `size` errnos, which Xen writes.
    pub errs: u64,
}
