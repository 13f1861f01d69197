//! Serves many clients at once, each with its own ring.
//!
//! A vchan's memory is for one client of one domain. A listener keeps one ring *on offer* at each
//! path it serves. When a client has connected, the listener removes its ring from the store and
//! returns it to the owner, and offers a fresh one at the same path:
//!
//! ```text
//!   store                                       listener                    owner
//!   …/data/vchan/3/echo   ring-ref, port ─────▶ on offer for domain 3
//!        (client comes: nodes removed)          ───────────────────────▶    Channel, one session
//!   …/data/vchan/3/echo   ring-ref, port ─────▶ on offer for domain 3
//!   …/data/vchan/7/echo   ring-ref, port ─────▶ on offer for domain 7
//! ```
//!
//! Clients need no change for this: libxenvchan's find a server at the path each time. A path
//! belongs to one domain, because the ring's pages are granted to it.
//!
//! # Guarantees, whatever clients do
//!
//! * Each domain has a limited number of clients; more find nothing at the path until one is gone.
//! * A client that scribbles, stays silent or dies costs its own ring. A client that does so before
//!   it is accepted is never seen; a fresh ring takes its place.
//! * Work per call is bounded by the number of paths and events, never by a client.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use xen_store::Store;
use xen_sys::{DomId, Xen};

use crate::domain_watch::Watching;
use crate::doorbell::{has_passed, readable};
use crate::layout::RingSize;
use crate::session::PeerState;
use crate::shared::ClientSlot;
use crate::{Channel, Error, Result, ServerBuilder};

/// Clients a domain may have at the same time, unless the builder sets another number.
const CLIENTS: usize = 16;
/// Events looked at in one call.
const BATCH: usize = 64;
/// The event that announces that a client's place is free again.
const VACATED: u64 = 0;

/// Serves many clients of one or more domains. Made by [`Listener::builder`].
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (xen, store) = (xen_sys::Xen::open()?, xen_store::Store::open(&xen_sys::Xen::open()?)?);
/// # let (me, guest) = (xen_sys::DomId::DOM0, xen_sys::DomId::new(3));
/// let mut listener = xen_vchan::Listener::builder().clients_per_domain(4).listen(&xen, &store)?;
/// listener.bind(guest, xen_vchan::service_path(me, guest, "echo")?)?;
/// loop {
///     let mut channel = listener.accept(None)?;
///     std::thread::spawn(move || {
///         let (rx, tx) = channel.halves();
///         std::io::copy(rx, tx)
///     });
/// }
/// # }
/// ```
///
/// The descriptor ([`AsFd`]) is readable when [`try_accept`](Self::try_accept) has something to do.
#[derive(Debug)]
pub struct Listener {
    xen: Xen,
    store: Store,
    settings: ListenerBuilder,
    offers: HashMap<u64, Offer>,
    /// Never used again, so that a late event of a removed path matches no other.
    last: u64,
    arrived: VecDeque<Channel>,
    set: Epoll,
    vacated: Arc<EventFd>,
    /// See [`has_more`](Self::has_more).
    more: bool,
}

/// The settings of a listener. Made by [`Listener::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `listen` is called"]
pub struct ListenerBuilder {
    left: RingSize,
    right: RingSize,
    clients: usize,
    watching: Watching,
}

/// One path.
#[derive(Debug)]
struct Offer {
    domain: DomId,
    path: String,
    /// The ring on offer.
    ring: Option<Channel>,
    /// Accepted clients whose channels still exist.
    clients: Arc<AtomicUsize>,
}

impl ListenerBuilder {
    /// Sets the least sizes of the rings, as [`ServerBuilder::rings`](crate::ServerBuilder::rings).
    pub fn rings(mut self, left: impl Into<RingSize>, right: impl Into<RingSize>) -> Self {
        self.left = left.into();
        self.right = right.into();
        self
    }

    /// Sets how many clients each path may have at a time, at least 1; 16 by default.
    ///
    /// Each client costs its rings, and each path one ring more, the one on offer. Linux grants a
    /// domain 1024 pages unless its `gntalloc` has another `limit`.
    pub const fn clients_per_domain(mut self, clients: usize) -> Self {
        self.clients = if clients == 0 { 1 } else { clients };
        self
    }

