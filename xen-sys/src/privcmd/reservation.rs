//! The amount and the location of a domain's memory: `memory_op`.
//!
//! # Safety
//!
//! This file is not safe code because these operations may take memory from this program's own
//! domain, or replace it by other memory. It only passes the caller's promise on.

#![allow(unsafe_code)]

use super::Privcmd;
use crate::abi::memory as abi;
use crate::ioctl::privcmd::{
    ClaimPages, Decrease, ExtentsOperation, Populate, batch_len, bytes_buffer,
};
use crate::{DomId, Error, Result};

/// The kind of object that [`Privcmd::add_to_physmap`] puts at a guest frame: `XENMAPSPACE_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MapSpace {
    /// The domain's shared info page; its index is 0.
    #[doc(alias = "XENMAPSPACE_shared_info")]
    SharedInfo,
    /// A frame of its grant table, by its number.
    #[doc(alias = "XENMAPSPACE_grant_table")]
    GrantTable,
    /// Another frame of its own, which moves.
    #[doc(alias = "XENMAPSPACE_gmfn")]
    Frame,
    /// A frame of another domain; in a batch only.
    #[doc(alias = "XENMAPSPACE_gmfn_foreign")]
    Foreign(DomId),
}

impl MapSpace {
    fn number(self) -> u32 {
        match self {
            Self::SharedInfo => abi::XENMAPSPACE_SHARED_INFO,
            Self::GrantTable => abi::XENMAPSPACE_GRANT_TABLE,
            Self::Frame => abi::XENMAPSPACE_GMFN,
            Self::Foreign(_) => abi::XENMAPSPACE_GMFN_FOREIGN,
        }
    }
}

/// The most frames, and objects put at frames, in one call.
const PER_CALL: usize = 4096;

/// The memory of a domain: xen/include/public/memory.h. For control domains and a guest's device
/// model.
///
/// All calls fail with [`Error::NotPermitted`] where Xen refuses them, [`Error::HypercallsRefused`]
/// where the kernel does, and [`Error::NoDomain`]. Their interfaces have no versions.
///
/// The calls that change memory are `unsafe` because Xen accepts the number of this domain itself
/// too, and a program cannot determine which number that is. Memory of *another* domain that this
/// program has mapped stays mapped and stays memory, whatever happens to that domain's frames.
impl Privcmd {
    /// Gives a domain memory at `frames`, each the first of 2^`order`. Returns how many of them
    /// have it: fewer, if there is no more memory, or the domain may not have more. For a PV guest,
    /// `frames` is overwritten with the machine frames.
    ///
    /// # Errors
    ///
    /// Those common to all calls, but only if no frame got memory.
    ///
    /// # Safety
    ///
    /// `domain` must not be the one this program runs in, or nothing may use memory at those
    /// frames.
    #[doc(alias = "xc_domain_populate_physmap")]
    #[doc(alias = "xc_domain_populate_physmap_exact")]
    #[doc(alias = "XENMEM_populate_physmap")]
    pub unsafe fn populate_physmap(
        &self,
        domain: DomId,
        order: u32,
        frames: &mut [u64],
    ) -> Result<usize> {
        // SAFETY: the caller's promise.
        unsafe { self.extents::<Populate>(domain, order, frames) }
    }

    /// Takes the memory at `frames`, each the first of 2^`order`, from a domain. Returns how many
    /// of them were taken: fewer, if one has no memory that can be taken.
    ///
    /// # Errors
    ///
    /// Those common to all calls, but only if no frame was taken.
    ///
    /// # Safety
    ///
    /// As [`populate_physmap`](Self::populate_physmap).
    #[doc(alias = "xc_domain_decrease_reservation")]
    #[doc(alias = "xc_domain_decrease_reservation_exact")]
    #[doc(alias = "XENMEM_decrease_reservation")]
    pub unsafe fn decrease_reservation(
        &self,
        domain: DomId,
        order: u32,
        frames: &[u64],
    ) -> Result<usize> {
        let mut frames = frames.to_vec();
        // SAFETY: the caller's promise.
        unsafe { self.extents::<Decrease>(domain, order, &mut frames) }
    }

