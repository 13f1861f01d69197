//! The nodes, by path.
//!
//! A flat table, so that finding a node costs the same at any depth. A node lists its children by
//! name in the order of their creation; the list is part of the node, so adding a child changes the
//! parent.

use std::collections::HashMap;
use std::sync::Arc;

use crate::access::Perms;

/// Bytes that xenstored accounts for a record's header, and for one permission entry.
const HEADER_COST: usize = 24;
const PERM_COST: usize = 8;

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Arc<[u8]>,
    pub(crate) perms: Perms,
    pub(crate) children: Vec<Arc<str>>,
    /// When it last changed, in ticks of [`Tree::generation`].
    pub(crate) generation: u64,
}

impl Node {
    pub(crate) fn new(value: &[u8], perms: Perms) -> Self {
        Self {
            value: value.into(),
            perms,
            children: Vec::new(),
            generation: 0,
        }
    }

    /// The owner's entry is the first; every node has one.
    pub(crate) fn owner(&self) -> u16 {
        self.perms.first().map_or(0, |entry| entry.domain.as_u16())
    }

    /// The child names, each with a NUL, as DIRECTORY sends them.
    pub(crate) fn child_list(&self) -> Vec<u8> {
        let mut list = Vec::with_capacity(self.child_bytes());
        for child in &self.children {
            list.extend_from_slice(child.as_bytes());
            list.push(0);
        }
        list
    }

    pub(crate) fn child_bytes(&self) -> usize {
        self.children.iter().map(|child| child.len() + 1).sum()
    }

    /// Returns its size as the quotas count it.
    pub(crate) fn size(&self) -> usize {
        HEADER_COST + PERM_COST * self.perms.len() + self.value.len() + self.child_bytes()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Tree {
    nodes: HashMap<Arc<str>, Arc<Node>>,
    generation: u64,
}

impl Tree {
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn tick(&mut self) -> u64 {
        self.generation += 1;
        self.generation
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Arc<Node>> {
        self.nodes.get(path)
    }

    pub(crate) fn put(&mut self, path: &str, node: Arc<Node>) {
        match self.nodes.get_mut(path) {
            Some(slot) => *slot = node,
            None => {
                self.nodes.insert(path.into(), node);
            }
        }
    }

    pub(crate) fn take(&mut self, path: &str) {
        self.nodes.remove(path);
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns the topmost nodes that `domain` owns: none of them is below another. They are in the
    /// order of the lists of children, in which xenstored removes them. The root stays, whoever
    /// owns it.
    pub(crate) fn owned_roots(&self, domain: u16) -> Vec<String> {
        let (mut roots, mut todo) = (Vec::new(), vec!["/".to_owned()]);
        while let Some(path) = todo.pop() {
            match self.get(&path) {
                Some(node) if node.owner() == domain && path != "/" => roots.push(path),
                Some(node) => {
                    let children = node.children.iter().rev();
                    todo.extend(children.map(|child| child_path(&path, child)));
                }
                None => {}
            }
        }
        roots
    }

    /// Returns the first violated rule of the tree, for tests and for CONTROL `check`.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (path, node) in &self.nodes {
            if &**path != "/" {
                let parent = self
                    .get(parent(path))
                    .ok_or(format!("{path} has no parent"))?;
                let count = parent
                    .children
                    .iter()
                    .filter(|name| &***name == base(path))
                    .count();
                if count != 1 {
                    return Err(format!("{path} is listed {count} times in its parent"));
                }
            }
            for child in &node.children {
                if self.get(&child_path(path, child)).is_none() {
                    return Err(format!("{path} lists {child}, which does not exist"));
                }
            }
            if node.perms.is_empty() {
                return Err(format!("{path} has no owner"));
            }
        }
        Ok(())
    }
}

/// The path one level up; `/` for `/`.
pub(crate) fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &path[..at],
    }
}

/// The last component.
pub(crate) fn base(path: &str) -> &str {
    path.rfind('/').map_or(path, |at| &path[at + 1..])
}

/// All paths strictly above `path`, nearest first, ending in `/`.
pub(crate) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let first = (path != "/").then(|| parent(path));
    std::iter::successors(first, |path| (*path != "/").then(|| parent(path)))
}

pub(crate) fn child_path(path: &str, child: &str) -> String {
    if path == "/" {
        format!("/{child}")
    } else {
        format!("{path}/{child}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_come_apart() {
        assert_eq!((parent("/a/b"), base("/a/b")), ("/a", "b"));
        assert_eq!((parent("/a"), base("/a")), ("/", "a"));
        assert_eq!(parent("/"), "/");
        assert_eq!(ancestors("/a/b/c").collect::<Vec<_>>(), ["/a/b", "/a", "/"]);
        assert_eq!(ancestors("/").count(), 0);
        assert_eq!(child_path("/", "a"), "/a");
        assert_eq!(child_path("/a", "b"), "/a/b");
    }
}
