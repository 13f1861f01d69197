//! The state that both directions of a channel share, and the end of a channel when the last of
//! them is dropped.

use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use nix::sys::eventfd::EventFd;
use xen_gnttab::{MappedPages, SharedPages};
use xen_sys::DomId;

use crate::Result;
use crate::doorbell::{Doorbell, Standing, has_passed};
use crate::handshake::Published;
use crate::ring::{Cursors, Rings, Role};
use crate::session::{PeerState, Session};
use crate::spin::Peer;

/// The pages of a channel, kept for their release.
///
/// Fields are dropped in order: the control page is the last of the pages, because its release
/// notifies the peer.
#[derive(Debug)]
#[allow(dead_code)] // held, never read
pub(crate) enum Pages {
    Ours {
        rings: Vec<SharedPages>,
        control: SharedPages,
    },
    Theirs {
        rings: Vec<MappedPages>,
        control: MappedPages,
    },
}

/// Makes a server's fresh rings for its next client.
pub(crate) trait Renew: Debug + Send + Sync {
    /// Makes fresh rings, published in place of those of `former`.
    fn renew(&self, former: &Shared) -> Result<(Shared, Rings)>;
}

/// An accepted client, counted by its listener until its channel is dropped.
#[derive(Debug)]
pub(crate) struct ClientSlot {
    clients: Arc<AtomicUsize>,
    vacated: Arc<EventFd>,
}

impl ClientSlot {
    pub(crate) fn new(clients: &Arc<AtomicUsize>, vacated: &Arc<EventFd>) -> Self {
        Self {
            clients: Arc::clone(clients),
            vacated: Arc::clone(vacated),
        }
    }
}

impl Drop for ClientSlot {
    fn drop(&mut self) {
        self.clients.fetch_sub(1, Ordering::AcqRel);
        // The write fails if the counter is full, and then the listener wakes all the same.
        let _ = self.vacated.write(1);
    }
}

/// Common to the reading and the writing half.
///
/// The field order is the order of release: first the store nodes, so that no new client finds us;
/// then the pages, whose unmap notification clears our live byte and rings the peer's bell even if
/// this process was killed; the event channel last, because that notification needs it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) published: Mutex<Option<Published>>,
    pub(crate) cursors: Cursors,
    pub(crate) session: Session,
    #[allow(dead_code)] // held, never read
    pub(crate) pages: Pages,
    pub(crate) doorbell: Doorbell,
    pub(crate) role: Role,
    pub(crate) peer: DomId,
    /// Where the peer runs.
    pub(crate) runs: Peer,
    /// Present on a server that makes fresh memory for each client.
    pub(crate) origin: Option<Box<dyn Renew>>,
    /// A client that a listener accepted. Last, so that a place is free when its memory is.
    pub(crate) slot: OnceLock<ClientSlot>,
}

impl Shared {
    /// Looks at the peer's live byte. A server that notices a new client notifies it.
    #[inline]
    pub(crate) fn observe(&self) -> Result<PeerState> {
        if self.session.runs() {
            Ok(PeerState::Connected)
        } else {
            self.observe_change()
        }
    }

    #[cold]
    fn observe_change(&self) -> Result<PeerState> {
        let (state, began) = self
            .session
            .change(|| self.cursors.moved_by(Role::Client))?;
        if began && self.role == Role::Server {
            self.doorbell.peer_came();
            self.doorbell.notify()?;
        }
        Ok(state)
    }

    /// Marks this side as done: it writes no further byte. Published bytes stay readable.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if the peer could not be notified; it sees the end when it next looks.
    pub(crate) fn leave(&self) -> Result<()> {
        self.session.leave();
        // Wake this side's tasks that wait to write.
        self.doorbell.delivery.changed();
        self.doorbell.notify()
    }

    /// Removes the store nodes: no other client finds this channel.
    pub(crate) fn withdraw(&self) {
        let published = self
            .published
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(published);
    }

    /// Sleeps until something happened since `seen` was read. Returns `false` if the deadline has
    /// passed, also if something happened: a caller that loops then looks once more and ends, so a
    /// peer that notifies before each sleep cannot keep it from its deadline.
    pub(crate) fn sleep(&self, seen: u64, deadline: Option<Instant>) -> Result<bool> {
        Ok(self.wait(seen, deadline)? && !has_passed(deadline))
    }

    /// Sleeps until something happened since `seen` was read; returns `false` if the deadline
    /// passed first.
    pub(crate) fn wait(&self, seen: u64, deadline: Option<Instant>) -> Result<bool> {
        let woken = self.doorbell.wait(seen, deadline, || self.standing())?;
        self.notice_domain();
        Ok(woken)
    }

    /// Unmasks the port, unless events are paced. Called before every sleep of the caller.
    pub(crate) fn unmask(&self) -> Result<()> {
        self.doorbell.unmask(|| self.standing()).map(drop)
    }

    /// The words that the peer can change: its cursors and its live byte, only to be compared.
    fn standing(&self) -> Standing {
        let cursors = self.cursors.moved_by(self.role.other());
        (cursors, self.session.live())
    }

    /// Takes the event that made the descriptor readable.
    pub(crate) fn acknowledge(&self) -> Result<()> {
        self.doorbell.acknowledge()?;
        self.notice_domain();
        Ok(())
    }

    fn notice_domain(&self) {
        if self.doorbell.peer_domain_has_ended() {
            // A client that connected and was not noted yet is a session all the same. A violation
            // or another result of this look is kept.
            let _ = self.observe();
            self.session.vanish();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Before the live byte: a client that sees us gone must not find the nodes any more.
        self.withdraw();
        // No caller could act on an error.
        let _ = self.leave();
    }
}

/// How much of a ring a long read or write moves at a time, so that both sides work simultaneously:
/// a quarter, but not less than what is worth a publish.
#[inline]
pub(crate) fn piece(capacity: u32) -> usize {
    let capacity = capacity as usize;
    (capacity / 4).max(1024.min(capacity))
}
