//! A simulated Xen host: the same crates, the same API, several processes, no Xen, no privilege.
//!
//! ```text
//!    process of domain 0            broker (a thread)            process of domain 1
//!    Xen ── socket ──────────────>  domains, ports,  <────────────── socket ── Xen
//!                                   references, who may
//!    port ──────────── eventfd ──────────────────────────────────> port
//!    pages ─────────── sealed memfd ─────────────────────────────> pages
//! ```
//!
//! On either host a program gets the same kernel objects: an event channel is a descriptor to poll
//! and one to write to, a grant is memory, the store is a stream. So only acquiring and giving back
//! involve the broker; events and bytes pass directly from process to process.
//!
//! ```
//! use xen_sys::DomId;
//! use xen_sys::sim::Simulation;
//!
//! let host = Simulation::start()?;
//! let guest = host.add_domain()?;
//! let (dom0, domu) = (host.xen(DomId::DOM0)?, host.xen(guest)?);
//! // ... open event channels, share pages, connect: as on /dev/xen ...
//! # drop((dom0, domu));
//! host.assert_clean();
//! # Ok::<(), xen_sys::Error>(())
//! ```
//!
//! # Its rules
//!
//! It refuses what Xen and Linux refuse. Each rule is tested below this module, and through the
//! public API on this host and on a real one (`testing/fidelity`).
//!
//! | rule | source |
//! |---|---|
//! | a port open for one domain is bound by that domain, once; else `EINVAL` | xen `evtchn_bind_interdomain` |
//! | no such domain: `ESRCH`; but a port may be opened for a domain that is still to be made | same; `evtchn_alloc_unbound` |
//! | the binding end starts out pending, the other does not | same |
//! | a closed end leaves the other open for the same domain, and sends it no event | xen `evtchn_close` |
//! | no port left: `ENOSPC` | xen `evtchn_get_port` |
//! | a port that was delivered is masked until unmasked; events coalesce | linux `evtchn_interrupt`, `evtchn_write` |
//! | notify and unbind through a handle that does not have the port: `ENOTCONN` | linux `evtchn_ioctl` |
//! | a reference is mapped by its grantee, as often as it likes, and for writing only if granted so; else `EINVAL` | xen `map_grant_ref`, linux `gntdev_mmap` |
//! | pages given up while mapped stay until unmapped, and so does the reference | linux `gnttab_end_foreign_access_ref` |
//! | more pages than the driver's limit: `ENOSPC` | linux `gntalloc_ioctl_alloc` |
//! | unmap notification: byte, then event; per page of a share, one per mapping | linux `__del_gref`, `gntdev_put_map` |
//! | its port must be bound, and stays until it is used | linux `evtchn_get` |
//! | no byte is cleared in pages mapped for reading: `EINVAL` | linux `gntdev_ioctl_notify` |
//! | a process that dies gives everything back | linux file release |
//! | another domain's frames are mapped by domain 0 only; `EINVAL` for each frame without memory | xen `get_page_from_gfn` |
//! | a domctl or sysctl of another interface version: `EACCES`, before anything else is looked at | xen `do_domctl`, `do_sysctl` |
//! | before 4.18, `getdomaininfo` answers for the next domain if there is no such one | xen `do_domctl` |
//! | no domain pauses itself, and a domain that is not paused is not unpaused: `EINVAL` | same |
//! | a guest has 8 ioreq servers: `ENOSPC`; a server 256 ranges of a kind: `ENOMEM`; ranges that overlap: `EEXIST` | xen `ioreq_server_create`, `ioreq_server_map_io_range` |
//! | a domU's kernel lets no hypercall through: `EPERM` | linux `privcmd_ioctl` (XSA-482) |
//!
//! # Where it differs
//!
//! * Pages that both sides released cannot be mapped again immediately; Linux ends the grant at the
//!   driver's next operation.
//! * A share or mapping has at most 8192 pages.
//! * The event buffer overflows only by [`overflow_events`](Client::overflow_events).
//! * A guest sends its device model what [`Simulation::access`] is given, and nothing else; there
//!   are no buffered requests, no eventfds of privcmd, and its QEMU has no ioreq server.
//! * Only the hypercalls for which [`Privcmd`](crate::privcmd::Privcmd) has types exist, for domain
//!   0. Pausing a domain, or shutting it down, only records that: its processes continue.
//! * Destroying a domain cuts its processes off but does not stop them: they can still write to
//!   what they have mapped, and ring bells that they hold.
//! * It keeps no secrets: a process that may map a page of a domain gets a descriptor of all its
//!   shared pages, and a process that reaches the socket may be any domain. It is for tests.

