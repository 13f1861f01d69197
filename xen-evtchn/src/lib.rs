//! Xen event channels from user space.
//!
//! An event channel joins one *port* in each of two domains. Either side can *notify*: the
//! other side's port becomes pending. An event carries no data, and many notifications before the
//! other side looks are one event.
//!
//! ```text
//!      domain 3                                    domain 5
//!   EventChannels                               EventChannels
//!    └ BoundPort 7  ──notify──>      pending ── BoundPort 12
//!                                        │
//!                     poll: readable     │  pending() / wait() -> 12      12 is now masked
//!                     ... look at shared memory ...
//!                     unmask()           └> 12 can be delivered again
//! ```
//!
//! # What an event is worth
//!
//! A port stays **masked** from the moment it is delivered ([`pending`](EventChannels::pending),
//! [`wait`](EventChannels::wait)) until it is [unmasked](BoundPort::unmask). An event that arrives
//! in between is not lost: it is delivered after the unmask. So the order that never misses
//! anything is: receive, unmask, *then* look at the shared state.
//!
//! An event is a hint to look; it does not prove that there is something. The peer can send as many
//! as it likes. The end that [binds interdomain](EventChannels::bind_interdomain) starts out
//! pending, because what was sent before it bound is lost (`evtchn_bind_interdomain` in Xen's
//! xen/common/event_channel.c); the other end receives no event. And a number received just before
//! its port was closed may be that of a closed port.
//!
//! # Guarantees
//!
//! Whatever the peer does, no call here blocks except [`wait`](EventChannels::wait), which ends at
//! its deadline, and nothing grows: a port is pending or it is not. A peer that notifies without
//! end wakes this side as often as it is unmasked; [`EventPacer`] limits that.
//!
//! # Threads and fork
//!
//! Everything is `Send + Sync`. Several threads may wait on one handle: each event is delivered to
//! one of them. Notify does not contend with a waiter. A forked child shares the open file and so
//! competes for events: let it open its own.
//!
//! # Example
//!
//! ```no_run
//! use xen_evtchn::EventChannels;
//! use xen_sys::{DomId, Port, Xen};
//!
//! # fn publish(_: Port) {}
//! let channels = EventChannels::open(&Xen::open()?)?;
//! let port = channels.bind_unbound(DomId::new(5))?; // domain 5 may bind to it
//! publish(port.port());                             // tell it the number, through the store
//! while let Some(p) = channels.wait(None)? {
//!     channels.unmask(p)?;
//!     // ... look at the memory shared with domain 5 ...
//!     port.notify()?;
//! }
//! # Ok::<(), xen_sys::Error>(())
//! ```
//!
//! # In another event loop
//!
//! The set is [`AsFd`] and [`AsRawFd`]: level-triggered, readable while an event is pending. An
//! edge-triggered loop takes events until [`pending`](EventChannels::pending) returns `None`. Ports
//! and watches of the store together, by poll:
//!
//! ```
//! use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
//! use xen_evtchn::{BoundPort, EventChannels};
//! use xen_store::Watch;
//! # use std::os::fd::AsFd;
//!
//! /// Serves a peer until its node `state` says that it closes.
//! fn serve(port: &BoundPort, watch: &Watch) -> Result<(), Box<dyn std::error::Error>> {
//!     let channels = port.channels();
//!     loop {
//!         // Both are emptied before each sleep. An event that comes after that ends it.
//!         while let Some(p) = channels.pending()? {
//!             channels.unmask(p)?;
//!             // ... look at the shared memory ...
//!         }
//!         while let Some(event) = watch.try_next()? {
//!             // ... read `event.path` ...
//! #           if event.path.ends_with("state") { return Ok(()); }
//!         }
//!         let mut fds = [channels.as_fd(), watch.poll_fd()?].map(|fd| {
//!             PollFd::new(fd, PollFlags::POLLIN)
//!         });
//!         match poll(&mut fds, PollTimeout::NONE) {
//!             Ok(_) | Err(nix::errno::Errno::EINTR) => {}
//!             Err(e) => return Err(e.into()),
//!         }
//!     }
//! }
//! # fn run() -> Result<(), Box<dyn std::error::Error>> {
//! # let host = xen_sys::sim::Simulation::start()?;
//! # let _stored = xen_store_server::sim::start(&host, xen_store_server::Config::new())?;
//! # let xen = host.xen(xen_sys::DomId::DOM0)?;
//! # let channels = EventChannels::open(&xen)?;
//! # let port = channels.bind_unbound(xen_sys::DomId::DOM0)?;
//! # let peer = channels.bind_interdomain(xen_sys::DomId::DOM0, port.port())?;
//! # let store = xen_store::Store::open(&xen)?;
//! # let watch = store.watch("state")?;
//! # std::thread::spawn(move || { peer.notify().unwrap(); store.write("state", "6").unwrap(); });
//! # serve(&port, &watch)
//! # }
//! # run().unwrap();
//! ```
//!
//! # The two backends
//!
//! A backend is a type with `open`, `bind_unbound`, `bind_interdomain`, `bind_virq`, `unbind`,
//! `notify`, `unmask`, `unmask_batch`, `read`, `wait`, `reset`, `restrict` and `AsFd`, all taking
//! `&self`; only `wait` blocks.

