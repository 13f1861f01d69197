//! Copies between granted pages and memory of this process, made by Xen.

use std::fmt;
use std::sync::Arc;

use xen_sys::ioctl::{self, GntDev, GrantedBytes};
use xen_sys::{Error, Host, Result, Xen};

/// Copies to and from granted pages without a mapping, many segments by one system call.
///
/// For a backend that reads or writes each byte once, this is cheaper than a mapping, which costs
/// the processors a flush of their translations when it ends. Any number of threads may use one.
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

/// One copy: its two ends, and Xen's status of it.
#[derive(Debug)]
pub struct CopySegment<'b> {
    ends: Ends<'b>,
    status: Option<GrantStatus>,
}

#[derive(Debug)]
enum Ends<'b> {
    Read(GrantedBytes, &'b mut [u8]),
    Write(&'b [u8], GrantedBytes),
    Between(GrantedBytes, GrantedBytes, usize),
}

impl<'b> CopySegment<'b> {
    /// Copies from a granted page to private memory. If the other domain writes there meanwhile,
    /// the bytes are any mixture of old and new.
    #[must_use]
    pub fn read(from: GrantedBytes, into: &'b mut [u8]) -> Self {
        Self::new(Ends::Read(from, into))
    }

    /// Copies from private memory to a granted page.
    #[must_use]
    pub fn write(from: &'b [u8], to: GrantedBytes) -> Self {
        Self::new(Ends::Write(from, to))
    }

    /// Copies `len` bytes from one granted page to another.
    #[must_use]
    pub fn between(from: GrantedBytes, to: GrantedBytes, len: usize) -> Self {
        Self::new(Ends::Between(from, to, len))
    }

    fn new(ends: Ends<'b>) -> Self {
        Self { ends, status: None }
    }

    /// Returns Xen's status of this segment; `None` before the copy.
    #[must_use]
    pub fn status(&self) -> Option<GrantStatus> {
        self.status
    }
}

/// Xen's answer to one operation on a grant: `GNTST_*`, xen/include/public/grant_table.h.
///
/// [`ok`](Self::ok) makes an error of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GrantStatus(i16);

macro_rules! statuses {
    ($($name:ident = $value:literal, $c:literal, $text:literal;)*) => {
        impl GrantStatus {
            $(
                #[doc = concat!("The ", $text, ".")]
                #[doc(alias = $c)]
                pub const $name: Self = Self($value);
            )*
        }

        impl fmt::Display for GrantStatus {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $($value => f.write_str(concat!("the ", $text)),)*
                    other => write!(f, "grant status {other}"),
                }
            }
        }
    };
}

statuses! {
    OKAY = 0, "GNTST_okay", "operation was done";
    GENERAL_ERROR = -1, "GNTST_general_error", "operation failed for no stated reason";
    BAD_DOMAIN = -2, "GNTST_bad_domain", "domain does not exist";
    BAD_GREF = -3, "GNTST_bad_gntref", "reference is not granted to this domain";
    PERMISSION_DENIED = -8, "GNTST_permission_denied", "grant is for reading only";
    BAD_PAGE = -9, "GNTST_bad_page", "page cannot be copied";
    BAD_COPY_ARGUMENT = -10, "GNTST_bad_copy_arg", "bytes cross the end of a page";
    PAGED_OUT = -12, "GNTST_eagain", "page is paged out";
}

impl GrantStatus {
    /// Creates the status numbered `value`.
    #[must_use]
    pub const fn new(value: i16) -> Self {
        Self(value)
    }

    /// Returns the number.
    #[must_use]
    pub const fn as_i16(self) -> i16 {
        self.0
    }

    /// Returns whether the operation was done.
    #[must_use]
    pub const fn is_okay(self) -> bool {
        self.0 == 0
    }

    /// Makes an error of every status but [`OKAY`](Self::OKAY).
    ///
    /// # Errors
    ///
    /// The status itself.
    pub const fn ok(self) -> std::result::Result<(), Self> {
        if self.is_okay() { Ok(()) } else { Err(self) }
    }
}

