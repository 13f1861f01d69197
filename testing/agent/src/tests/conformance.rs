//! Random store operations through our client and through libxenstore, on this host's xenstored.
//!
//! Two connections are by its socket and two by the kernel's device. `STORE_CONFORMANCE` and
//! `STORE_CONFORMANCE_SEED` are as in the tests without Xen.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use xen_store::Store;
use xen_store_script::{
    Between, CONNECTIONS, Comparison, DIFFERENCES, Host, Libxenstore, Line, Ours, compare, script,
};

use crate::suite::{Needs, Test};
use crate::world::{PATIENCE, World};

const PLACES: [&str; CONNECTIONS] = [
    "/run/xenstored/socket",
    "/run/xenstored/socket",
    "/dev/xen/xenbus",
    "/dev/xen/xenbus",
];
const PROGRAM: &str = "/usr/bin/c-store-script";
/// Lines of a script.
const LENGTH: usize = 1500;
/// Answers that are compared unless the environment names another number.
const ANSWERS: u64 = 5000;

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "store/as_libxenstore_dom0",
        Needs::Dom0,
        as_libxenstore,
    ));
}

fn as_libxenstore(world: &World) -> Result<()> {
    let number = |name: &str, otherwise| {
        let given = std::env::var(name);
        given.map_or(Ok(otherwise), |text| text.parse::<u64>())
    };
    let wanted = number("STORE_CONFORMANCE", ANSWERS)?;
    let first = number("STORE_CONFORMANCE_SEED", 1)?;
    let (mut count, mut seed) = (0, first);
    let mut known = [0; DIFFERENCES.len()];
    while count < wanted {
        let compared = compare_one(world, seed).with_context(|| format!("seed {seed}"))?;
        count += compared.answers as u64;
        for (known, times) in known.iter_mut().zip(compared.known) {
            *known += times;
        }
        seed += 1;
    }
    println!(
        "conformance: {count} answers, seeds {first} to {}",
        seed - 1
    );
    for (listed, times) in DIFFERENCES.iter().zip(known) {
        if listed.between == Between::Clients {
            println!("    {times} times: {}", listed.reason);
        }
    }
    Ok(())
}

/// Compares the answers to one script.
fn compare_one(world: &World, seed: u64) -> Result<Comparison> {
    let script = script(seed, LENGTH, Host::Live);
    let answers = |mut carry_out: Box<dyn FnMut(&Line) -> String>| -> Result<Vec<String>> {
        let answers = script.iter().map(&mut carry_out).collect();
        // It ends the connections, and with them watches and transactions.
        drop(carry_out);
        world.store.rm("/t")?;
        Ok(answers)
    };
    let mut stores = Vec::new();
    for place in PLACES {
        stores.push(Store::connect(place)?.with_timeout(Some(PATIENCE)));
    }
    let stores = stores.try_into().map_err(|_| anyhow!("too many stores"))?;
    let mut ours = Ours::new(stores);
    let by_us = answers(Box::new(move |line| ours.carry_out(line)))?;
    let mut c = Libxenstore::start(Path::new(PROGRAM), None, &PLACES.map(PathBuf::from));
    let by_c = answers(Box::new(move |line| c.carry_out(line)))?;
    let done = by_us.iter().filter(|answer| answer.starts_with("OK"));
    let done = done.count();
    ensure!(done > LENGTH / 3, "only {done} lines succeeded");
    compare(Between::Clients, &script, &by_us, &by_c).map_err(|difference| anyhow!(difference))
}
