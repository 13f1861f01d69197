//! Memory of other domains: mapping their frames and resources, without a grant.
//!
//! `xen_gnttab::foreign` makes regions from the mappings made here.

use std::thread;
use std::time::Duration;

use super::backend::{Backend, Device};
use super::{Privcmd, RestrictedPrivcmd};
use crate::abi::hypercall as abi;
use crate::ioctl::{MAX_PAGES, PrivCmd};
use crate::mmap::{Pages, Protection};
use crate::{DomId, Error, PAGE_SIZE, Result};

/// A domain, reached through a privcmd device: for its memory and for its device model.
///
/// [`Privcmd::guest`] returns any domain; [`RestrictedPrivcmd::guest`] returns the one domain that
/// the device is restricted to.
#[doc(alias = "xenforeignmemory_handle")]
#[derive(Clone, Copy, Debug)]
pub struct Guest<'p> {
    via: Via<'p>,
    domain: DomId,
}

#[derive(Clone, Copy, Debug)]
enum Via<'p> {
    Device(&'p PrivCmd),
    #[cfg(feature = "sim")]
    Simulated(&'p crate::Xen),
}

/// Frames that belong to a domain but not to its guest-physical memory:
/// `XENMEM_resource_*`, xen/include/public/memory.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Resource {
    kind: u32,
    id: u32,
}

impl Resource {
    /// The domain's grants: [`grant_table_size`](Privcmd::grant_table_size) frames.
    #[doc(alias = "XENMEM_resource_grant_table")]
    pub const GRANT_TABLE: Self = Self::new(
        abi::XENMEM_RESOURCE_GRANT_TABLE,
        abi::XENMEM_RESOURCE_GRANT_TABLE_ID_SHARED,
    );
    /// The status words of its grants, with grant tables of version 2.
    #[doc(alias = "XENMEM_resource_grant_table_id_status")]
    pub const GRANT_STATUS: Self = Self::new(
        abi::XENMEM_RESOURCE_GRANT_TABLE,
        abi::XENMEM_RESOURCE_GRANT_TABLE_ID_STATUS,
    );

    /// Creates the resource number `id` of the kind numbered `kind`, which need not exist.
    #[must_use]
    pub const fn new(kind: u32, id: u32) -> Self {
        Self { kind, id }
    }

    /// The pages that the ioreq server `id` shares with Xen: frame 0 has the buffered requests,
    /// frame 1 and those behind it have a request for each virtual CPU.
    #[doc(alias = "XENMEM_resource_ioreq_server")]
    #[must_use]
    pub const fn ioreq_server(id: u16) -> Self {
        Self::new(abi::XENMEM_RESOURCE_IOREQ_SERVER, id as u32)
    }

    /// The processor trace of a virtual CPU.
    #[doc(alias = "XENMEM_resource_vmtrace_buf")]
    #[must_use]
    pub const fn vmtrace(vcpu: u32) -> Self {
        Self::new(abi::XENMEM_RESOURCE_VMTRACE_BUF, vcpu)
    }
}

/// Mapped pages of another domain, for `xen_gnttab`.
#[doc(hidden)]
#[derive(Debug)]
pub struct ForeignPages {
    /// The pages. One whose error is not 0 must not be accessed.
    pub pages: Pages,
    /// An errno for each page, 0 for one that is mapped.
    pub errors: Vec<i32>,
    /// To be dropped after the pages.
    pub hold: ForeignHold,
}

/// Gives foreign pages of a simulated host back; on a real host the unmapping suffices.
#[doc(hidden)]
#[derive(Debug)]
pub struct ForeignHold {
    #[cfg(feature = "sim")]
    simulated: Option<(crate::Xen, u64)>,
}

impl ForeignHold {
    fn of_the_kernel() -> Self {
        Self {
            #[cfg(feature = "sim")]
            simulated: None,
        }
    }
}

#[cfg(feature = "sim")]
impl Drop for ForeignHold {
    fn drop(&mut self) {
        let Some((xen, object)) = &self.simulated else {
            return;
        };
        if let Some(client) = xen.simulated() {
            // A host that has ended has taken everything back.
            let _ = client.release(*object);
        }
    }
}

/// The most rounds in which frames that are paged out are requested again.
const PAGED_OUT_TRIES: u32 = 10;

impl<'p> Guest<'p> {
    /// Returns the domain.
    #[must_use]
    pub fn domain(&self) -> DomId {
        self.domain
    }

