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
//! port that is not open, a broken ring: the backend unmaps the ring and returns the reason. It
//! connects again when the frontend has closed and published again. While the ring is mapped, the
//! backend reads the state and ignores changes of all other nodes.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use xen_gnttab::{PageAccess, map};
use xen_store::xenbus::{BackendAction, BackendHandshake, XenbusState};
use xen_store::{Store, Watch};
use xen_sys::{DomId, GrantRef, Port, Xen};

use crate::{Connection, Doorbell, Error, Result, domid, number, ring, state};

/// The grant reference of console 0, which the domain's builder made (`GNTTAB_RESERVED_CONSOLE`).
/// The node `ring-ref` of that console is a frame number.
const RESERVED: GrantRef = GrantRef::new(0);
/// The interval at which a frontend may notify for nothing.
const PACE: Duration = Duration::from_millis(1);

/// One console of one domain, served by us.
#[derive(Debug)]
pub struct Backend {
    connection: Option<Connection>,
    xen: Xen,
    store: Store,
    path: String,
    frontend: String,
    domain: DomId,
    number: u32,
    nodes: Watch,
    handshake: BackendHandshake,
    /// A state whose write failed.
    unwritten: Option<XenbusState>,
}

impl Backend {
    /// Takes on the console whose backend directory is `path`, such as
    /// `/local/domain/0/backend/console/5/1`, and writes that to its state.
    ///
    /// # Errors
    /// The directory does not describe a console, or the store fails.
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
            connection: None,
            xen: xen.clone(),
            store: store.clone(),
            path: path.to_owned(),
            frontend,
            domain,
            number,
            nodes,
            handshake: BackendHandshake::new(Instant::now()),
            unwritten: None,
        };
        backend.write_state()?;
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
    pub fn connection(&mut self) -> Option<&mut Connection> {
        self.connection.as_mut()
    }

    /// Returns whether the ring is connected.
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// The descriptor of the ring's events, while it is connected: to be polled for input.
    pub fn ring_fd(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref().map(AsFd::as_fd)
    }

    /// The descriptors to be polled for input: the ring's and that of the frontend's nodes. Once
    /// the store is lost, its descriptor stays readable.
    pub fn poll_fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = Vec::from_iter(self.ring_fd());
        // Later changes before the next look make no difference.
        if let (false, Ok(fd)) = (self.handshake.is_stale(), self.nodes.poll_fd()) {
            fds.push(fd);
        }
        fds
    }

    /// Returns when to look again without an event.
    pub fn deadline(&self) -> Option<Instant> {
        let look = self.handshake.poll_timeout();
        look.into_iter().chain(self.ring_deadline()).min()
    }

    /// Returns when to look at the ring again without an event: its peer notifies for nothing all
    /// the time.
    pub fn ring_deadline(&self) -> Option<Instant> {
        self.connection.as_ref().and_then(Connection::deadline)
    }

    /// Handles events: connects when the frontend has published, and sets the state `Closing` when
    /// the frontend closes. The caller then takes out what is in the ring and calls
    /// [`let_go`](Self::let_go).
    ///
    /// # Errors
    /// [`Error::Ring`], [`Error::Node`], [`Error::Xen`]: this connection failed. The state notifies
    /// the frontend, and the backend remains usable. [`Error::Store`]: the backend is not usable
    /// any more.
    pub fn turn(&mut self, now: Instant) -> Result<XenbusState> {
        if let Some(connection) = &mut self.connection {
            connection.acknowledge(now)?;
        }
        while self.nodes.try_next()?.is_some() {
            self.handshake.handle_change();
        }
        if self.handshake.poll_look(now) {
            let theirs = self.frontend_state()?;
            self.handshake.handle_state(theirs);
        }
        match self.handshake.poll_action() {
            Some(BackendAction::Connect) => self.connect()?,
            Some(BackendAction::Disconnect) => return Ok(XenbusState::Closing),
            _ => {}
        }
        self.write_state()?;
        Ok(self.handshake.state())
    }

    /// Returns the frontend's state. Console 0 has none of its own: it is there from the start.
    fn frontend_state(&self) -> Result<Option<XenbusState>> {
        if self.number == 0 {
            let port = format!("{}/port", self.frontend);
            return Ok(self.store.exists(&port)?.then_some(XenbusState::Connected));
        }
        state(&self.store, &format!("{}/state", self.frontend))
    }

    fn connect(&mut self) -> Result<()> {
        match self.attach() {
            Ok(Some(connection)) => {
                // Nobody was notified of what it wrote before this connection.
                connection.notify()?;
                self.connection = Some(connection);
                self.handshake.handle_connected();
                Ok(())
            }
            // Not all of it is there yet.
            Ok(None) => Ok(()),
            Err(error @ Error::Store(_)) => Err(error),
            Err(error) => {
                self.handshake.handle_refused();
                self.write_state()?;
                Err(error)
            }
        }
    }

    fn attach(&self) -> Result<Option<Connection>> {
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
        let bell = Doorbell::bind(&self.xen, self.domain, Port::new(port), PACE)?;
        let connection = Connection::new(ends, bell);
        Ok(Some(connection.published(reference.as_u32(), port)))
    }

    /// Unmaps the ring and sets the state accordingly. Returns the bytes that the frontend has not
    /// taken out: they belong into its next ring.
    ///
    /// # Errors
    /// The store's.
    pub fn let_go(&mut self) -> Result<Vec<u8>> {
        let back = self.connection.take().map(Connection::take_back);
        self.handshake.handle_disconnected();
        self.write_state()?;
        Ok(back.unwrap_or_default())
    }

    /// As [`let_go`](Self::let_go), after the peer broke its ring: no other connection until it
    /// closes.
    ///
    /// # Errors
    /// The store's.
    pub fn give_up(&mut self) -> Result<()> {
        self.connection = None;
        self.handshake.handle_refused();
        self.write_state()
    }

    /// Writes the state, if it changed or its last write failed.
    fn write_state(&mut self) -> Result<()> {
        let node = format!("{}/state", self.path);
        while let Some(state) = self.handshake.poll_write().or(self.unwritten) {
            self.unwritten = Some(state);
            // The toolstack removes the directory when it likes; writing would bring it back.
            self.store.with_transaction(|tx| {
                if tx.exists(&self.path)? {
                    tx.write(&node, state.as_str())?;
                }
                Ok(())
            })?;
            self.unwritten = None;
        }
        Ok(())
    }
}
