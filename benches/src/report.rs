//! The report of a comparison: tables with ratios, the targets, and a plot.

mod plot;
mod targets;
mod verdicts;

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::plan::{Maker, Row, Task, Variant, Work, median, quartiles};

pub use plot::plot;
pub use targets::{Outcome, Verdict, targets};

/// Where and how the rows were measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Circumstances {
    /// The processor's name.
    pub processor: String,
    /// How many of them.
    pub processors: usize,
    /// The kernel.
    pub kernel: String,
    /// The part of the processors' time that other work took in a second before and one after.
    pub others: (f64, f64),
    /// How long it took, in seconds.
    pub seconds: f64,
    /// A shortened run.
    pub quick: bool,
}

/// Everything that is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Where and how.
    pub circumstances: Circumstances,
    /// The figures.
    pub rows: Vec<Row>,
}

impl Report {
    /// Takes the groups of a later run in place of its own.
    pub fn merge(&mut self, later: Self) {
        let measured = |row: &Row| later.rows.iter().any(|new| new.task == row.task);
        self.rows.retain(|row| !measured(row));
        self.rows.extend(later.rows);
        self.circumstances.seconds += later.circumstances.seconds;
        self.circumstances.others.1 = later.circumstances.others.1;
    }
}

/// Rows to be looked up.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a>(pub &'a [Row]);

impl<'a> Rows<'a> {
    /// The row of one task and variant.
    #[must_use]
    pub fn find(&self, task: &Task, variant: Variant) -> Option<&'a Row> {
        self.0
            .iter()
            .find(|row| row.task == *task && row.variant == variant)
    }

    /// Returns one variant's results relative to another's, round by round.
    #[must_use]
    pub fn ratio(&self, task: &Task, variant: Variant, base: Variant) -> Option<Measured> {
        Measured::ratio(
            &self.find(task, variant)?.runs,
            &self.find(task, base)?.runs,
        )
    }

    /// The tasks of a kind of work, each once, in the order they were run.
    fn tasks(&self, pick: impl Fn(&Task) -> bool) -> Vec<Task> {
        let mut tasks: Vec<Task> = Vec::new();
        for row in self.0 {
            if pick(&row.task) && !tasks.contains(&row.task) {
                tasks.push(row.task);
            }
        }
        tasks
    }
}

/// Fewer rounds give no verdict.
const LEAST_ROUNDS: usize = 5;

/// A quantity over the rounds that counted.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// The median.
    pub middle: f64,
    /// The first quartile.
    pub low: f64,
    /// The third quartile.
    pub high: f64,
    /// The number of rounds.
    pub rounds: usize,
}

impl Measured {
    /// Of one value a round; `None` without rounds.
    #[must_use]
    pub fn of(runs: Vec<f64>) -> Option<Self> {
        let (low, high) = quartiles(&runs)?;
        Some(Self {
            low,
            high,
            rounds: runs.len(),
            middle: median(runs),
        })
    }

    /// Of the ratio in each round: the rounds of both were interleaved, so what disturbed one
    /// disturbed the other.
    #[must_use]
    pub fn ratio(runs: &[f64], base: &[f64]) -> Option<Self> {
        Self::of(
            runs.iter()
                .zip(base)
                .map(|(run, base)| run / base)
                .collect(),
        )
    }
}

const C: Variant = Variant::of(Maker::C, Maker::C);
const OURS: Variant = Variant::of(Maker::Ours, Maker::Ours);
const WE_READ: Variant = Variant::of(Maker::C, Maker::Ours);
const WE_WRITE: Variant = Variant::of(Maker::Ours, Maker::C);
/// Our ways to carry a stream.
const WAYS: [Variant; 5] = [OURS, OURS.corked(), WE_READ, WE_WRITE, WE_WRITE.corked()];
const UNIX: Variant = Variant::of(Maker::Unix, Maker::Unix);
const CORE: Variant = Variant::of(Maker::Core, Maker::Core);
const RTRB: Variant = Variant::of(Maker::Rtrb, Maker::Rtrb);

/// `4 KiB`.
fn bytes(count: usize) -> String {
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{} KiB", count >> 10),
        _ => format!("{} MiB", count >> 20),
    }
}

/// Three digits.
fn digits(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "–".into(),
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        v if v >= 0.9995 => format!("{value:.2}"),
        0.0 => "0".into(),
        _ => format!("{value:.3}"),
    }
}

