//! A guest's start, step by step: with our init in its stubdomain, with a shell as the init, and
//! with its QEMU in dom0.
//!
//! One line for each start, `row` and a JSON object of its steps in milliseconds, by dom0's clock,
//! which is the machine's. A store watch gives the moments; the init's own begin is the distance
//! that its log states.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use xen_store::Store;
use xen_sys::Xen;

use crate::guest::{CONFIG, LOG, NAME, STUB, destroy_leftover, diagnosis, domid, listed};
use crate::host::{command, soon, start_local};
use crate::qmp::Qmp;

/// Memory with which each init starts.
const MEMORY: &str = "stubdomain_memory=400";
/// The QEMU that our package has put aside.
const QEMU: &str = "/usr/libexec/xen-qemu-system-i386.distrib";
/// The kernel's command line in [`CONFIG`] without `quiet`.
const LOUD: &str = "stubdomain_cmdline=\"console=hvc0 rdinit=/init mitigations=off nokaslr \
                    cryptomgr.notests 8250.nr_uarts=0\"";

/// The same with the init's every line.
const VERBOSE: &str = "stubdomain_cmdline=\"console=hvc0 rdinit=/init quiet mitigations=off nokaslr \
                       cryptomgr.notests 8250.nr_uarts=0 stubdm.verbose\"";
/// The stubdomain's ramdisk.
const RAMDISK: &str = "/boot/stub.img";
/// Memories of stubdomains, in MiB: libxl's default, and the least that is tested.
const MEMORIES: &[u64] = &[128, 112];

/// The place and maker of a guest's device model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeviceModel {
    Ours,
    Shell,
    Dom0,
}

impl DeviceModel {
    const ALL: [Self; 3] = [Self::Ours, Self::Shell, Self::Dom0];

    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "stubdm-run",
            Self::Shell => "shell",
            Self::Dom0 => "dom0",
        }
    }

    /// Lines of configuration besides [`CONFIG`].
    fn lines(self, shell: &str) -> Vec<String> {
        match self {
            Self::Ours => vec![MEMORY.to_owned()],
            Self::Shell => vec![MEMORY.to_owned(), format!("stubdomain_ramdisk=\"{shell}\"")],
            Self::Dom0 => vec![
                "device_model_stubdomain_override=0".to_owned(),
                format!("device_model_override=\"{QEMU}\""),
            ],
        }
    }
}

/// Starts the guest `times` times in each way, in turn, and once with all of the kernel's lines;
/// `shell` is the ramdisk with a shell as its init.
pub(crate) fn run(shell: &str, times: usize) -> Result<()> {
    let store = Store::open(&Xen::open()?)?;
    // The first start reads files that the others find in memory.
    let _ = one(&store, DeviceModel::Ours, shell)?;
    for _ in 0..times {
        for way in DeviceModel::ALL {
            println!("row {}", one(&store, way, shell)?);
        }
    }
    println!("row {}", kernel()?);
    for mib in MEMORIES {
        println!("row {}", memory(*mib)?);
    }
    Ok(())
}

/// Returns the lines of the init's log about its domain's memory: at its first lines, and when the
/// guest runs.
fn memory(mib: u64) -> Result<Value> {
    let given = format!("stubdomain_memory={mib}");
    let created = command(&["xl", "create", CONFIG, &given, VERBOSE]);
    let found = created.and_then(|_| {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let log = fs::read_to_string(LOG).context(LOG)?;
            let find = |text: &str| {
                let line = log.lines().rev().find_map(|line| line.split_once(text));
                line.map(|(_, facts)| facts.to_owned())
            };
            let begin = find("memory in KiB at the start: ");
            match (begin, find("memory in KiB: ")) {
                (Some(begin), Some(running)) => return Ok([begin, running]),
                _ => ensure!(Instant::now() < deadline, "no lines about memory"),
            }
            thread::sleep(Duration::from_millis(200));
        }
    });
    let found = found.with_context(|| format!("{mib} MiB{}", diagnosis()));
    gone()?;
    let [begin, running] = found?;
    let ramdisk = fs::metadata(RAMDISK).context(RAMDISK)?.len();
    Ok(json!({"way": "memory", "mib": mib, "ramdisk": ramdisk, "begin": begin, "running": running}))
}

