//! The backend: waits for a frontend to publish its ring, and connects to it.
//!
//! ```text
//!   frontend   this
//!   1          2   waits
//!   3, 4       4   ring mapped, port bound          (console 0 has no states: as soon as ring-ref and port are there)
//!   5, 6       6   let go; back to 2 when the frontend begins anew
//! ```
//!
//! # What the frontend can do
//!
//! Write anything to its nodes and to the ring, at any time. A reference that is not granted, a
//! port that is not open, a broken ring: the backend lets go, says why, and goes on when the
//! frontend closes and begins anew. Nodes that change while the ring is mapped are not looked at,
//! but for the state.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use xen_evtchn::{EventChannels, EventPacer};
use xen_gnttab::{PageAccess, map};
use xen_store::{Store, Watch};
use xen_sys::{DomId, GrantRef, Port, Xen};

use crate::{Error, Link, Result, State, domid, number, read, ring};

/// The grant reference of console 0, which the domain's builder made (`GNTTAB_RESERVED_CONSOLE`).
/// The node `ring-ref` of that console is a frame number.
const RESERVED: GrantRef = GrantRef::new(0);
/// The least time between two looks at the frontend's nodes. A frontend writes to them as fast as
/// it can, and a look costs the store a read, and a transaction if our state follows.
const BREATH: Duration = Duration::from_millis(20);
/// The pause grows up to this with looks that come closer than it: a frontend is done after a few.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The interval at which a frontend may notify for nothing.
const PACE: Duration = Duration::from_millis(1);
/// So many looks have the shortest pause.
const FREE: u32 = 16;

/// One console of one domain, served by us.
#[derive(Debug)]
pub struct Backend {
    link: Option<Link>,
    xen: Xen,
    store: Store,
    path: String,
    frontend: String,
    domain: DomId,
    number: u32,
    nodes: Watch,
    state: State,
    /// The frontend wants the ring back, and has it back only with [`let_go`](Self::let_go).
    closing: bool,
    /// The frontend must leave its state before another connection is tried.
    refused: bool,
    /// No look at the nodes before this.
    next: Instant,
    /// Looks that came in a row without a pause of [`PAUSE_MAX`] before them.
    looks: u32,
    /// Something may have changed since the nodes were looked at.
    stale: bool,
}

impl Backend {
    /// Takes on the console whose backend directory is `path`, such as
    /// `/local/domain/0/backend/console/5/1`, and says so in its state.
    ///
    /// # Errors
    /// The directory does not describe a console; the store's.
    pub fn new(xen: &Xen, store: &Store, path: &str) -> Result<Self> {
        let domain = domid(store, &format!("{path}/frontend-id"))?;
        let frontend = store.read_str(&format!("{path}/frontend"))?;
        let number = path.rsplit('/').next().and_then(|name| name.parse().ok());
        let number = number.ok_or_else(|| Error::Node {
            node: path.to_owned(),
            what: "does not end in a console's number",
        })?;
        let nodes = store.watch(&frontend)?;
        let mut backend = Self {
            link: None,
            xen: xen.clone(),
            store: store.clone(),
            path: path.to_owned(),
            frontend,
            domain,
            number,
            nodes,
            state: State::Initialising,
            closing: false,
            refused: false,
            next: Instant::now(),
            looks: 0,
            stale: true,
        };
        backend.set(State::InitWait)?;
        Ok(backend)
    }

    /// The console's number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The backend directory.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The frontend's directory.
    pub fn frontend(&self) -> &str {
        &self.frontend
    }

    /// The ring, while it is connected.
    pub fn link(&mut self) -> Option<&mut Link> {
        self.link.as_mut()
    }

