//! A guest's requests to its device model: a core without I/O over the pages of an ioreq server.
//!
//! ```text
//!   event ──> handle_event ──┐
//!                            ├─ Ioreqs ─── poll_request ──> Request ──> the device
//!   complete(vcpu, data) ────┘       └──── poll_notify ──> Port ──> event
//! ```
//!
//! ```no_run
//! use xen_evtchn::{BoundPort, EventChannels};
//! use xen_gnttab::ioreq::Ioreqs;
//! use xen_sys::device_model::{BufferedRequests, DeviceModel, IoRange};
//! use xen_sys::{DomId, Xen};
//!
//! let (xen, guest) = (Xen::open()?, DomId::new(5));
//! let model = DeviceModel::open(&xen, guest)?;
//! let server = model.create_ioreq_server(BufferedRequests::Off)?;
//! server.map_io_range(IoRange::ports(0x5a0..=0x5a0))?;
//! let mut requests = Ioreqs::map(&server)?;
//! server.enable()?;
//! let channels = EventChannels::open(&xen)?;
//! let mut ports: Vec<BoundPort> = Vec::new();
//! for vcpu in 0..requests.vcpus() {
//!     let theirs = requests.remote_port(vcpu).unwrap_or_default();
//!     let port = channels.bind_interdomain(guest, theirs)?;
//!     requests.set_port(vcpu, port.port())?;
//!     ports.push(port);
//! }
//! loop {
//!     while let Some(request) = requests.poll_request()? {
//!         if let Some(vcpu) = request.vcpu {
//!             requests.complete(vcpu, 0x5a)?;
//!         }
//!     }
//!     while let Some(port) = requests.poll_notify() {
//!         ports.iter().filter(|p| p.port() == port).try_for_each(BoundPort::notify)?;
//!     }
//!     if let Some(port) = channels.wait(None)? {
//!         channels.unmask(port)?;
//!         requests.handle_event(port);
//!     }
//! }
//! # #[allow(unreachable_code)]
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The header is xen/include/public/hvm/ioreq.h.
//!
//! # Order
//!
//! A request that a virtual CPU waits for is returned after the buffered requests that were sent
//! before it.
//!
//! # What the other side can do
//!
//! Xen writes these pages on behalf of the guest. Whatever they contain, no call panics, and each
//! does a bounded amount of work. A word is loaded once and the copy is checked. Values that Xen
//! may not change meanwhile are kept in private memory. An impossible request is an [`IoreqError`].
//! Its virtual CPU, or the ring, is not looked at again; the others continue. The virtual CPU waits
//! forever, so a device model then reports a crash
//! ([`DeviceModel::shutdown`](xen_sys::device_model::DeviceModel::shutdown)).
//!
//! A guest that writes without pause always has another buffered request, so a caller must limit
//! how many it takes between two other pieces of work.

mod buffered;
mod synchronous;

use xen_sys::PciFunction;
use xen_sys::abi::ioreq as abi;
use xen_sys::device_model::{BufferedRequests, IoreqServer};
use xen_sys::{PAGE_SIZE, Port};

use self::buffered::Ring;
use self::synchronous::Slots;
use crate::{PageAccess, Region, RegionError, foreign};

/// The kind of address that a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// An I/O port.
    #[doc(alias = "IOREQ_TYPE_PIO")]
    Port,
    /// A guest-physical address.
    #[doc(alias = "IOREQ_TYPE_COPY")]
    Memory,
    /// A register of a PCI function's configuration space: [`Request::pci`].
    #[doc(alias = "IOREQ_TYPE_PCI_CONFIG")]
    PciConfig,
    /// No address: the guest set its clock, and the data is the difference in seconds.
    #[doc(alias = "IOREQ_TYPE_TIMEOFFSET")]
    TimeOffset,
    /// No address: the device model must discard its mappings of the guest's memory and map again.
    #[doc(alias = "IOREQ_TYPE_INVALIDATE")]
    Invalidate,
}

impl Space {
    fn of(kind: u8) -> Option<Self> {
        Some(match kind {
            abi::IOREQ_TYPE_PIO => Self::Port,
            abi::IOREQ_TYPE_COPY => Self::Memory,
            abi::IOREQ_TYPE_PCI_CONFIG => Self::PciConfig,
            abi::IOREQ_TYPE_TIMEOFFSET => Self::TimeOffset,
            abi::IOREQ_TYPE_INVALIDATE => Self::Invalidate,
            _ => return None,
        })
    }
}

/// The direction of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// The guest reads, so the device answers with data.
    #[doc(alias = "IOREQ_READ")]
    Read,
    /// The guest writes.
    #[doc(alias = "IOREQ_WRITE")]
    Write,
}

/// The data of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Data {
    /// The data itself, as long as the request's size; meaningless for a read.
    Value(u64),
    /// The guest-physical address of the data of a string instruction: the device model maps the
    /// guest's memory, and reads it there or writes it there.
    Guest(u64),
}

