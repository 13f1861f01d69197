//! Ours and upstream's `vchan-socket-proxy` side by side on one guest: the same stubdomain and the
//! same server in it, one proxy after another.
//!
//! One line for each proxy, `row` and a JSON object. The testbed's clock counts instructions: the
//! ratios show which proxy needs less work, and nothing about a real machine.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::guest::Guest;
use crate::host::{TestHost, command, soon};
use crate::qmp::Qmp;
use crate::suite::Needs;

/// Ours, by the name that libxl starts.
const OURS: &str = "/usr/bin/vchan-socket-proxy";
/// Debian's, where our package has put it.
const UPSTREAMS: &str = "/usr/bin/vchan-socket-proxy.distrib";
/// The measured proxies: a name, a program, its options, and whether connections in a row are made.
const PROXIES: &[(&str, &str, &[&str], bool)] = &[
    ("vchan-socket-proxy", UPSTREAMS, &[], true),
    ("stubdm-run", OURS, &[], true),
    ("stubdm-run --sandbox=off", OURS, &["--sandbox=off"], false),
    ("stubdm-run --filter=off", OURS, &["--filter=off"], false),
    (
        "stubdm-run --filter=off --sandbox=off",
        OURS,
        &["--filter=off", "--sandbox=off"],
        false,
    ),
];
/// Connections in a row.
const CONNECTIONS: usize = 1000;
/// Commands on one connection.
const COMMANDS: usize = 300;
/// How long an answer may take before it counts as lost: several hundred times what it does take.
const LOST: Duration = Duration::from_secs(3);
/// Lost connections after which no more are tried.
const ENOUGH: usize = 40;
/// Starts of each proxy.
const STARTS: usize = 15;

/// Runs both.
pub(crate) fn run() -> Result<()> {
    let host = TestHost::new()?;
    host.provide(Needs::Guest)?;
    let guest = host.take_guest()?;
    let measured = both(&host, &guest);
    guest.destroy()?;
    measured
}

fn both(host: &TestHost, guest: &Guest) -> Result<()> {
    // The vchan takes one client: libxl's proxy has to go.
    let node = format!("/local/domain/{}/image/qmp-proxy-pid", guest.stub);
    let pid = host.store.read_str(&node).context(node)?;
    command(&["kill", "-HUP", &pid])?;
    for proxy in PROXIES {
        println!("row {}", one(host, guest, proxy)?);
    }
    Ok(())
}

/// A proxy that runs; its log is a file, as libxl has it. Dropping it ends it.
#[derive(Debug)]
struct Proxy(Child);

impl Proxy {
    /// Between the guest's stubdomain and a socket of its own; when it was started, and how long it
    /// took to be ready.
    fn start(
        host: &TestHost,
        guest: &Guest,
        program: &str,
        options: &[&str],
        socket: &str,
    ) -> Result<(Self, Instant, Duration)> {
        const STATE: &str = "/xen-testbed/qmp-proxy-state";
        const LOG: &str = "/tmp/qmp-bench.log";
        let _ = fs::remove_file(socket);
        let _ = host.store.rm(STATE);
        let watch = host.store.watch(STATE)?;
        let log = File::create(LOG)?;
        let began = Instant::now();
        let child = Command::new(program)
            .arg(format!("--state-path={STATE}"))
            .args(options)
            .arg(guest.stub.to_string())
            .arg(format!(
                "/local/domain/{}/device-model/{}/qmp-vchan",
                guest.stub, guest.id
            ))
            .arg(socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context(program.to_owned())?;
        let proxy = Self(child);
        while host.store.read_str(STATE).is_err() {
            let event = watch.next(Some(soon()))?;
            ensure!(
                event.is_some(),
                "{program} does not start: {}",
                fs::read_to_string(LOG)?
            );
        }
        let took = began.elapsed();
        drop(watch);
        host.store.rm("/xen-testbed")?;
        Ok((proxy, began, took))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // As libxl ends it.
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGHUP);
        }
        let _ = self.0.wait();
    }
}

fn one(
    host: &TestHost,
    guest: &Guest,
    (name, program, options, many): &(&str, &str, &[&str], bool),
) -> Result<serde_json::Value> {
    const SOCKET: &str = "/tmp/qmp-bench";
    let (mut starts, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let (proxy, began, took) = Proxy::start(host, guest, program, options, SOCKET)?;
        starts.push(took);
        // A failure here is counted among the connections in a row.
        if conversation(SOCKET).is_ok() {
            answers.push(began.elapsed());
        }
        drop(proxy);
    }
    let (proxy, ..) = Proxy::start(host, guest, program, options, SOCKET)?;
    let mut trips =
        round_trips(SOCKET).with_context(|| format!("a conversation through {name}"))?;
    let (mut tried, mut failed, mut whole) = (0, 0, Vec::new());
    while *many && tried < CONNECTIONS && failed < ENOUGH {
        tried += 1;
        let began = Instant::now();
        match conversation(SOCKET) {
            Ok(()) => whole.push(began.elapsed()),
            Err(error) => {
                failed += 1;
                println!("{name}, connection {tried}: {error:#}");
            }
        }
    }
    drop(proxy);
    let _ = fs::remove_file(SOCKET);
    Ok(json!({
        "proxy": name,
        "start_us": spread(&mut starts),
        "answer_us": spread(&mut answers),
        "command_us": spread(&mut trips),
        "conversation_us": spread(&mut whole),
        "connections": tried,
        "failed": failed,
    }))
}

/// Does what libxl does for each operation.
fn conversation(socket: &str) -> Result<()> {
    let mut qmp = Qmp::connect_within(socket, LOST)?;
    let status = qmp.execute("query-status", None)?;
    ensure!(status["running"] == true, "QEMU says {status}");
    Ok(())
}

fn round_trips(socket: &str) -> Result<Vec<Duration>> {
    let mut qmp = Qmp::connect(socket)?;
    let trip = |_| {
        let began = Instant::now();
        qmp.execute("query-status", None)?;
        Ok(began.elapsed())
    };
    (0..COMMANDS).map(trip).collect()
}

/// The median and what 99 of 100 do not exceed, in microseconds; none of nothing.
fn spread(times: &mut [Duration]) -> Option<[u64; 2]> {
    times.sort();
    let at = |percent: usize| {
        let index = (times.len() * percent).div_ceil(100).saturating_sub(1);
        u64::try_from(times.get(index)?.as_micros()).ok()
    };
    Some([at(50)?, at(99)?])
}
