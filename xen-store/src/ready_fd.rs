//! A descriptor that is readable while a watch may have an event.
//!
//! The connection's own descriptor is not enough when several threads share it: another thread may
//! already have read the event into memory. A [`ReadyFd`] is an epoll set of two: the connection
//! (bytes to read), and an event counter that is non-zero exactly while events of this watch wait
//! in memory.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

#[cfg(not(target_os = "freebsd"))]
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
#[cfg(target_os = "freebsd")]
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};
use nix::sys::eventfd::{EfdFlags, EventFd};
#[cfg(not(target_os = "freebsd"))]
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::error::Result;
use crate::transport::os;

#[derive(Debug)]
pub(crate) struct ReadyFd {
    set: PollSet,
    counter: EventFd,
}

impl ReadyFd {
    pub(crate) fn new(connection: BorrowedFd<'_>) -> Result<Self> {
        let counter = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| os("eventfd", errno))?;
        let set = PollSet::new([connection, counter.as_fd()])?;
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

/// A set that is readable while one of its descriptors is.
#[derive(Debug)]
pub(crate) struct PollSet(
    #[cfg(not(target_os = "freebsd"))] Epoll,
    /// As on Linux, where the set would be an epoll one.
    #[cfg(target_os = "freebsd")]
    Kqueue,
);

impl PollSet {
    pub(crate) fn new(descriptors: [BorrowedFd<'_>; 2]) -> Result<Self> {
        let set = Self::empty()?;
        for fd in descriptors {
            set.add(fd)?;
        }
        Ok(set)
    }
}

#[cfg(not(target_os = "freebsd"))]
impl PollSet {
    fn empty() -> Result<Self> {
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        set.map(Self).map_err(|errno| os("epoll_create", errno))
    }

    /// Adds a descriptor.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.0
            .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))
            .map_err(|errno| os("epoll_ctl", errno))
    }

    /// Removes a descriptor. Closing it would not be enough: a child process may have a copy.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        // The only failure is that it is not in the set.
        let _ = self.0.delete(fd);
    }
}

#[cfg(target_os = "freebsd")]
impl PollSet {
    fn empty() -> Result<Self> {
        let set = Kqueue::new();
        set.map(Self).map_err(|errno| os("kqueue", errno))
    }

    /// Adds a descriptor.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.change(fd, EvFlags::EV_ADD)
    }

    /// Removes a descriptor.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        // The only failure is that it is not in the set.
        let _ = self.change(fd, EvFlags::EV_DELETE);
    }

    fn change(&self, fd: BorrowedFd<'_>, flags: EvFlags) -> Result<()> {
        use std::os::fd::AsRawFd;
        let fd = fd.as_raw_fd() as usize;
        let filter = EventFilter::EVFILT_READ;
        let change = KEvent::new(fd, filter, flags, FilterFlag::empty(), 0, 0);
        self.0
            .kevent(&[change], &mut [], None)
            .map(drop)
            .map_err(|errno| os("kevent", errno))
    }
}

impl AsFd for PollSet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        #[cfg(not(target_os = "freebsd"))]
        let set = &self.0.0;
        #[cfg(target_os = "freebsd")]
        let set = &self.0;
        set.as_fd()
    }
}

/// A descriptor that is readable once a time has passed.
#[derive(Debug)]
pub(crate) struct Timer(
    #[cfg(not(target_os = "freebsd"))] TimerFd,
    #[cfg(target_os = "freebsd")] Kqueue,
);

#[cfg(not(target_os = "freebsd"))]
impl Timer {
    pub(crate) fn new() -> Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags);
        timer.map(Self).map_err(|errno| os("timerfd_create", errno))
    }

    /// Makes it readable after `wait`, or not at all.
    pub(crate) fn set(&self, wait: Option<Duration>) {
        // The errors of both calls are about their arguments only.
        let _ = match wait {
            // No time at all would end the timer.
            Some(wait) => self.0.set(
                Expiration::OneShot(wait.max(Duration::from_nanos(1)).into()),
                TimerSetTimeFlags::empty(),
            ),
            None => self.0.unset(),
        };
    }
}

#[cfg(target_os = "freebsd")]
impl Timer {
    pub(crate) fn new() -> Result<Self> {
        let timer = Kqueue::new();
        timer.map(Self).map_err(|errno| os("kqueue", errno))
    }

    /// Makes it readable after `wait`, or not at all.
    pub(crate) fn set(&self, wait: Option<Duration>) {
        let flags = match wait {
            Some(_) => EvFlags::EV_ADD | EvFlags::EV_ONESHOT,
            None => EvFlags::EV_DELETE,
        };
        let millis = wait.map_or(0, |wait| wait.as_nanos().div_ceil(1_000_000).max(1));
        let millis = isize::try_from(millis).unwrap_or(isize::MAX) as _;
        let filter = EventFilter::EVFILT_TIMER;
        let change = KEvent::new(0, filter, flags, FilterFlag::empty(), millis, 0);
        // The only failure is that there is no timer to end.
        let _ = self.0.kevent(&[change], &mut [], None);
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for ReadyFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }
}
