//! Xen grant tables from user space: share our own pages, map pages of another domain.
//!
//! ```text
//!      domain 3                                     domain 5
//!   share(xen, 5, 1, ReadWrite)                  map(xen, 3, &refs, ReadWrite)
//!    └ SharedPages                                └ MappedPages
//!        refs() = [GrantRef(9)]  ──the store──>       region() ──┐
//!        region() ─────────────> one page <──────────────────────┘
//! ```
//!
//! Both sides get a [`Region`]: bytes that are copied in and out within checked bounds and have one
//! owner in this process, which divides them into smaller regions and into atomics. It is the only
//! access to shared bytes; see there for the rule about copies.
//!
//! # What the peer can do to you
//!
//! The peer can do everything that can be done to bytes: write to a page shared for writing at any
//! time, with any value. It can also keep a page mapped without limit after you release it; the
//! page is not reused before the peer releases it as well. It cannot make an access here fault, and
//! it cannot remove a page while you have it mapped.
//!
//! # Release, and notifying the peer
//!
//! Pages are given back when the last of the [`SharedPages`] or [`MappedPages`] and all parts of
//! its [`Region`] are dropped; also when the process dies, in any way. Then the kernel performs the
//! [`UnmapNotify`] that was set: it clears one byte of the pages and sends one event. That is how a
//! peer learns of the death of a process.
//!
//! The pages must be released before the port. Keep the [event's](UnmapNotify::event) port bound
//! until after the release, so that the peer receives the event: declare the port after the pages
//! in a struct, or drop it later. (Linux holds its own reference to the port, so there a wrong
//! order does no harm.)
//!
//! # Example
//!
//! ```no_run
//! use xen_gnttab::{PageAccess, UnmapNotify, map, share};
//! use xen_sys::{DomId, Xen};
//!
//! let xen = Xen::open()?;
//! let mut pages = share(&xen, DomId::new(5), 1, PageAccess::ReadWrite)?;
//! pages.set_unmap_notify(UnmapNotify { clear_byte: Some(0), event: None })?;
//! pages.region_mut().copy_in(0, &[1])?;
//! println!("grant reference {}", pages.refs()[0]);
//!
//! // In domain 5, if this is domain 3 and the reference is 9:
//! let theirs = map(&xen, DomId::new(3), &[xen_sys::GrantRef::new(9)], PageAccess::ReadWrite)?;
//! let mut alive = [0];
//! theirs.region().copy_out(0, &mut alive)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Without a mapping
//!
//! [`GrantCopier`] has Xen copy between granted pages and private memory, many segments a call: for
//! backends that access each byte once.
//!
//! # Buffers of devices
//!
//! [`dmabuf`] makes Linux's dma-bufs of granted pages, and grants the pages of a dma-buf.
//!
//! # Without a grant
//!
//! A domain that controls another maps the other's memory by frame number: [`foreign`].
//!
//! # Limits
//!
//! A share or mapping has at most [`MAX_PAGES`] pages. The kernel and Xen have their own limits,
//! which [`limits`](limits()) returns; a call that exceeds one fails with [`Error::LimitReached`],
//! which names it.

mod copy;
mod dev;
pub mod dmabuf;
mod error;
pub mod foreign;
mod heap;
pub mod ioreq;
mod limits;
mod map;
mod mapping;
mod region;
pub mod ring;
mod share;
#[cfg(feature = "sim")]
mod sim;

pub use copy::GrantCopier;
pub use error::RegionError;
pub use limits::{GrantLimits, limits};
pub use map::{MappedPages, map, map_from};
pub use region::{Atomic, MAX_RANGES, Region, Word, Words};
pub use share::{SharedPages, share};
pub use xen_sys::ioctl::{CopySegment, GrantStatus, GrantedBytes, MAX_PAGES};
use xen_sys::mmap::Protection;
use xen_sys::{Error, Port, Result};

/// The name, in an error, of what a build without simulated hosts does not support.
const WITHOUT_SIM: &str = "a simulated host, without the feature `sim` of xen-gnttab,";

/// Access to pages: the peer's for pages that we share, ours for pages that we map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageAccess {
    /// Reading only.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

impl PageAccess {
    /// Returns the protection of the mapping.
    fn protection(self) -> Protection {
        match self {
            Self::ReadOnly => Protection::Read,
            Self::ReadWrite => Protection::ReadWrite,
        }
    }
}

/// The kernel's notification to the peer when pages are given back.
///
/// Either part may be `None`; the last setting replaces earlier ones. The byte is cleared before
/// the event is sent, with one exception: for a *mapping* in an HVM or PVH domain, some kernels
/// send the event first (`gntdev_put_map` in Linux's drivers/xen/gntdev.c). There a peer that looks
/// the moment the event arrives may still see the old byte.
#[doc(alias = "UNMAP_NOTIFY_CLEAR_BYTE")]
#[doc(alias = "UNMAP_NOTIFY_SEND_EVENT")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnmapNotify {
    /// Set the byte at this offset, in bytes from the start of the region, to zero.
    pub clear_byte: Option<usize>,
    /// Notify through this local port, which must already be bound by this domain.
    pub event: Option<Port>,
}

impl UnmapNotify {
    /// Returns the byte offset for the driver, checked against the length of the pages.
    fn offset(&self, len: usize) -> Result<u64> {
        let offset = self.clear_byte.unwrap_or(0);
        if offset >= len {
            return Err(Error::Invalid {
                op: "set_unmap_notify",
                what: "the offset of the byte to clear",
                value: offset as u64,
            });
        }
        Ok(offset as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_to_clear_is_within_the_pages() {
        let at = |clear_byte| {
            UnmapNotify {
                clear_byte,
                event: None,
            }
            .offset(4096)
        };
        assert_eq!(at(None).unwrap(), 0);
        assert_eq!(at(Some(4095)).unwrap(), 4095);
        for offset in [4096, usize::MAX] {
            assert!(
                matches!(at(Some(offset)), Err(Error::Invalid { .. })),
                "{offset}"
            );
        }
    }
}
