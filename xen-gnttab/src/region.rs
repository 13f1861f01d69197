//! A bounds-checked view of memory that somebody else may write to while we look at it.
//!
//! ```text
//!   Region ── base, len, writable ──> the bytes        all that an access looks at
//!      └───── Arc ──> Mapping | heap                   keeps the bytes there
//! ```
//!
//! # The copy rule
//!
//! * **Payload** moves by [`copy_in`](Region::copy_in) and [`copy_out`](Region::copy_out) (or
//!   straight to and from a descriptor). What was copied out is private; what is still in the
//!   region means nothing, and is never looked at in place.
//! * **Control words** are atomics, of one, two or four bytes. A word is loaded once, the copy is
//!   checked against values the peer cannot reach, and only the copy is used.
//! * There is no `&[u8]` and no `&mut [u8]` into a region, and no way to make one.
//!
//! # Guarantees
//!
//! Every access is inside the region or refused with a [`RegionError`]; the bytes stay mapped as
//! long as any clone or slice exists. No access can fault: pages another domain granted stay
//! readable, and a region for reading only refuses writes.
//!
//! # Safety
//!
//! This file is not safe code because it reads and writes through an address. Two premises
//! carry every block, and both are private to this file and [`words`]:
//!
//! 1. `base..base + len` is allocated, readable, and (if `writable`) writable memory while
//!    `backing` lives. [`Region::of`] and [`Region::heap`] establish it, [`Region::slice`] only
//!    narrows it.
//! 2. No reference to any of these bytes exists in this process but the atomics that [`words`] lends.
//!    Whatever else has the address (a mapping, another domain) never makes one.
//!
//! The language's memory model ends at the process. A peer's write that races with a copy is
//! outside it; the copy is made of plain machine loads or stores, the bytes it yields are
//! arbitrary, and nothing depends on their being the same twice. Within one process (tests, a
//! domain that maps its own pages) both ends must order their copies by the atomics, as the
//! vchan ring does.

#![allow(unsafe_code)]

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use crate::Access;
use crate::heap::Heap;
use crate::mapping::Mapping;
use crate::refused::RegionError;

mod words;

pub use words::Word;

/// A view of shared memory; keeps the memory.
///
/// Cloning and slicing make further views of the same bytes. It is `Send + Sync`: several
/// threads may use it, and order their accesses through the atomics.
#[derive(Clone, Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    backing: Arc<Backing>,
}

/// What keeps the bytes there.
#[derive(Debug)]
enum Backing {
    Mapped(Mapping),
    #[expect(dead_code, reason = "kept for its drop")]
    Heap(Heap),
}

// SAFETY: the bytes belong to the process, not to a thread, and what keeps them is `Send + Sync`
// itself (asserted below); through a region they are accessed by atomics, and by copies that the
// copy rule makes the caller order.
unsafe impl Send for Region {}
// SAFETY: as for `Send`; no method takes `&mut self`, so sharing adds nothing to cloning.
unsafe impl Sync for Region {}

const _: fn() = || {
    fn ok<T: Send + Sync>() {}
    ok::<Mapping>();
    ok::<Heap>();
};

impl Region {
    /// All of a mapping.
    pub(crate) fn of(mapping: Mapping) -> Self {
        // Premise 1: `Pages` vouches for its range, by its protection, until it is dropped.
        // Premise 2: `Pages` gives out the address only.
        let (base, len) = (mapping.pages().as_ptr(), mapping.pages().len());
        let writable = mapping.access() == Access::ReadWrite;
        Self {
            base,
            len,
            writable,
            backing: Arc::new(Backing::Mapped(mapping)),
        }
    }

    /// Private zeroed memory of `len` bytes that starts at a page boundary: for tests, fuzzing
    /// and benches of code that takes a region. It needs no hypervisor and no system call.
    #[must_use]
    pub fn heap(len: usize) -> Self {
        let heap = Heap::new(len);
        Self {
            base: heap.base,
            len,
            writable: true,
            backing: Arc::new(Backing::Heap(heap)),
        }
    }

    /// The mapping behind it, unless it is heap memory.
    pub(crate) fn mapping(&self) -> Option<&Mapping> {
        match &*self.backing {
            Backing::Mapped(mapping) => Some(mapping),
            Backing::Heap(_) => None,
        }
    }

