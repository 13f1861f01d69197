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
    /// Makes an empty set of watches. A caller that waits for any of them waits for the set's
    /// number.
    pub(crate) fn add_set(&mut self) -> WatchId {
        let id = self.next_watch;
        self.next_watch += 1;
        self.sets.insert(id, WatchSet::default());
        WatchId(id)
    }

    /// Forgets a set. Its watches must be removed separately.
    pub(crate) fn remove_set(&mut self, set: WatchId) {
        self.sets.remove(&set.0);
    }

    /// As [`Connection::add_watch`], for a watch of a set or a single one.
    pub(crate) fn add_watch_to(&mut self, set: Option<WatchId>, path: &str) -> WatchId {
        let id = self.add_watch(path);
        if let Some(queue) = self.watches.get_mut(&id.0) {
            queue.set = set;
        }
        id
    }

    /// Returns the next event of any watch of the set; they take turns. After the end of the
    /// connection it returns the reason, with an empty path.
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
            // The error follows the events, once.
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::proto::{Failure, Quirks};
    use crate::reconnect::Repeat;
    use crate::wire::encode;

    /// Also if it must be announced again while it has its turn, as after a loss.
    #[test]
    fn a_watch_has_one_turn_in_its_set_and_its_refusal_comes_last_and_once() {
        let mut connection = Connection::new(Quirks::SOCKET);
        connection.survive(Repeat::Never);
        let set = connection.add_set();
        let watch = connection.add_watch_to(Some(set), "/w");
        let token = Connection::token(watch);
        let fields: [&[u8]; 4] = [b"/w", b"\0", token.as_bytes(), b"\0"];
        connection.request(MsgType::WATCH, 0, &fields).unwrap();
        connection.poll_outgoing().unwrap();
        let mut bytes = encode(MsgType::WATCH, 1, 0, &[b"OK\0"]).unwrap();
        for path in ["/w/1", "/w/2"] {
            let fields: [&[u8]; 4] = [path.as_bytes(), b"\0", token.as_bytes(), b"\0"];
            bytes.extend(encode(MsgType::WATCH_EVENT, 0, 0, &fields).unwrap());
        }
        connection.handle_input(&bytes).unwrap();
        let (_, first) = connection.poll_set_event(set).unwrap();
        assert_eq!(&*first.unwrap().path, "/w/1");
        connection.handle_failure(Failure::Closed);
        connection.handle_reconnected(Quirks::SOCKET);
        assert_eq!(connection.sets[&set.0].waiting, [watch]);
        connection.poll_outgoing().unwrap();
        let refusal = encode(MsgType::ERROR, 2, 0, &[b"E2BIG\0"]).unwrap();
        connection.handle_input(&refusal).unwrap();
        assert_eq!(connection.sets[&set.0].waiting, [watch]);
        let (_, event) = connection.poll_set_event(set).unwrap();
        assert!(event.unwrap().reconnected);
        let (path, refused) = connection.poll_set_event(set).unwrap();
        assert_eq!(&*path, "/w");
        assert_eq!(refused.unwrap_err().errno(), Some(libc::E2BIG));
        assert!(connection.poll_set_event(set).is_none());
    }
}
