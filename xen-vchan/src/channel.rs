//! A connected channel: both halves, for one owner.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use xen_evtchn::EventPacer;
use xen_sys::DomId;

use crate::doorbell::Half;
use crate::reader::{ReadHalf, end_as_zero};
use crate::ring::{Rings, Role};
use crate::session::PeerState;
use crate::shared::Shared;
use crate::writer::{BySteps, WriteHalf};
use crate::{Error, Result, Violation};

/// A channel to the peer, made by [`ServerBuilder`](crate::ServerBuilder) or
/// [`ClientBuilder`](crate::ClientBuilder).
///
/// [`Read`] and [`Write`] block until something can be done (see
/// [`set_nonblocking`](Self::set_nonblocking) and [`set_read_timeout`](Self::set_read_timeout)).
/// Reading returns `Ok(0)` at the end: the peer has left and everything it had sent was read.
/// Dropping a channel closes it.
///
/// # In an event loop
///
/// The descriptor ([`AsFd`]) becomes readable, once, when the peer did something that was
/// requested. The contract is that of an edge-triggered descriptor:
///
/// 1. when it is readable, call [`acknowledge_events`](Self::acknowledge_events);
/// 2. call [`try_read`](Self::try_read) and [`try_write`](Self::try_write) until they return
///    [`Error::WouldBlock`] for what the loop still waits for: the call that returns this error
///    requests the next event from the peer;
/// 3. only then poll again.
///
/// Only one thread at a time polls: an event that it acknowledges is lost for any other. Other
/// threads may look and arm meanwhile; the event they request wakes the thread that polls.
///
/// # Guarantees
///
/// Whatever the other domain writes into the shared pages, at any time: no call reads a byte beyond
/// what the peer can have sent, panics, works longer than its own arguments warrant, or blocks
/// beyond its deadline. A cursor or live byte that cannot be true is [`Error::Peer`] with the
/// numbers, and every later call returns it again. The peer can send any *bytes*, and it can stop
/// answering.
#[derive(Debug)]
pub struct Channel {
    rx: ReadHalf,
    tx: WriteHalf,
    nonblocking: bool,
    /// The writing cursor when [`halves`](Self::halves) was last called.
    written: u32,
}

impl Channel {
    pub(crate) fn new(shared: Shared, rings: Rings, attached: bool) -> Result<Self, Violation> {
        let (tx, rx) = match shared.role {
            Role::Client if attached => rings.attach(Role::Client)?,
            // The memory is fresh, so a server starts at 0. A client may have used the rings
            // already.
            role => rings.halves(role),
        };
        let shared = Arc::new(shared);
        Ok(Self {
            rx: ReadHalf::new(rx, Arc::clone(&shared), attached),
            tx: WriteHalf::new(tx, shared, attached),
            nonblocking: false,
            written: 0,
        })
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.rx.shared
    }

    /// Publishes a corked question before its answer, of `least` bytes, is waited for.
    #[inline]
    fn publish_before_waiting(&self, least: usize) {
        if self.tx.tx.staged() != 0 && (self.rx.rx.known_ready() as usize) < least {
            self.tx.publish();
        }
    }

    /// Returns both halves, for operations that only a half has: packets ([`ReadHalf::recv`],
    /// [`WriteHalf::send`]), loans ([`ReadHalf::read_chunk`], [`WriteHalf::write_chunk`]),
    /// transfers between the ring and a descriptor, corking and spinning. Publishes what a
    /// [corked](WriteHalf::set_cork) writer has gathered.
    #[inline]
    pub fn halves(&mut self) -> (&mut ReadHalf, &mut WriteHalf) {
        // The reading half may wait for a packet of any size.
        self.publish_before_waiting(usize::MAX);
        let written = self.tx.tx.written();
        if written != self.written {
            self.written = written;
            self.rx.expect_answer();
        }
        (&mut self.rx, &mut self.tx)
    }

    /// Reads what is there, without blocking; may spin for up to 2 µs unless
    /// [`set_spin`](Self::set_spin) is zero. See [`ReadHalf::try_read`].
    ///
    /// # Errors
    ///
    /// [`Error::WouldBlock`] after the notification was requested; [`Error::Closed`] at the end of
    /// the peer's bytes; [`Error::Peer`]; [`Error::Os`].
    #[inline]
    pub fn try_read(&mut self, buf: &mut [u8]) -> Result<usize> {
        self.publish_before_waiting(1);
        self.rx.try_read(buf)
    }