/// Destroys the guest and waits until nothing of it is left.
fn gone() -> Result<()> {
    destroy_leftover();
    let deadline = soon();
    while listed()?.keys().any(|name| [NAME, STUB].contains(&&**name)) {
        ensure!(Instant::now() < deadline, "xl destroy leaves a domain");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn one(store: &Store, way: DeviceModel, shell: &str) -> Result<Value> {
    let measured = measured(store, way, shell)
        .with_context(|| format!("a start with {}{}", way.name(), diagnosis()));
    gone()?;
    measured
}

fn measured(store: &Store, way: DeviceModel, shell: &str) -> Result<Value> {
    let watch = store.watch("/local/domain")?;
    let lines = way.lines(shell);
    let mut argv = vec!["xl", "create", CONFIG];
    argv.extend(lines.iter().map(String::as_str));
    let began = Instant::now();
    let mut create = start_local(&argv)?;
    let mut seen = Moments::default();
    while seen.running.is_none() {
        match watch.next(Some(Instant::now() + Duration::from_secs(1)))? {
            Some(event) => {
                let now = Instant::now();
                ensure!(!event.rescan, "events were lost");
                seen.note(store, &event.path, now);
            }
            None => ensure!(
                create.exit(Instant::now()).is_err(),
                "xl create ended{}",
                create.transcript()
            ),
        }
    }
    drop(watch);
    create.succeed(soon()).context("xl create")?;
    let created = Instant::now();
    let mut qmp = Qmp::connect(Qmp::socket(domid(NAME)?))?;
    qmp.execute("query-status", None)?;
    let answered = Instant::now();

    let (_, made) = seen.domains.first().context("no domain was made")?;
    let running = seen.running.context("nothing is running")?;
    let mut moments = vec![("guest's domain", *made)];
    if way != DeviceModel::Dom0 {
        let (_, stub) = seen.domains.get(1).context("no stubdomain was made")?;
        let ready = seen.served.context("no console server")?;
        moments.push(("guest's memory", *stub));
        moments.push(("stubdomain", seen.target.context("no target")?));
        moments.push(("proxy and console server", ready));
        let [init, qemu] = distances(way)?;
        moments.push(("kernel", running - init));
        moments.push(("init", running - qemu));
    }
    moments.push(("QEMU", running));
    moments.push(("unpausing", created));
    moments.push(("first answer", answered));
    let mut steps = serde_json::Map::new();
    let mut last = began;
    for (name, at) in moments {
        // Two processes' words may be seen in either order.
        let took = at.saturating_duration_since(last);
        steps.insert(name.to_owned(), json!(took.as_secs_f64() * 1000.0));
        last = last.max(at);
    }
    Ok(json!({"way": way.name(), "steps": steps}))
}

/// Returns how long before `running` the init and QEMU began, by the init's log, whose last line may
/// be on its way.
fn distances(way: DeviceModel) -> Result<[Duration; 2]> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let log = fs::read_to_string(LOG).context(LOG)?;
        match distances_in(&log, way) {
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(200)),
            distances => return distances,
        }
    }
}

fn distances_in(log: &str, way: DeviceModel) -> Result<[Duration; 2]> {
    let seconds = |text: &str| -> Result<f64> {
        text.trim()
            .parse()
            .with_context(|| format!("{text:?} in the log"))
    };
    let after = |prefix: &str| {
        let found = log.lines().rev().find_map(|line| line.split_once(prefix));
        found.with_context(|| format!("the log has no {prefix:?}"))
    };
    let [init, qemu] = match way {
        DeviceModel::Shell => {
            let (_, times) = after("shell init: ")?;
            let times = times.split(' ').map(seconds).collect::<Result<Vec<_>>>()?;
            let &[began, qemu, running] = &times[..] else {
                bail!("the shell's line is {times:?}");
            };
            [running - began, running - qemu]
        }
        _ => {
            let stamp = |text: &str| -> Result<f64> {
                let (line, _) = after(text)?;
                seconds(line.trim_start().split('s').next().unwrap_or_default())
            };
            let (_, up) = after("INFO up ")?;
            let whole = seconds(up.split(' ').next().unwrap_or_default())?;
            [whole, stamp(" INFO up ")? - stamp(" INFO starting QEMU")?]
        }
    };
    ensure!(init >= qemu && qemu >= 0.0, "{init} and {qemu} s");
    Ok([Duration::from_secs_f64(init), Duration::from_secs_f64(qemu)])
}

/// The moments of a start.
#[derive(Debug, Default)]
struct Moments {
    /// Domains in the order in which they came.
    domains: Vec<(String, Instant)>,
    /// The stubdomain is built, and its guest named.
    target: Option<Instant>,
    /// Both processes of dom0 are ready.
    served: Option<Instant>,
    running: Option<Instant>,
}

impl Moments {
    fn note(&mut self, store: &Store, path: &str, now: Instant) {
        let parts: Vec<&str> = path.split('/').collect();
        let ["", "local", "domain", domain, rest @ ..] = &parts[..] else {
            return;
        };
        if *domain != "0" && !self.domains.iter().any(|(name, _)| name == domain) {
            self.domains.push(((*domain).to_owned(), now));
        }
        let is_running = || store.read_str(path).is_ok_and(|value| value == "running");
        match rest {
            ["target"] => self.target = self.target.or(Some(now)),
            ["device-model", of, "state"] if is_running() => {
                let guest = self.domains.first().is_some_and(|(name, _)| name == of);
                match guest {
                    true => self.running = Some(now),
                    false => self.served = Some(now),
                }
            }
            ["device-model", _, "qmp-proxy-state"] if is_running() => self.served = Some(now),
            _ => {}
        }
    }
}

/// The parts of the kernel's own time: until it unpacks the ramdisk, until that is unpacked, until
/// it executes the init. With its lines printed, which takes time of its own.
fn kernel() -> Result<Value> {
    command(&["xl", "create", CONFIG, MEMORY, LOUD])?;
    let log = fs::read_to_string(LOG).context(LOG);
    gone()?;
    let log = log?;
    let stamp = |text: &str| -> Result<f64> {
        let line = log.lines().rev().find(|line| line.contains(text));
        let line = line.with_context(|| format!("the kernel does not print {text:?}"))?;
        let stamp = line.trim_start_matches(['[', ' ']).split(']').next();
        stamp
            .unwrap_or_default()
            .trim()
            .parse::<f64>()
            .with_context(|| format!("no time in {line:?}"))
    };
    Ok(json!({"way": "kernel", "steps": {
        "until it unpacks": stamp("Trying to unpack rootfs")? * 1000.0,
        "unpacking": stamp("Freeing initrd memory")? * 1000.0,
        "until the init": stamp("Run /init as init process")? * 1000.0,
    }}))
}
