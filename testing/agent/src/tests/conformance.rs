//! Random store operations through our client and through libxenstore, on this host's xenstored.
//!
//! Two connections are by its socket and two by the kernel's device. `STORE_CONFORMANCE_SEED` names
//! another script.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use xen_store::Store;
use xen_store_script::{
    Between, CONNECTIONS, DIFFERENCES, Host, Libxenstore, Line, Ours, compare, script,
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
/// Lines of the script.
const LENGTH: usize = 1500;

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "store/as_libxenstore_dom0",
        Needs::Dom0,
        as_libxenstore,
    ));
}

fn as_libxenstore(world: &World) -> Result<()> {
    let seed = std::env::var("STORE_CONFORMANCE_SEED").map_or(Ok(1), |seed| seed.parse())?;
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
    let compared = compare(Between::Clients, &script, &by_us, &by_c);
    let compared = compared.map_err(|difference| anyhow!("seed {seed}: {difference}"))?;
    println!("conformance: {} answers, seed {seed}", compared.answers);
    for (listed, times) in DIFFERENCES.iter().zip(compared.known) {
        if listed.between == Between::Clients {
            println!("    {times} times: {}", listed.reason);
        }
    }
    let is_done = |answer: &&String| answer.starts_with("OK");
    let done = by_us.iter().filter(is_done).count();
    ensure!(done > LENGTH / 3, "only {done} lines succeeded");
    Ok(())
}
