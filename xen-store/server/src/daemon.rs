//! The daemon as a state machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use xen_sys::DomId;

use crate::access::{Identity, Need, NodeAccess, Perms, owned_by};
use crate::conn::Conn;
use crate::domain::{Domain, Domains, Oracle};
use crate::quota::Quota;
use crate::tree::{Node, Tree};
use crate::view::Fire;
use crate::watch::{WatchKey, Watches};
use xen_store::wire::TooLong;

pub(crate) const INTRODUCE_DOMAIN: &[u8] = b"@introduceDomain";
pub(crate) const RELEASE_DOMAIN: &[u8] = b"@releaseDomain";

/// Names a connection, uniquely in the life of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub(crate) u64);

/// The settings of a daemon.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub(crate) quota: Quota,
    pub(crate) extensions: bool,
    oracle: Option<Oracle>,
}

impl Config {
    /// Creates the settings of xenstored 4.17, with its default quotas.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the limits for all domains without their own.
    #[must_use]
    pub fn quota(mut self, quota: Quota) -> Self {
        self.quota = quota;
        self
    }

    /// Sets whether to offer features newer than 4.17: GET_FEATURE, SET_FEATURE, GET_QUOTA,
    /// SET_QUOTA, watches with a depth, and permissions for all domains. Off by default, so that
    /// they fail with `ENOSYS` or `EINVAL` as there.
    #[must_use]
    pub fn extensions(mut self, offer: bool) -> Self {
        self.extensions = offer;
        self
    }

    /// Calls `exists` for domains that were not added to the daemon. It is called while the daemon
    /// works on a request: it must not wait, nor call the daemon.
    #[must_use]
    pub fn domain_exists(mut self, exists: impl Fn(DomId) -> bool + Send + Sync + 'static) -> Self {
        self.oracle = Some(Oracle(Arc::new(exists)));
        self
    }
}

/// The sizes of a daemon's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections.
    pub connections: usize,
    /// Domains in its table, domain 0 included.
    pub domains: usize,
    /// Nodes, `/` included.
    pub nodes: usize,
    /// Watches of all connections.
    pub watches: usize,
    /// Transactions of all connections.
    pub transactions: usize,
}

/// The store daemon: bytes from connections in, bytes to connections out.
///
/// * [`Daemon::connect`] and [`Daemon::disconnect`] add and remove connections;
/// * [`Daemon::handle_input`] takes what was read, while [`Daemon::wants_input`] returns true;
/// * [`Daemon::poll_dirty`] names the connections to look at again: those with [`Daemon::output`]
///   to write (acknowledged by [`Daemon::handle_written`]) and those that [`Daemon::is_closing`].
#[derive(Debug)]
pub struct Daemon {
    pub(crate) config: Config,
    pub(crate) tree: Tree,
    pub(crate) domains: Domains,
    pub(crate) conns: BTreeMap<ConnId, Conn>,
    pub(crate) watches: Watches,
    pub(crate) dirty: BTreeSet<ConnId>,
    /// The watch that the current request set.
    pub(crate) granted: Option<WatchKey>,
    pub(crate) on_introduce: Perms,
    pub(crate) on_release: Perms,
    next_conn: u64,
}

impl Daemon {
    /// Creates a daemon with the initial store of xenstored: `/`, `/tool` and `/tool/xenstored`.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let nobody = owned_by(DomId::DOM0);
        let mut tree = Tree::default();
        for (path, child) in [
            ("/", Some("tool")),
            ("/tool", Some("xenstored")),
            ("/tool/xenstored", None),
        ] {
            let mut node = Node::new(b"", Arc::clone(&nobody));
            node.children.extend(child.map(Into::into));
            node.generation = tree.tick();
            tree.put(path, Arc::new(node));
        }
        let mut domains = Domains::new(config.oracle.clone());
        domains.adjust_nodes(0, 3);
        Self {
            config,
            tree,
            domains,
            conns: BTreeMap::new(),
            watches: Watches::default(),
            dirty: BTreeSet::new(),
            granted: None,
            on_introduce: Arc::clone(&nobody),
            on_release: nobody,
            next_conn: 1,
        }
    }

    /// Adds a connection from `domain`. Domain 0 may do everything.
    pub fn connect(&mut self, domain: DomId) -> ConnId {
        let id = ConnId(self.next_conn);
        self.next_conn += 1;
        self.domains.add(domain, self.tree.generation());
        self.conns.insert(id, Conn::new(domain));
        id
    }

    /// Removes a connection, with its watches and transactions.
    pub fn disconnect(&mut self, conn: ConnId) {
        self.forget_state(conn);
        self.conns.remove(&conn);
        self.dirty.remove(&conn);
    }

    /// Takes bytes that a connection sent.
    pub fn handle_input(&mut self, conn: ConnId, bytes: &[u8]) {
        if let Some(state) = self.conns.get_mut(&conn) {
            state.input.extend_from_slice(bytes);
            self.carry_out(conn);
        }
    }

    /// Returns whether more bytes of this connection should be read now: everything received was
    /// carried out, and the client reads its replies.
    #[must_use]
    pub fn wants_input(&self, conn: ConnId) -> bool {
        self.conns
            .get(&conn)
            .is_some_and(|state| !state.closing && state.input.is_empty() && state.has_room())
    }

    /// Returns the bytes to write to a connection next; empty if there are none.
    #[must_use]
    pub fn output(&mut self, conn: ConnId) -> &[u8] {
        self.conns
            .get_mut(&conn)
            .map(Conn::output)
            .unwrap_or_default()
    }

    /// Returns whether [`Daemon::output`] has something.
    #[must_use]
    pub fn has_output(&self, conn: ConnId) -> bool {
        self.conns.get(&conn).is_some_and(Conn::has_output)
    }

    /// Records that the first `count` bytes of [`Daemon::output`] are written. Requests that waited
    /// for room are carried out now.
    pub fn handle_written(&mut self, conn: ConnId, count: usize) {
        if let Some(state) = self.conns.get_mut(&conn) {
            state.handle_written(count);
            self.carry_out(conn);
        }
    }

    /// Returns whether the caller must close the connection and call [`Daemon::disconnect`]: it
    /// violated the protocol, or its domain was released.
    #[must_use]
    pub fn is_closing(&self, conn: ConnId) -> bool {
        self.conns.get(&conn).is_none_or(|state| state.closing)
    }

    /// Returns the connections whose state changed since the last call.
    #[must_use]
    pub fn poll_dirty(&mut self) -> Vec<ConnId> {
        std::mem::take(&mut self.dirty).into_iter().collect()
    }

    /// Returns the sizes of the daemon's tables.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            connections: self.conns.len(),
            domains: self.domains.len(),
            nodes: self.tree.len(),
            watches: self.watches.len(),
            transactions: self
                .conns
                .values()
                .map(|state| state.transactions.len())
                .sum(),
        }
    }
}

