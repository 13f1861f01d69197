//! Operations of the store's client, many times: the counterpart of `testing/c/c-store-bench.c`.

mod bare;
mod bound;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use xen_store::request::Write;
use xen_store::{Store, Watch};

use crate::plan::{median, quartiles};

/// The node that is read, and its bytes.
pub const VALUE: &str = "/bench/value";
/// The length of its value.
pub const LENGTH: usize = 20;
const TREE: &str = "/bench/tree";
/// Nodes of the tree.
const NODES: usize = 1011;
const EVENTS: &str = "/bench/events";
/// Nodes that are changed in a round of events.
const CHANGES: usize = 500;
/// Users of one connection.
pub const USERS: usize = 64;
/// Interleaved runs of each line, unless more are asked for.
pub const ROUNDS: usize = 11;
/// The same on Xen, where the clock counts instructions.
pub const ROUNDS_ON_XEN: usize = 5;
/// The aim of one run.
const RUN: Duration = Duration::from_millis(200);
/// The share of one processor that other programs may use while a line is measured.
pub const BUSY: f64 = 0.1;

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// The operation, for people.
    pub name: &'static str,
    /// The operation of the C program.
    pub operation: &'static str,
    /// Operations in one of `count`.
    pub units: usize,
    /// Carries out `count` of them with our client, on a socket.
    pub ours: fn(&Path, usize) -> Result<Duration>,
    /// The C program is kept on one processor.
    pub c_apart: bool,
    /// The ratio wanted: on a daemon without Xen, and on Xen.
    pub goals: [Option<f64>; 2],
}

/// One operation at a time.
pub const READ: Task = Task {
    name: "sequential read",
    operation: "read",
    units: 1,
    ours: reads,
    c_apart: false,
    goals: [Some(0.98), Some(0.98)],
};

/// The same by a client that sleeps at once.
pub const READ_ASLEEP: Task = Task {
    name: "the same, without a look before the sleep",
    ours: |socket, count| reads_by(&Store::connect(socket)?.with_spin(Duration::ZERO), count),
    goals: [None, None],
    ..READ
};

/// All nodes of a tree.
pub const WALK: Task = Task {
    name: "walk of 1,011 nodes",
    operation: "walk",
    units: 1,
    ours: walks,
    c_apart: false,
    goals: [Some(8.0), Some(5.0)],
};

/// Threads that share a connection.
pub const THREADS: Task = Task {
    name: "read, 64 threads on one connection",
    operation: "threads",
    units: USERS,
    ours: threads,
    c_apart: false,
    goals: [Some(4.0), None],
};

/// The same where all of our threads run on one processor.
pub const THREADS_APART: Task = Task {
    name: "the same, our threads kept on one processor",
    ours: threads_apart,
    goals: [None, None],
    ..THREADS
};

/// The same where the threads of both run on one processor.
pub const BOTH_THREADS_APART: Task = Task {
    name: "the same, the threads of either kept on one processor",
    c_apart: true,
    ..THREADS_APART
};

/// The same with the least work that such threads can do.
pub const BOUND_THREADS: Task = Task {
    name: "the same with the least work that was found, in place of ours",
    ours: bound::threads,
    goals: [None, None],
    ..THREADS
};

/// The same by the simplest client.
pub const BARE_THREADS: Task = Task {
    name: "the same by the simplest client, in place of ours",
    ours: bare::threads,
    goals: [None, None],
    ..THREADS
};

/// Changes and events by one client.
pub const OWN_CHANGES: Task = Task {
    name: "node changed and its event received",
    operation: "changes",
    units: CHANGES,
    ours: changes,
    c_apart: false,
    goals: [Some(5.0), None],
};

/// Events alone.
pub const OTHERS_CHANGES: Task = Task {
    name: "event received of a node that another process changes",
    operation: "events",
    units: CHANGES,
    ours: events,
    c_apart: false,
    goals: [None, None],
};

fn reads(socket: &Path, count: usize) -> Result<Duration> {
    reads_by(&Store::connect(socket)?, count)
}

fn reads_by(store: &Store, count: usize) -> Result<Duration> {
    let begun = Instant::now();
    read(store, count)?;
    Ok(begun.elapsed())
}

