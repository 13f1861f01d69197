//! The states of a paravirtual device's two ends in the store, and the handshake of either end,
//! without I/O.
//!
//! ```text
//!   frontend                      its node    the backend's      backend
//!   made by the toolstack             1          1, 2            waits
//!   ring and port are published       3          2               maps the ring, binds the port
//!   in use                            4          4               in use
//!   wants its ring back               5          5, 6            unmaps the ring
//!   has it back                       6          6               waits for 1
//! ```
//!
//! The caller reads and writes the nodes, watches the peer's, and passes the time:
//!
//! | | call |
//! |---|---|
//! | the peer's nodes changed | [`handle_change`](BackendHandshake::handle_change) |
//! | may its state be read now? | [`poll_look`](BackendHandshake::poll_look), or at [`poll_timeout`](BackendHandshake::poll_timeout) |
//! | the state that was read | [`handle_state`](BackendHandshake::handle_state) |
//! | what to do with the ring | [`poll_action`](BackendHandshake::poll_action) |
//! | it is done | [`handle_connected`](BackendHandshake::handle_connected) and its neighbours |
//! | the state to write | [`poll_write`](BackendHandshake::poll_write), until it returns `None` |
//!
//! ```
//! use std::time::Instant;
//! use xen_store::xenbus::{BackendAction, BackendHandshake, XenbusState};
//!
//! let now = Instant::now();
//! let mut backend = BackendHandshake::new(now);
//! assert_eq!(backend.poll_write(), Some(XenbusState::InitWait));
//! assert!(backend.poll_look(now));
//! backend.handle_state(Some(XenbusState::from_node(b"3")));
//! assert_eq!(backend.poll_action(), Some(BackendAction::Connect));
//! // ... map the ring, bind the port ...
//! backend.handle_connected();
//! assert_eq!(backend.poll_write().map(XenbusState::as_str), Some("4"));
//! ```
//!
//! # What the peer can do
//!
//! It can write any value at any time. A value that is no state is [`XenbusState::Unknown`]. A
//! backend reads a frontend's state at most once in 20 ms, and writes its own once for each state
//! read. If a frontend keeps writing, the backend looks less and less often, down to once a second.
//! No sequence of states makes either end connect twice without a disconnect.

use std::fmt;
use std::time::{Duration, Instant};

/// The state of one end of a device, as in its node `state`: `enum xenbus_state` of Xen's
/// public/io/xenbus.h.
#[doc(alias = "xenbus_state")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum XenbusState {
    /// 0, and every value that is none of the others.
    #[default]
    #[doc(alias = "XenbusStateUnknown")]
    Unknown = 0,
    /// 1: the toolstack made the node.
    #[doc(alias = "XenbusStateInitialising")]
    Initialising = 1,
    /// 2: the backend waits for the frontend.
    #[doc(alias = "XenbusStateInitWait")]
    InitWait = 2,
    /// 3: the frontend has published its ring.
    #[doc(alias = "XenbusStateInitialised")]
    Initialised = 3,
    /// 4: in use.
    #[doc(alias = "XenbusStateConnected")]
    Connected = 4,
    /// 5: it is about to disconnect.
    #[doc(alias = "XenbusStateClosing")]
    Closing = 5,
    /// 6: it has disconnected.
    #[doc(alias = "XenbusStateClosed")]
    Closed = 6,
    /// 7: in use, and about to change its configuration (PCI).
    #[doc(alias = "XenbusStateReconfiguring")]
    Reconfiguring = 7,
    /// 8: in use, and has changed its configuration (PCI).
    #[doc(alias = "XenbusStateReconfigured")]
    Reconfigured = 8,
}

impl XenbusState {
    /// Reads the value of a node; [`Unknown`](Self::Unknown) for anything that is no state.
    #[must_use]
    pub fn from_node(value: &[u8]) -> Self {
        match value {
            b"1" => Self::Initialising,
            b"2" => Self::InitWait,
            b"3" => Self::Initialised,
            b"4" => Self::Connected,
            b"5" => Self::Closing,
            b"6" => Self::Closed,
            b"7" => Self::Reconfiguring,
            b"8" => Self::Reconfigured,
            _ => Self::Unknown,
        }
    }

    /// Returns the value for the node.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "0",
            Self::Initialising => "1",
            Self::InitWait => "2",
            Self::Initialised => "3",
            Self::Connected => "4",
            Self::Closing => "5",
            Self::Closed => "6",
            Self::Reconfiguring => "7",
            Self::Reconfigured => "8",
        }
    }

    /// Returns whether this end is about to disconnect or has done so.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Closing | Self::Closed)
    }
}

/// The name of the state and its number: `Connected (4)`.
impl fmt::Display for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?} ({})", self.as_str())
    }
}

/// The least time between two looks at the frontend's nodes. A frontend can write to them without
/// pause, and each look costs the store a read, and a transaction if the backend's state follows.
const LOOK_MIN: Duration = Duration::from_millis(20);
/// The pause grows up to this while looks are closer together than it: a frontend needs only a few.
const LOOK_MAX: Duration = Duration::from_secs(1);
/// The number of looks with the shortest pause.
const FREE_LOOKS: u32 = 16;