#![forbid(unsafe_code)]

mod blocking;
#[cfg(feature = "unstable-counters")]
#[doc(hidden)]
pub mod counters;
mod dev;
pub mod monitor;
mod pacer;
mod port;
#[cfg(feature = "sim")]
mod sim;
#[cfg(feature = "tokio")]
pub mod tokio;
mod wait;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

pub use pacer::EventPacer;
pub use port::BoundPort;
use xen_sys::{DomId, Error, Host, Port, Result, Virq, Xen};

/// A set of event-channel ports with one descriptor to wait on.
///
/// Cloning gives another handle to the same set. The set lives until the last clone and the last
/// [`BoundPort`] made from it are gone.
///
/// [`AsFd`] is for `poll` and similar calls: the descriptor is readable when
/// [`pending`](Self::pending) would return something. It must not be read from or written to.
#[doc(alias = "xenevtchn_handle")]
#[doc(alias = "xenevtchn_fd")]
#[doc(alias = "xenevtchn_close")]
#[derive(Clone, Debug)]
pub struct EventChannels(Arc<Backend>);

/// The backend that holds the ports.
#[derive(Debug)]
enum Backend {
    Dev(dev::Evtchn),
    #[cfg(feature = "sim")]
    Sim(sim::Evtchn),
}

/// Calls the same operation of either backend; a missing operation does not compile.
macro_rules! on {
    ($self:expr, $backend:ident => $e:expr) => {
        match &*$self.0 {
            Backend::Dev($backend) => $e,
            #[cfg(feature = "sim")]
            Backend::Sim($backend) => $e,
        }
    };
}

impl EventChannels {
    /// Opens an empty set.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when `/dev/xen/evtchn` does not open.
    #[doc(alias = "xenevtchn_open")]
    pub fn open(xen: &Xen) -> Result<Self> {
        let backend = match xen.host() {
            Host::Dev(root) => Backend::Dev(dev::Evtchn::open(root)?),
            #[cfg(feature = "sim")]
            Host::Sim(_) => Backend::Sim(sim::Evtchn::open(xen)?),
            #[allow(unreachable_patterns)]
            _ => {
                return Err(Error::Unsupported {
                    op: "a simulated host, without the feature `sim` of xen-evtchn,",
                });
            }
        };
        Ok(Self(Arc::new(backend)))
    }

