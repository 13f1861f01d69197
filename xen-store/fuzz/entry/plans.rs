//! Walks, snapshots and batches in flight together, with a daemon that is right or hostile.
//!
//! A finding is a panic, a plan that never ends, more requests in flight than may be, a request
//! about a node that was not requested, a result that is not what a right daemon has, and a path
//! that violates the protocol's rules.

use std::collections::{BTreeMap, VecDeque};

use xen_store::plans::{MemoryConnection, Outcome, Running};
use xen_store::proto::Quirks;
use xen_store::wire::{Decoder, Message, MsgType, encode};
use xen_store::{Error, MAX_IN_FLIGHT, StorePath};

use super::input::Input;

const ROOT: &str = "/r";
/// Plans at the same time.
const MOST: usize = 5;
/// Changes of a list while it is read, after which it is read again from the start.
const MOST_CHANGES: u32 = 8;
/// Exchanges that a plan takes at most, with a right daemon.
const MOST_TURNS: usize = 100_000;
const TRANSACTION: u32 = 7;
const PERMISSIONS: &[&str] = &["n0", "n0\0r1", "b3\0n0\0w2"];
const NAMES: &[&str] = &["a", "b", "@c", "-_", "0", "name-of-some-length"];
const ERRORS: &[&str] = &["ENOENT", "EACCES", "EAGAIN", "E2BIG", "EINVAL", "ENONE", ""];

struct Node {
    value: Vec<u8>,
    permissions: &'static str,
    names: Vec<&'static str>,
    /// Names in a part of the list. 0: it is one message.
    part: usize,
    generation: u32,
    /// How many times the list changes while it is read in parts.
    changes: u8,
    /// The client may not read it.
    is_shut: bool,
}

impl Node {
    /// Changes the order of the list, so that parts before and after make no list together.
    fn change(&mut self) {
        self.generation += 1;
        let by = self.names.len().min(1);
        self.names.rotate_left(by);
    }
}

/// The nodes of a right daemon.
struct Model(BTreeMap<String, Node>);

impl Model {
    fn new(input: &mut Input<'_>) -> Self {
        let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
        nodes.insert(ROOT.to_owned(), Self::node(input));
        for _ in 0..input.byte() % 48 {
            let parents = nodes.keys().cloned().collect::<Vec<String>>();
            let parent = &parents[usize::from(input.byte()) % parents.len()];
            let name = input.pick(NAMES);
            let path = format!("{parent}/{name}");
            let parent = nodes.get_mut(parent).unwrap();
            if !parent.names.contains(&name) {
                parent.names.push(name);
                nodes.insert(path, Self::node(input));
            }
        }
        Self(nodes)
    }

    fn node(input: &mut Input<'_>) -> Node {
        let code = input.byte();
        Node {
            value: vec![code; usize::from(code % 9)],
            permissions: input.pick(PERMISSIONS),
            names: Vec::new(),
            part: usize::from(code / 16 % 4),
            generation: 1,
            changes: code / 64,
            is_shut: code % 16 == 15,
        }
    }

    /// Returns a right answer.
    fn answer(&mut self, asked: &Message) -> (MsgType, Vec<u8>) {
        let error = |name: &str| (MsgType::ERROR, format!("{name}\0").into_bytes());
        let mut fields = asked.payload.split(|byte| *byte == 0);
        let path = std::str::from_utf8(fields.next().unwrap()).unwrap();
        let Some(node) = self.0.get_mut(path) else {
            return error("ENOENT");
        };
        if node.is_shut {
            return error("EACCES");
        }
        let list = |names: &[&str]| {
            names
                .iter()
                .map(|name| format!("{name}\0"))
                .collect::<String>()
        };
        let payload = match asked.kind {
            MsgType::READ => node.value.clone(),
            MsgType::GET_PERMS => format!("{}\0", node.permissions).into_bytes(),
            MsgType::DIRECTORY if node.part > 0 => return error("E2BIG"),
            MsgType::DIRECTORY => list(&node.names).into_bytes(),
            _ => {
                let offset = std::str::from_utf8(fields.next().unwrap()).unwrap();
                let (mut skip, mut first) = (offset.parse::<usize>().unwrap(), 0);
                if skip > 0 && node.changes > 0 {
                    node.changes -= 1;
                    node.change();
                }
                while skip > 0 {
                    // After lies, an offset may be in the middle of a name, or beyond the last.
                    let Some(name) = node.names.get(first) else {
                        return error("EINVAL");
                    };
                    skip = skip.saturating_sub(name.len() + 1);
                    first += 1;
                }
                let last = (first + node.part.max(1)).min(node.names.len());
                let end = if last == node.names.len() { "\0" } else { "" };
                let part = list(&node.names[first..last]);
                format!("{}\0{part}{end}", node.generation).into_bytes()
            }
        };
        (asked.kind, payload)
    }

