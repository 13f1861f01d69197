//! The device-model operations of the simulated hypervisor: ioreq servers, their ranges, pages and
//! ports, and a guest's accesses, which they answer. Interrupts are taken and dropped.
//!
//! ```text
//!   Simulation::access ── request ──> page of the server <── maps ── the device model's process
//!            │                                                          │
//!            └─────── eventfd <── port of the guest ── eventfd ─────────┘
//! ```

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros as _, Immutable, IntoBytes};

use super::broker::{Shared, timespec};
use super::domain::State;
use super::grants::{Memory, SERVER_FRAMES};
use super::ports::{XEN, errno, ring};
use crate::abi::dm_op::{self as abi, DmOpArgument};
use crate::abi::hypercall::XENMEM_RESOURCE_IOREQ_SERVER;
use crate::abi::ioreq::{self, Ioreq};
use crate::{DomId, Port};

/// Servers of a guest: `MAX_NR_IOREQ_SERVERS`.
const SERVERS: usize = 8;
/// The pages of a server: for buffered requests, and for the virtual CPU's.
const BUFFERED: u32 = 0;
const SYNCHRONOUS: u32 = 1;
/// Frames for the pages of all servers.
pub(super) const FRAMES: u32 = 2 * SERVERS as u32;
/// Ranges of a server and kind: `MAX_NR_IO_RANGES`.
const RANGES: usize = 256;

/// The ioreq servers of one guest.
#[derive(Debug, Default)]
pub(super) struct Servers {
    all: BTreeMap<u16, Server>,
    /// A caller waits in [`access`] for the virtual CPU's request.
    waits: bool,
}

/// The virtual CPU's end of its channel to a server.
#[derive(Debug)]
struct Channel {
    port: Port,
    wait: OwnedFd,
    ring: OwnedFd,
}

#[derive(Debug)]
struct Server {
    enabled: bool,
    /// Ports, memory, PCI functions.
    ranges: [Vec<RangeInclusive<u64>>; 3],
    memory: Arc<Memory>,
    /// The first of its frames in the memory.
    first: u32,
    vcpu: Arc<Channel>,
    /// Present if it has buffered requests.
    buffered_port: Option<Port>,
}

impl Server {
    /// Returns whether the server answers the request: ioreq_server_select in xen/common/ioreq.c.
    fn has(&self, request: &Ioreq) -> bool {
        let (addr, size) = (request.addr, u64::from(request.size));
        let more = u64::from(request.count.saturating_sub(1)).saturating_mul(size);
        let end = addr.saturating_add(size.saturating_sub(1));
        let (ranges, first, last) = match request.kind {
            ioreq::IOREQ_TYPE_PIO => (&self.ranges[0], addr, end),
            ioreq::IOREQ_TYPE_COPY if request.bits & ioreq::DF != 0 => {
                (&self.ranges[1], addr.saturating_sub(more), end)
            }
            ioreq::IOREQ_TYPE_COPY => (&self.ranges[1], addr, end.saturating_add(more)),
            ioreq::IOREQ_TYPE_PCI_CONFIG => (&self.ranges[2], addr >> 32, addr >> 32),
            // Without an address. Xen sends these to each server; here the first gets them.
            _ => return true,
        };
        let has = |range: &RangeInclusive<u64>| range.contains(&first) && range.contains(&last);
        ranges.iter().any(has)
    }

    /// Reads the virtual CPU's request, and its state.
    fn request(&self) -> Result<(Ioreq, u8), Errno> {
        let mut request = Ioreq::new_zeroed();
        let page = self.first + SYNCHRONOUS;
        let read = self.memory.read(page, 0, request.as_mut_bytes());
        read.map_err(errno)?;
        Ok((request, request.bits & ioreq::STATE_MASK))
    }

    /// Writes the virtual CPU's request, its state last.
    fn set_request(&self, request: &Ioreq, state: u8) -> Result<(), Errno> {
        let request = Ioreq {
            bits: request.bits & !ioreq::STATE_MASK | state,
            ..*request
        };
        let page = self.first + SYNCHRONOUS;
        let bits = offset_of!(Ioreq, bits);
        let bytes = request.as_bytes();
        let write = |at: usize, bytes| self.memory.write(page, at, bytes).map_err(errno);
        write(0, &bytes[..bits])?;
        write(bits + 1, &bytes[bits + 1..])?;
        write(bits, &bytes[bits..=bits])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.memory.punch(self.first + BUFFERED);
        self.memory.punch(self.first + SYNCHRONOUS);
        // Xen resumes a virtual CPU that waits for it.
        ring(&self.vcpu.wait);
    }
}

