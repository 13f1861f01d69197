//! An ioreq server: the ranges of I/O that a device model answers.

use super::{DeviceModel, IoRange};
use crate::abi::dm_op as abi;
use crate::ioctl::privcmd::{MapIoRange, UnmapIoRange};
use crate::privcmd::Resource;
use crate::{Error, Port, Result};

/// The ring of an ioreq server for writes that the guest need not wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BufferedRequests {
    /// The server has none.
    #[doc(alias = "HVM_IOREQSRV_BUFIOREQ_OFF")]
    Off = abi::HVM_IOREQSRV_BUFIOREQ_OFF,
    /// The server has one whose read pointer is not updated atomically. `xen_gnttab::ioreq` does
    /// not support it.
    #[doc(alias = "HVM_IOREQSRV_BUFIOREQ_LEGACY")]
    Legacy = abi::HVM_IOREQSRV_BUFIOREQ_LEGACY,
    /// The server has one whose read pointer is updated atomically.
    #[doc(alias = "HVM_IOREQSRV_BUFIOREQ_ATOMIC")]
    Atomic = abi::HVM_IOREQSRV_BUFIOREQ_ATOMIC,
}

/// How to reach an ioreq server's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerInfo {
    /// The event channel of the buffered requests, to bind with the guest as the other domain.
    /// Meaningless for a server without buffered requests.
    pub buffered_port: Port,
    /// The requests' guest frames, if they were requested.
    pub frames: Option<ServerFrames>,
}

/// Guest frames through which an ioreq server's requests are reached, where its
/// [resource](IoreqServer::resource) cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerFrames {
    /// The synchronous requests.
    pub synchronous: u64,
    /// The buffered requests.
    pub buffered: u64,
}

/// An ioreq server, destroyed on drop.
///
/// Until then the guest waits, without limit, for an answer to each access to one of the server's
/// ranges. When the process dies without a drop, the server stays until the guest's end.
///
/// Errors are those of [the module](super); `ENOENT` when Xen no longer has the server, for example
/// because the guest is being destroyed.
#[derive(Debug)]
pub struct IoreqServer {
    model: DeviceModel,
    id: u16,
    buffered: BufferedRequests,
    destroyed: bool,
}

impl IoreqServer {
    pub(super) fn create(model: DeviceModel, buffered: BufferedRequests) -> Result<Self> {
        let body = model.ask(abi::CreateIoreqServer {
            handle_bufioreq: buffered as u8,
            pad: [0; 3],
            id: 0,
        })?;
        Ok(Self {
            model,
            id: body.id,
            buffered,
            destroyed: false,
        })
    }

    /// Returns the device model that it belongs to.
    #[must_use]
    pub fn device_model(&self) -> &DeviceModel {
        &self.model
    }

    /// Returns its number, unique in the guest.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Returns whether it has buffered requests.
    #[must_use]
    pub fn buffered(&self) -> BufferedRequests {
        self.buffered
    }

    /// Returns the pages it shares with Xen, for `xen_gnttab::foreign::map_resource`.
    #[must_use]
    pub fn resource(&self) -> Resource {
        Resource::ioreq_server(self.id)
    }

    /// Returns how to reach its buffered requests.
    ///
    /// # Errors
    ///
    /// See [`IoreqServer`].
    #[doc(alias = "xendevicemodel_get_ioreq_server_info")]
    #[doc(alias = "XEN_DMOP_get_ioreq_server_info")]
    pub fn info(&self) -> Result<ServerInfo> {
        self.info_with(abi::XEN_DMOP_NO_GFNS)
            .map(|body| ServerInfo {
                buffered_port: body.bufioreq_port,
                frames: None,
            })
    }

    /// As [`info`](Self::info), and also makes Xen put the pages into the guest's memory. From
    /// there `xen_gnttab::foreign::map` maps them: for kernels before Linux 4.18.
    ///
    /// # Errors
    ///
    /// See [`IoreqServer`]; `EPERM` once the resource was mapped.
    pub fn info_with_frames(&self) -> Result<ServerInfo> {
        let body = self.info_with(0)?;
        Ok(ServerInfo {
            buffered_port: body.bufioreq_port,
            frames: Some(ServerFrames {
                synchronous: body.ioreq_gfn,
                buffered: body.bufioreq_gfn,
            }),
        })
    }

