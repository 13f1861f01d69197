//! Buffers of graphics and video devices, across domains: Linux's dma-bufs over grants.
//!
//! ```text
//!      domain 3: has a dma-buf                      domain 5: wants one
//!   import(xen, dmabuf, pages, 5)                export(xen, 3, &refs, Backing::System)
//!    └ Imported: refs() = [GrantRef(9), ..] ──the store──>  └ (OwnedFd, Exported)
//! ```
//!
//! The names are the kernel's: the side that has the memory *imports* the dma-buf into gntdev,
//! which grants its pages; the other side has gntdev *export* a dma-buf of the granted pages, for a
//! device of its own.
//!
//! The kernel needs `CONFIG_XEN_GNTDEV_DMABUF` (Linux 4.19 and later). Debian's kernels and
//! simulated hosts are without: then every call fails with [`Error::Unsupported`].
//!
//! ```no_run
//! use std::time::{Duration, Instant};
//! use xen_gnttab::dmabuf::{Backing, export, import};
//! use xen_sys::{DomId, GrantRef, Xen};
//!
//! # fn some_dmabuf() -> std::os::fd::OwnedFd { unimplemented!() }
//! let xen = Xen::open()?;
//! // In domain 3, with a dma-buf of 600 pages:
//! let shown = import(&xen, some_dmabuf(), 600, DomId::new(5))?;
//! let refs: &[GrantRef] = shown.refs();
//!
//! // In domain 5:
//! let (dmabuf, exported) = export(&xen, DomId::new(3), refs, Backing::System)?;
//! // ... a device shows it ...
//! drop(dmabuf);
//! if exported.wait_released(Some(Instant::now() + Duration::from_secs(1)))? {
//!     println!("domain 3 may have its pages back");
//! }
//! # Ok::<(), xen_sys::Error>(())
//! ```
//!
//! # What the peer can do
//!
//! Both domains can write to all bytes at any time, and so can their devices. The exporting side
//! can keep the pages mapped without limit. After an [`Imported`] is dropped, Linux reuses none of
//! its pages until the peer has unmapped it, but every user of the dma-buf still shares it with the
//! peer. The importing side cannot remove pages from an exported dma-buf.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use xen_sys::abi::gntdev::DmaFlags;
use xen_sys::ioctl::GntDev;
use xen_sys::{DomId, Error, GrantRef, Host, Result, Xen};

/// The longest wait in the kernel: no signal ends it, not even SIGKILL.
const SLICE: Duration = Duration::from_millis(100);

/// The kind of memory of an exported dma-buf, into which the granted pages are mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backing {
    /// Pages of the system.
    #[default]
    System,
    /// Memory of `dma_alloc_wc`, for a device that needs it contiguous and write-combining. The
    /// kernel needs `CONFIG_XEN_GRANT_DMA_ALLOC`.
    #[doc(alias = "GNTDEV_DMA_FLAG_WC")]
    WriteCombine,
    /// Memory of `dma_alloc_coherent`, likewise.
    #[doc(alias = "GNTDEV_DMA_FLAG_COHERENT")]
    Coherent,
}

/// A dma-buf made of another domain's pages; it outlives this value.
#[derive(Debug)]
pub struct Exported {
    /// A separate open file: the driver finds a dma-buf by the number of a descriptor that may be
    /// closed and used again, so a file must have one dma-buf only.
    dev: GntDev,
    number: RawFd,
}

/// A dma-buf whose pages are granted to another domain.
///
/// The grants end when this is dropped, and when the process dies. The dma-buf lives while anything
/// else uses it.
#[doc(alias = "xengnttab_dmabuf_imp_release")]
#[doc(alias = "IOCTL_GNTDEV_DMABUF_IMP_RELEASE")]
#[derive(Debug)]
pub struct Imported {
    /// A separate open file, as in [`Exported`]: closing it ends the grants.
    _dev: GntDev,
    refs: Box<[GrantRef]>,
}

/// Makes a dma-buf of the pages `refs` of domain `from`, in that order; its descriptor is
/// close-on-exec. The pages are unmapped when the last descriptor, mapping and device has released
/// it: [`Exported::wait_released`].
///
/// # Errors
///
/// [`Error::Unsupported`]: see [the module](self). [`Error::Invalid`] for no pages or more than
/// [`MAX_PAGES`](crate::MAX_PAGES); [`Error::Device`] when `/dev/xen/gntdev` does not open;
/// [`Error::Os`]: `EINVAL` in a PV domain, which cannot export, for a reference that is not granted
/// for writing to this domain, and for more pages than gntdev's [limit](crate::GrantLimits);
/// `EMFILE`; `ENOMEM`.
#[doc(alias = "xengnttab_dmabuf_exp_from_refs")]
#[doc(alias = "IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS")]
pub fn export(
    xen: &Xen,
    from: DomId,
    refs: &[GrantRef],
    backing: Backing,
) -> Result<(OwnedFd, Exported)> {
    let dev = open(xen, "IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS")?;
    let flags = match backing {
        Backing::System => DmaFlags::empty(),
        Backing::WriteCombine => DmaFlags::WRITE_COMBINE,
        Backing::Coherent => DmaFlags::COHERENT,
    };
    let fd = dev.dmabuf_export(flags, from, refs)?;
    let number = fd.as_raw_fd();
    Ok((fd, Exported { dev, number }))
}

