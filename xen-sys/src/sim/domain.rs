//! The whole state of the simulated host, and what happens to it; no thread, no socket read.
//!
//! Everything that needs to be given back is an *object* or a port, and belongs to a connection:
//! a process of a domain. When the connection ends, in whatever way, so does all it had. A
//! domain's end is the end of all its connections.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::faults::{Faults, Op, Verdict};
use super::grants::{Grants, Memory};
use super::ports::{AllPorts, Bell, Bound, Ports, errno};
use super::{Limits, StoreServer};
use crate::abi::gntdev::{UNMAP_NOTIFY_CLEAR_BYTE, UNMAP_NOTIFY_SEND_EVENT};
use crate::{DomId, GrantRef, PAGE_SIZE, Port};

/// One domain.
#[derive(Debug)]
struct Domain {
    ports: Ports,
    grants: Grants,
    mapped_pages: usize,
    limits: Limits,
}

/// The pages a process shares, or has mapped.
#[derive(Debug)]
struct Object {
    connection: u64,
    domain: DomId,
    /// Whose pages: of `domain` itself if it shares them.
    owner: DomId,
    what: What,
    memory: Arc<Memory>,
    refs: Vec<u32>,
    frames: Vec<u32>,
    /// By page for a share, as gntalloc keeps them; one, under page 0, for a mapping.
    notify: HashMap<usize, Notify>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Shared,
    Mapped { writable: bool },
}

/// An unmap notification.
#[derive(Clone, Copy, Debug)]
struct Notify {
    /// The byte to clear, by page and offset.
    clear: Option<(usize, usize)>,
    event: Option<Port>,
}

/// Pages as a process gets them: the object's number, the references, the frames, the memory.
pub(super) type Got = (u64, Vec<u32>, Vec<u32>, OwnedFd);

pub(super) struct State {
    domains: BTreeMap<DomId, Domain>,
    objects: HashMap<u64, Object>,
    next_object: u64,
    /// Connections and the domain each is of, once it has said so.
    connections: HashMap<u64, (Arc<OwnedFd>, Option<DomId>)>,
    next_connection: u64,
    pub(super) faults: Faults,
    pub(super) store: Option<Box<dyn StoreServer>>,
    /// The broker's epoll set.
    set: Arc<OwnedFd>,
    bell_token: fn(u64) -> u64,
}

impl AllPorts for BTreeMap<DomId, Domain> {
    fn ports(&mut self, domain: DomId) -> Option<&mut Ports> {
        self.get_mut(&domain).map(|d| &mut d.ports)
    }
}

impl State {
    /// A host with nothing but domain 0. `set` is where interposed bells are waited for, under
    /// the tokens `bell_token` makes of their numbers.
    pub(super) fn new(set: Arc<OwnedFd>, bell_token: fn(u64) -> u64) -> Self {
        let mut state = Self {
            domains: BTreeMap::new(),
            objects: HashMap::new(),
            next_object: 1,
            connections: HashMap::new(),
            next_connection: 1,
            faults: Faults::default(),
            store: None,
            set,
            bell_token,
        };
        state.insert_domain(DomId::DOM0);
        state
    }

    fn insert_domain(&mut self, id: DomId) {
        let limits = Limits::of(id);
        let domain = Domain {
            ports: Ports::new(),
            grants: Grants::new(),
            mapped_pages: 0,
            limits,
        };
        self.domains.insert(id, domain);
    }

    pub(super) fn domains(&self) -> Vec<DomId> {
        self.domains.keys().copied().collect()
    }

    pub(super) fn has_domain(&self, id: DomId) -> bool {
        self.domains.contains_key(&id)
    }