impl std::error::Error for GrantStatus {}

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

    /// Makes every copy, and gives each segment its [status](CopySegment::status). One that fails
    /// does not keep the others from being made. Blocks until Xen is done, and while a page that is
    /// paged out comes back.
    ///
    /// # Errors
    ///
    /// Then no segment has a new status: [`Error::Invalid`] for bytes that are not within a page,
    /// no segments or more than [`MAX_PAGES`](crate::MAX_PAGES); [`Error::Os`] with the driver's
    /// errno, `ENOTTY` before Linux 4.9.
    #[doc(alias = "xengnttab_grant_copy")]
    #[doc(alias = "IOCTL_GNTDEV_GRANT_COPY")]
    pub fn copy(&self, segments: &mut [CopySegment<'_>]) -> Result<()> {
        if segments.is_empty() || segments.len() > crate::MAX_PAGES {
            return Err(Error::Invalid {
                op: "IOCTL_GNTDEV_GRANT_COPY",
                what: "the number of segments",
                value: segments.len() as u64,
            });
        }
        // On a simulated host too: the checks are here.
        let mut raw = Vec::with_capacity(segments.len());
        for segment in segments.iter_mut() {
            raw.push(match &mut segment.ends {
                Ends::Read(from, into) => ioctl::CopySegment::read(*from, into),
                Ends::Write(from, to) => ioctl::CopySegment::write(from, *to),
                Ends::Between(from, to, len) => ioctl::CopySegment::between(*from, *to, *len),
            }?);
        }
        let statuses: Vec<i16> = match &self.0 {
            Backend::Dev(dev) => {
                dev.grant_copy(&mut raw)?;
                raw.iter().map(ioctl::CopySegment::status).collect()
            }
            #[cfg(feature = "sim")]
            Backend::Sim(xen) => {
                drop(raw);
                return sim::copy(xen, segments);
            }
        };
        for (segment, status) in segments.iter_mut().zip(statuses) {
            segment.status = Some(GrantStatus(status));
        }
        Ok(())
    }
}

/// Copies by way of a mapping for each segment.
#[cfg(feature = "sim")]
mod sim {
    use super::{CopySegment, Ends, GrantStatus};
    use crate::{GrantedBytes, MappedPages, PageAccess, map};
    use xen_sys::{Result, Xen};

    pub(super) fn copy(xen: &Xen, segments: &mut [CopySegment<'_>]) -> Result<()> {
        let mut statuses = Vec::with_capacity(segments.len());
        for segment in segments.iter_mut() {
            statuses.push(match one(xen, &mut segment.ends) {
                Ok(()) => GrantStatus::OKAY,
                Err(e) if e.errno() == Some(libc::EINVAL) => GrantStatus::BAD_GREF,
                Err(e) => return Err(e),
            });
        }
        for (segment, status) in segments.iter_mut().zip(statuses) {
            segment.status = Some(status);
        }
        Ok(())
    }

    fn one(xen: &Xen, ends: &mut Ends<'_>) -> Result<()> {
        let page = |at: &GrantedBytes, access| map(xen, at.domain, &[at.gref], access);
        let reads = |page: &MappedPages, at: usize, into: &mut [u8]| {
            // The range was checked.
            let _ = page.region().copy_out(at, into);
        };
        let writes = |mut page: MappedPages, at: usize, from: &[u8]| {
            let _ = page.region_mut().copy_in(at, from);
        };
        match ends {
            Ends::Read(from, into) => reads(&page(from, PageAccess::ReadOnly)?, from.offset, into),
            Ends::Write(from, to) => writes(page(to, PageAccess::ReadWrite)?, to.offset, from),
            Ends::Between(from, to, len) => {
                let mut bytes = vec![0; *len];
                reads(&page(from, PageAccess::ReadOnly)?, from.offset, &mut bytes);
                writes(page(to, PageAccess::ReadWrite)?, to.offset, &bytes);
            }
        }
        Ok(())
    }
}
