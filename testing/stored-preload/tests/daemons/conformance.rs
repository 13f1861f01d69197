//! The same scripts through our client and through libxenstore, and on one daemon and another.
//!
//! A script has the operations of two connections of domain 0 and of two guests, whose connections
//! are rings where the daemon is a process. Each runs on a fresh daemon, one operation at a time,
//! so its answers depend on its seed alone. Every answer is compared; so are the events of every
//! watch, which are asked for by operations of their own. `xen-store-script` makes and compares them.
//!
//! | environment | |
//! |---|---|
//! | `STORE_CONFORMANCE` | answers to compare in each test; 2,000 unless given |
//! | `STORE_CONFORMANCE_SEED` | the first script's seed; 1 unless given |

use std::convert::Infallible;
use std::os::unix::net::{UnixListener, UnixStream};

use xen_store_script::{
    Between, Comparison, FIRST_GUEST, GUESTS, Host, IDLE, Libxenstore, Line, Ours, short,
};
use xen_sys::DomId;

use crate::daemon::{self, Daemon, Kind};
use crate::rounds::{LIMIT, number};
use crate::with_each_daemon;

/// No answer in time, and no daemon any more.
const LOST: [&str; 2] = ["E110", "E32"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Ours,
    Libxenstore,
}

/// Carries a script out on a fresh daemon.
fn answers(kind: Kind, client: Client, seed: u64, script: &[Line]) -> Vec<String> {
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
            let root = daemon::c_root();
            let libraries = daemon::libraries(&root);
            let program = root.join("c/c-store-script");
            let mut c = Libxenstore::start(&program, Some(&libraries), &sockets);
            for (guest, (listener, _)) in GUESTS.iter().zip(&listeners) {
                daemon.attach(*guest, listener.accept().unwrap().0);
            }
            all(Box::new(move |line| c.carry_out(line)))
        }
    }
}

/// A run of a script: the daemon, and the client that carries it out.
type Side = (Kind, Client);

/// Compares as many answers as the environment asks for.
fn compare(between: Between, one: Side, other: Side) {
    let number = |name, otherwise| number(name, otherwise) as u64;
    let wanted = number("STORE_CONFORMANCE", 2000);
    let first = number("STORE_CONFORMANCE_SEED", 1);
    let host = if [one.0, other.0].contains(&Kind::OCaml) {
        Host::Oxenstored
    } else {
        Host::Xenstored
    };
    let compared = Comparison::run(between, host, first, wanted, |seed, script| {
        Ok::<_, Infallible>([one, other].map(|(kind, client)| answers(kind, client, seed, script)))
    });
    match compared {
        Ok(compared) => println!("conformance: {one:?} and {other:?}: {compared}"),
        Err(difference) => panic!("{one:?} and {other:?} differ\n{difference}"),
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