fn read(store: &Store, count: usize) -> Result<()> {
    for _ in 0..count {
        ensure!(store.read(VALUE)?.len() == LENGTH);
    }
    Ok(())
}

fn walks(socket: &Path, count: usize) -> Result<Duration> {
    let store = Store::connect(socket)?;
    let begun = Instant::now();
    for _ in 0..count {
        ensure!(store.walk(TREE, u32::MAX)?.len() == NODES);
    }
    Ok(begun.elapsed())
}

fn threads(socket: &Path, count: usize) -> Result<Duration> {
    let store = Store::connect(socket)?;
    let begun = Instant::now();
    thread::scope(|scope| {
        let all: Vec<_> = (0..USERS)
            .map(|_| scope.spawn(|| read(&store, count)))
            .collect();
        all.into_iter().try_for_each(join)
    })?;
    Ok(begun.elapsed())
}

/// As [`threads`], all of them on the processor that the first is on.
fn threads_apart(socket: &Path, count: usize) -> Result<Duration> {
    on_one_processor(|| threads(socket, count))
}

/// Runs `all` in a thread that is kept on the processor that it begins on.
fn on_one_processor<T: Send>(all: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let apart = || {
        let mut processors = CpuSet::new();
        processors.set(sched_getcpu()?)?;
        // Threads and processes that it starts inherit it.
        sched_setaffinity(Pid::from_raw(0), &processors)?;
        all()
    };
    thread::scope(|scope| join(scope.spawn(apart)))
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Changes all nodes once, in one batch.
fn change(store: &Store, paths: &[String]) -> Result<()> {
    let writes = paths.iter().map(|path| Write { path, value: b"x" });
    for written in store.batch(writes.collect::<Vec<_>>()) {
        written?;
    }
    Ok(())
}

fn changed() -> Vec<String> {
    (0..CHANGES).map(|n| format!("{EVENTS}/{n}")).collect()
}

fn watch(store: &Store) -> Result<Watch> {
    let watch = store.watch(EVENTS)?;
    take(&watch, 1)?;
    Ok(watch)
}

fn take(watch: &Watch, most: usize) -> Result<()> {
    for _ in 0..most {
        let event = watch.next(None)?.context("no event")?;
        ensure!(!event.rescan && event.path.starts_with(EVENTS));
    }
    Ok(())
}

fn changes(socket: &Path, count: usize) -> Result<Duration> {
    let store = Store::connect(socket)?;
    let (watch, paths) = (watch(&store)?, changed());
    let begun = Instant::now();
    for _ in 0..count {
        change(&store, &paths)?;
        take(&watch, CHANGES)?;
    }
    Ok(begun.elapsed())
}

fn events(socket: &Path, count: usize) -> Result<Duration> {
    let store = Store::connect(socket)?;
    let watch = watch(&store)?;
    let (sent, got) = mpsc::channel();
    thread::scope(|scope| {
        let taker = scope.spawn(move || -> Result<()> {
            for _ in 0..count {
                take(&watch, CHANGES)?;
                sent.send(())?;
            }
            Ok(())
        });
        let took = cause(socket, count, || Ok(got.recv()?));
        join(taker)?;
        took
    })
}

/// Changes the nodes `count` times, and after each time waits until the events were received.
fn cause(
    socket: &Path,
    count: usize,
    mut received: impl FnMut() -> Result<()>,
) -> Result<Duration> {
    let (store, paths) = (Store::connect(socket)?, changed());
    let begun = Instant::now();
    for _ in 0..count {
        change(&store, &paths)?;
        received()?;
    }
    Ok(begun.elapsed())
}

/// The daemon under measurement, and the C program beside our client.
#[derive(Clone, Debug)]
pub struct Bench {
    /// Where the daemon listens.
    pub socket: PathBuf,
    /// Its process.
    pub daemon: u32,
    /// The file of `c-store-bench`.
    pub program: PathBuf,
    /// The folder of libxenstore, if it is not the system's.
    pub libraries: Option<PathBuf>,
    /// The daemon runs on Xen.
    pub on_xen: bool,
    /// Interleaved runs of each line.
    pub rounds: usize,
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

impl Bench {
    /// Makes the nodes.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub fn furnish(&self) -> Result<()> {
        let store = Store::connect(&self.socket)?;
        store.write(VALUE, "a value of 20 bytes.")?;
        store.mkdir(EVENTS)?;
        for number in 0..900 {
            let (a, b, c) = (number / 90, number / 9 % 10, number % 9);
            store.mkdir(&format!("{TREE}/{a}/{b}/{c}"))?;
        }
        Ok(())
    }

    /// Removes the nodes.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub fn clear(&self) -> Result<()> {
        Ok(Store::connect(&self.socket)?.rm("/bench")?)
    }

    /// Measures a task, and returns its line of the table.
    ///
    /// # Errors
    ///
    /// Those of either client.
    pub fn row(&self, task: &Task) -> Result<String> {
        let figures = self.measure(task)?;
        let goal = task.goals[usize::from(self.on_xen)];
        // There the clock counts instructions, whatever else this machine does.
        let is_busy = !self.on_xen && figures.others > BUSY;
        Ok(row(task.name, &figures, goal, is_busy))
    }

    fn measure(&self, task: &Task) -> Result<Figures> {
        let each =
            |took: Duration, count: usize| took.as_secs_f64() * 1e9 / (count * task.units) as f64;
        let ours = |count| (task.ours)(&self.socket, count);
        let c = |count| {
            let c = || self.c(task.operation, count);
            if task.c_apart {
                on_one_processor(c)
            } else {
                c()
            }
        };
        // As many as take the aimed time, and not counted.
        let (ours_count, c_count) = (enough(ours)?, enough(c)?);
        let (mut ours_each, mut c_each, mut used) = (Vec::new(), Vec::new(), 0.0);
        let (begun, before) = (Instant::now(), others_time(self.daemon)?);
        for round in 0..self.rounds {
            for turn in 0..2 {
                if (round + turn) % 2 == 0 {
                    let before = processor_time(self.daemon)?;
                    ours_each.push(each(ours(ours_count)?, ours_count));
                    used += processor_time(self.daemon)? - before;
                } else {
                    c_each.push(each(c(c_count)?, c_count));
                }
            }
        }
        let operations = self.rounds * ours_count * task.units;
        Ok(Figures {
            ours: ours_each,
            c: c_each,
            daemon: used * 1e9 / operations as f64,
            others: (others_time(self.daemon)? - before) / begun.elapsed().as_secs_f64(),
        })
    }

    /// Runs the C program once.
    fn c(&self, operation: &str, count: usize) -> Result<Duration> {
        let libraries = self.libraries.as_ref();
        let mut child = Command::new(&self.program)
            .arg(&self.socket)
            .args([operation, &count.to_string()])
            .envs(libraries.map(|folder| ("LD_LIBRARY_PATH", folder)))
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let output = child.stdout.take().context("no output")?;
        let took = self.read_c(operation, count, BufReader::new(output));
        end(child)?;
        took
    }

    fn read_c(
        &self,
        operation: &str,
        count: usize,
        mut output: BufReader<ChildStdout>,
    ) -> Result<Duration> {
        if operation == "events" {
            expect(&mut output, "ready")?;
            return cause(&self.socket, count, || expect(&mut output, "got"));
        }
        let line = line(&mut output)?;
        let time = line.strip_prefix("ok ns=").context(line.clone())?;
        Ok(Duration::from_nanos(time.parse()?))
    }
}

