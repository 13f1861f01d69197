//! The device model of one guest: it answers the guest's port and memory-mapped I/O and raises its
//! interrupts.
//!
//! ```no_run
//! use xen_sys::device_model::{BufferedRequests, DeviceModel, IoRange};
//! use xen_sys::{DomId, Xen};
//!
//! let model = DeviceModel::open(&Xen::open()?, DomId::new(5))?;
//! let server = model.create_ioreq_server(BufferedRequests::Atomic)?;
//! server.map_io_range(IoRange::ports(0x5a0..=0x5a3))?;
//! server.enable()?;
//! // `xen_gnttab::ioreq` has the guest's requests.
//! # Ok::<(), xen_sys::Error>(())
//! ```
//!
//! # It is limited to one guest
//!
//! A [`DeviceModel`] is made by permanently restricting a privcmd file to one guest
//! (`IOCTL_PRIVCMD_RESTRICT`). It has no operation on another domain and no hypercall. The kernel
//! refuses both, even if the guest has taken over the program and uses the descriptor directly.
//!
//! # Errors
//!
//! Each call fails with
//!
//! * [`Error::NoDomain`]: the guest does not exist. While it is being destroyed, Xen has removed
//!   its ioreq servers already: `ENOENT`;
//! * [`Error::NotPermitted`]: this domain is not the guest's device model;
//! * [`Error::Unsupported`]: the kernel is older than Linux 4.16, or Xen has no such operation;
//! * [`Error::LimitReached`]: Xen has no room for another server or range, or a buffer is longer
//!   than the kernel takes (`dm_op_buf_max_size` of xen-privcmd, 4096 bytes unless it was raised);
//! * [`Error::Os`] with Xen's errno: `EINVAL` for anything it does not accept (including a PV
//!   domain).
//!
//! None of them waits for the guest.
//!
//! [`Error::NoDomain`]: crate::Error::NoDomain
//! [`Error::NotPermitted`]: crate::Error::NotPermitted
//! [`Error::Unsupported`]: crate::Error::Unsupported
//! [`Error::LimitReached`]: crate::Error::LimitReached
//! [`Error::Os`]: crate::Error::Os

mod eventfd;
mod server;
mod types;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use zerocopy::IntoBytes as _;

pub use self::eventfd::{Doorbell, Doorbells, Interrupt, IoEventFd, IrqFd};
pub use self::server::{BufferedRequests, IoreqServer, ServerFrames, ServerInfo};
pub use self::types::{
    CacheAttribute, DirtyPages, EventKind, FrameRange, InjectedEvent, IntxPin, IoRange, IsaIrq,
    Level, MemoryType, MsiMessage, PciLink,
};
use crate::abi::dm_op as abi;
use crate::ioctl::privcmd::DmOpBody;
use crate::privcmd::{Guest, Privcmd, RestrictedPrivcmd, ShutdownReason};
use crate::{DomId, PciFunction, Result, Xen};

/// The device model of one guest. Clones are the same open file.
///
/// Any number of threads may make calls at the same time.
#[doc(alias = "xendevicemodel_handle")]
#[doc(alias = "xendevicemodel_close")]
#[derive(Clone, Debug)]
pub struct DeviceModel {
    privcmd: Arc<RestrictedPrivcmd>,
}

/// Extents per operation: 4096 bytes of them, which every kernel takes.
const EXTENTS: usize = 256;

impl DeviceModel {
    /// Opens privcmd and restricts it to `guest`. This needs root, or a domain whose kernel lets
    /// its processes open the device.
    ///
    /// # Errors
    ///
    /// Those of [`Privcmd::open`] and [`Privcmd::restrict`]. This sends no request to Xen, so
    /// `guest` need not be a guest.
    #[doc(alias = "xendevicemodel_open")]
    #[doc(alias = "xendevicemodel_restrict")]
    pub fn open(xen: &Xen, guest: DomId) -> Result<Self> {
        Ok(Privcmd::open(xen)?.restrict(guest)?.into())
    }

    /// Returns the guest.
    #[must_use]
    pub fn domain(&self) -> DomId {
        self.privcmd.domain()
    }

