//! The receiving half of a channel.

mod chunk;
mod packet;

use std::io::{self, IoSliceMut, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::doorbell::Half;
use crate::ring::{Consumer, Fetched};
use crate::session::PeerState;
use crate::shared::{Shared, piece};
use crate::spin::{FoundFast, Spinner};
use crate::{Error, Result, Violation};

pub use chunk::ReadChunk;

/// Short reads in a row, each satisfied immediately, after which the reader holds back.
const COALESCE_AFTER: u8 = 2;
/// How long it holds back at most. The writer of a stream of small messages gets ahead, and the two
/// sides stop passing a cache line back and forth for every message.
const COALESCE_TIME: Duration = Duration::from_micros(2);
/// A longer read is not short and need not gather.
const SHORT: usize = 4096;

/// The receiving half of a [`Channel`](crate::Channel): `Send`, for a thread of its own.
///
/// Made by [`Channel::split`](crate::Channel::split), or lent by
/// [`Channel::halves`](crate::Channel::halves). [`Read`] blocks, up to the
/// [timeout](Self::set_timeout) if one is set; at the end of the peer's bytes it returns `Ok(0)`.
#[derive(Debug)]
pub struct ReadHalf {
    pub(crate) rx: Consumer,
    pub(crate) shared: Arc<Shared>,
    /// A client reads the cursors when the session begins, not before.
    attached: bool,
    timeout: Option<Duration>,
    spinner: Spinner,
    short_reads: u8,
    /// Packets that are caught up with before the next pause: more while pauses are in vain.
    pause_after: u8,
}

impl ReadHalf {
    pub(crate) fn new(rx: Consumer, shared: Arc<Shared>, attached: bool) -> Self {
        Self {
            rx,
            spinner: Spinner::new(shared.runs),
            shared,
            attached,
            timeout: None,
            short_reads: 0,
            pause_after: COALESCE_AFTER,
        }
    }

    /// Switches to fresh memory.
    pub(crate) fn renew(&mut self, rx: Consumer, shared: Arc<Shared>) {
        self.rx = rx;
        self.shared = shared;
        self.attached = true;
        self.short_reads = 0;
    }

    /// Returns the bytes ready. Looks at the ring and the peer only if fewer than `least` are
    /// known, and requests no notification.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the peer is gone and there will never be `least`.
    pub(crate) fn look(&mut self, least: usize) -> Result<usize> {
        let known = self.rx.known_ready() as usize;
        if known >= least && self.rx.fault().is_none() {
            return Ok(known);
        }
        if !self.attached && !self.attach()? {
            return Ok(0);
        }
        let (fetched, gone) = self.fetch_last()?;
        if let Some(fetched) = fetched {
            self.rx.adopt(fetched);
        }
        let ready = self.rx.known_ready() as usize;
        if gone && ready < least {
            return Err(Error::Closed);
        }
        Ok(ready)
    }

    /// Looks at the peer's cursor and then at the peer; returns whether the peer is gone. Returns
    /// no cursor if another client has connected since, because it may be that client's.
    #[inline]
    fn fetch_last(&self) -> Result<(Option<Fetched>, bool)> {
        let fetched = self.fetch()?;
        // The live byte after the cursor: if it still names this session, every byte up to the
        // cursor belongs to it too.
        match self.shared.observe()? {
            PeerState::Waiting | PeerState::Connected => Ok((Some(fetched), false)),
            PeerState::Gone => {
                // The peer may have written between our look at the cursor and its end.
                let last = self.fetch()?;
                let undisturbed = self.shared.session.undisturbed();
                Ok((undisturbed.then_some(last), true))
            }
        }
    }

    /// Returns the bytes ready and whether the peer is gone. May be called by several threads.
    fn look_shared(&self) -> Result<(usize, bool)> {
        if !self.attached {
            let Some(state) = self.begun()? else {
                return Ok((0, false));
            };
            let ready = self.checked(self.rx.before_attach())?;
            return Ok((ready as usize, state == PeerState::Gone));
        }
        let (fetched, gone) = self.fetch_last()?;
        if let Some(fetched) = fetched {
            self.rx.adopt_shared(fetched);
        }
        Ok((self.rx.known_ready() as usize, gone))
    }

    /// Returns the state of the peer if the session has begun.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if it has not and never will.
    fn begun(&self) -> Result<Option<PeerState>> {
        match self.shared.observe()? {
            PeerState::Waiting => Ok(None),
            PeerState::Gone if !self.shared.session.begun() => Err(Error::Closed),
            // Gone already, but it may have written before.
            state => Ok(Some(state)),
        }
    }

    /// Reads the cursors of a session that has begun; returns `false` if it has not.
    #[cold]
    fn attach(&mut self) -> Result<bool> {
        if self.begun()?.is_none() {
            return Ok(false);
        }
        let attached = self.rx.attach();
        self.checked(attached)?;
        self.attached = true;
        Ok(true)
    }

    #[inline(always)]
    pub(crate) fn fetch(&self) -> Result<Fetched> {
        let fetched = self.rx.fetch();
        self.checked(fetched)
    }

    fn checked<T>(&self, result: Result<T, Violation>) -> Result<T> {
        result.map_err(|violation| self.shared.session.break_off(violation))
    }

    /// Requests an event. The caller looks once more afterwards.
    fn request(&self) {
        #[cfg(test)]
        crate::test_window::window();
        self.rx.request();
    }

    /// Requests an event and looks once more.
    pub(crate) fn arm(&mut self, least: usize) -> Result<usize> {
        self.request();
        self.look(least)
    }

    /// Looks, and requests the notification before it returns that there is too little.
    pub(crate) fn try_look(&mut self, least: usize) -> Result<()> {
        self.shared.doorbell.check(Half::Reader)?;
        if self.look(least)? < least && self.arm(least)? < least {
            self.shared.unmask()?;
            return Err(Error::WouldBlock);
        }
        Ok(())
    }

    /// Looks, searches and sleeps until `least` bytes are ready.
    pub(crate) fn wait_for(&mut self, least: usize, deadline: Option<Instant>) -> Result<()> {
        self.shared.doorbell.check(Half::Reader)?;
        let mut late = false;
        while self.look(least)? < least {
            if late {
                return Err(Error::TimedOut);
            }
            let mut spinner = self.spinner.clone();
            let found = spinner.search(deadline, || Ok::<_, Error>(self.look(least)? >= least));
            self.spinner = spinner;
            if let Some(at_once) = found? {
                // A longer search waited for the peer; this read did not catch up with the writer.
                if at_once != FoundFast(true) {
                    self.short_reads = 0;
                }
                return Ok(());
            }
            self.short_reads = 0;
            let seen = self.shared.doorbell.seen();
            if self.arm(least)? >= least {
                return Ok(());
            }
            late = !self.shared.sleep(seen, deadline)?;
        }
        Ok(())
    }

    /// Called before a look at the cursor: lets a writer that we keep catching up with get ahead.
    #[inline]
    fn coalesce(&self) {
        if self.short_reads >= COALESCE_AFTER && self.rx.known_ready() == 0 {
            self.pause();
        }
    }

    fn pause(&self) {
        // Less than a small ring takes to fill: a writer that finds it full may go to sleep.
        self.spinner
            .spin_for(COALESCE_TIME.min(Duration::from_nanos(u64::from(self.rx.capacity() / 4))));
    }

    /// Records that the owner has written: the next bytes are an answer and must not be delayed.
    #[inline]
    pub(crate) const fn expect_answer(&mut self) {
        self.short_reads = 0;
    }

    /// Takes bytes that are ready, and, for a large buffer, those that arrive meanwhile. Gives
    /// space back piece by piece so that the writer works at the same time.
    fn finish(&mut self, buf: &mut [u8]) -> usize {
        let piece = piece(self.rx.capacity());
        let mut done = 0;
        loop {
            let end = buf.len().min(done + piece);
            let len = self.rx.take(&mut buf[done..end]);
            done += len;
            self.give_back();
            // The next call meets an error here again; these bytes were read.
            let more =
                done < buf.len() && len == piece && self.look(1).is_ok_and(|ready| ready != 0);
            if !more {
                break;
            }
        }
        self.note(done < buf.len() && self.is_short(done));
        done
    }

    /// The usual read of a small message: bytes are there, fewer than a piece, in a session that
    /// runs. Returns `None`, and takes nothing, if the read is any other. The result is that of the
    /// slow path, in one piece of code without a call.
    #[inline]
    fn take_fast(&mut self, buf: &mut [u8]) -> Option<usize> {
        if !self.attached
            || self.rx.fault().is_some()
            || self.shared.doorbell.has_failed(Half::Reader)
        {
            return None;
        }
        if self.rx.known_ready() == 0 {
            if self.short_reads >= COALESCE_AFTER {
                return None;
            }
            // A broken half fails now and in the slow path, which returns the cause.
            let fetched = self.rx.fetch().ok()?;
            // The live byte after the cursor, as in `look`.
            if !self.shared.session.runs() {
                return None;
            }
            self.rx.adopt(fetched);
        }
        let piece = piece(self.rx.capacity());
        let len = buf.len().min(self.rx.known_ready() as usize);
        if len == 0 || len >= piece {
            return None;
        }
        self.rx.take(&mut buf[..len]);
        self.give_back();
        self.note(len < buf.len() && self.is_short(len));
        Some(len)
    }

    /// Returns whether a read of `len` bytes shows that we keep catching up with the writer.
    #[inline]
    const fn is_short(&self, len: usize) -> bool {
        len < SHORT && len < self.rx.capacity() as usize / 8
    }

    /// Counts short reads in a row.
    #[inline]
    const fn note(&mut self, short: bool) {
        self.short_reads = if short {
            self.short_reads.saturating_add(1)
        } else {
            0
        };
    }

    #[inline]
    pub(crate) fn give_back(&mut self) {
        if self.rx.release() {
            self.shared.doorbell.notify_for(Half::Reader);
        }
    }

    /// Reads what is there, without blocking; returns how many bytes, at least 1 unless `buf` is
    /// empty.
    ///
    /// After two short reads in a row it spins for up to 2 µs before it looks, so that a writer of
    /// small messages gets ahead; [`set_spin`](Self::set_spin) with zero, or a machine with one
    /// CPU, switches that off.
    ///
    /// Before it returns [`Error::WouldBlock`] it requests the notification and looks at the ring
    /// again. So the channel's descriptor becomes readable when bytes arrive or the peer leaves.
    ///
    /// # Errors
    ///
    /// [`Error::WouldBlock`]; [`Error::Closed`] at the end of the peer's bytes; [`Error::Peer`];
    /// [`Error::Os`].
    pub fn try_read(&mut self, buf: &mut [u8]) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.coalesce();
        self.try_look(1)?;
        Ok(self.finish(buf))
    }

    /// Reads what is there, sleeping until there is something or `deadline` passes (`None`:
    /// forever).
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`]; otherwise as [`try_read`](Self::try_read).
    #[doc(alias = "libxenvchan_read")]
    pub fn read_deadline(&mut self, buf: &mut [u8], deadline: Option<Instant>) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.coalesce();
        self.wait_for(1, deadline)?;
        Ok(self.finish(buf))
    }

    /// Reads what is there into the buffers one after another, without blocking; returns how many
    /// bytes, at least 1 unless all are empty.
    ///
    /// # Errors
    ///
    /// As [`try_read`](Self::try_read).
    pub fn try_read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> Result<usize> {
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Ok(0);
        }
        self.coalesce();
        self.try_look(1)?;
        let mut incoming = ReadChunk::new(self);
        Ok(bufs.iter_mut().map(|buf| incoming.get(buf)).sum())
    }

    /// Returns the bytes that can be read now, without reading them. If they are fewer than
    /// `least`, requests an event: the descriptor becomes readable when there are more, or when the
    /// peer leaves.
    ///
    /// For a loop that polls by itself: while there is enough, read; then poll; then call
    /// [`acknowledge_events`](crate::Channel::acknowledge_events), and arm again.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the peer is gone and they are fewer than `least`, or none: bytes that
    /// are there can still be read. [`Error::Peer`]; [`Error::Os`].
    #[doc(alias = "libxenvchan_data_ready")]
    pub fn arm_read(&self, least: usize) -> Result<usize> {
        self.shared.doorbell.check(Half::Reader)?;
        // Before the look: an event that is delivered from now on is of a later change.
        self.shared.unmask()?;
        let (mut ready, mut gone) = self.look_shared()?;
        if ready < least && !gone {
            self.request();
            (ready, gone) = self.look_shared()?;
        }
        // If this returned a smaller count, the caller would sleep, and no event would arrive.
        if gone && ready < least.max(1) {
            return Err(Error::Closed);
        }
        Ok(ready)
    }

    /// Returns the bytes that can be read now. Requests no notification.
    ///
    /// The peer can only add to them.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if there are none and the peer is gone; [`Error::Peer`].
    pub fn bytes_readable(&self) -> Result<usize> {
        match self.look_shared()? {
            (0, true) => Err(Error::Closed),
            (ready, _) => Ok(ready),
        }
    }

    /// Returns the state of the peer as of now. Does not block.
    ///
    /// # Errors
    ///
    /// [`Error::Peer`]; [`Error::Os`].
    pub fn peer(&self) -> Result<PeerState> {
        self.shared.observe()
    }

    /// Returns how many bytes the ring holds.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.rx.capacity() as usize
    }

    /// Sets how long [`Read::read`] may block. `None`, the default, means forever, as does a time
    /// beyond what the clock can count.
    pub const fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Sets the longest a blocking call spins for bytes before it sleeps; more than a second counts
    /// as a second.
    ///
    /// The default is 50 µs, and zero on a machine with one CPU. The search shortens itself while
    /// it finds nothing; in a domain with one CPU it begins short. Zero switches all spinning off,
    /// that of [`try_read`](Self::try_read) included.
    pub fn set_spin(&mut self, limit: Duration) {
        self.spinner.set_limit(limit);
    }

    fn deadline(&self) -> Option<Instant> {
        self.timeout
            .and_then(|timeout| Instant::now().checked_add(timeout))
    }
}

impl Read for ReadHalf {
    #[inline]
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.take_fast(buf) {
            Some(len) => Ok(len),
            None => end_as_zero(self.read_deadline(buf, self.deadline())),
        }
    }

    fn read_vectored(&mut self, bufs: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        if bufs.iter().all(|buf| buf.is_empty()) {
            return Ok(0);
        }
        match self.read_chunk(self.deadline()) {
            Ok(mut incoming) => Ok(bufs.iter_mut().map(|buf| incoming.get(buf)).sum()),
            Err(error) => end_as_zero(Err(error)),
        }
    }
}

/// Converts the end of the bytes to `Ok(0)`, as `io::Read` requires.
pub(crate) fn end_as_zero(result: Result<usize>) -> io::Result<usize> {
    match result {
        Err(Error::Closed) => Ok(0),
        other => other.map_err(io::Error::from),
    }
}
