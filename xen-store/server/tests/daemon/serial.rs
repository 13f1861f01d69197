//! Transactions against a naive model: whatever interleaves, the committed ones did exactly what
//! they would have done one after the other, in the order of their commits.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use xen_store::wire::{Decoder, MsgType, encode};
use xen_store_server::{Config, ConnId, Daemon};

use crate::raw::dom;

const PATHS: [&str; 6] = ["/a", "/a/b", "/a/c", "/a/b/d", "/e", "/e/f"];
const KINDS: [MsgType; 5] = [
    MsgType::READ,
    MsgType::WRITE,
    MsgType::MKDIR,
    MsgType::RM,
    MsgType::DIRECTORY,
];
const SLOTS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    /// A request in a slot: slot 0 is no transaction.
    Do(usize, MsgType, &'static str),
    /// End the transaction of a slot and begin another.
    End(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..SLOTS, prop::sample::select(&KINDS[..]), prop::sample::select(&PATHS[..]))
            .prop_map(|(slot, kind, path)| Step::Do(slot, kind, path)),
        1 => (1..SLOTS, any::<bool>()).prop_map(|(slot, commit)| Step::End(slot, commit)),
    ]
}

/// The store as a few lines: values and children, no permissions.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model(BTreeMap<String, (Vec<u8>, Vec<String>)>);

type Reply = Result<Vec<u8>, String>;

impl Model {
    fn new() -> Self {
        Self(BTreeMap::from([("/".to_owned(), (Vec::new(), Vec::new()))]))
    }

    fn parent(path: &str) -> &str {
        let at = path.rfind('/').unwrap();
        if at == 0 { "/" } else { &path[..at] }
    }

    fn make(&mut self, path: &str) {
        if !self.0.contains_key(path) {
            self.make(Self::parent(path));
            self.0.insert(path.to_owned(), Default::default());
            let name = path.rsplit('/').next().unwrap().to_owned();
            self.0.get_mut(Self::parent(path)).unwrap().1.push(name);
        }
    }

    fn apply(&mut self, kind: MsgType, path: &str, value: &[u8]) -> Reply {
        let missing = || Err("ENOENT".to_owned());
        let ok = Ok(b"OK\0".to_vec());
        match kind {
            MsgType::READ => self
                .0
                .get(path)
                .map_or_else(missing, |node| Ok(node.0.clone())),
            MsgType::DIRECTORY => self.0.get(path).map_or_else(missing, |node| {
                Ok(node
                    .1
                    .iter()
                    .map(|name| format!("{name}\0"))
                    .collect::<String>()
                    .into())
            }),
            MsgType::MKDIR => {
                self.make(path);
                ok
            }
            MsgType::WRITE => {
                self.make(path);
                self.0.get_mut(path).unwrap().0 = value.to_vec();
                ok
            }
            _ if !self.0.contains_key(Self::parent(path)) => missing(),
            _ => {
                let below = format!("{path}/");
                self.0
                    .retain(|other, _| other != path && !other.starts_with(&below));
                let name = path.rsplit('/').next().unwrap();
                self.0
                    .get_mut(Self::parent(path))
                    .unwrap()
                    .1
                    .retain(|other| other != name);
                ok
            }
        }
    }
}

fn ask(daemon: &mut Daemon, conn: ConnId, kind: MsgType, tx: u32, payload: &[u8]) -> Reply {
    daemon.handle_input(conn, &encode(kind, 1, tx, &[payload]).unwrap());
    let bytes = daemon.output(conn).to_vec();
    daemon.handle_written(conn, bytes.len());
    let mut input = bytes.as_slice();
    let reply = Decoder::new().next(&mut input).unwrap().unwrap();
    assert!(input.is_empty());
    if reply.kind == MsgType::ERROR {
        return Err(String::from_utf8_lossy(&reply.payload)
            .trim_end_matches('\0')
            .to_owned());
    }
    Ok(reply.payload)
}

fn begin(daemon: &mut Daemon, conn: ConnId) -> u32 {
    let id = ask(daemon, conn, MsgType::TRANSACTION_START, 0, b"\0").unwrap();
    std::str::from_utf8(&id[..id.len() - 1])
        .unwrap()
        .parse()
        .unwrap()
}

/// The requests of one transaction and their replies.
type Log = Vec<(MsgType, &'static str, Vec<u8>, Reply)>;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn committed_transactions_are_serial(steps in vec(step(), 1..120)) {
        let mut daemon = Daemon::new(Config::new());
        let conn = daemon.connect(dom(0));
        ask(&mut daemon, conn, MsgType::RM, 0, b"/tool\0").unwrap();
        let mut model = Model::new();
        let mut ids: Vec<u32> = (0..SLOTS).map(|_| begin(&mut daemon, conn)).collect();
        ids[0] = 0;
        let mut logs: Vec<Log> = vec![Log::new(); SLOTS];
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Do(slot, kind, path) => {
                    let value = n.to_string().into_bytes();
                    let mut payload = format!("{path}\0").into_bytes();
                    if kind == MsgType::WRITE {
                        payload.extend_from_slice(&value);
                    }
                    let reply = ask(&mut daemon, conn, kind, ids[slot], &payload);
                    if slot == 0 {
                        prop_assert_eq!(reply, model.apply(kind, path, &value));
                    } else {
                        logs[slot].push((kind, path, value, reply));
                    }
                }
                Step::End(slot, commit) => {
                    let end = if commit { b"T\0" } else { b"F\0" };
                    let reply = ask(&mut daemon, conn, MsgType::TRANSACTION_END, ids[slot], end);
                    let log = std::mem::take(&mut logs[slot]);
                    match reply {
                        Ok(_) if commit => {
                            for (kind, path, value, told) in log {
                                prop_assert_eq!(model.apply(kind, path, &value), told);
                            }
                        }
                        Ok(_) => {}
                        Err(name) => prop_assert_eq!(name, "EAGAIN"),
                    }
                    ids[slot] = begin(&mut daemon, conn);
                }
            }
        }
        for (path, (value, children)) in &model.0 {
            let told = ask(&mut daemon, conn, MsgType::READ, 0, format!("{path}\0").as_bytes());
            prop_assert_eq!(told.as_ref(), Ok(value));
            let told = ask(&mut daemon, conn, MsgType::DIRECTORY, 0, format!("{path}\0").as_bytes());
            let list: String = children.iter().map(|name| format!("{name}\0")).collect();
            prop_assert_eq!(told, Ok(list.into_bytes()));
        }
        prop_assert_eq!(daemon.stats().nodes, model.0.len());
        prop_assert_eq!(ask(&mut daemon, conn, MsgType::CONTROL, 0, b"check\0"), Ok(b"OK\0".to_vec()));
    }
}
