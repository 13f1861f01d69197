//! A script carried out by this crate's blocking client.

use std::fmt::Write as _;

use xen_store::request::Write;
use xen_store::{Error, Perm, Permissions, Store, Transaction, Watch};
use xen_sys::{DomId, Port};

use crate::script::{CONNECTIONS, Line, Op, SLOTS, hex};

#[derive(Debug)]
struct Connection {
    store: Store,
    transactions: [Option<Transaction>; SLOTS],
    watches: [Option<Watch>; SLOTS],
}

/// The connections, and the answers as the C program writes them.
#[derive(Debug)]
pub struct Ours(Vec<Connection>);

type Answer = Result<String, Error>;

impl Ours {
    /// A client with these connections.
    #[must_use]
    pub fn new(stores: [Store; CONNECTIONS]) -> Self {
        let connection = |store| Connection {
            store,
            transactions: std::array::from_fn(|_| None),
            watches: std::array::from_fn(|_| None),
        };
        Self(stores.into_iter().map(connection).collect())
    }

    /// Carries out a line, and returns the answer.
    pub fn carry_out(&mut self, line: &Line) -> String {
        if line.op == Op::Events {
            return self.events();
        }
        let connection = &mut self.0[line.on];
        match connection.carry_out(&line.op) {
            Some(answers) => answers.map_or_else(
                |error| text(Err(error)),
                |answers| answers.into_iter().map(text).collect::<Vec<_>>().join(", "),
            ),
            None => "none".to_owned(),
        }
    }

    fn events(&self) -> String {
        let mut all = "OK".to_owned();
        for (at, connection) in self.0.iter().enumerate() {
            // Events are sent in order with replies, and read with them.
            if let Err(error) = connection.store.domain_path(DomId::DOM0) {
                return text(Err(error));
            }
            for (slot, watch) in connection.watches.iter().enumerate() {
                let next = || {
                    watch
                        .as_ref()
                        .and_then(|watch| watch.try_next().transpose())
                };
                for event in std::iter::from_fn(next) {
                    let event = event.unwrap();
                    assert!(!event.rescan, "more paths than a watch keeps");
                    // Writing to a String does not fail.
                    let _ = write!(all, " {at}.{slot}={}", event.path);
                }
            }
        }
        all
    }
}

fn text(answer: Answer) -> String {
    match answer {
        Ok(value) => format!("OK{value}"),
        Err(error) => match error.errno() {
            Some(errno) => format!("E{errno}"),
            None => format!("{error:?}"),
        },
    }
}

fn entries(permissions: &Permissions) -> String {
    let entries = permissions.entries().iter().map(Perm::to_string);
    entries.collect::<Vec<_>>().join(",")
}

/// Runs the same operation in a transaction or in none.
macro_rules! on {
    ($connection:ident, $tx:expr, |$it:ident| $body:expr) => {
        match *$tx {
            0 => {
                let $it = &$connection.store;
                $body
            }
            slot => {
                let $it = $connection.transactions[slot].as_ref()?;
                $body
            }
        }
    };
}

impl Connection {
    /// `None`: the operation's slot is empty.
    fn carry_out(&mut self, op: &Op) -> Option<Result<Vec<Answer>, Error>> {
        let done = |result: Result<(), Error>| result.map(|()| String::new());
        let one = match op {
            Op::Read { tx, paths } => {
                let values = on!(self, tx, |it| match &paths[..] {
                    [path] => vec![it.read(path)],
                    paths => it.read_many(paths),
                });
                let value = |bytes: Vec<u8>| match &bytes[..] {
                    [] => " ".to_owned(),
                    bytes => format!(" {}", hex(bytes)),
                };
                let values = values.into_iter().map(|answer| answer.map(value));
                return Some(Ok(values.collect()));
            }
            Op::Write { tx, nodes } => {
                let results = on!(self, tx, |it| match &nodes[..] {
                    [(path, value)] => vec![it.write(path, value)],
                    nodes => {
                        let requests = nodes.iter().map(|(path, value)| Write { path, value });
                        it.batch(requests.collect::<Vec<_>>())
                    }
                });
                return Some(Ok(results.into_iter().map(done).collect()));
            }
            Op::Mkdir { tx, path } => done(on!(self, tx, |it| it.mkdir(path))),
            Op::Rm { tx, path } => done(on!(self, tx, |it| it.rm(path))),
            Op::Directory { tx, path } => {
                on!(self, tx, |it| it.directory(path)).map(|names| format!(" {}", names.join(",")))
            }
            Op::Permissions { tx, path } => on!(self, tx, |it| it.permissions(path))
                .map(|permissions| format!(" {}", entries(&permissions))),
            Op::SetPermissions { tx, path, entries } => {
                let entries = entries.split(',').map(|entry| entry.parse().unwrap());
                let permissions = Permissions::from_entries(entries.collect()).unwrap();
                done(on!(self, tx, |it| it.set_permissions(path, &permissions)))
            }
            Op::Tree { tx, path } => on!(self, tx, |it| it.snapshot(path)).map(|tree| {
                let node = |(path, node): (&str, &xen_store::Node)| {
                    let value =
                        node.value
                            .as_ref()
                            .map_or("?".to_owned(), |value| match &value[..] {
                                [] => String::new(),
                                value => hex(value),
                            });
                    let permissions = node.permissions.as_ref().map_or("?".to_owned(), entries);
                    format!(" {path}={value}:{permissions}")
                };
                tree.iter().map(node).collect()
            }),
            Op::Begin { slot } => self.store.transaction().map(|transaction| {
                self.transactions[*slot] = Some(transaction);
                String::new()
            }),
            Op::Commit { slot } => match self.transactions[*slot].take()?.commit() {
                Ok(true) => Ok(String::new()),
                Ok(false) => return Some(Err(Error::Conflict { attempts: 1 })),
                Err(error) => Err(error),
            },
            Op::Abort { slot } => done(self.transactions[*slot].take()?.abort()),
            Op::Watch { slot, path } => self.store.watch(path).map(|watch| {
                self.watches[*slot] = Some(watch);
                String::new()
            }),
            Op::Unwatch { slot } => {
                drop(self.watches[*slot].take()?);
                Ok(String::new())
            }
            Op::DomainPath { domain } => self
                .store
                .domain_path(DomId::new(*domain))
                .map(|path| format!(" {path}")),
            Op::IsIntroduced { domain } => {
                // As in libxenstore, which answers so where the daemon refuses.
                let is = self
                    .store
                    .is_introduced(DomId::new(*domain))
                    .unwrap_or(false);
                Ok(if is { " T" } else { " F" }.to_owned())
            }
            Op::Introduce { domain, port } => done(self.store.introduce(
                DomId::new(*domain),
                1,
                Port::new(*port),
            )),
            Op::Release { domain } => done(self.store.release(DomId::new(*domain))),
            Op::SetTarget { domain, target } => done(
                self.store
                    .set_target(DomId::new(*domain), DomId::new(*target)),
            ),
            Op::Resume { domain } => done(self.store.resume(DomId::new(*domain))),
            Op::Events => unreachable!("events are of all connections"),
        };
        Some(one.map(|value| vec![Ok(value)]))
    }
}