impl Servers {
    /// Returns descriptions of the servers that were not destroyed.
    pub(super) fn list(&self) -> impl Iterator<Item = String> + '_ {
        let server = |(id, server): (&u16, &Server)| {
            let ranges: usize = server.ranges.iter().map(Vec::len).sum();
            format!("ioreq server {id}, {ranges} ranges")
        };
        self.all.iter().map(server)
    }

    fn server(&mut self, id: u16) -> Result<&mut Server, Errno> {
        self.all.get_mut(&id).ok_or(Errno::NOENT)
    }

    fn free(&self) -> Option<u16> {
        (0..SERVERS as u16).find(|id| !self.all.contains_key(id))
    }

    fn enable(&mut self, id: u16, enabled: bool) -> Result<(), Errno> {
        let server = self.server(id)?;
        server.enabled = enabled;
        if enabled {
            let port = server.vcpu.port.as_u32().to_ne_bytes();
            let (page, at) = (server.first + SYNCHRONOUS, offset_of!(Ioreq, vp_eport));
            server.memory.write(page, at, &port).map_err(errno)?;
        }
        Ok(())
    }

    /// A range to map, or to unmap.
    fn range(&mut self, body: abi::IoreqServerRange, map: bool) -> Result<(), Errno> {
        let server = self.server(body.id)?;
        let ranges = server.ranges.get_mut(body.kind as usize);
        let ranges = ranges.ok_or(Errno::INVAL)?;
        let range = body.start..=body.end;
        if range.is_empty() {
            return Err(Errno::INVAL);
        }
        let same = ranges.iter().position(|r| *r == range);
        let overlaps =
            |r: &RangeInclusive<u64>| r.start() <= range.end() && range.start() <= r.end();
        match (map, same) {
            (true, _) if ranges.iter().any(overlaps) => Err(Errno::EXIST),
            (true, _) if ranges.len() == RANGES => Err(Errno::NOMEM),
            (true, _) => {
                ranges.push(range);
                Ok(())
            }
            (false, None) => Err(Errno::NOENT),
            (false, Some(at)) => {
                ranges.swap_remove(at);
                Ok(())
            }
        }
    }
}

fn body<B: FromBytes>(argument: &DmOpArgument) -> Result<B, Errno> {
    argument.body().ok_or(Errno::FAULT)
}

impl State {
    /// Makes an operation other than `remote_shutdown`: dm_op in xen/common/dm.c and
    /// xen/arch/x86/hvm/dm.c.
    pub(super) fn dm_op(
        &mut self,
        guest: DomId,
        argument: &DmOpArgument,
    ) -> Result<DmOpArgument, Errno> {
        match argument.op {
            abi::XEN_DMOP_CREATE_IOREQ_SERVER => self.create_server(guest, body(argument)?),
            abi::XEN_DMOP_DESTROY_IOREQ_SERVER => {
                let body: abi::DestroyIoreqServer = body(argument)?;
                let server = self.servers(guest)?.all.remove(&body.id);
                let server = server.ok_or(Errno::NOENT)?;
                let ports = [Some(server.vcpu.port), server.buffered_port];
                for port in ports.into_iter().flatten() {
                    self.unbind(XEN, guest, port)?;
                }
                Ok(*argument)
            }
            _ => dm_op(self.servers(guest)?, argument),
        }
    }

    fn servers(&mut self, guest: DomId) -> Result<&mut Servers, Errno> {
        self.hypervisor.servers(guest).ok_or(Errno::SRCH)
    }

    fn create_server(
        &mut self,
        guest: DomId,
        mut body: abi::CreateIoreqServer,
    ) -> Result<DmOpArgument, Errno> {
        if body.handle_bufioreq > abi::HVM_IOREQSRV_BUFIOREQ_ATOMIC {
            return Err(Errno::INVAL);
        }
        body.id = self.servers(guest)?.free().ok_or(Errno::NOSPC)?;
        let memory = self.memory(guest)?;
        let (port, [wait, ring]) = self.bind_unbound(XEN, guest, DomId::DOM0)?;
        let buffered_port = match body.handle_bufioreq {
            abi::HVM_IOREQSRV_BUFIOREQ_OFF => None,
            _ => match self.bind_unbound(XEN, guest, DomId::DOM0) {
                Ok((port, _)) => Some(port),
                Err(e) => {
                    self.unbind(XEN, guest, port)?;
                    return Err(e);
                }
            },
        };
        let server = Server {
            enabled: false,
            ranges: Default::default(),
            memory,
            first: SERVER_FRAMES + 2 * u32::from(body.id),
            vcpu: Arc::new(Channel { port, wait, ring }),
            buffered_port,
        };
        self.servers(guest)?.all.insert(body.id, server);
        Ok(DmOpArgument::new(abi::XEN_DMOP_CREATE_IOREQ_SERVER, &body))
    }

