//! `cargo xtask bench dom0`: the memory, wake-ups and processor time of a guest's processes in
//! dom0, for many guests on simulated hosts.
//!
//! Each guest has a stubdomain whose init and scripted QEMU answer QMP, the proxy (two processes)
//! with one answered request, and a console server with libxl's three consoles, two of which have
//! carried a line.

#![allow(
    clippy::unwrap_used,
    reason = "a failed measurement ends the program, in its helpers too"
)]

#[path = "../tests/killed/host.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod host;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use xen_console::Frontend;
use xen_sys::DomId;

use host::{Killed, PATIENCE, ask, console, frontend};

/// How long the processes are left alone, to count their wake-ups.
const IDLE: Duration = Duration::from_secs(20);
/// The wanted sum of the processes' resident memory, in MiB.
const GOAL: f64 = 6.0;

/// A guest's processes in dom0.
const PARTS: [&str; 3] = ["proxy, root's half", "proxy, sandboxed half", "consoled"];

/// The kinds of resident pages, in the order of the second table's columns.
const KINDS: [&str; 7] = [
    "text",
    "constants",
    "relocated",
    "data",
    "heap",
    "stack",
    "other",
];

/// The figures of one process.
#[derive(Clone, Copy, Debug)]
struct Figures {
    /// KiB: resident pages by [`KINDS`], and those of no other process.
    kinds: [f64; KINDS.len()],
    private: f64,
    /// KiB: resident, and less what it shares with others in proportion.
    resident: f64,
    share: f64,
    /// Processor time since its start, in milliseconds.
    time: f64,
    /// Waits: voluntary context switches.
    waits: u64,
}

impl Figures {
    fn of(process: u32) -> Self {
        let file = |name: &str| {
            let path = format!("/proc/{process}/{name}");
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let field = |text: &str, name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_whitespace().next());
            value.unwrap().parse().unwrap()
        };
        let memory = file("smaps_rollup");
        let (mut time, mut waits) = (0.0, 0);
        for thread in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
            let thread = thread.unwrap().file_name().into_string().unwrap();
            let nanoseconds = file(&format!("task/{thread}/schedstat"));
            time += field(&nanoseconds, "") / 1e6;
            waits += field(
                &file(&format!("task/{thread}/status")),
                "voluntary_ctxt_switches:",
            ) as u64;
        }
        let (kinds, private) = by_kind(&file("smaps"));
        Self {
            kinds,
            private,
            resident: field(&memory, "Rss:"),
            share: field(&memory, "Pss:"),
            time,
            waits,
        }
    }
}

/// Resident KiB by [`KINDS`], and the anonymous part of them, by the mappings of `/proc/PID/smaps`.
fn by_kind(smaps: &str) -> ([f64; KINDS.len()], f64) {
    let (mut kinds, mut private) = ([0.0; KINDS.len()], 0.0);
    let mut kind = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            // Range, rights, offset, device, inode, and what is mapped.
            let rights = words.next().unwrap_or_default();
            let name = words.nth(3).unwrap_or_default();
            kind = match (name, rights) {
                ("[heap]", _) => 4,
                ("[stack]", _) => 5,
                (name, "r-xp") if name.ends_with("/stubdm-run") => 0,
                (name, "r--p") if name.ends_with("/stubdm-run") => 1,
                (name, "rw-p") if name.ends_with("/stubdm-run") => 3,
                // The zeroed part of the program's data follows the rest.
                ("", "rw-p") if kind == 3 => 3,
                _ => 6,
            };
            continue;
        }
        let value = words.next().and_then(|value| value.parse().ok());
        let value: f64 = value.unwrap_or_default();
        match first {
            "Rss:" => kinds[kind] += value,
            "Anonymous:" => {
                private += value;
                // Pages of the constants that the start has written addresses into.
                if kind == 1 {
                    kinds[1] -= value;
                    kinds[2] += value;
                }
            }
            _ => {}
        }
    }
    (kinds, private)
}

/// A guest, and its processes in dom0.
struct Guest {
    _killed: Killed,
    /// In the order of [`PARTS`].
    processes: [u32; 3],
    _consoles: [Frontend; 2],
}

impl Guest {
    fn start() -> Self {
        let mut killed = Killed::new();
        let stub = killed.host.stub;
        for (number, output) in [
            (1, format!("file:{}", killed.path("states"))),
            (2, "pty".to_owned()),
            (3, format!("file:{}", killed.path("log"))),
        ] {
            console(killed.host.store(), stub, number, &output);
        }
        let (folder, number) = (killed.path("run"), stub.to_string());
        let args = ["--folder", &folder, &number];
        let consoled = killed.start("consoled", DomId::DOM0, &args);
        killed.stubdomain_and_proxy();
        ask(&killed.socket(), "query-status").unwrap();
        let consoles = [1, 3].map(|number| connected(&killed, number));
        let pid = format!("/local/domain/{stub}/image/qmp-proxy-pid");
        let broker = killed.host.store().read_str(&pid).unwrap().parse().unwrap();
        let children = format!("/proc/{broker}/task/{broker}/children");
        let children = fs::read_to_string(children).unwrap();
        let sandboxed = children.trim().parse().unwrap();
        Self {
            _killed: killed,
            processes: [broker, sandboxed, consoled],
            _consoles: consoles,
        }
    }

    fn figures(&self) -> [Figures; 3] {
        self.processes.map(Figures::of)
    }
}