    /// Makes the operation on as many frames at a time as fit a pooled buffer.
    ///
    /// # Safety
    ///
    /// As [`populate_physmap`](Self::populate_physmap).
    unsafe fn extents<E: ExtentsOperation>(
        &self,
        domain: DomId,
        order: u32,
        frames: &mut [u64],
    ) -> Result<usize> {
        let dev = self.backend().device(E::NAME)?;
        let wanted = frames.len();
        let done = count_in_parts(frames, |frames| {
            let mut buffer = self.backend().buffer(bytes_buffer(size_of_val(frames)))?;
            self.backend().named(E::NAME, Some(domain), || {
                // SAFETY: the caller's promise.
                unsafe { dev.extents::<E>(&mut buffer, domain, order, frames) }
            })
        })?;
        // For a domain that does not exist, Xen returns 0 too.
        if done == 0 && wanted > 0 {
            self.look_for(E::NAME, domain)?;
        }
        Ok(done)
    }

    /// Fails with [`Error::NoDomain`] where that is the reason why `op` did nothing.
    fn look_for(&self, op: &'static str, domain: DomId) -> Result<()> {
        match self.current_pages(domain) {
            Err(Error::NoDomain { domain, .. }) => Err(Error::NoDomain { op, domain }),
            _ => Ok(()),
        }
    }

    /// Reserves `pages` for a domain, from which later allocations for it are taken; 0 cancels the
    /// reservation. A claim takes no memory from any domain.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when there are not as many free pages; `EINVAL` when the domain has a claim, or may
    /// not have as many pages; those common to all calls.
    #[doc(alias = "xc_domain_claim_pages")]
    #[doc(alias = "XENMEM_claim_pages")]
    pub fn claim_pages(&self, domain: DomId, pages: u64) -> Result<()> {
        let argument = ClaimPages::new(domain, pages);
        match self.backend().operation(Some(domain), argument) {
            Ok(_) => Ok(()),
            // For a domain that is missing, Xen returns the same.
            Err(e) if e.errno() == Some(libc::EINVAL) => {
                self.look_for("XENMEM_claim_pages", domain)?;
                Err(e)
            }
            Err(e) => Err(e),
        }
    }

    /// Puts the object at `index` of `space` at a domain's guest frame. Memory that was there is
    /// taken from the domain.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for [`MapSpace::Foreign`]; `EINVAL` for an index without an object; those
    /// common to all calls.
    ///
    /// # Safety
    ///
    /// As [`populate_physmap`](Self::populate_physmap).
    #[doc(alias = "xc_domain_add_to_physmap")]
    #[doc(alias = "XENMEM_add_to_physmap")]
    pub unsafe fn add_to_physmap(
        &self,
        domain: DomId,
        space: MapSpace,
        index: u64,
        frame: u64,
    ) -> Result<()> {
        if let MapSpace::Foreign(foreign) = space {
            return Err(Error::Invalid {
                op: "XENMEM_add_to_physmap",
                what: "the other domain outside of a batch",
                value: foreign.as_u16().into(),
            });
        }
        let argument = abi::AddToPhysmap {
            domid: domain,
            size: 0,
            space: space.number(),
            idx: index,
            gpfn: frame,
        };
        let done = self.backend().operation(Some(domain), argument);
        done.map(drop)
    }

    /// Puts the object at each index of `space` at the guest frame next to it. Returns an errno for
    /// each pair, 0 for success.
    ///
    /// # Errors
    ///
    /// Those common to all calls; the error of a single pair is in its place.
    ///
    /// # Safety
    ///
    /// As [`populate_physmap`](Self::populate_physmap).
    #[doc(alias = "xc_domain_add_to_physmap_batch")]
    #[doc(alias = "XENMEM_add_to_physmap_batch")]
    pub unsafe fn add_to_physmap_batch(
        &self,
        domain: DomId,
        space: MapSpace,
        pairs: &[(u64, u64)],
    ) -> Result<Vec<i32>> {
        let foreign = match space {
            MapSpace::Foreign(foreign) => foreign.as_u16(),
            _ => 0,
        };
        let (op, space) = ("XENMEM_add_to_physmap_batch", (space.number(), foreign));
        let dev = self.backend().device(op)?;
        errors_in_parts(pairs, |pairs| {
            let len = bytes_buffer(batch_len(pairs.len()));
            let mut buffer = self.backend().buffer(len)?;
            self.backend().named(op, Some(domain), || {
                // SAFETY: the caller's promise.
                unsafe { dev.add_to_physmap_batch(&mut buffer, domain, space, pairs) }
            })
        })
    }

