//! Grants of the real hypervisor, through `/dev/xen/gntalloc` and `/dev/xen/gntdev`.
//!
//! Both drivers work in two steps: an ioctl returns an *index*, and mmap at that offset returns the
//! pages. Each share has its own open file. Mappings use the one gntdev of their [`Xen`], and each
//! releases its index on drop, whatever failed in between.
//!
//! Linux (drivers/xen/gntalloc.c, gntdev.c): an index that is released while its pages are still
//! mapped lives on until they are unmapped. So [`Mapping`] unmaps first, and the notification is
//! sent when the index is released right after.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use xen_sys::ioctl::{GntAlloc, GntDev};
use xen_sys::mmap::{Pages, Protection};
use xen_sys::{DevRoot, DomId, Error, GrantRef, PAGE_SIZE, Result, Xen};

use crate::mapping::{Mapping, Release};
use crate::{PageAccess, UnmapNotify};

/// An index of gntalloc, released on drop.
#[derive(Debug)]
pub(crate) struct Allocated {
    dev: GntAlloc,
    index: u64,
    pages: usize,
}

impl Allocated {
    pub(crate) fn set_unmap_notify(&self, offset: u64, notify: UnmapNotify) -> Result<()> {
        let clear = notify.clear_byte.is_some();
        self.dev
            .set_unmap_notify(self.index + offset, clear, notify.event)
    }
}

impl Drop for Allocated {
    fn drop(&mut self) {
        // If this fails, closing the file, which is next, does the same.
        let _ = self.dev.dealloc_gref(self.index, self.pages);
    }
}

/// An index of gntdev, released on drop.
#[derive(Debug)]
pub(crate) struct UnmapNotifier {
    dev: Arc<GntDev>,
    index: u64,
    pages: usize,
}

impl UnmapNotifier {
    pub(crate) fn set_unmap_notify(&self, offset: u64, notify: UnmapNotify) -> Result<()> {
        let clear = notify.clear_byte.is_some();
        self.dev
            .set_unmap_notify(self.index + offset, clear, notify.event)
    }
}

impl Drop for UnmapNotifier {
    fn drop(&mut self) {
        // Fails only for an index that does not exist; the last close releases the rest.
        let _ = self.dev.unmap_grant_ref(self.index, self.pages);
    }
}

pub(crate) fn share(
    root: &DevRoot,
    to: DomId,
    pages: usize,
    access: PageAccess,
) -> Result<(Mapping, Box<[GrantRef]>)> {
    let dev = GntAlloc::open(root)?;
    let (index, refs) = dev.alloc_gref(to, access == PageAccess::ReadWrite, pages)?;
    // From here on the drop of `grant` releases the index, whatever fails.
    let grant = Allocated { dev, index, pages };
    // This side may write, whatever access the peer has.
    let mapped = Pages::map_shared(
        grant.dev.as_fd(),
        index,
        pages * PAGE_SIZE,
        Protection::ReadWrite,
    )
    .map_err(|e| Error::os("mmap /dev/xen/gntalloc", e))?;
    Ok((
        Mapping::new(mapped, PageAccess::ReadWrite, Release::GntAlloc(grant)),
        refs,
    ))
}

pub(crate) fn map(xen: &Xen, refs: &[(DomId, GrantRef)], access: PageAccess) -> Result<Mapping> {
    let dev = xen.gntdev()?;
    let index = dev.map_grant_ref(refs)?;
    // From here on the drop of `grant` releases the index, whatever fails.
    let grant = UnmapNotifier {
        dev,
        index,
        pages: refs.len(),
    };
    let len = refs.len() * PAGE_SIZE;
    let mapped = retry_eagain(
        || Pages::map_shared(grant.dev.as_fd(), index, len, access.protection()),
        thread::sleep,
    )
    .map_err(|e| Error::os("mmap /dev/xen/gntdev", e))?;
    Ok(Mapping::new(mapped, access, Release::GntDev(grant)))
}

/// Number of attempts to map a page that is paged out.
const EAGAIN_TRIES: u32 = 10;

/// Makes the call up to [`EAGAIN_TRIES`] times while it fails with `EAGAIN`, pausing between tries
/// for 1 ms, 2 ms, 4 ms ... 256 ms: about half a second in all.
///
/// `EAGAIN` means that a pager, another program, is bringing back the granting domain's page, so
/// all this side can do is wait. A pager that never answers must not block the caller forever.
fn retry_eagain<T>(
    mut call: impl FnMut() -> io::Result<T>,
    mut pause: impl FnMut(Duration),
) -> io::Result<T> {
    let mut tries = 0;
    loop {
        let result = call();
        tries += 1;
        match &result {
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && tries < EAGAIN_TRIES => {
                pause(Duration::from_millis(1 << (tries - 1)));
            }
            _ => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(eagains: u32, then: i32) -> (io::Result<()>, u32, Duration) {
        let (mut calls, mut slept) = (0, Duration::ZERO);
        let result = retry_eagain(
            || {
                calls += 1;
                let errno = if calls <= eagains { libc::EAGAIN } else { then };
                if errno == 0 {
                    Ok(())
                } else {
                    Err(io::Error::from_raw_os_error(errno))
                }
            },
            |d| slept += d,
        );
        (result, calls, slept)
    }

    #[test]
    fn a_page_that_comes_back_is_mapped() {
        let (result, calls, _) = run(3, 0);
        assert!(result.is_ok());
        assert_eq!(calls, 4);
    }

    #[test]
    fn a_page_that_stays_away_is_given_up_in_bounded_time() {
        let (result, calls, slept) = run(u32::MAX, 0);
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        assert_eq!(calls, EAGAIN_TRIES);
        assert_eq!(slept, Duration::from_millis(511));
    }

    #[test]
    fn other_refusals_are_final() {
        let (result, calls, _) = run(0, libc::EINVAL);
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(calls, 1);
    }
}
