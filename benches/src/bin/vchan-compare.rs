//! Runs xen-vchan and libxenvchan against themselves and each other and writes what came out.
//!
//! `cargo xtask bench vchan` builds and finds what this needs. Every end is a process of its own,
//! on a CPU of its own: this program again (`vchan-compare end …`), or the C program under
//! `LD_PRELOAD`.
//!
//! `vchan-compare render RUN.json… FOLDER` writes one document from the rows of several runs, each
//! of a part (`--only`); a group that is in two of them is taken from the later.
#![allow(clippy::unwrap_used, reason = "a mutex that is poisoned is a bug here")]

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _, stderr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use benches::end::{self, Sample};
use benches::plan::{self, Both, Group, Maker, Row, Task, Variant, Work};
use benches::report::{self, Circumstances, Report, Rows};
use benches::sim::SimHost;
use benches::{local, pin};
use clap::Parser;
use xen_evtchn::counters;
use xen_store::Store;
use xen_sys::{DomId, Xen};

#[derive(Debug, Parser)]
#[command(about = "Compares xen-vchan with libxenvchan; run by `cargo xtask bench vchan`")]
struct Cli {
    /// A glance: fewer cells, shorter runs
    #[arg(long)]
    quick: bool,
    /// Only streams with this ring and write size in bytes (RING or RING,WRITE), or `pair`,
    /// `pingpong`, `packets`
    #[arg(long)]
    only: Option<String>,
    /// Instead of times, count the instructions of a write and a read, by valgrind
    #[arg(long, conflicts_with = "quick")]
    instructions: bool,
    /// The C program
    #[arg(long)]
    c_program: PathBuf,
    /// The folder with libxenvchan
    #[arg(long)]
    libraries: PathBuf,
    /// The library that puts it on a simulated host
    #[arg(long)]
    preload: PathBuf,
    /// The folder to write to; without it, the document goes to the standard output
    #[arg(long)]
    out: Option<PathBuf>,
    /// Rows measured on real Xen, one JSON object a line
    #[arg(long)]
    xen_rows: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.split_first() {
        Some((first, rest)) if first == "end" => one_end(rest),
        Some((first, [runs @ .., out])) if first == "render" => render(runs, out.as_ref()),
        _ => compare(&Cli::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vchan-compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn one_end(arguments: &[String]) -> Result<()> {
    if let [work, maker, size, total] = arguments {
        let (size, total) = (size.parse()?, total.parse()?);
        match work.as_str() {
            "local-pair" => {
                pin(1);
                return local::run(maker, size, total);
            }
            "local-stream" => return local::stream(maker, size, total),
            _ => {}
        }
    }
    if let Ok(cost) = std::env::var("XEN_SIM_NOTIFY_NS") {
        counters::set_notify_cost(Duration::from_nanos(cost.parse()?));
    }
    let open = || {
        let path = std::env::var_os("XEN_SIM_SOCKET").context("XEN_SIM_SOCKET is not set")?;
        let xen = Xen::join_path(path, DomId::DOM0)?;
        let store = Store::open(&xen)?;
        Ok((xen, store))
    };
    end::main(arguments, open, benches::counts)
}

fn render(runs: &[String], out: &Path) -> Result<()> {
    let mut all: Option<Report> = None;
    for run in runs {
        let text = fs::read_to_string(run).with_context(|| format!("reading {run}"))?;
        let run: Report = serde_json::from_str(&text)?;
        match &mut all {
            None => all = Some(run),
            Some(all) => all.merge(run),
        }
    }
    write(&all.context("no run to render")?, Some(out))
}

/// Where the ends run and what they are.
struct Bench<'a> {
    cli: &'a Cli,
    host: SimHost,
    me: PathBuf,
}

/// Kills an end that is still there when it is no longer needed.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const PATH: &str = "/local/domain/0/data/bench";
/// The ring whose instructions are counted, the sizes of its writes, and their numbers.
const RING: usize = 64 << 10;
const COUNTED: [usize; 3] = [64, 1 << 10, 4 << 10];
const FEW: u64 = 2_000;
const MANY: u64 = 12_000;
/// Longer than any run; the C program gives up at the same time.
const PATIENCE: Duration = Duration::from_secs(60);

impl Bench<'_> {
    fn start(&self, maker: Maker, words: &[String], notify_ns: u64) -> Result<Guarded> {
        let child = self
            .command(None, maker, words, notify_ns)
            .spawn()
            .with_context(|| format!("starting {maker:?}"))?;
        Ok(Guarded(child))
    }

    /// An end's command, run by `through` if that is given.
    fn command(
        &self,
        through: Option<&[&str]>,
        maker: Maker,
        words: &[String],
        notify_ns: u64,
    ) -> Command {
        let command = |program: &Path| match through {
            None => Command::new(program),
            Some(through) => {
                let mut command = Command::new(through[0]);
                command.args(&through[1..]).arg(program);
                command
            }
        };
        let mut command = match maker {
            Maker::C => {
                let mut command = command(&self.cli.c_program);
                command
                    .env("LD_PRELOAD", &self.cli.preload)
                    .env("LD_LIBRARY_PATH", &self.cli.libraries)
                    .env("XENSTORED_PATH", self.host.store_path());
                command
            }
            _ => {
                let mut command = command(&self.me);
                command.arg("end");
                command
            }
        };
        command
            .args(words)
            .env("XEN_SIM_SOCKET", self.host.host_path())
            .env("XEN_SIM_NOTIFY_NS", notify_ns.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command
    }

    /// The words of a write and a read in one thread.
    fn pair(maker: Maker, size: usize, total: u64, ring: usize) -> Vec<String> {
        let (size, total) = (size.to_string(), total.to_string());
        if matches!(maker, Maker::C | Maker::Ours | Maker::Chunks) {
            let (path, ring) = (PATH.to_owned(), ring.to_string());
            let [pair, server, domain, cpu] = ["pair", "server", "0", "1"].map(str::to_owned);
            let mut words = vec![pair, server, domain, path, size, total, ring, cpu];
            words.extend((maker == Maker::Chunks).then(|| "chunks".to_owned()));
            return words;
        }
        let maker = format!("{maker:?}").to_lowercase();
        vec!["local-pair".to_owned(), maker, size, total]
    }

    /// Instructions and references to memory of `count` writes and reads, the process's start
    /// included, as valgrind counts them.
    fn counted(&self, maker: Maker, size: usize, count: u64) -> Result<[f64; 2]> {
        let words = Self::pair(maker, size, size as u64 * count, RING);
        let valgrind = [
            "valgrind",
            "--tool=cachegrind",
            "--cache-sim=yes",
            "--cachegrind-out-file=/dev/null",
        ];
        let mut command = self.command(Some(&valgrind), maker, &words, 0);
        let output = command
            .output()
            .context("starting valgrind; Debian's package has that name")?;
        let text = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let stdout = String::from_utf8_lossy(&output.stdout);
            bail!("valgrind: {stdout}{text}");
        }
        let field = |name: &str| -> Result<f64> {
            let line = text.lines().find(|line| line.contains(name));
            let value = line.and_then(|line| line.split(':').nth(1)?.split_whitespace().next());
            let digits = value.map(|value| value.replace(',', ""));
            Ok(digits
                .with_context(|| format!("no {name:?} in: {text}"))?
                .parse()?)
        };
        Ok([field("I   refs:")?, field("D   refs:")?])
    }

    fn run(&self, task: &Task, variant: &Variant, total: u64) -> Result<Both> {
        let words = |work: &str, side: &str, cpu: usize, maker: Maker| {
            let unix = maker == Maker::Unix;
            let path = if unix {
                self.host.socket_path()
            } else {
                PATH.into()
            };
            let mut words: Vec<String> = vec![
                format!("{}{work}", if unix { "unix-" } else { "" }),
                side.into(),
                "0".into(),
                path,
                task.size.to_string(),
                total.to_string(),
                task.ring.to_string(),
                cpu.to_string(),
            ];
            if maker == Maker::Ours && variant.cork {
                words.push("cork".into());
            }
            if maker == Maker::Ours && !variant.spin {
                words.push("spin=0".into());
            }
            words
        };
        let whole = matches!(variant.writer, Maker::C | Maker::Ours | Maker::Unix);
        if task.work == Work::Pair || !whole {
            let words = if task.work == Work::Pair {
                Self::pair(variant.writer, task.size, total, task.ring)
            } else {
                let work = format!("local-{:?}", task.work).to_lowercase();
                let maker = format!("{:?}", variant.writer).to_lowercase();
                vec![work, maker, task.size.to_string(), total.to_string()]
            };
            let end = self.start(variant.writer, &words, task.notify_ns)?;
            let seen = reports(vec![end])?[0];
            return Ok((Sample::default(), seen));
        }
        let (first, second) = match task.work {
            Work::Stream => ("write", "read"),
            Work::Packets => ("send", "recv"),
            Work::Pingpong | Work::Pair => ("ping", "pong"),
        };
        if variant.writer == Maker::Unix {
            let _ = fs::remove_file(self.host.socket_path());
        }
        let server = words(second, "server", 1, variant.reader);
        let client = words(first, "client", 0, variant.writer);
        let server = self.start(variant.reader, &server, task.notify_ns)?;
        let client = self.start(variant.writer, &client, task.notify_ns)?;
        let seen = reports(vec![client, server])?;
        Ok((seen[0], seen[1]))
    }
}

/// Waits for the line of each end; if one fails, the others are killed.
fn reports(mut ends: Vec<Guarded>) -> Result<Vec<Sample>> {
    let (tell, lines) = mpsc::channel();
    for (i, end) in ends.iter_mut().enumerate() {
        let (tell, out) = (
            tell.clone(),
            end.0.stdout.take().context("an end without output")?,
        );
        thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(out).read_line(&mut line);
            let _ = tell.send((i, read.map(|_| line)));
        });
    }
    let mut seen = vec![Sample::default(); ends.len()];
    let until = Instant::now() + PATIENCE;
    for _ in 0..ends.len() {
        let left = until.saturating_duration_since(Instant::now());
        let (i, line) = lines
            .recv_timeout(left)
            .context("an end does not come to its end")?;
        seen[i] = Sample::parse(&line?)?;
    }
    for end in &mut ends {
        if !end.0.wait()?.success() {
            bail!("an end failed after its report");
        }
    }
    Ok(seen)
}

