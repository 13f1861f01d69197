//! The sending half of a channel.

mod chunk;
mod fast;
mod packet;

use std::io::{self, IoSlice, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use fast::BySteps;

use crate::doorbell::{Half, has_passed};
use crate::ring::Producer;
use crate::session::PeerState;
use crate::shared::{Shared, piece};
use crate::spin::Spinner;
use crate::{Error, Result, Violation};

pub use chunk::WriteChunk;

/// A corked writer publishes when this many bytes have gathered, or an eighth of the ring.
const CORK: u32 = 4096;

/// The sending half of a [`Channel`](crate::Channel): `Send`, for a thread of its own.
///
/// Made by [`Channel::split`](crate::Channel::split), or lent by
/// [`Channel::halves`](crate::Channel::halves). [`Write`] blocks, up to the
/// [timeout](Self::set_timeout) if one is set. A call that wrote something returns how much,
/// whatever happened afterwards; the next call returns the error.
#[derive(Debug)]
pub struct WriteHalf {
    pub(crate) tx: Producer,
    pub(crate) shared: Arc<Shared>,
    /// A client reads the cursors when the session begins, not before.
    attached: bool,
    timeout: Option<Duration>,
    spinner: Spinner,
    corked: bool,
    /// The number of bytes that are published together; fewer gather. 1 unless corked, and after a
    /// wait for space.
    enough: u32,
    /// This side has been shut down. `tx` has no space then.
    pub(crate) shut: bool,
}

impl WriteHalf {
    pub(crate) fn new(tx: Producer, shared: Arc<Shared>, attached: bool) -> Self {
        Self {
            tx,
            spinner: Spinner::new(shared.runs),
            shared,
            attached,
            timeout: None,
            corked: false,
            enough: 1,
            shut: false,
        }
    }

    /// Publishes what has gathered; no more can be written afterwards.
    fn shut(&mut self) {
        self.publish();
        // It has no known space, so every write path calls `open`.
        self.tx.shut();
        self.shut = true;
    }

    /// Switches to fresh memory.
    pub(crate) fn renew(&mut self, tx: Producer, shared: Arc<Shared>) {
        self.tx = tx;
        self.shared = shared;
        self.attached = true;
        self.shut = false;
        self.set_cork(self.corked);
    }

    /// Returns whether bytes may be written now: `false` if that must wait for the session to
    /// begin.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the peer is gone; [`Error::ShutDown`] if this side has been shut down.
    #[inline]
    fn open(&mut self) -> Result<bool> {
        if self.shut {
            return Err(Error::ShutDown);
        }
        match self.shared.observe()? {
            PeerState::Connected if self.attached => Ok(true),
            PeerState::Connected => self.attach(),
            PeerState::Gone => Err(Error::Closed),
            // A server may write ahead; the first client finds it in the ring.
            PeerState::Waiting => Ok(self.attached),
        }
    }

    #[cold]
    fn attach(&mut self) -> Result<bool> {
        let attached = self.tx.attach();
        self.checked(attached)?;
        self.attached = true;
        Ok(true)
    }

    pub(crate) fn checked<T>(&self, result: Result<T, Violation>) -> Result<T> {
        result.map_err(|violation| self.shared.session.break_off(violation))
    }

    /// Makes what is staged visible.
    #[inline]
    pub(crate) fn publish(&self) {
        if self.tx.publish() {
            self.shared.doorbell.notify_for(Half::Writer);
        }
    }

    /// Called after bytes were staged. A reader that has just emptied a full ring looks again
    /// immediately, and sleeps if there is nothing. So the first bytes after a wait are not held
    /// back.
    #[inline]
    fn publish_unless_corked(&mut self) {
        if self.tx.staged() >= self.enough {
            if self.corked {
                self.enough = CORK.min(self.tx.capacity() / 8);
            }
            self.publish();
        }
    }

    /// Copies and publishes what fits, without requesting a notification; returns how much. Long
    /// writes are published piece by piece so that the reader works at the same time.
    fn put(&mut self, bytes: &[u8]) -> Result<usize> {
        if !self.open()? {
            return Ok(0);
        }
        let piece = piece(self.tx.capacity());
        let mut done = 0;
        loop {
            let part = &bytes[done..bytes.len().min(done + piece)];
            let staged = self.tx.stage(part);
            let len = match self.checked(staged) {
                Ok(len) => len,
                // The bytes before were written; the error persists and the next call meets it.
                Err(_) if done != 0 => return Ok(done),
                Err(error) => return Err(error),
            };
            done += len;
            self.publish_unless_corked();
            if len < part.len() || done == bytes.len() {
                return Ok(done);
            }
        }
    }

    /// Returns the space there is. Looks at the peer's cursor if less than `least` is known.
    pub(crate) fn look(&mut self, least: usize) -> Result<usize> {
        if !self.open()? {
            return Ok(0);
        }
        let known = self.tx.known_space() as usize;
        if known >= least {
            return Ok(known);
        }
        let space = self.tx.refresh();
        Ok(self.checked(space)? as usize)
    }

    /// Requests an event. Staged bytes must be visible first, or the peer would wait for them while
    /// we wait for the peer. The caller looks once more afterwards.
    fn request(&self) {
        self.publish();
        #[cfg(test)]
        crate::test_window::window();
        self.tx.request();
    }

    /// Requests an event and looks once more.
    fn arm(&mut self, least: usize) -> Result<usize> {
        self.request();
        self.look(least)
    }

    pub(crate) fn try_look(&mut self, least: usize) -> Result<()> {
        self.shared.doorbell.check(Half::Writer)?;
        if self.look(least)? < least && self.arm(least)? < least {
            self.shared.unmask()?;
            return Err(Error::WouldBlock);
        }
        Ok(())
    }

    /// Searches for `wanted` bytes of space, then sleeps until there are `least`.
    fn wait_for(&mut self, wanted: usize, least: usize, deadline: Option<Instant>) -> Result<()> {
        let mut late = false;
        while self.look(wanted)? < wanted {
            if late {
                // Less than wanted may have become free with the last event.
                return if self.look(least)? >= least {
                    Ok(())
                } else {
                    Err(Error::TimedOut)
                };
            }
            self.publish();
            self.enough = 1;
            let mut spinner = self.spinner.clone();
            let found = spinner.search(deadline, || Ok::<_, Error>(self.look(wanted)? >= wanted));
            self.spinner = spinner;
            if found?.is_some() {
                return Ok(());
            }
            let seen = self.shared.doorbell.seen();
            if self.arm(least)? >= least {
                return Ok(());
            }
            late = !self.shared.sleep(seen, deadline)?;
        }
        Ok(())
    }

    /// Writes what fits, without blocking; returns how many bytes, at least 1 unless `bytes` is
    /// empty.
    ///
    /// Before it returns [`Error::WouldBlock`] it requests the notification and looks at the ring
    /// again. So the channel's descriptor becomes readable when space is free or the peer leaves.
    ///
    /// # Errors
    ///
    /// [`Error::WouldBlock`]; [`Error::Closed`] if the peer is gone; [`Error::Peer`];
    /// [`Error::Os`].
    pub fn try_write(&mut self, bytes: &[u8]) -> Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.shared.doorbell.check(Half::Writer)?;
        match self.put(bytes)? {
            0 => {
                self.try_look(1)?;
                self.put(bytes)
            }
            len => Ok(len),
        }
    }

    /// Writes what fits of the buffers one after another, without blocking, and publishes it in one
    /// step; returns how many bytes, at least 1 unless all are empty.
    ///
    /// # Errors
    ///
    /// As [`try_write`](Self::try_write).
    pub fn try_write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> Result<usize> {
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Ok(0);
        }
        self.try_look(1)?;
        self.put_vectored(bufs)
    }

    fn put_vectored(&mut self, bufs: &[IoSlice<'_>]) -> Result<usize> {
        let mut done = 0;
        for buf in bufs {
            let staged = self.tx.stage(buf);
            let len = match self.checked(staged) {
                Ok(len) => len,
                // As in `put`: the error persists.
                Err(_) if done != 0 => break,
                Err(error) => return Err(error),
            };
            done += len;
            if len < buf.len() {
                break;
            }
        }
        if !self.corked {
            self.publish();
        }
        Ok(done)
    }

    /// Writes all of `bytes`, sleeping while the ring is full, until `deadline` (`None`: forever).
    ///
    /// Returns how many bytes were written: all of them, or fewer if the deadline passed or an
    /// error occurred. The next call returns that error (but not a deadline that passed: the next
    /// call has its own). Signals do not end the write.
    ///
    /// # Errors
    ///
    /// Only if nothing was written: [`Error::TimedOut`], otherwise as
    /// [`try_write`](Self::try_write).
    #[doc(alias = "libxenvchan_write")]
    pub fn write_deadline(&mut self, bytes: &[u8], deadline: Option<Instant>) -> Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.shared.doorbell.check(Half::Writer)?;
        let mut written = self.put(bytes)?;
        // After a failed notify the peer may be asleep and never make room.
        while written < bytes.len()
            && !(written != 0 && self.shared.doorbell.has_failed(Half::Writer))
        {
            // Each turn may move a single byte, for a reader that takes no more at a time.
            if written != 0 && has_passed(deadline) {
                break;
            }
            let wanted = (bytes.len() - written).min(piece(self.tx.capacity()));
            let more = self
                .wait_for(wanted, 1, deadline)
                .and_then(|()| self.put(&bytes[written..]));
            match more {
                Ok(more) => written += more,
                // The next call meets the cause again if it persists (a dead peer, a violation);
                // otherwise it returns the kept error.
                Err(error) if written != 0 => {
                    self.shared.doorbell.keep(Half::Writer, error);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    /// While corked, small writes gather in the ring unseen and are published together: at 4 KiB
    /// (or an eighth of the ring), by [`flush`](Write::flush), when the writer has to wait for
    /// space, when the channel's owner reads and has to wait, when it borrows [both
    /// halves](crate::Channel::halves), and at the end. Uncorking publishes.
    pub fn set_cork(&mut self, corked: bool) {
        self.corked = corked;
        if corked {
            self.enough = CORK.min(self.tx.capacity() / 8);
        } else {
            self.enough = 1;
            self.publish();
        }
    }

    /// Returns the bytes that can be written now and, if they are fewer than `least`, requests an
    /// event: the descriptor becomes readable when there is more space, or when the peer leaves.
    /// Before the request it publishes what has gathered. Writes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the peer is gone; [`Error::ShutDown`]; [`Error::Peer`]; [`Error::Os`].
    #[doc(alias = "libxenvchan_buffer_space")]
    pub fn arm_write(&self, least: usize) -> Result<usize> {
        self.shared.doorbell.check(Half::Writer)?;
        // Before the look: an event that is delivered from now on is of a later change.
        self.shared.unmask()?;
        match self.space()? {
            space if space < least => {
                self.request();
                self.space()
            }
            space => Ok(space),
        }
    }

    /// Returns the bytes that can be written now without blocking. Requests no notification.
    ///
    /// The peer can only add to them.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the peer is gone; [`Error::Peer`].
    pub fn space(&self) -> Result<usize> {
        if self.shut {
            return Err(Error::ShutDown);
        }
        let space = match self.shared.observe()? {
            PeerState::Gone => return Err(Error::Closed),
            PeerState::Connected | PeerState::Waiting if self.attached => self.tx.refresh_shared(),
            PeerState::Connected => self.tx.before_attach(),
            PeerState::Waiting => return Ok(0),
        };
        Ok(self.checked(space)? as usize)
    }

    /// Returns the state of the peer as of now. Does not block.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]; [`Error::Os`].
    pub fn peer(&self) -> Result<PeerState> {
        self.shared.observe()
    }

    /// Ends this side of the channel in both directions:
    /// [`Channel::shutdown`](crate::Channel::shutdown). A thread that is blocked in a read of the
    /// other half returns when the peer has left in turn.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] if the peer could not be notified: it sees the end when it next looks.
    pub fn shutdown(&mut self) -> Result<()> {
        self.shut();
        self.shared.leave()
    }

    /// Returns how many bytes the ring holds.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.tx.capacity() as usize
    }

    /// Sets how long [`Write::write`] may block. `None`, the default, means forever, as does a time
    /// beyond what the clock can count.
    pub const fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Sets the longest that a blocking call looks for space before it sleeps. Zero switches that
    /// off, and more than a second counts as a second.
    ///
    /// The default is 50 µs, and zero on a machine with one CPU. The search shortens itself while
    /// it finds nothing; in a domain with one CPU it begins short.
    pub fn set_spin(&mut self, limit: Duration) {
        self.spinner.set_limit(limit);
    }

    fn deadline(&self) -> Option<Instant> {
        self.timeout
            .and_then(|timeout| Instant::now().checked_add(timeout))
    }
}

impl Write for WriteHalf {
    #[inline]
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self.put_fast(buf) {
            Some(len) => Ok(len),
            None => Ok(self.write_deadline(buf, self.deadline())?),
        }
    }

    #[inline]
    fn write_all(&mut self, buf: &[u8]) -> io::Result<()> {
        match self.put_fast(buf) {
            Some(_) => Ok(()),
            None => BySteps(self).write_all(buf),
        }
    }

    /// Writes what fits of the buffers one after another, published in one step; blocks while
    /// nothing fits.
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if total == 0 {
            return Ok(0);
        }
        self.shared.doorbell.check(Half::Writer)?;
        let deadline = self.deadline();
        self.wait_for(total.min(piece(self.tx.capacity())), 1, deadline)?;
        Ok(self.put_vectored(bufs)?)
    }

    /// Publishes what a [corked](Self::set_cork) writer has gathered.
    fn flush(&mut self) -> io::Result<()> {
        self.publish();
        Ok(())
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        self.publish();
    }
}
