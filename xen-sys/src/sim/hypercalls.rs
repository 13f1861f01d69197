//! The typed hypercalls of the simulated hypervisor: the structs of the public headers in, the same
//! structs out, as Xen does it.

use std::collections::BTreeMap;
use std::time::Instant;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::device_model::Servers;
use super::domain::State;
use crate::abi::altp2m;
use crate::abi::dm_op::{self as dm, DmOpArgument};
use crate::abi::domctl::{self, Domctl};
use crate::abi::hvm_save;
use crate::abi::hypercall as call;
use crate::abi::sysctl::{self, Sysctl};
#[cfg(target_arch = "x86_64")]
use crate::abi::vcpu::{VGCF_ONLINE, VcpuGuestContext};
use crate::abi::version;
use crate::hvm_save::Records;
use crate::{DomId, PAGE_SIZE, Virq};

/// The version of the simulated hypervisor.
const VERSION: (i64, i64) = (4, 20);
const EXTRA: &str = ".0-simulated";
/// Its command line.
const COMMAND_LINE: &str = "placeholder simulated";
/// Its CPUs, and its memory in pages: 16 GiB.
const CPUS: u32 = 4;
const PAGES: u64 = 16 << 30 >> 12;
/// The shares of domain 0 and of a guest.
const DOM0_PAGES: u64 = 1 << 30 >> 12;
const GUEST_PAGES: u64 = 64 << 20 >> 12;
/// Bytes in the console ring.
const RING: usize = 16 << 10;
/// The highest parameter of an HVM guest, and one: `HVM_NR_PARAMS`.
const PARAMS: u32 = 39;
/// Frames a grant table may have: Xen's default, `max_grant_frames` of xl.cfg.
const GRANT_FRAMES: u32 = 64;
/// The address at which a processor starts.
const RESET_RIP: u64 = 0xfff0;
/// Grants in a frame of version 1.
const GRANTS_PER_FRAME: u32 = 512;

/// The state of one domain that no other part of the simulation uses.
#[derive(Debug)]
pub(super) struct Control {
    hvm: bool,
    pages: u64,
    max_pages: u64,
    pauses: u32,
    shutdown: Option<u8>,
    params: BTreeMap<u32, u64>,
    servers: Servers,
    /// The context it was set to, if it was.
    context: Option<Vec<u8>>,
    /// The registers its virtual CPU was set to, if it was.
    #[cfg(target_arch = "x86_64")]
    vcpu_context: Option<Box<VcpuGuestContext>>,
    /// The guest whose device model it is.
    target: Option<DomId>,
    born: Instant,
    /// A number that no other domain had before.
    unique: u64,
}

impl Control {
    fn new(id: DomId, unique: u64) -> Self {
        let guest = id != DomId::DOM0;
        let pages = if guest { GUEST_PAGES } else { DOM0_PAGES };
        Self {
            hvm: guest,
            pages,
            max_pages: pages,
            pauses: 0,
            shutdown: None,
            params: BTreeMap::new(),
            servers: Servers::default(),
            context: None,
            #[cfg(target_arch = "x86_64")]
            vcpu_context: None,
            target: None,
            born: Instant::now(),
            unique,
        }
    }

    /// Nanoseconds it ran: it needs a hundredth of a CPU.
    fn cpu_time(&self) -> u64 {
        let nanoseconds = self.born.elapsed().as_nanos() / 100;
        u64::try_from(nanoseconds).unwrap_or(u64::MAX)
    }

    fn info(&self, id: DomId) -> domctl::GetDomainInfo {
        let mut info: domctl::GetDomainInfo = zerocopy::FromZeros::new_zeroed();
        let idle = self.pauses == 0 && self.shutdown.is_none();
        info.domain = id;
        info.flags = u32::from(self.hvm) << 1
            | u32::from(self.shutdown.is_some()) << 2
            | u32::from(self.pauses > 0) << 3
            | u32::from(idle && id != DomId::DOM0) << 4
            | u32::from(idle && id == DomId::DOM0) << 5
            | u32::from(self.hvm) << 8
            | u32::from(self.shutdown.unwrap_or_default()) << domctl::XEN_DOMINF_SHUTDOWNSHIFT;
        info.tot_pages = self.pages;
        info.max_pages = self.max_pages;
        info.cpu_time = self.cpu_time();
        info.nr_online_vcpus = 1;
        info.max_vcpu_id = 0;
        if id != DomId::DOM0 {
            info.handle = handle(self.unique);
        }
        info.gpaddr_bits = 48;
        info
    }
}

