//! A directory whose list of children is longer than a message may be.

use xen_store::{Error, Result};

use crate::asynchronous::{connect, runtime};
use crate::daemon::{Daemon, Kind};
use crate::rounds::rounds;
use crate::with_each_daemon;

/// Together the names have 66,000 bytes, the NUL after each included.
const CHILDREN: usize = 1320;
const NAME: usize = 49;
const LIST: usize = CHILDREN * (NAME + 1);

/// oxenstored 4.17 sends the list in one message and has no DIRECTORY_PART: the request fails.
fn check(
    kind: Kind,
    listed: Result<Vec<String>>,
    names: &[String],
) -> std::result::Result<(), String> {
    match (kind, listed) {
        (Kind::OCaml, Err(Error::TooLong { len: LIST, .. })) => Ok(()),
        (Kind::C | Kind::Embedded, Ok(mut listed)) => {
            listed.sort();
            if listed == names {
                Ok(())
            } else {
                Err(format!("{} names, or others", listed.len()))
            }
        }
        (_, listed) => Err(format!("{:?}", listed.map(|names| names.len()))),
    }
}

fn a_long_directory_does_not_end_the_connection(kind: Kind) {
    rounds(format_args!("{kind:?}, a long directory"), || {
        let daemon = Daemon::start(kind);
        let store = daemon.store();
        let names: Vec<String> = (0..CHILDREN).map(|n| format!("{n:0NAME$}")).collect();
        for name in &names {
            store.mkdir(&format!("/long/{name}")).unwrap();
        }
        check(kind, store.directory("/long"), &names)?;
        store.mkdir("/long").map_err(|error| error.to_string())?;
        runtime(0).block_on(async {
            let store = connect(&daemon.socket());
            check(kind, store.directory("/long").await, &names)?;
            let after = store.mkdir("/long").await;
            after.map_err(|error| error.to_string())
        })
    });
}

with_each_daemon!(a_long_directory_does_not_end_the_connection);
