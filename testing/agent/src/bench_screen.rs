//! A guest's screen as `consoled` serves it, as dom0's QEMU serves it, and as a guest's own QEMU in
//! dom0 does: three guests with one disk's code in one run.
//!
//! One line for each figure, `row` and a JSON object; the figures of one name in one way are in the
//! order of the rounds, which are interleaved. Times are by dom0's clock, which is the machine's.
//! The guest writes to a page that dom0 reads, so the console is no part of them.

mod viewer;

use std::fs;
use std::io::Write as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use xen_gnttab::{PageAccess, Region, foreign};
use xen_store::Store;
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, Xen};

use crate::guest::{Guest, destroy_leftover, diagnosis, domid, listed};
use crate::host::{TestHost, command, soon};
use crate::leftovers::processes;
use crate::qmp::Qmp;
use crate::tests::consoled::{CONSOLED, MODEL, field, memory};
use crate::tests::linux::{disk_line, loop_device};
use viewer::{Encoding, Viewer};

/// The file that has screens served without QEMU, and its folder.
const SCREENS: &str = "/etc/stubdm/screens";
const FOLDER: &str = "/etc/stubdm";
/// The screen's process in dom0.
const PROCESS: &str = "stubdm-run serve-screen ";
/// The guest whose QEMU is in dom0.
const PLAIN: &str = "hvm-plain";
const PLAIN_CONFIG: &str = "/etc/xen/hvm-plain.cfg";
/// The guest's disk, and copies of it.
const DISK: &str = "/boot/guest.img";
const COPIES: [&str; 2] = ["/tmp/bench-other.img", "/tmp/bench-plain.img"];

/// The page where the guest writes, its name, and what it counts: see `testing/guest/bench.s`.
const MEETING: u64 = 0x60;
const NAME: u32 = u32::from_le_bytes(*b"BNCH");
const SEEN: usize = 4;
const DRAWN: usize = 8;
/// Keys, by scancodes: a square at once, and one after four seconds.
const SQUARE: u8 = 0x1e;
const LATER: u8 = 0x21;
/// Keys of pictures that fill the screen.
const PICTURES: [(&str, u8); 4] = [
    ("tiles", 0x30),
    ("text", 0x2e),
    ("colours", 0x20),
    ("noise", 0x12),
];

/// How long the screen rests before a key.
const REST: Duration = Duration::from_millis(1000);
/// How long no byte comes after its first one before a picture counts as whole. A server compresses
/// noise for longer than a second.
const QUIET: Duration = Duration::from_millis(1500);
/// How long nothing happens while bytes and wake-ups are counted.
const IDLE: Duration = Duration::from_secs(20);
/// The pause between two looks at the guest's page.
const LOOK: Duration = Duration::from_micros(20);

/// The server of a guest's screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    /// `consoled`, for a guest with a stubdomain.
    Consoled,
    /// Dom0's QEMU, for a guest with a stubdomain.
    Qemu,
    /// The guest's QEMU, which is in dom0.
    Plain,
}

impl Server {
    const fn name(self) -> &'static str {
        match self {
            Self::Consoled => "consoled",
            Self::Qemu => "qemu",
            Self::Plain => "plain",
        }
    }
}

/// A guest that draws and counts.
#[derive(Debug)]
struct Machine {
    way: Server,
    /// The domain with the screen: the stubdomain, or the guest.
    of: DomId,
    page: Region,
    /// With a stubdomain. Dropping it ends its console alone.
    _guest: Option<Guest>,
}

/// Starts the guests `starts` times and takes `rounds` keys of each.
pub(crate) fn run(starts: usize, rounds: usize) -> Result<()> {
    let host = TestHost::new()?;
    let mut devices = Vec::new();
    for copy in COPIES {
        fs::copy(DISK, copy).context(copy)?;
        devices.push(loop_device(copy)?);
    }
    for _ in 0..starts {
        let measured = one(&host.store, &devices, rounds).with_context(diagnosis);
        let _ = command(&["xl", "destroy", PLAIN]);
        destroy_leftover();
        let deadline = soon();
        while listed()?.len() > 1 {
            ensure!(Instant::now() < deadline, "xl destroy leaves a domain");
            thread::sleep(Duration::from_millis(100));
        }
        measured?;
    }
    Ok(())
}

