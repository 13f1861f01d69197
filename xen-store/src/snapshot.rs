//! A part of the tree: its paths (a walk), or its nodes with values and permissions (a snapshot).
//!
//! Both are plans of [`batch`](crate::batch): the requests about many nodes are in flight together,
//! breadth first. A daemon that invents nodes without end is stopped at [`MAX_TREE`].

use std::collections::{BTreeMap, VecDeque};
use std::mem::size_of;

use crate::batch::Plan;
use crate::error::{Error, Result};
use crate::path::{self, StorePath};
use crate::perms::{Perm, Permissions};
use crate::request::{Directory, Encoded, GetPermissions, Read, Request, names};
use crate::wire::MsgType;

/// Limit of a walk or a snapshot in bytes: its paths, values and permissions, and 64 for each node.
pub const MAX_TREE: usize = 64 << 20;
/// Bytes counted for a node beside its path, value and permissions.
const NODE: usize = 64;

/// Everything at and below a node, as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    nodes: BTreeMap<String, Node>,
}

/// A node of a [`Snapshot`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The value; `None` without the right to read the node.
    pub value: Option<Vec<u8>>,
    /// The permissions; `None` without the right to read the node.
    pub permissions: Option<Permissions>,
}

/// A difference between two snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// Only the later snapshot has the node.
    Added {
        /// Its path.
        path: &'a str,
        /// The node.
        node: &'a Node,
    },
    /// Only the earlier snapshot has the node.
    Removed {
        /// Its path.
        path: &'a str,
        /// The node.
        node: &'a Node,
    },
    /// The value, the permissions or both differ.
    Changed {
        /// Its path.
        path: &'a str,
        /// The node in the earlier snapshot.
        before: &'a Node,
        /// The node in the later snapshot.
        after: &'a Node,
    },
}

impl Snapshot {
    /// Returns the node at `path`, which must be written as the snapshot's paths are: absolute or
    /// relative.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// Returns all nodes with their paths, in the order of the paths' bytes.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Returns the number of nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns whether there is no node.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Returns what changed from this snapshot to `later`, in the order of the paths' bytes.
    #[must_use]
    pub fn diff<'a>(&'a self, later: &'a Self) -> Vec<Change<'a>> {
        let mut changes = Vec::new();
        for (path, before) in self.iter() {
            match later.get(path) {
                Some(after) if after == before => {}
                Some(after) => changes.push(Change::Changed {
                    path,
                    before,
                    after,
                }),
                None => changes.push(Change::Removed { path, node: before }),
            }
        }
        let added = later.iter().filter(|(path, _)| self.get(path).is_none());
        changes.extend(added.map(|(path, node)| Change::Added { path, node }));
        changes.sort_by_key(Change::path);
        changes
    }
}

/// Makes a snapshot of nodes with their paths from another source, such as a file.
impl FromIterator<(String, Node)> for Snapshot {
    fn from_iter<I: IntoIterator<Item = (String, Node)>>(nodes: I) -> Self {
        Self {
            nodes: nodes.into_iter().collect(),
        }
    }
}

impl<'a> Change<'a> {
    /// Returns the path of the node.
    #[must_use]
    pub fn path(&self) -> &'a str {
        match self {
            Self::Added { path, .. } | Self::Removed { path, .. } | Self::Changed { path, .. } => {
                path
            }
        }
    }
}

/// A question about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Children,
    Value,
    Permissions,
}

#[derive(Debug)]
struct Found {
    path: String,
    level: u32,
    node: Node,
    /// It was removed while the tree was read, and with it all below it.
    is_gone: bool,
}

/// The plan of a walk or a snapshot: nodes are found through the lists of children, and requested
/// in the order in which they are found.
#[derive(Debug)]
pub(crate) struct Tree<T> {
    found: Vec<Found>,
    /// Questions about a node found, in their order.
    questions: VecDeque<(usize, Question)>,
    depth: u32,
    with_nodes: bool,
    /// Bytes taken.
    size: usize,
    failure: Option<Error>,
    /// Makes the result from the nodes that were found.
    collect: fn(Vec<Found>) -> T,
}

