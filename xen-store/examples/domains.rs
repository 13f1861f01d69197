//! Two domains and a store on a simulated host: rights, a watch and a transaction.
//!
//! ```text
//! cargo run -p xen-store --features sim --example domains
//! ```
//!
//! With `Xen::open()` in place of `host.xen(..)` each half is a program for a real one.

use std::error::Error;
use std::time::{Duration, Instant};

use xen_store::{Permissions, Store};
use xen_store_server::{Config, sim};
use xen_sys::{DomId, sim::Simulation};

fn main() -> Result<(), Box<dyn Error>> {
    let host = Simulation::start()?;
    let stored = sim::start(&host, Config::new())?;
    let guest = host.add_domain()?;
    stored.add_domain(guest);
    let dom0 = Store::open(&host.xen(DomId::DOM0)?)?;
    let domu = Store::open(&host.xen(guest)?)?;

    // A node of domain 0's that the guest may read and not write.
    let home = dom0.domain_path(guest)?;
    let node = format!("{home}/greeting");
    dom0.write(&node, "hello")?;
    let rights = Permissions::owner_none(DomId::DOM0).grant_read(guest);
    dom0.set_permissions(&node, &rights)?;
    // A guest's relative paths begin at its home.
    println!("the guest reads: {}", domu.read_str("greeting")?);
    match domu.write("greeting", "forged") {
        Err(error) if error.is_denied() => println!("the guest writes: {error}"),
        other => return Err(format!("a write without the right: {other:?}").into()),
    }

    // Domain 0 waits for the guest's node. The first event of a watch arrives immediately.
    let answer = format!("{home}/data/answer");
    let watch = dom0.watch(&answer)?;
    let soon = || Some(Instant::now() + Duration::from_secs(10));
    watch.next(soon())?.ok_or("no first event")?;
    domu.write("data/answer", "good day")?;
    let event = watch.next(soon())?.ok_or("no event")?;
    println!("{} is now {}", event.path, dom0.read_str(&event.path)?);

    // Both count in one node, and no step is lost.
    domu.write("data/count", "0")?;
    for store in [&dom0, &domu, &dom0] {
        store.with_transaction(|t| {
            let path = format!("{home}/data/count");
            let count: u32 = t.read_str(&path)?.parse().unwrap_or(0);
            t.write(&path, (count + 1).to_string())
        })?;
    }
    let count = domu.read_str("data/count")?;
    println!("counted to {count}");
    if count != "3" {
        return Err("a step was lost".into());
    }
    drop((watch, dom0, domu));
    host.assert_clean();
    Ok(())
}

#[test]
fn it_runs() {
    main().unwrap();
}