    /// Returns the memory and the frames of a resource: `acquire_resource` in xen/common/memory.c.
    pub(super) fn resource(
        &mut self,
        guest: DomId,
        [kind, id, first, count]: [u32; 4],
    ) -> Result<(Arc<Memory>, Vec<u32>), Errno> {
        if kind != XENMEM_RESOURCE_IOREQ_SERVER {
            return Err(Errno::OPNOTSUPP);
        }
        let id = u16::try_from(id).map_err(|_| Errno::INVAL)?;
        let server = self.servers(guest)?.server(id)?;
        let end = first.checked_add(count).ok_or(Errno::INVAL)?;
        if end > SYNCHRONOUS + 1 || count == 0 {
            return Err(Errno::INVAL);
        }
        if first == BUFFERED && server.buffered_port.is_none() {
            return Err(Errno::NOENT);
        }
        let frames = (first..end).map(|page| server.first + page).collect();
        Ok((Arc::clone(&server.memory), frames))
    }

    /// Passes a guest's request to the server that has its address. Returns the channel through
    /// which it is answered; `None` if no server has the address. `EBUSY` while the virtual CPU
    /// waits.
    fn send_request(
        &mut self,
        guest: DomId,
        request: &Ioreq,
    ) -> Result<Option<Arc<Channel>>, Errno> {
        let servers = self.servers(guest)?;
        if servers.waits {
            return Err(Errno::BUSY);
        }
        for server in servers.all.values() {
            match server.request()? {
                (_, ioreq::STATE_IOREQ_NONE) => {}
                // The answer to an access that ended at its deadline.
                (late, ioreq::STATE_IORESP_READY) => {
                    server.set_request(&late, ioreq::STATE_IOREQ_NONE)?;
                }
                _ => return Err(Errno::BUSY),
            }
        }
        let mut enabled = servers.all.values().filter(|server| server.enabled);
        let Some(server) = enabled.find(|server| server.has(request)) else {
            return Ok(None);
        };
        let vcpu = Arc::clone(&server.vcpu);
        let request = Ioreq {
            vp_eport: vcpu.port,
            ..*request
        };
        server.set_request(&request, ioreq::STATE_IOREQ_READY)?;
        servers.waits = true;
        ring(&vcpu.ring);
        Ok(Some(vcpu))
    }

    /// Takes the answer that arrived through the channel. `None` if there is none yet, `ENOENT` if
    /// the server no longer exists.
    fn take_answer(&mut self, guest: DomId, vcpu: &Arc<Channel>) -> Result<Option<Ioreq>, Errno> {
        let mut servers = self.servers(guest)?.all.values();
        // Another server may have its number by now.
        let server = servers.find(|server| Arc::ptr_eq(&server.vcpu, vcpu));
        let server = server.ok_or(Errno::NOENT)?;
        let (answer, state) = server.request()?;
        if state != ioreq::STATE_IORESP_READY {
            return Ok(None);
        }
        server.set_request(&answer, ioreq::STATE_IOREQ_NONE)?;
        Ok(Some(answer))
    }
}

/// Makes an access of a guest's virtual CPU, and waits for the answer of its device model. `None`
/// if no server is responsible, or no longer. `ETIMEDOUT` at the deadline.
pub(super) fn access(
    shared: &Shared,
    guest: DomId,
    request: &Ioreq,
    deadline: Instant,
) -> Result<Option<Ioreq>, Errno> {
    let sent = shared.state().send_request(guest, request)?;
    let Some(vcpu) = sent else {
        return Ok(None);
    };
    let answer = wait_for_answer(shared, guest, &vcpu, deadline);
    // The guest may have ended.
    if let Ok(servers) = shared.state().servers(guest) {
        servers.waits = false;
    }
    match answer {
        Err(Errno::NOENT | Errno::SRCH) => Ok(None),
        answer => answer.map(Some),
    }
}

