//! Grant references: each with its page, its grantee and its number of mappings; and the memory
//! itself.
//!
//! The pages a domain shares are frames of one sealed memfd, its *memory*: a reference names a
//! frame, and a process that maps it gets the memfd and the frame's number. So a mapping costs no
//! descriptor once it is made. A page that is released is punched out of the memfd (and is zeroed
//! when used again), and no `ftruncate` of a peer can remove a page.
//!
//! ```text
//!   domain 3:  ref 8 ─> frame 0 ┐
//!              ref 9 ─> frame 5 ├─ memfd (sparse, sealed against shrinking and growing)
//!              ref 12 ─> frame 1┘      └── mapped by domain 3, and by 5 where granted to it
//! ```
//!
//! A reference that its owner has released lives on while it is mapped, and may even be mapped
//! again, as on Linux: `gnttab_end_foreign_access_ref` refuses to end it in use.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{
    FallocateFlags, MemfdFlags, Mode, OFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate,
    memfd_create,
};
use rustix::io::Errno;

use super::device_model;
use super::ports::errno;
use crate::{DomId, GrantRef, PAGE_SIZE};

/// The most frames a domain can share: 1 GiB. A domain has its own limit in addition.
const FRAMES: u32 = 1 << 18;

/// The first of the frames behind a domain's memory, which hold the pages of its ioreq servers.
pub(super) const SERVER_FRAMES: u32 = FRAMES;

/// The lowest reference allocated: Linux reserves eight (`GNTTAB_NR_RESERVED_ENTRIES`).
const FIRST: u32 = 8;

/// The shared pages of one domain.
#[derive(Debug)]
pub(super) struct Memory {
    writable: File,
    readonly: OwnedFd,
}

impl Memory {
    fn new() -> Result<Self, Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let writable = memfd_create("xen-sim", flags)?;
        let frames = FRAMES + device_model::FRAMES;
        ftruncate(&writable, u64::from(frames) * PAGE_SIZE as u64)?;
        fcntl_add_seals(
            &writable,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        )?;
        // A separate open file, so that a mapping for reading cannot be made writable.
        let path = {
            use std::os::fd::AsRawFd;
            format!("/proc/self/fd/{}", writable.as_raw_fd())
        };
        let readonly = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self {
            writable: writable.into(),
            readonly,
        })
    }

    pub(super) fn fd(&self, writable: bool) -> Result<OwnedFd, Errno> {
        if writable {
            self.writable.try_clone().map(OwnedFd::from).map_err(errno)
        } else {
            self.readonly.try_clone().map_err(errno)
        }
    }

    /// Writes into the pages, as a mapping of them would.
    pub(super) fn write(&self, frame: u32, offset: usize, bytes: &[u8]) -> io::Result<()> {
        self.writable
            .write_all_at(bytes, u64::from(frame) * PAGE_SIZE as u64 + offset as u64)
    }

    /// Reads from the pages, as a mapping of them would.
    pub(super) fn read(&self, frame: u32, offset: usize, bytes: &mut [u8]) -> io::Result<()> {
        self.writable
            .read_exact_at(bytes, u64::from(frame) * PAGE_SIZE as u64 + offset as u64)
    }

    /// Gives a frame's memory back; it reads as zero afterwards.
    pub(super) fn punch(&self, frame: u32) {
        let at = u64::from(frame) * PAGE_SIZE as u64;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Fails only for memory sealed against writing, which this is not.
        let _ = fallocate(&self.writable, flags, at, PAGE_SIZE as u64);
    }
}

#[derive(Debug)]
struct Grant {
    to: DomId,
    writable: bool,
    frame: u32,
    maps: u32,
    /// The owner holds it; false once released.
    held: bool,
}

/// The references of one domain.
#[derive(Debug)]
pub(super) struct Grants {
    memory: Option<Arc<Memory>>,
    table: BTreeMap<u32, Grant>,
    /// Frames used before and free now.
    free_frames: BTreeSet<u32>,
    /// The lowest frame never used.
    next_frame: u32,
    free_refs: BTreeSet<u32>,
    next_ref: u32,
}

