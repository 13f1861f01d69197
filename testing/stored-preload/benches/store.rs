//! `cargo xtask bench store`: our client beside libxenstore, on Debian's xenstored without Xen.
//!
//! `testing/c/c-store-bench.c` has the same loops. The runs of a line are interleaved.
#![allow(
    clippy::unwrap_used,
    reason = "a failed measurement ends the program, in its helpers too"
)]

#[path = "../tests/daemons/ring.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod ring;
#[path = "../tests/daemons/world.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod world;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use xen_store::request::Write;
use xen_store::{Store, Watch};

use crate::world::{Daemon, Kind};

const VALUE: &str = "/bench/value";
const TREE: &str = "/bench/tree";
/// Nodes of the tree.
const NODES: usize = 1011;
const EVENTS: &str = "/bench/events";
/// Nodes that are changed in a round of events.
const CHANGES: usize = 500;
/// Users of one connection.
const USERS: usize = 64;
/// Processors' worth of tokio's threads.
const WORKERS: usize = 2;
const ROUNDS: usize = 11;
/// The aim of one run.
const RUN: Duration = Duration::from_millis(200);

/// The share of one processor that other programs may use while a line is measured.
const BUSY: f64 = 0.1;

/// A line of the table.
struct Task {
    name: &'static str,
    /// The operation of the C program.
    operation: &'static str,
    /// Operations in one of `count`.
    units: usize,
    ours: fn(&Path, usize) -> Duration,
    goal: Option<f64>,
}

const TASKS: &[Task] = &[
    Task {
        name: "sequential read",
        operation: "read",
        units: 1,
        ours: reads,
        goal: Some(0.98),
    },
    Task {
        name: "walk of 1,011 nodes",
        operation: "walk",
        units: 1,
        ours: walks,
        goal: Some(8.0),
    },
    Task {
        name: "read, 64 threads on one connection",
        operation: "threads",
        units: USERS,
        ours: threads,
        goal: Some(4.0),
    },
    Task {
        name: "read, 64 tokio tasks; in C, 64 threads",
        operation: "threads",
        units: USERS,
        ours: tasks,
        goal: Some(10.0),
    },
    Task {
        name: "node changed and its event received",
        operation: "changes",
        units: CHANGES,
        ours: changes,
        goal: Some(5.0),
    },
    Task {
        name: "event received of a node that another process changes",
        operation: "events",
        units: CHANGES,
        ours: events,
        goal: None,
    },
];

fn reads(socket: &Path, count: usize) -> Duration {
    let store = Store::connect(socket).unwrap();
    let begun = Instant::now();
    for _ in 0..count {
        assert_eq!(store.read(VALUE).unwrap().len(), 20);
    }
    begun.elapsed()
}

fn walks(socket: &Path, count: usize) -> Duration {
    let store = Store::connect(socket).unwrap();
    let begun = Instant::now();
    for _ in 0..count {
        assert_eq!(store.walk(TREE, u32::MAX).unwrap().len(), NODES);
    }
    begun.elapsed()
}

fn threads(socket: &Path, count: usize) -> Duration {
    let store = Store::connect(socket).unwrap();
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..USERS {
            scope.spawn(|| {
                for _ in 0..count {
                    assert_eq!(store.read(VALUE).unwrap().len(), 20);
                }
            });
        }
    });
    begun.elapsed()
}

fn tasks(socket: &Path, count: usize) -> Duration {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let store = xen_store::tokio::Store::connect(socket).await.unwrap();
        let begun = Instant::now();
        let all: Vec<_> = (0..USERS)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    for _ in 0..count {
                        assert_eq!(store.read(VALUE).await.unwrap().len(), 20);
                    }
                })
            })
            .collect();
        for task in all {
            task.await.unwrap();
        }
        begun.elapsed()
    })
}

/// Changes all nodes once, in one batch.
fn change(store: &Store, paths: &[String]) {
    let writes: Vec<_> = paths
        .iter()
        .map(|path| Write { path, value: b"x" })
        .collect();
    assert!(store.batch(writes).iter().all(Result::is_ok));
}

fn changed() -> Vec<String> {
    (0..CHANGES).map(|n| format!("{EVENTS}/{n}")).collect()
}

fn watch(store: &Store) -> Watch {
    let watch = store.watch(EVENTS).unwrap();
    take(&watch, 1);
    watch
}

fn take(watch: &Watch, most: usize) {
    for _ in 0..most {
        let event = watch.next(None).unwrap().unwrap();
        assert!(!event.rescan && event.path.starts_with(EVENTS));
    }
}

