//! Copies between granted pages and memory of this process, made by Xen.

use std::sync::Arc;

use xen_sys::ioctl::{CopySegment, GntDev};
use xen_sys::{Error, Host, Result, Xen};

/// Copies to and from granted pages without a mapping, many segments in one system call.
///
/// For a backend that reads or writes each byte once, this is cheaper than a mapping: when a
/// mapping ends, the processors flush their translations. Any number of threads may use one copier.
///
/// ```no_run
/// use xen_gnttab::{CopySegment, GrantCopier, GrantedBytes};
/// use xen_sys::{DomId, GrantRef, Xen};
///
/// let (domain, gref) = (DomId::new(5), GrantRef::new(9));
/// let mut sector = [0; 512];
/// let from = GrantedBytes { domain, gref, offset: 1024 };
/// let mut segments = [CopySegment::read(from, &mut sector)];
/// GrantCopier::open(&Xen::open()?)?.copy(&mut segments)?;
/// if let Some(status) = segments[0].status() {
///     status.ok()?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct GrantCopier(Backend);

#[derive(Clone, Debug)]
enum Backend {
    Dev(Arc<GntDev>),
    #[cfg(feature = "sim")]
    Sim(Xen),
}

impl GrantCopier {
    /// Opens the device that this handle's mappings use.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when `/dev/xen/gntdev` does not open.
    pub fn open(xen: &Xen) -> Result<Self> {
        match xen.host() {
            Host::Dev(_) => Ok(Self(Backend::Dev(xen.gntdev()?))),
            #[cfg(feature = "sim")]
            Host::Sim(_) => Ok(Self(Backend::Sim(xen.clone()))),
            #[allow(unreachable_patterns)]
            _ => Err(Error::Unsupported { op: "grant copy" }),
        }
    }

    /// Makes every copy, and sets the [status](CopySegment::status) of each segment. A copy that
    /// fails does not stop the others. Blocks until Xen has finished, including while a page that
    /// is paged out is brought back.
    ///
    /// The segments are passed to the driver as they are: a slice of them costs no allocation, and
    /// may be used again.
    ///
    /// # Errors
    ///
    /// After an error no segment has a status. [`Error::Invalid`] for bytes that are not within a
    /// page, no segments or more than [`MAX_PAGES`](crate::MAX_PAGES): nothing was copied.
    /// [`Error::Os`] with the driver's errno, `ENOTTY` before Linux 4.9.
    #[doc(alias = "xengnttab_grant_copy")]
    #[doc(alias = "IOCTL_GNTDEV_GRANT_COPY")]
    pub fn copy(&self, segments: &mut [CopySegment<'_>]) -> Result<()> {
        match &self.0 {
            Backend::Dev(dev) => dev.grant_copy(segments),
            #[cfg(feature = "sim")]
            Backend::Sim(xen) => sim::copy(xen, segments),
        }
    }
}

/// Copies through a mapping for each segment.
#[cfg(feature = "sim")]
mod sim {
    use crate::{CopySegment, GrantStatus, GrantedBytes, MappedPages, PageAccess, map};
    use xen_sys::ioctl::CopyEnds;
    use xen_sys::{Result, Xen};

    pub(super) fn copy(xen: &Xen, segments: &mut [CopySegment<'_>]) -> Result<()> {
        CopySegment::prepare(segments)?;
        let mut statuses = Vec::with_capacity(segments.len());
        for segment in segments.iter_mut() {
            statuses.push(match one(xen, segment.ends()) {
                Ok(()) => GrantStatus::OKAY,
                Err(e) if e.errno() == Some(libc::EINVAL) => GrantStatus::BAD_GREF,
                Err(e) => return Err(e),
            });
        }
        for (segment, status) in segments.iter_mut().zip(statuses) {
            segment.set_status(status);
        }
        Ok(())
    }

    fn one(xen: &Xen, ends: CopyEnds<'_>) -> Result<()> {
        let page = |at: &GrantedBytes, access| map(xen, at.domain, &[at.gref], access);
        let reads = |page: &MappedPages, at: usize, into: &mut [u8]| {
            // The range was checked.
            let _ = page.region().copy_out(at, into);
        };
        let writes = |mut page: MappedPages, at: usize, from: &[u8]| {
            let _ = page.region_mut().copy_in(at, from);
        };
        match ends {
            CopyEnds::Read(from, into) => {
                reads(&page(&from, PageAccess::ReadOnly)?, from.offset, into);
            }
            CopyEnds::Write(from, to) => {
                writes(page(&to, PageAccess::ReadWrite)?, to.offset, from);
            }
            CopyEnds::Between(from, to, len) => {
                let mut bytes = vec![0; len];
                reads(&page(&from, PageAccess::ReadOnly)?, from.offset, &mut bytes);
                writes(page(&to, PageAccess::ReadWrite)?, to.offset, &bytes);
            }
        }
        Ok(())
    }
}
