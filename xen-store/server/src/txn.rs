//! The reads and changes of one transaction.
//!
//! The first access to a node records its generation (or that it does not exist) and keeps a copy;
//! everything after that happens on the copy. A commit fails if any recorded generation is no
//! longer the node's: then another client changed what the transaction is built on. Parents looked
//! at on the way count too, so two transactions that create children of one node conflict.

use std::collections::HashMap;
use std::sync::Arc;

use crate::access::Perms;
use crate::tree::Node;

#[derive(Debug)]
pub(crate) struct Accessed {
    pub(crate) path: Arc<str>,
    /// The node's generation when it was first read; `None` if it did not exist.
    pub(crate) generation: Option<u64>,
    /// Its permissions then, for the watch event.
    pub(crate) perms: Option<Perms>,
    /// The node as the transaction sees it.
    pub(crate) now: Option<Arc<Node>>,
    pub(crate) modified: bool,
    /// Fire watches at commit; `true` for watches on exactly this path only.
    pub(crate) fire: Option<bool>,
}

#[derive(Debug, Default)]
pub(crate) struct Transaction {
    accessed: Vec<Accessed>,
    index: HashMap<Arc<str>, usize>,
    /// By how much the number of nodes of each owner changes.
    pub(crate) counts: HashMap<u16, i64>,
    pub(crate) created: bool,
    /// A request in it failed half way: it must not be committed.
    pub(crate) failed: bool,
}

impl Transaction {
    pub(crate) fn find(&mut self, path: &str) -> Option<&mut Accessed> {
        let at = *self.index.get(path)?;
        self.accessed.get_mut(at)
    }

    pub(crate) fn len(&self) -> usize {
        self.accessed.len()
    }

    /// Records the first access to a node.
    pub(crate) fn note(&mut self, path: &str, node: Option<Arc<Node>>) {
        let path: Arc<str> = path.into();
        self.index.insert(Arc::clone(&path), self.accessed.len());
        self.accessed.push(Accessed {
            path,
            generation: node.as_ref().map(|node| node.generation),
            perms: node.as_ref().map(|node| Arc::clone(&node.perms)),
            now: node,
            modified: false,
            fire: None,
        });
    }

    /// Fires watches on `path` at commit. One for all watches replaces one for exact watches,
    /// not the other way round.
    pub(crate) fn fire(&mut self, path: &str, exact: bool) {
        if let Some(accessed) = self.find(path) {
            accessed.fire = Some(accessed.fire.unwrap_or(true) && exact);
        }
    }

    pub(crate) fn count(&self, owner: u16) -> i64 {
        self.counts.get(&owner).copied().unwrap_or(0)
    }

    pub(crate) fn into_accessed(self) -> Vec<Accessed> {
        self.accessed
    }

    pub(crate) fn accessed(&self) -> &[Accessed] {
        &self.accessed
    }
}
