//! Memory of a domain that this one controls, mapped by frame number and without a grant.
//!
//! ```no_run
//! use xen_gnttab::{PageAccess, foreign};
//! use xen_sys::{DomId, Xen, privcmd::Privcmd};
//!
//! let privcmd = Privcmd::open(&Xen::open()?)?;
//! let page = foreign::map(privcmd.guest(DomId::new(5)), &[0x7], PageAccess::ReadOnly)?;
//! let mut sector = [0; 512];
//! page.copy_out(0xc00, &mut sector)?; // guest-physical 0x7c00
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The mapping is a [`Region`], with its rules. It needs `/dev/xen/privcmd` only while it is made.
//! The pages stay mapped after the [`Privcmd`](xen_sys::privcmd::Privcmd) is closed, until the last
//! part of the region is dropped or the process dies. A [restricted
//! handle](xen_sys::privcmd::RestrictedPrivcmd::guest) maps memory of its one domain.
//!
//! # What the domain can change meanwhile
//!
//! The domain can write any value at any time, whatever `access` is here. It can return a frame to
//! Xen (ballooning): the frame then stays this mapping's page until it is unmapped, but is no
//! longer the domain's. It cannot make an access here fault. While a page of a dead domain is
//! mapped, Xen keeps the domain's number in use.
//!
//! Frame numbers are guest frames (`gfn`, 4 KiB each) of an HVM or PVH domain, and machine frames
//! of a PV domain.

use xen_sys::privcmd::{ForeignPages, Guest, Resource};
use xen_sys::{PAGE_SIZE, Result};

use crate::mapping::{Mapping, Release};
use crate::{PageAccess, Region};

/// Maps frames of a domain contiguously, in the order given. Either all are mapped or none.
///
/// For a frame that the domain has paged out this tries again, for half a second at the most, which
/// blocks the caller.
///
/// # Errors
///
/// [`Error::ForeignFrame`](xen_sys::Error::ForeignFrame) for the first frame that could not be
/// mapped: `EINVAL` where there is no memory, `ENOENT` when it stayed paged out;
/// [`Error::NoDomain`](xen_sys::Error::NoDomain);
/// [`Error::NotPermitted`](xen_sys::Error::NotPermitted) when this domain does not control it;
/// [`Error::Invalid`](xen_sys::Error::Invalid) for no frames or more than
/// [`MAX_PAGES`](crate::MAX_PAGES), on a simulated host 8192; else the system's errno.
#[doc(alias = "xenforeignmemory_map")]
#[doc(alias = "xenforeignmemory_map2")]
#[doc(alias = "xenforeignmemory_unmap")]
#[doc(alias = "xenforeignmemory_close")]
pub fn map(guest: Guest<'_>, frames: &[u64], access: PageAccess) -> Result<Region> {
    let mapped = guest.map_frames(frames, access.protection())?;
    match mapped.errors.iter().position(|&errno| errno != 0) {
        None => Ok(Region::of(mapping(mapped, access))),
        Some(at) => Err(guest.frame_error(frames[at], mapped.errors[at])),
    }
}

/// Maps frames of a domain, each on its own: a region of one page, or the error of that frame.
///
/// One system call maps all of them, so this costs as much as [`map`]. For memory with holes.
///
/// # Errors
///
/// Those of [`map`] that concern the whole request; the error of a frame is in its place.
#[doc(alias = "xenforeignmemory_map")]
pub fn map_each(
    guest: Guest<'_>,
    frames: &[u64],
    access: PageAccess,
) -> Result<Vec<Result<Region>>> {
    let mapped = guest.map_frames(frames, access.protection())?;
    let errors = mapped.errors.clone();
    // Nothing is accessed before the parts over unmapped pages are dropped.
    let mut rest = Region::of(mapping(mapped, access));
    let mut pages = Vec::with_capacity(frames.len());
    for (&frame, errno) in frames.iter().zip(errors) {
        let Ok(page) = rest.split_to(PAGE_SIZE) else {
            break;
        };
        pages.push(match errno {
            0 => Ok(page),
            errno => Err(guest.frame_error(frame, errno)),
        });
    }
    Ok(pages)
}

/// Maps `count` frames of a domain's resource contiguously, from its frame `first` on.
///
/// # Errors
///
/// [`Error::Os`](xen_sys::Error::Os): `EINVAL` when the resource has no such frames;
/// [`Error::NoDomain`](xen_sys::Error::NoDomain);
/// [`Error::NotPermitted`](xen_sys::Error::NotPermitted) when this domain does not control it;
/// [`Error::Unsupported`](xen_sys::Error::Unsupported) when Xen or the kernel has no such request,
/// and on a simulated host; [`Error::Invalid`](xen_sys::Error::Invalid) for no frames or more than
/// [`MAX_PAGES`](crate::MAX_PAGES).
#[doc(alias = "xenforeignmemory_map_resource")]
#[doc(alias = "xenforeignmemory_unmap_resource")]
pub fn map_resource(
    guest: Guest<'_>,
    resource: Resource,
    first: u32,
    count: usize,
    access: PageAccess,
) -> Result<Region> {
    let mapped = guest.map_resource(resource, first, count, access.protection())?;
    Ok(Region::of(mapping(mapped, access)))
}

fn mapping(mapped: ForeignPages, access: PageAccess) -> Mapping {
    let ForeignPages { pages, hold, .. } = mapped;
    Mapping::new(pages, access, Release::Foreign(hold))
}
