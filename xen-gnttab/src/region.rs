//! Bytes that another process or domain may write to while we look at them, and their one owner in
//! this process.
//!
//! ```text
//!   Region ── base, len, writable ──> bytes of its own     copies, through & and &mut as a Vec's
//!   Words  ── base, count ──────────> bytes of its own     atomics of one width, shared freely
//!      └───── Arc ──> Mapping | heap                       keeps the memory
//! ```
//!
//! # The copy rule
//!
//! * **Payload** moves by [`copy_in`](Region::copy_in) and [`copy_out`](Region::copy_out), or
//!   directly to and from a descriptor. A copy is private; bytes still in the region are never
//!   looked at in place.
//! * **Control words** are atomics of one, two or four bytes, taken out of the region once, at one
//!   width ([`take_words`](Region::take_words)). A word is loaded once, the copy is checked against
//!   values the peer cannot reach, and only the copy is used.
//! * There is no `&[u8]` and no `&mut [u8]` into shared memory, and no way to make one.
//!
//! # Dividing a page
//!
//! ```
//! # use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
//! # use xen_gnttab::{Region, RegionError};
//! # fn main() -> Result<(), RegionError> {
//! // A console's page, made of: two rings, four indices, one flag.
//! let mut page = Region::heap(4096); // or `SharedPages::take_region`
//! let (input, mut output) = (page.split_to(1024)?, page.split_to(2048)?);
//! let indices = page.take_words::<AtomicU32>(4)?;
//! let connection = page.take_words::<AtomicU8>(1)?;
//! output.copy_in(0, b"hello")?;
//! indices[3].store(5, Ordering::Release);
//! # let mut there = [0; 4]; input.copy_out(0, &mut there)?; assert_eq!(connection.len(), 1);
//! # Ok(()) }
//! ```
//!
//! # Guarantees
//!
//! Every byte of the memory belongs to one [`Region`] or to one set of [`Words`] at a time. A
//! region is written through `&mut` and is not `Clone`; so safe code can have neither a data race
//! nor two atomic accesses of different widths to one byte. Every access is inside the region or
//! fails with a [`RegionError`]; the bytes stay mapped while any part exists. No access can fault:
//! pages another domain granted stay readable, and a write to a read-only region fails.
//!
//! # Safety
//!
//! This file is not safe code because it reads and writes through an address. Three premises carry
//! every block, and all are private to this file and [`words`]:
//!
//! 1. `base..base + len` is allocated, readable, and (if `writable`) writable memory while
//!    `backing` lives. [`Region::of`] and [`Region::heap`] establish it; taking apart only narrows
//!    it. `foreign::map_each` alone has a region over pages that may not be mapped, and drops those
//!    parts without an access.
//! 2. No reference to any of these bytes exists in this process. Whatever else has the address (a
//!    mapping, another domain) makes none.
//! 3. No other `Region` or `Words` has any of these bytes: `of` and `heap` make one for all of
//!    them, taking apart gives each byte to one part. [`Region::alias`] makes its caller
//!    responsible.
//!
//! The language's memory model ends at the process. A peer's write that races with a copy is
//! outside it; the copy is made of plain machine loads or stores, the bytes it yields are
//! arbitrary, and nothing depends on their being the same twice. The same page mapped a second
//! time, at another address, is a peer in this sense, in whichever process (`docs/security.md`).

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use xen_sys::mmap::{Pages, Protection};

use crate::PageAccess;
use crate::error::RegionError;
use crate::heap::Heap;
use crate::mapping::{Mapping, Release};

mod words;

pub use words::{Atomic, Word, Words};

/// Bytes of shared memory that belong to this value; it keeps the memory.
///
/// Reading takes `&self` and writing `&mut self`, as with a `Vec<u8>`. Threads that use different
/// bytes at the same time each have their own part: [`split_to`](Self::split_to),
/// [`split_off`](Self::split_off), [`take_words`](Self::take_words).
///
/// A region has no clones on which two threads could copy, and no thread can read what another
/// writes:
///
/// ```compile_fail,E0599
/// let twin = xen_gnttab::Region::heap(64).clone();
/// ```
/// ```compile_fail,E0502
/// let mut region = xen_gnttab::Region::heap(64);
/// std::thread::scope(|scope| {
///     scope.spawn(|| region.fill(0, 64, 1));
///     region.load_u32(0)
/// });
/// ```
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    backing: Arc<Backing>,
}

/// The owner of the memory.
#[derive(Debug)]
enum Backing {
    Mapped(Mapping),
    #[expect(dead_code, reason = "kept for its drop")]
    Heap(Heap),
}

