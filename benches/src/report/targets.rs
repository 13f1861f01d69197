//! The project's targets beside what was measured.

use super::{C, LEAST_ROUNDS, Measured, OURS, Rows, UNIX, WE_READ, WE_WRITE, digits};
use crate::plan::{Maker, Task, Variant, Work};

/// One target and whether it was reached.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The measured quantity.
    pub what: &'static str,
    /// The bound, with its sign.
    pub target: String,
    /// The medians, separated by commas.
    pub measured: String,
    /// The verdict.
    pub verdict: Verdict,
}

/// The verdict of the rounds' quartiles on a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A cell was not measured.
    NotRun,
    /// A cell has fewer than five rounds.
    TooFewRounds,
    /// Both quartiles of every cell are within the bound.
    Reached,
    /// Both quartiles of a cell are outside the bound.
    Missed,
    /// The bound lies between the quartiles of a cell.
    WithinSpread,
}

impl Verdict {
    /// The verdict on cells that have to be at least, or at most, `bound`.
    fn of(values: &[Option<Measured>], least: bool, bound: f64) -> Self {
        let Some(values) = values.iter().copied().collect::<Option<Vec<_>>>() else {
            return Self::NotRun;
        };
        let within = |value: f64| {
            if least {
                value >= bound
            } else {
                value <= bound
            }
        };
        let ends = |m: &Measured| [within(m.low), within(m.high)];
        if values.is_empty() {
            Self::NotRun
        } else if values.iter().any(|m| m.rounds < LEAST_ROUNDS) {
            Self::TooFewRounds
        } else if values.iter().any(|m| ends(m) == [false; 2]) {
            Self::Missed
        } else if values.iter().all(|m| ends(m) == [true; 2]) {
            Self::Reached
        } else {
            Self::WithinSpread
        }
    }

    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::NotRun => "not run",
            Self::TooFewRounds => "no verdict: fewer than five rounds",
            Self::Reached => "reached",
            Self::Missed => "**missed**",
            Self::WithinSpread => "no verdict: within the spread",
        }
    }
}

const fn stream(ring: usize, size: usize, notify_ns: u64) -> Task {
    Task {
        work: Work::Stream,
        ring: ring << 10,
        size,
        notify_ns,
        xen: false,
    }
}

const fn other(work: Work) -> Task {
    Task {
        work,
        ring: 64 << 10,
        size: 64,
        notify_ns: 0,
        xen: false,
    }
}

/// Collects targets with what they are measured by.
struct Targets<'a> {
    rows: Rows<'a>,
    out: Vec<Outcome>,
}

impl Targets<'_> {
    fn add(
        &mut self,
        what: &'static str,
        least: bool,
        bound: f64,
        values: impl IntoIterator<Item = Option<Measured>>,
    ) {
        let values: Vec<_> = values.into_iter().collect();
        let known: Option<Vec<String>> =
            values.iter().map(|v| v.map(|v| digits(v.middle))).collect();
        let sign = if least { "≥" } else { "≤" };
        self.out.push(Outcome {
            what,
            target: format!("{sign} {bound}"),
            measured: known.map_or_else(|| "–".into(), |known| known.join(", ")),
            verdict: Verdict::of(&values, least, bound),
        });
    }

    /// Throughputs, as ratios to libxenvchan's.
    fn streams(&mut self, what: &'static str, least: f64, tasks: &[Task], variants: &[Variant]) {
        let rows = self.rows;
        let each = tasks
            .iter()
            .flat_map(|task| variants.iter().map(move |v| (task, v)));
        self.add(
            what,
            true,
            least,
            each.map(|(task, v)| rows.ratio(task, *v, C)),
        );
    }
}

/// Every target.
#[must_use]
pub fn targets(rows: Rows<'_>) -> Vec<Outcome> {
    let mut all = Targets {
        rows,
        out: Vec::new(),
    };
    in_one_thread(&mut all);
    streams(&mut all);
    round_trips(&mut all);
    on_xen(&mut all);
    all.out
}

fn in_one_thread(all: &mut Targets<'_>) {
    let task = other(Work::Pair);
    let value = all.rows.ratio(&task, C, OURS);
    all.add(
        "write and read of 64 B in one thread: C's time to ours",
        true,
        2.2,
        [value],
    );
    let rtrb = Variant::of(Maker::Rtrb, Maker::Rtrb);
    let value = all.rows.ratio(&task, OURS, rtrb);
    all.add("the same: ours to rtrb's", false, 2.5, [value]);
}