/// A console that its server has connected, and which has carried a line.
fn connected(killed: &Killed, number: u32) -> Frontend {
    let mut frontend = frontend(killed, number);
    let deadline = Instant::now() + PATIENCE;
    let line = b"a line of a log\n";
    let mut sent = 0;
    while sent < line.len() || frontend.connection().unread().unwrap() > 0 {
        frontend.turn().unwrap();
        if sent < line.len() {
            sent += frontend.connection().try_write(&line[sent..]).unwrap();
        }
        assert!(Instant::now() < deadline, "{}", killed.logs());
        thread::sleep(Duration::from_millis(1));
    }
    frontend
}

/// The least, the median and the most.
fn spread(mut all: Vec<f64>) -> [f64; 3] {
    all.sort_by(f64::total_cmp);
    [all[0], all[all.len() / 2], all[all.len() - 1]]
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut count, mut out) = (50, None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--guests" => count = arguments.next().unwrap().parse().unwrap(),
            "--out" => out = arguments.next().map(PathBuf::from),
            // cargo's own.
            "--bench" => {}
            _ => panic!("unknown argument {argument:?}"),
        }
    }
    let guests: Vec<Guest> = (1..=count)
        .map(|number| {
            eprint!("\rguest {number} of {count}");
            Guest::start()
        })
        .collect();
    eprintln!();
    // Work that a start leaves for later is done then, and idle processes have given up their code.
    thread::sleep(Duration::from_secs(7));
    let started: Vec<_> = guests.iter().map(Guest::figures).collect();
    thread::sleep(IDLE);
    let idle: Vec<_> = guests.iter().map(Guest::figures).collect();
    // Of each guest and process: memory in MiB, time, wake-ups a second.
    let cells = |(started, idle): (&[Figures; 3], &[Figures; 3])| -> [[f64; 4]; 3] {
        std::array::from_fn(|at| {
            let waits = idle[at].waits - started[at].waits;
            let Figures {
                resident,
                share,
                time,
                ..
            } = started[at];
            let waits = waits as f64 / IDLE.as_secs_f64();
            [resident / 1024.0, share / 1024.0, time, waits]
        })
    };
    let all: Vec<_> = started.iter().zip(&idle).map(cells).collect();
    let mut rows = String::new();
    for (at, name) in PARTS.iter().enumerate() {
        rows += &row(name, columns(all.iter().map(|guest| guest[at])));
    }
    let sum = |guest: &[[f64; 4]; 3]| -> [f64; 4] {
        std::array::from_fn(|column| guest.iter().map(|cells| cells[column]).sum())
    };
    let together = columns(all.iter().map(sum));
    rows += &row("together", together);
    let [resident, ..] = together;
    let file = |figures: &Figures| figures.kinds[0] + figures.kinds[1];
    let file = spread(
        started
            .iter()
            .map(|guest| guest.iter().map(file).sum())
            .collect(),
    )[1];
    let verdict = if resident[2] <= GOAL {
        "reached.".to_owned()
    } else {
        format!(
            "missed. {:.1} MiB of it are the program's text\nand constants, which all guests share.",
            file / 1024.0
        )
    };
    let mut kinds = String::new();
    for (at, name) in PARTS.iter().enumerate() {
        let median = |value: &dyn Fn(&Figures) -> f64| {
            spread(started.iter().map(|guest| value(&guest[at])).collect())[1]
        };
        let mut cells: Vec<String> = (0..KINDS.len())
            .map(|kind| format!("{:.0}", median(&|figures| figures.kinds[kind])))
            .collect();
        cells.push(format!("{:.0}", median(&|figures| figures.private)));
        kinds += &format!("| {name} | {} |\n", cells.join(" | "));
    }
    let page = format!(
        "# What a guest costs dom0\n\n\
         Written by `cargo xtask bench dom0`: {count} guests, each on a simulated host of its own, with\n\
         the proxy (two processes, one request answered) and the console server (two consoles that\n\
         carried a line). The program is built as for a release, with the simulated host in it. A\n\
         cell has the median of the guests, the least and the most.\n\n\
         * \"resident\" counts each page of the program's file in every process that has it;\n  \
           \"own share\" counts a page that n processes have as a part of n.\n\
         * \"start\" is the processor time until the guest runs and has answered.\n\
         * \"wake-ups\" are those of {} idle seconds.\n\
         * A process that was idle for five seconds has given up the pages of its machine code; what it\n  \
           is idle with is mapped again.\n\n\
         | | resident, MiB | own share, MiB | start, ms | wake-ups a second |\n\
         |---|---|---|---|---|\n{rows}\n\
         At most {GOAL} MiB resident together: {verdict}\n\n\
         ## Resident pages by kind\n\n\
         KiB, the median of the guests. Text and constants are pages of the program's file, one copy\n\
         for all processes: the kernel maps the 64 KiB around each page that a process uses, as far\n\
         as they are in memory. \"Private\" is what a further process adds: pages that relocation\n\
         wrote to, data, heap and stack.\n\n\
         | | {} | private |\n\
         |---|{}---|\n{kinds}",
        IDLE.as_secs(),
        KINDS.join(" | "),
        "---|".repeat(KINDS.len()),
    );
    println!("{page}");
    if let Some(out) = out {
        fs::create_dir_all(&out).unwrap();
        fs::write(out.join("dom0.md"), page).unwrap();
    }
    drop(guests);
}

/// The spread of each column.
fn columns(rows: impl Iterator<Item = [f64; 4]>) -> [[f64; 3]; 4] {
    let rows: Vec<_> = rows.collect();
    std::array::from_fn(|column| spread(rows.iter().map(|cells| cells[column]).collect()))
}

fn row(name: &str, columns: [[f64; 3]; 4]) -> String {
    let cell = |[low, middle, high]: [f64; 3]| format!("{middle:.2} ({low:.2} to {high:.2})");
    format!("| {name} | {} |\n", columns.map(cell).join(" | "))
}
