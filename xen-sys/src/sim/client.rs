//! A process of a simulated domain: its connection to the broker.
//!
//! Each method is one request and its reply. The sibling crates make ports and pages from the
//! replies.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect,
    socket_with,
};
use zerocopy::IntoBytes;

use super::wire::{self, Packet, Reply, Request};
use crate::mmap::{Pages, Protection};
use crate::{DomId, Error, GrantRef, Port, Result, Virq};

/// A process of one domain of a simulated host.
#[derive(Debug)]
pub struct Client {
    /// One request at a time.
    socket: Mutex<OwnedFd>,
    domain: DomId,
    /// The number of notifies that still succeed, plus one, and the errno after that. 0: all
    /// succeed.
    notify_fault: AtomicU64,
    overflows: AtomicU64,
}

/// A port and its eventfds.
#[derive(Debug)]
pub struct Bound {
    /// The local port.
    pub port: Port,
    /// Readable when an event has arrived; reading takes it.
    pub wait: OwnedFd,
    /// Written to send an event.
    pub ring: OwnedFd,
}

/// Pages, mapped, and the number by which they are given back.
#[derive(Debug)]
pub struct Got {
    /// For [`Client::release`] and [`Client::set_unmap_notify`].
    pub object: u64,
    /// The references, of pages that were shared.
    pub refs: Box<[GrantRef]>,
    /// The mapping.
    pub pages: Pages,
}

impl Client {
    /// Joins as a process of `domain`, or of the domain that the connection was made for.
    pub(crate) fn new(socket: OwnedFd, domain: Option<DomId>) -> Result<Self> {
        let mut client = Self {
            socket: Mutex::new(socket),
            domain: DomId::INVALID,
            notify_fault: AtomicU64::new(0),
            overflows: AtomicU64::new(0),
        };
        let a = domain.map_or(wire::ANY_DOMAIN, |d| d.as_u16().into());
        let hello = client.call("join a simulated host", wire::HELLO, a, 0)?;
        client.domain = domain_of(hello.head.a);
        Ok(client)
    }

    /// Connects to a broker's socket.
    pub(crate) fn connect(path: &Path, domain: DomId) -> Result<Self> {
        let op = "connect to a simulated host";
        let error = |e: rustix::io::Errno| Error::os(op, e.into());
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(error)?;
        let address = SocketAddrUnix::new(path).map_err(error)?;
        connect(&socket, &address).map_err(|e| Error::Device {
            path: path.into(),
            source: io::Error::from(e).into(),
        })?;
        Self::new(socket, Some(domain))
    }

    /// Makes the `nth` next notify through this handle (the first is 1) and all after it fail with
    /// `errno`, until it is called again; an `nth` of 0 ends the fault.
    ///
    /// A notify bypasses the broker, so this fault belongs to a handle.
    pub fn fail_notify(&self, nth: u32, errno: i32) {
        let fault = u64::from(nth) << 32 | u64::from(errno.unsigned_abs());
        self.notify_fault.store(fault, Ordering::Release);
    }

    /// For xen-evtchn, before each notify.
    ///
    /// # Errors
    ///
    /// The error set by [`fail_notify`](Self::fail_notify).
    #[doc(hidden)]
    #[inline]
    pub fn before_notify(&self) -> std::result::Result<(), i32> {
        if self.notify_fault.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let count_down = |fault: u64| match fault >> 32 {
            0 | 1 => None,
            nth => Some((nth - 1) << 32 | fault & 0xffff_ffff),
        };
        let order = (Ordering::AcqRel, Ordering::Acquire);
        match self.notify_fault.fetch_update(order.0, order.1, count_down) {
            Err(fault) if fault >> 32 == 1 => Err((fault & 0xffff_ffff) as i32),
            _ => Ok(()),
        }
    }

    /// Overflows the event buffer of each set of event channels that was opened through this
    /// handle. Pending and later events are lost, their ports stay masked, and every read fails
    /// until the set is reset, as on a kernel before Linux 4.10.
    ///
    /// Events bypass the broker, so this fault belongs to a handle.
    pub fn overflow_events(&self) {
        self.overflows.fetch_add(1, Ordering::AcqRel);
    }

