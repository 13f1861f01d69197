//! Event-channel ports: who may bind to whom, and the bells in between.
//!
//! A channel is two eventfds, its *bells*. Side `s` waits on `bells[s]` and rings `bells[1 - s]`.
//! Both are made with the first end, before there is another, so an event needs no broker: notify
//! is one write to the far bell. A ring of a bell without a waiter is lost, as in Xen, because an
//! end that binds later starts out pending anyway.
//!
//! ```text
//!   domain 3, port 9                         domain 5, port 12
//!      side 0        ── ring ──>  bells[1] ── wait ──>  side 1
//!             <── wait ── bells[0]  <── ring ──
//! ```
//!
//! A port is closed when it has no more users: neither the handle that bound it nor a pending unmap
//! notification (`evtchn_get`/`evtchn_put` in Linux's drivers/xen/events/events_base.c).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use super::faults::Interposer;
use crate::abi::hypercall::{
    EVTCHNSTAT_CLOSED, EVTCHNSTAT_INTERDOMAIN, EVTCHNSTAT_UNBOUND, EVTCHNSTAT_VIRQ,
};
use crate::{DomId, Port, Virq};

/// One direction of a channel.
#[derive(Debug)]
pub(super) struct Bell {
    /// The descriptor that the receiver waits on.
    wait: OwnedFd,
    /// The descriptor that the sender rings instead, if a fault is in between.
    interposed: Option<Arc<Interposer>>,
}

impl Bell {
    /// A bell; with a fault in between if `interpose` makes one for it.
    pub(super) fn new(
        interpose: impl FnOnce(&OwnedFd) -> io::Result<Option<Arc<Interposer>>>,
    ) -> io::Result<Self> {
        let wait = bell()?;
        let interposed = interpose(&wait)?;
        Ok(Self { wait, interposed })
    }

    fn ring_end(&self) -> &OwnedFd {
        self.interposed
            .as_ref()
            .map_or(&self.wait, |i| i.ring_end())
    }
}

/// Makes an eventfd as both hosts need it.
pub(super) fn bell() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Rings an eventfd. It fails only when its counter is full: then it is ringing already.
pub(super) fn ring(fd: &OwnedFd) {
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

/// The other end of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Far {
    /// Not connected yet; this domain may bind.
    Unbound(DomId),
    Connected(DomId, Port),
    /// Xen itself.
    Virq(Virq),
}

#[derive(Debug)]
struct Entry {
    far: Far,
    bells: Arc<[Bell; 2]>,
    side: usize,
    /// The connection whose handle bound it, while that has it.
    holder: Option<u64>,
    /// Unmap notifications that will use it.
    notifications: u32,
}

/// The ports of one domain.
#[derive(Debug)]
pub(super) struct Ports {
    table: BTreeMap<u32, Entry>,
}

/// A new port and its owner's ends: what to wait on, what to ring.
pub(super) type Bound = (Port, [OwnedFd; 2]);

/// The holder of the ports that Xen has in a guest, in the place of a connection.
pub(super) const XEN: u64 = 0;
/// The lowest port given out: a kernel takes the first few for itself.
const FIRST: u32 = 4;
/// How many virtual interrupts there may be: `NR_VIRQS` of xen/include/public/xen.h.
const VIRQS: u32 = 24;

impl Ports {
    pub(super) fn new() -> Self {
        Self {
            table: BTreeMap::new(),
        }
    }

    /// The lowest free number, if the domain may have another port.
    fn free(&self, limit: u32) -> Result<u32, Errno> {
        if self.table.len() >= limit as usize {
            return Err(Errno::NOSPC);
        }
        let mut free = FIRST;
        for &used in self.table.keys() {
            if used > free {
                break;
            }
            free = used + 1;
        }
        Ok(free)
    }

    fn insert(&mut self, port: u32, entry: Entry) -> Result<Bound, Errno> {
        let wait = entry.bells[entry.side].wait.try_clone().map_err(errno)?;
        let ring = entry.bells[1 - entry.side]
            .ring_end()
            .try_clone()
            .map_err(errno)?;
        self.table.insert(port, entry);
        Ok((Port::new(port), [wait, ring]))
    }

