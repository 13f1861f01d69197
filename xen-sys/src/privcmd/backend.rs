//! Where the typed calls lead: privcmd's driver, or a simulated host's broker. Both take and return
//! Xen's own structs, so that the conversion above them is the same.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

#[cfg(feature = "sim")]
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::pool::{Buffer, Pool};
#[cfg(feature = "sim")]
use crate::abi::dm_op;
use crate::abi::{domctl, sysctl};
use crate::ioctl::privcmd::{
    DmOpBody, DomctlBody, DomctlBytes, FrameList, Operation, PrivCmd, SysctlArea, SysctlArray,
    SysctlBody, array_buffer, bytes_buffer, domctls_buffer, list_buffer,
};
use crate::{DomId, Error, Host, PAGE_SIZE, Result, Xen};

/// An open privcmd, and the properties of the hypervisor behind it that were determined so far.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(super) xen: Xen,
    pub(super) dev: Device,
    pool: Pool,
    /// The interface versions found, or 0.
    domctl: AtomicU32,
    sysctl: AtomicU32,
}

/// The device, or the stand-in for its descriptor on a simulated host.
#[derive(Debug)]
pub(super) enum Device {
    Real(PrivCmd),
    #[cfg(feature = "sim")]
    Simulated(OwnedFd),
}

/// The two interfaces that have versions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Interface {
    Domctl,
    Sysctl,
}

impl Backend {
    pub(super) fn open(xen: &Xen) -> Result<Self> {
        match xen.host() {
            Host::Dev(root) => Ok(Self::new(xen, Device::Real(PrivCmd::open(root)?))),
            #[cfg(feature = "sim")]
            Host::Sim(_) => {
                let null = std::fs::File::open("/dev/null");
                let fd = null.map_err(|e| Error::os("open privcmd", e))?.into();
                Ok(Self::new(xen, Device::Simulated(fd)))
            }
        }
    }

    pub(super) fn adopt(xen: &Xen, fd: OwnedFd) -> Result<Self> {
        match xen.host() {
            Host::Dev(root) => Ok(Self::new(xen, Device::Real(PrivCmd::adopt(root, fd)?))),
            #[cfg(feature = "sim")]
            Host::Sim(_) => Err(Error::Unsupported { op: "privcmd" }),
        }
    }

    fn new(xen: &Xen, dev: Device) -> Self {
        Self {
            xen: xen.clone(),
            dev,
            pool: Pool::default(),
            domctl: AtomicU32::new(0),
            sysctl: AtomicU32::new(0),
        }
    }

    /// Returns the device, for operations that a simulated host does not have.
    pub(super) fn device(&self, op: &'static str) -> Result<&PrivCmd> {
        match &self.dev {
            Device::Real(dev) => Ok(dev),
            #[allow(unreachable_patterns)]
            _ => Err(Error::Unsupported { op }),
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match &self.dev {
            Device::Real(dev) => dev.as_fd(),
            #[cfg(feature = "sim")]
            Device::Simulated(fd) => fd.as_fd(),
        }
    }

    pub(super) fn buffer(&self, len: usize) -> Result<Buffer<'_>> {
        match self.xen.host() {
            Host::Dev(root) => self.pool.take(root, len),
            #[cfg(feature = "sim")]
            Host::Sim(_) => Err(Error::Unsupported {
                op: "allocate a hypercall buffer",
            }),
        }
    }

    /// `xen_version` for an operation without an argument.
    pub(super) fn xen_version(&self, name: &'static str, command: u64) -> Result<i64> {
        self.named(name, None, || match (&self.dev, self.xen.host()) {
            (Device::Real(dev), _) => dev.xen_version(name, command),
            #[cfg(feature = "sim")]
            (_, Host::Sim(client)) => {
                let call = crate::abi::hypercall::HYPERVISOR_XEN_VERSION;
                client.hypercall(name, call, command, &[], 0).map(|a| a.0)
            }
            #[allow(unreachable_patterns)]
            _ => Err(Error::Unsupported { op: name }),
        })
    }