    /// Returns how many frames a resource of the domain has.
    ///
    /// # Errors
    ///
    /// [`Error::NoDomain`]; [`Error::NotPermitted`] unless this domain controls that one;
    /// [`Error::Unsupported`] if the kernel or Xen has no such request, and on a simulated host;
    /// [`Error::Os`]: `EINVAL` when there is no such resource.
    #[doc(alias = "xenforeignmemory_resource_size")]
    #[doc(alias = "IOCTL_PRIVCMD_MMAP_RESOURCE")]
    pub fn resource_size(&self, resource: Resource) -> Result<u64> {
        let op = "XENMEM_acquire_resource";
        let size = self.device(op)?;
        let size = size.resource_size(self.domain, (resource.kind, resource.id));
        size.map_err(|e| self.named(op, e))
    }

    #[cfg_attr(not(feature = "sim"), expect(unused_variables))]
    fn device(&self, op: &'static str) -> Result<&'p PrivCmd> {
        match self.via {
            Via::Device(dev) => Ok(dev),
            #[cfg(feature = "sim")]
            Via::Simulated(_) => Err(Error::Unsupported { op }),
        }
    }

    /// Maps frames of the domain; for `xen_gnttab::foreign`.
    ///
    /// # Errors
    ///
    /// As documented there.
    #[doc(hidden)]
    pub fn map_frames(&self, frames: &[u64], protection: Protection) -> Result<ForeignPages> {
        let op = "IOCTL_PRIVCMD_MMAPBATCH_V2";
        if frames.is_empty() || frames.len() > MAX_PAGES {
            return Err(Error::Invalid {
                op,
                what: "the number of frames",
                value: frames.len() as u64,
            });
        }
        #[cfg(feature = "sim")]
        if let Via::Simulated(xen) = self.via {
            return self.map_simulated(xen, op, |client| {
                client.map_foreign(self.domain, frames, protection)
            });
        }
        let dev = self.device(op)?;
        let pages = self.reserve(dev, frames.len(), protection)?;
        let map = |first: usize, count: usize| {
            let frames = &frames[first..first + count];
            dev.mmap_batch(self.domain, &pages, first, frames)
        };
        let mut errors = map(0, frames.len()).map_err(|e| self.named(op, e))?;
        retry_paged_out(&mut errors, map, thread::sleep).map_err(|e| self.named(op, e))?;
        Ok(ForeignPages {
            pages,
            errors,
            hold: ForeignHold::of_the_kernel(),
        })
    }

    /// Maps `count` frames of a resource of the domain; for `xen_gnttab::foreign`.
    ///
    /// # Errors
    ///
    /// As documented there.
    #[doc(hidden)]
    pub fn map_resource(
        &self,
        resource: Resource,
        first: u32,
        count: usize,
        protection: Protection,
    ) -> Result<ForeignPages> {
        let op = "XENMEM_acquire_resource";
        if count == 0 || count > MAX_PAGES {
            return Err(Error::Invalid {
                op,
                what: "the number of frames",
                value: count as u64,
            });
        }
        #[cfg(feature = "sim")]
        if let Via::Simulated(xen) = self.via {
            return self.map_simulated(xen, op, |client| {
                let which = (resource.kind, resource.id);
                client.map_resource(self.domain, which, first, count, protection)
            });
        }
        let dev = self.device(op)?;
        let pages = self.reserve(dev, count, protection)?;
        dev.mmap_resource(self.domain, (resource.kind, resource.id), first, &pages)
            .map_err(|e| self.named(op, e))?;
        Ok(ForeignPages {
            pages,
            errors: vec![0; count],
            hold: ForeignHold::of_the_kernel(),
        })
    }

    /// Maps pages of a simulated host: the object, the pages, an errno for each.
    #[cfg(feature = "sim")]
    fn map_simulated(
        &self,
        xen: &crate::Xen,
        op: &'static str,
        map: impl FnOnce(&crate::sim::Client) -> Result<(u64, Pages, Vec<i32>)>,
    ) -> Result<ForeignPages> {
        let client = xen.simulated().ok_or(Error::Unsupported { op })?;
        let (object, pages, errors) = map(client).map_err(|e| self.named(op, e))?;
        let simulated = Some((xen.clone(), object));
        Ok(ForeignPages {
            pages,
            errors,
            hold: ForeignHold { simulated },
        })
    }

    /// Address space for `count` pages, which the driver fills.
    fn reserve(&self, dev: &PrivCmd, count: usize, protection: Protection) -> Result<Pages> {
        use std::os::fd::AsFd as _;
        Pages::of_privcmd(dev.as_fd(), count * PAGE_SIZE, protection)
            .map_err(|e| Error::os("mmap /dev/xen/privcmd", e))
    }

    /// The error of a whole request.
    fn named(&self, op: &'static str, error: Error) -> Error {
        match error {
            Error::Os { source, .. } => Error::Os { op, source }.about(self.domain),
            error => error,
        }
    }

    /// The error of one frame; for `xen_gnttab::foreign`.
    #[doc(hidden)]
    #[must_use]
    pub fn frame_error(&self, frame: u64, errno: i32) -> Error {
        let source = std::io::Error::from_raw_os_error(errno);
        match errno {
            libc::ESRCH | libc::EPERM | libc::EACCES => {
                let op = "IOCTL_PRIVCMD_MMAPBATCH_V2";
                self.named(op, Error::os(op, source))
            }
            _ => Error::ForeignFrame {
                domain: self.domain,
                frame,
                source: source.into(),
            },
        }
    }
}

impl Privcmd {
    /// Returns `domain`, for calls about its memory and its device model. Sends no request to Xen
    /// yet.
    #[doc(alias = "xenforeignmemory_open")]
    #[must_use]
    pub fn guest(&self, domain: DomId) -> Guest<'_> {
        Guest {
            via: self.backend.via(),
            domain,
        }
    }
}