fn print(way: Server, name: impl Into<String>, value: impl Into<Value>) {
    let row = json!({"way": way.name(), "figure": name.into(), "value": value.into()});
    println!("row {row}");
}

fn one(store: &Store, devices: &[String], rounds: usize) -> Result<()> {
    let machines = start(store, devices)?;
    for round in 0..rounds {
        for at in 0..machines.len() {
            // Each is the first one in turn.
            let machine = &machines[(at + round) % machines.len()];
            latencies(machine).with_context(|| format!("{:?}", machine.way))?;
        }
    }
    for encoding in Encoding::ALL {
        for machine in &machines {
            pictures(machine, encoding)
                .with_context(|| format!("{:?}, {encoding:?}", machine.way))?;
        }
    }
    idle(&machines)
}

fn start(store: &Store, devices: &[String]) -> Result<Vec<Machine>> {
    let [other, plain] = devices else {
        anyhow::bail!("{} devices", devices.len());
    };
    let vga = "vga=\"stdvga\"";
    fs::create_dir_all(FOLDER)?;
    fs::write(SCREENS, "consoled\n")?;
    let consoled = Guest::create_with(store, &["vnc=1", vga]);
    fs::remove_file(SCREENS)?;
    let consoled = consoled?;
    let qemu = Guest::create_other(store, &["vnc=1", vga, &disk_line(other)])?;
    let disk = disk_line(plain).replace("script=block-testbed,", "");
    let model = format!("device_model_override=\"{MODEL}.distrib\"");
    command(&["xl", "create", PLAIN_CONFIG, "vnc=1", vga, &disk, &model])?;
    let mut machines = Vec::new();
    for (way, guest) in [
        (Server::Consoled, Some(consoled)),
        (Server::Qemu, Some(qemu)),
        (Server::Plain, None),
    ] {
        let (id, of) = match &guest {
            Some(guest) => (guest.id, guest.stub),
            None => (domid(PLAIN)?, domid(PLAIN)?),
        };
        let node = match &guest {
            Some(guest) => format!("/local/domain/{}/device/console/3/tty", guest.stub),
            None => format!("/local/domain/{id}/serial/0/tty"),
        };
        let tty = store.read_str(&node).context(node)?;
        let privcmd = Privcmd::open(&Xen::open()?)?;
        let page = foreign::map(privcmd.guest(id), &[MEETING], PageAccess::ReadOnly)?;
        let machine = Machine {
            way,
            of,
            page,
            _guest: guest,
        };
        begin(&machine, &tty).with_context(|| format!("{way:?}"))?;
        machines.push(machine);
    }
    Ok(machines)
}

