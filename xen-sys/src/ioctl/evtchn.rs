//! `/dev/xen/evtchn`.

use std::ffi::c_int;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Driver, Node, set, set_nothing};
use crate::abi::evtchn as abi;
use crate::{DevRoot, DomId, Port, Result, Virq};

/// An open `/dev/xen/evtchn`.
#[derive(Debug)]
pub struct Evtchn(Node<EvtchnDriver>);

/// The driver behind `/dev/xen/evtchn`.
#[derive(Debug)]
pub(super) struct EvtchnDriver;

impl Driver for EvtchnDriver {
    const NODE: &'static str = "evtchn";
}

impl Evtchn {
    /// Opens the device; its reads block until the file is made non-blocking.
    ///
    /// # Errors
    ///
    /// Those of [`DevRoot::open_device`].
    pub fn open(root: &DevRoot) -> Result<Self> {
        Node::open(root).map(Self)
    }

    /// Takes a descriptor of this device that was opened elsewhere.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`](crate::Error::Invalid) for a descriptor of another file; those of
    /// [`open`](Self::open).
    pub fn adopt(root: &DevRoot, fd: OwnedFd) -> Result<Self> {
        Node::adopt(root, fd).map(Self)
    }

    /// Returns the open file: a read returns pending ports, and a write of ports unmasks them.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0.file
    }

    /// Binds a local port to a virtual interrupt.
    ///
    /// # Errors
    ///
    /// The driver's errno; `EEXIST` when this domain has it bound already.
    #[doc(alias = "IOCTL_EVTCHN_BIND_VIRQ")]
    pub fn bind_virq(&self, virq: Virq) -> Result<Port> {
        let virq = virq.as_u32();
        set(&self.0, &abi::BindVirq { virq }).map(port)
    }

    /// Binds a local port to the port `remote` of domain `domain`.
    ///
    /// # Errors
    ///
    /// The driver's errno; `EINVAL` when the other side holds no such port open for us.
    #[doc(alias = "IOCTL_EVTCHN_BIND_INTERDOMAIN")]
    pub fn bind_interdomain(&self, domain: DomId, remote: Port) -> Result<Port> {
        let (remote_domain, remote_port) = (domain.as_u16().into(), remote.as_u32());
        set(
            &self.0,
            &abi::BindInterdomain {
                remote_domain,
                remote_port,
            },
        )
        .map(port)
    }

    /// Opens a local port that `domain` may bind to.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    #[doc(alias = "IOCTL_EVTCHN_BIND_UNBOUND_PORT")]
    pub fn bind_unbound(&self, domain: DomId) -> Result<Port> {
        let remote_domain = domain.as_u16().into();
        set(&self.0, &abi::BindUnboundPort { remote_domain }).map(port)
    }

    /// Closes a local port.
    ///
    /// # Errors
    ///
    /// The driver's errno; `ENOTCONN` when this file does not hold the port.
    #[doc(alias = "IOCTL_EVTCHN_UNBIND")]
    pub fn unbind(&self, port: Port) -> Result<()> {
        let port = port.as_u32();
        set(&self.0, &abi::Unbind { port }).map(drop)
    }

    /// Sends an event through a local port.
    ///
    /// # Errors
    ///
    /// The driver's errno; `ENOTCONN` when this file does not hold the port.
    #[doc(alias = "IOCTL_EVTCHN_NOTIFY")]
    #[inline]
    pub fn notify(&self, port: Port) -> Result<()> {
        let port = port.as_u32();
        set(&self.0, &abi::Notify { port }).map(drop)
    }

    /// Empties the event buffer and clears its overflow.
    ///
    /// # Errors
    ///
    /// The driver's errno.
    #[doc(alias = "IOCTL_EVTCHN_RESET")]
    pub fn reset(&self) -> Result<()> {
        set_nothing(&self.0, "IOCTL_EVTCHN_RESET", abi::IOCTL_EVTCHN_RESET)
    }

    /// Permanently limits this file to binding interdomain to `domain`.
    ///
    /// # Errors
    ///
    /// The driver's errno; `EACCES` when it is limited already.
    #[doc(alias = "IOCTL_EVTCHN_RESTRICT_DOMID")]
    pub fn restrict(&self, domain: DomId) -> Result<()> {
        set(&self.0, &abi::RestrictDomid { domid: domain }).map(drop)
    }
}

/// Converts the result of a bind, which is never negative, to a port.
fn port(n: c_int) -> Port {
    Port::new(n as u32)
}

impl AsFd for Evtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}
