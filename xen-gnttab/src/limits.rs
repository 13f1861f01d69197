//! How much may be shared and mapped, and the error for more.

use xen_sys::ioctl::{GntAlloc, GntDev};
use xen_sys::privcmd::{GrantTableSize, Privcmd};
use xen_sys::{DomId, Error, Host, Result, Xen};

use crate::WITHOUT_SIM;

/// The limits on this domain's grants, as they are now: an administrator may change the drivers'.
///
/// [`MAX_PAGES`](crate::MAX_PAGES) limits one share or mapping in addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GrantLimits {
    /// Pages that all programs of this domain together may [share](crate::share): the parameter
    /// `limit` of the module xen-gntalloc, 1024 unless it was changed. Pages that were released and
    /// that the other domain still has mapped count. `None` when the module is not loaded.
    pub shared_pages: Option<u32>,
    /// Pages of one [mapping](crate::map): the parameter `limit` of the module xen-gntdev. On a
    /// simulated host, pages of all mappings of this domain. `None` when the module is not loaded.
    pub mapped_pages: Option<u32>,
    /// The size of this domain's grant table in Xen. Each shared page takes a grant, and so does
    /// each buffer of a network or block device. `None` where this program may make no hypercall,
    /// as in most domains.
    pub table: Option<GrantTableSize>,
}

/// Returns the limits on this domain's grants.
///
/// # Errors
///
/// [`Error::Os`] when the parameter cannot be read from sysfs; [`Error::Unsupported`] on a
/// simulated host if this crate was built without the feature `sim`.
#[doc(alias = "GNTTABOP_query_size")]
pub fn limits(xen: &Xen) -> Result<GrantLimits> {
    let (shared_pages, mapped_pages) = match xen.host() {
        Host::Dev(_) => (loaded(GntAlloc::limit())?, loaded(GntDev::limit())?),
        #[cfg(feature = "sim")]
        Host::Sim(client) => {
            let [shared, mapped, _] = client.grant_limits()?;
            (Some(shared), Some(mapped))
        }
        #[allow(unreachable_patterns)]
        _ => return Err(Error::Unsupported { op: WITHOUT_SIM }),
    };
    let size = Privcmd::open(xen).and_then(|xen| xen.grant_table_size(DomId::SELF));
    let table = match size {
        Ok(size) => Some(size),
        Err(
            Error::NotPermitted { .. } | Error::HypercallsRefused { .. } | Error::Device { .. },
        ) => None,
        Err(error) => return Err(error),
    };
    Ok(GrantLimits {
        shared_pages,
        mapped_pages,
        table,
    })
}

/// Returns `None` for the parameter of a module that is not loaded.
fn loaded(limit: Result<u32>) -> Result<Option<u32>> {
    match limit {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        limit => limit.map(Some),
    }
}

/// Converts the `ENOSPC` of a share to an error with gntalloc's limit.
pub(crate) fn share_error(xen: &Xen, error: Error) -> Error {
    match error {
        Error::Os { op, source } if source.raw_os_error() == Some(libc::ENOSPC) => {
            let limit = match xen.host() {
                Host::Dev(_) => GntAlloc::limit().ok(),
                #[cfg(feature = "sim")]
                Host::Sim(client) => client.grant_limits().ok().map(|[shared, ..]| shared),
                #[allow(unreachable_patterns)]
                _ => None,
            };
            let limit = limit.map(u64::from);
            Error::LimitReached { op, limit, source }
        }
        other => other,
    }
}

/// Converts the `EINVAL` of a mapping of `pages` pages, if they exceed gntdev's limit, to an error
/// with that limit: the driver uses that one errno for every failure.
pub(crate) fn map_error(xen: &Xen, pages: usize, error: Error) -> Error {
    match error {
        Error::Os { op, source } if source.raw_os_error() == Some(libc::EINVAL) => {
            let (limit, mapped) = match xen.host() {
                Host::Dev(_) => (GntDev::limit().ok(), 0u32),
                #[cfg(feature = "sim")]
                Host::Sim(client) => match client.grant_limits() {
                    Ok([_, limit, mapped]) => (Some(limit), mapped),
                    Err(_) => (None, 0),
                },
                #[allow(unreachable_patterns)]
                _ => (None, 0),
            };
            match limit.map(u64::from) {
                Some(limit) if pages as u64 + u64::from(mapped) > limit => Error::LimitReached {
                    op,
                    limit: Some(limit),
                    source,
                },
                _ => Error::Os { op, source },
            }
        }
        other => other,
    }
}