fn wait_for_answer(
    shared: &Shared,
    guest: DomId,
    vcpu: &Arc<Channel>,
    deadline: Instant,
) -> Result<Ioreq, Errno> {
    loop {
        if let Some(answer) = shared.state().take_answer(guest, vcpu)? {
            return Ok(answer);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Errno::TIMEDOUT);
        }
        let mut fds = [PollFd::new(&vcpu.wait, PollFlags::IN)];
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
        let mut count = [0; size_of::<u64>()];
        // Nothing to take after a timeout.
        let _ = rustix::io::read(&vcpu.wait, &mut count);
    }
}

/// Makes an operation that concerns no port.
fn dm_op(servers: &mut Servers, argument: &DmOpArgument) -> Result<DmOpArgument, Errno> {
    let done = |()| *argument;
    let answer = |body: &dyn Answer| Ok(body.argument(argument.op));
    let within = |fits: bool| fits.then_some(*argument).ok_or(Errno::INVAL);
    match argument.op {
        abi::XEN_DMOP_GET_IOREQ_SERVER_INFO => {
            let mut info: abi::GetIoreqServerInfo = body(argument)?;
            let server = servers.server(info.id)?;
            info.bufioreq_port = server.buffered_port.unwrap_or(Port::new(0));
            answer(&info)
        }
        abi::XEN_DMOP_MAP_IO_RANGE_TO_IOREQ_SERVER => {
            servers.range(body(argument)?, true).map(done)
        }
        abi::XEN_DMOP_UNMAP_IO_RANGE_FROM_IOREQ_SERVER => {
            servers.range(body(argument)?, false).map(done)
        }
        abi::XEN_DMOP_SET_IOREQ_SERVER_STATE => {
            let state: abi::SetIoreqServerState = body(argument)?;
            servers.enable(state.id, state.enabled != 0).map(done)
        }
        abi::XEN_DMOP_SET_PCI_INTX_LEVEL => {
            let intx: abi::SetPciIntxLevel = body(argument)?;
            let first = intx.domain == 0 && intx.bus == 0;
            within(first && intx.device < 32 && intx.intx < 4)
        }
        abi::XEN_DMOP_SET_ISA_IRQ_LEVEL => {
            let isa: abi::SetIsaIrqLevel = body(argument)?;
            within(isa.isa_irq < 16)
        }
        abi::XEN_DMOP_SET_PCI_LINK_ROUTE => {
            let route: abi::SetPciLinkRoute = body(argument)?;
            within(route.link < 4 && route.isa_irq < 16)
        }
        abi::XEN_DMOP_INJECT_MSI => Ok(*argument),
        abi::XEN_DMOP_NR_VCPUS => answer(&abi::NrVcpus { vcpus: 1 }),
        _ => Err(Errno::OPNOTSUPP),
    }
}

/// A body, put back into its operation.
trait Answer {
    fn argument(&self, op: u32) -> DmOpArgument;
}

impl<B: IntoBytes + Immutable> Answer for B {
    fn argument(&self, op: u32) -> DmOpArgument {
        DmOpArgument::new(op, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(state: &mut State, guest: DomId, op: u32, body: &dyn Answer) -> DmOpArgument {
        state.dm_op(guest, &body.argument(op)).unwrap()
    }

    /// Makes the guest's server 0, which answers requests without an address.
    fn server(state: &mut State, guest: DomId) {
        let mut create = abi::CreateIoreqServer::new_zeroed();
        create.handle_bufioreq = abi::HVM_IOREQSRV_BUFIOREQ_OFF;
        make(state, guest, abi::XEN_DMOP_CREATE_IOREQ_SERVER, &create);
        let mut enable = abi::SetIoreqServerState::new_zeroed();
        enable.enabled = 1;
        make(state, guest, abi::XEN_DMOP_SET_IOREQ_SERVER_STATE, &enable);
    }

    #[test]
    fn an_access_does_not_wait_for_the_next_server_of_the_same_number() {
        let shared = Shared::new().unwrap();
        let mut state = shared.state();
        let guest = state.create_domain(None).unwrap();
        server(&mut state, guest);
        let request = Ioreq {
            kind: ioreq::IOREQ_TYPE_INVALIDATE,
            ..Ioreq::default()
        };
        let vcpu = state.send_request(guest, &request).unwrap().unwrap();
        assert_eq!(state.take_answer(guest, &vcpu), Ok(None));
        let destroy = abi::DestroyIoreqServer::new_zeroed();
        make(
            &mut state,
            guest,
            abi::XEN_DMOP_DESTROY_IOREQ_SERVER,
            &destroy,
        );
        server(&mut state, guest);
        assert_eq!(state.take_answer(guest, &vcpu), Err(Errno::NOENT));
    }
}