    /// Writes what fits, without blocking. See [`WriteHalf::try_write`].
    ///
    /// # Errors
    ///
    /// [`Error::WouldBlock`] after the notification was requested; [`Error::Closed`] if the peer is
    /// gone; [`Error::Peer`]; [`Error::Os`].
    pub fn try_write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.rx.expect_answer();
        self.tx.try_write(bytes)
    }

    /// Reads what is there, sleeping until there is something or the deadline passes.
    ///
    /// # Errors
    ///
    /// As [`ReadHalf::read_deadline`].
    pub fn read_deadline(&mut self, buf: &mut [u8], deadline: Option<Instant>) -> Result<usize> {
        self.publish_before_waiting(1);
        self.rx.read_deadline(buf, deadline)
    }

    /// Writes all of `bytes` unless the deadline passes or the peer leaves; returns how many were
    /// written.
    ///
    /// # Errors
    ///
    /// As [`WriteHalf::write_deadline`].
    pub fn write_deadline(&mut self, bytes: &[u8], deadline: Option<Instant>) -> Result<usize> {
        self.rx.expect_answer();
        self.tx.write_deadline(bytes, deadline)
    }

    /// Returns the bytes that can be read now and, if they are fewer than `least`, requests an
    /// event when there are more. See [`ReadHalf::arm_read`].
    ///
    /// # Errors
    ///
    /// As [`ReadHalf::arm_read`].
    #[doc(alias = "libxenvchan_data_ready")]
    pub fn arm_read(&self, least: usize) -> Result<usize> {
        self.publish_before_waiting(least);
        self.rx.arm_read(least)
    }

    /// Returns the bytes that can be written now and, if they are fewer than `least`, requests an
    /// event when there is more space. See [`WriteHalf::arm_write`].
    ///
    /// # Errors
    ///
    /// As [`WriteHalf::arm_write`].
    #[doc(alias = "libxenvchan_buffer_space")]
    pub fn arm_write(&self, least: usize) -> Result<usize> {
        self.tx.arm_write(least)
    }

    /// Returns the bytes that can be read now; the peer can only add to them. Requests no event.
    ///
    /// # Errors
    ///
    /// As [`ReadHalf::bytes_readable`].
    pub fn bytes_readable(&self) -> Result<usize> {
        self.rx.bytes_readable()
    }

    /// Returns the bytes that can be written now; the peer can only add to them. Requests no event.
    ///
    /// # Errors
    ///
    /// As [`WriteHalf::space`].
    pub fn space(&self) -> Result<usize> {
        self.tx.space()
    }

    /// Takes the event that made the descriptor readable. Never blocks; harmless without an event.
    /// For the one thread that polls the descriptor: [an event loop](Self#in-an-event-loop).
    ///
    /// # Errors
    ///
    /// [`Error::Os`].
    pub fn acknowledge_events(&self) -> Result<()> {
        self.shared().acknowledge()
    }

    /// Sleeps until the peer does something: writes, reads, connects or leaves. Returns `false` if
    /// the deadline passed first.
    ///
    /// Requests both notifications, so the event may be about either direction, or be a late echo
    /// of something already seen: look again afterwards. Returns immediately if there are bytes to
    /// be read, or if the peer has read something since space was last looked at.
    ///
    /// # Errors
    ///
    /// [`Error::Os`].
    #[doc(alias = "libxenvchan_wait")]
    pub fn wait(&mut self, deadline: Option<Instant>) -> Result<bool> {
        let known = self.tx.tx.known_space() as usize;
        let seen = self.shared().doorbell.seen();
        self.tx.publish();
        self.tx.tx.request();
        // A caller that found no space with `space`, for example, has requested nothing: the peer's
        // reads before the request cause no event.
        match self.tx.look(usize::MAX) {
            Ok(space) if space > known => return Ok(true),
            Ok(_) => {}
            Err(Error::Closed) => return Ok(true),
            // There is still something to read.
            Err(Error::ShutDown) => {}
            Err(error) => return Err(error),
        }
        match self.rx.arm(1) {
            Ok(0) => self.shared().wait(seen, deadline),
            Ok(_) | Err(Error::Closed) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Returns the state of the peer as of now. The next change makes the descriptor readable.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]; [`Error::Os`].
    #[doc(alias = "libxenvchan_is_open")]
    pub fn peer(&self) -> Result<PeerState> {
        // Before the look: an event that is delivered from now on is of a later change.
        self.shared().unmask()?;
        self.shared().observe()
    }

    /// Returns the domain at the other end, as named when the channel was made. The hypervisor
    /// admits no other domain.
    #[must_use]
    pub fn peer_domain(&self) -> DomId {
        self.shared().peer
    }

    /// Returns how many clients a server has had, the present one included; 0 or 1 on a client.
    ///
    /// A server counts every client that it saw. It distinguishes a client that left from another
    /// that followed before the next look: those are two sessions.
    #[must_use]
    pub fn sessions(&self) -> u64 {
        self.shared().session.count()
    }

    /// Sleeps until the peer is connected.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`]; [`Error::Closed`] if it is gone already (on a server: see
    /// [`next_client`](Self::next_client)).
    pub fn wait_connected(&mut self, deadline: Option<Instant>) -> Result<()> {
        let mut late = false;
        loop {
            let seen = self.shared().doorbell.seen();
            match self.peer()? {
                PeerState::Connected => return Ok(()),
                PeerState::Gone => return Err(Error::Closed),
                PeerState::Waiting if late => return Err(Error::TimedOut),
                PeerState::Waiting => {
                    #[cfg(test)]
                    crate::test_window::window();
                    late = !self.shared().sleep(seen, deadline)?;
                }
            }
        }
    }

    /// Prepares a server whose client is gone for the next one: makes fresh rings and a fresh port,
    /// publishes them, and waits in state [`Waiting`](PeerState::Waiting). The descriptor stays the
    /// same.
    ///
    /// The client that left may keep the old rings mapped and write into them. This side never
    /// reads them again, so no byte of one session reaches the next, whatever its client does. A
    /// client that connected to the old rings before this call sees their end and must connect
    /// again, so call this as soon as [`Error::Closed`] is seen. The call sends requests to the
    /// store and waits for the replies, as
    /// [`ServerBuilder::publish`](crate::ServerBuilder::publish) does. For a moment it holds the
    /// memory of the old and the fresh rings.
    ///
    /// A server that [reuses its memory](crate::ServerBuilder::reuse_memory) empties its rings
    /// instead, sends no request, and serves a client that connected before this call. A client of
    /// this crate touches the rings only after it. Bytes that a libxenvchan client wrote before are
    /// discarded with the old client's bytes (they cannot be distinguished), and it may have read
    /// an answer meant for the old one. There the separation of sessions holds only among clients
    /// that write nothing after they have left.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] on a client, on a channel that a [`Listener`](crate::Listener) accepted,
    /// or while the client is connected; [`Error::Peer`]; [`Error::ShutDown`] with reused memory.
    /// [`Error::Os`], [`Error::Store`] if fresh rings could not be made or published: then no ring
    /// is published, and the next call tries again.
    pub fn next_client(&mut self) -> Result<()> {
        if self.shared().role == Role::Client {
            return Err(Error::Invalid {
                what: "a vchan client has one server only",
            });
        }
        if self.shared().slot.get().is_some() {
            return Err(Error::Invalid {
                what: "what a listener accepted is for one client; accept the next one",
            });
        }
        match self.peer()? {
            PeerState::Waiting => return Ok(()),
            PeerState::Connected => {
                return Err(Error::Invalid {
                    what: "the vchan client is still connected",
                });
            }
            PeerState::Gone => {}
        }
        if let Some(origin) = &self.shared().origin {
            let (fresh, rings) = origin.renew(self.shared())?;
            let fresh = Arc::new(fresh);
            let (tx, rx) = rings.halves(Role::Server);
            let former = Arc::clone(&self.rx.shared);
            self.rx.renew(rx, Arc::clone(&fresh));
            self.tx.renew(tx, fresh);
            // The old memory is released. A client that connected to it sees the end.
            drop(former);
            // Wake the tasks that waited for something of the old session.
            self.shared().doorbell.delivery.changed();
            return Ok(());
        }
        if self.tx.shut {
            return Err(Error::ShutDown);
        }
        let fetched = self.rx.fetch()?;
        self.rx.rx.adopt(fetched);
        self.rx.rx.skip();
        let wakes_reader = self.rx.rx.release();
        let retracted = self.tx.tx.retract();
        self.tx.checked(retracted)?;
        // As after creation: request a notification for the first byte.
        self.rx.rx.request();
        let untouched = (self.rx.rx.position(), self.tx.tx.believed());
        self.shared().session.reopen(untouched)?;
        if wakes_reader {
            self.shared().doorbell.notify_for(Half::Reader);
        }
        // The next client may be there already.
        self.peer().map(drop)
    }

    /// Sets whether [`Read`] and [`Write`] return `WouldBlock` instead of sleeping. Off by default.
    ///
    /// C: the inverse of the field `blocking` of `struct libxenvchan`.
    #[doc(alias = "blocking")]
    pub const fn set_nonblocking(&mut self, nonblocking: bool) {
        self.nonblocking = nonblocking;
    }

    /// Sets how long [`Read::read`] may block; `None`, the default, is forever.
    pub const fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.rx.set_timeout(timeout);
    }

    /// Sets how long [`Write::write`] may block; `None`, the default, is forever.
    pub const fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.tx.set_timeout(timeout);
    }

    /// Ends this side of the channel. Bytes that either side has written stay readable; vchan has
    /// no half-close, so the peer takes both directions as ended.
    ///
    /// Publishes what a [corked](WriteHalf::set_cork) writer has gathered. Every write after that
    /// fails with [`Error::ShutDown`]. A server can serve the [next client](Self::next_client),
    /// unless it [reuses its memory](crate::ServerBuilder::reuse_memory).
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if the peer could not be notified: it sees the end when it next looks.
    pub fn shutdown(&mut self) -> Result<()> {
        self.tx.shutdown()
    }

    /// Closes the channel. The same as dropping it.
    #[doc(alias = "libxenvchan_close")]
    pub fn close(self) {
        drop(self);
    }

    /// Sets the longest a blocking call spins before it sleeps; zero switches all spinning off. See
    /// [`ReadHalf::set_spin`].
    pub fn set_spin(&mut self, limit: Duration) {
        self.rx.set_spin(limit);
        self.tx.set_spin(limit);
    }

    /// Limits how often the peer's events wake this side for nothing: the event's port stays masked
    /// for a while after such a wake-up (see [`EventPacer`] for how long, and for the cost). Off
    /// (`None`) at first.
    ///
    /// An event was for nothing if, since the event before, the peer has moved no cursor and has
    /// neither connected nor left. Blocking calls and `tokio::Channel` need nothing more. In an
    /// event loop the descriptor stays silent while the port is masked: see
    /// [`poll_timeout`](Self::poll_timeout). After a change call
    /// [`handle_timeout`](Self::handle_timeout), which unmasks a port that the former pacer keeps
    /// masked.
    pub fn set_event_pacer(&self, pacer: Option<EventPacer>) {
        self.shared().doorbell.pace(pacer);
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout), for a channel whose events
    /// are [paced](Self::set_event_pacer); `None` means that nothing is due. Call this after each
    /// [`Error::WouldBlock`]: until that time the descriptor does not become readable.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.shared().doorbell.masked_until()
    }

    /// Unmasks the port if the time of [`poll_timeout`](Self::poll_timeout) has passed. Harmless at
    /// any time.
    ///
    /// # Errors
    ///
    /// [`Error::Os`].
    pub fn handle_timeout(&self) -> Result<()> {
        self.shared().unmask()
    }

    /// Splits into two halves that can be used by two threads. The channel closes when both are
    /// dropped.
    #[must_use]
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        (self.rx, self.tx)
    }
}