    /// Sets how the end of a client's domain is noticed.
    ///
    /// As [`ServerBuilder::watch_peer_domain`](crate::ServerBuilder::watch_peer_domain), for every
    /// channel accepted.
    pub const fn watch_peer_domain(mut self, watch: bool) -> Self {
        self.watching = Watching::chosen(watch);
        self
    }

    /// Makes the listener. It [serves](Listener::bind) no domain yet.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if there is no descriptor left.
    pub fn listen(self, xen: &Xen, store: &Store) -> Result<Listener> {
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let vacated = Arc::new(EventFd::from_value_and_flags(0, flags).map_err(failed)?);
        let event = EpollEvent::new(EpollFlags::EPOLLIN, VACATED);
        set.add(&*vacated, event).map_err(failed)?;
        Ok(Listener {
            xen: xen.clone(),
            store: store.clone(),
            settings: self,
            offers: HashMap::new(),
            last: VACATED,
            arrived: VecDeque::new(),
            set,
            vacated,
            more: false,
        })
    }
}

impl Listener {
    /// Creates a listener with the rings inside the control page and 16 clients for each path.
    pub const fn builder() -> ListenerBuilder {
        ListenerBuilder {
            left: RingSize::SMALLEST,
            right: RingSize::SMALLEST,
            clients: CLIENTS,
            watching: Watching::Ask,
        }
    }

    /// Serves clients of `domain` at `path`, absolute or relative to this domain's own directory.
    /// [`service_path`](crate::service_path) returns a path that other implementations use.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if that path is served already; otherwise as
    /// [`ServerBuilder::publish`](crate::ServerBuilder::publish).
    pub fn bind(&mut self, domain: DomId, path: impl Into<String>) -> Result<()> {
        let path = path.into();
        if self.offers.values().any(|offer| offer.path == path) {
            return Err(Error::Invalid {
                what: "this listener serves that path already",
            });
        }
        self.last += 1;
        let mut offer = Offer {
            domain,
            path,
            ring: None,
            clients: Arc::default(),
        };
        offer.ring = Some(self.make(self.last, &offer)?);
        self.offers.insert(self.last, offer);
        Ok(())
    }

    /// Stops serving clients at `path`. Those accepted stay. A client that connected and was not
    /// accepted yet finds its channel closed.
    pub fn stop(&mut self, path: &str) {
        self.offers.retain(|_, offer| offer.path != path);
    }

    /// Makes a ring for an offer and watches it under `token`.
    fn make(&self, token: u64, offer: &Offer) -> Result<Channel> {
        let ring = ServerBuilder::new(offer.domain, &offer.path)
            .withdraws()
            .rings(self.settings.left, self.settings.right)
            .watching(self.settings.watching)
            .publish(&self.xen, &self.store)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
        self.set.add(&ring, event).map_err(failed)?;
        Ok(ring)
    }

    /// Returns a client that has connected, without waiting for one.
    ///
    /// The channel is for one session: [`next_client`](Channel::next_client) fails, and the
    /// client's place is free again when the channel is dropped. A client that connected, wrote and
    /// left meanwhile can still be read.
    ///
    /// # Errors
    ///
    /// [`Error::WouldBlock`]: no client has connected; the descriptor becomes readable when one
    /// does. [`Error::Os`], [`Error::Store`]: a fresh ring could not be offered. The next call
    /// tries again; paths that have their ring are not affected.
    pub fn try_accept(&mut self) -> Result<Channel> {
        self.look()?;
        let offered = self.refill();
        match (self.arrived.pop_front(), offered) {
            (Some(channel), _) => Ok(channel),
            (None, Err(error)) => Err(error),
            (None, Ok(())) => Err(Error::WouldBlock),
        }
    }