/// The part of the processors' time that is used in a second in which this program does nothing.
fn others() -> f64 {
    let times = || {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let words = text.lines().next().unwrap_or_default().split_whitespace();
        // user, nice, system, idle, iowait, irq, softirq, steal; what follows is in the first two.
        let all: Vec<f64> = words
            .skip(1)
            .take(8)
            .filter_map(|word| word.parse().ok())
            .collect();
        let idle: f64 = all.iter().skip(3).take(2).sum();
        (all.iter().sum::<f64>(), idle)
    };
    let (all, idle) = times();
    thread::sleep(Duration::from_secs(1));
    let (later, idle_later) = times();
    1.0 - (idle_later - idle) / (later - all)
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    line.and_then(|line| line.split_once(": "))
        .map_or("an unnamed processor", |(_, name)| name)
        .to_owned()
}

fn kernel() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// Counts the instructions of a write and a read in one thread, and writes their page.
fn count(bench: &Bench<'_>) -> Result<()> {
    let mut page = "# vchan: instructions of a write and a read\n\n\
        Written by `cargo xtask bench vchan --instructions`; do not edit. Valgrind counts them in one\n\
        thread, through a ring of 64 KiB, once for few and once for many writes; the difference, for\n\
        one write and one read, is in the table. The loop's own comparison of every byte is in it, as\n\
        in the times of [vchan.md](vchan.md). A cell has the instructions, and the references to\n\
        memory.\n\n|"
        .to_owned();
    for size in COUNTED {
        let _ = write!(page, " | {size} B");
    }
    let _ = writeln!(page, " |\n|---|{}", "---|".repeat(COUNTED.len()));
    for maker in plan::PAIR {
        let _ = write!(page, "| {} |", report::name(maker));
        for size in COUNTED {
            let [few, many] = [FEW, MANY].map(|count| bench.counted(maker, size, count));
            let (few, many) = (few?, many?);
            let [instructions, references] =
                [0, 1].map(|at| (many[at] - few[at]) / (MANY - FEW) as f64);
            let _ = write!(page, " {instructions:.0}, {references:.0} |");
        }
        page.push('\n');
    }
    print!("{page}");
    if let Some(out) = &bench.cli.out {
        fs::create_dir_all(out)?;
        let path = out.join("vchan-instructions.md");
        fs::write(&path, page).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn compare(cli: &Cli) -> Result<()> {
    let mut groups = if cli.quick {
        plan::quick()
    } else {
        plan::full()
    };
    if let Some(only) = &cli.only {
        groups = if cli.quick { plan::full() } else { groups };
        groups.retain(|group| {
            group.task.is_called(only) && (!cli.quick || group.task.notify_ns == 0)
        });
    }
    let bench = Bench {
        cli,
        host: SimHost::new()?,
        me: std::env::current_exe()?,
    };
    if cli.instructions {
        return count(&bench);
    }
    let (began, before) = (Instant::now(), others());
    let mut rows = Vec::new();
    for (i, group) in groups.iter().enumerate() {
        progress(i, groups.len(), group, began);
        let line = || local::line_round_trip().map(Some);
        rows.extend(group.measure(plan::LENGTH, line, |task, variant, total| {
            bench.run(task, variant, total)
        })?);
    }
    if stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    let circumstances = Circumstances {
        processor: processor(),
        processors: thread::available_parallelism()?.get(),
        kernel: kernel(),
        others: (before, others()),
        seconds: began.elapsed().as_secs_f64(),
        quick: cli.quick,
    };
    if let Some(file) = &cli.xen_rows {
        let text =
            fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        for line in text.lines().filter(|line| !line.is_empty()) {
            rows.push(serde_json::from_str::<Row>(line).context("a row of real Xen")?);
        }
    }
    write(
        &Report {
            circumstances,
            rows,
        },
        cli.out.as_deref(),
    )
}

fn progress(done: usize, all: usize, group: &Group, began: Instant) {
    let Task {
        work,
        ring,
        size,
        notify_ns,
        ..
    } = group.task;
    let text = format!(
        "{done}/{all}, {:.0} s: {work:?} of {size} B, ring {ring} B, notify +{notify_ns} ns",
        began.elapsed().as_secs_f64()
    );
    if stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
        let _ = stderr().flush();
    } else {
        eprintln!("vchan-compare: {text}");
    }
}

fn write(report: &Report, out: Option<&Path>) -> Result<()> {
    let markdown = report::markdown(report, "vchan.svg");
    let Some(out) = out else {
        println!("{markdown}");
        return Ok(());
    };
    fs::create_dir_all(out)?;
    let mut json = String::from("{\"circumstances\":");
    json.push_str(&serde_json::to_string(&report.circumstances)?);
    json.push_str(",\"rows\":[");
    for (i, row) in report.rows.iter().enumerate() {
        json.push_str(if i == 0 { "\n" } else { ",\n" });
        json.push_str(&serde_json::to_string(row)?);
    }
    json.push_str("\n]}\n");
    let files: [(&str, OsString); 3] = [
        ("vchan.md", markdown.into()),
        ("vchan.json", json.into()),
        ("vchan.svg", report::plot(Rows(&report.rows)).into()),
    ];
    for (name, text) in files {
        let path = out.join(name);
        fs::write(&path, text.as_encoded_bytes())
            .with_context(|| format!("writing {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}