    /// Whether the ring is connected.
    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// The descriptor of the ring's events, while it is connected: to be polled for input.
    pub fn ring_fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.as_ref().map(AsFd::as_fd)
    }

    /// The descriptors to be polled for input: the ring's and that of the frontend's nodes. Once
    /// the store is lost, its descriptor stays readable.
    pub fn poll_fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = Vec::from_iter(self.ring_fd());
        // Later changes before the next look make no difference.
        if let (false, Ok(fd)) = (self.stale, self.nodes.poll_fd()) {
            fds.push(fd);
        }
        fds
    }

    /// When to look again without an event.
    pub fn deadline(&self) -> Option<Instant> {
        let look = self.stale.then_some(self.next);
        look.into_iter().chain(self.ring_deadline()).min()
    }

    /// When to look at the ring again without an event: its peer notifies for nothing all the time.
    pub fn ring_deadline(&self) -> Option<Instant> {
        self.link.as_ref().and_then(Link::deadline)
    }

    /// Takes note of events; connects when the frontend has published, and says `Closing` when the
    /// frontend wants the ring back. Then take out what is in it and call [`let_go`](Self::let_go).
    ///
    /// # Errors
    /// [`Error::Ring`], [`Error::Node`], [`Error::Xen`]: this connection failed, and the frontend
    /// is told by the state. The backend stays of use. [`Error::Store`]: it is not.
    pub fn turn(&mut self, now: Instant) -> Result<State> {
        if let Some(link) = &mut self.link {
            link.acknowledge(now)?;
        }
        while self.nodes.try_next()?.is_some() {
            self.stale = true;
        }
        if self.closing && self.link.is_some() {
            return Ok(State::Closing);
        }
        if !self.stale || now < self.next {
            return Ok(self.state);
        }
        self.stale = false;
        self.rest(now);
        let theirs = self.frontend_state()?;
        if self.link.is_some() {
            if matches!(theirs, None | Some(State::Closing | State::Closed)) {
                self.closing = true;
                return Ok(State::Closing);
            }
            return Ok(self.state);
        }
        match theirs {
            Some(State::Initialised | State::Connected) if !self.refused => self.connect()?,
            Some(State::Initialising) => {
                self.refused = false;
                self.set(State::InitWait)?;
            }
            Some(State::Closing | State::Closed) => {
                self.refused = false;
                self.set(State::Closed)?;
            }
            _ => {}
        }
        Ok(self.state)
    }

    /// Puts off the next look.
    fn rest(&mut self, now: Instant) {
        let quiet = now.saturating_duration_since(self.next) >= PAUSE_MAX;
        self.looks = if quiet {
            0
        } else {
            self.looks.saturating_add(1)
        };
        let doublings = self.looks.saturating_sub(FREE).min(16);
        self.next = now + BREATH.saturating_mul(1 << doublings).min(PAUSE_MAX);
    }

    /// Returns the frontend's state. Console 0 has none of its own: it is there from the start.
    fn frontend_state(&self) -> Result<Option<State>> {
        if self.number == 0 {
            let there = read(&self.store, &format!("{}/port", self.frontend))?;
            return Ok(there.map(|_| State::Connected));
        }
        let state = read(&self.store, &format!("{}/state", self.frontend))?;
        Ok(state.as_deref().and_then(State::of))
    }

    fn connect(&mut self) -> Result<()> {
        match self.attach() {
            Ok(Some(link)) => {
                // Nobody was notified of what it wrote before this connection.
                link.notify()?;
                self.link = Some(link);
                self.set(State::Connected)
            }
            // Not all of it is there yet.
            Ok(None) => Ok(()),
            Err(error @ Error::Store(_)) => Err(error),
            Err(error) => {
                self.refused = true;
                self.set(State::Closing)?;
                Err(error)
            }
        }
    }

    fn attach(&self) -> Result<Option<Link>> {
        let reference = number(&self.store, &format!("{}/ring-ref", self.frontend));
        let reference = if self.number == 0 {
            Some(RESERVED)
        } else {
            reference?.map(GrantRef::new)
        };
        let port = number(&self.store, &format!("{}/port", self.frontend))?;
        let (Some(reference), Some(port)) = (reference, port) else {
            return Ok(None);
        };
        let mut pages = map(&self.xen, self.domain, &[reference], PageAccess::ReadWrite)?;
        let ends = ring::backend(pages.take_region())?;
        let channels = EventChannels::open(&self.xen)?;
        let bound = channels.bind_interdomain(self.domain, Port::new(port))?;
        let pacer = EventPacer::new(PACE);
        let link = Link::new(ends, bound, channels, pacer);
        Ok(Some(link.published(reference.as_u32(), port)))
    }

    /// Unmaps the ring and says so. Gives what the frontend has not taken out: it will want it from
    /// its next ring.
    ///
    /// # Errors
    /// The store's.
    pub fn let_go(&mut self) -> Result<Vec<u8>> {
        let back = self.link.take().map(Link::take_back);
        self.closing = false;
        self.stale = true;
        self.set(State::Closed)?;
        Ok(back.unwrap_or_default())
    }

    /// As [`let_go`](Self::let_go), after the peer broke its ring: no other connection until it
    /// closes.
    ///
    /// # Errors
    /// The store's.
    pub fn give_up(&mut self) -> Result<()> {
        self.link = None;
        self.closing = false;
        self.refused = true;
        self.set(State::Closing)
    }

    fn set(&mut self, state: State) -> Result<()> {
        if self.state == state {
            return Ok(());
        }
        let node = format!("{}/state", self.path);
        // The toolstack removes the directory when it likes; writing would bring it back.
        self.store.with_transaction(|tx| {
            if tx.exists(&self.path)? {
                tx.write(&node, state.text())?;
            }
            Ok(())
        })?;
        self.state = state;
        Ok(())
    }
}