impl AsFd for Channel {
    /// The descriptor to poll for reading: the event channel's, or one for both the event channel
    /// and the watch for the end of the peer's domain.
    #[doc(alias = "libxenvchan_fd_for_select")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared().doorbell.as_fd()
    }
}

impl Read for Channel {
    #[inline]
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.nonblocking {
            end_as_zero(self.try_read(buf))
        } else {
            self.publish_before_waiting(1);
            self.rx.read(buf)
        }
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        self.publish_before_waiting(1);
        if self.nonblocking {
            end_as_zero(self.rx.try_read_vectored(bufs))
        } else {
            self.rx.read_vectored(bufs)
        }
    }
}

impl Write for Channel {
    #[inline]
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.nonblocking {
            return Ok(self.try_write(buf)?);
        }
        self.rx.expect_answer();
        self.tx.write(buf)
    }

    #[inline]
    fn write_all(&mut self, buf: &[u8]) -> io::Result<()> {
        self.rx.expect_answer();
        // It does not block, whether it may or not.
        match self.tx.put_fast(buf) {
            Some(_) => Ok(()),
            None => BySteps(self).write_all(buf),
        }
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.nonblocking {
            self.rx.expect_answer();
            return Ok(self.tx.try_write_vectored(bufs)?);
        }
        self.rx.expect_answer();
        self.tx.write_vectored(bufs)
    }

    /// Publishes what a [corked](WriteHalf::set_cork) writer has gathered; otherwise there is
    /// nothing to do.
    fn flush(&mut self) -> io::Result<()> {
        self.tx.flush()
    }
}