// SAFETY: the bytes belong to the process, not to a thread, and `backing` is `Send + Sync` itself
// (asserted below). No other value accesses them (premise 3), so they go where this one goes.
unsafe impl Send for Region {}
// SAFETY: through `&Region` bytes are only read; writing needs `&mut Region`, and no other value
// accesses them (premise 3).
unsafe impl Sync for Region {}

const _: fn() = || {
    fn ok<T: Send + Sync>() {}
    ok::<Mapping>();
    ok::<Heap>();
};

impl Region {
    /// Returns a region over all of a mapping.
    pub(crate) fn of(mapping: Mapping) -> Self {
        // Premise 1: `Pages` vouches for its range, by its protection, until it is dropped.
        // Premise 2: `Pages` gives out the address only. Premise 3: the mapping is moved in here.
        let (base, len) = (mapping.pages().as_ptr(), mapping.pages().len());
        let writable = mapping.access() == PageAccess::ReadWrite;
        Self {
            base,
            len,
            writable,
            backing: Arc::new(Backing::Mapped(mapping)),
        }
    }

    /// Returns private zeroed memory of `len` bytes that starts at a page boundary: for tests,
    /// fuzzing and benches of code that takes a region. It needs no hypervisor and no system call.
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

    /// Maps the first `len` bytes, at least 1, of a file that other processes may map too: a
    /// driver's memory such as `/dev/fb0`, or a memory file. It needs no hypervisor.
    ///
    /// Other processes may write to the bytes at any time, as another domain does to granted pages.
    /// A process that may truncate the file can end this process: the use of a byte beyond the end
    /// is a fatal signal.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a regular file that is shorter; the errors of `fstat(2)` and `mmap(2)`.
    pub fn map_file(fd: impl AsFd, len: usize, access: PageAccess) -> io::Result<Self> {
        let file = File::from(fd.as_fd().try_clone_to_owned()?).metadata()?;
        if file.is_file() && file.len() < len as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let protection = match access {
            PageAccess::ReadOnly => Protection::Read,
            PageAccess::ReadWrite => Protection::ReadWrite,
        };
        let pages = Pages::map_shared(fd.as_fd(), 0, len, protection)?;
        Ok(Self::of(Mapping::new(pages, access, Release::File)))
    }

    /// Returns the mapping behind it, unless it is heap memory.
    pub(crate) fn mapping(&self) -> Option<&Mapping> {
        match &*self.backing {
            Backing::Mapped(mapping) => Some(mapping),
            Backing::Heap(_) => None,
        }
    }

    /// Returns the number of bytes in the region.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the region has no bytes (left).
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether the region may be written to: false if the pages were mapped
    /// [`PageAccess::ReadOnly`].
    #[inline]
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Returns the address of the first byte, for code in another language. It is valid for
    /// [`len`](Self::len) bytes while any part of the memory exists; writing needs
    /// [`is_writable`](Self::is_writable). No reference may be made from it, and no access through
    /// it may race with one through this value.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Takes the first `len` bytes out; the region keeps the bytes behind them.
    ///
    /// # Errors
    ///
    /// [`RegionError::OutOfRange`]; nothing was taken.
    pub fn split_to(&mut self, len: usize) -> Result<Self, RegionError> {
        let rest = self.split_off(len)?;
        Ok(std::mem::replace(self, rest))
    }

    /// Takes everything from `at` on out; the region ends there.
    ///
    /// # Errors
    ///
    /// [`RegionError::OutOfRange`]; nothing was taken.
    pub fn split_off(&mut self, at: usize) -> Result<Self, RegionError> {
        let base = self.at(at, 0)?;
        let rest = Self {
            base,
            len: self.len - at,
            writable: self.writable,
            backing: Arc::clone(&self.backing),
        };
        // Premise 3: from here on the bytes behind `at` are those of `rest` only.
        self.len = at;
        Ok(rest)
    }

    /// Takes all bytes out and leaves an empty region, which still keeps the memory.
    #[must_use]
    pub fn take(&mut self) -> Self {
        let rest = Self {
            base: self.base,
            len: self.len,
            writable: self.writable,
            backing: Arc::clone(&self.backing),
        };
        // Premise 3: the bytes are those of `rest` only.
        self.len = 0;
        rest
    }

    /// Makes a second region over the same bytes, for two ends in one process or for threads that
    /// write to one part in an order of their own.
    ///
    /// # Safety
    ///
    /// Until one of the two, with every part taken out of it, is dropped: no write through one may
    /// race with an access to the same byte through the other, unless both are atomic accesses of
    /// one width. Two accesses race if no happens-before order, such as a release store that an
    /// acquire load has read, is between them.
    #[must_use]
    pub unsafe fn alias(&self) -> Self {
        Self {
            base: self.base,
            len: self.len,
            writable: self.writable,
            backing: Arc::clone(&self.backing),
        }
    }