/// Grants the pages of a dma-buf to domain `to`, for reading and writing. `pages` is the number of
/// all its pages, of [`PAGE_SIZE`](xen_sys::PAGE_SIZE) bytes each. The descriptor may be closed
/// afterwards.
///
/// # Errors
///
/// [`Error::Unsupported`]: see [the module](self). [`Error::Invalid`] for no pages or more than
/// [`MAX_PAGES`](crate::MAX_PAGES); [`Error::Device`] when `/dev/xen/gntdev` does not open;
/// [`Error::Os`]: `EINVAL` for a file that is no dma-buf, another number of pages, memory of a
/// device, and for more pages than gntdev's [limit](crate::GrantLimits); `ENOSPC` when the grant
/// table is full; any errno of the dma-buf's own driver.
#[doc(alias = "xengnttab_dmabuf_imp_to_refs")]
#[doc(alias = "IOCTL_GNTDEV_DMABUF_IMP_TO_REFS")]
pub fn import(xen: &Xen, dmabuf: impl AsFd, pages: usize, to: DomId) -> Result<Imported> {
    let dev = open(xen, "IOCTL_GNTDEV_DMABUF_IMP_TO_REFS")?;
    let refs = dev.dmabuf_import(dmabuf.as_fd(), to, pages)?;
    Ok(Imported { _dev: dev, refs })
}

fn open(xen: &Xen, op: &'static str) -> Result<GntDev> {
    match xen.host() {
        Host::Dev(root) => GntDev::open(root),
        #[allow(unreachable_patterns)]
        _ => Err(Error::Unsupported { op }),
    }
}

impl Exported {
    /// Waits until all users of the dma-buf have released it, until `deadline` if there is one;
    /// returns whether they have. The descriptor that [`export`] returned is a user as well, and so
    /// are its copies: close them first.
    ///
    /// After the release the pages are unmapped, so the other domain may use them again. Blocks the
    /// thread, which no signal interrupts for up to 100 ms at a time.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `ENOMEM`.
    #[doc(alias = "xengnttab_dmabuf_exp_wait_released")]
    #[doc(alias = "IOCTL_GNTDEV_DMABUF_EXP_WAIT_RELEASED")]
    pub fn wait_released(&self, deadline: Option<Instant>) -> Result<bool> {
        let ask = |milliseconds| self.dev.dmabuf_wait_released(self.number, milliseconds);
        wait(deadline, Instant::now, ask)
    }
}

/// Calls `ask`, which waits for a number of milliseconds, until it succeeds or the deadline has
/// passed; returns whether it succeeded.
fn wait(
    deadline: Option<Instant>,
    now: impl Fn() -> Instant,
    mut ask: impl FnMut(u32) -> Result<()>,
) -> Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now()));
        let slice = left.map_or(SLICE, |left| left.min(SLICE));
        // Rounded up, so that the last one does not end before the deadline.
        let milliseconds = slice.as_micros().div_ceil(1000) as u32;
        match ask(milliseconds) {
            Ok(()) => return Ok(true),
            Err(error) => match error.errno() {
                Some(libc::ENOENT) => return Ok(true),
                Some(libc::ETIMEDOUT) if left == Some(Duration::ZERO) => return Ok(false),
                Some(libc::ETIMEDOUT) => {}
                _ => return Err(error),
            },
        }
    }
}

impl Imported {
    /// Returns a reference for each page, in the order of the pages.
    #[must_use]
    pub fn refs(&self) -> &[GrantRef] {
        &self.refs
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;

    use super::*;

    fn errno(errno: i32) -> Result<()> {
        let op = "IOCTL_GNTDEV_DMABUF_EXP_WAIT_RELEASED";
        Err(Error::os(op, io::Error::from_raw_os_error(errno)))
    }

    #[test]
    fn a_buffer_that_stays_in_use_is_given_up_at_the_deadline() {
        let start = Instant::now();
        let (clock, calls) = (Cell::new(start), Cell::new(0));
        let ask = |milliseconds: u32| {
            assert!(milliseconds <= 100, "{milliseconds}");
            calls.set(calls.get() + 1);
            clock.set(clock.get() + Duration::from_millis(milliseconds.into()));
            errno(libc::ETIMEDOUT)
        };
        let deadline = start + Duration::from_micros(250_500);
        assert!(!wait(Some(deadline), || clock.get(), ask).unwrap());
        assert_eq!(clock.get() - start, Duration::from_millis(251));
        assert_eq!(calls.get(), 4);
        // After a deadline that has passed it still looks once.
        calls.set(0);
        assert!(!wait(Some(start), || clock.get(), ask).unwrap());
        assert_eq!(calls.get(), 1);
    }

    #[test]
    fn a_buffer_that_is_released_now_or_was_before_ends_the_wait() {
        let mut turns = 0;
        let released = wait(None, Instant::now, |_| {
            turns += 1;
            if turns < 5 {
                errno(libc::ETIMEDOUT)
            } else {
                Ok(())
            }
        });
        assert!(released.unwrap());
        assert_eq!(turns, 5);
        let passed = Some(Instant::now());
        assert!(wait(passed, Instant::now, |_| errno(libc::ENOENT)).unwrap());
        let failed = wait(None, Instant::now, |_| errno(libc::ENOMEM));
        assert_eq!(failed.unwrap_err().errno(), Some(libc::ENOMEM));
    }

    #[cfg(feature = "sim")]
    #[test]
    fn a_simulated_host_has_no_dmabufs() {
        let host = xen_sys::sim::Simulation::start().unwrap();
        let xen = host.xen(DomId::DOM0).unwrap();
        let exported = export(&xen, DomId::DOM0, &[GrantRef::new(9)], Backing::System);
        assert!(matches!(exported, Err(Error::Unsupported { .. })));
        let imported = import(&xen, io::stdin(), 1, DomId::DOM0);
        assert!(matches!(imported, Err(Error::Unsupported { .. })));
    }
}
