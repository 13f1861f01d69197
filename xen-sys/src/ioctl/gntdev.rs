//! `/dev/xen/gntdev`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use zerocopy::IntoBytes;

use super::copy::{CopySegment, copy};
use super::{Driver, Node, checked_count, exchange, export_dmabuf, parameter, references, set};
use crate::abi::gntdev as abi;
use crate::{DevRoot, DomId, Error, GrantRef, Port, Result};

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

    /// Returns how many pages one mapping may have: the driver's parameter `limit`, which an
    /// administrator may change at any time.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `ENOENT` when the module is not loaded or sysfs is not mounted.
    pub fn limit() -> Result<u32> {
        parameter("/sys/module/xen_gntdev/parameters/limit")
    }

    /// Announces pages by their domain and reference, and returns an index, which is the offset to
    /// pass to mmap. Until then nothing is mapped and no reference is checked.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for no pages or more than [`MAX_PAGES`](super::MAX_PAGES); otherwise the
    /// driver's errno.
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
    /// its own [status](CopySegment::status) afterwards.
    ///
    /// # Errors
    ///
    /// After an error no segment has a status. [`Error::Invalid`] for a segment whose bytes are not
    /// within the granted page, no segments or more than [`MAX_PAGES`](super::MAX_PAGES): nothing
    /// is copied then. Otherwise the driver's errno.
    #[doc(alias = "IOCTL_GNTDEV_GRANT_COPY")]
    pub fn grant_copy(&self, segments: &mut [CopySegment<'_>]) -> Result<()> {
        copy(&self.0, segments)
    }

    /// Releases the pages of an index. Those still mapped stay until they are unmapped.
    ///
    /// # Errors
    ///
    /// The driver's errno; `ENOENT` when index and count are not those of one announcement.
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

    /// Sets the kernel's actions when the pages around offset `index` are unmapped; see
    /// [`abi::UnmapNotify`].
    ///
    /// # Errors
    ///
    /// The driver's errno; `EINVAL` when the port is not bound through an open `/dev/xen/evtchn`.
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

    /// Makes a dma-buf of pages that `domain` granted to this one, in the order of `refs`.
    ///
    /// The driver later identifies the dma-buf by the number of the descriptor that this returns.
    /// So a second export through the same open device can get the number of one whose descriptor
    /// is closed.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for no pages or more than [`MAX_PAGES`](super::MAX_PAGES);
    /// [`Error::Unsupported`] for a kernel without `CONFIG_XEN_GNTDEV_DMABUF`; otherwise the
    /// driver's errno: `EINVAL` in a PV domain, for more pages than its `limit`, and for a
    /// reference that the hypervisor refuses.
    #[doc(alias = "IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS")]
    pub fn dmabuf_export(
        &self,
        flags: abi::DmaFlags,
        domain: DomId,
        refs: &[GrantRef],
    ) -> Result<OwnedFd> {
        let count = checked_count("IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS", refs.len())?;
        let head = abi::DmabufExpFromRefsHead {
            flags: flags.bits(),
            count,
            fd: 0,
            domid: domain.as_u16().into(),
        };
        export_dmabuf(&self.0, head, refs).map_err(dmabuf_error)
    }

    /// Waits until an exported dma-buf is released, at most `milliseconds`. Not even a signal that
    /// kills the process ends the wait. `number` is that of the descriptor that
    /// [`dmabuf_export`](Self::dmabuf_export) returned, which must be closed by now: while it is
    /// open the dma-buf is not released.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a kernel without `CONFIG_XEN_GNTDEV_DMABUF`; otherwise the
    /// driver's errno: `ETIMEDOUT`, and `ENOENT` for one that was released before.
    #[doc(alias = "IOCTL_GNTDEV_DMABUF_EXP_WAIT_RELEASED")]
    pub fn dmabuf_wait_released(&self, number: RawFd, milliseconds: u32) -> Result<()> {
        let argument = abi::DmabufExpWaitReleased {
            fd: number as u32,
            wait_to_ms: milliseconds,
        };
        set(&self.0, &argument).map(drop).map_err(dmabuf_error)
    }

    /// Grants the pages of a dma-buf to `domain`, for writing, and returns a reference for each.
    /// `pages` is the number of its pages.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for no pages or more than [`MAX_PAGES`](super::MAX_PAGES);
    /// [`Error::Unsupported`] for a kernel without `CONFIG_XEN_GNTDEV_DMABUF`; otherwise the
    /// driver's errno: `EINVAL` for a file that is no dma-buf, or one of another size or without
    /// pages of its own, and `ENOSPC` when the grant table is full.
    #[doc(alias = "IOCTL_GNTDEV_DMABUF_IMP_TO_REFS")]
    pub fn dmabuf_import(
        &self,
        dmabuf: BorrowedFd<'_>,
        domain: DomId,
        pages: usize,
    ) -> Result<Box<[GrantRef]>> {
        let count = checked_count("IOCTL_GNTDEV_DMABUF_IMP_TO_REFS", pages)?;
        let head = abi::DmabufImpToRefsHead {
            fd: dmabuf.as_raw_fd() as u32,
            count,
            domid: domain.as_u16().into(),
            reserved: 0,
        };
        let (_, refs) = exchange(&self.0, head, |_| {}).map_err(dmabuf_error)?;
        Ok(references(&refs))
    }

    /// Ends the grants of the dma-buf that [`dmabuf_import`](Self::dmabuf_import) imported with a
    /// descriptor of this number. Closing the device does the same for all of them.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a kernel without `CONFIG_XEN_GNTDEV_DMABUF`; otherwise the
    /// driver's errno: `ENOENT` when there is none of this number.
    #[doc(alias = "IOCTL_GNTDEV_DMABUF_IMP_RELEASE")]
    pub fn dmabuf_release_import(&self, number: RawFd) -> Result<()> {
        let argument = abi::DmabufImpRelease {
            fd: number as u32,
            reserved: 0,
        };
        set(&self.0, &argument).map(drop).map_err(dmabuf_error)
    }
}

