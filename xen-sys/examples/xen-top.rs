//! Shows what the domains of a host do, as `xentop` does: once, or again and again.
//!
//! ```text
//! xen-top                                                                    # in domain 0
//! cargo run -p xen-interface --features sim --example xen-top -- --sim 5 --once    # anywhere
//! ```
//!
//! The share of the CPU is of one CPU, over the time since the last look; at the first one it is
//! not known.

mod common;

use std::collections::HashMap;
use std::error::Error;
use std::io::{IsTerminal as _, Write as _, stdout};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;
use xen_sys::DomId;
use xen_sys::privcmd::{DomainHandle, DomainInfo, PhysInfo};

use common::Host;

/// Shows what the domains of a host do.
#[derive(Debug, Parser)]
struct Options {
    /// Look once, over one interval, and end.
    #[arg(long)]
    once: bool,
    /// Print JSON, a line for each look.
    #[arg(long)]
    json: bool,
    /// Seconds between two looks.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    interval: f64,
    /// Look at a simulated host with that many guests.
    #[arg(long, value_name = "GUESTS")]
    sim: Option<u16>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.05..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number from 0.05 to 3600".into()),
    }
}

pub(crate) fn main() -> ExitCode {
    match top(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xen-top: {e}");
            ExitCode::FAILURE
        }
    }
}

/// A look at the host.
struct Look {
    at: Instant,
    machine: PhysInfo,
    domains: Vec<DomainInfo>,
}

impl Look {
    fn take(host: &Host) -> xen_sys::Result<Self> {
        Ok(Self {
            at: Instant::now(),
            machine: host.privcmd.phys_info()?,
            domains: host.privcmd.domains()?,
        })
    }
}

fn top(options: &Options) -> Result<(), Box<dyn Error>> {
    let host = Host::open(options.sim)?;
    let mut before = Look::take(&host)?;
    loop {
        std::thread::sleep(Duration::from_secs_f64(options.interval));
        let now = Look::take(&host)?;
        let text = if options.json {
            as_json(&host, &before, &now).to_string() + "\n"
        } else {
            table(&host, &before, &now)
        };
        let mut out = stdout().lock();
        if !options.once && !options.json && out.is_terminal() {
            // To the top left, and clear what is below.
            out.write_all(b"\x1b[H\x1b[J")?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()?;
        if options.once {
            return Ok(());
        }
        before = now;
    }
}

/// Percent of one CPU that each domain used between two looks. A number that has become another
/// domain's is a new domain.
fn shares(before: &Look, now: &Look) -> HashMap<DomId, f64> {
    let key = |info: &DomainInfo| -> (DomId, DomainHandle) { (info.id, info.handle) };
    let known: HashMap<_, _> = before
        .domains
        .iter()
        .map(|info| (key(info), info.cpu_time))
        .collect();
    let wall = now.at.duration_since(before.at).as_secs_f64();
    let share = |info: &DomainInfo| {
        let used = info.cpu_time.saturating_sub(*known.get(&key(info))?);
        Some((info.id, 100.0 * used.as_secs_f64() / wall))
    };
    now.domains.iter().filter_map(share).collect()
}

fn table(host: &Host, before: &Look, now: &Look) -> String {
    let machine = &now.machine;
    let mut text = format!(
        "{} domains, {} CPUs at {} MHz; memory: {} MiB, {} free\n",
        now.domains.len(),
        machine.cpus,
        machine.cpu_khz / 1000,
        machine.total_bytes() >> 20,
        machine.free_bytes() >> 20,
    );
    text += &format!(
        "{:>5} {:<24} {:>10} {:>7} {:>9} {:>6} {:>5}\n",
        "ID", "Name", "CPU/s", "CPU/%", "Mem/MiB", "Mem/%", "VCPUs"
    );
    let shares = shares(before, now);
    for info in &now.domains {
        let share = shares.get(&info.id).map(|share| format!("{share:.1}"));
        let memory = 100.0 * info.memory_bytes() as f64 / machine.total_bytes().max(1) as f64;
        text += &format!(
            "{:>5} {:<24} {:>10.1} {:>7} {:>9} {:>6.1} {:>5}\n",
            info.id.as_u16(),
            host.name(info.id).unwrap_or_else(|| "(null)".into()),
            info.cpu_time.as_secs_f64(),
            share.unwrap_or_else(|| "-".into()),
            info.memory_bytes() >> 20,
            memory,
            info.online_vcpus,
        );
    }
    text
}

fn as_json(host: &Host, before: &Look, now: &Look) -> serde_json::Value {
    let shares = shares(before, now);
    let domain = |info: &DomainInfo| {
        json!({
            "id": info.id.as_u16(),
            "name": host.name(info.id),
            "cpu_seconds": info.cpu_time.as_secs_f64(),
            "cpu_percent": shares.get(&info.id),
            "memory_bytes": info.memory_bytes(),
            "online_vcpus": info.online_vcpus,
        })
    };
    json!({
        "cpus": now.machine.cpus,
        "cpu_khz": now.machine.cpu_khz,
        "total_bytes": now.machine.total_bytes(),
        "free_bytes": now.machine.free_bytes(),
        "domains": now.domains.iter().map(domain).collect::<Vec<_>>(),
    })
}