    /// Makes an operation whose argument is one struct; `domain` is the domain that it is about.
    pub(crate) fn operation<A: Operation>(
        &self,
        domain: Option<DomId>,
        argument: A,
    ) -> Result<(i64, A)> {
        self.named(A::NAME, domain, || match (&self.dev, self.xen.host()) {
            (Device::Real(dev), _) => {
                let mut buffer = self.buffer(PAGE_SIZE.max(size_of::<A>()))?;
                dev.operation(&mut buffer, argument)
            }
            #[cfg(feature = "sim")]
            (_, Host::Sim(client)) => {
                let argument = argument.bounded();
                let bytes = argument.as_bytes();
                let (value, bytes) =
                    client.hypercall(A::NAME, A::CALL, A::COMMAND, bytes, bytes.len())?;
                let argument = A::read_from_prefix(&bytes).map_or(argument, |(a, _)| a);
                Ok((value, argument))
            }
            #[allow(unreachable_patterns)]
            _ => Err(Error::Unsupported { op: A::NAME }),
        })
    }

    /// A memory operation on frames of `domain`, each with a byte or with none at all.
    pub(crate) fn frame_list<L: FrameList>(
        &self,
        domain: DomId,
        argument: L,
        frames: &[u64],
        each: &[u8],
    ) -> Result<()> {
        let done = self.named(L::NAME, Some(domain), || {
            let dev = self.device(L::NAME)?;
            let mut buffer = self.buffer(list_buffer(frames.len()))?;
            dev.frame_list(&mut buffer, argument, frames, each)
        })?;
        // A reservation that ends early returns how many of the frames were done.
        let whole = !L::COUNTS || u64::try_from(done).is_ok_and(|n| n == frames.len() as u64);
        match whole {
            true => Ok(()),
            false => Err(Error::os(
                L::NAME,
                std::io::Error::from_raw_os_error(libc::ENOMEM),
            )),
        }
    }

    fn domctl_of<B: DomctlBody>(
        &self,
        interface: u32,
        domain: DomId,
        body: B,
    ) -> Result<(DomId, B)> {
        match (&self.dev, self.xen.host()) {
            (Device::Real(dev), _) => {
                let mut buffer = self.buffer(PAGE_SIZE)?;
                dev.domctl(&mut buffer, interface, domain, body)
            }
            #[cfg(feature = "sim")]
            (_, Host::Sim(client)) => {
                let whole = domctl::Domctl::new(B::COMMAND, interface, domain, &body);
                let call = crate::abi::hypercall::HYPERVISOR_DOMCTL;
                let bytes = whole.as_bytes();
                let (_, bytes) = client.hypercall(B::NAME, call, 0, bytes, bytes.len())?;
                let whole = domctl::Domctl::read_from_prefix(&bytes).map_or(whole, |(w, _)| w);
                Ok((whole.domain, whole.body().unwrap_or(body)))
            }
            #[allow(unreachable_patterns)]
            _ => Err(Error::Unsupported { op: B::NAME }),
        }
    }

    /// A domctl; returns the domain that Xen answered for, and the body.
    pub(crate) fn domctl<B: DomctlBody>(&self, domain: DomId, body: B) -> Result<(DomId, B)> {
        let interface = match B::STABLE {
            true => 0,
            false => self.domctl_version()?,
        };
        self.named(B::NAME, Some(domain), || {
            self.domctl_of(interface, domain, body)
        })
    }

