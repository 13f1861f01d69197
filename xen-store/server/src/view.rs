//! The store of one request: the tree, or a transaction's version of it.
//!
//! All reads and changes of nodes use this module, so no operation can omit accounting, conflict
//! tracking or watch events.

use std::sync::Arc;

use crate::access::{Entry, Identity, Need, NodeAccess, Perms};
use crate::domain::Domains;
use crate::quota::{Quota, exceeded, reached};
use crate::tree::{Node, Tree, ancestors, base, child_path, parent};
use crate::txn::Transaction;
use xen_store::XsError;
use xen_sys::DomId;

pub(crate) type Outcome<T> = Result<T, XsError>;

/// A change of which watches must be notified.
#[derive(Debug)]
pub(crate) struct Fire {
    pub(crate) path: Arc<str>,
    /// For watches on exactly this path only.
    pub(crate) exact: bool,
    /// A domain that may read under any of these lists receives the event.
    pub(crate) readable: Vec<Perms>,
}

#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) tree: &'a mut Tree,
    pub(crate) domains: &'a mut Domains,
    pub(crate) quota: Quota,
    pub(crate) who: Identity,
    /// Entries of `DomId::ANY` that it writes count.
    pub(crate) offers_any: bool,
    pub(crate) tx: Option<&'a mut Transaction>,
    pub(crate) fires: &'a mut Vec<Fire>,
}

