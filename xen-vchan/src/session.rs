//! The peer's presence: the live bytes, and where one client's session ends and the next
//! begins.
//!
//! ```text
//! cli_live   2 ──client connects──▶ 1 ──server takes note──▶ 3 ──client leaves or dies──▶ 0 ─┐
//!            ▲                                                                               │
//!            └──────────────────────── server is ready for the next ─────────────────────────┘
//! srv_live   1 ──server leaves or dies──▶ 0
//! ```
//!
//! The header defines the values 0, 1 and 2. The value 3 is this server's own mark. A server that
//! sees a live byte of 1 twice cannot otherwise distinguish a client that stayed from one that left
//! and reconnected (or was followed by another) in between, because the byte went 1 → 0 → 1.
//! Replacing the 1 by a 3, atomically, makes the difference visible: a client that stays leaves the
//! 3 alone, and every new one stores a 1. Only the server reads this byte, so no client
//! (libxenvchan's `is_open` reads the other one) notices.
//!
//! A client of this crate also waits for the mark if the server's node `accepts-sessions` in the
//! store states that it makes it: the client touches the rings only after the server has emptied
//! them of the session before. With a libxenvchan client the server is limited to what
//! [`Channel::next_client`](crate::Channel::next_client) documents.

use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::mem::Word8;
use crate::ring::Role;
use crate::sync::Ordering;
use crate::{Error, Result, Violation};

/// Live byte: gone.
pub(crate) const GONE: u8 = 0;
/// Live byte: connected.
pub(crate) const CONNECTED: u8 = 1;
/// Live byte: not yet connected.
pub(crate) const EXPECTED: u8 = 2;
/// Live byte of a client whose connection the server has taken note of.
pub(crate) const MARKED: u8 = 3;
/// No live byte has this value.
const NO_SESSION: u32 = 256;

/// The state of the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerState {
    /// No peer has connected yet, or (on a client) the server has not taken note yet.
    Waiting,
    /// The peer is connected.
    Connected,
    /// The peer closed the channel, or its process or kernel ended. Its bytes can still be read.
    Gone,
}

/// The live bytes and the state derived from them.
#[derive(Debug)]
pub(crate) struct Session {
    role: Role,
    /// The peer's live byte.
    peer: Word8,
    /// Our live byte.
    own: Word8,
    /// A client of a server that marks sessions waits for this value in its own byte.
    awaits_mark: bool,
    /// The value of `peer` while the session runs, which the fast path relies on; [`NO_SESSION`]
    /// while there is none.
    expected: AtomicU32,
    count: AtomicU64,
    state: Mutex<State>,
    /// On a server without a client: the values of the cursors that a client moves, before any
    /// client has moved them.
    untouched: Mutex<(u32, u32)>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Waiting,
    Connected,
    Gone,
    Broken(Violation),
}

impl Session {
    pub(crate) const fn new(role: Role, peer: Word8, own: Word8, awaits_mark: bool) -> Self {
        Self {
            role,
            peer,
            own,
            awaits_mark,
            expected: AtomicU32::new(NO_SESSION),
            count: AtomicU64::new(0),
            state: Mutex::new(State::Waiting),
            untouched: Mutex::new((0, 0)),
        }
    }