    /// A port `remote` may bind to. `bells[0]` is the one to wait on here.
    pub(super) fn bind_unbound(
        &mut self,
        holder: u64,
        limit: u32,
        remote: DomId,
        bells: [Bell; 2],
    ) -> Result<Bound, Errno> {
        let port = self.free(limit)?;
        let far = Far::Unbound(remote);
        let bells = Arc::new(bells);
        let entry = Entry {
            far,
            bells,
            side: 0,
            holder: Some(holder),
            notifications: 0,
        };
        self.insert(port, entry)
    }

    /// A port for a virtual interrupt, of which a domain has one (`evtchn_bind_virq`,
    /// xen/common/event_channel.c).
    pub(super) fn bind_virq(
        &mut self,
        holder: u64,
        limit: u32,
        virq: Virq,
        bells: [Bell; 2],
    ) -> Result<Bound, Errno> {
        if virq.as_u32() >= VIRQS {
            return Err(Errno::INVAL);
        }
        let far = Far::Virq(virq);
        // A kernel keeps the timer for itself.
        if virq == Virq::TIMER || self.table.values().any(|entry| entry.far == far) {
            return Err(Errno::EXIST);
        }
        let port = self.free(limit)?;
        let entry = Entry {
            far,
            bells: Arc::new(bells),
            side: 0,
            holder: Some(holder),
            notifications: 0,
        };
        self.insert(port, entry)
    }

    /// Delivers Xen's event to the port at which a virtual interrupt is bound.
    pub(super) fn raise(&self, virq: Virq) {
        for entry in self.table.values() {
            if entry.far == Far::Virq(virq) {
                ring(&entry.bells[entry.side].wait);
            }
        }
    }

    /// Delivers an event through `port` to its other end, if there is one.
    fn notify(&self, port: Port) {
        if let Some(entry) = self.table.get(&port.as_u32()) {
            if matches!(entry.far, Far::Connected(..)) {
                ring(entry.bells[1 - entry.side].ring_end());
            }
        }
    }

    /// Ports and their holders, for the account at the end. Xen's own go with their ioreq server.
    pub(super) fn list(&self) -> impl Iterator<Item = String> + '_ {
        let entries = self.table.iter().filter(|(_, e)| e.holder != Some(XEN));
        entries.map(|(port, e)| match e.far {
            Far::Unbound(d) => format!("port {port}, open for domain {d}"),
            Far::Virq(v) => format!("port {port}, of virtual interrupt {v}"),
            Far::Connected(d, p) => format!("port {port}, connected to port {p} of domain {d}"),
        })
    }

    /// The status, the union and the remote port of `struct evtchn_status`.
    pub(super) fn status(&self, port: Port) -> (u32, u32, Port) {
        let none = Port::new(0);
        match self.table.get(&port.as_u32()).map(|entry| entry.far) {
            None => (EVTCHNSTAT_CLOSED, 0, none),
            Some(Far::Unbound(remote)) => (EVTCHNSTAT_UNBOUND, remote.as_u16().into(), none),
            Some(Far::Connected(remote, port)) => {
                (EVTCHNSTAT_INTERDOMAIN, remote.as_u16().into(), port)
            }
            Some(Far::Virq(virq)) => (EVTCHNSTAT_VIRQ, virq.as_u32(), none),
        }
    }

    pub(super) fn numbers(&self) -> Vec<Port> {
        self.table.keys().map(|&p| Port::new(p)).collect()
    }
}

/// The ports of all domains, by domain.
pub(super) trait AllPorts {
    fn ports(&mut self, domain: DomId) -> Option<&mut Ports>;