    /// A domctl that reads or fills `bytes`; returns the body.
    pub(crate) fn domctl_bytes<B: DomctlBytes>(
        &self,
        domain: DomId,
        body: B,
        bytes: &mut [u8],
    ) -> Result<B> {
        let interface = self.domctl_version()?;
        self.named(B::NAME, Some(domain), || {
            match (&self.dev, self.xen.host()) {
                (Device::Real(dev), _) => {
                    let len = bytes_buffer(bytes.len().max(B::LEAST));
                    let mut buffer = self.buffer(len)?;
                    dev.domctl_bytes(&mut buffer, interface, domain, body, bytes)
                }
                #[cfg(feature = "sim")]
                (_, Host::Sim(client)) => {
                    let there = u64::from(!bytes.is_empty());
                    let body = body.set_bytes(there, bytes.len().try_into().unwrap_or(0));
                    let whole = domctl::Domctl::new(B::COMMAND, interface, domain, &body);
                    let call = crate::abi::hypercall::HYPERVISOR_DOMCTL;
                    let sent = [whole.as_bytes(), &*bytes].concat();
                    let (_, answer) = client.hypercall(B::NAME, call, 0, &sent, sent.len())?;
                    let Ok((whole, back)) = domctl::Domctl::read_from_prefix(&answer) else {
                        return Ok(body);
                    };
                    let len = back.len().min(bytes.len());
                    bytes[..len].copy_from_slice(&back[..len]);
                    Ok(whole.body().unwrap_or(body))
                }
                #[allow(unreachable_patterns)]
                _ => Err(Error::Unsupported { op: B::NAME }),
            }
        })
    }

    /// A sysctl that reads or fills the start of `area`; returns the body.
    pub(super) fn sysctl_area<B: SysctlArea>(&self, body: B, area: &mut [u8]) -> Result<B> {
        let interface = self.sysctl_version()?;
        self.named(B::NAME, None, || match (&self.dev, self.xen.host()) {
            (Device::Real(dev), _) => {
                let mut buffer = self.buffer(bytes_buffer(B::LEN))?;
                dev.sysctl_area(&mut buffer, interface, body, area)
            }
            #[cfg(feature = "sim")]
            (_, Host::Sim(client)) => {
                // No state of power management is simulated, so the reply is always short.
                let whole = sysctl::Sysctl::new(B::COMMAND, interface, &body.place(0));
                let call = crate::abi::hypercall::HYPERVISOR_SYSCTL;
                let sent = match area.get(..B::LEN.min(PAGE_SIZE)) {
                    Some(area) => [whole.as_bytes(), area].concat(),
                    None => whole.as_bytes().to_vec(),
                };
                let room = size_of::<sysctl::Sysctl>();
                let (_, answer) = client.hypercall(B::NAME, call, 0, &sent, room)?;
                let whole = sysctl::Sysctl::read_from_prefix(&answer).map_or(whole, |(w, _)| w);
                Ok(whole.body().unwrap_or(body))
            }
            #[allow(unreachable_patterns)]
            _ => Err(Error::Unsupported { op: B::NAME }),
        })
    }

    /// The same domctl on several domains, by one hypercall where that is possible.
    pub(crate) fn domctls<B: DomctlBody>(
        &self,
        domains: &[DomId],
        body: B,
    ) -> Result<Vec<Result<(DomId, B)>>> {
        let interface = self.domctl_version()?;
        let Ok(dev) = self.device(B::NAME) else {
            return Ok(domains.iter().map(|&d| self.domctl(d, body)).collect());
        };
        let mut results = Vec::with_capacity(domains.len());
        for domains in domains.chunks(64) {
            let answers = self.named(B::NAME, None, || {
                let mut buffer = self.buffer(domctls_buffer(domains.len()))?;
                dev.domctls(&mut buffer, interface, domains, body)
            })?;
            for (&domain, (value, answered, body)) in domains.iter().zip(answers) {
                results.push(self.named(B::NAME, Some(domain), || {
                    if value >= 0 {
                        return Ok((answered, body));
                    }
                    let errno = i32::try_from(value.unsigned_abs()).unwrap_or(libc::EIO);
                    let source = std::io::Error::from_raw_os_error(errno);
                    Err(Error::os(B::NAME, source))
                }));
            }
        }
        Ok(results)
    }