    /// Returns the next client; blocks until there is one or the deadline passes.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`]; otherwise as [`try_accept`](Self::try_accept).
    pub fn accept(&mut self, deadline: Option<Instant>) -> Result<Channel> {
        let mut late = false;
        loop {
            match self.try_accept() {
                Err(Error::WouldBlock) if late => return Err(Error::TimedOut),
                Err(Error::WouldBlock) => {}
                other => return other,
            }
            #[cfg(test)]
            crate::test_window::window();
            // A client may notify before each sleep, and not connect.
            late = !readable(self.as_fd(), deadline)? || has_passed(deadline);
        }
    }

    /// Looks at the rings with events, batch by batch, until there are no more. Clients that notify
    /// again and again add no work: after as many batches as all paths can fill, the rest is left
    /// to the next call.
    fn look(&mut self) -> Result<()> {
        for _ in 0..=self.offers.len() / BATCH {
            // Also after a failure: unprocessed events remain.
            self.more = true;
            self.more = self.look_at_batch()? == BATCH;
            if !self.more {
                break;
            }
        }
        Ok(())
    }

    /// Returns whether the last call left events for the next one. The descriptor does not become
    /// readable *again* for them.
    #[cfg(feature = "tokio")]
    pub(crate) const fn has_more(&self) -> bool {
        self.more
    }

    /// Looks at a batch of events; returns their number.
    fn look_at_batch(&mut self) -> Result<usize> {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = loop {
            match self.set.wait(&mut events, EpollTimeout::ZERO) {
                Err(Errno::EINTR) => {}
                other => break other.map_err(failed)?,
            }
        };
        for event in &events[..count] {
            if event.data() == VACATED {
                // `refill` looks at the count. An empty counter is fine: an earlier read took
                // several increments.
                let _ = self.vacated.read();
                continue;
            }
            let Some(offer) = self.offers.get_mut(&event.data()) else {
                continue;
            };
            let Some(ring) = &offer.ring else { continue };
            let state = ring.shared().acknowledge().and_then(|()| ring.peer());
            match state {
                Ok(PeerState::Waiting) => {}
                // The domain has ended without connecting; another may get its number.
                Ok(PeerState::Gone) if ring.shared().session.count() == 0 => {
                    if let Some(ring) = offer.ring.take() {
                        let _ = self.set.delete(&ring);
                    }
                }
                // The client connected; perhaps it has left since, but it may have written.
                Ok(PeerState::Connected | PeerState::Gone) => {
                    if let Some(ring) = offer.ring.take() {
                        self.set.delete(&ring).map_err(failed)?;
                        offer.clients.fetch_add(1, Ordering::AcqRel);
                        let slot = ClientSlot::new(&offer.clients, &self.vacated);
                        let _ = ring.shared().slot.set(slot);
                        // One client only: the next client must find the next ring.
                        ring.shared().withdraw();
                        self.arrived.push_back(ring);
                    }
                }
                Err(error) => {
                    tracing::info!(domain = %offer.domain, path = %offer.path, %error, "a ring on offer is replaced");
                    if let Some(ring) = offer.ring.take() {
                        let _ = self.set.delete(&ring);
                    }
                }
            }
        }
        Ok(count)
    }

    /// Offers a fresh ring where there is none and room for a client.
    fn refill(&mut self) -> Result<()> {
        let mut result = Ok(());
        let lacking = |(token, offer): (&u64, &Offer)| {
            let free = offer.clients.load(Ordering::Acquire) < self.settings.clients;
            (offer.ring.is_none() && free).then_some(*token)
        };
        let lacking: Vec<u64> = self.offers.iter().filter_map(lacking).collect();
        for token in lacking {
            let Some(offer) = self.offers.get(&token) else {
                continue;
            };
            match self.make(token, offer) {
                Ok(ring) => {
                    if let Some(offer) = self.offers.get_mut(&token) {
                        offer.ring = Some(ring);
                    }
                }
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Returns how many accepted clients of the paths served still have their channels.
    #[must_use]
    pub fn clients(&self) -> usize {
        let count = |offer: &Offer| offer.clients.load(Ordering::Acquire);
        self.offers.values().map(count).sum()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.set.0.as_fd()
    }
}

fn failed(errno: Errno) -> Error {
    Error::Os(xen_sys::Error::os("epoll", errno.into()))
}
