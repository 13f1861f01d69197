//! Lists the domains of a host, as `xl list` does.
//!
//! ```text
//! xen-list                                                             # in domain 0
//! cargo run -p xen-interface --features sim --example xen-list -- --sim 50   # anywhere
//! ```
//!
//! The letters: running, blocked, paused, shut down, crashed, dying.

mod common;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;
use xen_sys::privcmd::{DomainFlags, DomainInfo, ShutdownReason};

use common::Host;

/// Lists the domains of a host.
#[derive(Debug, Parser)]
struct Options {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Look at a simulated host with that many guests.
    #[arg(long, value_name = "GUESTS")]
    sim: Option<u16>,
}

pub(crate) fn main() -> ExitCode {
    match list(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xen-list: {e}");
            ExitCode::FAILURE
        }
    }
}

fn list(options: &Options) -> Result<(), Box<dyn Error>> {
    let host = Host::open(options.sim)?;
    let domains = host.privcmd.domains()?;
    if options.json {
        let domains: Vec<_> = domains.iter().map(|info| as_json(&host, info)).collect();
        println!("{}", serde_json::to_string_pretty(&domains)?);
        return Ok(());
    }
    println!(
        "{:<40} {:>5} {:>8} {:>5}  {:<6} {:>10}",
        "Name", "ID", "Mem/MiB", "VCPUs", "State", "Time/s"
    );
    for info in &domains {
        println!(
            "{:<40} {:>5} {:>8} {:>5}  {:<6} {:>10.1}",
            host.name(info.id).unwrap_or_else(|| "(null)".into()),
            info.id,
            (info.pages + info.outstanding_pages) >> 8,
            info.online_vcpus,
            letters(info),
            info.cpu_time.as_secs_f64(),
        );
    }
    Ok(())
}

fn letters(info: &DomainInfo) -> String {
    let crashed = info.shutdown == Some(ShutdownReason::CRASH);
    let has = |flag| info.flags.contains(flag);
    let letter = |(set, letter)| if set { letter } else { '-' };
    [
        (has(DomainFlags::RUNNING), 'r'),
        (has(DomainFlags::BLOCKED), 'b'),
        (has(DomainFlags::PAUSED), 'p'),
        (has(DomainFlags::SHUTDOWN) && !crashed, 's'),
        (crashed, 'c'),
        (has(DomainFlags::DYING), 'd'),
    ]
    .map(letter)
    .iter()
    .collect()
}

fn as_json(host: &Host, info: &DomainInfo) -> serde_json::Value {
    let flags: Vec<_> = info.flags.iter_names().map(|(name, _)| name).collect();
    json!({
        "id": info.id.as_u16(),
        "name": host.name(info.id),
        "uuid": info.handle.to_string(),
        "flags": flags,
        "shutdown": info.shutdown.map(|reason| reason.to_string()),
        "memory_bytes": info.memory_bytes(),
        "max_pages": info.max_pages,
        "outstanding_pages": info.outstanding_pages,
        "online_vcpus": info.online_vcpus,
        "vcpus": info.vcpus(),
        "cpu_seconds": info.cpu_time.as_secs_f64(),
        "cpupool": info.cpupool,
    })
}
