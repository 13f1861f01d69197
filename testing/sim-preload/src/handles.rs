//! The objects behind C's handles, in safe code.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use xen_evtchn::{BoundPort, EventChannels};
use xen_gnttab::{MappedPages, PageAccess, Region, SharedPages, UnmapNotify, map, share};
use xen_sys::{DomId, GrantRef, PAGE_SIZE, Port, Xen};

/// Why a C function fails: an errno.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed(c_int);

impl Failed {
    pub(crate) fn new(errno: c_int) -> Self {
        Self(errno)
    }

    pub(crate) fn errno(&self) -> c_int {
        self.0
    }
}

impl From<xen_sys::Error> for Failed {
    fn from(e: xen_sys::Error) -> Self {
        Self(e.errno().unwrap_or(libc::EINVAL))
    }
}

/// A connection to the simulation of the environment. Each C handle has its own, as each has an
/// open device of its own on a real host.
fn xen() -> Result<Xen, Failed> {
    let complain = |what: &dyn std::fmt::Display| {
        eprintln!("xen-sim-preload: {what}");
        Failed(libc::ENODEV)
    };
    let Some(path) = env::var_os("XEN_SIM_SOCKET") else {
        return Err(complain(&"XEN_SIM_SOCKET is not set"));
    };
    let me = match env::var("XEN_SIM_DOMAIN") {
        Ok(text) => text.parse().map_err(|e| complain(&e))?,
        Err(_) => DomId::DOM0,
    };
    Xen::join_path(path, me).map_err(|e| complain(&e))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `xenevtchn_handle`.
#[derive(Debug)]
pub struct Events {
    channels: EventChannels,
    bound: Mutex<BTreeMap<Port, BoundPort>>,
    /// Somebody has the descriptor and may have made it non-blocking.
    lent: AtomicBool,
}

/// Calls that are a system call each on a real host: notifies, and all the others.
static CALLS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Counts a call.
fn count(which: usize) {
    CALLS[which].fetch_add(1, Ordering::Relaxed);
}

/// Notifies so far, and system calls that a real host would have seen.
pub(crate) fn counts() -> [u64; 2] {
    let [notifies, others] = [0, 1].map(|i: usize| CALLS[i].load(Ordering::Relaxed));
    [notifies, notifies + others]
}

impl Events {
    pub(crate) fn open() -> Result<Self, Failed> {
        let channels = EventChannels::open(&xen()?)?;
        let cost = env::var("XEN_SIM_NOTIFY_NS").ok();
        if let Some(nanos) = cost.and_then(|text| text.parse().ok()) {
            xen_evtchn::counters::set_notify_cost(Duration::from_nanos(nanos));
        }
        Ok(Self {
            channels,
            bound: Mutex::default(),
            lent: AtomicBool::new(false),
        })
    }

    pub(crate) fn fd(&self) -> c_int {
        self.lent.store(true, Ordering::Relaxed);
        self.channels.as_fd().as_raw_fd()
    }

    fn keep(&self, port: BoundPort) -> c_int {
        let number = port.port();
        lock(&self.bound).insert(number, port);
        number.as_u32() as c_int
    }

    pub(crate) fn bind_unbound(&self, remote: DomId) -> Result<c_int, Failed> {
        Ok(self.keep(self.channels.bind_unbound(remote)?))
    }

    pub(crate) fn bind_interdomain(&self, remote: DomId, port: Port) -> Result<c_int, Failed> {
        Ok(self.keep(self.channels.bind_interdomain(remote, port)?))
    }

    pub(crate) fn unbind(&self, port: Port) -> Result<c_int, Failed> {
        lock(&self.bound)
            .remove(&port)
            .map(|_| 0)
            .ok_or(Failed(libc::ENOTCONN))
    }

    pub(crate) fn notify(&self, port: Port) -> Result<c_int, Failed> {
        count(0);
        let bound = lock(&self.bound);
        bound.get(&port).ok_or(Failed(libc::ENOTCONN))?.notify()?;
        Ok(0)
    }

    pub(crate) fn unmask(&self, port: Port) -> Result<c_int, Failed> {
        count(1);
        self.channels.unmask(port)?;
        Ok(0)
    }

    /// As a read of the device: it waits unless the descriptor was made non-blocking.
    pub(crate) fn pending(&self) -> Result<c_int, Failed> {
        count(1);
        let port = if self.is_nonblocking()? {
            self.channels.pending()?
        } else {
            self.channels.wait(None)?
        };
        port.map(|p| p.as_u32() as c_int)
            .ok_or(Failed(libc::EAGAIN))
    }

    fn is_nonblocking(&self) -> Result<bool, Failed> {
        if !self.lent.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let flags = fcntl(&self.channels, FcntlArg::F_GETFL).map_err(|e| Failed(e as c_int))?;
        Ok(OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK))
    }
}

/// `xengnttab_handle` and `xengntshr_handle`, which are one type in C too.
#[derive(Debug)]
pub struct Grants {
    xen: Xen,
    /// By the address that C has.
    pages: Mutex<HashMap<usize, Pages>>,
}

#[derive(Debug)]
enum Pages {
    Shared(SharedPages),
    Mapped(MappedPages),
}

impl Pages {
    fn region(&self) -> &Region {
        match self {
            Self::Shared(pages) => pages.region(),
            Self::Mapped(pages) => pages.region(),
        }
    }

    fn set_unmap_notify(&self, notify: UnmapNotify) -> xen_sys::Result<()> {
        match self {
            Self::Shared(pages) => pages.set_unmap_notify(notify),
            Self::Mapped(pages) => pages.set_unmap_notify(notify),
        }
    }
}

impl Grants {
    pub(crate) fn open() -> Result<Self, Failed> {
        Ok(Self {
            xen: xen()?,
            pages: Mutex::default(),
        })
    }

    fn keep(&self, pages: Pages, notify: UnmapNotify) -> Result<*mut u8, Failed> {
        if notify != UnmapNotify::default() {
            pages.set_unmap_notify(notify)?;
        }
        let at = pages.region().as_ptr();
        lock(&self.pages).insert(at.addr(), pages);
        Ok(at)
    }

    pub(crate) fn map(
        &self,
        from: DomId,
        refs: &[GrantRef],
        access: PageAccess,
        notify: UnmapNotify,
    ) -> Result<*mut u8, Failed> {
        self.keep(Pages::Mapped(map(&self.xen, from, refs, access)?), notify)
    }

    /// Shares pages: their address and references.
    pub(crate) fn share(
        &self,
        to: DomId,
        count: usize,
        access: PageAccess,
        notify: UnmapNotify,
    ) -> Result<(*mut u8, Vec<u32>), Failed> {
        let pages = share(&self.xen, to, count, access)?;
        let refs = pages.refs().iter().map(|r| r.as_u32()).collect();
        Ok((self.keep(Pages::Shared(pages), notify)?, refs))
    }

    /// Gives back what is at an address. `EINVAL` unless it is the whole of it.
    pub(crate) fn give_back(&self, at: usize, count: usize) -> Result<c_int, Failed> {
        let mut pages = lock(&self.pages);
        match pages.get(&at) {
            Some(p) if p.region().len() == count * PAGE_SIZE => {}
            _ => return Err(io::Error::from_raw_os_error(libc::EINVAL).into()),
        }
        drop(pages.remove(&at));
        Ok(0)
    }
}

impl From<io::Error> for Failed {
    fn from(e: io::Error) -> Self {
        Self(e.raw_os_error().unwrap_or(libc::EIO))
    }
}
