//! The same scripts through our client and through libxenstore, and on one daemon and another.
//!
//! A script has the operations of two connections of domain 0 and of two guests, whose connections
//! are rings where the daemon is a process. Each runs on a fresh daemon, one operation at a time,
//! so its answers depend on its seed alone. Every answer is compared; so are the events of every
//! watch, which are asked for by operations of their own. Permitted differences are listed in
//! `differences.rs`.
//!
//! | environment | |
//! |---|---|
//! | `STORE_CONFORMANCE` | answers to compare in each test; 2,000 unless given |
//! | `STORE_CONFORMANCE_SEED` | the first script's seed; 1 unless given |

mod differences;
mod libxenstore;
mod ours;
mod script;

use std::collections::BTreeMap;
use std::os::unix::net::{UnixListener, UnixStream};

use xen_sys::DomId;

use self::differences::{Between, DIFFERENCES};
use self::libxenstore::Libxenstore;
use self::ours::Ours;
use self::script::{FIRST_GUEST, GUESTS, IDLE, Line, Op, script};
use crate::rounds::{LIMIT, number};
use crate::with_each_daemon;
use crate::world::{Daemon, Kind};

/// Lines of one script.
const LENGTH: usize = 1500;
/// Lines before a difference that are shown.
const SHOWN: usize = 12;
/// Characters of a line, and of an answer, that are shown.
const SHOWN_TEXT: usize = 300;
/// No answer in time, and no daemon any more.
const LOST: [&str; 2] = ["E110", "E32"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Ours,
    Libxenstore,
}

/// Carries a script out on a fresh daemon.
fn answers(kind: Kind, client: Client, seed: usize, script: &[Line]) -> Vec<String> {
    let all = |mut carry_out: Box<dyn FnMut(&Line) -> String>| {
        let one = |(at, line)| {
            let answer = carry_out(line);
            let is_lost = LOST.iter().any(|errno| answer.ends_with(errno));
            assert!(
                !is_lost,
                "STORE_CONFORMANCE_SEED={seed}, line {at} on {kind:?} by {client:?}: {}",
                short(line, &answer)
            );
            answer
        };
        script.iter().enumerate().map(one).collect()
    };
    let daemon = Daemon::start(kind);
    let (idle, _theirs) = UnixStream::pair().unwrap();
    daemon.attach(IDLE, idle);
    daemon.store().release(DomId::new(IDLE)).unwrap();
    match client {
        Client::Ours => {
            let stores = std::array::from_fn(|at| {
                let store = match at.checked_sub(FIRST_GUEST) {
                    Some(guest) => daemon.domain(GUESTS[guest]),
                    None => daemon.store(),
                };
                store.with_timeout(Some(LIMIT))
            });
            let mut ours = Ours::new(stores);
            all(Box::new(move |line| ours.carry_out(line)))
        }
        Client::Libxenstore => {
            let listeners = GUESTS.map(|guest| {
                let path = daemon.file(&format!("socket-{guest}"));
                (UnixListener::bind(&path).unwrap(), path)
            });
            let mut sockets = vec![daemon.socket(); FIRST_GUEST];
            sockets.extend(listeners.iter().map(|(_, path)| path.clone()));
            let mut c = Libxenstore::start(&sockets);
            for (guest, (listener, _)) in GUESTS.iter().zip(&listeners) {
                daemon.attach(*guest, listener.accept().unwrap().0);
            }
            all(Box::new(move |line| c.carry_out(line)))
        }
    }
}

/// Events of each watch in the order in which they came, each path once: how a watch of ours keeps
/// them, and all that a program may conclude from libxenstore's.
fn by_watch(events: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut watches: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for event in events.split(' ').skip(1) {
        let (watch, path) = event.split_once('=').unwrap();
        let paths = watches.entry(watch).or_default();
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    watches
}

fn is_same(line: &Line, one: &str, other: &str) -> bool {
    match line.op {
        Op::Events => by_watch(one) == by_watch(other),
        _ => one == other,
    }
}

/// A line and its answer, of bounded length.
fn short(line: &Line, answer: &str) -> String {
    let cut = |text: String| match text.char_indices().nth(SHOWN_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    };
    let (line, answer) = (cut(format!("{line:?}")), cut(answer.to_owned()));
    format!("{line}: {answer}")
}

/// A run of a script: the daemon, and the client that carries it out.
type Side = (Kind, Client);

/// Compares as many answers as the environment asks for.
fn compare(between: Between, one: Side, other: Side) {
    let wanted = number("STORE_CONFORMANCE", 2000);
    let first = number("STORE_CONFORMANCE_SEED", 1);
    let oxenstored = [one.0, other.0].contains(&Kind::OCaml);
    let (mut count, mut seed) = (0, first);
    let mut known = [0; DIFFERENCES.len()];
    while count < wanted {
        let script = script(seed as u64, LENGTH, oxenstored);
        let answers = [one, other].map(|(kind, client)| answers(kind, client, seed, &script));
        for (at, line) in script.iter().enumerate() {
            let [a, b] = [&answers[0][at], &answers[1][at]];
            count += line.answers();
            if is_same(line, a, b) {
                continue;
            }
            let listed = DIFFERENCES
                .iter()
                .position(|listed| listed.between == between && (listed.is_it)(line, a, b));
            match listed {
                Some(listed) => known[listed] += 1,
                None => {
                    for before in at.saturating_sub(SHOWN)..at {
                        println!("{}", short(&script[before], &answers[0][before]));
                    }
                    panic!(
                        "STORE_CONFORMANCE_SEED={seed}, line {at}\n\
                         {one:?}: {}\n{other:?}: {}",
                        short(line, a),
                        short(line, b)
                    );
                }
            }
        }
        seed += 1;
    }
    println!(
        "conformance: {one:?} and {other:?}: {count} answers, seeds {first} to {}",
        seed - 1
    );
    for (listed, times) in DIFFERENCES.iter().zip(known) {
        if listed.between == between {
            println!("    {times} times: {}", listed.reason);
        }
    }
}

fn our_client_and_libxenstore_get_the_same_answers(kind: Kind) {
    compare(
        Between::Clients,
        (kind, Client::Ours),
        (kind, Client::Libxenstore),
    );
}

#[test]
fn the_embedded_daemon_answers_as_xenstored() {
    compare(
        Between::Daemons,
        (Kind::Embedded, Client::Ours),
        (Kind::C, Client::Ours),
    );
}

with_each_daemon!(our_client_and_libxenstore_get_the_same_answers);