/// Asks the guest to begin until it does: what is typed before it runs is lost.
fn begin(machine: &Machine, tty: &str) -> Result<()> {
    let deadline = soon();
    // It stays open: QEMU checks once a second whether a process has it.
    let file = fs::File::options().write(true).open(tty);
    let mut file = file.context(tty.to_owned())?;
    while machine.page.load_u32(0)? != NAME {
        ensure!(Instant::now() < deadline, "the guest does not begin");
        file.write_all(b"=")?;
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

fn connect(machine: &Machine, encoding: Encoding) -> Result<Viewer> {
    let mut qmp = Qmp::connect(Qmp::socket(machine.of))?;
    let vnc = qmp.execute("query-vnc", None)?;
    let port = vnc["service"].as_str().context("no port")?.parse()?;
    Viewer::connect(port, encoding).with_context(|| format!("{vnc}"))
}

/// Waits until a count of the guest's changed; returns when.
fn counted(machine: &Machine, what: usize, before: u32) -> Result<Instant> {
    let deadline = soon();
    while machine.page.load_u32(what)? == before {
        ensure!(Instant::now() < deadline, "the guest does not see the key");
        thread::sleep(LOOK);
    }
    Ok(Instant::now())
}

/// One key and the square that it draws, and one square that is drawn by itself.
fn latencies(machine: &Machine) -> Result<()> {
    let viewer = connect(machine, Encoding::Raw)?;
    viewer.quiet(REST)?;
    let mut corner = viewer.drain().context("no picture")?;
    for (key, figure) in [(SQUARE, "picture"), (LATER, "picture later")] {
        corner = viewer.drain().unwrap_or(corner);
        let [seen, drawn] = [SEEN, DRAWN].map(|what| machine.page.load_u32(what));
        let (seen, drawn) = (seen?, drawn?);
        let typed = Instant::now();
        viewer.key(key, true)?;
        let at = counted(machine, SEEN, seen)?;
        viewer.key(key, false)?;
        let painted = counted(machine, DRAWN, drawn)?;
        let shown;
        (shown, corner) = viewer.other_corner(corner)?;
        let millis =
            |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1000.0;
        print(machine.way, figure, millis(painted, shown));
        if key == SQUARE {
            print(machine.way, "key", millis(typed, at));
            print(machine.way, "key to picture", millis(typed, shown));
        }
        viewer.quiet(REST)?;
    }
    Ok(())
}

/// The bytes of each picture.
fn pictures(machine: &Machine, encoding: Encoding) -> Result<()> {
    let viewer = connect(machine, encoding)?;
    viewer.quiet(QUIET)?;
    // Noise first, which is not counted: it has no pixels in common with the next picture.
    let first = PICTURES.last().map(|(_, key)| ("", *key));
    for (picture, key) in first.iter().chain(&PICTURES) {
        let (picture, key) = (*picture, *key);
        let (bytes, drawn) = (viewer.bytes(), machine.page.load_u32(DRAWN)?);
        viewer.key(key, true)?;
        counted(machine, DRAWN, drawn)?;
        viewer.key(key, false)?;
        viewer.more_than(bytes)?;
        viewer.quiet(QUIET)?;
        if !picture.is_empty() {
            let name = format!("{picture}, {}", encoding.name());
            print(machine.way, name, viewer.bytes() - bytes);
        }
    }
    Ok(())
}

/// Returns the processes in dom0 that serve a screen.
fn served_by(machine: &Machine) -> Result<Vec<i32>> {
    let qemu = format!(" -xen-domid {} ", machine.of);
    let all = processes()?.into_iter();
    let of_it = all.filter(|(_, line)| match machine.way {
        Server::Consoled => line.starts_with(CONSOLED) || line.starts_with(PROCESS),
        Server::Qemu | Server::Plain => line.starts_with(MODEL) && line.contains(&qemu),
    });
    let pids: Vec<i32> = of_it.map(|(pid, _)| pid).collect();
    let count = if machine.way == Server::Consoled {
        2
    } else {
        1
    };
    ensure!(pids.len() == count, "{:?}: {pids:?}", machine.way);
    Ok(pids)
}

/// The voluntary context switches of all threads of a process.
fn wakeups(pid: i32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = task?.path().join("status");
        sum += field(&status.display().to_string(), "voluntary_ctxt_switches:")?;
    }
    Ok(sum)
}

/// A time in which nothing happens while a viewer looks at each, and memory.
fn idle(machines: &[Machine]) -> Result<()> {
    let mut all = Vec::new();
    for machine in machines {
        let viewer = connect(machine, Encoding::Raw)?;
        viewer.quiet(QUIET)?;
        all.push((machine, viewer, served_by(machine)?));
    }
    // Longer than any interval of QEMU.
    thread::sleep(Duration::from_secs(4));
    let counts = |pids: &[i32]| pids.iter().map(|pid| wakeups(*pid)).sum::<Result<u64>>();
    let mut before = Vec::new();
    for (_, viewer, pids) in &all {
        before.push((viewer.bytes(), counts(pids)?));
    }
    thread::sleep(IDLE);
    for ((machine, viewer, pids), (bytes, switches)) in all.iter().zip(before) {
        let way = machine.way;
        print(way, "idle bytes", viewer.bytes() - bytes);
        print(way, "idle wake-ups", counts(pids)? - switches);
        let (mut resident, mut share) = (0, 0);
        for pid in pids {
            let [all, own] = memory(pid)?;
            (resident, share) = (resident + all, share + own);
        }
        print(way, "resident", resident);
        print(way, "share", share);
    }
    Ok(())
}