    /// A new domain: `id`, or the number after the highest there is. `EEXIST` or, for a reserved
    /// number, `EINVAL`.
    pub(super) fn create_domain(&mut self, id: Option<DomId>) -> Result<DomId, Errno> {
        let id = id.or_else(|| {
            let last = self.domains.keys().next_back().map_or(0, |d| d.as_u16());
            last.checked_add(1).map(DomId::new)
        });
        let id = id.filter(|d| !d.is_reserved()).ok_or(Errno::INVAL)?;
        if self.has_domain(id) {
            return Err(Errno::EXIST);
        }
        self.insert_domain(id);
        Ok(id)
    }

    /// Ends a domain and all its connections. `ESRCH` when there is none, `EINVAL` for domain 0.
    pub(super) fn destroy_domain(&mut self, id: DomId) -> Result<(), Errno> {
        if id == DomId::DOM0 {
            return Err(Errno::INVAL);
        }
        if !self.has_domain(id) {
            return Err(Errno::SRCH);
        }
        let of = |(&c, (_, d)): (&u64, &(_, Option<DomId>))| (*d == Some(id)).then_some(c);
        let connections: Vec<u64> = self.connections.iter().filter_map(of).collect();
        for connection in connections {
            self.disconnect(connection);
        }
        let ports = self
            .domains
            .get(&id)
            .map(|d| d.ports.numbers())
            .unwrap_or_default();
        for port in ports {
            self.domains.close(id, port);
        }
        // Pages of its that others have mapped stay theirs until they unmap them: the memory
        // lives with their mappings.
        self.domains.remove(&id);
        if let Some(store) = &mut self.store {
            store.domain_destroyed(id);
        }
        Ok(())
    }

    pub(super) fn set_limits(&mut self, id: DomId, limits: Limits) -> Result<(), Errno> {
        self.domains.get_mut(&id).ok_or(Errno::SRCH)?.limits = limits;
        Ok(())
    }

    pub(super) fn limits(&self, id: DomId) -> Result<Limits, Errno> {
        Ok(self.domains.get(&id).ok_or(Errno::SRCH)?.limits)
    }

    /// A process connects, as `domain` if that is known already.
    pub(super) fn connect(&mut self, socket: OwnedFd, domain: Option<DomId>) -> u64 {
        let id = self.next_connection;
        self.next_connection += 1;
        self.connections.insert(id, (Arc::new(socket), domain));
        id
    }

    pub(super) fn socket(&self, connection: u64) -> Option<Arc<OwnedFd>> {
        self.connections
            .get(&connection)
            .map(|(socket, _)| Arc::clone(socket))
    }

    pub(super) fn domain_of(&self, connection: u64) -> Option<DomId> {
        self.connections.get(&connection).and_then(|(_, d)| *d)
    }

    /// A process says which domain it is of; `None` asks. `EPERM` when it is of another.
    pub(super) fn hello(&mut self, connection: u64, claim: Option<DomId>) -> Result<DomId, Errno> {
        let known = &mut self
            .connections
            .get_mut(&connection)
            .ok_or(Errno::CONNRESET)?
            .1;
        match (*known, claim) {
            (Some(known), Some(claim)) if known != claim => Err(Errno::PERM),
            (Some(known), _) => Ok(known),
            (None, Some(claim)) if self.domains.contains_key(&claim) => {
                *known = Some(claim);
                Ok(claim)
            }
            (None, Some(_)) => Err(Errno::SRCH),
            (None, None) => Err(Errno::PERM),
        }
    }

    /// A process is gone. Its pages go first, then its ports, as the kernel does it in effect: a
    /// notification has its port until it is performed.
    pub(super) fn disconnect(&mut self, connection: u64) {
        let Some((_, domain)) = self.connections.remove(&connection) else {
            return;
        };
        let of = |(&id, o): (&u64, &Object)| (o.connection == connection).then_some(id);
        let mut objects: Vec<u64> = self.objects.iter().filter_map(of).collect();
        objects.sort_unstable();
        for id in objects {
            // It is ours: this cannot be refused.
            let _ = self.release(connection, id);
        }
        if let Some(domain) = domain {
            self.domains.unbind_all(domain, connection);
        }
    }

