//! xen-store and libxenstore in dom0, on this host's xenstored: a line of the table for each task.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use benches::store::{Bench, HEAD, OWN_CHANGES, READ, ROUNDS_ON_XEN, THREADS, WALK};

/// xenstored's, written at its start.
const PROCESS: &str = "/run/xen/xenstored.pid";

/// Runs every task.
pub(crate) fn run() -> Result<()> {
    let process = fs::read_to_string(PROCESS).with_context(|| PROCESS.to_owned())?;
    let bench = Bench {
        socket: PathBuf::from("/run/xenstored/socket"),
        daemon: process.trim().parse().with_context(|| PROCESS.to_owned())?,
        program: PathBuf::from("/usr/bin/c-store-bench"),
        libraries: None,
        on_xen: true,
        rounds: ROUNDS_ON_XEN,
    };
    bench.furnish()?;
    for line in HEAD {
        println!("row {line}");
    }
    for task in [READ, WALK, THREADS, OWN_CHANGES] {
        eprintln!("{}", task.name);
        println!("row {}", bench.row(&task)?);
    }
    bench.clear()
}
