//! The queue between the connection and one watch.
//!
//! A watch event means *this path changed, look again*; two for the same path mean no more than
//! one. So the queue is a set in order of arrival. An event whose path is still waiting is merged
//! with it. When more than a bounded number of different paths wait, all of them are replaced by a
//! single event on the watched path itself, flagged [`WatchEvent::rescan`]. A reader that looks
//! again misses nothing, memory is bounded, and the connection never waits for a watcher.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use crate::error::XsError;
use crate::proto::WatchId;

/// How many different paths may wait in one watch's queue before they are merged into one.
pub const MAX_DISTINCT_PATHS: usize = 512;

/// A watched path changed, or may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The path that changed; at or below the watched path, and relative if that is.
    pub path: Arc<str>,
    /// Anything at or below `path` may have changed: several events were merged into this one, or
    /// the connection was made again.
    pub rescan: bool,
    /// The connection was made again: changes before this event may have been missed, and what the
    /// daemon keeps may be older or lost. Once after each new connection.
    pub reconnected: bool,
}

/// The events that wait for one watch.
#[derive(Debug)]
pub(crate) struct EventQueue {
    watched: Arc<str>,
    order: VecDeque<Arc<str>>,
    waiting: HashSet<Arc<str>>,
    rescan: bool,
    reconnected: bool,
    /// The payload of its WATCH, to be sent again on a new connection.
    pub(crate) registration: Option<Box<[u8]>>,
    /// The daemon has granted it.
    pub(crate) is_granted: bool,
    /// The daemon refused it on a new connection.
    pub(crate) refused: Option<XsError>,
    /// Its first event waits to be announced. For a watch in a set: it waits for its turn there.
    pub(crate) announced: bool,
    /// Its events are those of this set.
    pub(crate) set: Option<WatchId>,
}

impl EventQueue {
    pub(crate) fn new(watched: &str) -> Self {
        Self {
            watched: watched.into(),
            order: VecDeque::new(),
            waiting: HashSet::new(),
            rescan: false,
            reconnected: false,
            registration: None,
            is_granted: false,
            refused: None,
            announced: false,
            set: None,
        }
    }

    pub(crate) fn watched(&self) -> &Arc<str> {
        &self.watched
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty() && !self.rescan
    }

    /// Adds an event; `None` stands for a path that could not be decoded.
    pub(crate) fn push(&mut self, path: Option<&str>) {
        if self.rescan {
            return;
        }
        match path {
            Some(path) if self.waiting.contains(path) => {}
            Some(path) if self.order.len() < MAX_DISTINCT_PATHS => {
                let path: Arc<str> = path.into();
                self.waiting.insert(Arc::clone(&path));
                self.order.push_back(path);
            }
            _ => self.merge(),
        }
    }

    /// Adds the event about a new connection.
    pub(crate) fn push_reconnected(&mut self) {
        self.merge();
        self.reconnected = true;
    }

    /// Merges all events into one.
    fn merge(&mut self) {
        self.order = VecDeque::new();
        self.waiting = HashSet::new();
        self.rescan = true;
    }

    pub(crate) fn pop(&mut self) -> Option<WatchEvent> {
        if std::mem::take(&mut self.rescan) {
            return Some(WatchEvent {
                path: Arc::clone(&self.watched),
                rescan: true,
                reconnected: std::mem::take(&mut self.reconnected),
            });
        }
        let path = self.order.pop_front()?;
        self.waiting.remove(&path);
        Some(WatchEvent {
            path,
            rescan: false,
            reconnected: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut EventQueue) -> Vec<(String, bool)> {
        std::iter::from_fn(|| queue.pop())
            .map(|e| (e.path.to_string(), e.rescan))
            .collect()
    }

    #[test]
    fn same_path_is_merged_and_order_is_kept() {
        let mut queue = EventQueue::new("/w");
        for path in ["/w/b", "/w/a", "/w/b", "/w/a", "/w"] {
            queue.push(Some(path));
        }
        let expect = ["/w/b", "/w/a", "/w"].map(|path| (path.to_owned(), false));
        assert_eq!(drain(&mut queue), expect);
        queue.push(Some("/w/b"));
        assert_eq!(
            drain(&mut queue).len(),
            1,
            "a path taken out may come again"
        );
    }

    #[test]
    fn too_many_paths_become_one_rescan() {
        let mut queue = EventQueue::new("/w");
        for n in 0..=MAX_DISTINCT_PATHS {
            queue.push(Some(&format!("/w/{n}")));
        }
        queue.push(Some("/w/later"));
        assert_eq!(drain(&mut queue), [("/w".to_owned(), true)]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_full_queue_is_not_yet_merged() {
        let mut queue = EventQueue::new("/w");
        for n in 0..MAX_DISTINCT_PATHS {
            queue.push(Some(&format!("/w/{n}")));
        }
        queue.push(Some("/w/0"));
        assert_eq!(drain(&mut queue).len(), MAX_DISTINCT_PATHS);
    }

    #[test]
    fn an_unreadable_path_is_not_lost() {
        let mut queue = EventQueue::new("/w");
        queue.push(None);
        assert_eq!(drain(&mut queue), [("/w".to_owned(), true)]);
    }
}