mod broker;
mod client;
mod device_model;
mod domain;
mod faults;
mod grants;
mod hypercalls;
mod ports;
mod wire;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use self::broker::Shared;
pub use self::client::{Bound, Client, Got};
pub use self::faults::{Fault, Op};
use crate::abi::ioreq::Ioreq;
use crate::{DomId, Error, GrantRef, Result, Xen};

/// Limits on what a domain may have at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Event-channel ports. Xen: 1023 for a guest unless its configuration sets another number
    /// (`event_channels` of xl.cfg).
    pub ports: u32,
    /// Pages shared, by all its processes. Linux: 1024, the parameter `limit` of xen-gntalloc.
    pub shared_pages: u32,
    /// Pages mapped, by all its processes.
    pub mapped_pages: u32,
}

impl Default for Limits {
    /// Returns a guest's limits.
    fn default() -> Self {
        Self {
            ports: 1023,
            shared_pages: 1024,
            mapped_pages: 1 << 16,
        }
    }
}

impl Limits {
    fn of(domain: DomId) -> Self {
        let guest = Self::default();
        if domain == DomId::DOM0 {
            // FIFO event channels: EVTCHN_FIFO_NR_CHANNELS.
            return Self {
                ports: 1 << 17,
                mapped_pages: 1 << 20,
                ..guest
            };
        }
        guest
    }
}

/// A store for the domains of a simulated host, attached with
/// [`attach_store`](Simulation::attach_store).
///
/// Called by the broker in the middle of its work: an implementation must not call back into
/// the simulation, and should return soon.
pub trait StoreServer: Send {
    /// Returns a connected stream on which `domain` uses the store's protocol.
    ///
    /// # Errors
    ///
    /// The caller gets the error.
    fn connect(&mut self, domain: DomId) -> io::Result<OwnedFd>;

    /// Called when a domain was destroyed: Xen's `VIRQ_DOM_EXC`.
    fn domain_destroyed(&mut self, domain: DomId);
}

