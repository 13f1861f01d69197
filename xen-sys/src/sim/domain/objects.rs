//! Shared and mapped pages as the host records them: their owners, and what happens when they are
//! given back.
//!
//! An object belongs to a connection. It is released by its owner or with the connection, in the
//! order in which the kernel does it: the byte, the event, the pages.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::State;
use crate::abi::gntdev::UnmapAction;
use crate::sim::grants::Memory;
use crate::sim::ports::{AllPorts as _, errno};
use crate::sim::wire;
use crate::{DomId, GrantRef, PAGE_SIZE, Port};

/// The pages a process shares, or has mapped.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) connection: u64,
    pub(super) domain: DomId,
    /// The owner of the pages: `domain` itself if it shares them.
    pub(super) owner: DomId,
    pub(super) what: What,
    memory: Arc<Memory>,
    pub(super) refs: Vec<u32>,
    pub(super) frames: Vec<u32>,
    /// By page for a share, as gntalloc keeps them; one, under page 0, for a mapping.
    notify: HashMap<usize, Notify>,
}

impl Object {
    /// Removes its unmap notification, which will not be performed.
    pub(super) fn forget_notify(&mut self) {
        self.notify.clear();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Shared,
    Mapped {
        writable: bool,
    },
    /// Frames of another domain's memory, without a grant.
    Foreign,
}

/// An unmap notification.
#[derive(Clone, Copy, Debug)]
struct Notify {
    /// The byte to clear, by page and offset.
    clear: Option<(usize, usize)>,
    event: Option<Port>,
}

/// Pages as a process gets them: the object's number, the references, the frames, the memory.
pub(in crate::sim) type Got = (u64, Vec<u32>, Vec<u32>, OwnedFd);

impl State {
    pub(in crate::sim) fn share(
        &mut self,
        connection: u64,
        me: DomId,
        to: DomId,
        pages: usize,
        writable: bool,
    ) -> Result<Got, Errno> {
        let domain = self.domains.get_mut(&me).ok_or(Errno::SRCH)?;
        let limit = domain.limits.shared_pages;
        let shared = domain.grants.share(to, pages, writable, limit)?;
        // The sharing domain may write, whatever the peer may do.
        let fd = match shared.memory.fd(true) {
            Ok(fd) => fd,
            Err(e) => {
                domain.grants.unshare(&shared.refs);
                return Err(e);
            }
        };
        let (refs, frames) = (shared.refs.clone(), shared.frames.clone());
        let id = self.insert(Object {
            connection,
            domain: me,
            owner: me,
            what: What::Shared,
            memory: shared.memory,
            refs: shared.refs,
            frames: shared.frames,
            notify: HashMap::new(),
        });
        Ok((id, refs, frames, fd))
    }

    pub(in crate::sim) fn map(
        &mut self,
        connection: u64,
        me: DomId,
        from: DomId,
        refs: &[u32],
        writable: bool,
    ) -> Result<Got, Errno> {
        let domain = self.domains.get(&me).ok_or(Errno::SRCH)?;
        if refs.is_empty() || domain.mapped_pages + refs.len() > domain.limits.mapped_pages as usize
        {
            return Err(Errno::INVAL);
        }
        let grants = &mut self.domains.get_mut(&from).ok_or(Errno::INVAL)?.grants;
        let mapped = grants.map(me, refs, writable)?;
        let fd = match mapped.memory.fd(writable) {
            Ok(fd) => fd,
            Err(e) => {
                grants.unmap(refs);
                return Err(e);
            }
        };
        if let Some(domain) = self.domains.get_mut(&me) {
            domain.mapped_pages += refs.len();
        }
        let frames = mapped.frames.clone();
        let id = self.insert(Object {
            connection,
            domain: me,
            owner: from,
            what: What::Mapped { writable },
            memory: mapped.memory,
            refs: mapped.refs,
            frames: mapped.frames,
            notify: HashMap::new(),
        });
        Ok((id, Vec::new(), frames, fd))
    }

    /// Maps frames of a domain's memory for the control domain, and returns an errno for each in
    /// place of the frames. As xen's get_page_from_gfn: `EINVAL` where there is no memory, `ESRCH`
    /// for each if there is no such domain.
    pub(in crate::sim) fn map_foreign(
        &mut self,
        connection: u64,
        me: DomId,
        of: DomId,
        frames: &[u32],
        writable: bool,
    ) -> Result<Got, Errno> {
        if me != DomId::DOM0 {
            return Err(Errno::PERM);
        }
        if frames.is_empty() || frames.len() > wire::MAX_PAGES {
            return Err(Errno::INVAL);
        }
        let pages = self.hypervisor.pages(of);
        let owner = if pages.is_some() { of } else { me };
        let domain = self.domains.get_mut(&owner).ok_or(Errno::SRCH)?;
        let memory = domain.grants.memory()?;
        let fd = memory.fd(writable)?;
        let error = |&frame: &u32| match pages {
            None => Errno::SRCH.raw_os_error() as u32,
            Some(pages) if u64::from(frame) >= pages => Errno::INVAL.raw_os_error() as u32,
            Some(_) => 0,
        };
        let errors: Vec<u32> = frames.iter().map(error).collect();
        let id = self.insert(Object {
            connection,
            domain: me,
            owner,
            what: What::Foreign,
            memory,
            refs: Vec::new(),
            frames: frames.to_vec(),
            notify: HashMap::new(),
        });
        Ok((id, Vec::new(), errors, fd))
    }

