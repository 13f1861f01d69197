//! The writing end of one ring.

use std::sync::OnceLock;
#[cfg(not(loom))]
use std::{io, os::fd::AsFd};

use super::private::Private;
use super::{READ, Ring, WRITE};
use crate::Violation;
use crate::cursor::{accept_cons, filled, parts};
use crate::mem::LINE;
use crate::sync::{Ordering, fence};

/// The writing end of one ring.
///
/// [`stage`](Self::stage) copies bytes in and [`publish`](Self::publish) makes them visible; until
/// then [`discard`](Self::discard) removes them.
///
/// Both own cursors are private: what the peer writes into our half of the control page changes
/// nothing here. The only value taken from the peer is its consumer cursor, and only when the last
/// one believed leaves too little space. It is loaded once and judged before use.
#[derive(Debug)]
pub struct Producer {
    ring: Ring,
    /// The position of the next byte; at least `published`.
    next: u32,
    /// The cursor last published to the peer.
    published: Private,
    /// The last consumer cursor believed. May be stale, which only hides space.
    seen: Private,
    /// Up to here cache lines were fetched; a multiple of [`LINE`].
    reached: u32,
    /// The number of bytes from `next` on that may be written without any check. There is known,
    /// contiguous space for them, they are far enough from `reached`, and the half is not broken.
    /// May be too small.
    run: Private,
    fault: OnceLock<Violation>,
}

/// Prefetch distance of a short write, and the number of bytes fetched at a time. The reader's CPU
/// reads ahead by itself, which would undo a shorter one.
const AHEAD: u32 = 512;
/// Bounds of the prefetch distance of a long write, which is a sixteenth of the ring. A long write
/// does not stop at every cache line. Fewer steps are less work, but fetched lines must still be in
/// the cache when they are written.
const FAR_AHEAD: (u32, u32) = (1024, 16384);

impl Producer {
    pub(super) const fn new(ring: Ring) -> Self {
        Self {
            ring,
            next: 0,
            published: Private::new(0),
            seen: Private::new(0),
            reached: 0,
            run: Private::new(0),
            fault: OnceLock::new(),
        }
    }

    /// Takes over both cursors as they are.
    ///
    /// # Errors
    ///
    /// [`Violation::Attach`]: they are further apart than the ring is large; nothing has changed.
    pub(crate) fn attach(&mut self) -> Result<(), Violation> {
        let (prod, cons) = self.ring.cursors()?;
        (self.next, *self.published.get_mut()) = (prod, prod);
        *self.seen.get_mut() = cons;
        self.reached = line_from(prod);
        *self.run.get_mut() = 0;
        Ok(())
    }

    /// Returns the space that [`attach`](Self::attach) would find.
    ///
    /// # Errors
    ///
    /// As [`attach`](Self::attach).
    #[cfg(not(loom))]
    pub(crate) fn before_attach(&self) -> Result<u32, Violation> {
        let (prod, cons) = self.ring.cursors()?;
        Ok(self.ring.size - filled(prod, cons))
    }