impl Daemon {
    /// Carries out what was received, as far as there is room for the replies.
    fn carry_out(&mut self, conn: ConnId) {
        let Some(state) = self.conns.get_mut(&conn) else {
            return;
        };
        let input = std::mem::take(&mut state.input);
        let mut rest = input.as_slice();
        while let Some(state) = self.conns.get_mut(&conn) {
            if state.closing || !state.has_room() {
                break;
            }
            match state.decoder.next(&mut rest) {
                Ok(Some(message)) => self.handle(conn, &message),
                Ok(None) => break,
                Err(TooLong { len }) => {
                    tracing::warn!(?conn, len, "payload too long, closing the connection");
                    state.closing = true;
                    self.dirty.insert(conn);
                }
            }
        }
        if let Some(state) = self.conns.get_mut(&conn) {
            state.input = rest.to_vec();
        }
    }

    /// Returns the identity of a connection.
    pub(crate) fn identity(&self, conn: ConnId) -> Identity {
        let domain = self
            .conns
            .get(&conn)
            .map_or(DomId::INVALID, |state| state.domain);
        Identity {
            domain,
            target: self.domains.get(domain).and_then(|entry| entry.target),
        }
    }

    pub(crate) fn quota_of(&self, domain: DomId) -> Quota {
        self.domains
            .get(domain)
            .and_then(|entry| entry.quota)
            .unwrap_or(self.config.quota)
    }

    /// Drops the watches and transactions of a connection.
    pub(crate) fn forget_state(&mut self, conn: ConnId) {
        let Some(state) = self.conns.get_mut(&conn) else {
            return;
        };
        let started = u32::try_from(state.transactions.len()).unwrap_or(u32::MAX);
        state.transactions.clear();
        let watches = std::mem::take(&mut state.watches);
        if let Some(entry) = self.domains.get_mut(state.domain) {
            entry.transactions = entry.transactions.saturating_sub(started);
        }
        watches.into_iter().for_each(|key| self.drop_watch(key));
    }

    pub(crate) fn drop_watch(&mut self, key: WatchKey) {
        let Some(watch) = self.watches.remove(key) else {
            return;
        };
        let Some(state) = self.conns.get_mut(&watch.conn) else {
            return;
        };
        state.watches.remove(&key);
        if let Some(Domain {
            watches, memory, ..
        }) = self.domains.get_mut(state.domain)
        {
            *watches = watches.saturating_sub(1);
            *memory -= i64::try_from(watch.path.len() + watch.token.len()).unwrap_or(0);
        }
    }

    /// Queues the events for these changes.
    pub(crate) fn deliver(&mut self, fires: Vec<Fire>) {
        for fire in fires {
            self.announce(fire.path.as_bytes(), fire.exact, &fire.readable);
        }
    }

    pub(crate) fn announce(&mut self, path: &[u8], exact: bool, readable: &[Perms]) {
        for key in self.watches.matching(path, exact) {
            let Some(watch) = self.watches.get(key) else {
                continue;
            };
            let who = self.identity(watch.conn);
            if !readable
                .iter()
                .any(|perms| NodeAccess::of(who, perms).allow(Need::Read))
            {
                continue;
            }
            if let Some(state) = self.conns.get_mut(&watch.conn) {
                state.queue_event(key, watch, path);
                self.dirty.insert(watch.conn);
            }
        }
    }

    /// Returns the permissions of a special event.
    pub(crate) fn special_perms(&mut self, name: &[u8]) -> Option<&mut Perms> {
        match name {
            INTRODUCE_DOMAIN => Some(&mut self.on_introduce),
            RELEASE_DOMAIN => Some(&mut self.on_release),
            _ => None,
        }
    }
}