/// The whole document.
#[must_use]
pub fn markdown(report: &Report, plot_name: &str) -> String {
    let rows = Rows(&report.rows);
    let mut out = String::new();
    let c = &report.circumstances;
    let spreads: Vec<f64> = report.rows.iter().map(|row| row.spread).collect();
    let mut sorted = spreads.clone();
    sorted.sort_by(f64::total_cmp);
    let tenth = sorted
        .get(sorted.len() * 9 / 10)
        .copied()
        .unwrap_or(f64::NAN);
    let _ = write!(
        out,
        "# vchan: ours and libxenvchan\n\n\
         Written by `cargo xtask bench vchan{}`; do not edit. [README.md](README.md) explains the \
         columns, the method and the limits.\n\n\
         {} × {}, Linux {}. {:.0} s. Other work took {:.0} % of the processors before \
         and {:.0} % after{}. Half the runs of a \
         cell lie within {:.0} % of its median in the middle cell, within {:.0} % in nine cells of \
         ten. A cache line took {} to the other processor and back; the streams' last column has it \
         for each group, because it decides the throughput.\n\n![throughput]({plot_name})\n",
        if c.quick { " --quick" } else { "" },
        c.processors,
        c.processor,
        c.kernel,
        c.seconds,
        c.others.0 * 100.0,
        c.others.1 * 100.0,
        if c.others.0.max(c.others.1) > 0.1 {
            ": **the machine was busy with other things, so read no figure as more than a hint**"
        } else {
            ""
        },
        median(spreads) * 100.0,
        tenth * 100.0,
        lines(rows),
    );
    verdicts::summary(&mut out, rows);
    targets_table(&mut out, rows);
    for xen in [false, true] {
        one_host(&mut out, rows, xen);
    }
    out
}

fn targets_table(out: &mut String, rows: Rows<'_>) {
    out.push_str("\n## Targets\n\n| what | target | measured | |\n|---|---|---|---|\n");
    for outcome in targets(rows) {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} |",
            outcome.what,
            outcome.target,
            outcome.measured,
            outcome.verdict.text()
        );
    }
}

/// How far the processors were from each other, at the least and at the most.
fn lines(rows: Rows<'_>) -> String {
    let all = || rows.0.iter().filter_map(|row| row.line);
    let (low, high) = (
        all().fold(f64::INFINITY, f64::min),
        all().fold(0.0, f64::max),
    );
    format!("{} to {} ns", digits(low), digits(high))
}

fn one_host(out: &mut String, rows: Rows<'_>, xen: bool) {
    let on = |work: Work| move |task: &Task| task.work == work && task.xen == xen;
    if rows.tasks(|task| task.xen == xen).is_empty() {
        return;
    }
    let place = if xen {
        "real Xen, dom0 and a PV domU"
    } else {
        "a simulated host"
    };
    let mut costs: Vec<u64> = rows
        .tasks(on(Work::Stream))
        .iter()
        .map(|t| t.notify_ns)
        .collect();
    costs.sort_unstable();
    costs.dedup();
    for cost in costs {
        let notify = if xen {
            String::new()
        } else {
            format!(", a notify costs +{} µs", cost as f64 / 1e3)
        };
        let pick = |task: &Task| on(Work::Stream)(task) && task.notify_ns == cost;
        let _ = write!(out, "\n## Streams on {place}{notify}\n\n");
        streams(out, rows, &rows.tasks(pick));
        let _ = write!(out, "\n### Their ratios{notify}\n\n");
        verdicts::table(out, rows, &rows.tasks(pick));
        let _ = write!(out, "\n### Their cost{notify}\n\n");
        costs_table(out, rows, &rows.tasks(pick));
    }
    for task in rows.tasks(on(Work::Packets)) {
        let _ = write!(
            out,
            "\n## Messages of {} on {place}, ring {}\n\n",
            bytes(task.size),
            bytes(task.ring)
        );
        packets(out, rows, &task);
    }
    for task in rows.tasks(on(Work::Pingpong)) {
        let _ = write!(
            out,
            "\n## Round trips of {} on {place}\n\n",
            bytes(task.size)
        );
        round_trips(out, rows, &task);
    }
    for task in rows.tasks(on(Work::Pair)) {
        let _ = write!(
            out,
            "\n## A write and a read of {} in one thread\n\n| | ns | to ours |\n|---|---|---|\n",
            bytes(task.size)
        );
        for row in rows.0.iter().filter(|row| row.task == task) {
            let _ = writeln!(
                out,
                "| {} | {} | {} |",
                name(row.variant.writer),
                spread(row.median, row),
                times(rows.ratio(&task, row.variant, OURS))
            );
        }
    }
}

