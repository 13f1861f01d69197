//! Memory from `mmap(2)`, unmapped on drop.
//!
//! [`Pages`] is a mapping another domain may write to: it gives out its address and length and
//! never a reference. [`HypercallBuffer`] is memory of our own that is safe to name in a
//! hypercall, so it gives out byte slices.
//!
//! # Safety
//!
//! This file is not safe code because it maps and unmaps addresses. Mappings are only ever made
//! at addresses the kernel picks, so no memory Rust already uses is replaced; each is unmapped
//! once, by the `Drop` of the value that owns it.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::slice;

use crate::{DevRoot, Error, PAGE_SIZE, Result};

/// What this process may do to mapped pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protection {
    /// Read; a write is a fatal signal.
    Read,
    /// Read and write.
    ReadWrite,
}

impl Protection {
    fn flags(self) -> libc::c_int {
        match self {
            Self::Read => libc::PROT_READ,
            Self::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// A mapping: some whole pages of address space that belong to this value.
///
/// They stay mapped, at one address, until it is dropped, and are absent in a forked child.
#[derive(Debug)]
pub struct Pages {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; `munmap` may be called anywhere.
unsafe impl Send for Pages {}
// SAFETY: through a shared reference only the address and the length can be read.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps `len` bytes of `fd` from `offset`, shared with whoever else maps them.
    ///
    /// # Errors
    ///
    /// What `mmap(2)` says; from gntdev, `EINVAL` when the other domain does not grant us the
    /// pages and `EAGAIN` when it has paged one out.
    pub fn map_shared(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        protection: Protection,
    ) -> io::Result<Self> {
        Self::map(Some(fd), offset, len, protection, libc::MAP_SHARED)
    }

    /// Maps pages of `fd` side by side, by their numbers, in any order and any number of times.
    ///
    /// # Errors
    ///
    /// What `mmap(2)` says.
    #[cfg(feature = "sim")]
    pub(crate) fn map_frames(
        fd: BorrowedFd<'_>,
        frames: &[u32],
        protection: Protection,
    ) -> io::Result<Self> {
        // Address space of our own first, which the pages then replace.
        let len = frames.len() * PAGE_SIZE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let pages = Self::map(None, 0, len, protection, flags)?;
        let mut at = 0;
        while at < frames.len() {
            // Neighbours in the file are one mapping.
            let next = |i: &usize| frames[*i] == frames[*i - 1].wrapping_add(1);
            let run = 1 + (at + 1..frames.len()).take_while(next).count();
            let offset = libc::off_t::from(frames[at]) * PAGE_SIZE as libc::off_t;
            // SAFETY: `at < frames.len()`, so the result is within the mapping `pages` owns.
            let target = unsafe { pages.base.add(at * PAGE_SIZE) };
            // SAFETY: `at + run <= frames.len()`, so the range is within the mapping that
            // `pages` owns and nobody else knows; replacing it changes no other memory.
            let base = unsafe {
                libc::mmap(
                    target.as_ptr().cast(),
                    run * PAGE_SIZE,
                    protection.flags(),
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    fd.as_raw_fd(),
                    offset,
                )
            };
            if base == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            at += run;
        }
        pages.dont_fork()?;
        Ok(pages)
    }

    /// Leaves the mapping out of a forked child.
    fn dont_fork(&self) -> io::Result<()> {
        // SAFETY: the range is exactly the mapping this value owns; the advice changes what a
        // child of fork inherits, not what is here.
        let r = unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, libc::MADV_DONTFORK) };
        if r < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    fn map(
        fd: Option<BorrowedFd<'_>>,
        offset: u64,
        len: usize,
        protection: Protection,
        flags: libc::c_int,
    ) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset)
            .map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
        let fd = fd.map_or(-1, |fd| fd.as_raw_fd());
        // SAFETY: a null hint without MAP_FIXED makes the kernel choose unused addresses, so no
        // memory in use is changed.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), len, protection.flags(), flags, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let Some(base) = NonNull::new(base.cast::<u8>()) else {
            // Only a hint asks for address zero.
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        };
        let pages = Self { base, len };
        pages.dont_fork()?;
        Ok(pages)
    }

    /// The first byte. Valid for [`len`](Self::len) bytes, by the protection it was mapped
    /// with, while this value lives. Another process or domain may write there at any time.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes mapped, as asked for.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "mmap refuses a length of zero")]
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are those of a mapping `map` made and gave to this value,
        // the only one that unmaps it; whoever uses the address keeps this value alive.
        let r = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert_eq!(r, 0, "munmap of our own mapping");
    }
}