    /// Takes ownership of a descriptor of the device that was opened elsewhere, with the ports that
    /// are bound through it: for a daemon that re-executes itself and keeps its channels. The
    /// descriptor is close-on-exec from now on, and its reads do not block.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a descriptor of another file; [`Error::Device`] when
    /// `/dev/xen/evtchn`, which is opened for comparison, does not open; [`Error::Unsupported`] on
    /// a simulated host.
    #[doc(alias = "xenevtchn_fdopen")]
    pub fn adopt(xen: &Xen, fd: OwnedFd) -> Result<Self> {
        match xen.host() {
            Host::Dev(root) => Ok(Self(Arc::new(Backend::Dev(dev::Evtchn::adopt(root, fd)?)))),
            #[allow(unreachable_patterns)]
            _ => Err(Error::Unsupported {
                op: "adopt event channels",
            }),
        }
    }

    /// Takes ownership of a port that is bound through an [adopted](Self::adopt) descriptor: the
    /// port is closed when the value is dropped. A notify of a port that the set does not have
    /// fails with `ENOTCONN`.
    #[must_use]
    pub fn adopt_port(&self, port: Port) -> BoundPort {
        BoundPort::new(self.clone(), port)
    }

    /// Makes a port that domain `remote` may bind to. `remote` may be this domain itself, by
    /// its number, and need not exist yet.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `ENOSPC` when the domain has no port left, `EACCES` when the handle is
    /// [restricted](Self::restrict).
    #[doc(alias = "xenevtchn_bind_unbound_port")]
    #[doc(alias = "IOCTL_EVTCHN_BIND_UNBOUND_PORT")]
    pub fn bind_unbound(&self, remote: DomId) -> Result<BoundPort> {
        let port = on!(self, b => b.bind_unbound(remote))?;
        Ok(BoundPort::new(self.clone(), port))
    }

    /// Makes a port and connects it to `port` of domain `remote`, which must hold that port
    /// [open](Self::bind_unbound) for us.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `EINVAL` when the remote port is not open for this domain (not there, for
    /// another domain, connected already), `ESRCH` when there is no such domain, `EACCES` when
    /// the handle is [restricted](Self::restrict) to another.
    #[doc(alias = "xenevtchn_bind_interdomain")]
    #[doc(alias = "IOCTL_EVTCHN_BIND_INTERDOMAIN")]
    pub fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<BoundPort> {
        let port = on!(self, b => b.bind_interdomain(remote, port))?;
        Ok(BoundPort::new(self.clone(), port))
    }

    /// Returns whether a domain of that number exists. For programs that cannot read it from the
    /// store: the call needs no privilege, changes nothing and does not block.
    ///
    /// It tries to [bind](Self::bind_interdomain) to port 0, which no domain has open for another.
    /// A hypervisor built for debugging logs each such failure. A domain that is being destroyed
    /// exists until no other domain maps any of its pages.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when it cannot be determined: `EACCES` when the handle is
    /// [restricted](Self::restrict) to another domain, `EPERM` when the hypervisor's security
    /// policy forbids it, `ENOSPC` when this domain has no port left.
    pub fn domain_exists(&self, domain: DomId) -> Result<bool> {
        match self.bind_interdomain(domain, Port::new(0)) {
            Ok(bound) => {
                drop(bound);
                Ok(true)
            }
            Err(error) => match error.errno() {
                Some(libc::ESRCH) => Ok(false),
                Some(libc::EINVAL) => Ok(true),
                _ => Err(error),
            },
        }
    }

    /// Makes a port at which a virtual interrupt of this domain arrives; if each virtual CPU has
    /// its own, that of the first. [`notify`](BoundPort::notify) does nothing there.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `EEXIST` when a process or the kernel of this domain has bound it already;
    /// `EINVAL` when there is no such virtual interrupt; `EBUSY`, from Xen 4.21 on, when it is
    /// global and sent to another domain (older versions bind it, and no event arrives); `EACCES`
    /// when the handle is [restricted](Self::restrict).
    #[doc(alias = "xenevtchn_bind_virq")]
    #[doc(alias = "IOCTL_EVTCHN_BIND_VIRQ")]
    pub fn bind_virq(&self, virq: Virq) -> Result<BoundPort> {
        let port = on!(self, b => b.bind_virq(virq))?;
        Ok(BoundPort::new(self.clone(), port))
    }