    /// A sysctl.
    pub(super) fn sysctl<B: SysctlBody>(&self, body: B) -> Result<B> {
        let interface = self.sysctl_version()?;
        self.named(B::NAME, None, || self.sysctl_of(interface, body))
    }

    fn sysctl_of<B: SysctlBody>(&self, interface: u32, body: B) -> Result<B> {
        match (&self.dev, self.xen.host()) {
            (Device::Real(dev), _) => dev.sysctl(&mut *self.buffer(PAGE_SIZE)?, interface, body),
            #[cfg(feature = "sim")]
            (_, Host::Sim(client)) => {
                let whole = sysctl::Sysctl::new(B::COMMAND, interface, &body);
                let call = crate::abi::hypercall::HYPERVISOR_SYSCTL;
                let bytes = whole.as_bytes();
                let (_, bytes) = client.hypercall(B::NAME, call, 0, bytes, bytes.len())?;
                let whole = sysctl::Sysctl::read_from_prefix(&bytes).map_or(whole, |(w, _)| w);
                Ok(whole.body().unwrap_or(body))
            }
            #[allow(unreachable_patterns)]
            _ => Err(Error::Unsupported { op: B::NAME }),
        }
    }

    /// A sysctl that fills an array of at most `items` items.
    pub(super) fn sysctl_array<B: SysctlArray>(
        &self,
        body: B,
        items: u32,
    ) -> Result<(B, Vec<B::Item>)> {
        let interface = self.sysctl_version()?;
        self.named(B::NAME, None, || match (&self.dev, self.xen.host()) {
            (Device::Real(dev), _) => {
                let mut buffer = self.buffer(array_buffer::<B>(items))?;
                dev.sysctl_array(&mut buffer, interface, body, items)
            }
            #[cfg(feature = "sim")]
            (_, Host::Sim(client)) => {
                let body = body.set_array(1, items);
                let whole = sysctl::Sysctl::new(B::COMMAND, interface, &body);
                let call = crate::abi::hypercall::HYPERVISOR_SYSCTL;
                let bytes = whole.as_bytes();
                let room = array_buffer::<B>(items);
                let (_, bytes) = client.hypercall(B::NAME, call, 0, bytes, room)?;
                let Ok((whole, array)) = sysctl::Sysctl::read_from_prefix(&bytes) else {
                    return Ok((body, Vec::new()));
                };
                let body: B = whole.body().unwrap_or(body);
                let items = body.items().min(items) as usize;
                let chunks = array.chunks_exact(size_of::<B::Item>()).take(items);
                let items = chunks.filter_map(|bytes| B::Item::read_from_bytes(bytes).ok());
                Ok((body, items.collect()))
            }
            #[allow(unreachable_patterns)]
            _ => Err(Error::Unsupported { op: B::NAME }),
        })
    }

    /// The version of Xen's domctl interface.
    pub(crate) fn domctl_version(&self) -> Result<u32> {
        self.version(Interface::Domctl, || {
            // Xen checks the version first and the domain next, before any privilege: it fails
            // because of an impossible domain only when the version is right.
            let body = domctl::GetVcpuInfo::default();
            move |version| self.domctl_of(version, DomId::INVALID, body).map(drop)
        })
    }

    /// The version of Xen's sysctl interface.
    pub(super) fn sysctl_version(&self) -> Result<u32> {
        self.version(Interface::Sysctl, || {
            // Here Xen checks a privilege next.
            move |version| {
                self.sysctl_of(version, sysctl::PhysInfo::default())
                    .map(drop)
            }
        })
    }