    /// Returns the ring's size in bytes.
    #[inline]
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.ring.size
    }

    /// Returns the space known without looking at shared memory, in bytes. The peer can only add to
    /// it.
    #[inline]
    #[must_use]
    pub fn known_space(&self) -> u32 {
        self.ring.size - filled(self.next, self.seen.get())
    }

    /// Returns the cursor behind the last byte staged; every byte moves it by one.
    #[inline]
    pub(crate) const fn written(&self) -> u32 {
        self.next
    }

    /// Bytes staged and not yet published.
    #[inline]
    #[must_use]
    pub fn staged(&self) -> u32 {
        filled(self.next, self.published.get())
    }

    /// Returns the bytes published that the peer had not read at the last look at its cursor.
    #[inline]
    #[must_use]
    pub fn known_unread(&self) -> u32 {
        filled(self.published.get(), self.seen.get())
    }

    /// Returns the last believed cursor of the peer.
    #[cfg(not(loom))]
    pub(crate) fn believed(&self) -> u32 {
        self.seen.get()
    }

    /// Looks at the peer's cursor; returns the space there is now.
    ///
    /// # Errors
    ///
    /// The cursor cannot be true. Every later call returns the same error.
    #[inline]
    pub fn refresh(&mut self) -> Result<u32, Violation> {
        *self.seen.get_mut() = self.fetch()?;
        Ok(self.known_space())
    }

    /// [`refresh`](Self::refresh) by one of several threads that look at once.
    ///
    /// # Errors
    ///
    /// As [`refresh`](Self::refresh).
    pub fn refresh_shared(&self) -> Result<u32, Violation> {
        self.seen.advance(self.fetch()?);
        Ok(self.known_space())
    }

    /// Looks at the peer's cursor and judges it.
    #[inline]
    fn fetch(&self) -> Result<u32, Violation> {
        if let Some(fault) = self.fault.get() {
            return Err(*fault);
        }
        // Before the look: another thread may move it forward meanwhile.
        let seen = self.seen.get_before_look();
        // Acquire: the peer's reading of these bytes happens before our overwriting them.
        let cons = self.ring.cons.get().load(Ordering::Acquire);
        // After the look: another thread may publish meanwhile, and the peer may read it.
        let published = self.published.get();
        if accept_cons(cons, seen, published).is_none() {
            return Err(self.poison(Violation::Consumer {
                cons,
                last: seen,
                prod: published,
                size: self.ring.size,
            }));
        }
        Ok(cons)
    }

    /// Copies as much of `bytes` as fits behind what is staged already; returns how much.
    ///
    /// Looks at the peer's cursor only if the space known does not suffice.
    ///
    /// # Errors
    ///
    /// As [`refresh`](Self::refresh).
    #[inline]
    pub fn stage(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        if self.stage_fast(bytes) {
            Ok(bytes.len())
        } else {
            self.stage_by_steps(bytes)
        }
    }

    /// Copies all of `bytes` into the run, or does nothing and returns `false` if the run is too
    /// short or `bytes` is empty.
    #[inline]
    pub(crate) fn stage_fast(&mut self, bytes: &[u8]) -> bool {
        if bytes.len().wrapping_sub(1) >= *self.run.get_mut() as usize {
            return false;
        }
        #[allow(clippy::cast_possible_truncation)] // at most `run`
        let len = bytes.len() as u32;
        let at = self.next & (self.ring.size - 1);
        self.ring.data.copy_in(at as usize, bytes);
        self.next = self.next.wrapping_add(len);
        *self.run.get_mut() -= len;
        true
    }

    /// The slow path of [`stage`](Self::stage): any number of bytes. Computes the next run.
    #[inline(never)]
    fn stage_by_steps(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        if let Some(fault) = self.fault.get() {
            return Err(*fault);
        }
        let mut space = self.known_space() as usize;
        if space < bytes.len() {
            space = self.refresh()? as usize;
        }
        let len = bytes.len().min(space);
        #[allow(clippy::cast_possible_truncation)] // at most the ring's size
        if len <= AHEAD as usize {
            self.put(&bytes[..len], AHEAD, AHEAD + len as u32);
        } else {
            let ahead = (self.ring.size / 16).clamp(FAR_AHEAD.0, FAR_AHEAD.1);
            for piece in bytes[..len].chunks(ahead as usize) {
                self.put(piece, ahead, ahead);
            }
        }
        *self.run.get_mut() = self.next_run();
        Ok(len)
    }

    /// Copies `bytes`, which are known to fit; before that, if fewer than `least` bytes from `next`
    /// on were fetched, fetches `ahead` more.
    #[inline]
    fn put(&mut self, bytes: &[u8], ahead: u32, least: u32) {
        let reach = filled(self.reached, self.next);
        if reach < least || reach > self.ring.size {
            self.reach_ahead(ahead);
        }
        #[allow(clippy::cast_possible_truncation)] // at most the ring's size
        let len = bytes.len() as u32;
        let (at, first, second) = parts(self.next, len, self.ring.size);
        self.ring.data.copy_in(at, &bytes[..first]);
        if second != 0 {
            self.ring.data.copy_in(0, &bytes[first..]);
        }
        self.next = self.next.wrapping_add(len);
    }

    /// See the field.
    fn next_run(&self) -> u32 {
        let space = self.known_space();
        let to_end = self.ring.size - (self.next & (self.ring.size - 1));
        let reach = filled(self.reached, self.next);
        let fetched = if reach < space {
            reach.saturating_sub(AHEAD)
        } else {
            space
        };
        fetched.min(to_end)
    }

    /// Fetches the cache lines that will be written soon, by writing a byte to each: only where
    /// there is free space, so the value does not matter.
    ///
    /// The reader's CPU has these lines, from the round before or because it reads ahead. A line
    /// must be fetched from there before a byte of it is written, and a publish waits for that. A
    /// stream of small messages would wait for every line separately; lines that are written to one
    /// after the other arrive at the same time.
    fn reach_ahead(&mut self, ahead: u32) {
        if filled(self.reached, self.next) > self.ring.size {
            // The writer overtook it.
            self.reached = line_from(self.next);
        }
        let reach = filled(self.reached, self.next);
        let bytes = self.known_space().saturating_sub(reach).min(ahead);
        // A line is touched at its first byte, if that is within the space.
        let (at, first, second) = parts(self.reached, bytes, self.ring.size);
        self.ring.data.touch(at, first);
        if second != 0 {
            self.ring.data.touch(0, second);
        }
        let lines = bytes.div_ceil(LINE);
        self.reached = self.reached.wrapping_add(lines * LINE);
    }

    /// Reads from a descriptor into the space known, at most `max` bytes, behind what is staged
    /// already, with `readv(2)`. Returns how many bytes it was.
    ///
    /// # Errors
    ///
    /// The error of `readv`; nothing was staged.
    #[cfg(not(loom))]
    pub fn stage_from(&mut self, fd: impl AsFd, max: usize) -> io::Result<usize> {
        let room = self
            .known_space()
            .min(u32::try_from(max).unwrap_or(u32::MAX));
        let len = self
            .ring
            .data
            .fill_from(fd, parts(self.next, room, self.ring.size))?;
        #[allow(clippy::cast_possible_truncation)] // at most `room`
        let count = (len as u32).min(room);
        self.next = self.next.wrapping_add(count);
        *self.run.get_mut() = 0;
        Ok(len)
    }

    /// Removes the bytes that were staged and not published.
    pub fn discard(&mut self) {
        self.next = *self.published.get_mut();
        *self.run.get_mut() = 0;
    }

    /// Removes all space, permanently.
    #[cfg(not(loom))]
    pub(crate) fn shut(&mut self) {
        *self.seen.get_mut() = self.next.wrapping_sub(self.ring.size);
        *self.run.get_mut() = 0;
    }

    /// Makes the staged bytes visible. Returns `true` if the peer requested a notification: the
    /// caller must notify it.
    ///
    /// One full barrier is between the store of the cursor and the load of the peer's request. The
    /// peer has one between its request and its look at the cursor, so at least one of the two sees
    /// the other (`docs/xen-vchan.md`).
    #[inline]
    #[must_use = "`true` means that the peer sleeps until its event channel is notified"]
    pub fn publish(&self) -> bool {
        if self.next == self.published.get() {
            return false;
        }
        // Several threads publish the same value.
        self.published.set(self.next);
        // Release: the bytes are there before the cursor that covers them.
        self.ring.prod.get().store(self.next, Ordering::Release);
        fence(Ordering::SeqCst);
        take_request(&self.ring, WRITE)
    }

    /// Requests a notification for when the peer has read something. Look again afterwards, before
    /// sleeping.
    #[inline]
    pub fn request(&self) {
        self.ring
            .reader_told
            .get()
            .fetch_or(READ, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Ends the use of this half: every later call returns a violation. Returns the one that is
    /// kept, which is the first.
    pub fn poison(&self, violation: Violation) -> Violation {
        self.run.set(0);
        *self.fault.get_or_init(|| violation)
    }

    /// Removes everything the peer has not read, for a peer that is gone: the next one starts with
    /// an empty ring.
    ///
    /// # Errors
    ///
    /// As [`refresh`](Self::refresh).
    pub fn retract(&mut self) -> Result<(), Violation> {
        self.refresh()?;
        self.next = *self.seen.get_mut();
        *self.run.get_mut() = 0;
        *self.published.get_mut() = self.next;
        self.ring.prod.get().store(self.next, Ordering::Release);
        fence(Ordering::SeqCst);
        Ok(())
    }
}

/// The first cache line that begins at `cursor` or after.
const fn line_from(cursor: u32) -> u32 {
    cursor.wrapping_add(LINE - 1) & !(LINE - 1)
}

/// Looks at the request for `bit` and, only if it is set, takes it. Must follow the full barrier of
/// a publish.
#[inline]
pub(super) fn take_request(ring: &Ring, bit: u8) -> bool {
    let told = if bit == WRITE {
        &ring.writer_told
    } else {
        &ring.reader_told
    };
    told.get().load(Ordering::Relaxed) & bit != 0
        && told.get().fetch_and(!bit, Ordering::Relaxed) & bit != 0
}