/// A guest's access to a device that its device model emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Request {
    /// The virtual CPU that waits for [`Ioreqs::complete`]. `None` for a buffered request, which
    /// has no answer.
    pub vcpu: Option<u32>,
    /// The kind of its address.
    pub space: Space,
    /// The direction: the guest reads or writes.
    pub access: Access,
    /// The address.
    pub address: u64,
    /// Bytes of each repetition: 1, 2, 4 or 8.
    pub size: u8,
    /// Repetitions, at most [`MAX_REPETITIONS`]; only a string instruction has more than one.
    pub count: u32,
    /// Set if addresses descend from one repetition to the next.
    pub descending: bool,
    /// The data.
    pub data: Data,
}

/// The most repetitions of one request: Xen divides more of them into several requests.
pub const MAX_REPETITIONS: u32 = 4096;

impl Request {
    /// Returns the addresses of each repetition in turn: the device's, and that of the data in the
    /// guest's memory, if the data is there. Addresses wrap.
    pub fn elements(&self) -> impl Iterator<Item = (u64, Option<u64>)> + use<> {
        let request = *self;
        let step = match request.descending {
            true => u64::from(request.size).wrapping_neg(),
            false => u64::from(request.size),
        };
        (0..u64::from(request.count)).map(move |n| {
            let offset = n.wrapping_mul(step);
            let address = match request.space {
                Space::Memory => request.address.wrapping_add(offset),
                _ => request.address,
            };
            let data = match request.data {
                Data::Guest(at) => Some(at.wrapping_add(offset)),
                Data::Value(_) => None,
            };
            (address, data)
        })
    }

    /// Returns the function and the register of a request for [`Space::PciConfig`].
    #[must_use]
    pub fn pci(&self) -> Option<(PciFunction, u32)> {
        let function = PciFunction::from_sbdf((self.address >> 32) as u32);
        (self.space == Space::PciConfig).then_some((function, self.address as u32))
    }
}

/// An impossible request, or a call that has no request to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IoreqError {
    /// The memory cannot hold the requests.
    #[error("the pages of an ioreq server: {0}")]
    Region(#[from] RegionError),
    /// The guest has no such virtual CPU.
    #[error("the guest has no virtual CPU {vcpu}")]
    NoVcpu {
        /// The number of the virtual CPU.
        vcpu: u32,
    },
    /// The virtual CPU waits for no answer.
    #[error("virtual CPU {vcpu} waits for no answer")]
    NotWaiting {
        /// The number of the virtual CPU.
        vcpu: u32,
    },
    /// A request is in an impossible state, or has left the state in which it was ours.
    #[error("the request of virtual CPU {vcpu} is in state {state}")]
    State {
        /// The virtual CPU.
        vcpu: u32,
        /// The state that was read.
        state: u8,
    },
    /// A request is of no known type.
    #[error("a request of type {kind} (virtual CPU: {vcpu:?})")]
    Kind {
        /// The virtual CPU; `None` for a buffered request.
        vcpu: Option<u32>,
        /// The type.
        kind: u8,
    },
    /// A request is of a size that is not 1, 2, 4 or 8 bytes.
    #[error("a request of virtual CPU {vcpu} for {size} bytes")]
    Size {
        /// The virtual CPU.
        vcpu: u32,
        /// The size in bytes.
        size: u32,
    },
    /// A request has more than [`MAX_REPETITIONS`].
    #[error("a request of virtual CPU {vcpu} has {count} repetitions")]
    Repetitions {
        /// The virtual CPU.
        vcpu: u32,
        /// The number of repetitions.
        count: u32,
    },
    /// The pointers of the buffered requests are impossible.
    #[error("the buffered requests' pointers are {read} and {write} in slot {slot}")]
    Pointers {
        /// The slot that is read next.
        slot: u32,
        /// The read pointer.
        read: u32,
        /// The write pointer.
        write: u32,
    },
}

impl From<IoreqError> for std::io::Error {
    fn from(e: IoreqError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, e)
    }
}

/// The requests of a guest to one ioreq server.
#[derive(Debug)]
pub struct Ioreqs {
    slots: Slots,
    ring: Option<Ring>,
    ring_port: Option<Port>,
    /// A request that was taken while buffered ones were ahead of it.
    taken: Option<Request>,
    /// Buffered requests that may still be returned ahead of it.
    in_front: usize,
}