/// A simulated host, which lives as long as this value.
///
/// It starts with domain 0 only. When it is dropped every connection ends.
pub struct Simulation {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Simulation {
    /// Creates a new host, its broker in a thread of this process.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when the system has no descriptor or thread left.
    pub fn start() -> Result<Self> {
        const OP: &str = "start a simulated host";
        let shared = Arc::new(Shared::new().map_err(|e| refused(OP, e))?);
        let broker = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("xen-sim".into())
            .spawn(move || broker.run())
            .map_err(|e| Error::os(OP, e))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Returns a handle of this process as a process of `domain`. Several handles are several
    /// processes.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `ESRCH` when there is no such domain.
    pub fn xen(&self, domain: DomId) -> Result<Xen> {
        Xen::join(self.invite(domain)?)
    }

    /// Returns a connection for a process of `domain`, to be passed to that process, which calls
    /// [`Xen::join`] with it. It is close-on-exec, as every descriptor here.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `ESRCH` when there is no such domain.
    pub fn invite(&self, domain: DomId) -> Result<OwnedFd> {
        const OP: &str = "invite to a simulated host";
        if !self.shared.state().has_domain(domain) {
            return Err(refused(OP, Errno::SRCH));
        }
        let (ours, theirs) = wire::pair().map_err(|e| Error::os(OP, e))?;
        self.shared
            .connect(ours, Some(domain))
            .map_err(|e| refused(OP, e))?;
        Ok(theirs)
    }

    /// Lets processes of the same user join by a path, with [`Xen::join_path`], as any existing
    /// domain. The socket is removed with the simulation; one left over by a broker that was killed
    /// is replaced.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `EADDRINUSE` when another process listens there; the errors of `bind(2)`.
    pub fn listen(&self, path: impl AsRef<Path>) -> Result<()> {
        const OP: &str = "listen for a simulated host";
        let path = path.as_ref();
        let error = |e: Errno| refused(OP, e);
        let socket = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let kind = SocketType::SEQPACKET;
            let socket = socket_with(AddressFamily::UNIX, kind, flags, None).map_err(error)?;
            // Linux makes the file with the mode that the socket has when it is bound.
            let socket = std::fs::File::from(socket);
            let owners = std::fs::Permissions::from_mode(0o600);
            socket
                .set_permissions(owners)
                .map_err(|e| Error::os(OP, e))?;
            Ok(OwnedFd::from(socket))
        };
        let address = SocketAddrUnix::new(path).map_err(error)?;
        let listener = socket()?;
        if let Err(e) = bind(&listener, &address) {
            let stale =
                e == Errno::ADDRINUSE && connect(socket()?, &address) == Err(Errno::CONNREFUSED);
            if !stale {
                return Err(error(e));
            }
            std::fs::remove_file(path).map_err(|e| Error::os(OP, e))?;
            bind(&listener, &address).map_err(error)?;
        }
        listen(&listener, 128).map_err(error)?;
        self.shared.listen(listener, path.into()).map_err(error)
    }

    /// Makes a domain with the number after the highest there is.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `EINVAL` when the numbers are used up.
    pub fn add_domain(&self) -> Result<DomId> {
        self.shared
            .state()
            .create_domain(None)
            .map_err(|e| refused("add a domain", e))
    }

    /// Makes a domain with a number of the caller's choice.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `EEXIST`, or `EINVAL` for a reserved number.
    pub fn add_domain_as(&self, id: DomId) -> Result<()> {
        let made = self.shared.state().create_domain(Some(id));
        made.map(drop).map_err(|e| refused("add a domain", e))
    }

    /// Ends a domain immediately, its kernel included: its ports close and its pages are given
    /// back, without an unmap notification to its peers. Its processes are cut off.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `ESRCH` when there is none, `EINVAL` for domain 0.
    pub fn destroy_domain(&self, id: DomId) -> Result<()> {
        self.shared
            .state()
            .destroy_domain(id)
            .map_err(|e| refused("destroy a domain", e))
    }

    /// Returns the domains there are.
    #[must_use]
    pub fn domains(&self) -> Vec<DomId> {
        self.shared.state().domains()
    }

    /// Changes a domain's limits. It keeps what it has.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `ESRCH` when there is no such domain.
    pub fn set_limits(&self, id: DomId, limits: Limits) -> Result<()> {
        self.shared
            .state()
            .set_limits(id, limits)
            .map_err(|e| refused("set limits", e))
    }

    /// Returns the limits of a domain.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `ESRCH` when there is no such domain.
    pub fn limits(&self, id: DomId) -> Result<Limits> {
        self.shared
            .state()
            .limits(id)
            .map_err(|e| refused("limits", e))
    }

    /// Sets which versions of domctl and sysctl the hypervisor supports. By default they are those
    /// of Xen 4.20.
    pub fn set_interfaces(&self, domctl: u32, sysctl: u32) {
        let mut state = self.shared.state();
        (state.hypervisor.domctl, state.hypervisor.sysctl) = (domctl, sysctl);
    }

    /// Gives the host a store. A second one replaces the first for later connections.
    pub fn attach_store(&self, store: Box<dyn StoreServer>) {
        self.shared.state().store = Some(store);
    }

