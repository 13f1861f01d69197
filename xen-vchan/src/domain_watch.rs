//! The end of the peer's whole domain, of which the shared page shows nothing.
//!
//! When a process ends, its kernel reports it: live byte and event. When the domain itself is
//! destroyed or its kernel is gone, nothing does. Xen removes that end of the event channel without
//! an event, and the shared pages stay as they are. The store shows the end, and so does the
//! hypervisor later, when no other domain maps the domain's pages any more:
//!
//! | seen | by | then |
//! |---|---|---|
//! | `@releaseDomain`: *some* domain has ended | domain 0, if its owner requires the watch | the store is asked |
//! | the server's node is gone for a second | its client, if its owner requires the watch | that is the end, where the store denies the question |
//! | every five seconds | everybody | the store is asked; where it denies, the node twice, or the hypervisor |
//!
//! The default is the third row alone. A watch makes the store's connection part of each channel's
//! descriptor, and Linux lets a hundred of them be polled by an event loop's epoll, or fewer.
//!
//! A toolstack removes the nodes of a domain with the domain. A server of this crate that withdraws
//! its offer while it serves marks that in the store. Others may not (the server of Qubes removes
//! its nodes when its client has connected). So a missing node is taken for the end only if the
//! owner requires it.
//!
//! No failure of the store ends a channel: the hypervisor is asked then.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use xen_evtchn::EventChannels;
use xen_store::{Store, Watch};
use xen_sys::DomId;

use crate::{Error, Result, handshake};

/// How long the node is gone before that counts: a server that leaves in good order removes it too,
/// and marks in the shared page that it leaves.
const GONE_FOR: Duration = Duration::from_secs(1);
/// The interval at which the store or the hypervisor is asked.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// The longest that a request to the store holds up a call of the channel.
const STORE_ANSWERS: Duration = Duration::from_millis(250);

const EVENT: u64 = 1;
const RELEASE: u64 = 2;
const NODE: u64 = 4;
const CLOCK: u64 = 8;

/// How the end of the peer's domain is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watching {
    /// The owner has switched it off.
    Off,
    /// By questions, unless the peer is domain 0, which outlives every other.
    Ask,
    /// By watches. Making the channel fails without them.
    Watch,
}

impl Watching {
    pub(crate) const fn chosen(watch: bool) -> Self {
        if watch { Self::Watch } else { Self::Off }
    }
}

/// The reasons why the descriptor was readable.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found(u64);

impl Found {
    /// An event of the channel's.
    pub(crate) const fn event(self) -> bool {
        self.0 & EVENT != 0
    }

    const fn has(self, token: u64) -> bool {
        self.0 & token != 0
    }
}

/// A watch for the end of one domain, and one descriptor for it and the event channel together.
#[derive(Debug)]
pub(crate) struct DomainWatch {
    both: Epoll,
    release: Option<Watch>,
    node: Option<Node>,
    clock: OnceLock<TimerFd>,
    events: EventChannels,
    store: Store,
    peer: DomId,
    /// The clock runs, and the store or the hypervisor is asked when it expires.
    asks: AtomicBool,
    /// The domain has existed: a server may offer a vchan to a domain that is still to be made.
    known: AtomicBool,
    ended: AtomicBool,
}

fn failed(call: &'static str) -> impl Fn(Errno) -> xen_sys::Error {
    move |errno| xen_sys::Error::os(call, errno.into())
}