/// A step that a backend must take with the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendAction {
    /// Connect to what the frontend has published, then call
    /// [`handle_connected`](BackendHandshake::handle_connected) or
    /// [`handle_refused`](BackendHandshake::handle_refused). Call neither if not all of it is there
    /// yet.
    Connect,
    /// The frontend requests its ring back: unmap it, then call
    /// [`handle_disconnected`](BackendHandshake::handle_disconnected).
    Disconnect,
}

/// The backend's part of the handshake.
#[derive(Clone, Debug)]
pub struct BackendHandshake {
    state: XenbusState,
    /// `state` is yet to be written.
    unwritten: bool,
    connected: bool,
    /// The frontend has published and no attempt was made since that state was read.
    offered: bool,
    /// The frontend requests the ring back.
    closing: bool,
    /// The frontend must leave its state before another connection is tried.
    refused: bool,
    /// No look at the nodes before this.
    next: Instant,
    /// Consecutive looks without a pause of [`LOOK_MAX`] before them.
    looks: u32,
    /// Something may have changed since the nodes were looked at.
    stale: bool,
}

impl BackendHandshake {
    /// Starts with the state [`InitWait`](XenbusState::InitWait) to be written and the frontend's
    /// to be read.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            state: XenbusState::InitWait,
            unwritten: true,
            connected: false,
            offered: false,
            closing: false,
            refused: false,
            next: now,
            looks: 0,
            stale: true,
        }
    }

    /// Returns the backend's state.
    #[must_use]
    pub fn state(&self) -> XenbusState {
        self.state
    }

    /// Returns whether the ring is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Returns whether a change of the frontend's nodes waits for a look. Further changes make no
    /// difference until then, so their watch need not be polled.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// Records that the frontend's nodes may have changed: its watch has fired.
    pub fn handle_change(&mut self) {
        self.stale = true;
    }

    /// Returns whether the caller must read the frontend's state now and pass it to
    /// [`handle_state`](Self::handle_state).
    pub fn poll_look(&mut self, now: Instant) -> bool {
        // Before the ring is unmapped, the frontend's state makes no difference.
        if !self.stale || now < self.next || self.closing {
            return false;
        }
        self.stale = false;
        let quiet = now.saturating_duration_since(self.next) >= LOOK_MAX;
        self.looks = if quiet {
            0
        } else {
            self.looks.saturating_add(1)
        };
        let doublings = self.looks.saturating_sub(FREE_LOOKS).min(16);
        let pause = LOOK_MIN.saturating_mul(1 << doublings).min(LOOK_MAX);
        self.next = now.checked_add(pause).unwrap_or(now);
        true
    }

    /// Returns when to call [`poll_look`](Self::poll_look) without an event.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.stale && !self.closing).then_some(self.next)
    }

    /// Takes the frontend's state, `None` if there is no such node.
    pub fn handle_state(&mut self, theirs: Option<XenbusState>) {
        let theirs = theirs.unwrap_or(XenbusState::Unknown);
        self.offered = false;
        if self.connected {
            // `Initialising`: it closed and began again between two looks.
            self.closing |= theirs.has_ended()
                || matches!(theirs, XenbusState::Unknown | XenbusState::Initialising);
            return;
        }
        match theirs {
            XenbusState::Initialised | XenbusState::Connected => self.offered = !self.refused,
            XenbusState::Initialising => {
                self.refused = false;
                self.set(XenbusState::InitWait);
            }
            XenbusState::Closing | XenbusState::Closed => {
                self.refused = false;
                self.set(XenbusState::Closed);
            }
            _ => {}
        }
    }

    /// Returns what to do with the ring. `Connect` is returned once for each state that was read,
    /// `Disconnect` until it is done.
    pub fn poll_action(&mut self) -> Option<BackendAction> {
        if self.connected {
            return self.closing.then_some(BackendAction::Disconnect);
        }
        std::mem::take(&mut self.offered).then_some(BackendAction::Connect)
    }

    /// Records that the ring is connected.
    pub fn handle_connected(&mut self) {
        (self.connected, self.closing) = (true, false);
        self.set(XenbusState::Connected);
    }

    /// Records that the frontend's nodes cannot be connected to, or that the frontend violated its
    /// ring's rules and the ring is unmapped now. No other attempt follows until it closes or
    /// begins again.
    pub fn handle_refused(&mut self) {
        (self.connected, self.closing, self.refused) = (false, false, true);
        self.set(XenbusState::Closing);
    }

    /// Records that the ring is unmapped.
    pub fn handle_disconnected(&mut self) {
        (self.connected, self.closing, self.stale) = (false, false, true);
        self.set(XenbusState::Closed);
    }

    /// Returns the state to write into the backend's node, if it changed. The caller must repeat a
    /// write that fails.
    pub fn poll_write(&mut self) -> Option<XenbusState> {
        std::mem::take(&mut self.unwritten).then_some(self.state)
    }

    fn set(&mut self, state: XenbusState) {
        self.unwritten |= self.state != state;
        self.state = state;
    }
}