    /// Returns the next pending port, if there is one; it is masked from now on. Never blocks.
    ///
    /// # Errors
    ///
    /// [`Error::EventOverflow`]; see [`reset`](Self::reset).
    #[doc(alias = "xenevtchn_pending")]
    pub fn pending(&self) -> Result<Option<Port>> {
        let mut port = [Port::default()];
        let n = self.pending_batch(&mut port)?;
        Ok(port.into_iter().take(n).next())
    }

    /// Takes up to `out.len()` pending ports at once, in one system call on a real host; returns
    /// how many. Each is masked from now on. Never blocks; zero means that nothing is pending.
    ///
    /// # Errors
    ///
    /// [`Error::EventOverflow`]; see [`reset`](Self::reset).
    pub fn pending_batch(&self, out: &mut [Port]) -> Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        on!(self, b => b.read(out))
    }

    /// Waits until a port is pending and returns it masked, or returns `None` when `deadline`
    /// has passed. Without a deadline it waits forever. A deadline that has passed already is
    /// the same as [`pending`](Self::pending).
    ///
    /// Signals do not end the wait early. The deadline is kept to about a millisecond, never
    /// early.
    ///
    /// # Errors
    ///
    /// [`Error::EventOverflow`]; see [`reset`](Self::reset). [`Error::Os`] from `poll(2)`.
    pub fn wait(&self, deadline: Option<Instant>) -> Result<Option<Port>> {
        on!(self, b => b.wait(deadline))
    }

    /// Lets `port` be delivered again, immediately if an event arrived while it was masked. Does
    /// nothing for a port that is not masked or not of this set.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when the system call fails, which does not happen on Linux.
    #[doc(alias = "xenevtchn_unmask")]
    #[inline]
    pub fn unmask(&self, port: Port) -> Result<()> {
        on!(self, b => b.unmask(port))
    }

    /// Lets several ports be delivered again, as [`unmask`](Self::unmask) does. On a real host this
    /// takes one system call for each 1024 of them.
    ///
    /// # Errors
    ///
    /// As [`unmask`](Self::unmask); some of the ports are unmasked then.
    #[doc(alias = "xenevtchn_unmask")]
    pub fn unmask_batch(&self, ports: &[Port]) -> Result<()> {
        on!(self, b => b.unmask_batch(ports))
    }

    /// Recovers from [`Error::EventOverflow`]: discards every event that was waiting to be read.
    ///
    /// The ports of those events stay masked, and which ports they were is lost. So after a reset
    /// unmask *every* port and look at the state behind each, as if each had been notified.
    ///
    /// The kernel sizes its buffer to the number of bound ports, so this is for kernels before 4.10
    /// and for defects.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when the system call fails.
    #[doc(alias = "IOCTL_EVTCHN_RESET")]
    pub fn reset(&self) -> Result<()> {
        on!(self, b => b.reset())
    }

    /// Restricts this set, permanently and for every clone, to binding to `domain` only. Bound
    /// ports stay bound.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `EACCES` when it is restricted already, `EINVAL` for domain 0 and reserved
    /// names; [`Error::Unsupported`] on kernels before 4.10.
    #[doc(alias = "xenevtchn_restrict")]
    #[doc(alias = "IOCTL_EVTCHN_RESTRICT_DOMID")]
    pub fn restrict(&self, domain: DomId) -> Result<()> {
        on!(self, b => b.restrict(domain))
    }

    /// Returns whether `other` is a clone of this set.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn notify(&self, port: Port) -> Result<()> {
        on!(self, b => b.notify(port))
    }

    fn unbind(&self, port: Port) -> Result<()> {
        on!(self, b => b.unbind(port))
    }
}

impl AsFd for EventChannels {
    fn as_fd(&self) -> BorrowedFd<'_> {
        on!(self, b => b.as_fd())
    }
}

impl AsRawFd for EventChannels {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

const _: fn() = || {
    fn ok<T: Send + Sync>() {}
    ok::<EventChannels>();
    ok::<BoundPort>();
};

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
