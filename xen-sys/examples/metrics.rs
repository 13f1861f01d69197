//! Prints what a host and its domains use, in Prometheus's text format: once, for the textfile
//! collector of its node exporter, or to each client of a socket.
//!
//! ```text
//! metrics > /var/lib/prometheus/node-exporter/xen.prom                    # in domain 0
//! metrics --listen 127.0.0.1:9120                                         # the same
//! cargo run -p xen-interface --features sim --example metrics -- --sim 5        # anywhere
//! ```
//!
//! A domain that ends between two of the questions is left out. Listening is for a trusted network:
//! one client is served at a time, for five seconds at most.

mod common;

use std::error::Error;
use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write as _, stdout};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use xen_sys::privcmd::{DomainFlags, DomainInfo, VcpuInfo};

use crate::common::Host;

/// Prints what a host and its domains use, for Prometheus.
#[derive(Debug, Parser)]
struct Options {
    /// Answer HTTP requests at this address, instead of printing once.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Look at a simulated host with that many guests.
    #[arg(long, value_name = "GUESTS")]
    sim: Option<u16>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("metrics: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let host = Host::open(options.sim)?;
    let Some(address) = options.listen else {
        return Ok(stdout().write_all(metrics(&host)?.as_bytes())?);
    };
    let listener = TcpListener::bind(address)?;
    // The port, if it was left to the system.
    println!("http://{}/metrics", listener.local_addr()?);
    loop {
        // A client that leaves early, or is too slow, ends nothing.
        let served = listener
            .accept()
            .and_then(|(client, _)| serve(&host, client));
        if let Err(error) = served {
            eprintln!("metrics: a client: {error}");
        }
    }
}

/// The longest request that is read, in bytes.
const REQUEST: usize = 8192;
/// The longest time that a client has.
const LIMIT: Duration = Duration::from_secs(5);

/// Answers one request, whatever it asks for.
fn serve(host: &Host, mut client: TcpStream) -> std::io::Result<()> {
    let end = Instant::now() + LIMIT;
    let mut request = Vec::new();
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        if request.len() >= REQUEST {
            return Err(ErrorKind::InvalidData.into());
        }
        client.set_read_timeout(Some(left(end)?))?;
        let mut part = [0; 1024];
        match client.read(&mut part)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            len => request.extend_from_slice(&part[..len]),
        }
    }
    let (status, body) = match metrics(host) {
        Ok(body) => ("200 OK", body),
        Err(error) => ("503 Service Unavailable", format!("{error}\n")),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let answer = head + &body;
    let mut rest = answer.as_bytes();
    // Each turn looks at the clock: a client may take the answer byte by byte.
    while !rest.is_empty() {
        client.set_write_timeout(Some(left(end)?))?;
        match client.write(rest)? {
            0 => return Err(ErrorKind::WriteZero.into()),
            sent => rest = &rest[sent..],
        }
    }
    Ok(())
}

/// Returns the time until `end`, or an error when there is none.
fn left(end: Instant) -> std::io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    let some = Some(left).filter(|left| !left.is_zero());
    some.ok_or_else(|| ErrorKind::TimedOut.into())
}

/// One look at the host.
fn metrics(host: &Host) -> xen_sys::Result<String> {
    let machine = host.privcmd.phys_info()?;
    let domains: Vec<Domain> = host
        .privcmd
        .domains()?
        .into_iter()
        .filter_map(|info| Domain::look(host, info).transpose())
        .collect::<xen_sys::Result<_>>()?;

    let mut text = String::new();
    let mut gauge = |name, help, value: u64| {
        family(
            &mut text,
            name,
            "gauge",
            help,
            [(String::new(), value as f64)],
        );
    };
    gauge("xen_host_cpus", "CPUs that Xen uses.", machine.cpus.into());
    let hertz = u64::from(machine.cpu_khz) * 1000;
    gauge("xen_host_cpu_hertz", "Frequency of a CPU.", hertz);
    let (total, free) = (machine.total_bytes(), machine.free_bytes());
    gauge("xen_host_memory_bytes", "Memory of the host.", total);
    gauge("xen_host_memory_free_bytes", "Memory of no domain.", free);
    let count = domains.len() as u64;
    gauge("xen_domains", "Domains, domain 0 included.", count);

    let mut each = |name, kind, help, value: &dyn Fn(&DomainInfo) -> f64| {
        let samples = domains.iter().map(|d| (d.labels.clone(), value(&d.info)));
        family(&mut text, name, kind, help, samples);
    };
    each(
        "xen_domain_cpu_seconds_total",
        "counter",
        "Time on CPUs, of all virtual CPUs.",
        &|info| info.cpu_time.as_secs_f64(),
    );
    each(
        "xen_domain_memory_bytes",
        "gauge",
        "Memory that the domain has.",
        &|info| info.memory_bytes() as f64,
    );
    each(
        "xen_domain_memory_max_bytes",
        "gauge",
        "Memory that the domain may have.",
        &|info| info.max_memory_bytes() as f64,
    );
    each(
        "xen_domain_vcpus_online",
        "gauge",
        "Virtual CPUs that the guest has online.",
        &|info| info.online_vcpus.into(),
    );
    each(
        "xen_domain_paused",
        "gauge",
        "Whether the domain is paused.",
        &|info| f64::from(u8::from(info.flags.contains(DomainFlags::PAUSED))),
    );
    let vcpus = domains.iter().flat_map(|domain| {
        domain.vcpus.iter().map(|vcpu| {
            let labels = format!("{},vcpu=\"{}\"", domain.labels, vcpu.id);
            (labels, vcpu.cpu_time.as_secs_f64())
        })
    });
    let help = "Time of a virtual CPU on CPUs.";
    family(
        &mut text,
        "xen_domain_vcpu_seconds_total",
        "counter",
        help,
        vcpus,
    );
    Ok(text)
}

/// Writes one metric: its samples by their labels.
fn family(
    text: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    samples: impl IntoIterator<Item = (String, f64)>,
) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = match labels.as_str() {
            "" => writeln!(text, "{name} {value}"),
            labels => writeln!(text, "{name}{{{labels}}} {value}"),
        };
    }
}

/// One domain.
struct Domain {
    info: DomainInfo,
    vcpus: Vec<VcpuInfo>,
    /// `domid="7",name="guest-7"`.
    labels: String,
}

impl Domain {
    /// Looks at a domain of the list; `None` if it has ended since.
    fn look(host: &Host, info: DomainInfo) -> xen_sys::Result<Option<Self>> {
        let mut vcpus = Vec::new();
        for vcpu in 0..info.vcpus() {
            match host.privcmd.vcpu_info(info.id, vcpu) {
                Ok(vcpu) => vcpus.extend(vcpu),
                Err(xen_sys::Error::NoDomain { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let name = host.name(info.id).unwrap_or_default();
        // Other control characters have been replaced.
        let name = name.replace('\\', "\\\\").replace('"', "\\\"");
        let labels = format!("domid=\"{}\",name=\"{name}\"", info.id);
        Ok(Some(Self {
            info,
            vcpus,
            labels,
        }))
    }
}
