//! One connection: the input that is not carried out yet, and the output that waits to be written.
//!
//! # Bounds
//!
//! * Input: at most one partial message and what the event loop read at a time; while output
//!   accumulates [`Conn::has_room`] is false, requests stay where they are and the event loop stops
//!   reading.
//! * Replies: at most one per request carried out, so bounded by the same.
//! * Events: made by other clients, so never refused. The same event of the same watch is queued
//!   once; when more than [`MAX_EVENTS_PER_WATCH`] different ones wait, they become one on the
//!   watched path itself, after which the client must look again at everything below.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use xen_sys::DomId;

use crate::txn::Transaction;
use crate::watch::{Watch, WatchKey};
use xen_store::wire::{self, Decoder, MsgType};

/// Different events of one watch that wait before they are merged.
pub const MAX_EVENTS_PER_WATCH: usize = 64;
/// Bytes and messages waiting for a client before its requests are left unread.
const MAX_QUEUED_BYTES: usize = 64 * 1024;
const MAX_QUEUED_MESSAGES: usize = 1024;
/// How much is prepared for writing at a time.
const STAGE: usize = 16 * 1024;

#[derive(Debug)]
enum Out {
    Reply(Vec<u8>),
    Event {
        watch: WatchKey,
        path: Arc<[u8]>,
        bytes: Vec<u8>,
    },
}

#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) domain: DomId,
    pub(crate) input: Vec<u8>,
    pub(crate) decoder: Decoder,
    pub(crate) watches: BTreeSet<WatchKey>,
    pub(crate) transactions: HashMap<u32, Transaction>,
    pub(crate) next_transaction: u32,
    /// The event loop must close it.
    pub(crate) closing: bool,
    out: VecDeque<Out>,
    out_bytes: usize,
    waiting: HashMap<WatchKey, Waiting>,
    staged: Vec<u8>,
    staged_done: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    paths: HashSet<Arc<[u8]>>,
    /// All events of the watch are merged into one that is queued already.
    merged: bool,
}

impl Conn {
    pub(crate) fn new(domain: DomId) -> Self {
        Self {
            domain,
            input: Vec::new(),
            decoder: Decoder::new(),
            watches: BTreeSet::new(),
            transactions: HashMap::new(),
            next_transaction: 1,
            closing: false,
            out: VecDeque::new(),
            out_bytes: 0,
            waiting: HashMap::new(),
            staged: Vec::new(),
            staged_done: 0,
        }
    }

    /// Whether another request may be carried out now.
    pub(crate) fn has_room(&self) -> bool {
        self.out_bytes < MAX_QUEUED_BYTES && self.out.len() < MAX_QUEUED_MESSAGES
    }

    pub(crate) fn queue_reply(&mut self, bytes: Vec<u8>) {
        self.out_bytes += bytes.len();
        self.out.push_back(Out::Reply(bytes));
    }

    /// Queues an event of `watch` for a change at `path`.
    pub(crate) fn queue_event(&mut self, key: WatchKey, watch: &Watch, path: &[u8]) {
        let waiting = self.waiting.entry(key).or_default();
        if waiting.merged || waiting.paths.contains(path) {
            return;
        }
        let mut path: Arc<[u8]> = path.into();
        if waiting.paths.len() >= MAX_EVENTS_PER_WATCH {
            waiting.paths.clear();
            waiting.merged = true;
            path = Arc::clone(&watch.path);
            let out_bytes = &mut self.out_bytes;
            self.out.retain(|out| match out {
                Out::Event { watch, bytes, .. } if *watch == key => {
                    *out_bytes -= bytes.len();
                    false
                }
                _ => true,
            });
        }
        let shown = watch.shown(&path);
        let parts: [&[u8]; 4] = [shown, b"\0", &watch.token, b"\0"];
        // An event too long for a message is not sent, as in xenstored.
        if let Ok(bytes) = wire::encode(MsgType::WATCH_EVENT, 0, 0, &parts) {
            self.out_bytes += bytes.len();
            if let Some(waiting) = self.waiting.get_mut(&key) {
                waiting.paths.insert(Arc::clone(&path));
            }
            self.out.push_back(Out::Event {
                watch: key,
                path,
                bytes,
            });
        }
    }