    /// Bytes in the region.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it may be written to: false if the pages were mapped [`Access::ReadOnly`].
    #[inline]
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The address of the first byte, for code in another language. It is good for
    /// [`len`](Self::len) bytes while the region, a clone or a slice of it exists; writing needs
    /// [`is_writable`](Self::is_writable). No reference may be made from it.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The part of `len` bytes from `offset`, as a region of its own.
    ///
    /// # Errors
    ///
    /// [`RegionError::OutOfRange`].
    pub fn slice(&self, offset: usize, len: usize) -> Result<Self, RegionError> {
        let base = self.at(offset, len)?;
        Ok(Self {
            base,
            len,
            writable: self.writable,
            backing: Arc::clone(&self.backing),
        })
    }

    /// The address of `offset`, from which `len` bytes are within the region.
    #[inline]
    fn at(&self, offset: usize, len: usize) -> Result<NonNull<u8>, RegionError> {
        if offset > self.len || len > self.len - offset {
            return Err(RegionError::OutOfRange);
        }
        // SAFETY: `offset <= self.len` was checked above, so the result is within, or one past
        // the end of, the allocation of premise 1.
        Ok(unsafe { self.base.add(offset) })
    }

    /// As [`at`](Self::at), for a write.
    #[inline]
    fn at_mut(&self, offset: usize, len: usize) -> Result<NonNull<u8>, RegionError> {
        if self.writable {
            self.at(offset, len)
        } else {
            Err(RegionError::ReadOnly)
        }
    }

    /// Copies `src` into the region at `offset`. The peer may see any part of it before the
    /// rest, and in any order.
    ///
    /// # Errors
    ///
    /// [`RegionError::OutOfRange`], [`RegionError::ReadOnly`].
    #[inline]
    pub fn copy_in(&self, offset: usize, src: &[u8]) -> Result<(), RegionError> {
        let dst = self.at_mut(offset, src.len())?;
        // SAFETY:
        // - `dst` is valid for writes of `src.len()` bytes: `at_mut` checked the range and that
        //   the region is writable (premise 1);
        // - `src` is private memory: no reference points into a region (premise 2), so the two
        //   do not overlap;
        // - the peer may access these bytes at any time; none of them is read here.
        unsafe { ptr::copy_nonoverlapping(src.as_ptr(), dst.as_ptr(), src.len()) };
        Ok(())
    }