fn expect(output: &mut BufReader<ChildStdout>, wanted: &str) -> Result<()> {
    let line = line(output)?;
    ensure!(line == wanted, "{line}");
    Ok(())
}

fn line(output: &mut BufReader<ChildStdout>) -> Result<String> {
    let mut line = String::new();
    output.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

fn end(mut child: Child) -> Result<()> {
    let status = child.wait()?;
    ensure!(status.success(), "the C program ended with {status}");
    Ok(())
}

/// Finds how many operations take the aimed time.
fn enough(mut run: impl FnMut(usize) -> Result<Duration>) -> Result<usize> {
    let mut count = 1;
    while run(count)? < RUN / 4 {
        count *= 2;
    }
    Ok(4 * count)
}

/// The processor time that a process has used, in seconds.
fn processor_time(process: u32) -> Result<f64> {
    let [user, system, ..] = times(process)?;
    Ok(user + system)
}

/// The processor time of a process, in seconds: as a user, in the kernel, and both of the children
/// that it has waited for.
fn times(process: u32) -> Result<[f64; 4]> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The fields after the name, which ends with a bracket; in hundredths of a second.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: Result<Vec<f64>, _> = fields
        .split_whitespace()
        .skip(11)
        .take(4)
        .map(str::parse)
        .collect();
    match ticks?[..] {
        [a, b, c, d] => Ok([a, b, c, d].map(|ticks| ticks / 100.0)),
        _ => bail!("/proc/{process}/stat: {stat}"),
    }
}

