//! `/dev/xen/gntdev`.

use std::os::fd::{AsFd, BorrowedFd};

use zerocopy::IntoBytes;

use super::copy::{CopySegment, copy};
use super::{Driver, Node, checked_count, exchange, set};
use crate::abi::gntdev as abi;
use crate::{DevRoot, DomId, GrantRef, Port, Result};

/// An open `/dev/xen/gntdev`.
#[derive(Debug)]
pub struct GntDev(Node<GntDevDriver>);

/// The driver behind `/dev/xen/gntdev`.
#[derive(Debug)]
pub(super) struct GntDevDriver;

impl Driver for GntDevDriver {
    const NODE: &'static str = "gntdev";
}

impl GntDev {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// Those of [`DevRoot::open_device`].
    pub fn open(root: &DevRoot) -> Result<Self> {
        Node::open(root).map(Self)
    }

    /// Announces pages by their domain and reference; the index returned is the offset to give mmap.
    /// Nothing is mapped, and no reference looked at, before that.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`](crate::Error::Invalid) for no pages or more than
    /// [`MAX_PAGES`](super::MAX_PAGES); else the driver's.
    #[doc(alias = "IOCTL_GNTDEV_MAP_GRANT_REF")]
    pub fn map_grant_ref(&self, refs: &[(DomId, GrantRef)]) -> Result<u64> {
        let count = checked_count("IOCTL_GNTDEV_MAP_GRANT_REF", refs.len())?;
        let head = abi::MapGrantRefHead {
            count,
            pad: 0,
            index: 0,
        };
        let (head, _) = exchange(&self.0, head, |entries| {
            let slots = entries.chunks_exact_mut(size_of::<abi::GrantRefEntry>());
            for (slot, (domain, gref)) in slots.zip(refs) {
                let (domid, gref) = (domain.as_u16().into(), gref.as_u32());
                slot.copy_from_slice(abi::GrantRefEntry { domid, gref }.as_bytes());
            }
        })?;
        Ok(head.index)
    }

    /// Copies between granted pages and memory of this process, without a mapping. Each segment has
    /// a [status](CopySegment::status) of its own afterwards.
    ///
    /// # Errors
    ///
    /// Then no segment has a status. [`Error::Invalid`](crate::Error::Invalid) for a segment whose
    /// bytes are not within the granted page, no segments or more than
    /// [`MAX_PAGES`](super::MAX_PAGES), and then nothing is copied; else the driver's.
    #[doc(alias = "IOCTL_GNTDEV_GRANT_COPY")]
    pub fn grant_copy(&self, segments: &mut [CopySegment<'_>]) -> Result<()> {
        copy(&self.0, segments)
    }

    /// Gives up the pages of an index. Those still mapped stay until they are unmapped.
    ///
    /// # Errors
    ///
    /// The driver's; `ENOENT` when index and count are not those of one announcement.
    #[doc(alias = "IOCTL_GNTDEV_UNMAP_GRANT_REF")]
    pub fn unmap_grant_ref(&self, index: u64, pages: usize) -> Result<()> {
        let count = checked_count("IOCTL_GNTDEV_UNMAP_GRANT_REF", pages)?;
        set(
            &self.0,
            &abi::UnmapGrantRef {
                index,
                count,
                pad: 0,
            },
        )
        .map(drop)
    }

    /// Says what the kernel does when the pages around offset `index` are unmapped; see
    /// [`abi::UnmapNotify`].
    ///
    /// # Errors
    ///
    /// The driver's; `EINVAL` when the port is not bound through an open `/dev/xen/evtchn`.
    #[doc(alias = "IOCTL_GNTDEV_SET_UNMAP_NOTIFY")]
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

/// The `action` and `event_channel_port` of an unmap notification.
pub(crate) fn unmap_action(clear: bool, event: Option<Port>) -> (abi::UnmapAction, u32) {
    let mut action = abi::UnmapAction::empty();
    action.set(abi::UnmapAction::CLEAR_BYTE, clear);
    action.set(abi::UnmapAction::SEND_EVENT, event.is_some());
    (action, event.map_or(0, Port::as_u32))
}

impl AsFd for GntDev {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_unmap_actions_go_into_one_request() {
        let words = |clear, event| {
            let (action, port) = unmap_action(clear, event);
            (action.bits(), port)
        };
        assert_eq!(words(true, Some(Port::new(7))), (3, 7));
        assert_eq!(words(true, None), (1, 0));
        assert_eq!(words(false, Some(Port::new(7))), (2, 7));
        assert_eq!(words(false, None), (0, 0));
    }
}