    fn is_readable(&self, path: &str) -> bool {
        self.0.get(path).is_some_and(|node| !node.is_shut)
    }

    /// Returns the paths of a node and of at most `depth` levels below it, as a client finds them.
    fn below(&self, path: &str, depth: u32) -> Vec<String> {
        let mut found = vec![path.to_owned()];
        let (mut level, mut at) = (found.clone(), 0);
        while at < depth && !level.is_empty() {
            let mut next = Vec::new();
            for path in level.iter().filter(|path| self.is_readable(path)) {
                next.extend(
                    self.0[path]
                        .names
                        .iter()
                        .map(|name| format!("{path}/{name}")),
                );
            }
            next.sort();
            found.extend(next.iter().cloned());
            level = next;
            at += 1;
        }
        found
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Walk(u32),
    Snapshot,
    Batch(usize),
}

struct Plan<'a> {
    running: Running<'a>,
    kind: Kind,
    path: &'a str,
    expired: bool,
}

struct Bench<'a> {
    connection: &'a MemoryConnection,
    model: Model,
    batches: &'a [Vec<String>; 3],
    plans: Vec<Plan<'a>>,
    reader: Decoder,
    /// Requests that the daemon has not answered.
    asked: VecDeque<Message>,
    one_at_a_time: bool,
    /// A plan was dropped, so that its requests have no owner.
    given_up: bool,
    /// The daemon was not right.
    hostile: bool,
    changes: u32,
}

impl<'a> Bench<'a> {
    fn begin(&mut self, kind: Kind, input: &mut Input<'_>) {
        if self.plans.len() >= MOST {
            return;
        }
        let tx = if input.byte() % 2 == 0 {
            0
        } else {
            TRANSACTION
        };
        let path = input.pick(&[ROOT, ROOT, "/r/a", "/r/none"]);
        let running = match kind {
            Kind::Walk(depth) => self.connection.walk(tx, path, depth),
            Kind::Snapshot => self.connection.snapshot(tx, path),
            Kind::Batch(which) => self.connection.read_many(tx, &self.batches[which]),
        };
        self.plans.push(Plan {
            running,
            kind,
            path,
            expired: false,
        });
        self.turn(self.plans.len() - 1);
    }

    /// Gives a plan its turn. Returns whether it has to wait for more answers.
    fn turn(&mut self, at: usize) -> bool {
        let goes_on = self.plans[at].running.turn();
        self.collect();
        if !goes_on {
            let plan = self.plans.swap_remove(at);
            self.judge(plan);
        }
        goes_on
    }

    /// Reads what the client sent, as the daemon.
    fn collect(&mut self) {
        let sent = self.connection.take_sent();
        let mut rest = sent.as_slice();
        while let Some(message) = self.reader.next(&mut rest).expect("it is too long") {
            let kinds = [
                MsgType::READ,
                MsgType::GET_PERMS,
                MsgType::DIRECTORY,
                MsgType::DIRECTORY_PART,
            ];
            assert!(kinds.contains(&message.kind), "{} was sent", message.kind);
            assert!(message.tx_id == 0 || message.tx_id == TRANSACTION);
            let end = message.payload.iter().position(|byte| *byte == 0);
            let path = std::str::from_utf8(&message.payload[..end.unwrap()]).unwrap();
            assert_is_below_root(path);
            self.asked.push_back(message);
        }
        let most = if self.one_at_a_time {
            1
        } else {
            self.plans.len() * MAX_IN_FLIGHT
        };
        let count = self.asked.len();
        let is_known = !self.hostile && (self.one_at_a_time || !self.given_up);
        assert!(!is_known || count <= most, "{count} in flight");
    }