/// Pages shared or mapped: their frames and the memory they are in.
#[derive(Debug)]
pub(super) struct Frames {
    pub(super) memory: Arc<Memory>,
    pub(super) refs: Vec<u32>,
    pub(super) frames: Vec<u32>,
}

impl Grants {
    pub(super) fn new() -> Self {
        Self {
            memory: None,
            table: BTreeMap::new(),
            free_frames: BTreeSet::new(),
            next_frame: 0,
            free_refs: BTreeSet::new(),
            next_ref: FIRST,
        }
    }

    /// The domain's memory. Its frames are the domain's guest frames, so a page it shares is among
    /// them.
    pub(super) fn memory(&mut self) -> Result<Arc<Memory>, Errno> {
        Ok(match &self.memory {
            Some(memory) => Arc::clone(memory),
            None => Arc::clone(self.memory.insert(Arc::new(Memory::new()?))),
        })
    }

    /// Grants `pages` fresh pages to domain `to`. `ENOSPC` beyond `limit` pages, as gntalloc.
    pub(super) fn share(
        &mut self,
        to: DomId,
        pages: usize,
        writable: bool,
        limit: u32,
    ) -> Result<Frames, Errno> {
        if pages == 0 {
            return Err(Errno::INVAL);
        }
        if self.table.len() + pages > limit.min(FRAMES) as usize {
            return Err(Errno::NOSPC);
        }
        let memory = self.memory()?;
        let mut shared = Frames {
            memory,
            refs: Vec::new(),
            frames: Vec::new(),
        };
        for _ in 0..pages {
            let frame = take(&mut self.free_frames, &mut self.next_frame);
            let gref = take(&mut self.free_refs, &mut self.next_ref);
            self.table.insert(
                gref,
                Grant {
                    to,
                    writable,
                    frame,
                    maps: 0,
                    held: true,
                },
            );
            shared.refs.push(gref);
            shared.frames.push(frame);
        }
        Ok(shared)
    }

    /// Maps `refs` for domain `by`, all or none. `EINVAL`, as gntdev reports every refusal of
    /// the hypervisor.
    pub(super) fn map(&mut self, by: DomId, refs: &[u32], writable: bool) -> Result<Frames, Errno> {
        let mut frames = Vec::with_capacity(refs.len());
        for gref in refs {
            let grant = self.table.get(gref).ok_or(Errno::INVAL)?;
            if grant.to != by || (writable && !grant.writable) {
                return Err(Errno::INVAL);
            }
            frames.push(grant.frame);
        }
        let memory = Arc::clone(self.memory.as_ref().ok_or(Errno::INVAL)?);
        for gref in refs {
            if let Some(grant) = self.table.get_mut(gref) {
                grant.maps += 1;
            }
        }
        Ok(Frames {
            memory,
            refs: refs.to_vec(),
            frames,
        })
    }

    /// Releases pages for their owner.
    pub(super) fn unshare(&mut self, refs: &[u32]) {
        for gref in refs {
            if let Some(grant) = self.table.get_mut(gref) {
                grant.held = false;
            }
            self.free_if_unused(*gref);
        }
    }

    /// Ends a mapping.
    pub(super) fn unmap(&mut self, refs: &[u32]) {
        for gref in refs {
            if let Some(grant) = self.table.get_mut(gref) {
                grant.maps = grant.maps.saturating_sub(1);
            }
            self.free_if_unused(*gref);
        }
    }

    fn free_if_unused(&mut self, gref: u32) {
        if !self
            .table
            .get(&gref)
            .is_some_and(|g| !g.held && g.maps == 0)
        {
            return;
        }
        if let Some(grant) = self.table.remove(&gref) {
            if let Some(memory) = &self.memory {
                memory.punch(grant.frame);
            }
            self.free_frames.insert(grant.frame);
            self.free_refs.insert(gref);
        }
    }

    /// Writes to a granted page.
    pub(super) fn scribble(
        &self,
        gref: GrantRef,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        let grant = self.table.get(&gref.as_u32()).ok_or(Errno::INVAL)?;
        let memory = self.memory.as_ref().ok_or(Errno::INVAL)?;
        if offset > PAGE_SIZE || bytes.len() > PAGE_SIZE - offset {
            return Err(Errno::INVAL);
        }
        memory.write(grant.frame, offset, bytes).map_err(errno)
    }