    /// Injects a fault, which happens when its turn comes.
    pub fn inject(&self, fault: Fault) {
        self.shared.state().faults.inject(fault);
    }

    /// Removes the faults that have not happened yet.
    pub fn clear_faults(&self) {
        self.shared.state().faults.clear();
    }

    /// Writes into a page that `owner` shares, as a peer that does not follow the rules would.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `EINVAL` when there is no such reference or it is not within the page.
    pub fn scribble(
        &self,
        owner: DomId,
        gref: GrantRef,
        offset: usize,
        bytes: &[u8],
    ) -> Result<()> {
        let done = self.shared.state().scribble(owner, gref, offset, bytes);
        done.map_err(|e| refused("scribble", e))
    }

    /// Writes into a domain's memory at a guest-physical address, as the domain would. Its memory is
    /// 64 MiB from address 0 on, and 1 GiB for domain 0. The pages it shares are the first of them.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `ESRCH` when there is no such domain, `EFAULT` for bytes that are not within
    /// its memory.
    pub fn write_memory(&self, domain: DomId, address: u64, bytes: &[u8]) -> Result<()> {
        let done = self.shared.state().write_memory(domain, address, bytes);
        done.map_err(|e| refused("write to a domain's memory", e))
    }

    /// Makes an access as the virtual CPU of `guest` does, and waits until its device model has
    /// answered. Returns the answer, whose `data` is that of a read; `None` if no enabled ioreq
    /// server has the address, or the one that has it is destroyed meanwhile.
    ///
    /// The simulated Xen fills in the state, the port and the padding of `request`. Everything else
    /// is passed to the device model as it is, including sizes and kinds that Xen never sends. A
    /// request without an address is sent to the first enabled server only.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    /// use xen_sys::DomId;
    /// use xen_sys::abi::ioreq::{DIR_READ, IOREQ_TYPE_PIO, Ioreq};
    /// use xen_sys::sim::Simulation;
    ///
    /// let host = Simulation::start()?;
    /// let guest = host.add_domain()?;
    /// let inb = Ioreq {
    ///     addr: 0x5a0,
    ///     count: 1,
    ///     size: 1,
    ///     bits: DIR_READ,
    ///     kind: IOREQ_TYPE_PIO,
    ///     ..Ioreq::default()
    /// };
    /// let deadline = Instant::now() + Duration::from_secs(5);
    /// // Nobody answers port 0x5a0: the guest reads ones.
    /// assert!(host.access(guest, inb, deadline)?.is_none());
    /// # Ok::<(), xen_sys::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `ESRCH` when there is no such domain, `ETIMEDOUT` at the deadline, and from
    /// then on until the answer arrives `EBUSY`, as during another access: a guest has one virtual
    /// CPU.
    pub fn access(&self, guest: DomId, request: Ioreq, deadline: Instant) -> Result<Option<Ioreq>> {
        let answer = device_model::access(&self.shared, guest, &request, deadline);
        answer.map_err(|e| refused("access a device", e))
    }

    /// Returns the ports, references and mappings that were not given back, a line each.
    #[must_use]
    pub fn leaks(&self) -> Vec<String> {
        self.shared.state().leaks()
    }

    /// Fails a test that left something behind. Waits up to five seconds for processes that just
    /// died to be noticed.
    ///
    /// # Panics
    ///
    /// If there are [`leaks`](Self::leaks), which the message lists.
    #[track_caller]
    pub fn assert_clean(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        if !self
            .shared
            .wait_until(deadline, |state| state.leaks().is_empty())
        {
            panic!(
                "left behind on the simulated host:\n  {}",
                self.leaks().join("\n  ")
            );
        }
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation")
            .field("domains", &self.domains())
            .finish_non_exhaustive()
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // A broker that panicked has printed that on stderr.
            let _ = thread.join();
        }
    }
}

fn refused(op: &'static str, e: Errno) -> Error {
    Error::os(op, e.into())
}
