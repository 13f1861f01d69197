//! The end of the peer's whole domain, which nothing in the shared page tells.
//!
//! A process that ends is reported by its kernel: live byte and event. When the domain itself is
//! destroyed or its kernel is gone, nobody is left to do that: Xen takes its end of the event
//! channel away without an event, and the shared pages stay as they are. Only the store knows. It
//! tells those who watch `@releaseDomain` that *some* domain has ended (domain 0, and whom it
//! permits), and answers whether a given domain still exists.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use xen_evtchn::EventChannels;
use xen_store::{Store, Watch};
use xen_sys::DomId;

use crate::Result;

/// A watch for the end of one domain, and one descriptor for it and the event channel together.
#[derive(Debug)]
pub(crate) struct DomainLife {
    both: Epoll,
    watch: Watch,
    store: Store,
    peer: DomId,
    ended: AtomicBool,
}

impl DomainLife {
    pub(crate) fn watch(store: &Store, peer: DomId, events: &EventChannels) -> Result<Self> {
        let watch = store.watch("@releaseDomain")?;
        let failed = |errno: nix::errno::Errno| xen_sys::Error::os("epoll", errno.into());
        let both = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let readable = || EpollEvent::new(EpollFlags::EPOLLIN, 0);
        both.add(events, readable()).map_err(failed)?;
        both.add(watch.poll_fd()?, readable()).map_err(failed)?;
        Ok(Self {
            both,
            watch,
            store: store.clone(),
            peer,
            ended: AtomicBool::new(false),
        })
    }

    /// Readable when an event or word of an end has come.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.both.0.as_fd()
    }

    /// Takes the words of ends that have come and asks, if there were any, whether ours is one.
    /// `true` once it is.
    pub(crate) fn ended(&self) -> Result<bool> {
        if self.ended.load(Ordering::Acquire) {
            return Ok(true);
        }
        let mut any = false;
        while self.watch.try_next()?.is_some() {
            any = true;
        }
        let ended = any && !self.store.is_introduced(self.peer)?;
        if ended {
            self.ended.store(true, Ordering::Release);
        }
        Ok(ended)
    }
}