    /// Sends the bytes in two pieces.
    fn deliver(&mut self, bytes: &[u8], cut: usize) {
        let (now, later) = bytes.split_at(cut.min(bytes.len()));
        self.connection.deliver(now);
        self.connection.deliver(later);
        self.collect();
        assert!(
            self.hostile || self.connection.failure().is_none(),
            "{:?} although the daemon was right",
            self.connection.failure()
        );
    }

    fn answer(&mut self, at: usize, cut: usize) {
        if let Some(asked) = self.asked.remove(at) {
            let (kind, payload) = self.model.answer(&asked);
            let bytes = encode(kind, asked.req_id, asked.tx_id, &[&payload]).unwrap();
            self.deliver(&bytes, cut);
        }
    }

    /// Sends an answer that may be wrong in any way, or bytes that were not requested.
    fn lie(&mut self, input: &mut Input<'_>) {
        self.hostile = true;
        let Some(asked) = self.asked.pop_front() else {
            let bytes = input.bytes(24).to_vec();
            return self.deliver(&bytes, 5);
        };
        let (mut kind, mut extra) = (asked.kind, 0);
        let count = usize::from(input.byte() % 64);
        let payload = match input.byte() % 8 {
            0 | 1 => {
                kind = MsgType::ERROR;
                format!("{}\0", input.pick(ERRORS)).into_bytes()
            }
            2 => input.bytes(count).to_vec(),
            3 => input
                .pick(&["a/b\0", "\0\0", "a", "\u{e9}\0", "..\0", "/\0", "@\0"])
                .as_bytes()
                .to_vec(),
            4 => "a\0b\0".repeat(count).into_bytes(),
            5 => {
                let end = input.pick(&["", "\0", "a"]);
                let generation = input.pick(&["1", "2", "", "x"]);
                format!("{generation}\0{}{end}", "p\0".repeat(count)).into_bytes()
            }
            6 => {
                extra = 5000;
                Vec::new()
            }
            _ => input
                .pick(&["x0\0", "n0", "n99999\0", "n0\0\0", "r32757\0"])
                .as_bytes()
                .to_vec(),
        };
        let mut bytes = encode(kind, asked.req_id, asked.tx_id, &[&payload]).unwrap();
        if extra > 0 {
            bytes[12..16].copy_from_slice(&u32::to_ne_bytes(extra));
            bytes.resize(bytes.len() + extra as usize, b'x');
        }
        self.deliver(&bytes, count);
    }

    fn act(&mut self, input: &mut Input<'_>) {
        let (code, at) = (input.byte(), usize::from(input.byte()));
        let plan = (!self.plans.is_empty()).then(|| at % self.plans.len().max(1));
        match (code % 16, plan) {
            (0, _) => self.begin(Kind::Walk(u32::from(code / 16) % 5), input),
            (1, _) => self.begin(Kind::Snapshot, input),
            (2, _) => self.begin(Kind::Batch(at % self.batches.len()), input),
            (3..=6, _) => self.answer(0, at),
            (7, _) => self.answer(at % self.asked.len().max(1), at),
            (8..=10, Some(plan)) => {
                self.turn(plan);
            }
            (11, Some(plan)) if code < 64 => {
                self.given_up = true;
                self.plans[plan].expired = true;
                self.plans[plan].running.expire();
                assert!(!self.turn(plan), "its time is over, and it goes on");
            }
            (12, Some(plan)) if code < 64 => {
                self.given_up = true;
                drop(self.plans.swap_remove(plan));
                self.collect();
            }
            (13, _) if self.changes < MOST_CHANGES => {
                self.changes += 1;
                let node = self.model.0.values_mut().nth(at % 48);
                if let Some(node) = node {
                    node.change();
                }
            }
            (14, _) if code == 14 => self.lie(input),
            (15, _) if code == 15 => {
                self.hostile = true;
                self.connection.close();
            }
            _ => {}
        }
    }