    /// Returns the guest, for calls about its memory: `xen_gnttab::foreign`.
    #[must_use]
    pub fn guest(&self) -> Guest<'_> {
        self.privcmd.guest()
    }

    /// Returns how many virtual CPUs the guest has, which is fixed for its life.
    ///
    /// # Errors
    ///
    /// See [the module](self); [`Error::Unsupported`](crate::Error::Unsupported) before Xen 4.13.
    #[doc(alias = "xendevicemodel_nr_vcpus")]
    #[doc(alias = "XEN_DMOP_nr_vcpus")]
    pub fn vcpus(&self) -> Result<u32> {
        self.ask(abi::NrVcpus { vcpus: 0 }).map(|body| body.vcpus)
    }

    /// Creates an ioreq server, which is disabled and has no ranges. Xen allows eight per guest,
    /// including that of its QEMU.
    ///
    /// # Errors
    ///
    /// See [the module](self).
    #[doc(alias = "xendevicemodel_create_ioreq_server")]
    #[doc(alias = "XEN_DMOP_create_ioreq_server")]
    pub fn create_ioreq_server(&self, buffered: BufferedRequests) -> Result<IoreqServer> {
        IoreqServer::create(self.clone(), buffered)
    }

    /// Destroys an ioreq server by its number, for a server whose process died without dropping its
    /// [`IoreqServer`].
    ///
    /// # Errors
    ///
    /// See [the module](self); `ENOENT` when there is no such server, `EPERM` when another domain
    /// created it.
    pub fn destroy_ioreq_server(&self, id: u16) -> Result<()> {
        self.send(abi::DestroyIoreqServer { id, pad: 0 })
    }

    /// Sets the level of the pin `pin` of a PCI device; its function number is not used.
    ///
    /// # Errors
    ///
    /// See [the module](self).
    #[doc(alias = "xendevicemodel_set_pci_intx_level")]
    #[doc(alias = "XEN_DMOP_set_pci_intx_level")]
    pub fn set_pci_intx_level(
        &self,
        device: PciFunction,
        pin: IntxPin,
        level: Level,
    ) -> Result<()> {
        self.send(abi::SetPciIntxLevel {
            domain: device.segment(),
            bus: device.bus(),
            device: device.device(),
            intx: pin as u8,
            level: level as u8,
        })
    }

    /// Sets the level of an ISA interrupt line.
    ///
    /// # Errors
    ///
    /// See [the module](self).
    #[doc(alias = "xendevicemodel_set_isa_irq_level")]
    #[doc(alias = "XEN_DMOP_set_isa_irq_level")]
    pub fn set_isa_irq_level(&self, irq: IsaIrq, level: Level) -> Result<()> {
        self.send(abi::SetIsaIrqLevel {
            isa_irq: irq.as_u8(),
            level: level as u8,
        })
    }

    /// Sets the level of a shared peripheral interrupt, which guests on Arm have.
    ///
    /// # Errors
    ///
    /// See [the module](self); [`Error::Unsupported`](crate::Error::Unsupported) on x86.
    #[doc(alias = "xendevicemodel_set_irq_level")]
    #[doc(alias = "XEN_DMOP_set_irq_level")]
    pub fn set_irq_level(&self, irq: u32, level: Level) -> Result<()> {
        self.send(abi::SetIrqLevel {
            irq,
            level: level as u8,
            pad: [0; 3],
        })
    }

    /// Routes a PCI interrupt link to an ISA line, or to none.
    ///
    /// # Errors
    ///
    /// See [the module](self).
    #[doc(alias = "xendevicemodel_set_pci_link_route")]
    #[doc(alias = "XEN_DMOP_set_pci_link_route")]
    pub fn set_pci_link_route(&self, link: PciLink, irq: Option<IsaIrq>) -> Result<()> {
        self.send(abi::SetPciLinkRoute {
            link: link as u8,
            isa_irq: irq.map_or(0, IsaIrq::as_u8),
        })
    }

    /// Injects a message-signalled interrupt.
    ///
    /// # Errors
    ///
    /// See [the module](self).
    #[doc(alias = "xendevicemodel_inject_msi")]
    #[doc(alias = "XEN_DMOP_inject_msi")]
    pub fn inject_msi(&self, message: MsiMessage) -> Result<()> {
        self.send(message.body())
    }

    /// Injects an event into a virtual CPU, which takes it when it runs next. The caller must make
    /// sure that the event is valid in the virtual CPU's state.
    ///
    /// # Errors
    ///
    /// See [the module](self); `EBUSY` while another event waits there.
    #[doc(alias = "xendevicemodel_inject_event")]
    #[doc(alias = "XEN_DMOP_inject_event")]
    pub fn inject_event(&self, event: InjectedEvent) -> Result<()> {
        self.send(event.body())
    }

    /// Reports the pages of `range` that the guest wrote to since the last call, and continues to
    /// track that range. Only one range of a guest is tracked. The first call reports all pages.
    ///
    /// # Errors
    ///
    /// See [the module](self); [`Error::LimitReached`](crate::Error::LimitReached) for more than
    /// 32,768 pages unless the kernel's limit was raised.
    #[doc(alias = "xendevicemodel_track_dirty_vram")]
    #[doc(alias = "XEN_DMOP_track_dirty_vram")]
    pub fn track_dirty_vram(&self, range: FrameRange) -> Result<DirtyPages> {
        let mut pages = DirtyPages::none(range)?;
        self.track(range, pages.bitmap_mut())?;
        Ok(pages)
    }

    /// Ends [`track_dirty_vram`](Self::track_dirty_vram).
    ///
    /// # Errors
    ///
    /// See [the module](self).
    pub fn end_dirty_vram(&self) -> Result<()> {
        self.track(FrameRange { first: 0, count: 0 }, &mut [0])
    }

    fn track(&self, range: FrameRange, bitmap: &mut [u8]) -> Result<()> {
        let body = abi::TrackDirtyVram {
            nr: range.count,
            pad: 0,
            first_pfn: range.first,
        };
        self.privcmd.dm_op(body, bitmap).map(drop)
    }

    /// Declares pages that the device model wrote to, for the program that saves or migrates the
    /// guest. Xen 4.17 does nothing, and checks nothing, while no program logs the guest's dirty
    /// pages.
    ///
    /// # Errors
    ///
    /// See [the module](self); `EINVAL` for a range that is empty or reaches beyond the guest's
    /// memory. The error does not identify the range: Xen writes that back only when it succeeds.
    /// Some of the others may have been declared.
    #[doc(alias = "xendevicemodel_modified_memory")]
    #[doc(alias = "xendevicemodel_modified_memory_bulk")]
    #[doc(alias = "XEN_DMOP_modified_memory")]
    pub fn modified_memory(&self, ranges: &[FrameRange]) -> Result<()> {
        for ranges in ranges.chunks(EXTENTS) {
            let extent = |range: &FrameRange| abi::ModifiedMemoryExtent {
                nr: range.count,
                pad: 0,
                first_pfn: range.first,
            };
            let mut extents: Vec<_> = ranges.iter().map(extent).collect();
            let body = abi::ModifiedMemory {
                nr_extents: extents.len() as u32,
                opaque: 0,
            };
            self.privcmd.dm_op(body, extents.as_mut_bytes())?;
        }
        Ok(())
    }

    /// Sets how Xen treats memory from now on.
    ///
    /// # Errors
    ///
    /// See [the module](self).
    #[doc(alias = "xendevicemodel_set_mem_type")]
    #[doc(alias = "XEN_DMOP_set_mem_type")]
    pub fn set_mem_type(&self, range: FrameRange, kind: MemoryType) -> Result<()> {
        self.send(abi::SetMemType {
            nr: range.count,
            mem_type: kind as u16,
            pad: 0,
            first_pfn: range.first,
        })
    }

    /// Moves the memory at `from` to the frames from `to` on, as when a PCI region is moved.
    ///
    /// # Errors
    ///
    /// See [the module](self).
    #[doc(alias = "xendevicemodel_relocate_memory")]
    #[doc(alias = "XEN_DMOP_relocate_memory")]
    pub fn relocate_memory(&self, from: FrameRange, to: u64) -> Result<()> {
        self.send(abi::RelocateMemory {
            size: from.count,
            pad: 0,
            src_gfn: from.first,
            dst_gfn: to,
        })
    }

    /// Sets the caching type of memory; `None` removes the setting.
    ///
    /// # Errors
    ///
    /// See [the module](self); [`Error::Invalid`](crate::Error::Invalid) for no frames.
    #[doc(alias = "xendevicemodel_pin_memory_cacheattr")]
    #[doc(alias = "XEN_DMOP_pin_memory_cacheattr")]
    pub fn pin_memory_cacheattr(
        &self,
        range: FrameRange,
        kind: Option<CacheAttribute>,
    ) -> Result<()> {
        self.send(abi::PinMemoryCacheattr {
            start: range.first,
            end: range.last("XEN_DMOP_pin_memory_cacheattr")?,
            kind: kind.map_or(abi::XEN_DMOP_DELETE_MEM_CACHEATTR, |kind| kind as u32),
            pad: 0,
        })
    }

    /// Declares that the guest has shut down. The toolstack then treats it as the guest's
    /// configuration specifies.
    ///
    /// # Errors
    ///
    /// See [the module](self).
    #[doc(alias = "xendevicemodel_shutdown")]
    #[doc(alias = "XEN_DMOP_remote_shutdown")]
    pub fn shutdown(&self, reason: ShutdownReason) -> Result<()> {
        self.send(abi::RemoteShutdown {
            reason: u32::from(reason.as_u8()),
        })
    }

    /// Makes an operation without a second buffer; returns the body as Xen left it.
    fn ask<B: DmOpBody>(&self, body: B) -> Result<B> {
        self.privcmd.dm_op(body, &mut [])
    }

    /// Makes an operation without an answer.
    fn send<B: DmOpBody>(&self, body: B) -> Result<()> {
        self.ask(body).map(drop)
    }
}

impl From<RestrictedPrivcmd> for DeviceModel {
    fn from(privcmd: RestrictedPrivcmd) -> Self {
        Self {
            privcmd: Arc::new(privcmd),
        }
    }
}

/// The restricted file. On a simulated host, a descriptor on which every request fails.
impl AsFd for DeviceModel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.privcmd.as_fd()
    }
}

#[cfg(test)]
mod tests;
