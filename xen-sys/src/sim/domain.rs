//! The whole state of the simulated host, and its changes; no thread, no socket read.
//!
//! Everything that must be given back is an *object* or a port, and belongs to a connection: a
//! process of a domain. When the connection ends, in whatever way, so does everything it had. A
//! domain's end is the end of all its connections.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::faults::{Faults, Op, Verdict};
use super::grants::Grants;
use super::hypercalls::Hypervisor;
use super::ports::{AllPorts, Bell, Bound, Ports, errno};
use super::{Limits, StoreServer};
use crate::{DomId, Port, Virq};

mod objects;

pub(super) use objects::Got;
use objects::{Object, What};

/// One domain.
#[derive(Debug)]
struct Domain {
    ports: Ports,
    grants: Grants,
    mapped_pages: usize,
    limits: Limits,
}

pub(super) struct State {
    domains: BTreeMap<DomId, Domain>,
    objects: HashMap<u64, Object>,
    next_object: u64,
    /// Connections and the domain of each, once its process has named it.
    connections: HashMap<u64, (Arc<OwnedFd>, Option<DomId>)>,
    next_connection: u64,
    pub(super) faults: Faults,
    pub(super) hypervisor: Hypervisor,
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
    /// Creates a host with only domain 0. Interposed bells are waited for in `set`, under the
    /// tokens `bell_token` makes of their numbers.
    pub(super) fn new(set: Arc<OwnedFd>, bell_token: fn(u64) -> u64) -> Self {
        let mut state = Self {
            domains: BTreeMap::new(),
            objects: HashMap::new(),
            next_object: 1,
            connections: HashMap::new(),
            next_connection: 1,
            faults: Faults::default(),
            hypervisor: Hypervisor::new(),
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
        self.hypervisor.created(id);
    }

    pub(super) fn domains(&self) -> Vec<DomId> {
        self.domains.keys().copied().collect()
    }

    pub(super) fn has_domain(&self, id: DomId) -> bool {
        self.domains.contains_key(&id)
    }

    /// Creates a domain: `id`, or the number after the highest there is. `EEXIST` or, for a
    /// reserved number, `EINVAL`.
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
            // Its unmap notifications are not performed: its kernel has ended too.
            self.objects
                .values_mut()
                .filter(|object| object.connection == connection)
                .for_each(Object::forget_notify);
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
        // Pages that other domains have mapped stay mapped until they unmap them: the memory lives
        // with their mappings.
        self.domains.remove(&id);
        self.hypervisor.destroyed(id);
        if let Some(store) = &mut self.store {
            store.domain_destroyed(id);
        }
        self.raise(Virq::DOM_EXC);
        Ok(())
    }

    /// Sends domain 0 a virtual interrupt.
    pub(super) fn raise(&mut self, virq: Virq) {
        if let Some(ports) = self.domains.ports(DomId::DOM0) {
            ports.raise(virq);
        }
    }

    /// Returns the binding of a port as `EVTCHNOP_status` does: the status, the union, and the
    /// remote port. `ESRCH` when there is no such domain.
    pub(super) fn port_status(&self, id: DomId, port: Port) -> Result<(u32, u32, Port), Errno> {
        let domain = self.domains.get(&id).ok_or(Errno::SRCH)?;
        Ok(domain.ports.status(port))
    }

    /// How many grants a domain has. `ESRCH` when there is no such domain.
    pub(super) fn grants(&self, id: DomId) -> Result<u32, Errno> {
        let domain = self.domains.get(&id).ok_or(Errno::SRCH)?;
        Ok(domain.grants.list().count() as u32)
    }

    pub(super) fn set_limits(&mut self, id: DomId, limits: Limits) -> Result<(), Errno> {
        self.domains.get_mut(&id).ok_or(Errno::SRCH)?.limits = limits;
        Ok(())
    }

    pub(super) fn limits(&self, id: DomId) -> Result<Limits, Errno> {
        Ok(self.domains.get(&id).ok_or(Errno::SRCH)?.limits)
    }

    /// Pages that processes of the domain have mapped.
    pub(super) fn mapped_pages(&self, id: DomId) -> Result<u32, Errno> {
        Ok(self.domains.get(&id).ok_or(Errno::SRCH)?.mapped_pages as u32)
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

    /// Handles the claim of a process about its domain; `None` asks for it. `EPERM` when it belongs
    /// to another.
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

    /// Handles the end of a process. Its pages are released first, then its ports, as the kernel
    /// does in effect: a notification keeps its port until it is performed.
    pub(super) fn disconnect(&mut self, connection: u64) {
        let Some((_, domain)) = self.connections.remove(&connection) else {
            return;
        };
        let of = |(&id, o): (&u64, &Object)| (o.connection == connection).then_some(id);
        let mut objects: Vec<u64> = self.objects.iter().filter_map(of).collect();
        objects.sort_unstable();
        for id in objects {
            // It is ours: this cannot fail.
            let _ = self.release(connection, id);
        }
        if let Some(domain) = domain {
            self.domains.unbind_all(domain, connection);
        }
    }

    /// Returns the fate of a request under the injected faults.
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

    pub(super) fn bind_virq(
        &mut self,
        connection: u64,
        me: DomId,
        virq: Virq,
    ) -> Result<Bound, Errno> {
        let limit = self.limits(me)?.ports;
        // No process waits at the second: what is sent through the port has no effect.
        let bells = [self.bell(me).map_err(errno)?, self.bell(me).map_err(errno)?];
        let ports = self.domains.ports(me).ok_or(Errno::SRCH)?;
        ports.bind_virq(connection, limit, virq, bells)
    }

    pub(super) fn unbind(&mut self, connection: u64, me: DomId, port: Port) -> Result<(), Errno> {
        self.domains.unbind(me, connection, port)
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
            let pages = o.frames.len();
            leaks.push(format!(
                "domain {}: {pages} pages of domain {} mapped",
                o.domain, o.owner
            ));
        }
        leaks.extend(self.hypervisor.leaks());
        leaks
    }
}
