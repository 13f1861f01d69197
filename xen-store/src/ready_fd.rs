//! A descriptor that tells a poll loop when one watch has something to say.
//!
//! The connection's own descriptor is not enough when several threads share it: another thread
//! may already have read the event into memory. An [`ReadyFd`] is an epoll set of two: the
//! connection (bytes to read), and an event counter that is non-zero exactly while events of this
//! watch wait in memory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[cfg(not(target_os = "freebsd"))]
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
#[cfg(target_os = "freebsd")]
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::Result;
use crate::transport::os;

#[derive(Debug)]
pub(crate) struct ReadyFd {
    set: OwnedFd,
    counter: EventFd,
}

impl ReadyFd {
    pub(crate) fn new(connection: BorrowedFd<'_>) -> Result<Self> {
        let counter = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| os("eventfd", errno))?;
        let set = readable([connection, counter.as_fd()])?;
        Ok(Self { set, counter })
    }

    pub(crate) fn raise(&self) {
        // The only failure is a full counter, and that is a raised descriptor.
        let _ = self.counter.write(1);
    }

    pub(crate) fn lower(&self) {
        // The only failure is an empty counter.
        let _ = self.counter.read();
    }
}

/// A set that is readable while one of the descriptors is.
#[cfg(not(target_os = "freebsd"))]
fn readable(descriptors: [BorrowedFd<'_>; 2]) -> Result<OwnedFd> {
    let set =
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|errno| os("epoll_create", errno))?;
    for fd in descriptors {
        set.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))
            .map_err(|errno| os("epoll_ctl", errno))?;
    }
    Ok(set.0)
}

/// As on Linux, where the set would be an epoll one.
#[cfg(target_os = "freebsd")]
fn readable(descriptors: [BorrowedFd<'_>; 2]) -> Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let set = Kqueue::new().map_err(|errno| os("kqueue", errno))?;
    let changes = descriptors.map(|fd| {
        let fd = fd.as_raw_fd() as usize;
        let (filter, add) = (EventFilter::EVFILT_READ, EvFlags::EV_ADD);
        KEvent::new(fd, filter, add, FilterFlag::empty(), 0, 0)
    });
    set.kevent(&changes, &mut [], None)
        .map_err(|errno| os("kevent", errno))?;
    Ok(set.into())
}

impl AsFd for ReadyFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }
}
