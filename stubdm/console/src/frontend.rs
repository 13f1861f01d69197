//! The frontend: offers a ring in the store once somebody is ready to read from it.
//!
//! ```text
//!   state   what                                                 the backend's
//!   1       made by the toolstack; nothing is published          1, 2
//!   3       ring-ref and port are there, in one transaction      2
//!   4       the backend has mapped the ring                      4
//!   5, 6    what was written has been taken, or nobody will      4, 5, 6
//! ```
//!
//! Bytes written before the backend is there wait in the ring.
//!
//! `stubdm-run` itself publishes no console: in a stubdomain the kernel's driver has claimed them
//! all. This is [`Backend`](crate::Backend)'s other end, over the same ring code, for its tests and
//! its fuzz target. It is public because those are crates of their own.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_evtchn::EventChannels;
use xen_gnttab::{PageAccess, SharedPages, share};
use xen_store::xenbus::{FrontendHandshake, XenbusState};
use xen_store::{Store, Watch};
use xen_sys::Xen;

use crate::{Connection, Doorbell, Error, Result, domid, ring, state};

/// Returns whether there is such a console at all: the toolstack offers it.
///
/// # Errors
/// The store's.
pub fn offered(store: &Store, node: &str) -> Result<bool> {
    Ok(store.exists(&format!("{node}/backend"))?)
}

/// A published console.
///
/// Dropping it frees the ring without a change of the state, which a backend that has it mapped
/// sees as silence: [`close`](Self::close) it.
#[derive(Debug)]
pub struct Frontend {
    connection: Connection,
    store: Store,
    node: String,
    handshake: FrontendHandshake,
    /// A state whose write failed.
    unwritten: Option<XenbusState>,
    backend: Watch,
    backend_state: String,
    // Last: the ring in `connection` is dropped first.
    _pages: SharedPages,
}

impl Frontend {
    /// Publishes the console whose frontend directory is `node`, such as `device/console/2`. From
    /// now on the backend may write to its ring. Does not wait for it.
    ///
    /// `extra` are more nodes, by name and value, that the backend is to find together with the
    /// ring.
    ///
    /// # Errors
    /// There is no such console, or it is in use; the store's, the hypervisor's.
    pub fn publish(xen: &Xen, store: &Store, node: &str, extra: &[(&str, &str)]) -> Result<Self> {
        let own = format!("{node}/state");
        let Ok(mut handshake) = FrontendHandshake::new(state(store, &own)?) else {
            let what = "the console is in use";
            return Err(Error::Node { node: own, what });
        };
        let peer = domid(store, &format!("{node}/backend-id"))?;
        let path = format!("{node}/backend");
        let backend = store.read_str(&path)?;
        let backend_state = format!("{backend}/state");
        let watch = store.watch(&backend_state)?;
        if let Some(state) = handshake.poll_write() {
            store.write(&own, state.as_str())?;
        }
        let channels = EventChannels::open(xen)?;
        let port = channels.bind_unbound(peer)?;
        let mut pages = share(xen, peer, 1, PageAccess::ReadWrite)?;
        let ends = ring::frontend(pages.take_region())?;
        let reference = pages.refs().first().copied().unwrap_or_default();
        handshake.handle_published();
        let published = handshake.poll_write().unwrap_or_default();
        store.with_transaction(|tx| {
            tx.write(&format!("{node}/ring-ref"), reference.as_u32().to_string())?;
            tx.write(&format!("{node}/port"), port.port().as_u32().to_string())?;
            for (name, value) in extra {
                tx.write(&format!("{node}/{name}"), value)?;
            }
            tx.write(&own, published.as_str())
        })?;
        Ok(Self {
            // The host is trusted.
            connection: Connection::new(ends, Doorbell::new(port, channels, Duration::ZERO)),
            store: store.clone(),
            node: node.to_owned(),
            handshake,
            unwritten: None,
            backend: watch,
            backend_state,
            _pages: pages,
        })
    }

    /// The ring. Reading and writing are of use from the first moment.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// The frontend directory.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Returns the descriptors to poll for input: the ring's events and the backend's state.
    ///
    /// # Errors
    /// The store's.
    pub fn poll_fds(&self) -> Result<[BorrowedFd<'_>; 2]> {
        Ok([self.connection.as_fd(), self.backend.poll_fd()?])
    }

    /// Handles events, answers the backend's state, and returns it. [`XenbusState::Closed`] also
    /// stands for a backend that no longer exists; its bytes can still be read.
    ///
    /// # Errors
    /// The store's, the system's.
    pub fn turn(&mut self) -> Result<XenbusState> {
        self.connection.acknowledge(Instant::now())?;
        let mut changed = false;
        while self.backend.try_next()?.is_some() {
            changed = true;
        }
        if changed {
            let theirs = match state(&self.store, &self.backend_state) {
                // A missing node of a parent that this domain may not read is refused, too.
                Err(Error::Store(error)) if error.is_denied() => None,
                theirs => theirs?,
            };
            self.handshake.handle_state(theirs);
        }
        self.write_state()?;
        Ok(self.handshake.peer())
    }

    /// Writes the state, if it changed or its last write failed.
    fn write_state(&mut self) -> Result<()> {
        while let Some(state) = self.handshake.poll_write().or(self.unwritten) {
            self.unwritten = Some(state);
            self.store
                .write(&format!("{}/state", self.node), state.as_str())?;
            self.unwritten = None;
        }
        Ok(())
    }

    /// Waits until the backend has taken out all that was written, and returns `true`. Returns
    /// `false` if the deadline passes or the backend disappears first.
    ///
    /// # Errors
    /// As [`turn`](Self::turn); the peer broke the ring.
    pub fn drain(&mut self, deadline: Instant) -> Result<bool> {
        loop {
            self.turn()?;
            if self.connection.unread()? == 0 {
                return Ok(true);
            }
            if self.handshake.has_peer_ended() || deadline <= Instant::now() {
                return Ok(false);
            }
            self.wait(deadline)?;
        }
    }

    /// Ends the console: waits for at most `limit` until the backend has taken out what was written
    /// and has unmapped the ring. Only then frees the page. Returns whether everything was taken.
    ///
    /// # Errors
    /// As [`drain`](Self::drain).
    pub fn close(mut self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        let drained = self.drain(deadline);
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        self.handshake.close(now, left);
        self.write_state()?;
        while !self.handshake.is_done() {
            self.wait(deadline)?;
            self.handshake.handle_timeout(Instant::now());
            self.turn()?;
        }
        drained
    }

    /// Blocks until there is an event, or until the deadline.
    fn wait(&self, deadline: Instant) -> Result<()> {
        let mut fds = self
            .poll_fds()?
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up: waking just before the deadline would make the caller spin.
        let millis = left.as_micros().div_ceil(1000).min(3_600_000);
        match poll(
            &mut fds,
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::ZERO),
        ) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(std::io::Error::from(errno).into()),
        }
    }
}

impl AsFd for Frontend {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl Drop for Frontend {
    fn drop(&mut self) {
        if !self.handshake.state().has_ended() {
            let node = format!("{}/state", self.node);
            // Nobody is left to learn of an error.
            let _ = self.store.write(&node, XenbusState::Closed.as_str());
        }
    }
}