    fn info_with(&self, flags: u16) -> Result<abi::GetIoreqServerInfo> {
        self.model.ask(abi::GetIoreqServerInfo {
            id: self.id,
            flags,
            bufioreq_port: Port::new(0),
            ioreq_gfn: 0,
            bufioreq_gfn: 0,
        })
    }

    /// Passes accesses that are entirely within `range` to this server from now on.
    ///
    /// # Errors
    ///
    /// See [`IoreqServer`]; `EEXIST` when part of the range is mapped to this server already;
    /// [`Error::LimitReached`] beyond Xen's 256 ranges of a kind.
    #[doc(alias = "xendevicemodel_map_io_range_to_ioreq_server")]
    #[doc(alias = "xendevicemodel_map_pcidev_to_ioreq_server")]
    #[doc(alias = "XEN_DMOP_map_io_range_to_ioreq_server")]
    pub fn map_io_range(&self, range: IoRange) -> Result<()> {
        match self.model.send(MapIoRange(range.body(self.id))) {
            // Xen's answer to one range too many.
            Err(Error::Os { op, source }) if source.raw_os_error() == Some(libc::ENOMEM) => {
                Err(Error::LimitReached {
                    op,
                    limit: Some(256),
                    source,
                })
            }
            done => done,
        }
    }

    /// Undoes [`map_io_range`](Self::map_io_range) for exactly the same range.
    ///
    /// # Errors
    ///
    /// See [`IoreqServer`]; `ENOENT` when the range is not mapped.
    #[doc(alias = "xendevicemodel_unmap_io_range_from_ioreq_server")]
    #[doc(alias = "xendevicemodel_unmap_pcidev_from_ioreq_server")]
    #[doc(alias = "XEN_DMOP_unmap_io_range_from_ioreq_server")]
    pub fn unmap_io_range(&self, range: IoRange) -> Result<()> {
        self.model.send(UnmapIoRange(range.body(self.id)))
    }

    /// Passes writes to memory of the type
    /// [`MemoryType::IoreqServer`](super::MemoryType::IoreqServer) to this server.
    ///
    /// # Errors
    ///
    /// See [`IoreqServer`]; `EBUSY` when another server has them.
    #[doc(alias = "xendevicemodel_map_mem_type_to_ioreq_server")]
    #[doc(alias = "XEN_DMOP_map_mem_type_to_ioreq_server")]
    pub fn map_written_memory(&self) -> Result<()> {
        self.map_mem_type(abi::XEN_DMOP_IOREQ_MEM_ACCESS_WRITE)
    }

    /// Undoes [`map_written_memory`](Self::map_written_memory). Xen makes the memory ordinary
    /// memory.
    ///
    /// # Errors
    ///
    /// See [`IoreqServer`].
    pub fn unmap_written_memory(&self) -> Result<()> {
        self.map_mem_type(0)
    }

    fn map_mem_type(&self, flags: u32) -> Result<()> {
        self.model.send(abi::MapMemTypeToIoreqServer {
            id: self.id,
            kind: abi::HVMMEM_IOREQ_SERVER,
            flags,
            opaque: 0,
        })
    }

    /// Makes Xen pass accesses on.
    ///
    /// # Errors
    ///
    /// See [`IoreqServer`].
    #[doc(alias = "xendevicemodel_set_ioreq_server_state")]
    #[doc(alias = "XEN_DMOP_set_ioreq_server_state")]
    pub fn enable(&self) -> Result<()> {
        self.set_state(1)
    }

    /// Makes Xen stop passing accesses on. Accesses that wait for an answer keep waiting.
    ///
    /// # Errors
    ///
    /// See [`IoreqServer`].
    pub fn disable(&self) -> Result<()> {
        self.set_state(0)
    }

    fn set_state(&self, enabled: u8) -> Result<()> {
        self.model.send(abi::SetIoreqServerState {
            id: self.id,
            enabled,
            pad: 0,
        })
    }

    /// Destroys the server with its ranges, as drop does, and returns the error.
    ///
    /// # Errors
    ///
    /// See [`IoreqServer`]. The drop does not try again.
    #[doc(alias = "xendevicemodel_destroy_ioreq_server")]
    #[doc(alias = "XEN_DMOP_destroy_ioreq_server")]
    pub fn destroy(mut self) -> Result<()> {
        self.destroyed = true;
        self.model.destroy_ioreq_server(self.id)
    }
}

impl Drop for IoreqServer {
    fn drop(&mut self) {
        if !self.destroyed {
            // A guest that no longer exists has no server.
            let _ = self.model.destroy_ioreq_server(self.id);
        }
    }
}
