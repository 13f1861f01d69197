//! A simulated host of two processes: the one that has it, and one of a domain that joins by a
//! path.
//!
//! ```text
//! cargo run -p xen-interface --features sim --example simulation
//! ```
//!
//! This crate alone has no ports, pages or store to show; xen-evtchn's `ping`, xen-gnttab's
//! `loopback`, xen-store's `domains` and xen-vchan's `echo` show those on such a host.

use std::error::Error;
use std::process::{Command, Stdio};

use xen_sys::sim::{Limits, Simulation};
use xen_sys::{DomId, Xen};

/// The variable that names the broker to the other process.
const BROKER: &str = "SIMULATION_BROKER";

fn main() -> Result<(), Box<dyn Error>> {
    if let Some(path) = std::env::var_os(BROKER) {
        // The program decides that; `Xen::open` would not look.
        let xen = Xen::join_path(path, DomId::new(1))?;
        let domain = xen.simulated().map(|client| client.domain());
        println!("a process has joined as {domain:?}");
        return Ok(());
    }
    let host = Simulation::start()?;
    let guest = host.add_domain()?;
    println!("domains: {:?}", host.domains());
    let Limits {
        ports,
        shared_pages,
        ..
    } = host.limits(guest)?;
    println!("domain {guest} may have {ports} ports and share {shared_pages} pages");

    let directory = std::env::temp_dir().join(format!("simulation-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let joined = join_from_another_process(&host, &directory.join("broker"));
    std::fs::remove_dir_all(&directory)?;
    joined?;

    host.destroy_domain(guest)?;
    println!("domains: {:?}", host.domains());
    if host.xen(guest).is_ok() {
        return Err("a domain that was destroyed can be joined".into());
    }
    host.assert_clean();
    Ok(())
}

fn join_from_another_process(
    host: &Simulation,
    path: &std::path::Path,
) -> Result<(), Box<dyn Error>> {
    host.listen(path)?;
    let status = Command::new(std::env::current_exe()?)
        .env(BROKER, path)
        .stdin(Stdio::null())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("the other process: {status}").into())
    }
}