    /// The bytes to write next; empty if there are none.
    pub(crate) fn output(&mut self) -> &[u8] {
        if self.staged_done == self.staged.len() {
            self.staged.clear();
            self.staged_done = 0;
            while self.staged.len() < STAGE {
                let Some(out) = self.out.pop_front() else {
                    break;
                };
                let bytes = match out {
                    Out::Reply(bytes) => bytes,
                    Out::Event { watch, path, bytes } => {
                        self.forget(watch, &path);
                        bytes
                    }
                };
                self.out_bytes -= bytes.len();
                self.staged.extend_from_slice(&bytes);
            }
        }
        self.staged.get(self.staged_done..).unwrap_or_default()
    }

    pub(crate) fn has_output(&self) -> bool {
        self.staged_done < self.staged.len() || !self.out.is_empty()
    }

    /// Records that the first `count` bytes of [`Conn::output`] are written.
    pub(crate) fn handle_written(&mut self, count: usize) {
        self.staged_done = self
            .staged
            .len()
            .min(self.staged_done.saturating_add(count));
    }

    /// Records that the event of `watch` on `path` no longer waits.
    fn forget(&mut self, watch: WatchKey, path: &[u8]) {
        if let Some(waiting) = self.waiting.get_mut(&watch) {
            waiting.paths.remove(path);
            if waiting.merged || waiting.paths.is_empty() {
                self.waiting.remove(&watch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConnId;

    fn watch() -> Watch {
        let (path, token) = (b"/w"[..].into(), b"t"[..].into());
        Watch {
            conn: ConnId(1),
            path,
            token,
            strip: 0,
            depth: None,
        }
    }

    /// Paths of all events that are queued.
    fn drain(conn: &mut Conn) -> Vec<String> {
        let mut decoder = Decoder::new();
        let mut paths = Vec::new();
        loop {
            let bytes = conn.output().to_vec();
            if bytes.is_empty() {
                return paths;
            }
            conn.handle_written(bytes.len());
            let mut input = bytes.as_slice();
            while let Some(message) = decoder.next(&mut input).unwrap() {
                let path = wire::strings(&message.payload).next().unwrap().to_vec();
                paths.push(String::from_utf8(path).unwrap());
            }
        }
    }

    #[test]
    fn equal_events_wait_once_and_come_again_after_being_sent() {
        let mut conn = Conn::new(DomId::DOM0);
        for path in ["/w/a", "/w/b", "/w/a"] {
            conn.queue_event(1, &watch(), path.as_bytes());
        }
        assert_eq!(drain(&mut conn), ["/w/a", "/w/b"]);
        conn.queue_event(1, &watch(), b"/w/a");
        assert_eq!(drain(&mut conn), ["/w/a"]);
    }

    #[test]
    fn many_events_of_a_watch_become_one_and_do_not_touch_others() {
        let mut conn = Conn::new(DomId::DOM0);
        conn.queue_event(2, &watch(), b"/w/other");
        for n in 0..10_000 {
            conn.queue_event(1, &watch(), format!("/w/{n}").as_bytes());
        }
        assert!(conn.out.len() <= 2 && conn.out_bytes < 100);
        assert_eq!(drain(&mut conn), ["/w/other", "/w"]);
        assert!(conn.waiting.is_empty() && conn.out_bytes == 0);
        conn.queue_event(1, &watch(), b"/w/after");
        assert_eq!(drain(&mut conn), ["/w/after"]);
    }

    #[test]
    fn a_client_that_does_not_read_gets_no_more_requests_in() {
        let mut conn = Conn::new(DomId::DOM0);
        while conn.has_room() {
            conn.queue_reply(vec![0; 4112]);
        }
        assert!(conn.out_bytes < MAX_QUEUED_BYTES + 4112 + 1);
        while !conn.output().is_empty() {
            conn.handle_written(100);
        }
        assert!(conn.has_room() && !conn.has_output());
    }
}
