//! The device-model operations of the simulated hypervisor: ioreq servers and their ranges are
//! kept, interrupts are taken and dropped. No guest sends a request.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::Port;
use crate::abi::dm_op::{self as abi, DmOpArgument};

/// Servers of a guest: `MAX_NR_IOREQ_SERVERS`.
const SERVERS: usize = 8;
/// Ranges of a server and kind: `MAX_NR_IO_RANGES`.
const RANGES: usize = 256;

/// The ioreq servers of one guest.
#[derive(Debug, Default)]
pub(super) struct Servers(BTreeMap<u16, Server>);

#[derive(Debug, Default)]
struct Server {
    enabled: bool,
    /// Ports, memory, PCI functions.
    ranges: [Vec<RangeInclusive<u64>>; 3],
}

impl Servers {
    /// Descriptions of what was not destroyed.
    pub(super) fn list(&self) -> impl Iterator<Item = String> + '_ {
        let server = |(id, server): (&u16, &Server)| {
            let ranges: usize = server.ranges.iter().map(Vec::len).sum();
            format!("ioreq server {id}, {ranges} ranges")
        };
        self.0.iter().map(server)
    }

    fn server(&mut self, id: u16) -> Result<&mut Server, Errno> {
        self.0.get_mut(&id).ok_or(Errno::NOENT)
    }

    fn create(&mut self, mut body: abi::CreateIoreqServer) -> Result<DmOpArgument, Errno> {
        if body.handle_bufioreq > abi::HVM_IOREQSRV_BUFIOREQ_ATOMIC {
            return Err(Errno::INVAL);
        }
        let mut free = (0..SERVERS as u16).filter(|id| !self.0.contains_key(id));
        body.id = free.next().ok_or(Errno::NOSPC)?;
        self.0.insert(body.id, Server::default());
        Ok(DmOpArgument::new(abi::XEN_DMOP_CREATE_IOREQ_SERVER, &body))
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

/// Makes an operation other than `remote_shutdown`: dm_op in xen/common/dm.c and
/// xen/arch/x86/hvm/dm.c.
pub(super) fn dm_op(servers: &mut Servers, argument: &DmOpArgument) -> Result<DmOpArgument, Errno> {
    let done = |()| *argument;
    let answer = |body: &dyn Answer| Ok(body.argument(argument.op));
    let within = |fits: bool| fits.then_some(*argument).ok_or(Errno::INVAL);
    match argument.op {
        abi::XEN_DMOP_CREATE_IOREQ_SERVER => servers.create(body(argument)?),
        abi::XEN_DMOP_GET_IOREQ_SERVER_INFO => {
            let mut info: abi::GetIoreqServerInfo = body(argument)?;
            servers.server(info.id)?;
            info.bufioreq_port = Port::new(0);
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
            servers.server(state.id)?.enabled = state.enabled != 0;
            Ok(*argument)
        }
        abi::XEN_DMOP_DESTROY_IOREQ_SERVER => {
            let server: abi::DestroyIoreqServer = body(argument)?;
            servers.0.remove(&server.id).ok_or(Errno::NOENT)?;
            Ok(*argument)
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