impl Tree<Vec<String>> {
    /// Plans the paths of a node and of all nodes at most `depth` levels below it.
    pub(crate) fn walk(path: &str, depth: u32) -> Self {
        Self::new(path, depth, false, |mut found| {
            found.sort_by(|a, b| (a.level, &a.path).cmp(&(b.level, &b.path)));
            found.into_iter().map(|found| found.path).collect()
        })
    }
}

impl Tree<Snapshot> {
    /// Plans a snapshot of a node and all below it.
    pub(crate) fn snapshot(path: &str) -> Self {
        Self::new(path, u32::MAX, true, |found| Snapshot {
            nodes: found
                .into_iter()
                .map(|found| (found.path, found.node))
                .collect(),
        })
    }
}

impl<T> Tree<T> {
    fn new(path: &str, depth: u32, with_nodes: bool, collect: fn(Vec<Found>) -> T) -> Self {
        let mut tree = Self {
            found: Vec::new(),
            questions: VecDeque::new(),
            depth,
            with_nodes,
            size: 0,
            failure: None,
            collect,
        };
        match StorePath::new(path) {
            Ok(path) => {
                tree.add(path.as_str().to_owned(), 0);
            }
            Err(invalid) => tree.failure = Some(invalid.into()),
        }
        tree
    }

    /// Adds a node and the questions about it. Returns whether the tree is within its limit.
    fn add(&mut self, path: String, level: u32) -> bool {
        if !self.take(NODE + path.len()) {
            return false;
        }
        let at = self.found.len();
        if self.with_nodes {
            self.questions.push_back((at, Question::Value));
            self.questions.push_back((at, Question::Permissions));
        }
        // A walk of depth 0 still checks that its one node exists.
        if level < self.depth || at == 0 {
            self.questions.push_back((at, Question::Children));
        }
        self.found.push(Found {
            path,
            level,
            node: Node::default(),
            is_gone: false,
        });
        true
    }

    /// Counts bytes. Returns whether the tree is within its limit.
    fn take(&mut self, bytes: usize) -> bool {
        self.size = self.size.saturating_add(bytes);
        if self.size > MAX_TREE && self.failure.is_none() {
            self.failure = Some(Error::TooLarge { limit: MAX_TREE });
        }
        self.failure.is_none()
    }