/// A UUID made from a number: of version 8, which anyone may make.
fn handle(unique: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[6] = 0x80;
    bytes[8..].copy_from_slice(&unique.to_be_bytes());
    bytes[8] |= 0x80;
    bytes
}

/// The hypervisor itself.
#[derive(Debug)]
pub(super) struct Hypervisor {
    domains: BTreeMap<DomId, Control>,
    unique: u64,
    /// The interface versions it takes.
    pub(super) domctl: u32,
    pub(super) sysctl: u32,
    console: Vec<u8>,
    /// The index of the byte behind the last one in `console`.
    end: u32,
}

impl Hypervisor {
    pub(super) fn new() -> Self {
        Self {
            domains: BTreeMap::new(),
            unique: 0,
            domctl: 0x17,
            sysctl: 0x15,
            console: Vec::new(),
            end: 0,
        }
    }

    /// The pages of memory that a domain has, from its guest frame 0 on.
    pub(super) fn pages(&self, id: DomId) -> Option<u64> {
        self.domains.get(&id).map(|domain| domain.pages)
    }

    /// The ioreq servers of a domain.
    pub(super) fn servers(&mut self, id: DomId) -> Option<&mut Servers> {
        self.domains.get_mut(&id).map(|domain| &mut domain.servers)
    }

    /// Descriptions of the ioreq servers that were not destroyed.
    pub(super) fn leaks(&self) -> impl Iterator<Item = String> + '_ {
        let of = |(id, domain): (&DomId, &Control)| {
            let list: Vec<_> = domain.servers.list().collect();
            let id = *id;
            list.into_iter().map(move |s| format!("domain {id}: {s}"))
        };
        self.domains.iter().flat_map(of)
    }

    pub(super) fn created(&mut self, id: DomId) {
        self.domains.insert(id, Control::new(id, self.unique));
        self.unique += 1;
        self.log(&format!("d{id} is created"));
    }

    pub(super) fn destroyed(&mut self, id: DomId) {
        self.domains.remove(&id);
        self.log(&format!("d{id} is destroyed"));
    }

    /// A line on the console.
    fn log(&mut self, line: &str) {
        let line = format!("(XEN) {line}\n");
        self.console.extend_from_slice(line.as_bytes());
        self.end = self.end.wrapping_add(line.len() as u32);
        let beyond = self.console.len().saturating_sub(RING);
        self.console.drain(..beyond);
    }

    /// As `sysctl(readconsole)`: read_console_ring in xen/drivers/char/console.c.
    fn read_console(&mut self, op: &mut sysctl::ReadConsole, room: usize) -> Vec<u8> {
        let start = self.end.wrapping_sub(self.console.len() as u32);
        let ahead = op.index.wrapping_sub(start) as usize;
        let skipped = match op.incremental != 0 && ahead <= self.console.len() {
            true => ahead,
            false => 0,
        };
        let rest = &self.console[skipped..];
        let bytes = rest[..rest.len().min(room).min(op.count as usize)].to_vec();
        let read = skipped + bytes.len();
        op.index = start.wrapping_add(read as u32);
        op.count = bytes.len() as u32;
        if op.clear != 0 {
            self.console.drain(..read);
        }
        bytes
    }
}

/// The reply: the hypercall's result, and the bytes.
type Answer = (i64, Vec<u8>);