    /// What becomes of a request, by the faults that were injected.
    pub(super) fn verdict(&mut self, by: DomId, op: Op) -> Verdict {
        self.faults.verdict(by, op)
    }

    fn bell(&mut self, to: DomId) -> io::Result<Bell> {
        Bell::new(|wait| self.faults.interpose(to, wait, &self.set, self.bell_token))
    }

    pub(super) fn bind_unbound(
        &mut self,
        connection: u64,
        me: DomId,
        remote: DomId,
    ) -> Result<Bound, Errno> {
        let limit = self.limits(me)?.ports;
        let bells = [
            self.bell(me).map_err(errno)?,
            self.bell(remote).map_err(errno)?,
        ];
        let ports = self.domains.ports(me).ok_or(Errno::SRCH)?;
        ports.bind_unbound(connection, limit, remote, bells)
    }

    pub(super) fn bind_interdomain(
        &mut self,
        connection: u64,
        me: DomId,
        remote: DomId,
        port: Port,
    ) -> Result<Bound, Errno> {
        let limit = self.limits(me)?.ports;
        self.domains
            .bind_interdomain(connection, limit, (me, remote), port)
    }

    pub(super) fn unbind(&mut self, connection: u64, me: DomId, port: Port) -> Result<(), Errno> {
        self.domains.unbind(me, connection, port)
    }

    pub(super) fn share(
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
        // Whoever shares may write, whatever the peer may do.
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

    pub(super) fn map(
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

    fn insert(&mut self, object: Object) -> u64 {
        let id = self.next_object;
        self.next_object += 1;
        self.objects.insert(id, object);
        id
    }

    /// Sets, replaces or (with no action) takes back an unmap notification. `EINVAL` when the
    /// port is not bound in this domain, or a byte of pages mapped for reading is to be cleared.
    pub(super) fn set_unmap_notify(
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
        let clear = action & UNMAP_NOTIFY_CLEAR_BYTE != 0;
        let event = action & UNMAP_NOTIFY_SEND_EVENT != 0;
        if action & !(UNMAP_NOTIFY_CLEAR_BYTE | UNMAP_NOTIFY_SEND_EVENT) != 0 {
            return Err(Errno::INVAL);
        }
        if page >= object.frames.len() {
            return Err(Errno::NOENT);
        }
        if clear && object.what == (What::Mapped { writable: false }) {
            return Err(Errno::INVAL);
        }
        // The new port is held before the old is let go: it may be the same.
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
    pub(super) fn release(&mut self, connection: u64, id: u64) -> Result<(), Errno> {
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
        // The owner may be gone; then nobody counts any more.
        if let Some(owner) = self.domains.get_mut(&object.owner) {
            match object.what {
                What::Shared => owner.grants.unshare(&object.refs),
                What::Mapped { .. } => owner.grants.unmap(&object.refs),
            }
        }
        Ok(())
    }

    pub(super) fn scribble(
        &self,
        owner: DomId,
        gref: GrantRef,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), Errno> {
        let domain = self.domains.get(&owner).ok_or(Errno::SRCH)?;
        domain.grants.scribble(gref, offset, bytes)
    }

    /// A connection to the store. `ENODEV` when no server was attached.
    pub(super) fn store(&mut self, me: DomId) -> Result<OwnedFd, Errno> {
        self.store
            .as_mut()
            .ok_or(Errno::NODEV)?
            .connect(me)
            .map_err(errno)
    }

    /// Everything that was not given back, a line each.
    pub(super) fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        for (id, domain) in &self.domains {
            leaks.extend(domain.ports.list().map(|l| format!("domain {id}: {l}")));
            leaks.extend(domain.grants.list().map(|l| format!("domain {id}: {l}")));
        }
        for o in self.objects.values().filter(|o| o.what != What::Shared) {
            let pages = o.refs.len();
            leaks.push(format!(
                "domain {}: {pages} pages of domain {} mapped",
                o.domain, o.owner
            ));
        }
        leaks
    }
}
