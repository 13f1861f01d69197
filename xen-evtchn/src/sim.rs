//! Ports of a simulated host: an epoll set with one one-shot eventfd per port.
//!
//! This behaves as `/dev/xen/evtchn` does without imitating it. One-shot is the mask: a port that
//! was reported is silent until it is armed again. Events that arrive meanwhile add up in the
//! eventfd and are reported, as one, when the port is armed. The set itself can be polled.
//!
//! | `/dev/xen/evtchn` | here |
//! |---|---|
//! | read: a pending port, now masked | `epoll_wait`, which disarms; then empty the eventfd |
//! | write: unmask | `EPOLL_CTL_MOD`: arm |
//! | notify | write to the peer's eventfd |

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::{read, write};
use xen_sys::sim::{Bound, Client};
use xen_sys::{DomId, Error, Host, Port, Result, Virq, Xen};

use crate::{counters, wait};

#[derive(Debug)]
pub(crate) struct Evtchn {
    set: Epoll,
    /// Keeps the connection to the broker.
    xen: Xen,
    ports: RwLock<BTreeMap<Port, Entry>>,
    state: Mutex<State>,
    /// How many overflows of the event buffer this set has been reset after.
    overflows: AtomicU64,
}

#[derive(Debug)]
struct Entry {
    bound: Bound,
    /// The set's report: the port in the low half, and above it a number that is not used
    /// again, so that a late report of a closed port is not taken for its successor.
    token: u64,
}

#[derive(Debug, Default)]
struct State {
    restricted: Option<DomId>,
    bindings: u32,
}

/// How many events are taken from the set in one call.
const BATCH: usize = 64;

impl Evtchn {
    pub(crate) fn open(xen: &Xen) -> Result<Self> {
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(os("epoll_create"))?;
        let (xen, ports) = (xen.clone(), RwLock::default());
        let this = Self {
            set,
            xen,
            ports,
            state: Mutex::default(),
            overflows: AtomicU64::new(0),
        };
        let overflows = this.client()?.overflows();
        this.overflows.store(overflows, Ordering::Relaxed);
        Ok(this)
    }

    fn client(&self) -> Result<&Client> {
        match self.xen.host() {
            Host::Sim(client) => Ok(client),
            _ => Err(Error::Unsupported {
                op: "event channels",
            }),
        }
    }

    pub(crate) fn bind_unbound(&self, remote: DomId) -> Result<Port> {
        const NAME: &str = "IOCTL_EVTCHN_BIND_UNBOUND_PORT";
        if self.state().restricted.is_some() {
            return Err(os(NAME)(Errno::EACCES));
        }
        self.insert(self.client()?.bind_unbound(remote)?)
    }

    pub(crate) fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<Port> {
        const NAME: &str = "IOCTL_EVTCHN_BIND_INTERDOMAIN";
        if self.state().restricted.is_some_and(|only| only != remote) {
            return Err(os(NAME)(Errno::EACCES));
        }
        self.insert(self.client()?.bind_interdomain(remote, port)?)
    }

    pub(crate) fn bind_virq(&self, virq: Virq) -> Result<Port> {
        const NAME: &str = "IOCTL_EVTCHN_BIND_VIRQ";
        if self.state().restricted.is_some() {
            return Err(os(NAME)(Errno::EACCES));
        }
        self.insert(self.client()?.bind_virq(virq)?)
    }

    fn insert(&self, bound: Bound) -> Result<Port> {
        let port = bound.port;
        let token = {
            let mut state = self.state();
            state.bindings = state.bindings.wrapping_add(1);
            u64::from(state.bindings) << 32 | u64::from(port.as_u32())
        };
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        if let Err(e) = self.set.add(&bound.wait, EpollEvent::new(ARMED, token)) {
            let _ = self.client()?.unbind(port);
            return Err(os("epoll_ctl")(e));
        }
        ports.insert(port, Entry { bound, token });
        Ok(port)
    }