/// A step that a frontend must take with its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrontendAction {
    /// The backend is ready: write the ring's nodes, if that is not done, then call
    /// [`handle_published`](FrontendHandshake::handle_published).
    Publish,
    /// The backend has disconnected or will: take out what is in the ring, then
    /// [`close`](FrontendHandshake::close).
    Disconnect,
}

/// The device is in use: its frontend's node has this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device is in use: its frontend's state is {0}")]
pub struct InUse(pub XenbusState);

/// The frontend's part of the handshake.
#[derive(Clone, Debug)]
pub struct FrontendHandshake {
    state: XenbusState,
    unwritten: bool,
    theirs: XenbusState,
    /// The backend was in a state that is not an end, so that its next end is of this connection.
    alive: bool,
    /// [`FrontendAction::Publish`] was returned.
    asked: bool,
    /// When the frontend stops waiting for the backend.
    deadline: Option<Instant>,
    expired: bool,
}

impl FrontendHandshake {
    /// Starts with the state in the frontend's own node, `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`InUse`]: another program, or the kernel, is the frontend.
    pub fn new(own: Option<XenbusState>) -> Result<Self, InUse> {
        let own = own.unwrap_or_default();
        match own {
            XenbusState::Unknown | XenbusState::Initialising | XenbusState::Closed => Ok(Self {
                state: XenbusState::Initialising,
                unwritten: own == XenbusState::Closed,
                theirs: XenbusState::Initialising,
                alive: false,
                asked: false,
                deadline: None,
                expired: false,
            }),
            other => Err(InUse(other)),
        }
    }

    /// Returns the frontend's state.
    #[must_use]
    pub fn state(&self) -> XenbusState {
        self.state
    }

    /// Returns the backend's state as it was last read; [`Closed`](XenbusState::Closed) if its node
    /// is gone.
    #[must_use]
    pub fn peer(&self) -> XenbusState {
        self.theirs
    }

    /// Returns whether the backend has ended, or is about to, in this connection.
    #[must_use]
    pub fn has_peer_ended(&self) -> bool {
        self.alive && self.theirs.has_ended()
    }

    /// Returns whether both ends are connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.state == XenbusState::Connected && !self.theirs.has_ended()
    }

    /// Records that the ring's nodes are written, or will be in one transaction with the state that
    /// [`poll_write`](Self::poll_write) returns. A frontend that needs nothing from the backend's
    /// nodes need not wait for [`FrontendAction::Publish`].
    pub fn handle_published(&mut self) {
        if self.state == XenbusState::Initialising {
            (self.state, self.unwritten) = (XenbusState::Initialised, true);
        }
    }

    /// Takes the backend's state, `None` if there is no such node. A value that is no state changes
    /// nothing. A backend that has ended already is assumed to have served another frontend, until
    /// another state of it is seen.
    pub fn handle_state(&mut self, theirs: Option<XenbusState>) {
        match theirs {
            Some(XenbusState::Unknown) => return,
            Some(theirs) => {
                self.theirs = theirs;
                self.alive |= !theirs.has_ended();
            }
            None => (self.theirs, self.alive) = (XenbusState::Closed, true),
        }
        if self.theirs == XenbusState::Connected && self.state == XenbusState::Initialised {
            (self.state, self.unwritten) = (XenbusState::Connected, true);
        }
    }

    /// Returns what to do with the ring. `Publish` is returned once, `Disconnect` until
    /// [`close`](Self::close).
    pub fn poll_action(&mut self) -> Option<FrontendAction> {
        if self.state.has_ended() {
            return None;
        }
        let waits = self.theirs == XenbusState::InitWait;
        if waits && self.state == XenbusState::Initialising && !self.asked {
            self.asked = true;
            return Some(FrontendAction::Publish);
        }
        self.has_peer_ended().then_some(FrontendAction::Disconnect)
    }

    /// Ends the connection: the backend has `limit` to unmap the ring. The ring stays valid until
    /// [`is_done`](Self::is_done).
    pub fn close(&mut self, now: Instant, limit: Duration) {
        if self.deadline.is_none() {
            self.deadline = Some(now.checked_add(limit).unwrap_or(now));
            (self.state, self.unwritten) = (XenbusState::Closing, true);
        }
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout); only a frontend that closes
    /// has such a time.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.expired && !self.is_done())
    }

    /// Records that time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.expired |= self.deadline.is_some_and(|deadline| deadline <= now);
    }

    /// Returns the next state to write into the frontend's node, if there is one. The caller must
    /// repeat a write that fails.
    pub fn poll_write(&mut self) -> Option<XenbusState> {
        if std::mem::take(&mut self.unwritten) {
            return Some(self.state);
        }
        // Some backends unmap the ring and change to `Closed` directly, others take both steps with
        // us.
        let over = self.has_peer_ended() || self.expired;
        if self.state == XenbusState::Closing && over {
            self.state = XenbusState::Closed;
            return Some(self.state);
        }
        None
    }

    /// Returns whether the connection is closed: the backend has disconnected or its time is over.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let gone = self.alive && self.theirs == XenbusState::Closed;
        self.state == XenbusState::Closed && (gone || self.expired)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