    /// Copies bytes from `offset` of the region to `dst`, all of it. If the peer writes there
    /// meanwhile, the bytes are any mixture of old and new.
    ///
    /// # Errors
    ///
    /// [`RegionError::OutOfRange`].
    #[inline]
    pub fn copy_out(&self, offset: usize, dst: &mut [u8]) -> Result<(), RegionError> {
        let src = self.at(offset, dst.len())?;
        // SAFETY:
        // - `src` is valid for reads of `dst.len()` bytes: `at` checked the range (premise 1);
        // - `dst` is private memory: no reference points into a region (premise 2), so the two
        //   do not overlap;
        // - the peer may write these bytes at any time: no reference to them is formed, and any
        //   value of a byte is a valid `u8`.
        unsafe { ptr::copy_nonoverlapping(src.as_ptr(), dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    /// Sets `len` bytes from `offset` to `byte`.
    ///
    /// # Errors
    ///
    /// [`RegionError::OutOfRange`], [`RegionError::ReadOnly`].
    #[inline]
    pub fn fill(&self, offset: usize, len: usize, byte: u8) -> Result<(), RegionError> {
        let dst = self.at_mut(offset, len)?;
        // SAFETY: `dst` is valid for writes of `len` bytes: `at_mut` checked the range and that
        // the region is writable (premise 1). The peer may access them; none is read here.
        unsafe { ptr::write_bytes(dst.as_ptr(), byte, len) };
        Ok(())
    }

    /// Writes `byte` to every `step`-th byte of the `len` from `offset`, the first included; so
    /// that this CPU has their cache lines, if `step` is the length of one.
    ///
    /// # Errors
    ///
    /// [`RegionError::OutOfRange`], [`RegionError::ReadOnly`].
    #[inline]
    pub fn touch(
        &self,
        offset: usize,
        len: usize,
        step: NonZeroUsize,
        byte: u8,
    ) -> Result<(), RegionError> {
        let dst = self.at_mut(offset, len)?;
        let put = |at: usize| {
            // SAFETY: every call below has `at < len`, so it is within the range that `at_mut`
            // checked (premise 1).
            let byte_at = unsafe { dst.add(at) };
            // SAFETY: it is valid for writes: `at_mut` checked that the region is writable
            // (premise 1). Volatile, because the write is meant for what it does to the cache. The
            // peer may access the byte at any time; it is not read here.
            unsafe { byte_at.write_volatile(byte) };
        };
        let (mut at, step) = (0usize, step.get());
        // Eight in a row without a question, while the last of them is within.
        while at.saturating_add(step.saturating_mul(7)) < len {
            (0..8).for_each(|n| put(at + n * step));
            at += 8 * step;
        }
        while at < len {
            put(at);
            at += step;
        }
        Ok(())
    }

    /// The address of a `T` at `offset`, checked for range and alignment.
    #[inline]
    fn word<T>(&self, offset: usize) -> Result<NonNull<T>, RegionError> {
        let at = self.at(offset, size_of::<T>())?.cast::<T>();
        if at.is_aligned() {
            Ok(at)
        } else {
            Err(RegionError::Misaligned)
        }
    }

    /// Reads what is at `fd` into `ranges` of the region in turn, in one call: `readv(2)`.
    /// Returns how many bytes it was; zero is the end of the file. Blocks if `fd` does. At most
    /// [`MAX_RANGES`] ranges.
    ///
    /// The kernel copies straight to the shared pages, so the bytes exist once. Files opened
    /// with `O_DIRECT` cannot do that with another domain's pages.
    ///
    /// # Errors
    ///
    /// [`RegionError`] as the source of an [`io::ErrorKind::InvalidInput`]; else what `readv`
    /// says, [`Interrupted`](io::ErrorKind::Interrupted) included.
    pub fn read_from_fd(&self, fd: impl AsFd, ranges: &[Range<usize>]) -> io::Result<usize> {
        if !self.writable {
            return Err(RegionError::ReadOnly.into());
        }
        let (iov, n) = self.iovecs(ranges)?;
        // SAFETY: the first `n` entries are ranges of this region, checked by `iovecs`, writable
        // as checked above, and mapped for the duration of the call (premise 1). The kernel
        // writes bytes to them and forms no Rust reference.
        let r = unsafe { libc::readv(fd.as_fd().as_raw_fd(), iov.as_ptr(), n) };
        usize::try_from(r).map_err(|_| io::Error::last_os_error())
    }

    /// Writes `ranges` of the region in turn to `fd`, in one call: `writev(2)`. Returns how many
    /// bytes were taken, which may be fewer. Blocks if `fd` does. At most [`MAX_RANGES`] ranges.
    ///
    /// If the peer writes to them meanwhile, what goes out is any mixture of old and new.
    ///
    /// # Errors
    ///
    /// [`RegionError`] as the source of an [`io::ErrorKind::InvalidInput`]; else what `writev`
    /// says, [`Interrupted`](io::ErrorKind::Interrupted) included.
    pub fn write_to_fd(&self, fd: impl AsFd, ranges: &[Range<usize>]) -> io::Result<usize> {
        let (iov, n) = self.iovecs(ranges)?;
        // SAFETY: the first `n` entries are ranges of this region, checked by `iovecs`, and
        // mapped for the duration of the call (premise 1). The kernel only reads them.
        let r = unsafe { libc::writev(fd.as_fd().as_raw_fd(), iov.as_ptr(), n) };
        usize::try_from(r).map_err(|_| io::Error::last_os_error())
    }

    /// The ranges as the system takes them, and how many.
    fn iovecs(
        &self,
        ranges: &[Range<usize>],
    ) -> Result<([libc::iovec; MAX_RANGES], libc::c_int), RegionError> {
        let mut iov = [libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        }; MAX_RANGES];
        if ranges.len() > iov.len() {
            return Err(RegionError::OutOfRange);
        }
        for (slot, range) in iov.iter_mut().zip(ranges) {
            let len = range
                .end
                .checked_sub(range.start)
                .ok_or(RegionError::OutOfRange)?;
            let base = self.at(range.start, len)?;
            *slot = libc::iovec {
                iov_base: base.as_ptr().cast(),
                iov_len: len,
            };
        }
        Ok((iov, ranges.len() as libc::c_int))
    }
}

/// The most ranges one [`Region::read_from_fd`] or [`Region::write_to_fd`] takes: a ring needs
/// two, and a pair of rings four.
pub const MAX_RANGES: usize = 4;