    /// Returns the same, after `count` sessions on other memory.
    pub(crate) fn after(self, count: u64) -> Self {
        self.count.store(count, Ordering::Relaxed);
        self
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is a plain value: a panic elsewhere cannot have left it half written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value of `peer` while a session runs.
    const fn running_value(&self) -> u8 {
        match self.role {
            Role::Server => MARKED,
            Role::Client => CONNECTED,
        }
    }

    /// Returns whether the session runs, by one look at the peer's live byte.
    #[inline]
    pub(crate) fn runs(&self) -> bool {
        // Acquire: a byte that reads «gone» is ordered after everything the peer's process had
        // written.
        let live = self.peer.get().load(Ordering::Acquire);
        u32::from(live) == self.expected.load(Ordering::Acquire)
    }

    /// The peer's live byte, only to be compared.
    pub(crate) fn live(&self) -> u8 {
        self.peer.get().load(Ordering::Acquire)
    }

    fn set_running(&self, running: bool) {
        let expected = if running {
            self.running_value().into()
        } else {
            NO_SESSION
        };
        self.expected.store(expected, Ordering::Release);
    }

    /// Looks at the live bytes and returns the state, and whether a session began just now.
    /// `cursors` are the two that a client moves, as they are now.
    #[cold]
    pub(crate) fn change(&self, cursors: impl Fn() -> (u32, u32)) -> Result<(PeerState, bool)> {
        let mut state = self.lock();
        let mut live = self.peer.get().load(Ordering::Acquire);
        if matches!(
            (*state, self.role, live),
            (State::Waiting, Role::Server, GONE)
        ) && cursors()
            == *self
                .untouched
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        {
            live = self.expect_again();
        }
        let next = match (*state, self.role, live) {
            (State::Broken(violation), ..) => return Err(violation.into()),
            (State::Gone, ..) => State::Gone,
            (State::Waiting, Role::Server, EXPECTED) => State::Waiting,
            // 0 after our 2, and a cursor has moved: a client connected and left between two looks.
            (State::Waiting, Role::Server, GONE) => State::Gone,
            (State::Waiting, Role::Server, CONNECTED) => self.mark(),
            (State::Connected, Role::Server, MARKED) => State::Connected,
            // 1 after our 3: the client of this session left and another one has connected since.
            (State::Connected, Role::Server, GONE | CONNECTED) => State::Gone,
            (_, Role::Client, GONE) => State::Gone,
            (State::Connected, Role::Client, CONNECTED) => State::Connected,
            (State::Waiting, Role::Client, CONNECTED) => {
                if self.awaits_mark && self.own.get().load(Ordering::Acquire) != MARKED {
                    State::Waiting
                } else {
                    State::Connected
                }
            }
            (_, _, value) => State::Broken(Violation::Live { value }),
        };
        let began = match (*state, next) {
            (State::Waiting, State::Connected) => true,
            (State::Waiting, State::Gone) => self.begun(),
            _ => false,
        };
        if began {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        *state = next;
        self.set_running(matches!(next, State::Connected));
        match next {
            State::Waiting => Ok((PeerState::Waiting, began)),
            State::Connected => Ok((PeerState::Connected, began)),
            State::Gone => Ok((PeerState::Gone, began)),
            State::Broken(violation) => Err(violation.into()),
        }
    }

    /// Handles a 0 in place of our 2 when no cursor has moved since. Either it is left from the
    /// client before, whose pages were unmapped after it marked its own end (its kernel clears the
    /// byte then). Or a client connected and left without moving a cursor. Neither is a session.
    /// Puts the 2 back; returns the value that is there.
    fn expect_again(&self) -> u8 {
        let peer = self.peer.get();
        match peer.compare_exchange(GONE, EXPECTED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => EXPECTED,
            // The next client has connected.
            Err(live) => live,
        }
    }

    /// Replaces the client's 1 by our mark.
    fn mark(&self) -> State {
        let marked = self.peer.get().compare_exchange(
            CONNECTED,
            MARKED,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        // The client has just left again: there was no session.
        if marked.is_ok() {
            State::Connected
        } else {
            State::Waiting
        }
    }

    /// Returns whether there has been a session. Always true for a server that checks after the end
    /// of one.
    pub(crate) fn begun(&self) -> bool {
        self.role == Role::Server
            || !self.awaits_mark
            || self.count() != 0
            || self.own.get().load(Ordering::Acquire) == MARKED
    }

    /// Returns whether no other peer has followed the one that is gone, so that the cursors are
    /// still its own.
    pub(crate) fn undisturbed(&self) -> bool {
        self.role == Role::Client || self.peer.get().load(Ordering::Acquire) == GONE
    }

    /// Ends the channel for a violation; returns the one that is kept, which is the first.
    #[cold]
    pub(crate) fn break_off(&self, violation: Violation) -> Error {
        let mut state = self.lock();
        self.set_running(false);
        if let State::Broken(first) = *state {
            return first.into();
        }
        *state = State::Broken(violation);
        violation.into()
    }

    /// Records that the peer's domain has ended; its live byte will never change again.
    #[cold]
    pub(crate) fn vanish(&self) {
        let mut state = self.lock();
        self.set_running(false);
        if !matches!(*state, State::Broken(_)) {
            *state = State::Gone;
        }
    }

    /// Makes a server that has emptied the rings wait for the next client.
    ///
    /// `untouched`: the values of the cursors that a client moves.
    pub(crate) fn reopen(&self, untouched: (u32, u32)) -> Result<()> {
        let mut state = self.lock();
        *self
            .untouched
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = untouched;
        if let State::Broken(violation) = *state {
            return Err(violation.into());
        }
        self.set_running(false);
        // If the next client has connected already, its 1 stays.
        let peer = self.peer.get();
        let _ = peer.compare_exchange(GONE, EXPECTED, Ordering::AcqRel, Ordering::Relaxed);
        *state = State::Waiting;
        Ok(())
    }

    /// How many sessions there have been, the present one included.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Publishes that we are gone. Whoever sees this also sees everything published before.
    pub(crate) fn leave(&self) {
        self.own.get().store(GONE, Ordering::Release);
    }
}