/// Converts the `ENOTTY` of a kernel without `CONFIG_XEN_GNTDEV_DMABUF` to [`Error::Unsupported`].
fn dmabuf_error(error: Error) -> Error {
    match error {
        Error::Os { op, source } if source.raw_os_error() == Some(libc::ENOTTY) => {
            Error::Unsupported { op }
        }
        other => other,
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
    use std::fs::File;
    use std::os::fd::IntoRawFd;

    use zerocopy::{FromBytes, IntoBytes};

    use super::super::Opcode;
    use super::super::tests::{null, with_fake_driver};
    use super::*;

    fn refs() -> [GrantRef; 3] {
        [9, 0x0102_0304, 8].map(GrantRef::new)
    }

    #[test]
    fn a_kernel_without_dmabufs_is_distinguished_from_one_that_refuses() {
        let dev = GntDev(null());
        let file = File::open("/dev/null").unwrap();
        for (refused, name) in [
            (
                dev.dmabuf_export(abi::DmaFlags::empty(), DomId::new(5), &refs())
                    .map(drop),
                "IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS",
            ),
            (
                dev.dmabuf_wait_released(7, 0),
                "IOCTL_GNTDEV_DMABUF_EXP_WAIT_RELEASED",
            ),
            (
                dev.dmabuf_import(file.as_fd(), DomId::new(5), 3).map(drop),
                "IOCTL_GNTDEV_DMABUF_IMP_TO_REFS",
            ),
            (
                dev.dmabuf_release_import(7),
                "IOCTL_GNTDEV_DMABUF_IMP_RELEASE",
            ),
        ] {
            match refused {
                Err(Error::Unsupported { op }) => assert_eq!(op, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        let errno = with_fake_driver(
            |_, _| Err(libc::EINVAL),
            || {
                dev.dmabuf_import(file.as_fd(), DomId::new(5), 3)
                    .unwrap_err()
            },
        );
        assert_eq!(errno.errno(), Some(libc::EINVAL));
    }

    #[test]
    fn a_dmabuf_is_exported_with_its_references_and_owned() {
        /// Acts as the driver: returns a descriptor that it makes.
        fn driver(opcode: Opcode, argument: &mut [u8]) -> std::result::Result<(), i32> {
            assert_eq!(opcode, abi::IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS);
            let (head, tail) = abi::DmabufExpFromRefsHead::mut_from_prefix(argument).unwrap();
            assert_eq!((head.flags, head.count, head.domid), (2, 3, 5));
            assert_eq!(&tail[..12], refs().as_bytes());
            let made = File::open("/dev/zero").unwrap();
            head.fd = made.into_raw_fd() as u32;
            Ok(())
        }
        let dev = GntDev(null());
        let fd = with_fake_driver(driver, || {
            dev.dmabuf_export(abi::DmaFlags::COHERENT, DomId::new(5), &refs())
        });
        let mut byte = [1];
        let mut file = File::from(fd.unwrap());
        std::io::Read::read_exact(&mut file, &mut byte).unwrap();
        assert_eq!(byte, [0], "it is the file that the driver made");
    }

    #[test]
    fn the_references_of_an_import_are_those_that_the_driver_wrote() {
        fn driver(opcode: Opcode, argument: &mut [u8]) -> std::result::Result<(), i32> {
            assert_eq!(opcode, abi::IOCTL_GNTDEV_DMABUF_IMP_TO_REFS);
            let (head, tail) = abi::DmabufImpToRefsHead::mut_from_prefix(argument).unwrap();
            assert_eq!((head.count, head.domid, head.reserved), (3, 5, 0));
            assert!(head.fd > 2, "{}", head.fd);
            tail[..12].copy_from_slice(refs().as_bytes());
            Ok(())
        }
        let dev = GntDev(null());
        let file = File::open("/dev/null").unwrap();
        let got = with_fake_driver(driver, || dev.dmabuf_import(file.as_fd(), DomId::new(5), 3));
        assert_eq!(got.unwrap()[..], refs());
    }

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