    fn try_handle(&mut self, at: usize, question: Question, answer: Result<Vec<u8>>) -> Result<()> {
        let Some(found) = self.found.get_mut(at) else {
            return Ok(());
        };
        let answer = match answer {
            Err(error) if error.is_not_found() && at != 0 => {
                found.is_gone = true;
                return Ok(());
            }
            Err(error) if error.is_denied() && at != 0 => return Ok(()),
            answer => answer,
        };
        let path = &found.path;
        match question {
            Question::Value => {
                let value = Read { path }.decode(answer)?;
                let bytes = value.len();
                found.node.value = Some(value);
                self.take(bytes);
            }
            Question::Permissions => {
                let permissions = GetPermissions { path }.decode(answer)?;
                let bytes = permissions
                    .entries()
                    .len()
                    .saturating_mul(size_of::<Perm>());
                found.node.permissions = Some(permissions);
                self.take(bytes);
            }
            Question::Children => {
                let (list, base) = (answer?, path.clone());
                // A node that was removed and created again while the tree was read is left out
                // with all below it.
                let is_wanted = found.level < self.depth && !found.is_gone;
                let level = found.level.saturating_add(1);
                // One name at a time: the list alone may be as long as the limit of the tree.
                for name in names(&list) {
                    let path = child(&base, name?)?;
                    if is_wanted && !self.add(path, level) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Returns the path of a child. The daemon chooses the name.
fn child(base: &str, name: &str) -> Result<String> {
    let malformed = || Error::Malformed {
        op: MsgType::DIRECTORY,
    };
    if name.is_empty() || name.contains('/') {
        return Err(malformed());
    }
    path::join(base, name).map_err(|_| malformed())
}

impl<T> Plan for Tree<T> {
    type Output = Result<T>;

    fn paths(&self) -> Vec<String> {
        let root = self.found.first();
        root.map(|root| root.path.clone()).into_iter().collect()
    }

    fn refuse(&mut self, error: &Error) {
        self.failure.get_or_insert_with(|| error.clone());
    }

    fn poll_request(&mut self) -> Option<(usize, Encoded)> {
        if self.failure.is_some() {
            return None;
        }
        let (at, question) = self.questions.pop_front()?;
        let path = &self.found.get(at)?.path;
        let encoded = match question {
            Question::Children => Directory { path }.encode(),
            Question::Value => Read { path }.encode(),
            Question::Permissions => GetPermissions { path }.encode(),
        };
        match encoded {
            Ok(message) => Some((at * 3 + question as usize, message)),
            Err(error) => {
                self.failure = Some(error);
                None
            }
        }
    }

    fn handle_answer(&mut self, number: usize, answer: Result<Vec<u8>>) {
        if self.failure.is_some() {
            return;
        }
        let question = match number % 3 {
            0 => Question::Children,
            1 => Question::Value,
            _ => Question::Permissions,
        };
        if let Err(error) = self.try_handle(number / 3, question, answer) {
            self.failure.get_or_insert(error);
        }
    }

    fn finish(self) -> Result<T> {
        match self.failure {
            Some(error) => Err(error),
            None => {
                let found = self.found.into_iter().filter(|found| !found.is_gone);
                Ok((self.collect)(found.collect()))
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    // The lint exempts test functions, but not the helpers beside them.
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::error::XsError;

    /// Carries `tree` out with the answers that `daemon` gives to each request and its path.
    /// Returns the result and the number of requests.
    fn carry_out<T>(
        mut tree: Tree<T>,
        mut daemon: impl FnMut(MsgType, &str) -> Result<Vec<u8>>,
    ) -> (Result<T>, usize) {
        let mut requests = 0;
        while let Some((number, request)) = tree.poll_request() {
            requests += 1;
            let path = request.payload().strip_suffix(b"\0").unwrap();
            let answer = daemon(request.kind(), std::str::from_utf8(path).unwrap());
            tree.handle_answer(number, answer);
        }
        (tree.finish(), requests)
    }

    /// The nodes are few enough; their values are too large.
    #[test]
    fn the_limit_of_a_tree_counts_values_and_permissions() {
        // Most of the limit is used up already: a test of all of it takes seconds.
        const LEFT: usize = 1 << 20;
        let value = vec![b'v'; 4096];
        let permissions = format!("n0\0{}", "r1\0".repeat(1300)).into_bytes();
        let entries = 1301 * size_of::<Perm>();
        for (value, permissions, size) in [
            (&value[..], &b"n0\0"[..], value.len()),
            (b"", &permissions, entries),
        ] {
            let mut tree = Tree::snapshot("/");
            tree.size = MAX_TREE - LEFT;
            let (tree, requests) = carry_out(tree, |kind, _| {
                Ok(match kind {
                    MsgType::READ => value.to_vec(),
                    MsgType::GET_PERMS => permissions.to_vec(),
                    _ => b"a\0b\0".to_vec(),
                })
            });
            assert!(matches!(tree, Err(Error::TooLarge { limit: MAX_TREE })));
            let most = LEFT / size + 1;
            assert!(requests <= 3 * most, "{requests} requests");
        }
    }

    /// The names are not all copied out of the list together: each would need more memory than its
    /// text.
    #[test]
    fn a_list_is_read_up_to_the_limit_of_the_tree() {
        let mut list = b"a\0".repeat(MAX_TREE / NODE);
        list.extend_from_slice(b"\xff\0");
        let (tree, requests) = carry_out(Tree::walk("/", 1), |_, _| Ok(list.clone()));
        assert!(matches!(tree, Err(Error::TooLarge { .. })), "{tree:?}");
        assert_eq!(requests, 1);
    }

    #[test]
    fn a_node_that_is_created_again_is_left_out_with_all_below_it() {
        let (tree, _) = carry_out(Tree::snapshot("/r"), |kind, path| match (kind, path) {
            (MsgType::READ, "/r/again") => Err(Error::Daemon {
                op: kind,
                code: XsError::ENOENT,
            }),
            (MsgType::READ, _) => Ok(Vec::new()),
            (MsgType::GET_PERMS, _) => Ok(b"n0\0".to_vec()),
            (_, "/r") => Ok(b"again\0other\0".to_vec()),
            (_, "/r/again") => Ok(b"below\0".to_vec()),
            _ => Ok(Vec::new()),
        });
        let tree = tree.unwrap();
        let paths: Vec<&str> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["/r", "/r/other"]);
    }
}