/// The processor time of all processes but this one and `daemon`, and the time that the hypervisor
/// under this machine took, in seconds.
fn others_time(daemon: u32) -> Result<f64> {
    let mut sum = 0.0;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(process) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if process != daemon && process != std::process::id() {
            // It may have ended meanwhile.
            sum += times(process).map_or(0.0, |times| times.iter().sum::<f64>());
        }
    }
    let stat = fs::read_to_string("/proc/stat")?;
    let stolen = stat.split_whitespace().nth(8).context("/proc/stat")?;
    Ok(sum + stolen.parse::<f64>()? / 100.0)
}

/// The first lines of the table.
pub const HEAD: [&str; 2] = [
    "| operation | ours | libxenstore | daemon | C / ours | limit | goal | | others |",
    "|---|---|---|---|---|---|---|---|---|",
];

fn row(name: &str, figures: &Figures, goal: Option<f64>, is_busy: bool) -> String {
    let pairs = figures.ours.iter().zip(&figures.c);
    let ratios: Vec<f64> = pairs.map(|(ours, c)| c / ours).collect();
    let (low, high) = quartiles(&ratios).unwrap_or_default();
    let middle = median(ratios);
    let micros = |figures: &[f64]| {
        let (low, high) = quartiles(figures).unwrap_or_default();
        let middle = median(figures.to_vec()) / 1000.0;
        format!("{middle:.1} µs ± {:.1}", (high - low) / 2000.0)
    };
    // A client that costs nothing and that the daemon never waits for.
    let limit = median(figures.c.clone()) / figures.daemon;
    let verdict = match goal {
        None => "",
        Some(_) if is_busy => "busy machine",
        Some(goal) if low >= goal => "reached",
        Some(goal) if limit < goal => "beyond the limit",
        Some(goal) if high < goal => "missed",
        Some(_) => "no verdict",
    };
    let goal = goal.map_or(String::new(), |goal| goal.to_string());
    format!(
        "| {name} | {} | {} | {:.1} µs | {middle:.2} ({low:.2} to {high:.2}) | {limit:.1} | {goal} \
         | {verdict} | {:.2} |",
        micros(&figures.ours),
        micros(&figures.c),
        figures.daemon / 1000.0,
        figures.others,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(ours: [f64; 5], c: f64, daemon: f64, others: f64) -> String {
        let figures = Figures {
            ours: ours.to_vec(),
            c: vec![c; 5],
            daemon,
            others,
        };
        let row = row("read", &figures, Some(4.0), others > BUSY);
        row.split('|').nth(8).unwrap_or_default().trim().to_owned()
    }

    #[test]
    fn a_verdict_needs_a_quiet_machine_and_both_quartiles() {
        assert_eq!(
            verdict([9.0, 9.0, 9.5, 10.0, 12.0], 40.0, 8.0, 0.0),
            "reached"
        );
        assert_eq!(
            verdict([9.0, 9.0, 9.5, 11.0, 12.0], 40.0, 8.0, 0.0),
            "no verdict"
        );
        assert_eq!(
            verdict([9.0, 10.5, 11.0, 12.0, 12.0], 40.0, 8.0, 0.0),
            "missed"
        );
        assert_eq!(
            verdict([9.0, 10.5, 11.0, 12.0, 12.0], 40.0, 10.2, 0.0),
            "beyond the limit"
        );
        assert_eq!(
            verdict([9.0, 9.0, 9.5, 10.0, 12.0], 40.0, 8.0, 0.2),
            "busy machine"
        );
    }
}
