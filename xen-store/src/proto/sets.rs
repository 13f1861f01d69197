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
    /// Those with events, each once, in turn: their queues are `announced`.
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
            queue.announced = false;
            let op = MsgType::WATCH;
            let event = match (queue.pop(), queue.refused) {
                (Some(event), _) => Ok(event),
                (None, Some(code)) => Err(Error::Daemon { op, code }),
                (None, None) => continue,
            };
            // The error comes after the events, once.
            if event.is_ok() && (!queue.is_empty() || queue.refused.is_some()) {
                queue.announced = true;
                self.sets.get_mut(&set.0)?.waiting.push_back(id);
            }
            return Some((Arc::clone(queue.watched()), event));
        }
        let failure = self.failure?;
        Some(("".into(), Err(failure.into())))
    }

    /// Names a set one of whose watches has an event. A watch that is `new` there gets its turn.
    pub(super) fn announce_in_set(&mut self, set: WatchId, watch: WatchId, new: bool) {
        let Some(members) = self.sets.get_mut(&set.0) else {
            return;
        };
        if new {
            members.waiting.push_back(watch);
        }
        if !std::mem::replace(&mut members.announced, true) {
            self.ready.push_back(Ready::Event(set));
        }
    }
}
