//! Many clients whose transactions conflict.

use xen_store::{Error, Transaction};

use crate::daemon::{Daemon, Kind};
use crate::rounds::{Calls, rounds};
use crate::with_each_daemon;

const CLIENTS: usize = 32;
const EACH: usize = 20;

fn increment(transaction: &Transaction) -> Result<(), Error> {
    let count: usize = transaction.read_str("/count")?.parse().unwrap();
    transaction.write("/count", (count + 1).to_string())
}

fn many_clients_that_count_all_get_their_turn(kind: Kind) {
    rounds(format_args!("{kind:?}, with_transaction"), || {
        let daemon = Daemon::start(kind);
        let store = daemon.store();
        store.write("/count", "0").unwrap();
        let mut calls = Calls::new();
        for _ in 0..CLIENTS {
            let client = daemon.store();
            calls.spawn(move || -> Vec<Error> {
                (0..EACH)
                    .filter_map(|_| client.with_transaction(increment).err())
                    .collect()
            });
        }
        let errors: Vec<Error> = calls.join()?.into_iter().flatten().collect();
        let count = store.read_str("/count").unwrap();
        if errors.is_empty() && count == (CLIENTS * EACH).to_string() {
            Ok(())
        } else {
            Err(format!(
                "{} errors, first {:?}; count {count}",
                errors.len(),
                errors.first()
            ))
        }
    });
}

with_each_daemon!(many_clients_that_count_all_get_their_turn);
