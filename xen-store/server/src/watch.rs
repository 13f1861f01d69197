//! The watches of all connections, and which of them a change notifies.
//!
//! They are indexed by path, so a change costs a look-up per path component and not one per
//! watch: a thousand domains with ten watches each do not slow each other down.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::ConnId;

/// Names a watch, uniquely in the life of the daemon.
pub(crate) type WatchKey = u64;

#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) conn: ConnId,
    /// Absolute, or beginning with `@`.
    pub(crate) path: Arc<[u8]>,
    pub(crate) token: Arc<[u8]>,
    /// How much of an event's path is left out, because the watch was set by a relative one.
    pub(crate) strip: usize,
    /// How many levels below its path are watched; all if `None`.
    pub(crate) depth: Option<u32>,
}

impl Watch {
    /// Returns the event's path in the form in which the watcher named its own.
    pub(crate) fn shown<'a>(&self, path: &'a [u8]) -> &'a [u8] {
        path.get(self.strip..).unwrap_or_default()
    }

    fn reaches(&self, path: &[u8]) -> bool {
        let below = path.get(self.path.len()..).unwrap_or_default();
        let levels = below.iter().filter(|&&byte| byte == b'/').count();
        let levels = if &*self.path == b"/" && path != b"/" {
            levels + 1
        } else {
            levels
        };
        self.depth.is_none_or(|depth| levels <= depth as usize)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Watches {
    all: BTreeMap<WatchKey, Watch>,
    by_path: HashMap<Arc<[u8]>, Vec<WatchKey>>,
    next: WatchKey,
}

impl Watches {
    pub(crate) fn add(&mut self, watch: Watch) -> WatchKey {
        let key = self.next;
        self.next += 1;
        self.by_path
            .entry(Arc::clone(&watch.path))
            .or_default()
            .push(key);
        self.all.insert(key, watch);
        key
    }

    pub(crate) fn get(&self, key: WatchKey) -> Option<&Watch> {
        self.all.get(&key)
    }

    pub(crate) fn find(&self, conn: ConnId, path: &[u8], token: &[u8]) -> Option<WatchKey> {
        let same = |key: &&WatchKey| {
            self.get(**key)
                .is_some_and(|watch| watch.conn == conn && *watch.token == *token)
        };
        self.by_path.get(path)?.iter().find(same).copied()
    }

    pub(crate) fn remove(&mut self, key: WatchKey) -> Option<Watch> {
        let watch = self.all.remove(&key)?;
        if let Some(keys) = self.by_path.get_mut(&watch.path) {
            keys.retain(|&other| other != key);
            if keys.is_empty() {
                self.by_path.remove(&watch.path);
            }
        }
        Some(watch)
    }

    /// Returns the watches that a change at `path` notifies, oldest first: those on it and above
    /// it, or those on exactly it.
    pub(crate) fn matching(&self, path: &[u8], exact: bool) -> Vec<WatchKey> {
        let on = |path: &[u8]| self.by_path.get(path).into_iter().flatten().copied();
        let mut keys: Vec<WatchKey> = on(path).collect();
        if !exact && path.first() == Some(&b'/') && path.len() > 1 {
            let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            for (at, _) in slashes {
                keys.extend(on(&path[..at.max(1)]));
            }
        }
        keys.retain(|key| self.get(*key).is_some_and(|watch| watch.reaches(path)));
        keys.sort_unstable();
        keys
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(path: &str, depth: Option<u32>) -> Watch {
        let (path, token) = (path.as_bytes().into(), b"t"[..].into());
        Watch {
            conn: ConnId(1),
            path,
            token,
            strip: 0,
            depth,
        }
    }

    #[test]
    fn watches_on_and_above_a_path_match() {
        let mut watches = Watches::default();
        let keys: Vec<WatchKey> = ["/a/b", "/a", "/", "/a/bc", "/a/b/c", "@x"]
            .map(|path| watches.add(watch(path, None)))
            .to_vec();
        assert_eq!(watches.matching(b"/a/b", false), keys[..3]);
        assert_eq!(watches.matching(b"/a/b", true), keys[..1]);
        assert_eq!(watches.matching(b"/", false), keys[2..3]);
        assert_eq!(watches.matching(b"@x", true), keys[5..]);
        assert_eq!(watches.matching(b"/z", false), keys[2..3]);
        watches.remove(keys[1]);
        assert_eq!(watches.matching(b"/a/b", false), [keys[0], keys[2]]);
    }

    #[test]
    fn depth_limits_the_levels_below() {
        for (path, depth, event, expect) in [
            ("/a", 0, "/a", true),
            ("/a", 0, "/a/b", false),
            ("/a", 1, "/a/b", true),
            ("/a", 1, "/a/b/c", false),
            ("/", 0, "/", true),
            ("/", 0, "/a", false),
            ("/", 1, "/a", true),
            ("/", 1, "/a/b", false),
        ] {
            let mut watches = Watches::default();
            watches.add(watch(path, Some(depth)));
            let hit = !watches.matching(event.as_bytes(), false).is_empty();
            assert_eq!(hit, expect, "{path} to depth {depth}, event on {event}");
        }
    }
}