    fn judge(&self, plan: Plan<'_>) {
        let Plan {
            running,
            kind,
            path,
            expired,
        } = plan;
        let exact = !self.hostile && !expired;
        match (running.finish(), kind) {
            (Outcome::Values(values), Kind::Batch(which)) => {
                let paths = &self.batches[which];
                assert_eq!(values.len(), paths.len());
                for (path, value) in paths.iter().zip(values) {
                    self.judge_value(path, value, expired);
                }
            }
            (Outcome::Paths(paths), Kind::Walk(depth)) => {
                if let Ok(paths) = &paths {
                    paths.iter().for_each(|path| assert_is_below_root(path));
                }
                if exact && self.model.is_readable(path) {
                    assert_eq!(paths.unwrap(), self.model.below(path, depth));
                } else if exact {
                    assert!(paths.is_err(), "a walk of {path}");
                }
            }
            (Outcome::Nodes(nodes), Kind::Snapshot) => {
                if let Ok(nodes) = &nodes {
                    nodes
                        .iter()
                        .for_each(|(path, _)| assert_is_below_root(path));
                }
                if exact && self.model.is_readable(path) {
                    let nodes = nodes.unwrap();
                    let mut paths = self.model.below(path, u32::MAX);
                    paths.sort();
                    let found = nodes.iter().map(|(path, _)| path);
                    assert!(found.eq(paths.iter()), "{nodes:?}");
                    for (path, node) in nodes.iter() {
                        let model = &self.model.0[path];
                        let open = !model.is_shut;
                        assert_eq!(node.value, open.then(|| model.value.clone()));
                        let permissions = node.permissions.as_ref().map(ToString::to_string);
                        let expected = model.permissions.replace('\0', " ");
                        assert_eq!(permissions, open.then_some(expected));
                    }
                } else if exact {
                    assert!(nodes.is_err(), "a snapshot of {path}");
                }
            }
            _ => panic!("the result of another plan"),
        }
    }

    fn judge_value(&self, path: &str, value: Result<Vec<u8>, Error>, expired: bool) {
        if self.hostile || expired && matches!(value, Err(Error::TimedOut { .. })) {
            return;
        }
        match self.model.0.get(path) {
            Some(node) if !node.is_shut => assert_eq!(value.unwrap(), node.value),
            Some(_) => assert!(value.unwrap_err().is_denied()),
            None => assert!(value.unwrap_err().is_not_found()),
        }
    }

    /// Ends all plans: a right daemon answers them, a hostile one closes or lets them time out.
    fn end(mut self, input: &mut Input<'_>) {
        if self.hostile && input.byte() % 2 == 0 {
            self.connection.close();
        } else if self.hostile {
            self.plans.iter_mut().for_each(|plan| {
                plan.expired = true;
                plan.running.expire();
            });
        }
        let mut turns = 0;
        while !self.plans.is_empty() {
            for at in (0..self.plans.len()).rev() {
                let goes_on = self.turn(at);
                assert!(!goes_on || !self.hostile, "a plan goes on after its end");
            }
            while !self.hostile && !self.asked.is_empty() {
                self.answer(0, usize::MAX);
            }
            turns += 1;
            assert!(turns < MOST_TURNS, "a plan never ends");
        }
    }
}

fn assert_is_below_root(path: &str) {
    let root = StorePath::new(ROOT).unwrap();
    assert!(StorePath::new(path).unwrap().is_at_or_below(root), "{path}");
}

/// Runs an input.
pub(crate) fn plans(data: &[u8]) {
    let mut input = Input(data);
    let quirks = input.pick(&[Quirks::SOCKET, Quirks::SOCKET, Quirks::XENBUS]);
    let model = Model::new(&mut input);
    let paths: Vec<String> = model.0.keys().cloned().collect();
    let long = paths.iter().cycle().take(3 * MAX_IN_FLIGHT);
    let batches = [
        Vec::new(),
        [paths.clone(), vec![format!("{ROOT}/none")]].concat(),
        long.cloned().collect(),
    ];
    let connection = MemoryConnection::new(quirks);
    let mut bench = Bench {
        connection: &connection,
        model,
        batches: &batches,
        plans: Vec::new(),
        reader: Decoder::new(),
        asked: VecDeque::new(),
        one_at_a_time: quirks.one_at_a_time,
        given_up: false,
        hostile: false,
        changes: 0,
    };
    while !input.0.is_empty() {
        bench.act(&mut input);
    }
    bench.end(&mut input);
}
