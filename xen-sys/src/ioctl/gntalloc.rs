//! `/dev/xen/gntalloc`.

use std::os::fd::{AsFd, BorrowedFd};

use super::gntdev::unmap_action;
use super::{Driver, Node, checked_count, exchange, parameter, references, set};
use crate::abi::gntalloc as abi;
use crate::{DevRoot, DomId, GrantRef, Port, Result};

/// An open `/dev/xen/gntalloc`.
#[derive(Debug)]
pub struct GntAlloc(Node<GntAllocDriver>);

/// The driver behind `/dev/xen/gntalloc`.
#[derive(Debug)]
pub(super) struct GntAllocDriver;

impl Driver for GntAllocDriver {
    const NODE: &'static str = "gntalloc";
}

impl GntAlloc {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// Those of [`DevRoot::open_device`].
    pub fn open(root: &DevRoot) -> Result<Self> {
        Node::open(root).map(Self)
    }

    /// Returns how many pages all processes of this domain together may share: the driver's
    /// parameter `limit`, which an administrator may change at any time.
    ///
    /// # Errors
    ///
    /// [`Error::Os`](crate::Error::Os): `ENOENT` when the module is not loaded or sysfs is not
    /// mounted.
    pub fn limit() -> Result<u32> {
        parameter("/sys/module/xen_gntalloc/parameters/limit")
    }

    /// Makes `pages` zeroed pages and grants them to `domain`. Returns the offset to pass to mmap,
    /// and a reference per page.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`](crate::Error::Invalid) for no pages or more than
    /// [`MAX_PAGES`](super::MAX_PAGES); otherwise the driver's errno: `ENOSPC` at the limit of the
    /// module or of the grant table.
    #[doc(alias = "IOCTL_GNTALLOC_ALLOC_GREF")]
    pub fn alloc_gref(
        &self,
        domain: DomId,
        writable: bool,
        pages: usize,
    ) -> Result<(u64, Box<[GrantRef]>)> {
        let count = checked_count("IOCTL_GNTALLOC_ALLOC_GREF", pages)?;
        let mut flags = abi::AllocFlags::empty();
        flags.set(abi::AllocFlags::WRITABLE, writable);
        let head = abi::AllocGrefHead {
            domid: domain,
            flags,
            count,
            index: 0,
        };
        let (head, refs) = exchange(&self.0, head, |_| {})?;
        Ok((head.index, references(&refs)))
    }

    /// Releases the pages of an index. Those still mapped, here or by the peer, stay until they are
    /// unmapped.
    ///
    /// # Errors
    ///
    /// The driver's errno; `EINVAL` when index and count are not pages of this file.
    #[doc(alias = "IOCTL_GNTALLOC_DEALLOC_GREF")]
    pub fn dealloc_gref(&self, index: u64, pages: usize) -> Result<()> {
        let count = checked_count("IOCTL_GNTALLOC_DEALLOC_GREF", pages)?;
        set(
            &self.0,
            &abi::DeallocGref {
                index,
                count,
                pad: 0,
            },
        )
        .map(drop)
    }

    /// Sets the kernel's actions when the page around offset `index` is given up; see
    /// [`abi::UnmapNotify`].
    ///
    /// # Errors
    ///
    /// The driver's errno; `EINVAL` when the port is not bound through an open `/dev/xen/evtchn`.
    #[doc(alias = "IOCTL_GNTALLOC_SET_UNMAP_NOTIFY")]
    pub fn set_unmap_notify(&self, index: u64, clear: bool, event: Option<Port>) -> Result<()> {
        let (action, event_channel_port) = unmap_action(clear, event);
        set(
            &self.0,
            &abi::UnmapNotify {
                index,
                action,
                event_channel_port,
            },
        )
        .map(drop)
    }
}

impl AsFd for GntAlloc {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}