/// Makes the hypercall numbered `number` for domain `me`; `room` bounds the bytes of the reply.
pub(super) fn hypercall(
    state: &mut State,
    me: DomId,
    number: u64,
    command: u64,
    bytes: &[u8],
    room: usize,
) -> Result<Answer, Errno> {
    if me != DomId::DOM0 {
        // As the kernel does in a domain without a target: XSA-482.
        return Err(Errno::PERM);
    }
    match number {
        call::HYPERVISOR_XEN_VERSION => xen_version(command, bytes),
        call::HYPERVISOR_DOMCTL => {
            let (op, bytes) = Domctl::read_from_prefix(bytes).map_err(|_| Errno::FAULT)?;
            domctl(state, &op, bytes)
        }
        call::HYPERVISOR_SYSCTL => {
            let (op, bytes) = Sysctl::read_from_prefix(bytes).map_err(|_| Errno::FAULT)?;
            sysctl(state, op, bytes, room)
        }
        // No views, as on a machine without EPT.
        call::HYPERVISOR_HVM_OP if command == altp2m::HVMOP_ALTP2M => Err(Errno::OPNOTSUPP),
        call::HYPERVISOR_HVM_OP => hvm_op(state, command, read(bytes)?),
        call::HYPERVISOR_SCHED_OP if command == call::SCHEDOP_REMOTE_SHUTDOWN => {
            let op: call::SchedRemoteShutdown = read(bytes)?;
            let domain = control(state, op.domain_id)?;
            if domain.shutdown.is_none() {
                domain.shutdown = Some(op.reason as u8);
                state.raise(Virq::DOM_EXC);
            }
            Ok((0, bytes.to_vec()))
        }
        call::HYPERVISOR_DM_OP => {
            let argument: DmOpArgument = read(bytes)?;
            let id = u16::try_from(command).map_err(|_| Errno::SRCH)?;
            let domain = control(state, DomId::new(id))?;
            if id == DomId::DOM0.as_u16() || !domain.hvm {
                // No domain is the device model of itself.
                return Err(Errno::PERM);
            }
            if argument.op != dm::XEN_DMOP_REMOTE_SHUTDOWN {
                let answer = state.dm_op(DomId::new(id), &argument)?;
                return Ok((0, answer.as_bytes().to_vec()));
            }
            let op: dm::RemoteShutdown = argument.body().ok_or(Errno::FAULT)?;
            if domain.shutdown.is_none() {
                domain.shutdown = Some(op.reason as u8);
                state.raise(Virq::DOM_EXC);
            }
            Ok((0, bytes.to_vec()))
        }
        call::HYPERVISOR_EVENT_CHANNEL_OP if command == call::EVTCHNOP_STATUS => {
            let mut op: call::EvtchnStatus = read(bytes)?;
            let domain = myself(op.dom);
            let limit = state.limits(domain)?.ports;
            if op.port.as_u32() > limit {
                return Err(Errno::INVAL);
            }
            (op.status, op.u, op.remote_port) = state.port_status(domain, op.port)?;
            Ok((0, op.as_bytes().to_vec()))
        }
        call::HYPERVISOR_GRANT_TABLE_OP if command == call::GNTTABOP_QUERY_SIZE => {
            let mut op: call::GnttabQuerySize = read(bytes)?;
            match state.grants(myself(op.dom)) {
                Ok(grants) => {
                    op.nr_frames = grants.div_ceil(GRANTS_PER_FRAME).max(1);
                    op.max_nr_frames = GRANT_FRAMES;
                    op.status = call::GNTST_OKAY;
                }
                Err(_) => op.status = call::GNTST_BAD_DOMAIN,
            }
            Ok((0, op.as_bytes().to_vec()))
        }
        call::HYPERVISOR_GRANT_TABLE_OP if command == call::GNTTABOP_GET_VERSION => {
            let mut op: call::GnttabGetVersion = read(bytes)?;
            control(state, op.dom)?;
            op.version = 1;
            Ok((0, op.as_bytes().to_vec()))
        }
        call::HYPERVISOR_MEMORY_OP => {
            let value: fn(&Control) -> u64 = match command {
                call::XENMEM_CURRENT_RESERVATION => |domain| domain.pages,
                call::XENMEM_MAXIMUM_RESERVATION => |domain| domain.max_pages,
                call::XENMEM_MAXIMUM_GPFN => |domain| domain.pages - 1,
                // A simulated domain's memory is where it is.
                _ => return Err(Errno::NOSYS),
            };
            let op: call::MemoryDomain = read(bytes)?;
            let value = value(control(state, op.domid)?);
            Ok((value as i64, bytes.to_vec()))
        }
        _ => Err(Errno::NOSYS),
    }
}

fn read<T: FromBytes>(bytes: &[u8]) -> Result<T, Errno> {
    let read = T::read_from_prefix(bytes);
    read.map(|(value, _)| value).map_err(|_| Errno::FAULT)
}

