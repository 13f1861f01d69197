//! A descriptor that tells a poll loop when one watch has something to say.
//!
//! The connection's own descriptor is not enough when several threads share it: another thread
//! may already have read the event into memory. An [`ReadyFd`] is an epoll set of two: the
//! connection (bytes to read), and an event counter that is non-zero exactly while events of this
//! watch wait in memory.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::Result;
use crate::transport::os;

#[derive(Debug)]
pub(crate) struct ReadyFd {
    set: Epoll,
    counter: EventFd,
}

impl ReadyFd {
    pub(crate) fn new(connection: BorrowedFd<'_>) -> Result<Self> {
        let counter = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| os("eventfd", errno))?;
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|errno| os("epoll_create", errno))?;
        for fd in [connection, counter.as_fd()] {
            set.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))
                .map_err(|errno| os("epoll_ctl", errno))?;
        }
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

impl AsFd for ReadyFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.0.as_fd()
    }
}
