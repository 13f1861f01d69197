//! Our own pages, granted to one other domain.

use xen_sys::{DomId, Error, GrantRef, Host, Result, Xen};

use crate::mapping::Mapping;
use crate::{PageAccess, Region, UnmapNotify, WITHOUT_SIM, dev, limits};

/// Pages shared with another domain, with the references it maps them by.
///
/// Released with the last part of its [`Region`]; see the crate's documentation.
#[doc(alias = "xengntshr_handle")]
#[doc(alias = "xengntshr_close")]
#[doc(alias = "xengntshr_unshare")]
#[derive(Debug)]
pub struct SharedPages {
    region: Region,
    /// A region without bytes: keeps the mapping, for its notification.
    kept: Region,
    refs: Box<[GrantRef]>,
}

/// Makes `pages` zeroed pages, contiguous in this process, which domain `to` may map with `access`.
/// This process may always write to them.
///
/// # Errors
///
/// [`Error::Invalid`] for no pages or more than [`MAX_PAGES`](crate::MAX_PAGES);
/// [`Error::Device`] when `/dev/xen/gntalloc` does not open; [`Error::LimitReached`] with the
/// driver's [limit](crate::GrantLimits::shared_pages), in pages of all shares of this domain
/// together (if they are fewer, the grant table is full); [`Error::Os`]: `ENOMEM`.
#[doc(alias = "xengntshr_open")]
#[doc(alias = "xengntshr_share_pages")]
#[doc(alias = "IOCTL_GNTALLOC_ALLOC_GREF")]
pub fn share(xen: &Xen, to: DomId, pages: usize, access: PageAccess) -> Result<SharedPages> {
    let shared = match xen.host() {
        Host::Dev(root) => dev::share(root, to, pages, access),
        #[cfg(feature = "sim")]
        Host::Sim(client) => crate::sim::share(xen, client, to, pages, access),
        #[allow(unreachable_patterns)]
        _ => Err(Error::Unsupported { op: WITHOUT_SIM }),
    };
    let (mapping, refs) = shared.map_err(|error| limits::share_error(xen, error))?;
    let mut kept = Region::of(mapping);
    let region = kept.take();
    Ok(SharedPages { region, kept, refs })
}

impl SharedPages {
    /// Returns a reference per page, in the order of the pages.
    #[must_use]
    pub fn refs(&self) -> &[GrantRef] {
        &self.refs
    }

    /// Returns the bytes, for reading.
    #[must_use]
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Returns the bytes, for writing and for dividing.
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

    /// Sets what the kernel does when *this side* gives the pages back, even if the peer keeps them
    /// mapped.
    ///
    /// Linux keeps one notification per *page* of a share: after a second call with a byte in
    /// another page, both are performed.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the byte is not in the pages; [`Error::Os`]: `EINVAL` when this
    /// domain has not bound the port.
    #[doc(alias = "xengntshr_share_page_notify")]
    #[doc(alias = "IOCTL_GNTALLOC_SET_UNMAP_NOTIFY")]
    pub fn set_unmap_notify(&self, notify: UnmapNotify) -> Result<()> {
        self.kept
            .mapping()
            .map_or(Ok(()), |m: &Mapping| m.set_unmap_notify(notify))
    }
}