    /// For xen-evtchn: how many times the buffer has overflowed.
    #[doc(hidden)]
    #[inline]
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Acquire)
    }

    /// Returns the domain this is a process of.
    #[must_use]
    pub fn domain(&self) -> DomId {
        self.domain
    }

    /// A request without object or numbers.
    fn call(&self, name: &'static str, op: u32, a: u32, b: u32) -> Result<Packet<Reply>> {
        let request = Request {
            op,
            a,
            b,
            ..Request::default()
        };
        self.exchange(name, request, &[], 0)
    }

    /// Sends a request and receives its reply, of at most `pages` pages.
    fn exchange(
        &self,
        name: &'static str,
        request: Request,
        numbers: &[u32],
        pages: usize,
    ) -> Result<Packet<Reply>> {
        let error = |e: rustix::io::Errno| Error::os(name, e.into());
        let mut buffer = vec![0; size_of::<Reply>() + 2 * pages * size_of::<u32>()];
        let reply = {
            // A thread that panicked here may have left a reply unread.
            let Ok(socket) = self.socket.lock() else {
                return Err(error(rustix::io::Errno::CONNRESET));
            };
            let socket = socket.as_fd();
            wire::send(socket, request.as_bytes(), numbers, &[], SendFlags::empty())
                .map_err(error)?;
            wire::receive::<Reply>(socket, &mut buffer, RecvFlags::empty()).map_err(error)?
        };
        // The domain was destroyed, or the host has ended.
        let reply = reply.ok_or_else(|| error(rustix::io::Errno::CONNRESET))?;
        if reply.head.errno != 0 {
            return Err(Error::os(
                name,
                io::Error::from_raw_os_error(reply.head.errno),
            ));
        }
        Ok(reply)
    }

    /// Opens a port that `remote` may bind to.
    ///
    /// # Errors
    ///
    /// As `EVTCHNOP_alloc_unbound`.
    pub fn bind_unbound(&self, remote: DomId) -> Result<Bound> {
        let name = "IOCTL_EVTCHN_BIND_UNBOUND_PORT";
        bound(
            name,
            self.call(name, wire::BIND_UNBOUND, remote.as_u16().into(), 0)?,
        )
    }

    /// Binds a port to `port` of `remote`.
    ///
    /// # Errors
    ///
    /// As `EVTCHNOP_bind_interdomain`.
    pub fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<Bound> {
        let name = "IOCTL_EVTCHN_BIND_INTERDOMAIN";
        let (a, b) = (remote.as_u16().into(), port.as_u32());
        bound(name, self.call(name, wire::BIND_INTERDOMAIN, a, b)?)
    }

    /// Binds a port to a virtual interrupt.
    ///
    /// # Errors
    ///
    /// As `EVTCHNOP_bind_virq`.
    pub fn bind_virq(&self, virq: Virq) -> Result<Bound> {
        let name = "IOCTL_EVTCHN_BIND_VIRQ";
        bound(name, self.call(name, wire::BIND_VIRQ, virq.as_u32(), 0)?)
    }

    /// Closes a port.
    ///
    /// # Errors
    ///
    /// `ENOTCONN` when this process does not hold it.
    pub fn unbind(&self, port: Port) -> Result<()> {
        self.call("IOCTL_EVTCHN_UNBIND", wire::UNBIND, port.as_u32(), 0)
            .map(drop)
    }

    /// Makes pages and grants them.
    ///
    /// # Errors
    ///
    /// As gntalloc; [`Error::Invalid`] beyond 8192 pages.
    pub fn share(&self, to: DomId, writable: bool, pages: usize) -> Result<Got> {
        const NAME: &str = "IOCTL_GNTALLOC_ALLOC_GREF";
        let request = Request {
            op: wire::SHARE,
            a: to.as_u16().into(),
            b: checked(NAME, pages)?,
            c: writable.into(),
            object: 0,
        };
        let reply = self.exchange(NAME, request, &[], pages)?;
        self.got(NAME, reply, pages, pages, Protection::ReadWrite)
    }

    /// Maps pages of another domain.
    ///
    /// # Errors
    ///
    /// As gntdev; [`Error::Invalid`] beyond 8192 pages.
    pub fn map(&self, from: DomId, refs: &[GrantRef], protection: Protection) -> Result<Got> {
        const NAME: &str = "mmap /dev/xen/gntdev";
        checked(NAME, refs.len())?;
        let request = Request {
            op: wire::MAP,
            a: from.as_u16().into(),
            b: (protection == Protection::ReadWrite).into(),
            ..Request::default()
        };
        let numbers: Vec<u32> = refs.iter().map(|r| r.as_u32()).collect();
        let reply = self.exchange(NAME, request, &numbers, refs.len())?;
        self.got(NAME, reply, 0, refs.len(), protection)
    }

    /// For xen-gnttab: returns how many pages this domain's processes may share, how many they may
    /// map, and how many of those they have mapped.
    ///
    /// # Errors
    ///
    /// When the domain or the host has ended.
    #[doc(hidden)]
    pub fn grant_limits(&self) -> Result<[u32; 3]> {
        const NAME: &str = "limits of grants";
        let request = Request {
            op: wire::GRANT_LIMITS,
            ..Request::default()
        };
        let reply = self.exchange(NAME, request, &[], 2)?;
        let numbers = <[u32; 3]>::try_from(reply.numbers);
        numbers.map_err(|_| Error::os(NAME, io::ErrorKind::InvalidData.into()))
    }

    /// Maps the pages of a reply: `refs` references, then `pages` frames of a memory.
    fn got(
        &self,
        name: &'static str,
        reply: Packet<Reply>,
        refs: usize,
        pages: usize,
        protection: Protection,
    ) -> Result<Got> {
        let object = reply.head.object;
        let parts = reply
            .numbers
            .split_at_checked(refs)
            .filter(|(_, f)| f.len() == pages);
        let mapped = match (parts, reply.fds.first()) {
            (Some((refs, frames)), Some(memory)) => {
                let refs = refs.iter().map(|&r| GrantRef::new(r)).collect();
                let frames: Vec<_> = frames.iter().copied().map(Some).collect();
                Pages::map_frames(memory.as_fd(), &frames, protection).map(|pages| Got {
                    object,
                    refs,
                    pages,
                })
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        };
        if mapped.is_err() {
            let _ = self.release(object);
        }
        mapped.map_err(|e| Error::os(name, e))
    }

    /// Maps frames of another domain's memory. Returns the object, the pages, and an errno for each
    /// frame, 0 for one that is mapped.
    pub(crate) fn map_foreign(
        &self,
        domain: DomId,
        frames: &[u64],
        protection: Protection,
    ) -> Result<(u64, Pages, Vec<i32>)> {
        const NAME: &str = "IOCTL_PRIVCMD_MMAPBATCH_V2";
        checked(NAME, frames.len())?;
        let request = Request {
            op: wire::MAP_FOREIGN,
            a: domain.as_u16().into(),
            b: (protection == Protection::ReadWrite).into(),
            ..Request::default()
        };
        let number = |&frame: &u64| u32::try_from(frame).unwrap_or(u32::MAX);
        let numbers: Vec<u32> = frames.iter().map(number).collect();
        let reply = self.exchange(NAME, request, &numbers, frames.len())?;
        let object = reply.head.object;
        let mapped = match reply.fds.first() {
            Some(memory) if reply.numbers.len() == numbers.len() => {
                let frames = numbers.iter().zip(&reply.numbers);
                let frames: Vec<_> = frames.map(|(&n, &e)| (e == 0).then_some(n)).collect();
                Pages::map_frames(memory.as_fd(), &frames, protection)
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        };
        match mapped {
            Ok(pages) => {
                let errors = reply.numbers.iter().map(|&e| e as i32).collect();
                Ok((object, pages, errors))
            }
            Err(e) => {
                let _ = self.release(object);
                Err(Error::os(NAME, e))
            }
        }
    }

    /// Maps `count` frames of a resource of another domain, from `first` on. Returns as
    /// [`Client::map_foreign`]; all of them are mapped.
    pub(crate) fn map_resource(
        &self,
        domain: DomId,
        (kind, id): (u32, u32),
        first: u32,
        count: usize,
        protection: Protection,
    ) -> Result<(u64, Pages, Vec<i32>)> {
        const NAME: &str = "IOCTL_PRIVCMD_MMAP_RESOURCE";
        checked(NAME, count)?;
        let request = Request {
            op: wire::MAP_RESOURCE,
            a: domain.as_u16().into(),
            b: (protection == Protection::ReadWrite).into(),
            ..Request::default()
        };
        let which = [kind, id, first, count as u32];
        let reply = self.exchange(NAME, request, &which, count)?;
        let got = self.got(NAME, reply, 0, count, protection)?;
        Ok((got.object, got.pages, vec![0; count]))
    }

    /// Gives pages back. They must be unmapped before.
    ///
    /// # Errors
    ///
    /// When they were given back before, or the host has ended.
    pub fn release(&self, object: u64) -> Result<()> {
        let request = Request {
            op: wire::RELEASE,
            object,
            ..Request::default()
        };
        self.exchange("release pages", request, &[], 0).map(drop)
    }

    /// Sets an unmap notification; `offset` is the byte to clear, or any byte of the page.
    ///
    /// # Errors
    ///
    /// As the drivers: `EINVAL` when the port is not bound here.
    pub fn set_unmap_notify(
        &self,
        object: u64,
        offset: u64,
        clear: bool,
        event: Option<Port>,
    ) -> Result<()> {
        let (action, port) = crate::ioctl::unmap_action(clear, event);
        // An offset is within the pages, so within 32 MiB.
        let c = u32::try_from(offset).unwrap_or(u32::MAX);
        let request = Request {
            op: wire::SET_UNMAP_NOTIFY,
            a: action.bits(),
            b: port,
            c,
            object,
        };
        self.exchange("SET_UNMAP_NOTIFY", request, &[], 0).map(drop)
    }

    /// Returns a fresh connection to the store, as this domain.
    ///
    /// # Errors
    ///
    /// `ENODEV` when the host has no store.
    pub fn store(&self) -> Result<OwnedFd> {
        let name = "connect to the simulated store";
        let reply = self.call(name, wire::STORE, 0, 0)?;
        let fd = reply.fds.into_iter().next();
        fd.ok_or_else(|| Error::os(name, io::ErrorKind::InvalidData.into()))
    }

    /// Makes a domain: the one of this number, or the next. For a toolstack, which is a process
    /// of domain 0.
    ///
    /// # Errors
    ///
    /// `EPERM` in another domain, `EEXIST`, `EINVAL` for a reserved number.
    pub fn create_domain(&self, id: Option<DomId>) -> Result<DomId> {
        let a = id.map_or(wire::ANY_DOMAIN, |d| d.as_u16().into());
        let reply = self.call("XEN_DOMCTL_createdomain", wire::CREATE_DOMAIN, a, 0)?;
        Ok(domain_of(reply.head.a))
    }

    /// Ends a domain. For a toolstack, which is a process of domain 0.
    ///
    /// # Errors
    ///
    /// `EPERM` in another domain, `ESRCH`, `EINVAL` for domain 0.
    pub fn destroy_domain(&self, id: DomId) -> Result<()> {
        let a = id.as_u16().into();
        self.call("XEN_DOMCTL_destroydomain", wire::DESTROY_DOMAIN, a, 0)
            .map(drop)
    }
}

impl Client {
    /// Makes a hypercall, given its number, its operation and the struct it is about. Returns the
    /// result and the bytes of the reply, at least those of the struct, and about `room` at most.
    pub(crate) fn hypercall(
        &self,
        name: &'static str,
        call: u64,
        command: u64,
        bytes: &[u8],
        room: usize,
    ) -> Result<(i64, Vec<u8>)> {
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let request = Request {
            op: wire::HYPERCALL,
            a: number(call),
            b: number(command),
            c: number(room as u64),
            object: 0,
        };
        // A page's worth of reply is two numbers.
        let pages = room.max(bytes.len()).div_ceil(8) + 1;
        let reply = self.exchange(name, request, &wire::numbers(bytes), pages)?;
        Ok((reply.head.object as i64, reply.numbers.as_bytes().to_vec()))
    }
}

fn domain_of(n: u32) -> DomId {
    u16::try_from(n).map_or(DomId::INVALID, DomId::new)
}

fn bound(name: &'static str, reply: Packet<Reply>) -> Result<Bound> {
    let mut fds = reply.fds.into_iter();
    match (fds.next(), fds.next()) {
        (Some(wait), Some(ring)) => Ok(Bound {
            port: Port::new(reply.head.a),
            wait,
            ring,
        }),
        _ => Err(Error::os(name, io::ErrorKind::InvalidData.into())),
    }
}

fn checked(op: &'static str, pages: usize) -> Result<u32> {
    if pages == 0 || pages > wire::MAX_PAGES {
        return Err(Error::Invalid {
            op,
            what: "the number of pages",
            value: pages as u64,
        });
    }
    Ok(pages as u32)
}