    pub(crate) fn unbind(&self, port: Port) -> Result<()> {
        let entry = self
            .ports
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&port);
        let Some(entry) = entry else {
            return Err(os("IOCTL_EVTCHN_UNBIND")(Errno::ENOTCONN));
        };
        // The peer has the same eventfd, so closing ours would leave it in the set.
        let _ = self.set.delete(&entry.bound.wait);
        self.client()?.unbind(port)
    }

    /// Calls `f` with a port of this set, or returns `ENOTCONN`.
    fn with<T>(&self, port: Port, f: impl FnOnce(&Entry) -> nix::Result<T>) -> nix::Result<T> {
        let ports = self.ports.read().unwrap_or_else(PoisonError::into_inner);
        f(ports.get(&port).ok_or(Errno::ENOTCONN)?)
    }

    pub(crate) fn notify(&self, port: Port) -> Result<()> {
        if let Err(errno) = self.client()?.before_notify() {
            return Err(os("IOCTL_EVTCHN_NOTIFY")(Errno::from_raw(errno)));
        }
        counters::notify();
        match self.with(port, |entry| write(&entry.bound.ring, &1u64.to_ne_bytes())) {
            // A full counter is a pending event.
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(e) => Err(os("IOCTL_EVTCHN_NOTIFY")(e)),
        }
    }

    pub(crate) fn unmask(&self, port: Port) -> Result<()> {
        counters::call();
        let arm = |entry: &Entry| {
            self.set
                .modify(&entry.bound.wait, &mut EpollEvent::new(ARMED, entry.token))
        };
        match self.with(port, arm) {
            Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
            Err(e) => Err(os("epoll_ctl")(e)),
        }
    }

    pub(crate) fn unmask_batch(&self, ports: &[Port]) -> Result<()> {
        ports.iter().try_for_each(|&port| self.unmask(port))
    }

    pub(crate) fn read(&self, out: &mut [Port]) -> Result<usize> {
        counters::call();
        self.check_overflow()?;
        self.take(out, EpollTimeout::ZERO)
    }

    fn check_overflow(&self) -> Result<()> {
        if self.overflows.load(Ordering::Relaxed) == self.client()?.overflows() {
            return Ok(());
        }
        self.forget()?;
        Err(Error::EventOverflow)
    }

    /// As [`EventChannels::wait`](crate::EventChannels::wait). The device needs a poll and a read
    /// for a wait with a deadline; here one `epoll_wait` does both.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Result<Option<Port>> {
        counters::call();
        if deadline.is_some() {
            counters::call();
        }
        let mut port = [Port::default()];
        loop {
            self.check_overflow()?;
            let timeout = wait::timeout(deadline);
            if self.take(&mut port, timeout)? == 1 {
                return Ok(Some(port[0]));
            }
            if wait::has_passed(deadline) {
                return Ok(None);
            }
        }
    }

    /// Takes pending ports, after waiting for one if necessary; returns none also after a signal.
    fn take(&self, out: &mut [Port], timeout: EpollTimeout) -> Result<usize> {
        let mut events = [EpollEvent::empty(); BATCH];
        let room = out.len().min(BATCH);
        loop {
            let n = match self.set.wait(&mut events[..room], timeout) {
                Ok(0) => return Ok(0),
                Ok(n) => n,
                Err(Errno::EINTR) if timeout == EpollTimeout::ZERO => continue,
                Err(Errno::EINTR) => return Ok(0),
                Err(e) => return Err(os("epoll_wait")(e)),
            };
            let mut taken = 0;
            for event in &events[..n] {
                let port = Port::new(event.data() as u32);
                let take = |entry: &Entry| {
                    if entry.token != event.data() {
                        return Err(Errno::ENOTCONN);
                    }
                    read(&entry.bound.wait, &mut [0; 8])
                };
                // A port that was closed since has no event; of one that has, another thread may
                // have taken the count, but the report is ours.
                if !matches!(self.with(port, take), Err(Errno::ENOTCONN)) {
                    out[taken] = port;
                    taken += 1;
                }
            }
            // With a time to wait, the caller computes the remaining time again.
            if taken > 0 || timeout != EpollTimeout::ZERO {
                return Ok(taken);
            }
        }
    }

    pub(crate) fn reset(&self) -> Result<()> {
        let overflows = self.client()?.overflows();
        self.overflows.store(overflows, Ordering::Relaxed);
        self.forget()
    }

    /// Forgets what the kernel's buffer would hold: the ports stay masked.
    fn forget(&self) -> Result<()> {
        let mut forgotten = [Port::default(); BATCH];
        while self.take(&mut forgotten, EpollTimeout::ZERO)? == BATCH {}
        Ok(())
    }

    pub(crate) fn restrict(&self, domain: DomId) -> Result<()> {
        const NAME: &str = "IOCTL_EVTCHN_RESTRICT_DOMID";
        let mut state = self.state();
        if state.restricted.is_some() {
            return Err(os(NAME)(Errno::EACCES));
        }
        if domain == DomId::DOM0 || domain.is_reserved() {
            return Err(os(NAME)(Errno::EINVAL));
        }
        state.restricted = Some(domain);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const ARMED: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLONESHOT);

fn os(op: &'static str) -> impl FnOnce(Errno) -> Error {
    move |e| Error::os(op, e.into())
}

impl AsFd for Evtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.0.as_fd()
    }
}