/// Returns the domain that is meant: all callers are of domain 0.
fn myself(domain: DomId) -> DomId {
    match domain {
        DomId::SELF => DomId::DOM0,
        domain => domain,
    }
}

fn control(state: &mut State, domain: DomId) -> Result<&mut Control, Errno> {
    let domains = &mut state.hypervisor.domains;
    domains.get_mut(&myself(domain)).ok_or(Errno::SRCH)
}

fn xen_version(command: u64, bytes: &[u8]) -> Result<Answer, Errno> {
    let text = |text: &str| {
        let mut padded = vec![0; bytes.len()];
        let len = text.len().min(bytes.len().saturating_sub(1));
        padded[..len].copy_from_slice(&text.as_bytes()[..len]);
        Ok((0, padded))
    };
    let buffer = |text: &[u8]| {
        let len = text.len().min(version::VARBUF_LEN);
        let mut whole = bytes.to_vec();
        let room = whole.get_mut(4..4 + len).ok_or(Errno::FAULT)?;
        room.copy_from_slice(&text[..len]);
        Ok((len as i64, whole))
    };
    let capabilities = "xen-3.0-x86_64 hvm-3.0-x86_64 ";
    let changeset = "simulated";
    match command {
        version::XENVER_VERSION => Ok((VERSION.0 << 16 | VERSION.1, Vec::new())),
        version::XENVER_EXTRAVERSION => text(EXTRA),
        version::XENVER_EXTRAVERSION2 => buffer(EXTRA.as_bytes()),
        version::XENVER_CAPABILITIES => text(capabilities),
        version::XENVER_CAPABILITIES2 => buffer(capabilities.as_bytes()),
        version::XENVER_CHANGESET => text(changeset),
        version::XENVER_CHANGESET2 => buffer(changeset.as_bytes()),
        version::XENVER_COMMANDLINE => text(COMMAND_LINE),
        version::XENVER_COMMANDLINE2 => buffer(COMMAND_LINE.as_bytes()),
        version::XENVER_BUILD_ID => buffer(&[0x5d; 20]),
        version::XENVER_COMPILE_INFO => {
            let mut info: version::CompileInfo = zerocopy::FromZeros::new_zeroed();
            info.compiler[..5].copy_from_slice(b"rustc");
            Ok((0, info.as_bytes().to_vec()))
        }
        version::XENVER_PLATFORM_PARAMETERS => text(""),
        version::XENVER_GET_FEATURES => {
            let mut info: version::FeatureInfo = read(bytes)?;
            if info.submap_idx != 0 {
                return Err(Errno::INVAL);
            }
            // Domain 0, of a kind that shares its address space with Xen.
            info.submap = 1 << 11 | 1 << 17;
            Ok((0, info.as_bytes().to_vec()))
        }
        version::XENVER_PAGESIZE => Ok((PAGE_SIZE as i64, Vec::new())),
        version::XENVER_GUEST_HANDLE => text(""),
        _ => Err(Errno::NOSYS),
    }
}

/// The context of an HVM guest that has done nothing: the records of a header and one CPU.
fn hvm_context() -> Vec<u8> {
    let record = |kind: u16, body: &[u8]| {
        let head = hvm_save::Descriptor {
            typecode: kind,
            instance: 0,
            length: body.len() as u32,
        };
        [head.as_bytes(), body].concat()
    };
    let header = hvm_save::Header {
        magic: hvm_save::FILE_MAGIC,
        version: hvm_save::FILE_VERSION,
        changeset: u64::MAX,
        cpuid: 0,
        gtsc_khz: 2_000_000,
    };
    let mut cpu: hvm_save::Cpu = zerocopy::FromZeros::new_zeroed();
    (cpu.rip, cpu.rflags, cpu.cr0) = (RESET_RIP, 2, 0x6000_0010);
    [
        record(hvm_save::CODE_HEADER, header.as_bytes()),
        record(hvm_save::CODE_CPU, cpu.as_bytes()),
        record(hvm_save::CODE_END, &[]),
    ]
    .concat()
}

