//! The reading end of one ring.

use std::sync::OnceLock;
#[cfg(not(loom))]
use std::{io, os::fd::AsFd};

use super::private::Private;
use super::producer::take_request;
use super::{READ, Ring, WRITE};
use crate::Violation;
use crate::cursor::{accept_prod, filled, parts};
use crate::sync::{Ordering, fence};

/// The reading end of one ring.
///
/// [`take`](Self::take) copies bytes out and [`release`](Self::release) gives their space back.
///
/// The own cursor is private. The peer's producer cursor is loaded only when no byte known to be
/// ready is left. It is loaded once and judged before use, so at most the ring's size is ever
/// believed to be ready.
#[derive(Debug)]
pub struct Consumer {
    ring: Ring,
    /// The next byte to be read; at least `released`.
    next: u32,
    /// The cursor last published to the peer.
    released: u32,
    /// The last producer cursor believed. May be stale, which only hides bytes.
    seen: Private,
    /// The number of bytes from `next` on that may be taken without any check: they are known to be
    /// ready and are contiguous, and the half is not broken. May be too small.
    run: Private,
    fault: OnceLock<Violation>,
}

impl Consumer {
    pub(super) const fn new(ring: Ring) -> Self {
        Self {
            ring,
            next: 0,
            released: 0,
            seen: Private::new(0),
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
        (self.next, self.released, *self.seen.get_mut()) = (cons, cons, prod);
        *self.run.get_mut() = 0;
        Ok(())
    }

    /// Returns the bytes that [`attach`](Self::attach) would find.
    ///
    /// # Errors
    ///
    /// As [`attach`](Self::attach).
    #[cfg(not(loom))]
    pub(crate) fn before_attach(&self) -> Result<u32, Violation> {
        let (prod, cons) = self.ring.cursors()?;
        Ok(filled(prod, cons))
    }

    /// Returns the ring's size in bytes.
    #[inline]
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.ring.size
    }

    /// Bytes known to be ready without looking at shared memory. They cannot be taken away again.
    #[inline]
    #[must_use]
    pub fn known_ready(&self) -> u32 {
        filled(self.seen.get(), self.next)
    }

    /// Bytes taken whose space was not given back yet.
    #[inline]
    #[must_use]
    pub const fn unreleased(&self) -> u32 {
        filled(self.next, self.released)
    }

    /// The own cursor as last published to the peer.
    #[cfg(not(loom))]
    pub(crate) const fn position(&self) -> u32 {
        self.released
    }

    /// Looks at the peer's cursor and judges it, but does not believe it yet: see
    /// [`adopt`](Self::adopt).
    ///
    /// # Errors
    /// The cursor cannot be true. Every later call returns the same error.
    /// The cursor cannot be true. The same error is returned ever after.
    #[inline]
    pub fn fetch(&self) -> Result<Fetched, Violation> {
        if let Some(fault) = self.fault() {
            return Err(fault);
        }
        // Before the look: another thread may move it forward meanwhile.
        let seen = self.seen.get_before_look();
        // Acquire: the bytes were written before the cursor that covers them.
        let prod = self.ring.prod.get().load(Ordering::Acquire);
        // Against `released`, not `next`: the peer may fill the ring up to `released`.
        if accept_prod(prod, seen, self.released, self.ring.size).is_none() {
            return Err(self.poison(Violation::Producer {
                prod,
                last: seen,
                cons: self.released,
                size: self.ring.size,
            }));
        }
        Ok(Fetched(prod))
    }

    /// Believes a cursor that [`fetch`](Self::fetch) judged; returns the bytes ready.
    ///
    /// The two steps are separate so that the owner can look at the peer's live byte in between and
    /// ignore what a later session wrote.
    #[inline]
    #[allow(clippy::needless_pass_by_value)] // a permission, used up
    pub fn adopt(&mut self, fetched: Fetched) -> u32 {
        let ready = filled(fetched.0, self.next);
        *self.seen.get_mut() = fetched.0;
        *self.run.get_mut() = self.next_run(ready);
        ready
    }

    /// [`adopt`](Self::adopt) by one of several threads that look at once.
    #[allow(clippy::needless_pass_by_value)] // as there
    pub fn adopt_shared(&self, fetched: Fetched) -> u32 {
        // The run may be too small.
        self.seen.advance(fetched.0);
        self.known_ready()
    }