    /// Removes the memory at a guest frame from a domain's memory map. It stays the domain's only
    /// if something else still uses it.
    ///
    /// # Errors
    ///
    /// `ENOENT` when nothing is there; those common to all calls.
    ///
    /// # Safety
    ///
    /// As [`populate_physmap`](Self::populate_physmap).
    #[doc(alias = "XENMEM_remove_from_physmap")]
    pub unsafe fn remove_from_physmap(&self, domain: DomId, frame: u64) -> Result<()> {
        let argument = abi::RemoveFromPhysmap {
            domid: domain,
            pad: [0; 3],
            gpfn: frame,
        };
        let done = self.backend().operation(Some(domain), argument);
        done.map(drop)
    }
}

/// Makes a call on each part of a list, until one does less than it was given. Returns how much was
/// done; the error of a call only if nothing was.
fn count_in_parts<T>(
    list: &mut [T],
    mut call: impl FnMut(&mut [T]) -> Result<usize>,
) -> Result<usize> {
    let mut done = 0;
    for part in list.chunks_mut(PER_CALL) {
        match call(part) {
            Ok(count) => {
                done += count;
                if count < part.len() {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Makes a call on each part of a list, which returns an errno for each item. The error of a later
/// part is that of each item that is left.
fn errors_in_parts<T>(
    list: &[T],
    mut call: impl FnMut(&[T]) -> Result<Vec<i32>>,
) -> Result<Vec<i32>> {
    let mut errors = Vec::with_capacity(list.len());
    for part in list.chunks(PER_CALL) {
        match call(part) {
            Ok(done) => errors.extend(done),
            Err(e) if errors.is_empty() => return Err(e),
            Err(e) => {
                errors.resize(list.len(), e.errno().unwrap_or(libc::EIO));
                break;
            }
        }
    }
    Ok(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Error {
        Error::os("op", std::io::Error::from_raw_os_error(libc::ENOMEM))
    }

    #[test]
    fn a_later_part_that_fails_loses_no_count_of_those_before() {
        let frames = vec![0_u64; 3 * PER_CALL];
        let done = |fail_at: usize, each: usize| {
            let mut calls = 0;
            let done = count_in_parts(&mut frames.clone(), |part| {
                calls += 1;
                match calls == fail_at {
                    true => Err(refused()),
                    false => Ok(part.len().min(each)),
                }
            });
            (done.map_err(|e| e.errno()), calls)
        };
        assert_eq!(done(1, PER_CALL), (Err(Some(libc::ENOMEM)), 1));
        assert_eq!(done(3, PER_CALL), (Ok(2 * PER_CALL), 3));
        assert_eq!(done(9, PER_CALL), (Ok(3 * PER_CALL), 3));
        assert_eq!(done(9, 7), (Ok(7), 1));
    }

    #[test]
    fn a_later_part_that_fails_is_the_error_of_each_pair_that_is_left() {
        let pairs = vec![(0_u64, 0_u64); PER_CALL + 2];
        let errors = |fail_at: usize| {
            let mut calls = 0;
            errors_in_parts(&pairs, |part| {
                calls += 1;
                match calls == fail_at {
                    true => Err(refused()),
                    false => Ok(vec![0; part.len()]),
                }
            })
        };
        assert_eq!(errors(1).unwrap_err().errno(), Some(libc::ENOMEM));
        let second = errors(2).unwrap();
        assert_eq!(second[..PER_CALL], vec![0; PER_CALL]);
        assert_eq!(second[PER_CALL..], [libc::ENOMEM; 2]);
        assert_eq!(errors(9).unwrap(), vec![0; PER_CALL + 2]);
    }
}