/// do_domctl in xen/common/domctl.c: the version, the domain, the operation. The bytes to which an
/// address would lead follow the struct.
fn domctl(state: &mut State, op: &Domctl, bytes: &[u8]) -> Result<Answer, Errno> {
    let stable = op.cmd == domctl::XEN_DOMCTL_GET_DOMAIN_STATE;
    let version = if stable { 0 } else { state.hypervisor.domctl };
    if op.interface_version != version {
        return Err(Errno::ACCESS);
    }
    let mut id = op.domain;
    if op.cmd == domctl::XEN_DOMCTL_GETDOMAININFO && version == 0x15 {
        // Before Xen 4.18: that domain or the next.
        if id.is_reserved() {
            return Err(Errno::INVAL);
        }
        let next = state.hypervisor.domains.range(id..).next();
        id = *next.ok_or(Errno::SRCH)?.0;
    }
    let domain = state.hypervisor.domains.get_mut(&id).ok_or(Errno::SRCH)?;
    let body = |body: &dyn Body| {
        let answer = Domctl {
            domain: id,
            ..body.domctl(op)
        };
        Ok((0, answer.as_bytes().to_vec()))
    };
    match op.cmd {
        domctl::XEN_DOMCTL_GETDOMAININFO => body(&domain.info(id)),
        domctl::XEN_DOMCTL_GET_DOMAIN_STATE => body(&domctl::GetDomainState {
            state: 1 | u16::from(domain.shutdown.is_some()) << 1,
            caps: if id == DomId::DOM0 { 3 } else { 0 },
            pad0: 0,
            unique_id: domain.unique,
        }),
        domctl::XEN_DOMCTL_GETVCPUINFO => {
            let mut info: domctl::GetVcpuInfo = op.body().ok_or(Errno::FAULT)?;
            if info.vcpu != 0 {
                return Err(Errno::INVAL);
            }
            let idle = domain.pauses == 0 && domain.shutdown.is_none();
            info.online = 1;
            info.blocked = (idle && id != DomId::DOM0).into();
            info.running = (idle && id == DomId::DOM0).into();
            info.cpu_time = domain.cpu_time();
            info.cpu = u32::from(id.as_u16()) % CPUS;
            body(&info)
        }
        domctl::XEN_DOMCTL_IOPORT_PERMISSION => {
            let ports: domctl::IoportPermission = op.body().ok_or(Errno::FAULT)?;
            let end = u64::from(ports.first_port) + u64::from(ports.nr_ports);
            match ports.nr_ports > 0 && end <= 1 << 16 {
                true => body(&ports),
                false => Err(Errno::INVAL),
            }
        }
        domctl::XEN_DOMCTL_IOMEM_PERMISSION => {
            let frames: domctl::IomemPermission = op.body().ok_or(Errno::FAULT)?;
            let more = frames.nr_mfns.checked_sub(1).ok_or(Errno::INVAL)?;
            let last = frames.first_mfn.checked_add(more);
            match last.ok_or(Errno::INVAL)? >> 36 {
                0 => body(&frames),
                _ => Err(Errno::PERM),
            }
        }
        // No interrupt and no IOMMU is simulated.
        domctl::XEN_DOMCTL_IRQ_PERMISSION => Err(Errno::PERM),
        domctl::XEN_DOMCTL_ASSIGN_DEVICE
        | domctl::XEN_DOMCTL_TEST_ASSIGN_DEVICE
        | domctl::XEN_DOMCTL_DEASSIGN_DEVICE => Err(Errno::OPNOTSUPP),
        domctl::XEN_DOMCTL_SET_TARGET => {
            let target: domctl::SetTarget = op.body().ok_or(Errno::FAULT)?;
            let hvm = state.hypervisor.domains.get(&target.target);
            let hvm = hvm.ok_or(Errno::SRCH)?.hvm;
            let domain = state.hypervisor.domains.get_mut(&id).ok_or(Errno::SRCH)?;
            match (id == target.target || domain.target.is_some(), hvm) {
                (true, _) => Err(Errno::INVAL),
                (_, false) => Err(Errno::OPNOTSUPP),
                _ => {
                    domain.target = Some(target.target);
                    body(&target)
                }
            }
        }
        domctl::XEN_DOMCTL_MAX_VCPUS => {
            let max: domctl::MaxVcpus = op.body().ok_or(Errno::FAULT)?;
            match max.max {
                1 if id != DomId::DOM0 => body(&max),
                _ => Err(Errno::INVAL),
            }
        }
        domctl::XEN_DOMCTL_GET_ADDRESS_SIZE if domain.hvm => Err(Errno::OPNOTSUPP),
        domctl::XEN_DOMCTL_GET_ADDRESS_SIZE => body(&domctl::AddressSize { size: 64 }),
        #[cfg(target_arch = "x86_64")]
        domctl::XEN_DOMCTL_GETVCPUCONTEXT => {
            let asked: domctl::VcpuContext = op.body().ok_or(Errno::FAULT)?;
            if asked.vcpu != 0 || id == DomId::DOM0 {
                return Err(Errno::INVAL);
            }
            let mut answer = asked.domctl(op).as_bytes().to_vec();
            match &domain.vcpu_context {
                Some(context) => answer.extend_from_slice(context.as_bytes()),
                None => {
                    let mut context: VcpuGuestContext = zerocopy::FromZeros::new_zeroed();
                    context.flags = VGCF_ONLINE;
                    context.user_regs.rip = RESET_RIP;
                    answer.extend_from_slice(context.as_bytes());
                }
            }
            Ok((0, answer))
        }
        #[cfg(target_arch = "x86_64")]
        domctl::XEN_DOMCTL_SETVCPUCONTEXT => {
            let asked: domctl::VcpuContext = op.body().ok_or(Errno::FAULT)?;
            if asked.vcpu != 0 || id == DomId::DOM0 {
                return Err(Errno::INVAL);
            }
            let context = VcpuGuestContext::read_from_bytes(bytes).map_err(|_| Errno::FAULT)?;
            domain.vcpu_context = Some(Box::new(context));
            body(&asked)
        }
        domctl::XEN_DOMCTL_GETHVMCONTEXT => {
            let mut asked: domctl::HvmContext = op.body().ok_or(Errno::FAULT)?;
            if !domain.hvm {
                return Err(Errno::INVAL);
            }
            let context = domain.context.clone().unwrap_or_else(hvm_context);
            let context = fitting(context, asked.buffer, asked.size.into(), Errno::NOSPC)?;
            asked.size = context.0;
            let mut answer = asked.domctl(op).as_bytes().to_vec();
            answer.extend(context.1);
            Ok((0, answer))
        }
        domctl::XEN_DOMCTL_SETHVMCONTEXT => {
            let records = Records::new(bytes).map_err(|_| Errno::INVAL)?;
            if !domain.hvm || records.into_iter().any(|record| record.is_err()) {
                return Err(Errno::INVAL);
            }
            domain.context = Some(bytes.to_vec());
            body(&domctl::HvmContext::default())
        }
        domctl::XEN_DOMCTL_GETHVMCONTEXT_PARTIAL => {
            let mut asked: domctl::HvmContextPartial = op.body().ok_or(Errno::FAULT)?;
            let kinds = [hvm_save::CODE_CPU].map(u32::from);
            if !domain.hvm || !kinds.contains(&asked.kind) {
                return Err(Errno::INVAL);
            }
            let context = domain.context.clone().unwrap_or_else(hvm_context);
            let mut records = Records::new(&context).map_err(|_| Errno::INVAL)?;
            let wanted = (asked.kind, asked.instance);
            let found = records.find_map(|record| {
                let record = record.ok()?;
                let name = (u32::from(record.kind), u32::from(record.instance));
                (name == wanted).then(|| record.body.to_vec())
            });
            let found = found.ok_or(Errno::NOENT)?;
            let found = fitting(found, asked.buffer, asked.bufsz, Errno::NOBUFS)?;
            asked.bufsz = found.0.into();
            let mut answer = asked.domctl(op).as_bytes().to_vec();
            answer.extend(found.1);
            Ok((0, answer))
        }
        domctl::XEN_DOMCTL_PAUSEDOMAIN if id == DomId::DOM0 => Err(Errno::INVAL),
        domctl::XEN_DOMCTL_PAUSEDOMAIN if domain.pauses == 255 => Err(Errno::OVERFLOW),
        domctl::XEN_DOMCTL_PAUSEDOMAIN => {
            domain.pauses += 1;
            body(&domctl::Pause)
        }
        domctl::XEN_DOMCTL_UNPAUSEDOMAIN => {
            domain.pauses = domain.pauses.checked_sub(1).ok_or(Errno::INVAL)?;
            body(&domctl::Unpause)
        }
        domctl::XEN_DOMCTL_MAX_MEM => {
            let max: domctl::MaxMem = op.body().ok_or(Errno::FAULT)?;
            domain.max_pages = max.max_memkb >> 2;
            body(&max)
        }
        domctl::XEN_DOMCTL_DESTROYDOMAIN => {
            state.destroy_domain(id)?;
            body(&domctl::Destroy)
        }
        _ => Err(Errno::NOSYS),
    }
}