fn changes(socket: &Path, count: usize) -> Duration {
    let store = Store::connect(socket).unwrap();
    let (watch, paths) = (watch(&store), changed());
    let begun = Instant::now();
    for _ in 0..count {
        change(&store, &paths);
        take(&watch, CHANGES);
    }
    begun.elapsed()
}

fn events(socket: &Path, count: usize) -> Duration {
    let store = Store::connect(socket).unwrap();
    let watch = watch(&store);
    let (sent, got) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..count {
                take(&watch, CHANGES);
                sent.send(()).unwrap();
            }
        });
        cause(socket, count, || got.recv().unwrap())
    })
}

/// Changes the nodes `count` times, and after each time waits until the events were received.
fn cause(socket: &Path, count: usize, mut received: impl FnMut()) -> Duration {
    let (store, paths) = (Store::connect(socket).unwrap(), changed());
    let begun = Instant::now();
    for _ in 0..count {
        change(&store, &paths);
        received();
    }
    begun.elapsed()
}

/// A run of the C program's.
fn c(socket: &Path, operation: &str, count: usize) -> Duration {
    let root = world::c_root();
    let mut child = Command::new(root.join("c/c-store-bench"))
        .arg(socket)
        .args([operation, &count.to_string()])
        .env("LD_LIBRARY_PATH", world::libraries(&root))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let took = if operation == "events" {
        assert_eq!(line(&mut output), "ready");
        cause(socket, count, || assert_eq!(line(&mut output), "got"))
    } else {
        let line = line(&mut output);
        let time = line
            .strip_prefix("ok ns=")
            .unwrap_or_else(|| panic!("{line}"));
        Duration::from_nanos(time.parse().unwrap())
    };
    end(child);
    took
}

fn line(output: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

fn end(mut child: Child) {
    assert!(child.wait().unwrap().success());
}

fn furnish(store: &Store) {
    store.write(VALUE, "a value of 20 bytes.").unwrap();
    store.mkdir(EVENTS).unwrap();
    let mut count = 1;
    for a in 0..10 {
        for b in 0..10 {
            for c in 0..9 {
                store.mkdir(&format!("{TREE}/{a}/{b}/{c}")).unwrap();
                count += 1;
            }
            count += 1;
        }
        count += 1;
    }
    assert_eq!(count, NODES);
}

/// Nanoseconds of one operation.
struct Figures {
    /// Of each round.
    ours: Vec<f64>,
    c: Vec<f64>,
    /// Processor time of the daemon, in our runs.
    daemon: f64,
    /// Processors that other programs used meanwhile.
    others: f64,
}

/// Processor time in seconds.
#[derive(Clone, Copy)]
struct Used {
    /// Of every program, and of the hypervisor under this machine.
    machine: f64,
    /// Of this program, the programs that it has waited for, and the daemon.
    measured: f64,
    at: Instant,
}

impl Used {
    fn now(daemon: &Daemon) -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap();
        // user, nice, system, idle, iowait, irq, softirq, steal: in hundredths of a second.
        let fields = stat.lines().next().unwrap().split_whitespace();
        let ticks = fields.skip(1).take(8).enumerate();
        let busy = ticks.filter(|(at, _)| ![3, 4].contains(at));
        let busy: f64 = busy.map(|(_, ticks)| ticks.parse::<f64>().unwrap()).sum();
        let own = [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN].map(|who| {
            let usage = getrusage(who).unwrap();
            let times = [usage.user_time(), usage.system_time()];
            times.map(|time| time.num_microseconds() as f64 / 1e6)
        });
        Self {
            machine: busy / 100.0,
            measured: own.as_flattened().iter().sum::<f64>() + daemon.processor_time(),
            at: Instant::now(),
        }
    }

    /// Processors that other programs have used since then.
    fn others_until(self, now: Self) -> f64 {
        let measured = now.measured - self.measured;
        (now.machine - self.machine - measured) / (now.at - self.at).as_secs_f64()
    }
}

