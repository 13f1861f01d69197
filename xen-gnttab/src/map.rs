//! Pages that another domain granted to us, mapped.

use xen_sys::{DomId, Error, GrantRef, Host, Result, Xen};

use crate::mapping::Mapping;
use crate::{PageAccess, Region, UnmapNotify, WITHOUT_SIM, dev, limits};

/// Mapped pages of another domain.
///
/// Released with the last part of its [`Region`]; see the crate's documentation.
#[doc(alias = "xengnttab_handle")]
#[doc(alias = "xengnttab_close")]
#[doc(alias = "xengnttab_unmap")]
#[derive(Debug)]
pub struct MappedPages {
    region: Region,
    /// A region without bytes: keeps the mapping, for its notification.
    kept: Region,
}

/// Maps the pages `refs` of domain `from`, contiguous and in that order. A reference may occur
/// twice, and several programs may map it.
///
/// If the other domain has paged a page out, this tries again for about half a second.
///
/// # Errors
///
/// [`Error::Invalid`] for no pages or more than [`MAX_PAGES`](crate::MAX_PAGES);
/// [`Error::Device`] when `/dev/xen/gntdev` does not open; [`Error::LimitReached`] for more pages
/// than the driver's [limit](crate::GrantLimits::mapped_pages); [`Error::Os`]: `EINVAL` when a
/// reference is not granted to this domain, or is granted read-only and `access` asks for more;
/// `EAGAIN` when a page stayed paged out.
#[doc(alias = "xengnttab_open")]
#[doc(alias = "xengnttab_map_grant_ref")]
#[doc(alias = "xengnttab_map_grant_refs")]
#[doc(alias = "xengnttab_map_domain_grant_refs")]
#[doc(alias = "IOCTL_GNTDEV_MAP_GRANT_REF")]
pub fn map(xen: &Xen, from: DomId, refs: &[GrantRef], access: PageAccess) -> Result<MappedPages> {
    match xen.host() {
        Host::Dev(_) => {
            let refs: Vec<_> = refs.iter().map(|&gref| (from, gref)).collect();
            map_from(xen, &refs, access)
        }
        #[cfg(feature = "sim")]
        Host::Sim(client) => {
            let done = crate::sim::map(xen, client, from, refs, access);
            done.map(mapped)
                .map_err(|error| limits::map_error(xen, refs.len(), error))
        }
        #[allow(unreachable_patterns)]
        _ => Err(Error::Unsupported { op: WITHOUT_SIM }),
    }
}

/// Maps pages of several domains, contiguous and in that order, each given by its domain and
/// reference.
///
/// # Errors
///
/// As [`map`]; [`Error::Unsupported`] for several domains on a simulated host.
#[doc(alias = "xengnttab_map_grant_refs")]
pub fn map_from(xen: &Xen, refs: &[(DomId, GrantRef)], access: PageAccess) -> Result<MappedPages> {
    match xen.host() {
        Host::Dev(_) => {
            let done = dev::map(xen, refs, access);
            done.map(mapped)
                .map_err(|error| limits::map_error(xen, refs.len(), error))
        }
        #[cfg(feature = "sim")]
        Host::Sim(_) => {
            let domain = refs.first().map_or(DomId::INVALID, |first| first.0);
            if refs.iter().any(|of| of.0 != domain) {
                let op = "map pages of several domains";
                return Err(Error::Unsupported { op });
            }
            let refs: Vec<_> = refs.iter().map(|&(_, gref)| gref).collect();
            map(xen, domain, &refs, access)
        }
        #[allow(unreachable_patterns)]
        _ => Err(Error::Unsupported { op: WITHOUT_SIM }),
    }
}

fn mapped(mapping: Mapping) -> MappedPages {
    let mut kept = Region::of(mapping);
    let region = kept.take();
    MappedPages { region, kept }
}

impl MappedPages {
    /// Returns the bytes, for reading.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Returns the bytes, for writing and for dividing. A write to a region mapped
    /// [`PageAccess::ReadOnly`] fails.
    #[must_use]
    pub fn region_mut(&mut self) -> &mut Region {
        &mut self.region
    }

    /// Takes all the bytes out and leaves an empty region. The pages stay until this value and
    /// every part of them is dropped.
    #[must_use]
    pub fn take_region(&mut self) -> Region {
        self.region.take()
    }

    /// Sets what the kernel does when the pages are unmapped.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the byte is not in the pages; [`Error::Os`]: `EINVAL` when this
    /// domain has not bound the port, or for a byte to clear in pages mapped read-only.
    #[doc(alias = "xengnttab_map_grant_ref_notify")]
    #[doc(alias = "IOCTL_GNTDEV_SET_UNMAP_NOTIFY")]
    pub fn set_unmap_notify(&self, notify: UnmapNotify) -> Result<()> {
        self.kept
            .mapping()
            .map_or(Ok(()), |m: &Mapping| m.set_unmap_notify(notify))
    }
}