/// Returns the length of `bytes`, and the bytes that Xen writes: none if the address is null.
fn fitting(
    bytes: Vec<u8>,
    address: u64,
    room: u64,
    refusal: Errno,
) -> Result<(u32, Vec<u8>), Errno> {
    let len = bytes.len() as u32;
    match address {
        0 => Ok((len, Vec::new())),
        _ if room < u64::from(len) => Err(refusal),
        _ => Ok((len, bytes)),
    }
}

/// A domctl's body, put back into its operation.
trait Body {
    fn domctl(&self, op: &Domctl) -> Domctl;
}

impl<B: IntoBytes + Immutable> Body for B {
    fn domctl(&self, op: &Domctl) -> Domctl {
        Domctl::new(op.cmd, op.interface_version, op.domain, self)
    }
}

/// do_sysctl in xen/common/sysctl.c. The array follows the struct.
fn sysctl(state: &mut State, op: Sysctl, bytes: &[u8], room: usize) -> Result<Answer, Errno> {
    let hypervisor = &mut state.hypervisor;
    if op.interface_version != hypervisor.sysctl {
        return Err(Errno::ACCESS);
    }
    let room = room.saturating_sub(size_of::<Sysctl>());
    let answer = |body: &dyn SysctlBody, array: &[u8]| {
        let mut bytes = body.sysctl(&op).as_bytes().to_vec();
        bytes.extend_from_slice(&array[..array.len().min(room)]);
        Ok((0, bytes))
    };
    match op.cmd {
        sysctl::XEN_SYSCTL_GETDOMAININFOLIST => {
            let mut list: sysctl::GetDomainInfoList = op.body().ok_or(Errno::FAULT)?;
            let domains = hypervisor.domains.range(list.first_domain..);
            let domains = domains.take(list.max_domains as usize);
            let infos: Vec<_> = domains.map(|(&id, domain)| domain.info(id)).collect();
            list.num_domains = infos.len() as u32;
            answer(&list, infos.as_bytes())
        }
        sysctl::XEN_SYSCTL_PHYSINFO => {
            let used: u64 = hypervisor.domains.values().map(|d| d.pages).sum();
            let info = sysctl::PhysInfo {
                threads_per_core: 1,
                cores_per_socket: CPUS,
                nr_cpus: CPUS,
                max_cpu_id: CPUS - 1,
                nr_nodes: 1,
                cpu_khz: 2_000_000,
                // HVM and PV guests, HAP and shadow, grant tables of version 1.
                capabilities: 0b1_0001_1011,
                total_pages: PAGES,
                free_pages: PAGES.saturating_sub(used),
                max_mfn: PAGES - 1,
                ..sysctl::PhysInfo::default()
            };
            answer(&info, &[])
        }
        sysctl::XEN_SYSCTL_CPUTOPOINFO => {
            let mut info: sysctl::CpuTopoInfo = op.body().ok_or(Errno::FAULT)?;
            info.num_cpus = info.num_cpus.min(CPUS);
            let cpu = |core| sysctl::CpuTopo {
                core,
                socket: 0,
                node: 0,
            };
            let cpus: Vec<_> = (0..info.num_cpus).map(cpu).collect();
            answer(&info, cpus.as_bytes())
        }
        sysctl::XEN_SYSCTL_GETCPUINFO => {
            let mut info: sysctl::GetCpuInfo = op.body().ok_or(Errno::FAULT)?;
            info.nr_cpus = info.max_cpus.min(CPUS);
            let idle: Vec<_> = (0..info.nr_cpus)
                .map(|cpu| sysctl::CpuInfo {
                    idletime: 1_000_000_000 * u64::from(cpu + 1),
                })
                .collect();
            answer(&info, idle.as_bytes())
        }
        sysctl::XEN_SYSCTL_DEBUG_KEYS => {
            let keys: sysctl::DebugKeys = op.body().ok_or(Errno::FAULT)?;
            let pressed = bytes.get(..keys.nr_keys as usize).ok_or(Errno::FAULT)?;
            for &key in pressed {
                hypervisor.log(&format!("'{}' pressed", char::from(key)));
            }
            answer(&keys, &[])
        }
        // As on a machine whose ACPI tables have none.
        sysctl::XEN_SYSCTL_GET_PMSTAT | sysctl::XEN_SYSCTL_PM_OP => Err(Errno::NODEV),
        sysctl::XEN_SYSCTL_NUMAINFO => {
            let mut info: sysctl::NumaInfo = op.body().ok_or(Errno::FAULT)?;
            if info.distance != 0 {
                info.num_nodes = info.num_nodes.min(1);
                return answer(&info, &[10_u32].as_bytes()[..info.num_nodes as usize * 4]);
            }
            let used: u64 = hypervisor.domains.values().map(|d| d.pages).sum();
            let node = sysctl::MemInfo {
                memsize: PAGES * PAGE_SIZE as u64,
                memfree: PAGES.saturating_sub(used) * PAGE_SIZE as u64,
            };
            info.num_nodes = info.num_nodes.min(1);
            answer(&info, &[node].as_bytes()[..info.num_nodes as usize * 16])
        }
        sysctl::XEN_SYSCTL_READCONSOLE => {
            let mut read: sysctl::ReadConsole = op.body().ok_or(Errno::FAULT)?;
            let bytes = hypervisor.read_console(&mut read, room);
            answer(&read, &bytes)
        }
        _ => Err(Errno::NOSYS),
    }
}

