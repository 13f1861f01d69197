//! Many watches with one queue.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Connection, Ready, WatchId};
use crate::error::{Error, Result};
use crate::events::WatchEvent;
use crate::wire::MsgType;

/// The watches of a set.
#[derive(Debug, Default)]
pub(super) struct WatchSet {
    /// Those with events, each once, in turn.
    pub(super) waiting: VecDeque<WatchId>,
    /// Its first event waits to be announced.
    pub(super) announced: bool,
}

/// The watched path and an event of it.
pub(crate) type SetEvent = (Arc<str>, Result<WatchEvent>);

impl Connection {
    /// Makes a set of watches, empty. Its number stands for any of them where one waits.
    pub(crate) fn add_set(&mut self) -> WatchId {
        let id = self.next_watch;
        self.next_watch += 1;
        self.sets.insert(id, WatchSet::default());
        WatchId(id)
    }

    /// Forgets a set. Its watches are removed by themselves.
    pub(crate) fn remove_set(&mut self, set: WatchId) {
        self.sets.remove(&set.0);
    }

    /// As [`Connection::add_watch`], of a set or by itself.
    pub(crate) fn add_watch_to(&mut self, set: Option<WatchId>, path: &str) -> WatchId {
        let id = self.add_watch(path);
        if let Some(queue) = self.watches.get_mut(&id.0) {
            queue.set = set;
        }
        id
    }

    /// Returns the next event of any watch of the set; they take turns. After the end of the
    /// connection the reason, with an empty path.
    pub(crate) fn poll_set_event(&mut self, set: WatchId) -> Option<SetEvent> {
        while let Some(id) = self.sets.get_mut(&set.0)?.waiting.pop_front() {
            let Some(queue) = self.watches.get_mut(&id.0) else {
                continue;
            };
            let path = Arc::clone(queue.watched());
            let event = queue.pop();
            if !queue.is_empty() {
                self.sets.get_mut(&set.0)?.waiting.push_back(id);
            } else if let (Some(code), None) = (queue.refused, &event) {
                let op = MsgType::WATCH;
                return Some((path, Err(Error::Daemon { op, code })));
            } else if queue.refused.is_some() {
                // The error comes after the events, once.
                self.sets.get_mut(&set.0)?.waiting.push_back(id);
            }
            if let Some(event) = event {
                return Some((path, Ok(event)));
            }
        }
        let failure = self.failure?;
        Some(("".into(), Err(failure.into())))
    }

    /// Puts a watch with a first event into the queue of its set.
    pub(super) fn announce_in_set(&mut self, set: WatchId, watch: WatchId) {
        let Some(members) = self.sets.get_mut(&set.0) else {
            return;
        };
        if !members.waiting.contains(&watch) {
            members.waiting.push_back(watch);
        }
        if !std::mem::replace(&mut members.announced, true) {
            self.ready.push_back(Ready::Event(set));
        }
    }
}
