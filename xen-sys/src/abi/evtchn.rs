//! `/dev/xen/evtchn`: include/uapi/xen/evtchn.h.

use super::{Opcode, opcode};
use crate::DomId;

/// Binds a fresh local port to a virtual interrupt; the call returns the port.
#[doc(alias = "ioctl_evtchn_bind_virq")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BindVirq {
    /// `VIRQ_*`, xen/include/public/xen.h.
    pub virq: u32,
}

/// Binds a fresh local port to a port that another domain holds open for us; the call returns the
/// local port.
#[doc(alias = "ioctl_evtchn_bind_interdomain")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BindInterdomain {
    /// The other domain.
    pub remote_domain: u32,
    /// Its port.
    pub remote_port: u32,
}

/// Makes a fresh local port that another domain may bind to; the call returns the port.
#[doc(alias = "ioctl_evtchn_bind_unbound_port")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BindUnboundPort {
    /// The domain that may bind to it.
    pub remote_domain: u32,
}

/// Closes a local port.
#[doc(alias = "ioctl_evtchn_unbind")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Unbind {
    /// The local port.
    pub port: u32,
}

/// Sends an event through a local port.
#[doc(alias = "ioctl_evtchn_notify")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Notify {
    /// The local port.
    pub port: u32,
}

/// Permanently limits the open file: it can only bind interdomain, to one domain.
#[doc(alias = "ioctl_evtchn_restrict_domid")]
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RestrictDomid {
    /// The domain that stays reachable.
    pub domid: DomId,
}

/// [`BindVirq`].
pub const IOCTL_EVTCHN_BIND_VIRQ: Opcode = opcode(b'E', 0, size_of::<BindVirq>());
/// [`BindInterdomain`].
pub const IOCTL_EVTCHN_BIND_INTERDOMAIN: Opcode = opcode(b'E', 1, size_of::<BindInterdomain>());
/// [`BindUnboundPort`].
pub const IOCTL_EVTCHN_BIND_UNBOUND_PORT: Opcode = opcode(b'E', 2, size_of::<BindUnboundPort>());
/// [`Unbind`].
pub const IOCTL_EVTCHN_UNBIND: Opcode = opcode(b'E', 3, size_of::<Unbind>());
/// [`Notify`].
pub const IOCTL_EVTCHN_NOTIFY: Opcode = opcode(b'E', 4, size_of::<Notify>());
/// Empties the event buffer and clears its overflow; no argument.
pub const IOCTL_EVTCHN_RESET: Opcode = opcode(b'E', 5, 0);
/// [`RestrictDomid`].
pub const IOCTL_EVTCHN_RESTRICT_DOMID: Opcode = opcode(b'E', 6, size_of::<RestrictDomid>());