    /// Maps the pages of an ioreq server for the control domain.
    pub(in crate::sim) fn map_resource(
        &mut self,
        connection: u64,
        me: DomId,
        of: DomId,
        which: [u32; 4],
        writable: bool,
    ) -> Result<Got, Errno> {
        if me != DomId::DOM0 {
            return Err(Errno::PERM);
        }
        let (memory, frames) = self.resource(of, which)?;
        let fd = memory.fd(writable)?;
        let id = self.insert(Object {
            connection,
            domain: me,
            owner: of,
            what: What::Foreign,
            memory,
            refs: Vec::new(),
            frames: frames.clone(),
            notify: HashMap::new(),
        });
        Ok((id, Vec::new(), frames, fd))
    }

    /// The memory of a domain.
    pub(in crate::sim) fn memory(&mut self, domain: DomId) -> Result<Arc<Memory>, Errno> {
        let domain = self.domains.get_mut(&domain).ok_or(Errno::SRCH)?;
        domain.grants.memory()
    }

    /// Writes to a domain's memory as the domain would, at a guest-physical address. `EFAULT` for
    /// what is not within its memory.
    pub(in crate::sim) fn write_memory(
        &mut self,
        domain: DomId,
        address: u64,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        let pages = self.hypervisor.pages(domain).ok_or(Errno::SRCH)?;
        let end = address.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > pages * PAGE_SIZE as u64) {
            return Err(Errno::FAULT);
        }
        let domain = self.domains.get_mut(&domain).ok_or(Errno::SRCH)?;
        let (frame, offset) = (address / PAGE_SIZE as u64, address % PAGE_SIZE as u64);
        let frame = u32::try_from(frame).map_err(|_| Errno::FAULT)?;
        let memory = domain.grants.memory()?;
        memory.write(frame, offset as usize, bytes).map_err(errno)
    }

    fn insert(&mut self, object: Object) -> u64 {
        let id = self.next_object;
        self.next_object += 1;
        self.objects.insert(id, object);
        id
    }

    /// Sets, replaces or (with no action) removes an unmap notification. `EINVAL` when the port is
    /// not bound in this domain, or for a byte to clear in pages mapped read-only.
    pub(in crate::sim) fn set_unmap_notify(
        &mut self,
        connection: u64,
        id: u64,
        offset: usize,
        action: u32,
        port: Port,
    ) -> Result<(), Errno> {
        let object = self.objects.get(&id).filter(|o| o.connection == connection);
        let object = object.ok_or(Errno::NOENT)?;
        let (domain, (page, byte)) = (object.domain, (offset / PAGE_SIZE, offset % PAGE_SIZE));
        let action = UnmapAction::from_bits(action).ok_or(Errno::INVAL)?;
        let clear = action.contains(UnmapAction::CLEAR_BYTE);
        let event = action.contains(UnmapAction::SEND_EVENT);
        if page >= object.frames.len() {
            return Err(Errno::NOENT);
        }
        if clear && object.what == (What::Mapped { writable: false }) {
            return Err(Errno::INVAL);
        }
        // The new port is held before the old one is released: it may be the same.
        if event {
            self.domains.hold(domain, port)?;
        }
        let slot = if object.what == What::Shared { page } else { 0 };
        let notify = Notify {
            clear: clear.then_some((page, byte)),
            event: event.then_some(port),
        };
        let Some(object) = self.objects.get_mut(&id) else {
            return Ok(());
        };
        let old = object.notify.insert(slot, notify);
        if let Some(port) = old.and_then(|n| n.event) {
            self.domains.let_go(domain, port, false);
        }
        Ok(())
    }

    /// Gives pages back: the byte, the event, the pages. `ENOENT` for an object of another.
    pub(in crate::sim) fn release(&mut self, connection: u64, id: u64) -> Result<(), Errno> {
        if self
            .objects
            .get(&id)
            .is_none_or(|o| o.connection != connection)
        {
            return Err(Errno::NOENT);
        }
        let Some(object) = self.objects.remove(&id) else {
            return Err(Errno::NOENT);
        };
        let mut notify: Vec<_> = object.notify.into_iter().collect();
        notify.sort_unstable_by_key(|(page, _)| *page);
        for (_, Notify { clear, event }) in notify {
            if let Some((page, byte)) = clear {
                if let Some(&frame) = object.frames.get(page) {
                    // The range was checked; memory that cannot be had is not cleared either
                    // way.
                    let _ = object.memory.write(frame, byte, &[0]);
                }
            }
            if let Some(port) = event {
                self.domains.let_go(object.domain, port, true);
            }
        }
        if let (What::Mapped { .. }, Some(me)) = (object.what, self.domains.get_mut(&object.domain))
        {
            me.mapped_pages = me.mapped_pages.saturating_sub(object.refs.len());
        }
        // The owner may have ended; then its pages are no longer counted.
        if let Some(owner) = self.domains.get_mut(&object.owner) {
            match object.what {
                What::Shared => owner.grants.unshare(&object.refs),
                What::Mapped { .. } => owner.grants.unmap(&object.refs),
                What::Foreign => {}
            }
        }
        Ok(())
    }

    pub(in crate::sim) fn scribble(
        &self,
        owner: DomId,
        gref: GrantRef,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        let domain = self.domains.get(&owner).ok_or(Errno::SRCH)?;
        domain.grants.scribble(gref, offset, bytes)
    }
}