impl RestrictedPrivcmd {
    /// Returns the one domain that stays reachable.
    #[doc(alias = "xenforeignmemory_restrict")]
    #[must_use]
    pub fn guest(&self) -> Guest<'_> {
        Guest {
            via: self.backend.via(),
            domain: self.domain,
        }
    }
}

impl Backend {
    fn via(&self) -> Via<'_> {
        match &self.dev {
            Device::Real(dev) => Via::Device(dev),
            #[cfg(feature = "sim")]
            Device::Simulated(_) => Via::Simulated(&self.xen),
        }
    }
}

/// Requests each frame that is paged out (`ENOENT`) again, for at most [`PAGED_OUT_TRIES`] rounds
/// in all, pausing between them for 1 ms, 2 ms, 4 ms ... 256 ms: about half a second.
///
/// The domain's pager is another program, so all this side can do is wait. A pager that never
/// answers must not block the caller forever.
fn retry_paged_out(
    errors: &mut [i32],
    mut map: impl FnMut(usize, usize) -> Result<Vec<i32>>,
    mut pause: impl FnMut(Duration),
) -> Result<()> {
    for round in 1..PAGED_OUT_TRIES {
        let out = |&e: &i32| e == libc::ENOENT;
        if !errors.iter().any(out) {
            return Ok(());
        }
        pause(Duration::from_millis(1 << (round - 1)));
        let mut at = 0;
        while at < errors.len() {
            let run = errors[at..].iter().take_while(|e| out(e)).count();
            if run > 0 {
                let now = map(at, run)?;
                for (error, now) in errors[at..at + run].iter_mut().zip(now) {
                    *error = now;
                }
            }
            at += run.max(1);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: i32 = libc::ENOENT;

    #[test]
    fn only_frames_that_are_paged_out_are_asked_for_again() {
        let mut errors = [0, OUT, OUT, libc::EINVAL, OUT];
        let mut asked = Vec::new();
        let map = |first, count| {
            asked.push((first, count));
            Ok(vec![0; count])
        };
        retry_paged_out(&mut errors, map, |_| {}).unwrap();
        assert_eq!(asked, [(1, 2), (4, 1)]);
        assert_eq!(errors, [0, 0, 0, libc::EINVAL, 0]);
    }

    #[test]
    fn a_frame_that_stays_paged_out_is_given_up_in_bounded_time() {
        let (mut errors, mut calls, mut slept) = ([OUT], 1, Duration::ZERO);
        let map = |_, _| {
            calls += 1;
            Ok(vec![OUT])
        };
        retry_paged_out(&mut errors, map, |d| slept += d).unwrap();
        assert_eq!((errors, calls), ([OUT], PAGED_OUT_TRIES));
        assert_eq!(slept, Duration::from_millis(511));
    }

    #[test]
    fn a_request_that_fails_as_a_whole_ends_the_retries() {
        let mut errors = [OUT, 0];
        let map = |_, _| Err(Error::os("map", std::io::Error::from_raw_os_error(1)));
        let error = retry_paged_out(&mut errors, map, |_| {}).unwrap_err();
        assert_eq!(error.errno(), Some(1));
    }
}
