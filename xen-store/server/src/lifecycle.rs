//! The creation and the end of domains.

use std::sync::Arc;

use xen_sys::DomId;

use crate::access::{Entry, Identity, Perms, owned_by};
use crate::daemon::{ConnId, Daemon, INTRODUCE_DOMAIN, RELEASE_DOMAIN};
use crate::nodes::home;
use crate::quota::Quota;
use crate::tree::Node;
use crate::view::{Outcome, View};
use xen_store::Access;

impl Daemon {
    /// Makes a domain as a toolstack does: its home `/local/domain/<id>`, which it may read, with
    /// its number in `domid`, and a node `data` in it, which the domain owns; then
    /// [`Daemon::introduce`]s it. Returns `false` if there is no such domain.
    pub fn add_domain(&mut self, domain: DomId) -> bool {
        if !self.introduce(domain) {
            return false;
        }
        let home = home(domain.as_u16().into());
        let reader = Entry {
            domain,
            access: Access::Read,
            stale: false,
        };
        let readable: Perms = owned_by(DomId::DOM0)
            .iter()
            .copied()
            .chain([reader])
            .collect();
        let made = self.as_daemon(|view| {
            for (path, value, perms) in [
                (home.clone(), String::new(), Perms::clone(&readable)),
                (format!("{home}/domid"), domain.to_string(), readable),
                (format!("{home}/data"), String::new(), owned_by(domain)),
            ] {
                if view.read(&path)?.is_none() {
                    view.create(&path, value.as_bytes())?;
                }
                if let Some(node) = view.read(&path)? {
                    let new = Node {
                        perms,
                        ..Node::clone(&node)
                    };
                    view.adjust_nodes(node.owner(), -1);
                    view.adjust_nodes(new.owner(), 1);
                    view.put(&path, new.clone())?;
                    view.fire(&path, false, Some(&new), Some(Arc::clone(&node.perms)))?;
                }
            }
            Ok(())
        });
        made.is_ok()
    }

    /// Serves `domain` from now on, as INTRODUCE does. `@introduceDomain` fires. If the domain was
    /// introduced before, the watches and transactions of its connections are reset instead; not
    /// those of domain 0, whose connections are sockets. Returns `false` if there is no such
    /// domain.
    pub fn introduce(&mut self, domain: DomId) -> bool {
        let generation = self.tree.generation();
        let Some(entry) = self.domains.find_or_add(domain, generation) else {
            return false;
        };
        if domain == DomId::DOM0 {
            return true;
        }
        if std::mem::replace(&mut entry.introduced, true) {
            self.connections_of(domain)
                .into_iter()
                .for_each(|conn| self.forget_state(conn));
        } else {
            entry.shutdown = false;
            self.fire_special(INTRODUCE_DOMAIN);
        }
        true
    }

    /// Removes a domain, as after RELEASE or its destruction: its nodes are removed, its
    /// connections closed, permissions given to it become void, and `@releaseDomain` fires if it
    /// was introduced. Domain 0 stays.
    pub fn release(&mut self, domain: DomId) {
        if domain == DomId::DOM0 {
            return;
        }
        let Some(introduced) = self.domains.get(domain).map(|entry| entry.introduced) else {
            return;
        };
        for conn in self.connections_of(domain) {
            self.forget_state(conn);
            if let Some(state) = self.conns.get_mut(&conn) {
                state.closing = true;
                self.dirty.insert(conn);
            }
        }
        for path in self.tree.owned_roots(domain.as_u16()) {
            if let Err(error) = self.as_daemon(|view| view.remove_tree(&path)) {
                tracing::error!(%path, %error, "orphaned node not removed");
            }
        }
        for perms in [&mut self.on_introduce, &mut self.on_release] {
            let keep = perms.iter().skip(1).filter(|entry| entry.domain != domain);
            let owner = perms.iter().take(1).map(|entry| {
                let owner = if entry.domain == domain {
                    DomId::DOM0
                } else {
                    entry.domain
                };
                Entry {
                    domain: owner,
                    ..*entry
                }
            });
            *perms = owner.chain(keep.copied()).collect();
        }
        self.domains.remove(domain);
        if introduced {
            self.fire_special(RELEASE_DOMAIN);
        }
    }

    /// Records that the domain shut down or crashed and still exists: `@releaseDomain` fires, once
    /// until RESUME.
    pub fn shutdown(&mut self, domain: DomId) {
        if let Some(entry) = self
            .domains
            .get_mut(domain)
            .filter(|entry| entry.introduced)
        {
            if !std::mem::replace(&mut entry.shutdown, true) {
                self.fire_special(RELEASE_DOMAIN);
            }
        }
    }

    /// Lets `domain` act with the permissions of `target`, as SET_TARGET does.
    pub fn set_target(&mut self, domain: DomId, target: DomId) {
        if let Some(entry) = self.domains.get_mut(domain) {
            entry.target = Some(target);
        }
    }

    /// Sets limits for `domain` alone; `None` restores those of all domains.
    pub fn set_quota(&mut self, domain: DomId, quota: Option<Quota>) {
        self.domains.add(domain, self.tree.generation()).quota = quota;
    }

    /// Closes all connections of `domain`, as an injected fault.
    pub fn drop_connections(&mut self, domain: DomId) {
        for conn in self.connections_of(domain) {
            if let Some(state) = self.conns.get_mut(&conn) {
                state.closing = true;
                self.dirty.insert(conn);
            }
        }
    }

    /// Returns whether `domain` is served.
    #[must_use]
    pub fn is_introduced(&self, domain: DomId) -> bool {
        self.domains
            .get(domain)
            .is_some_and(|entry| entry.introduced)
    }

    fn connections_of(&self, domain: DomId) -> Vec<ConnId> {
        let of = self
            .conns
            .iter()
            .filter(|(_, state)| state.domain == domain);
        of.map(|(conn, _)| *conn).collect()
    }

    fn fire_special(&mut self, name: &[u8]) {
        if let Some(perms) = self.special_perms(name).cloned() {
            self.announce(name, true, &[perms]);
        }
    }

    /// Changes nodes with the daemon's own rights.
    fn as_daemon<T>(&mut self, body: impl FnOnce(&mut View<'_>) -> Outcome<T>) -> Outcome<T> {
        let mut fires = Vec::new();
        let mut view = View {
            offers_any: false,
            tree: &mut self.tree,
            domains: &mut self.domains,
            quota: self.config.quota,
            who: Identity::DAEMON,
            tx: None,
            fires: &mut fires,
        };
        let outcome = body(&mut view);
        self.deliver(fires);
        outcome
    }
}