/// A sysctl's body, put back into its operation.
trait SysctlBody {
    fn sysctl(&self, op: &Sysctl) -> Sysctl;
}

impl<B: IntoBytes + Immutable> SysctlBody for B {
    fn sysctl(&self, op: &Sysctl) -> Sysctl {
        Sysctl::new(op.cmd, op.interface_version, self)
    }
}

fn hvm_op(state: &mut State, command: u64, mut op: call::HvmParamOp) -> Result<Answer, Errno> {
    if op.index >= PARAMS {
        return Err(Errno::INVAL);
    }
    let domain = control(state, op.domid)?;
    if !domain.hvm {
        return Err(Errno::INVAL);
    }
    match command {
        call::HVMOP_GET_PARAM => op.value = domain.params.get(&op.index).copied().unwrap_or(0),
        call::HVMOP_SET_PARAM => drop(domain.params.insert(op.index, op.value)),
        _ => return Err(Errno::NOSYS),
    }
    Ok((0, op.as_bytes().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_count_of_frames_or_ports_ends_the_broker() {
        let set = std::fs::File::open("/dev/null").unwrap();
        let mut state = State::new(std::sync::Arc::new(set.into()), |token| token);
        let version = state.hypervisor.domctl;
        let mut errno = |op: Domctl| domctl(&mut state, &op, &[]).err();
        for (first, count) in [(0, 0), (1, u64::MAX), (u64::MAX, 1)] {
            let frames = domctl::IomemPermission {
                first_mfn: first,
                nr_mfns: count,
                ..domctl::IomemPermission::default()
            };
            let command = domctl::XEN_DOMCTL_IOMEM_PERMISSION;
            let refused = errno(Domctl::new(command, version, DomId::DOM0, &frames));
            assert!(refused.is_some(), "{frames:?}");
        }
        for (first, count) in [(0, 0), (u32::MAX, u32::MAX)] {
            let ports = domctl::IoportPermission {
                first_port: first,
                nr_ports: count,
                ..domctl::IoportPermission::default()
            };
            let command = domctl::XEN_DOMCTL_IOPORT_PERMISSION;
            let refused = errno(Domctl::new(command, version, DomId::DOM0, &ports));
            assert!(refused.is_some(), "{ports:?}");
        }
    }
}