impl View<'_> {
    /// Returns the node at `path`, or that there is none; recorded in the transaction.
    pub(crate) fn read(&mut self, path: &str) -> Outcome<Option<Arc<Node>>> {
        if let Some(accessed) = self.tx.as_mut().and_then(|tx| tx.find(path)) {
            return Ok(accessed.now.clone());
        }
        let node = self.tree.get(path).map(|node| self.without_stale(node));
        if let Some(tx) = self.tx.as_mut() {
            let full = reached(tx.len() as u64, self.quota.transaction_nodes);
            if full && !self.who.is_privileged() {
                tx.failed = true;
                return Err(XsError::ENOSPC);
            }
            tx.note(path, node.clone());
        }
        Ok(node)
    }

    /// Returns the node at `path` if the request may use it in this way.
    ///
    /// A domain that may not see the node must not be informed whether it exists: then the nearest
    /// node above decides between `ENOENT` and `EACCES`.
    pub(crate) fn get(&mut self, path: &str, need: Need) -> Outcome<Arc<Node>> {
        let error = match self.read(path)? {
            Some(node) if NodeAccess::of(self.who, &node.perms).allow(need) => return Ok(node),
            Some(_) => XsError::EACCES,
            None => XsError::ENOENT,
        };
        for above in ancestors(path) {
            if let Some(node) = self.read(above)? {
                let told = NodeAccess::of(self.who, &node.perms).allow_part(need);
                return Err(if told { error } else { XsError::EACCES });
            }
        }
        Err(XsError::EACCES)
    }

    /// Replaces a node that exists or is being created, within the quotas.
    pub(crate) fn write(&mut self, path: &str, node: Node) -> Outcome<()> {
        self.admit_or_fail(path, &node)?;
        self.put(path, node)
    }

    /// Replaces a node without checking the quotas, for changes that only make it smaller.
    pub(crate) fn put(&mut self, path: &str, mut node: Node) -> Outcome<()> {
        node.generation = self.tree.tick();
        let node = Arc::new(node);
        if self.tx.is_some() {
            self.read(path)?;
        }
        match self.tx.as_mut().and_then(|tx| tx.find(path)) {
            Some(accessed) => {
                accessed.now = Some(node);
                accessed.modified = true;
            }
            None => self.put_global(path, node),
        }
        Ok(())
    }

    /// Removes a node; the caller must update its parent's list.
    pub(crate) fn erase(&mut self, path: &str) -> Outcome<()> {
        self.tree.tick();
        if self.tx.is_some() {
            self.read(path)?;
        }
        match self.tx.as_mut().and_then(|tx| tx.find(path)) {
            Some(accessed) => {
                accessed.now = None;
                accessed.modified = true;
            }
            None => self.erase_global(path),
        }
        Ok(())
    }

    /// Creates the missing nodes down to `path`, which gets `value`.
    ///
    /// The quotas are checked in xenstored's order, from the lowest node up. If one refuses any
    /// node, except for the number of nodes at the lowest, the transaction cannot be committed:
    /// xenstored has written some of the nodes by then.
    pub(crate) fn create(&mut self, path: &str, value: &[u8]) -> Outcome<Arc<Node>> {
        let mut missing = vec![path];
        let mut above = parent(path);
        let mut top = loop {
            match self.read(above)? {
                Some(node) => break Node::clone(&node),
                None if above == "/" => return Err(XsError::ENOENT),
                None => missing.push(above),
            }
            above = parent(above);
        };
        if let Some(tx) = self.tx.as_mut() {
            tx.created = true;
        }
        let perms = self.inherited(&top.perms);
        let mut nodes: Vec<Node> = Vec::with_capacity(missing.len());
        for (level, path) in missing.iter().enumerate() {
            let mut node = Node::new(if level == 0 { value } else { b"" }, Arc::clone(&perms));
            if let Some(child) = level.checked_sub(1).and_then(|below| missing.get(below)) {
                node.children.push(base(child).into());
            }
            if !self.may_own_more(level) {
                self.fail_transaction(level > 0);
                return Err(XsError::ENOSPC);
            }
            self.admit_or_fail(path, &node)?;
            nodes.push(node);
        }
        if let Some(child) = missing.last() {
            top.children.push(base(child).into());
        }
        self.admit_or_fail(above, &top)?;
        let owner = perms.first().map_or(0, |entry| entry.domain.as_u16());
        let added = i64::try_from(missing.len()).unwrap_or(i64::MAX);
        for (path, node) in missing.iter().zip(nodes) {
            self.put(path, node)?;
        }
        self.put(above, top)?;
        self.adjust_nodes(owner, added);
        self.read(path)?.ok_or(XsError::EIO)
    }

    /// Removes `path` and everything below it. The events are in the order deepest first.
    ///
    /// In a transaction a list of children may be older or newer than the transaction's copies of
    /// the children. Then this fails with `EIO`, as xenstored does, and the nodes before are
    /// removed. Such a transaction cannot be committed: another client has changed the list.
    pub(crate) fn remove_tree(&mut self, path: &str) -> Outcome<()> {
        let above = parent(path);
        let mut top = Node::clone(&*self.read(above)?.ok_or(XsError::EINVAL)?);
        let first = self.read(path)?.ok_or(XsError::EIO)?;
        // The nodes on the way down, each with the number of its children that are removed.
        let mut way = vec![(path.to_owned(), first, 0)];
        while let Some((at, node, removed)) = way.last_mut() {
            if let Some(child) = node.children.get(*removed) {
                *removed += 1;
                let child = child_path(at, child);
                let node = self.read(&child)?.ok_or(XsError::EIO)?;
                way.push((child, node, 0));
            } else if let Some((at, node, _)) = way.pop() {
                self.fire(&at, at != path, Some(&node), None)?;
                self.erase(&at)?;
                self.adjust_nodes(node.owner(), -1);
            }
        }
        if !top.children.iter().any(|child| &**child == base(path)) {
            return Err(XsError::EIO);
        }
        top.children.retain(|child| &**child != base(path));
        self.put(above, top)
    }

    /// Notifies watches of a change at `path`; `node` is what is there, `old` the permissions it
    /// had before. In a transaction the notification waits for the commit.
    pub(crate) fn fire(
        &mut self,
        path: &str,
        exact: bool,
        node: Option<&Node>,
        old: Option<Perms>,
    ) -> Outcome<()> {
        if let Some(tx) = self.tx.as_mut() {
            tx.fire(path, exact);
            return Ok(());
        }
        let mut readable: Vec<Perms> = old.into_iter().collect();
        if let Some(node) = node {
            readable.push(Arc::clone(&node.perms));
            if let Some(above) = self
                .tree
                .get(parent(path))
                .map(|node| self.without_stale(node))
            {
                readable.push(Arc::clone(&above.perms));
            }
        }
        self.fires.push(Fire {
            path: path.into(),
            exact,
            readable,
        });
        Ok(())
    }

    pub(crate) fn adjust_nodes(&mut self, owner: u16, by: i64) {
        match self.tx.as_mut() {
            Some(tx) => *tx.counts.entry(owner).or_insert(0) += by,
            None => self.domains.adjust_nodes(owner, by),
        }
    }

    /// Carries out a transaction.
    pub(crate) fn commit(&mut self, transaction: Transaction) -> Outcome<()> {
        if transaction.failed {
            return Err(XsError::ENOMEM);
        }
        if transaction.created && !self.who.is_privileged() {
            for (&owner, &by) in &transaction.counts {
                let used = self.nodes_of(owner).saturating_add(by);
                if reached(u64::try_from(used).unwrap_or(0), self.quota.nodes) {
                    return Err(XsError::ENOSPC);
                }
            }
        }
        for accessed in transaction.accessed() {
            let now = self.tree.get(&accessed.path).map(|node| node.generation);
            if now != accessed.generation {
                return Err(XsError::EAGAIN);
            }
        }
        for (&owner, &by) in &transaction.counts {
            self.domains.adjust_nodes(owner, by);
        }
        for accessed in transaction
            .into_accessed()
            .into_iter()
            .filter(|node| node.modified)
        {
            match accessed.now {
                Some(node) => {
                    let generation = self.tree.tick();
                    let node = Node {
                        generation,
                        ..Node::clone(&node)
                    };
                    self.put_global(&accessed.path, Arc::new(node));
                }
                None => self.erase_global(&accessed.path),
            }
            if let Some(exact) = accessed.fire {
                let node = self.tree.get(&accessed.path).cloned();
                self.fire(&accessed.path, exact, node.as_deref(), accessed.perms)?;
            }
        }
        Ok(())
    }

    fn put_global(&mut self, path: &str, node: Arc<Node>) {
        self.account(path, -1);
        self.tree.put(path, node);
        self.account(path, 1);
    }

    fn erase_global(&mut self, path: &str) {
        self.account(path, -1);
        self.tree.take(path);
    }

    /// Adds (`1`) or subtracts (`-1`) the memory of the node now at `path`.
    fn account(&mut self, path: &str, sign: i64) {
        if let Some(node) = self.tree.get(path) {
            let size = i64::try_from(node.size() + path.len()).unwrap_or(i64::MAX);
            self.domains.adjust_memory(node.owner(), sign * size);
        }
    }

    /// As `admit`; a transaction in which a write fails cannot be committed.
    fn admit_or_fail(&mut self, path: &str, node: &Node) -> Outcome<()> {
        let admitted = self.admit(path, node);
        self.fail_transaction(admitted.is_err());
        admitted
    }

    /// If `failed`, the transaction cannot be committed.
    fn fail_transaction(&mut self, failed: bool) {
        if let Some(tx) = self.tx.as_mut() {
            tx.failed |= failed;
        }
    }

    /// Returns whether the requester may own `new` more nodes.
    fn may_own_more(&self, new: usize) -> bool {
        let used = self.nodes_of(self.who.domain.as_u16());
        let used = u64::try_from(used).unwrap_or(0).saturating_add(new as u64);
        self.who.is_privileged() || !reached(used, self.quota.nodes)
    }

    /// Whether the quotas let the request write this node.
    fn admit(&self, path: &str, node: &Node) -> Outcome<()> {
        if self.who.is_privileged() {
            return Ok(());
        }
        if reached(node.size() as u64, self.quota.node_size) {
            return Err(XsError::ENOSPC);
        }
        let used = self
            .domains
            .get(self.who.domain)
            .map_or(0, |domain| domain.memory);
        let used = u64::try_from(used)
            .unwrap_or(0)
            .saturating_add((node.size() + path.len()) as u64);
        if exceeded(used, self.quota.memory) {
            return Err(XsError::ENOMEM);
        }
        Ok(())
    }

    /// Returns how many nodes `owner` has, including the changes of this request's transaction.
    fn nodes_of(&self, owner: u16) -> i64 {
        let committed = self.domains.get(DomId::new(owner)).map_or(0, |d| d.nodes);
        committed + self.tx.as_ref().map_or(0, |tx| tx.count(owner))
    }

    /// The permissions of a new node below one with `perms`: the same, but unprivileged domains
    /// own what they create.
    fn inherited(&self, perms: &Perms) -> Perms {
        let mut entries: Vec<Entry> = perms.to_vec();
        if let (false, Some(first)) = (self.who.is_privileged(), entries.first_mut()) {
            first.domain = self.who.domain;
        }
        entries.into()
    }

    /// `node` with the entries marked whose domain is no longer the one they were written for.
    fn without_stale(&self, node: &Arc<Node>) -> Arc<Node> {
        let outdated = |entry: &Entry| {
            !entry.stale
                && entry.domain != DomId::ANY
                && !self.domains.is_current(entry.domain, node.generation)
        };
        if !node.perms.iter().skip(1).any(outdated) {
            return Arc::clone(node);
        }
        let mark = |(at, entry): (usize, &Entry)| Entry {
            stale: entry.stale || (at > 0 && outdated(entry)),
            ..*entry
        };
        let perms = node.perms.iter().enumerate().map(mark).collect();
        Arc::new(Node {
            perms,
            ..Node::clone(node)
        })
    }
}
