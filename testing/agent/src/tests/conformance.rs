//! Random store operations through our client and through libxenstore, on this host's xenstored.
//!
//! Two connections are by its socket and two by the kernel's device. `STORE_CONFORMANCE` and
//! `STORE_CONFORMANCE_SEED` are as in the tests without Xen.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use xen_store::Store;
use xen_store_script::{Between, CONNECTIONS, Comparison, Host, Libxenstore, Line, Ours};

use crate::host::{PATIENCE, TestHost};
use crate::suite::{Needs, Test};

const PLACES: [&str; CONNECTIONS] = [
    "/run/xenstored/socket",
    "/run/xenstored/socket",
    "/dev/xen/xenbus",
    "/dev/xen/xenbus",
];
const PROGRAM: &str = "/usr/bin/c-store-script";
/// Answers that are compared unless the environment names another number.
const ANSWERS: u64 = 5000;

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "store/as_libxenstore_dom0",
        Needs::Dom0,
        as_libxenstore,
    ));
}

fn as_libxenstore(host: &TestHost) -> Result<()> {
    let number = |name: &str, otherwise| {
        let given = std::env::var(name);
        given.map_or(Ok(otherwise), |text| text.parse::<u64>())
    };
    let wanted = number("STORE_CONFORMANCE", ANSWERS)?;
    let first = number("STORE_CONFORMANCE_SEED", 1)?;
    let compared = Comparison::run(Between::Clients, Host::Live, first, wanted, |_, script| {
        both(host, script)
    });
    println!(
        "conformance: {}",
        compared.map_err(|difference| anyhow!(difference))?
    );
    Ok(())
}

/// Carries a script out by our client, then by libxenstore.
fn both(host: &TestHost, script: &[Line]) -> Result<[Vec<String>; 2]> {
    let mut stores = Vec::new();
    for place in PLACES {
        stores.push(Store::connect(place)?.with_timeout(Some(PATIENCE)));
    }
    let stores = stores.try_into().map_err(|_| anyhow!("too many stores"))?;
    let mut ours = Ours::new(stores);
    let by_us: Vec<_> = script.iter().map(|line| ours.carry_out(line)).collect();
    // Its connections end, and with them watches and transactions.
    drop(ours);
    host.store.rm("/t")?;
    let mut c = Libxenstore::start(Path::new(PROGRAM), None, &PLACES.map(PathBuf::from));
    let by_c = script.iter().map(|line| c.carry_out(line)).collect();
    drop(c);
    host.store.rm("/t")?;
    let done = by_us.iter().filter(|answer| answer.starts_with("OK"));
    let (done, all) = (done.count(), by_us.len());
    ensure!(done > all / 3, "only {done} of {all} lines succeeded");
    Ok([by_us, by_c])
}
