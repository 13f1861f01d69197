//! The end of the peer's whole domain, which nothing in the shared page tells.
//!
//! A process that ends is reported by its kernel: live byte and event. When the domain itself is
//! destroyed or its kernel is gone, nobody is left to do that: Xen takes its end of the event
//! channel away without an event, and the shared pages stay as they are. Only the store knows, and
//! answers whether a given domain still exists. When to ask:
//!
//! | what is seen | by whom | then |
//! |---|---|---|
//! | `@releaseDomain`: *some* domain has ended | domain 0, and whom it permits | the store is asked |
//! | the server's node is gone for a second | its client | the store is asked; to whom it does not answer (all but domain 0) this is the end |
//! | the hypervisor knows no such domain (any more) | whom the store does not answer, if no node tells either: a server, a listener's client | it is the end; asked every five seconds |
//!
//! A toolstack removes the nodes of a domain with the domain, and nobody else those of a server
//! that lives: one that withdraws its offer while it serves says so in the store.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use xen_evtchn::EventChannels;
use xen_store::{Store, Watch};
use xen_sys::DomId;

use crate::{Result, handshake};

/// How long the node is gone before that counts: a server that leaves in good order removes it too,
/// and says in the shared page that it leaves.
const GONE_FOR: Duration = Duration::from_secs(1);
/// How often the hypervisor is asked.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// A watch for the end of one domain, and one descriptor for it and the event channel together.
#[derive(Debug)]
pub(crate) struct DomainWatch {
    both: Epoll,
    watch: Watch,
    node: Option<Node>,
    asked: Option<Asked>,
    store: Store,
    peer: DomId,
    ended: AtomicBool,
}

fn failed(call: &'static str) -> impl Fn(Errno) -> xen_sys::Error {
    move |errno| xen_sys::Error::os(call, errno.into())
}

impl DomainWatch {
    /// Of a client's `peer`, whose server stays published at `path`, or of any other.
    pub(crate) fn watch(
        store: &Store,
        peer: DomId,
        events: &EventChannels,
        path: Option<&str>,
    ) -> Result<Self> {
        let watch = store.watch("@releaseDomain")?;
        let node = path.map(|path| Node::watch(store, path)).transpose()?;
        let silent = node.is_none()
            && store
                .is_introduced(peer)
                .is_err_and(|error| error.is_denied());
        let asked = if silent {
            Some(Asked::start(events, peer)?)
        } else {
            None
        };
        let failed = failed("epoll");
        let both = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(&failed)?;
        let add = |fd: BorrowedFd<'_>| {
            let readable = EpollEvent::new(EpollFlags::EPOLLIN, 0);
            both.add(fd, readable).map_err(&failed)
        };
        add(events.as_fd())?;
        add(watch.poll_fd()?)?;
        if let Some(node) = &node {
            add(node.watch.poll_fd()?)?;
            add(node.clock.as_fd())?;
        }
        if let Some(asked) = &asked {
            add(asked.clock.as_fd())?;
        }
        Ok(Self {
            both,
            watch,
            node,
            asked,
            store: store.clone(),
            peer,
            ended: AtomicBool::new(false),
        })
    }

    /// Readable when an event or word of an end has come.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.both.0.as_fd()
    }

    /// Whether [`ended`](Self::ended) has returned `true`.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Takes the words of ends that have come and asks, if there were any, whether ours is one.
    /// `true` once it is.
    pub(crate) fn ended(&self) -> Result<bool> {
        if self.ended.load(Ordering::Acquire) {
            return Ok(true);
        }
        let any = handshake::drain(&self.watch)? != 0;
        let gone = match (&self.node, &self.asked) {
            (Some(node), _) => node.is_gone(&self.store)?,
            (None, Some(asked)) => asked.is_gone(any, self.peer)?,
            (None, None) => false,
        };
        let ended = (any || gone) && !self.is_there(gone)?;
        if ended {
            self.ended.store(true, Ordering::Release);
        }
        Ok(ended)
    }

    /// The peer has come: its domain exists.
    pub(crate) fn peer_came(&self) {
        if let Some(asked) = &self.asked {
            asked.known.store(true, Ordering::Release);
        }
    }

    /// Whether the domain exists. Where the store does not tell us, it is gone with its node, or
    /// for the hypervisor.
    fn is_there(&self, gone: bool) -> Result<bool> {
        match self.store.is_introduced(self.peer) {
            Ok(introduced) => Ok(introduced),
            Err(error) if error.is_denied() => Ok(!gone),
            Err(error) => Err(error.into()),
        }
    }
}

/// The server's node in the store, and the clock that runs once it has vanished.
#[derive(Debug)]
struct Node {
    path: String,
    watch: Watch,
    clock: TimerFd,
}

impl Node {
    fn watch(store: &Store, path: &str) -> Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self {
            path: path.to_owned(),
            watch: handshake::watch(store, path)?,
            clock: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)
                .map_err(failed("timerfd_create"))?,
        })
    }

    /// Whether it is gone, and was when last looked at.
    fn is_gone(&self, store: &Store) -> Result<bool> {
        if handshake::drain(&self.watch)? != 0 {
            let set = if handshake::is_published(store, &self.path)? {
                self.clock.unset()
            } else {
                let later = Expiration::OneShot(GONE_FOR.into());
                self.clock.set(later, TimerSetTimeFlags::empty())
            };
            set.map_err(failed("timerfd_settime"))?;
        }
        match self.clock.wait() {
            Ok(()) => Ok(!handshake::is_published(store, &self.path)?),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
            Err(errno) => Err(failed("reading a timerfd")(errno).into()),
        }
    }
}

/// The hypervisor's word, for whom nobody else tells.
#[derive(Debug)]
struct Asked {
    events: EventChannels,
    clock: TimerFd,
    /// The domain has been there: a server may offer a vchan to one that is still to be made.
    known: AtomicBool,
}

impl Asked {
    fn start(events: &EventChannels, peer: DomId) -> Result<Self> {
        let failed = failed("timerfd");
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let clock = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(&failed)?;
        let each = Expiration::Interval(ASK_EVERY.into());
        clock
            .set(each, TimerSetTimeFlags::empty())
            .map_err(&failed)?;
        Ok(Self {
            known: AtomicBool::new(events.domain_exists(peer).unwrap_or(false)),
            events: events.clone(),
            clock,
        })
    }

    /// Asks, if it is time or `now`. Where the answer is refused the domain counts as there.
    fn is_gone(&self, now: bool, peer: DomId) -> Result<bool> {
        let due = match self.clock.wait() {
            Ok(()) => true,
            Err(Errno::EAGAIN | Errno::EINTR) => false,
            Err(errno) => return Err(failed("reading a timerfd")(errno).into()),
        };
        if !due && !now {
            return Ok(false);
        }
        if self.events.domain_exists(peer).unwrap_or(true) {
            self.known.store(true, Ordering::Release);
            return Ok(false);
        }
        Ok(self.known.load(Ordering::Acquire))
    }
}
