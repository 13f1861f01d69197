//! Memory from `mmap(2)`, unmapped on drop: [`memmap2`] with Xen's additional requirements.
//!
//! [`Pages`] is a mapping another domain may write to: it returns its address and length and never
//! a reference, as [`memmap2::MmapRaw`] does. [`HypercallBuffer`] is memory of this process that a
//! hypercall may name, so it returns byte slices.
//!
//! # Safety
//!
//! memmap2 makes and removes the mappings. Two things it cannot do safely are left: vouching that
//! nobody else writes to a hypercall buffer, and (for the simulated host) placing several ranges of
//! a file side by side, for which it has no function.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw};

use crate::{DevRoot, Error, PAGE_SIZE, Result};

/// Keeps the pages out of forked children.
#[cfg(target_os = "linux")]
const NOT_IN_CHILDREN: Advice = Advice::DontFork;
/// On other systems no pages of a device are mapped.
#[cfg(not(target_os = "linux"))]
const NOT_IN_CHILDREN: Advice = Advice::Normal;

/// This process's access to mapped pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protection {
    /// Read; a write is a fatal signal.
    Read,
    /// Read and write.
    ReadWrite,
}

fn map(fd: BorrowedFd<'_>, offset: u64, len: usize, protection: Protection) -> io::Result<MmapRaw> {
    let mut options = MmapOptions::new();
    options.offset(offset).len(len);
    match protection {
        Protection::Read => options.map_raw_read_only(&fd),
        Protection::ReadWrite => options.map_raw(&fd),
    }
}

/// A mapping: some whole pages of address space that belong to this value.
///
/// They stay mapped, at one address, until it is dropped, and are absent in a forked child.
#[derive(Debug)]
pub struct Pages(MmapRaw);

impl Pages {
    /// Maps `len` bytes, at least 1, of `fd` from `offset`, shared with all others that map them.
    ///
    /// # Errors
    ///
    /// `EOVERFLOW` for an offset beyond `off_t`, and the errors of `mmap(2)`; from gntdev,
    /// `EINVAL` when the other domain does not grant the pages and `EAGAIN` when it has paged one
    /// out.
    pub fn map_shared(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        protection: Protection,
    ) -> io::Result<Self> {
        // memmap2 would truncate it.
        libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
        let pages = map(fd, offset, len, protection)?;
        pages.advise(NOT_IN_CHILDREN)?;
        Ok(Self(pages))
    }

    /// Reserves `len` bytes of address space, at least 1, for pages that requests of privcmd put
    /// there. The driver keeps its mappings out of children (`privcmd_mmap` in
    /// drivers/xen/privcmd.c sets `VM_DONTCOPY`), so the system call that requests it is saved.
    ///
    /// # Errors
    ///
    /// The errors of `mmap(2)`.
    pub(crate) fn of_privcmd(
        privcmd: BorrowedFd<'_>,
        len: usize,
        protection: Protection,
    ) -> io::Result<Self> {
        map(privcmd, 0, len, protection).map(Self)
    }

    /// Maps pages of `fd` side by side, by their numbers, in any order and any number of times.
    /// Where there is no number, a page of private memory stays.
    ///
    /// # Errors
    ///
    /// The errors of `mmap(2)`.
    #[cfg(feature = "sim")]
    pub(crate) fn map_frames(
        fd: BorrowedFd<'_>,
        frames: &[Option<u32>],
        protection: Protection,
    ) -> io::Result<Self> {
        use std::os::fd::AsRawFd;

        let flags = match protection {
            Protection::Read => libc::PROT_READ,
            Protection::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        // First our own address space, which the pages then replace.
        let pages: MmapRaw = MmapOptions::new()
            .len(frames.len() * PAGE_SIZE)
            .map_anon()?
            .into();
        let mut at = 0;
        while at < frames.len() {
            let Some(frame) = frames[at] else {
                at += 1;
                continue;
            };
            // Adjacent pages of the file form one mapping.
            let next = |i: &usize| frames[*i] == frames[*i - 1].and_then(|f| f.checked_add(1));
            let run = (at + 1..frames.len())
                .take_while(|i| frames[*i].is_some() && next(i))
                .count()
                + 1;
            let offset = libc::off_t::from(frame) * PAGE_SIZE as libc::off_t;
            let target = pages.as_mut_ptr().wrapping_add(at * PAGE_SIZE);
            // SAFETY: `at + run <= frames.len()`, so the range is within the mapping that `pages`
            // owns and nobody else knows; replacing it changes no other memory.
            let base = unsafe {
                libc::mmap(
                    target.cast(),
                    run * PAGE_SIZE,
                    flags,
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
        pages.advise(NOT_IN_CHILDREN)?;
        Ok(Self(pages))
    }

    /// Returns the address of the first byte. It is valid for [`len`](Self::len) bytes, with the
    /// protection it was mapped with, while this value lives. Another process or domain may write
    /// there at any time.
    #[must_use]
    pub fn as_ptr(&self) -> NonNull<u8> {
        // The kernel chose the address, and never chooses zero.
        NonNull::new(self.0.as_mut_ptr()).unwrap_or(NonNull::dangling())
    }

    /// Returns the number of bytes mapped, as requested.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a mapping has at least a page")]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// Zeroed memory that Xen can reach during a hypercall.
///
/// Xen does not fault pages in: memory named in a hypercall must be mapped for the whole call.
/// `/dev/xen/hypercall` (Linux 4.18 and later) provides such memory. Without it the pages are
/// locked, which the kernel may still undo for a moment to move them. The call then fails with
/// `EFAULT` and may be repeated.
#[doc(alias = "xencall_alloc_buffer")]
#[doc(alias = "xencall_alloc_buffer_pages")]
#[doc(alias = "xencall_free_buffer")]
#[doc(alias = "xencall_free_buffer_pages")]
#[derive(Debug)]
pub struct HypercallBuffer(MmapMut);

impl HypercallBuffer {
    /// Allocates a buffer of at least `len` bytes, rounded up to whole pages.
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
        let mut options = MmapOptions::new();
        options.len(len.next_multiple_of(PAGE_SIZE));
        let buffer = match root.open_device("hypercall") {
            // SAFETY: each mapping of the device is pages of its own, which no other process maps.
            // Xen writes to them during a call only, for which the caller borrows the buffer
            // mutably (`as_ptr` takes `&mut self`), so no reference exists meanwhile.
            Ok(fd) => unsafe { options.map_mut(&fd) },
            Err(_) => options.map_anon().and_then(|pages| {
                pages.lock()?;
                Ok(pages)
            }),
        };
        let buffer = buffer.and_then(|mut pages| {
            pages.advise(NOT_IN_CHILDREN)?;
            // On Arm the kernel maps a page read-only until its first write, which it notes as the
            // page being dirty, and Xen does not write where the program could not.
            pages.chunks_mut(PAGE_SIZE).for_each(|page| page[0] = 0);
            Ok(pages)
        });
        buffer.map(Self).map_err(|e| Error::os(OP, e))
    }

    /// Returns the number of bytes in the buffer.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a buffer has at least a page")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the address to name in a hypercall. Xen may write there only during a call made with
    /// this buffer borrowed mutably.
    #[must_use]
    pub fn as_ptr(&mut self) -> NonNull<u8> {
        NonNull::from(&mut *self.0).cast()
    }

    /// Returns the bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the bytes, to fill in before a call.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

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