    /// Connects a new port of `local` to `port` of `remote`
    /// (`evtchn_bind_interdomain`, xen/common/event_channel.c).
    fn bind_interdomain(
        &mut self,
        holder: u64,
        limit: u32,
        (local, remote): (DomId, DomId),
        port: Port,
    ) -> Result<Bound, Errno> {
        self.ports(remote).ok_or(Errno::SRCH)?;
        let number = self.ports(local).ok_or(Errno::SRCH)?.free(limit)?;
        let theirs = self.ports(remote).ok_or(Errno::SRCH)?;
        let entry = theirs.table.get_mut(&port.as_u32()).ok_or(Errno::INVAL)?;
        if entry.far != Far::Unbound(local) {
            return Err(Errno::INVAL);
        }
        let (bells, side) = (Arc::clone(&entry.bells), 1 - entry.side);
        entry.far = Far::Connected(local, Port::new(number));
        // "We may have lost notifications on the remote unbound port": the local end starts out
        // pending.
        ring(&bells[side].wait);
        let far = Far::Connected(remote, port);
        let entry = Entry {
            far,
            bells,
            side,
            holder: Some(holder),
            notifications: 0,
        };
        match self.ports(local).ok_or(Errno::SRCH)?.insert(number, entry) {
            Ok(bound) => Ok(bound),
            Err(e) => {
                // Out of descriptors: as if there had been no request.
                if let Some(entry) = self
                    .ports(remote)
                    .and_then(|p| p.table.get_mut(&port.as_u32()))
                {
                    entry.far = Far::Unbound(local);
                }
                Err(e)
            }
        }
    }

    /// Releases a port for its handle. `ENOTCONN` when the handle does not hold it.
    fn unbind(&mut self, domain: DomId, holder: u64, port: Port) -> Result<(), Errno> {
        let ports = self.ports(domain).ok_or(Errno::SRCH)?;
        let entry = ports.table.get_mut(&port.as_u32()).ok_or(Errno::NOTCONN)?;
        if entry.holder != Some(holder) {
            return Err(Errno::NOTCONN);
        }
        entry.holder = None;
        self.close_if_unused(domain, port);
        Ok(())
    }

    /// Records that an unmap notification will use the port. `EINVAL` when it is not bound.
    fn hold(&mut self, domain: DomId, port: Port) -> Result<(), Errno> {
        let ports = self.ports(domain).ok_or(Errno::SRCH)?;
        let entry = ports.table.get_mut(&port.as_u32()).ok_or(Errno::INVAL)?;
        entry.notifications += 1;
        Ok(())
    }

    /// Records that an unmap notification is performed or replaced.
    fn let_go(&mut self, domain: DomId, port: Port, notify: bool) {
        let Some(ports) = self.ports(domain) else {
            return;
        };
        if notify {
            ports.notify(port);
        }
        if let Some(entry) = ports.table.get_mut(&port.as_u32()) {
            entry.notifications = entry.notifications.saturating_sub(1);
        }
        self.close_if_unused(domain, port);
    }

    fn close_if_unused(&mut self, domain: DomId, port: Port) {
        let unused = |e: &Entry| e.holder.is_none() && e.notifications == 0;
        let Some(ports) = self.ports(domain) else {
            return;
        };
        if ports.table.get(&port.as_u32()).is_some_and(unused) {
            self.close(domain, port);
        }
    }

    /// Closes a port. Its far end is open again, for this domain, and receives no event
    /// (`evtchn_close`, xen/common/event_channel.c).
    fn close(&mut self, domain: DomId, port: Port) {
        let Some(ports) = self.ports(domain) else {
            return;
        };
        let Some(entry) = ports.table.remove(&port.as_u32()) else {
            return;
        };
        let Far::Connected(remote, far) = entry.far else {
            return;
        };
        let Some(theirs) = self.ports(remote) else {
            return;
        };
        if let Some(entry) = theirs.table.get_mut(&far.as_u32()) {
            entry.far = Far::Unbound(domain);
        }
    }

    /// Releases every port that a connection holds in a domain.
    fn unbind_all(&mut self, domain: DomId, holder: u64) {
        let Some(ports) = self.ports(domain) else {
            return;
        };
        let held = |(_, e): &(&u32, &Entry)| e.holder == Some(holder);
        let held: Vec<Port> = ports
            .table
            .iter()
            .filter(held)
            .map(|(&p, _)| Port::new(p))
            .collect();
        for port in held {
            // It is held: this cannot fail.
            let _ = self.unbind(domain, holder, port);
        }
    }
}

/// The errno of an error from std.
pub(super) fn errno(e: io::Error) -> Errno {
    Errno::from_io_error(&e).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests;
