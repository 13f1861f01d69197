//! Interrupts and doorbells that bypass this process: the kernel connects them to eventfds.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::{DeviceModel, IoreqServer, IsaIrq, Level, MsiMessage};
use crate::abi::dm_op::{self as abi, DmOpArgument};
use crate::ioctl::privcmd::{self, DmOpBody};
use crate::{Error, Port, Result};

/// An interrupt for the kernel to raise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Interrupt {
    /// A message.
    Msi(MsiMessage),
    /// A level of an ISA line.
    Isa(IsaIrq, Level),
    /// A level of a shared peripheral interrupt, on Arm.
    Spi(u32, Level),
}

impl Interrupt {
    fn argument(self) -> DmOpArgument {
        fn of<B: DmOpBody>(body: B) -> DmOpArgument {
            DmOpArgument::new(B::COMMAND, &body)
        }
        match self {
            Self::Msi(message) => of(message.body()),
            Self::Isa(irq, level) => of(abi::SetIsaIrqLevel {
                isa_irq: irq.as_u8(),
                level: level as u8,
            }),
            Self::Spi(irq, level) => of(abi::SetIrqLevel {
                irq,
                level: level as u8,
                pad: [0; 3],
            }),
        }
    }
}

/// The doorbell of a virtio-mmio queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Doorbell {
    /// The guest-physical address of the virtio device; the doorbell is its register `QueueNotify`.
    pub device: u64,
    /// Bytes of a write: 1, 2, 4 or 8.
    pub size: u8,
    /// The queue.
    pub queue: u32,
}

impl DeviceModel {
    /// Has the kernel raise `interrupt` each time `event`, an eventfd, is signalled, until the
    /// result is dropped or the last copy of `event` is closed.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] before Linux 6.6, from a kernel built without
    /// `CONFIG_XEN_PRIVCMD_EVENTFD`, and on a simulated host; `EBUSY` when the kernel does this
    /// with `event` already; `EINVAL` when it is no eventfd.
    #[doc(alias = "IOCTL_PRIVCMD_IRQFD")]
    pub fn irq_fd(&self, event: impl AsFd, interrupt: Interrupt) -> Result<IrqFd> {
        let op = "IOCTL_PRIVCMD_IRQFD";
        let dev = self.privcmd.device(op)?;
        let event = event.as_fd().try_clone_to_owned();
        let event = event.map_err(|e| Error::os(op, e))?;
        let argument = interrupt.argument();
        dev.irq_fd(self.domain(), event.as_fd(), Some(&argument))
            .map_err(|e| e.about(self.domain()))?;
        Ok(IrqFd {
            model: self.clone(),
            event,
        })
    }
}

impl IoreqServer {
    /// Maps the server's requests so that the kernel can answer writes to doorbells by itself.
    /// `ports` are this domain's ends of the event channels of all virtual CPUs, bound by this
    /// process through `/dev/xen/evtchn`.
    ///
    /// The kernel leaves requests that are for no doorbell to the process, which waits for the same
    /// ports.
    ///
    /// # Errors
    ///
    /// As for mapping the [resource](IoreqServer::resource); [`Error::Unsupported`] on a simulated
    /// host.
    pub fn doorbells(&self, ports: &[Port]) -> Result<Doorbells> {
        let op = "IOCTL_PRIVCMD_IOEVENTFD";
        let model = self.device_model();
        let page = model
            .privcmd
            .device(op)?
            .map_requests(model.domain(), self.id())
            .map_err(|e| e.about(model.domain()))?;
        Ok(Doorbells {
            model: model.clone(),
            page: Arc::new(page),
            ports: ports.to_vec(),
        })
    }
}

/// The doorbells of an ioreq server that the kernel answers.
#[derive(Debug)]
pub struct Doorbells {
    model: DeviceModel,
    page: Arc<privcmd::RequestPage>,
    ports: Vec<Port>,
}

impl Doorbells {
    /// Has the kernel answer writes to `doorbell` by signalling `event`, an eventfd, until the
    /// result is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] before Linux 6.7, from a kernel built without
    /// `CONFIG_XEN_PRIVCMD_EVENTFD`, and in a PV domain; `EBUSY` when `event` has a doorbell
    /// already; `EINVAL` for a size other than 1, 2, 4 and 8; [`Error::Invalid`] without ports.
    #[doc(alias = "IOCTL_PRIVCMD_IOEVENTFD")]
    pub fn assign(&self, event: impl AsFd, doorbell: Doorbell) -> Result<IoEventFd> {
        let op = "IOCTL_PRIVCMD_IOEVENTFD";
        let dev = self.model.privcmd.device(op)?;
        let event = event.as_fd().try_clone_to_owned();
        let event = event.map_err(|e| Error::os(op, e))?;
        let doorbell = privcmd::Doorbell {
            address: doorbell.device,
            size: doorbell.size,
            queue: doorbell.queue,
        };
        let assigned = dev.io_event_fd(&self.page, &self.ports, doorbell, event);
        Ok(IoEventFd {
            model: self.model.clone(),
            assigned: Some(assigned.map_err(|e| e.about(self.model.domain()))?),
        })
    }
}

/// An eventfd that a doorbell signals; dropping it has the kernel stop.
#[derive(Debug)]
pub struct IoEventFd {
    model: DeviceModel,
    assigned: Option<privcmd::AssignedEventFd>,
}

impl Drop for IoEventFd {
    fn drop(&mut self) {
        if let Ok(dev) = self.model.privcmd.device("IOCTL_PRIVCMD_IOEVENTFD") {
            // The page stays mapped if the kernel still uses it.
            let _ = self.assigned.take().map(|assigned| assigned.end(dev));
        }
    }
}

/// An eventfd that raises an interrupt; dropping it has the kernel stop.
#[derive(Debug)]
pub struct IrqFd {
    model: DeviceModel,
    event: OwnedFd,
}

impl Drop for IrqFd {
    fn drop(&mut self) {
        if let Ok(dev) = self.model.privcmd.device("IOCTL_PRIVCMD_IRQFD") {
            let _ = dev.irq_fd(self.model.domain(), self.event.as_fd(), None);
        }
    }
}