    /// [`fetch`](Self::fetch) and [`adopt`](Self::adopt).
    ///
    /// # Errors
    ///
    /// As [`fetch`](Self::fetch).
    #[inline]
    pub fn refresh(&mut self) -> Result<u32, Violation> {
        let fetched = self.fetch()?;
        Ok(self.adopt(fetched))
    }

    /// See the field.
    #[inline]
    const fn next_run(&self, ready: u32) -> u32 {
        let to_end = self.ring.size - (self.next & (self.ring.size - 1));
        if ready < to_end { ready } else { to_end }
    }

    /// Fills `into` from the run, or does nothing and returns `false` if the run has fewer bytes or
    /// `into` is empty.
    #[inline]
    pub(crate) fn take_fast(&mut self, into: &mut [u8]) -> bool {
        if into.len().wrapping_sub(1) >= *self.run.get_mut() as usize {
            return false;
        }
        #[allow(clippy::cast_possible_truncation)] // at most `run`
        let len = into.len() as u32;
        let at = self.next & (self.ring.size - 1);
        self.ring.data.copy_out(at as usize, into);
        self.next = self.next.wrapping_add(len);
        *self.run.get_mut() -= len;
        true
    }

    /// Copies bytes known to be ready into `into`; returns how many. Does not look at shared
    /// cursors.
    #[inline]
    pub fn take(&mut self, into: &mut [u8]) -> usize {
        let ready = filled(*self.seen.get_mut(), self.next);
        let len = into.len().min(ready as usize);
        let into = &mut into[..len];
        #[allow(clippy::cast_possible_truncation)] // at most the ring's size
        let count = len as u32;
        let (at, first, second) = parts(self.next, count, self.ring.size);
        self.ring.data.copy_out(at, &mut into[..first]);
        if second != 0 {
            self.ring.data.copy_out(0, &mut into[first..]);
        }
        self.next = self.next.wrapping_add(count);
        *self.run.get_mut() = self.next_run(ready - count);
        len
    }

    /// Writes the bytes known to be ready to a descriptor with `writev(2)`. Returns how many it
    /// took.
    ///
    /// # Errors
    ///
    /// The error of `writev`; nothing was taken.
    #[cfg(not(loom))]
    pub fn take_to(&mut self, fd: impl AsFd) -> io::Result<usize> {
        let ready = self.known_ready();
        let len = self
            .ring
            .data
            .drain_to(fd, parts(self.next, ready, self.ring.size))?;
        #[allow(clippy::cast_possible_truncation)] // at most `ready`
        let count = (len as u32).min(ready);
        self.next = self.next.wrapping_add(count);
        *self.run.get_mut() = 0;
        Ok(len)
    }

    /// Discards every byte known to be ready.
    pub fn skip(&mut self) {
        self.next = *self.seen.get_mut();
        *self.run.get_mut() = 0;
    }

    /// Gives the space of the bytes taken back to the peer. Returns `true` if the peer requested a
    /// notification: the caller must notify it.
    ///
    /// The barrier is that of [`Producer::publish`](super::Producer::publish).
    #[inline]
    #[must_use = "`true` means that the peer sleeps until its event channel is notified"]
    pub fn release(&mut self) -> bool {
        if self.next == self.released {
            return false;
        }
        self.released = self.next;
        // Release: the bytes were copied out before the cursor gives their space away.
        self.ring.cons.get().store(self.next, Ordering::Release);
        fence(Ordering::SeqCst);
        take_request(&self.ring, READ)
    }

    /// Requests a notification for when the peer has written something. Look again afterwards,
    /// before sleeping.
    #[inline]
    pub fn request(&self) {
        self.ring
            .writer_told
            .get()
            .fetch_or(WRITE, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Ends the use of this half: every later call returns a violation. Returns the one that is
    /// kept, which is the first.
    pub fn poison(&self, violation: Violation) -> Violation {
        self.run.set(0);
        *self.fault.get_or_init(|| violation)
    }

    /// Returns whether a violation ended the use of this half.
    #[inline]
    #[must_use]
    pub fn fault(&self) -> Option<Violation> {
        self.fault.get().copied()
    }
}

/// A producer cursor that was judged and may be believed.
#[derive(Debug)]
#[must_use]
pub struct Fetched(u32);