fn streams(all: &mut Targets<'_>) {
    let mixed = [WE_READ, WE_WRITE];
    let small = [stream(64, 64, 0)];
    all.streams(
        "64 B writes, 64 KiB ring, ours both ends",
        10.0,
        &small,
        &[OURS],
    );
    all.streams("the same at +1 µs", 4.0, &[stream(64, 64, 1000)], &[OURS]);
    all.streams("the same, C writes, ours reads", 3.0, &small, &[WE_READ]);
    let corked = [WE_WRITE.corked()];
    all.streams(
        "the same, ours writes corked, C reads",
        8.0,
        &small,
        &corked,
    );
    let middle = [stream(64, 1 << 10, 0), stream(64, 4 << 10, 0)];
    all.streams(
        "1 and 4 KiB writes, 64 KiB ring, ours both ends",
        8.0,
        &middle,
        &[OURS],
    );
    all.streams(
        "the same, ours with C, in either role",
        5.0,
        &middle,
        &mixed,
    );
    let large = stream(64, 64 << 10, 0);
    all.streams(
        "64 KiB writes, 64 KiB ring, ours both ends",
        10.0,
        &[large],
        &[OURS],
    );
    let value = all.rows.ratio(&large, OURS, UNIX);
    all.add("the same, to a UNIX socket", true, 2.0, [value]);
    let dear = [stream(64, 64 << 10, 1000)];
    all.streams("the same, ours with C, at +1 µs", 3.5, &dear, &mixed);
    let tiny = [64, 1 << 10, 4 << 10, 64 << 10].map(|size| stream(4, size, 0));
    // A shortened run has one of them.
    let run = tiny.iter().filter(|task| all.rows.find(task, C).is_some());
    let run: Vec<Task> = run.copied().collect();
    let tiny = if run.is_empty() { &tiny[..] } else { &run };
    all.streams(
        "4 KiB ring, writes of 64 B, 1, 4, 64 KiB, ours both ends",
        20.0,
        tiny,
        &[OURS],
    );
    all.streams("the same, ours with C, in either role", 4.0, tiny, &mixed);
    let huge = [stream(1024, 64 << 10, 0)];
    all.streams(
        "64 KiB writes, 1 MiB ring, ours both ends",
        0.95,
        &huge,
        &[OURS],
    );
    all.streams("the same, ours with C, in either role", 0.9, &huge, &mixed);
    let cpu = |variant| all.rows.find(&large, variant).map(|row| &row.cpu_runs[..]);
    let value = cpu(OURS)
        .zip(cpu(C))
        .and_then(|(ours, c)| Measured::ratio(ours, c));
    all.add(
        "CPU per KB, 64 KiB writes, 64 KiB ring, to C's",
        false,
        0.4,
        [value],
    );
}

fn round_trips(all: &mut Targets<'_>) {
    let task = other(Work::Pingpong);
    let ours = all.rows.find(&task, OURS);
    let micros = |row: &crate::plan::Row| row.runs.iter().map(|ns| ns / 1e3).collect();
    let p50 = ours.and_then(|row| Measured::of(micros(row)));
    all.add("round trip of 64 B, p50 in µs", false, 0.6, [p50]);
    // A count, which has no spread.
    let calls = ours.and_then(|row| Measured::of(vec![row.syscalls; row.runs.len()]));
    all.add("the same, system calls", false, 0.005, [calls]);
    let asleep = [OURS, WE_READ, WE_WRITE].map(|v| all.rows.ratio(&task, v.asleep(), C));
    let what = "round trip without searching, p50 to C's: ours, C first, ours first";
    all.add(what, false, 1.1, asleep);
}

fn on_xen(all: &mut Targets<'_>) {
    let rows = all.rows;
    let tasks = rows.tasks(|task| task.xen && task.work != Work::Pair);
    // How many times as fast as C each of these is; nothing if a cell is missing.
    let speeds = |pick: &dyn Fn(&Task) -> bool, variants: &[Variant]| -> Option<Vec<Measured>> {
        let picked = tasks.iter().filter(|task| pick(task));
        let each = picked.flat_map(|task| variants.iter().map(move |v| (task, *v)));
        let speed = |(task, variant): (&Task, Variant)| match task.work {
            Work::Pingpong => rows.ratio(task, C, variant),
            _ => rows.ratio(task, variant, C),
        };
        let mut speeds = each.map(speed).collect::<Option<Vec<_>>>()?;
        speeds.sort_by(|a, b| a.middle.total_cmp(&b.middle));
        Some(speeds)
    };
    let worst = |variants| speeds(&|_| true, variants).and_then(|all| all.first().copied());
    let (ours, mixed) = (worst(&[OURS]), worst(&[WE_READ, WE_WRITE]));
    let upto_4k = |task: &Task| task.work != Work::Pingpong && task.size <= 4096;
    let half = speeds(&upto_4k, &[OURS]);
    let half = half.and_then(|all| all.get(all.len().saturating_sub(1) / 2).copied());
    all.add(
        "real Xen, the worst cell, ours both ends",
        true,
        1.0,
        [ours],
    );
    all.add("real Xen, the worst cell, ours with C", true, 1.0, [mixed]);
    let what = "real Xen, half the cells up to 4 KiB writes, ours both ends";
    all.add(what, true, 2.0, [half]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_needs_five_rounds_and_quartiles_on_one_side() {
        let of = |runs: &[f64]| [Measured::of(runs.to_vec())];
        let verdict = |runs: &[f64]| Verdict::of(&of(runs), true, 2.0);
        assert_eq!(verdict(&[2.0, 2.1, 2.2, 2.3, 0.1]), Verdict::Reached);
        assert_eq!(verdict(&[1.0, 1.1, 1.2, 1.3, 9.0]), Verdict::Missed);
        assert_eq!(verdict(&[1.0, 1.9, 2.2, 2.3, 2.4]), Verdict::WithinSpread);
        assert_eq!(verdict(&[2.0, 2.1, 2.2, 2.3]), Verdict::TooFewRounds);
        assert_eq!(Verdict::of(&[None], true, 2.0), Verdict::NotRun);
        let low = of(&[2.0, 2.1, 2.2, 2.3, 0.1]);
        assert_eq!(Verdict::of(&low, false, 2.05), Verdict::WithinSpread);
    }
}