impl DomainWatch {
    /// Watches the domain `peer`. `path`: the server's node, if this side is a client and the node
    /// stays as long as the server. `came`: the peer's domain certainly exists.
    pub(crate) fn watch(
        watching: Watching,
        store: &Store,
        peer: DomId,
        events: &EventChannels,
        path: Option<&str>,
        came: bool,
    ) -> Result<Option<Self>> {
        if watching == Watching::Off || (watching == Watching::Ask && peer == DomId::DOM0) {
            return Ok(None);
        }
        let mut this = Self {
            both: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("epoll"))?,
            release: None,
            node: path.map(|path| Node {
                path: path.to_owned(),
                watch: None,
                missed: AtomicBool::new(false),
            }),
            clock: OnceLock::new(),
            events: events.clone(),
            // With its own time limit: a store that does not answer must not hold the channel up.
            store: store.with_timeout(Some(STORE_ANSWERS)),
            peer,
            asks: AtomicBool::new(false),
            known: AtomicBool::new(came),
            ended: AtomicBool::new(false),
        };
        this.add(events.as_fd(), EVENT)?;
        if watching == Watching::Watch {
            this.watch_store(store)?;
        } else {
            this.start_asking()?;
        }
        if !came {
            // Records whether the domain exists already. One that does not exist has not ended.
            this.ask();
        }
        Ok(Some(this))
    }

    /// Sets up the watches in the store.
    fn watch_store(&mut self, store: &Store) -> Result<()> {
        let release = self.release.insert(store.watch("@releaseDomain")?);
        add(&self.both, release.poll_fd()?, RELEASE)?;
        if let Some(node) = &mut self.node {
            let watch = node.watch.insert(handshake::watch(store, &node.path)?);
            add(&self.both, watch.poll_fd()?, NODE)?;
            return self.clock().map(drop);
        }
        match store.is_introduced(self.peer) {
            Ok(_) => Ok(()),
            Err(error) if error.is_denied() => self.start_asking(),
            Err(error) => Err(error.into()),
        }
    }

    fn add(&self, fd: BorrowedFd<'_>, token: u64) -> Result<()> {
        add(&self.both, fd, token)
    }

    /// The clock, made at its first use.
    fn clock(&self) -> Result<&TimerFd> {
        if let Some(clock) = self.clock.get() {
            return Ok(clock);
        }
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let fresh = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(failed("timerfd"))?;
        self.add(fresh.as_fd(), CLOCK)?;
        Ok(self.clock.get_or_init(|| fresh))
    }

    /// Starts the clock: the store or the hypervisor is asked every five seconds.
    fn start_asking(&self) -> Result<()> {
        if !self.asks.swap(true, Ordering::AcqRel) {
            let clock = self.clock()?;
            let each = Expiration::Interval(ASK_EVERY.into());
            let set = clock.set(each, TimerSetTimeFlags::empty());
            set.map_err(failed("timerfd_settime"))?;
        }
        Ok(())
    }

    /// Drops the watches: the descriptors of a connection that has ended are readable forever.
    fn unwatch_store(&self) {
        let node = self.node.as_ref().and_then(|node| node.watch.as_ref());
        for watch in self.release.iter().chain(node) {
            let _ = watch.poll_fd().map(|fd| self.both.delete(fd));
        }
    }

    /// The descriptor, readable when an event has arrived or the domain must be checked.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.both.0.as_fd()
    }

    /// Waits until the descriptor is readable; returns `None` if the deadline passes first. A
    /// signal ends the wait with nothing found.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Result<Option<Found>> {
        let timeout = match deadline {
            None => EpollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Rounded up, so that the deadline has passed when the time is over.
                let millis = left.as_micros().div_ceil(1000).min(i32::MAX as u128);
                EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
            }
        };
        match self.poll(timeout)? {
            // A timeout longer than epoll can express; or a signal.
            Found(0) if crate::doorbell::has_passed(deadline) => Ok(None),
            found => Ok(Some(found)),
        }
    }

    /// Returns the reasons why the descriptor is readable now. One system call.
    pub(crate) fn look(&self) -> Result<Found> {
        self.poll(EpollTimeout::ZERO)
    }

    fn poll(&self, timeout: EpollTimeout) -> Result<Found> {
        let mut events = [EpollEvent::empty(); 4];
        match self.both.wait(&mut events, timeout) {
            Ok(count) => {
                let tokens = events[..count].iter().map(EpollEvent::data);
                Ok(Found(tokens.fold(0, |all, token| all | token)))
            }
            Err(Errno::EINTR) => Ok(Found::default()),
            Err(errno) => Err(failed("epoll_wait")(errno).into()),
        }
    }

    /// Returns whether [`ended`](Self::ended) has returned `true`.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Takes the notifications of ended domains that were found, and checks whether the peer's is
    /// among them. Returns `true` from then on.
    pub(crate) fn ended(&self, found: Found) -> Result<bool> {
        if self.has_ended() {
            return Ok(true);
        }
        if found.0 & !EVENT == 0 {
            return Ok(false);
        }
        let rang = found.has(CLOCK) && self.take_ring()?;
        let ended = match self.judge(found, rang) {
            Err(Error::Store(error)) => {
                tracing::warn!(
                    peer = %self.peer, %error,
                    "the store does not answer for the peer's domain; asking the hypervisor every 5 s"
                );
                if !matches!(error, xen_store::Error::TimedOut { .. }) {
                    self.unwatch_store();
                }
                self.start_asking()?;
                self.ask_hypervisor()
            }
            other => other?,
        };
        if ended {
            self.ended.store(true, Ordering::Release);
        }
        Ok(ended)
    }

    fn take_ring(&self) -> Result<bool> {
        match self.clock()?.wait() {
            Ok(()) => Ok(true),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
            Err(errno) => Err(failed("reading a timerfd")(errno).into()),
        }
    }

    fn judge(&self, found: Found, rang: bool) -> Result<bool> {
        let any = match &self.release {
            Some(watch) if found.has(RELEASE) => handshake::drain(watch)? != 0,
            _ => false,
        };
        let moved = match self.node.as_ref().and_then(|node| node.watch.as_ref()) {
            Some(watch) if found.has(NODE) => handshake::drain(watch)? != 0,
            _ => false,
        };
        if self.asks.load(Ordering::Acquire) {
            return Ok((any || rang) && self.ask());
        }
        let gone = match &self.node {
            Some(node) => self.node_is_gone(node, moved, rang)?,
            None => false,
        };
        if !any && !gone {
            return Ok(false);
        }
        match self.store.is_introduced(self.peer) {
            Ok(introduced) => Ok(self.missed(introduced)),
            Err(error) if error.is_denied() => Ok(gone),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns whether the node is gone, and was gone a second ago.
    fn node_is_gone(&self, node: &Node, moved: bool, rang: bool) -> Result<bool> {
        if moved {
            let clock = self.clock()?;
            let set = if handshake::is_published(&self.store, &node.path)? {
                clock.unset()
            } else {
                let later = Expiration::OneShot(GONE_FOR.into());
                clock.set(later, TimerSetTimeFlags::empty())
            };
            set.map_err(failed("timerfd_settime"))?;
            return Ok(false);
        }
        Ok(rang && !handshake::is_published(&self.store, &node.path)?)
    }

    /// Returns whether the domain has ended. Asks the store; where the store denies the question,
    /// checks the server's node or asks the hypervisor. Without any answer it has not ended.
    fn ask(&self) -> bool {
        match self.store.is_introduced(self.peer) {
            Ok(introduced) => self.missed(introduced),
            Err(error) if error.is_denied() => match &self.node {
                Some(node) => node.is_missed(&self.store),
                None => self.ask_hypervisor(),
            },
            Err(_) => self.ask_hypervisor(),
        }
    }

    fn ask_hypervisor(&self) -> bool {
        let there = self.events.domain_exists(self.peer);
        there.is_ok_and(|there| self.missed(there))
    }

    /// Records whether the domain is `there`; returns whether it is gone and was there before.
    fn missed(&self, there: bool) -> bool {
        if there {
            self.known.store(true, Ordering::Release);
        }
        !there && self.known.load(Ordering::Acquire)
    }

    /// Records that the peer has connected: its domain exists.
    pub(crate) fn peer_came(&self) {
        self.known.store(true, Ordering::Release);
    }
}

fn add(both: &Epoll, fd: BorrowedFd<'_>, token: u64) -> Result<()> {
    let readable = EpollEvent::new(EpollFlags::EPOLLIN, token);
    Ok(both.add(fd, readable).map_err(failed("epoll_ctl"))?)
}

/// The server's node in the store.
#[derive(Debug)]
struct Node {
    path: String,
    watch: Option<Watch>,
    /// The node was gone at the last check.
    missed: AtomicBool,
}

impl Node {
    /// Returns whether the node is gone, and was gone at the check before.
    fn is_missed(&self, store: &Store) -> bool {
        let gone = handshake::is_published(store, &self.path).is_ok_and(|there| !there);
        self.missed.swap(gone, Ordering::AcqRel) && gone
    }
}