fn measure(daemon: &Daemon, task: &Task) -> Figures {
    let socket = &daemon.socket();
    let each =
        |took: Duration, count: usize| took.as_secs_f64() * 1e9 / (count * task.units) as f64;
    // As many as take the aimed time, and not counted.
    let mut count = 1;
    while (task.ours)(socket, count) < RUN / 4 {
        count *= 2;
    }
    let ours_count = count;
    count = 1;
    while c(socket, task.operation, count) < RUN / 4 {
        count *= 2;
    }
    let c_count = count;
    let (mut ours, mut theirs, mut used) = (Vec::new(), Vec::new(), 0.0);
    let begun = Used::now(daemon);
    for round in 0..ROUNDS {
        let mut run_ours = || {
            let before = daemon.processor_time();
            ours.push(each((task.ours)(socket, 4 * ours_count), 4 * ours_count));
            used += daemon.processor_time() - before;
        };
        let mut run_c = || {
            let took = c(socket, task.operation, 4 * c_count);
            theirs.push(each(took, 4 * c_count));
        };
        if round % 2 == 0 {
            run_ours();
            run_c();
        } else {
            run_c();
            run_ours();
        }
    }
    let operations = ROUNDS * 4 * ours_count * task.units;
    Figures {
        ours,
        c: theirs,
        daemon: used * 1e9 / operations as f64,
        others: begun.others_until(Used::now(daemon)),
    }
}

/// The first quartile, the median and the third quartile.
fn quartiles(figures: &[f64]) -> [f64; 3] {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| sorted[(sorted.len() - 1) * quarter / 4])
}

fn row(task: &Task, figures: &Figures) -> String {
    let pairs = figures.ours.iter().zip(&figures.c);
    let ratios: Vec<f64> = pairs.map(|(ours, c)| c / ours).collect();
    let [low, middle, high] = quartiles(&ratios);
    let micros = |figures: &[f64]| {
        let [low, middle, high] = quartiles(figures).map(|ns| ns / 1000.0);
        format!("{middle:.1} µs ± {:.1}", (high - low) / 2.0)
    };
    // A client that costs nothing and that the daemon never waits for.
    let [_, c, _] = quartiles(&figures.c);
    let limit = c / figures.daemon;
    let (goal, verdict) = match task.goal {
        None => (String::new(), ""),
        Some(goal) if figures.others > BUSY => (format!("{goal}"), "busy machine"),
        Some(goal) if low >= goal => (format!("{goal}"), "reached"),
        Some(goal) if limit < goal => (format!("{goal}"), "beyond the limit"),
        Some(goal) if high < goal => (format!("{goal}"), "missed"),
        Some(goal) => (format!("{goal}"), "no verdict"),
    };
    format!(
        "| {} | {} | {} | {:.1} µs | {middle:.2} ({low:.2} to {high:.2}) | {limit:.1} | {goal} \
         | {verdict} | {:.2} |\n",
        task.name,
        micros(&figures.ours),
        micros(&figures.c),
        figures.daemon / 1000.0,
        figures.others,
    )
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let name = name.map_or("unknown", |rest| rest.trim_start_matches(['\t', ' ', ':']));
    name.to_owned()
}

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let mut out = None;
    let mut only = String::new();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--out") => out = arguments.next().map(PathBuf::from),
            Some("--only") => only = arguments.next().unwrap().into_string().unwrap(),
            // cargo's own.
            Some("--bench") => {}
            _ => panic!("unknown argument {argument:?}"),
        }
    }
    let daemon = Daemon::start(Kind::C);
    furnish(&daemon.store());
    let mut rows = String::new();
    for task in TASKS.iter().filter(|task| task.name.contains(&only)) {
        let row = row(task, &measure(&daemon, task));
        print!("{row}");
        rows += &row;
    }
    let processors = thread::available_parallelism().unwrap();
    let mut page = format!(
        "# The store's client, beside libxenstore\n\n\
         Written by `cargo xtask bench store`. Debian's xenstored 4.17 as a process without Xen\n\
         (`testing/stored-preload`), over its socket; the same loops on xen-store and on libxenstore\n\
         4.17. The {ROUNDS} runs of a line are interleaved. A time is one operation's, the median of\n\
         the runs ± half the distance between the quartiles; a ratio is the median of the runs'\n\
         ratios with its quartiles: C's time over ours.\n\n\
         \"daemon\" is xenstored's own processor time for an operation of ours. The limit is C's time\n\
         over it, the ratio of a client that costs nothing: a goal above it cannot be reached on this\n\
         machine. \"others\" is how many processors other programs used meanwhile; above {BUSY} there\n\
         is no verdict.\n\n\
         Machine: {}, {processors} processors.\n\n\
         | operation | ours | libxenstore | daemon | C / ours | limit | goal | | others |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        processor(),
    );
    page += &rows;
    println!("\n{page}");
    if let Some(out) = out {
        fs::create_dir_all(&out).unwrap();
        fs::write(out.join("store.md"), page).unwrap();
    }
}