/// Returns the name of a maker in tables.
pub const fn name(maker: Maker) -> &'static str {
    match maker {
        Maker::Ours => "xen-vchan, a channel at each end",
        Maker::Chunks => "the same, by `write_chunk` and `read_chunk`",
        Maker::C => "libxenvchan",
        Maker::Unix => "UNIX socket",
        Maker::Core => "xen-vchan, the bare ring",
        Maker::Rtrb => "rtrb",
        Maker::Ringbuf => "ringbuf",
        Maker::Memcpy => "memcpy, twice",
    }
}

/// A value with its spread: half the runs lie within so much of the median.
fn spread(value: f64, row: &Row) -> String {
    format!("{} ±{:.0} %", digits(value), row.spread * 50.0)
}

fn cell(row: Option<&Row>) -> String {
    row.map_or_else(|| "–".into(), |row| spread(row.median, row))
}

/// A ratio, for a table.
fn times(ratio: Option<Measured>) -> String {
    ratio.map_or_else(
        || "–".into(),
        |ratio| {
            let [middle, low, high] = [ratio.middle, ratio.low, ratio.high].map(digits);
            format!("×{middle} ({low} to {high})")
        },
    )
}

fn streams(out: &mut String, rows: Rows<'_>, tasks: &[Task]) {
    out.push_str(
        "GB/s ± half the distance between the quartiles.\n\n\
         | ring | write | C both ends | ours both ends | ours, corked | C writes, ours reads \
         | ours writes, C reads | the same, corked | UNIX socket | bare ring | rtrb | line, ns |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for task in tasks {
        let _ = write!(out, "| {} | {} ", bytes(task.ring), bytes(task.size));
        for variant in [C].into_iter().chain(WAYS).chain([UNIX, CORE, RTRB]) {
            let _ = write!(out, "| {} ", cell(rows.find(task, variant)));
        }
        let line = rows
            .find(task, C)
            .and_then(|row| row.line)
            .unwrap_or(f64::NAN);
        let _ = writeln!(out, "| {} |", digits(line));
    }
}

fn costs_table(out: &mut String, rows: Rows<'_>, tasks: &[Task]) {
    out.push_str(
        "Notifications / system calls for event channels per MB, and processor time of both ends in \
         ns per KB.\n\n\
         | ring | write | C both ends | ours both ends | C writes, ours reads \
         | ours writes, C reads |\n|---|---|---|---|---|---|\n",
    );
    for task in tasks {
        let _ = write!(out, "| {} | {} ", bytes(task.ring), bytes(task.size));
        for variant in [C, OURS, WE_READ, WE_WRITE] {
            match rows.find(task, variant) {
                Some(row) => {
                    let _ = write!(
                        out,
                        "| {} / {}; {} ns ",
                        digits(row.notifies),
                        digits(row.syscalls),
                        digits(row.cpu)
                    );
                }
                None => out.push_str("| – "),
            }
        }
        out.push_str("|\n");
    }
}

fn packets(out: &mut String, rows: Rows<'_>, task: &Task) {
    out.push_str("| ends | million a second | to C | notifications per MB |\n|---|---|---|---|\n");
    for row in rows.0.iter().filter(|row| row.task == *task) {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} |",
            ends(row.variant),
            spread(row.median * 1e3 / task.size as f64, row),
            times(rows.ratio(task, row.variant, C)),
            digits(row.notifies)
        );
    }
}

fn round_trips(out: &mut String, rows: Rows<'_>, task: &Task) {
    out.push_str(
        "| ends | p50 µs | p99 µs | p50 to C | system calls per round trip \
         | CPU µs per round trip |\n|---|---|---|---|---|---|\n",
    );
    for row in rows.0.iter().filter(|row| row.task == *task) {
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            ends(row.variant),
            spread(row.median / 1e3, row),
            digits(row.p99 / 1e3),
            times(rows.ratio(task, row.variant, C)),
            if row.variant == UNIX {
                "–".into()
            } else {
                digits(row.syscalls)
            },
            digits(row.cpu * task.size as f64 / 1e6),
        );
    }
}

fn ends(variant: Variant) -> String {
    let mut text = match (variant.writer, variant.reader) {
        (Maker::C, Maker::C) => "C both ends",
        (Maker::Ours, Maker::Ours) => "ours both ends",
        (Maker::C, _) => "C first, ours second",
        (Maker::Ours, _) => "ours first, C second",
        _ => "UNIX socket",
    }
    .to_owned();
    if variant.cork {
        text.push_str(", corked");
    }
    if !variant.spin {
        text.push_str(", no searching");
    }
    text
}