    /// Lists what is still granted or mapped.
    pub(super) fn list(&self) -> impl Iterator<Item = String> + '_ {
        self.table.iter().map(|(gref, g)| {
            let state = if g.held { "granted" } else { "given up" };
            format!(
                "reference {gref}, {state} to domain {}, mapped {} times",
                g.to, g.maps
            )
        })
    }
}

/// The lowest free number.
fn take(free: &mut BTreeSet<u32>, next: &mut u32) -> u32 {
    free.pop_first().unwrap_or_else(|| {
        *next += 1;
        *next - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: DomId = DomId::new(2);
    const C: DomId = DomId::new(3);

    fn map(g: &mut Grants, by: DomId, refs: &[u32], w: bool) -> Result<Vec<u32>, Errno> {
        g.map(by, refs, w).map(|f| f.frames)
    }

    #[test]
    fn only_the_named_domain_maps_and_only_as_granted() {
        let mut g = Grants::new();
        let refs = g.share(B, 2, false, 10).unwrap().refs;
        assert_eq!(map(&mut g, C, &refs, false), Err(Errno::INVAL));
        assert_eq!(map(&mut g, B, &refs, true), Err(Errno::INVAL));
        assert_eq!(map(&mut g, B, &[refs[0], 999], false), Err(Errno::INVAL));
        assert!(
            g.table.values().all(|g| g.maps == 0),
            "a refused map maps nothing"
        );
        assert_eq!(
            map(&mut g, B, &[refs[1], refs[0], refs[1]], false),
            Ok(vec![1, 0, 1])
        );
    }

    #[test]
    fn a_page_given_up_while_mapped_stays_until_it_is_unmapped() {
        let mut g = Grants::new();
        let refs = g.share(B, 1, true, 10).unwrap().refs;
        g.map(B, &refs, true).unwrap();
        g.unshare(&refs);
        assert_eq!(
            map(&mut g, B, &refs, true),
            Ok(vec![0]),
            "still in use, so still granted"
        );
        g.unmap(&refs);
        assert_ne!(
            g.share(B, 1, true, 10).unwrap().frames,
            [0],
            "not reused yet"
        );
        g.unmap(&refs);
        assert_eq!(map(&mut g, B, &refs, true), Err(Errno::INVAL));
        assert_eq!(g.share(B, 1, true, 10).unwrap().frames, [0]);
    }

    #[test]
    fn the_limit_is_of_pages_in_use() {
        let mut g = Grants::new();
        let refs = g.share(B, 3, true, 3).unwrap().refs;
        assert_eq!(g.share(B, 1, true, 3).map(drop), Err(Errno::NOSPC));
        assert_eq!(g.share(B, 0, true, 3).map(drop), Err(Errno::INVAL));
        g.unshare(&refs[..1]);
        assert!(g.share(B, 1, true, 3).is_ok());
    }

    #[test]
    fn a_reused_page_is_zero_again() {
        let mut g = Grants::new();
        let s = g.share(B, 1, true, 10).unwrap();
        g.scribble(GrantRef::new(s.refs[0]), 5, b"secret").unwrap();
        let mut seen = [0; 6];
        s.memory.writable.read_exact_at(&mut seen, 5).unwrap();
        assert_eq!(&seen, b"secret");
        g.unshare(&s.refs);
        s.memory.writable.read_exact_at(&mut seen, 5).unwrap();
        assert_eq!(seen, [0; 6]);
    }

    #[test]
    fn no_holder_of_the_memory_can_shrink_it_or_write_through_the_readonly_end() {
        let m = Memory::new().unwrap();
        let fd = m.fd(true).unwrap();
        assert_eq!(ftruncate(&fd, 0), Err(Errno::PERM));
        assert_eq!(ftruncate(&fd, u64::MAX >> 1), Err(Errno::PERM));
        let readonly = m.fd(false).unwrap();
        assert_eq!(rustix::io::write(&readonly, &[1]), Err(Errno::BADF));
    }
}