    /// Returns the version that is known, or that `ask` finds to be the hypervisor's.
    fn version<F: Fn(u32) -> Result<()>>(
        &self,
        which: Interface,
        ask: impl FnOnce() -> F,
    ) -> Result<u32> {
        let (op, known, versions) = match which {
            Interface::Domctl => ("domctl", &self.domctl, domctl::INTERFACE_VERSIONS),
            Interface::Sysctl => ("sysctl", &self.sysctl, sysctl::INTERFACE_VERSIONS),
        };
        match known.load(Ordering::Relaxed) {
            0 => {}
            version => return Ok(version),
        }
        let ask = ask();
        for version in versions.clone().rev() {
            match ask(version) {
                Err(e) if e.errno() == Some(libc::EACCES) => {}
                // The call itself failed, perhaps before Xen checked the version.
                Err(e) if e.errno() == Some(libc::EPERM) && self.refuses_hypercalls() => {
                    return Err(Error::HypercallsRefused { op });
                }
                Err(
                    e @ (Error::Unsupported { .. } | Error::Device { .. } | Error::Invalid { .. }),
                ) => return Err(e),
                Err(e) if matches!(e.errno(), Some(libc::ENOTTY | libc::ENOMEM | libc::EFAULT)) => {
                    return Err(e);
                }
                _ => {
                    known.store(version, Ordering::Relaxed);
                    return Ok(version);
                }
            }
        }
        Err(Error::InterfaceVersion {
            op,
            lowest: *versions.start(),
            highest: *versions.end(),
        })
    }

    /// A device-model operation, as [`PrivCmd::dm_op`].
    pub(super) fn dm_op<B: DmOpBody>(
        &self,
        domain: DomId,
        body: B,
        second: &mut [u8],
    ) -> Result<B> {
        match (&self.dev, self.xen.host()) {
            (Device::Real(dev), _) => dev.dm_op(domain, body, second),
            #[cfg(feature = "sim")]
            (_, Host::Sim(client)) if second.is_empty() => {
                let argument = dm_op::DmOpArgument::new(B::COMMAND, &body);
                let call = crate::abi::hypercall::HYPERVISOR_DM_OP;
                let (bytes, domain) = (argument.as_bytes(), u64::from(domain.as_u16()));
                let (_, bytes) = client.hypercall(B::NAME, call, domain, bytes, bytes.len())?;
                let answer = dm_op::DmOpArgument::read_from_prefix(&bytes);
                Ok(answer.map_or(body, |(a, _)| a.body().unwrap_or(body)))
            }
            #[allow(unreachable_patterns)]
            _ => Err(Error::Unsupported { op: B::NAME }),
        }
    }

    /// Returns whether even a call fails that Xen allows every domain: then the kernel refused it.
    pub(super) fn refuses_hypercalls(&self) -> bool {
        let op = crate::abi::version::XENVER_VERSION;
        let asked = match (&self.dev, self.xen.host()) {
            (Device::Real(dev), _) => dev.xen_version("XENVER_version", op),
            #[cfg(feature = "sim")]
            (_, Host::Sim(client)) => {
                let call = crate::abi::hypercall::HYPERVISOR_XEN_VERSION;
                let answer = client.hypercall("XENVER_version", call, op, &[], 0);
                answer.map(|a| a.0)
            }
            #[allow(unreachable_patterns)]
            _ => return false,
        };
        asked.err().and_then(|e| e.errno()) == Some(libc::EPERM)
    }

    /// Makes a call, and converts its errno to the error that names the cause.
    pub(super) fn named<T>(
        &self,
        op: &'static str,
        domain: Option<DomId>,
        call: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let source = match call() {
            Err(Error::Os { source, .. }) => source,
            result => return result,
        };
        Err(match source.raw_os_error() {
            Some(libc::EPERM) if self.refuses_hypercalls() => Error::HypercallsRefused { op },
            Some(libc::EPERM | libc::EACCES) => Error::NotPermitted { op, source },
            Some(libc::ESRCH) if domain.is_some() => Error::NoDomain {
                op,
                domain: domain.unwrap_or(DomId::INVALID),
            },
            Some(libc::ENOSYS) => Error::Unsupported { op },
            Some(libc::ENOSPC | libc::E2BIG) => Error::LimitReached {
                op,
                limit: None,
                source,
            },
            _ => Error::Os { op, source },
        })
    }
}