    /// Returns the address of `offset`, from which `len` bytes are within the region.
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
    fn at_mut(&mut self, offset: usize, len: usize) -> Result<NonNull<u8>, RegionError> {
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
    pub fn copy_in(&mut self, offset: usize, src: &[u8]) -> Result<(), RegionError> {
        let dst = self.at_mut(offset, src.len())?;
        // SAFETY:
        // - `dst` is valid for writes of `src.len()` bytes: `at_mut` checked the range and that
        //   the region is writable (premise 1);
        // - `src` is private memory: no reference points into a region (premise 2), so the two
        //   do not overlap;
        // - nobody in this process accesses the bytes meanwhile: they are this region's (premise
        //   3), which is borrowed mutably. The peer may at any time; none of them is read here.
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
        // - nobody in this process writes the bytes meanwhile: they are this region's (premise 3),
        //   which is borrowed. The peer may at any time: no reference to them is formed, and any
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
    pub fn fill(&mut self, offset: usize, len: usize, byte: u8) -> Result<(), RegionError> {
        let dst = self.at_mut(offset, len)?;
        // SAFETY: `dst` is valid for writes of `len` bytes: `at_mut` checked the range and that
        // the region is writable (premise 1). Nobody in this process accesses them meanwhile
        // (premise 3, `&mut self`). The peer may; none is read here.
        unsafe { ptr::write_bytes(dst.as_ptr(), byte, len) };
        Ok(())
    }

    /// Writes `byte` to every `step`-th byte of the `len` from `offset`, the first included. If
    /// `step` is the length of a cache line, this CPU then has their cache lines.
    ///
    /// # Errors
    ///
    /// [`RegionError::OutOfRange`], [`RegionError::ReadOnly`].
    #[inline]
    pub fn touch(
        &mut self,
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
            // (premise 1). Volatile, because the write is meant for what it does to the cache.
            // Nobody in this process accesses the byte meanwhile (premise 3, `&mut self`). The
            // peer may; it is not read here.
            unsafe { byte_at.write_volatile(byte) };
        };
        let (mut at, step) = (0usize, step.get());
        // Eight in a row without a check, while the last of them is within.
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

    /// Reads from `fd` into `ranges` of the region in turn, in one call: `readv(2)`. Returns how
    /// many bytes it was; zero is the end of the file. Blocks if `fd` does. At most [`MAX_RANGES`]
    /// ranges.
    ///
    /// The kernel copies directly to the shared pages, so the bytes exist once. Files opened with
    /// `O_DIRECT` cannot do that with another domain's pages.
    ///
    /// # Errors
    ///
    /// [`RegionError`] as the source of an [`io::ErrorKind::InvalidInput`]; else the error of
    /// `readv`, [`Interrupted`](io::ErrorKind::Interrupted) included.
    pub fn read_from_fd(&mut self, fd: impl AsFd, ranges: &[Range<usize>]) -> io::Result<usize> {
        if !self.writable {
            return Err(RegionError::ReadOnly.into());
        }
        let (iov, n) = self.iovecs(ranges)?;
        // SAFETY: the first `n` entries are ranges of this region, checked by `iovecs`, writable
        // as checked above, and mapped for the duration of the call (premise 1). The kernel
        // writes bytes to them and forms no Rust reference; nobody else in this process accesses
        // them meanwhile (premise 3, `&mut self`).
        let r = unsafe { libc::readv(fd.as_fd().as_raw_fd(), iov.as_ptr(), n) };
        usize::try_from(r).map_err(|_| io::Error::last_os_error())
    }

    /// Writes `ranges` of the region in turn to `fd`, in one call: `writev(2)`. Returns how many
    /// bytes were taken, which may be fewer. Blocks if `fd` does. At most [`MAX_RANGES`] ranges.
    ///
    /// If the peer writes to them meanwhile, the bytes are any mixture of old and new.
    ///
    /// # Errors
    ///
    /// [`RegionError`] as the source of an [`io::ErrorKind::InvalidInput`]; else the error of
    /// `writev`, [`Interrupted`](io::ErrorKind::Interrupted) included.
    pub fn write_to_fd(&self, fd: impl AsFd, ranges: &[Range<usize>]) -> io::Result<usize> {
        let (iov, n) = self.iovecs(ranges)?;
        // SAFETY: the first `n` entries are ranges of this region, checked by `iovecs`, and
        // mapped for the duration of the call (premise 1). The kernel only reads them, and nobody
        // in this process writes them meanwhile (premise 3, `&self`).
        let r = unsafe { libc::writev(fd.as_fd().as_raw_fd(), iov.as_ptr(), n) };
        usize::try_from(r).map_err(|_| io::Error::last_os_error())
    }

    /// Returns the ranges as the system call takes them, and how many.
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
