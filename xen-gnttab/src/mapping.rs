//! Mapped pages and the grant to release with them.
//!
//! The backend is used when pages are made, given back, or get a notification. Data moves through
//! [`Region`](crate::Region), which needs only address and length.

use xen_sys::mmap::Pages;
use xen_sys::privcmd::ForeignHold;
use xen_sys::{Error, Result};

use crate::{PageAccess, UnmapNotify, dev};

/// Pages in this process, and the grant behind them.
///
/// The fields are dropped in order: the pages are unmapped first, then given back.
#[derive(Debug)]
pub(crate) struct Mapping {
    pages: Pages,
    access: PageAccess,
    release: Release,
}

/// Gives the pages back when dropped.
#[derive(Debug)]
pub(crate) enum Release {
    GntAlloc(dev::Allocated),
    GntDev(dev::UnmapNotifier),
    #[cfg(feature = "sim")]
    Sim(crate::sim::Object),
    /// No grant: frames of another domain that this one controls.
    #[allow(dead_code, reason = "the field is kept for its drop")]
    Foreign(ForeignHold),
    /// Nothing beyond the mapping: pages of a file.
    File,
}

impl Mapping {
    /// `access` is what *we* may do, and must match how `pages` are mapped.
    pub(crate) fn new(pages: Pages, access: PageAccess, release: Release) -> Self {
        Self {
            pages,
            access,
            release,
        }
    }

    pub(crate) fn pages(&self) -> &Pages {
        &self.pages
    }

    pub(crate) fn access(&self) -> PageAccess {
        self.access
    }

    pub(crate) fn set_unmap_notify(&self, notify: UnmapNotify) -> Result<()> {
        let offset = notify.offset(self.pages.len())?;
        match &self.release {
            Release::GntAlloc(grant) => grant.set_unmap_notify(offset, notify),
            Release::GntDev(grant) => grant.set_unmap_notify(offset, notify),
            #[cfg(feature = "sim")]
            Release::Sim(grant) => grant.set_unmap_notify(offset, notify),
            Release::Foreign(_) | Release::File => Err(Error::Unsupported {
                op: "set_unmap_notify",
            }),
        }
    }
}