impl Ioreqs {
    /// Maps the pages of `server`, which must not have [legacy](BufferedRequests::Legacy) buffered
    /// requests.
    ///
    /// # Errors
    ///
    /// As [`foreign::map_resource`] and
    /// [`DeviceModel::vcpus`](xen_sys::device_model::DeviceModel::vcpus);
    /// [`Error::Invalid`](xen_sys::Error::Invalid) for legacy buffered requests and for a guest
    /// whose virtual CPUs have more than one page.
    pub fn map(server: &IoreqServer) -> xen_sys::Result<Self> {
        let invalid = |what, value| xen_sys::Error::Invalid {
            op: "map an ioreq server",
            what,
            value,
        };
        let model = server.device_model();
        let vcpus = model.vcpus()?;
        let frame = |first| {
            let (guest, resource) = (model.guest(), server.resource());
            foreign::map_resource(guest, resource, first, 1, PageAccess::ReadWrite)
        };
        let buffered = match server.buffered() {
            BufferedRequests::Off => None,
            BufferedRequests::Atomic => Some(frame(0)?),
            BufferedRequests::Legacy => {
                return Err(invalid("its kind of buffered requests", 1));
            }
        };
        let made = Self::new(frame(1)?, vcpus, buffered);
        made.map_err(|_| invalid("the number of virtual CPUs", u64::from(vcpus)))
    }

    /// Makes the core for the synchronous requests of `vcpus` virtual CPUs, and for the page of
    /// buffered requests that are updated atomically, if there is one.
    ///
    /// # Errors
    ///
    /// [`IoreqError::Region`] for regions that are too small or read-only.
    pub fn new(
        mut synchronous: Region,
        vcpus: u32,
        buffered: Option<Region>,
    ) -> Result<Self, IoreqError> {
        const SLOT: usize = size_of::<abi::Ioreq>() / size_of::<u32>();
        let words = (vcpus as usize).saturating_mul(SLOT);
        let slots = Slots::new(synchronous.take_words(words)?);
        let ring = match buffered {
            Some(mut page) => Some(Ring::new(page.take_words(PAGE_SIZE / size_of::<u32>())?)),
            None => None,
        };
        Ok(Self {
            slots,
            ring,
            ring_port: None,
            taken: None,
            in_front: 0,
        })
    }

    /// Returns how many virtual CPUs there are.
    #[must_use]
    pub fn vcpus(&self) -> u32 {
        self.slots.count()
    }

    /// Returns Xen's end of a virtual CPU's event channel, to bind with the guest as the other
    /// domain. Xen writes it when the server is enabled.
    #[must_use]
    pub fn remote_port(&self, vcpu: u32) -> Option<Port> {
        self.slots.remote_port(vcpu)
    }

    /// Sets this domain's end of a virtual CPU's event channel. The next poll looks for a request
    /// of that virtual CPU.
    ///
    /// # Errors
    ///
    /// [`IoreqError::NoVcpu`].
    pub fn set_port(&mut self, vcpu: u32, port: Port) -> Result<(), IoreqError> {
        self.slots.set_port(vcpu, port)
    }

    /// Sets this domain's end of the buffered requests' event channel.
    pub fn set_buffered_port(&mut self, port: Port) {
        self.ring_port = Some(port);
    }

    /// Handles an event of this domain's port `port`; returns whether it is a port of this value.
    pub fn handle_event(&mut self, port: Port) -> bool {
        self.slots.handle_event(port) || self.ring_port == Some(port)
    }

    /// Returns the next request, or `None` if there is none until the next event.
    ///
    /// # Errors
    ///
    /// [`IoreqError`] for an impossible request or pointer, once: see [the module](self). The next
    /// call continues with the rest.
    pub fn poll_request(&mut self) -> Result<Option<Request>, IoreqError> {
        if self.taken.is_none() {
            self.taken = self.slots.poll()?;
            self.in_front = abi::IOREQ_BUFFER_SLOT_NUM;
        }
        // Looked at after the synchronous request was seen, so all that were sent before it are
        // there. Requests sent since may be returned first as well, but not without end.
        if let Some(ring) = &mut self.ring {
            if self.taken.is_none() || self.in_front > 0 {
                if let Some(request) = ring.poll()? {
                    self.in_front = self.in_front.saturating_sub(1);
                    return Ok(Some(request));
                }
            }
        }
        Ok(self.taken.take())
    }

    /// Answers the request that a virtual CPU waits for. `data` is used for a read whose data is a
    /// [value](Data::Value), cut to its size; otherwise it is ignored. After this,
    /// [`poll_notify`](Self::poll_notify) returns a port.
    ///
    /// # Errors
    ///
    /// [`IoreqError::NoVcpu`], [`IoreqError::NotWaiting`]; [`IoreqError::State`] if Xen has
    /// withdrawn the request.
    pub fn complete(&mut self, vcpu: u32, data: u64) -> Result<(), IoreqError> {
        if self.taken.is_some_and(|request| request.vcpu == Some(vcpu)) {
            // The request was not returned yet.
            return Err(IoreqError::NotWaiting { vcpu });
        }
        self.slots.complete(vcpu, data)
    }

    /// Returns a port to notify, once for each answer.
    pub fn poll_notify(&mut self) -> Option<Port> {
        self.slots.poll_notify()
    }
}

/// Returns `value` cut to `size` bytes.
fn cut(value: u64, size: u8) -> u64 {
    match size {
        8.. => value,
        size => value & ((1 << (8 * size)) - 1),
    }
}

#[cfg(test)]
mod tests;