/// Zeroed memory that Xen can reach during a hypercall.
///
/// Xen does not fault pages in: memory named in a hypercall must be mapped for the whole call.
/// `/dev/xen/hypercall` (Linux 4.18 and later) gives such memory. Without it the pages are
/// locked and touched, which the kernel may still undo for a moment to move them; the call then
/// fails with `EFAULT` and may be made again.
#[doc(alias = "xencall_alloc_buffer")]
#[doc(alias = "xencall_alloc_buffer_pages")]
#[doc(alias = "xencall_free_buffer")]
#[doc(alias = "xencall_free_buffer_pages")]
#[derive(Debug)]
pub struct HypercallBuffer(Pages);

impl HypercallBuffer {
    /// A buffer of at least `len` bytes, rounded up to whole pages.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for no bytes or more than 1 MiB; [`Error::Os`] when there is no
    /// memory, or the fallback may not lock it (`RLIMIT_MEMLOCK`).
    pub fn new(root: &DevRoot, len: usize) -> Result<Self> {
        const OP: &str = "allocate a hypercall buffer";
        if len == 0 || len > 1 << 20 {
            return Err(Error::Invalid {
                op: OP,
                what: "its length",
                value: len as u64,
            });
        }
        let len = len.next_multiple_of(PAGE_SIZE);
        let pages = match root.open_device("hypercall") {
            Ok(fd) => Pages::map_shared(fd.as_fd(), 0, len, Protection::ReadWrite),
            Err(_) => Self::locked(len),
        };
        pages.map(Self).map_err(|e| Error::os(OP, e))
    }

    fn locked(len: usize) -> io::Result<Pages> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_LOCKED;
        let pages = Pages::map(None, 0, len, Protection::ReadWrite, flags)?;
        // MAP_LOCKED faults pages in but does not say when it could not; mlock does.
        // SAFETY: the range is exactly the mapping `pages` owns; locking changes no content.
        if unsafe { libc::mlock(pages.base.as_ptr().cast(), len) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(pages)
    }

    /// Bytes in the buffer.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a buffer has at least a page")]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// The address to name in a hypercall. Xen may write there only during a call made with
    /// this buffer borrowed mutably.
    #[must_use]
    pub fn as_ptr(&mut self) -> NonNull<u8> {
        self.0.base
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is `len` readable bytes, initialised (zeroed by the kernel) and
        // alive as long as `self`; no other process maps it, and whoever lets Xen write to it
        // does so while holding `self` mutably (`as_ptr` takes `&mut`), so not during this borrow.
        unsafe { slice::from_raw_parts(self.0.base.as_ptr(), self.0.len) }
    }

    /// The bytes, to fill in before a call.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the mapping is writable and borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.0.base.as_ptr(), self.0.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_without_the_device_is_locked_zeroed_memory() {
        let root = DevRoot::at("/nonexistent");
        let mut b = HypercallBuffer::new(&root, 1).unwrap();
        assert_eq!(b.len(), PAGE_SIZE);
        assert!(b.bytes().iter().all(|&x| x == 0));
        b.bytes_mut()[PAGE_SIZE - 1] = 7;
        assert_eq!(b.bytes()[PAGE_SIZE - 1], 7);
    }

    #[test]
    fn a_buffer_of_an_absurd_length_is_refused() {
        let root = DevRoot::at("/nonexistent");
        for len in [0, (1 << 20) + 1, usize::MAX] {
            let e = HypercallBuffer::new(&root, len).unwrap_err();
            assert!(matches!(e, Error::Invalid { .. }), "{len}: {e}");
        }
    }

    #[test]
    fn mapping_what_cannot_be_mapped_is_an_error() {
        let null = DevRoot::at("/dev").open_device("null").unwrap();
        let e = Pages::map_shared(null.as_fd(), 0, PAGE_SIZE, Protection::Read).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::ENODEV));
        let zero = DevRoot::at("/dev").open_device("zero").unwrap();
        let e = Pages::map_shared(zero.as_fd(), u64::MAX, PAGE_SIZE, Protection::Read).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(libc::EOVERFLOW));
    }
}
