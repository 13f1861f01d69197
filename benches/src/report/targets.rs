//! What the project set out to reach, beside what was measured.

use super::reasons;
use super::{C, OURS, Rows, UNIX, WE_READ, WE_WRITE, digits};
use crate::plan::{Maker, Row, Task, Variant, Work};

/// One target and how it went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What is measured.
    pub what: String,
    /// What it should be.
    pub target: String,
    /// What it is.
    pub measured: String,
    /// Whether that is so; nothing if it was not run.
    pub reached: Option<bool>,
    /// Why it cannot be, as far as that is known.
    pub reason: String,
}

pub(super) const fn stream(ring: usize, size: usize, notify_ns: u64) -> Task {
    Task {
        work: Work::Stream,
        ring: ring << 10,
        size,
        notify_ns,
        xen: false,
    }
}

pub(super) const fn other(work: Work, size: usize) -> Task {
    Task {
        work,
        ring: 64 << 10,
        size,
        notify_ns: 0,
        xen: false,
    }
}

/// The figures a target is made of.
struct Figures<'a> {
    rows: Rows<'a>,
    out: Vec<Outcome>,
}

impl Figures<'_> {
    /// The ratio of two variants' medians.
    fn ratio(&self, task: &Task, variant: Variant, base: Variant) -> Option<f64> {
        Some(self.rows.find(task, variant)?.median / self.rows.find(task, base)?.median)
    }

    /// A target that all of `values` have to reach: at least, or at most.
    fn add(&mut self, what: &str, least: bool, bound: f64, values: Vec<Option<f64>>, reason: &str) {
        let known: Option<Vec<f64>> = values.into_iter().collect();
        let sign = if least { "≥" } else { "≤" };
        let within = |v: &f64| if least { *v >= bound } else { *v <= bound };
        self.out.push(Outcome {
            what: what.into(),
            target: format!("{sign} {bound}"),
            measured: known.as_ref().map_or_else(
                || "–".into(),
                |all| {
                    all.iter()
                        .map(|v| digits(*v))
                        .collect::<Vec<_>>()
                        .join(", ")
                },
            ),
            reached: known.as_ref().map(|all| all.iter().all(within)),
            reason: reason.into(),
        });
    }

    /// As [`add`](Self::add), for throughputs to libxenvchan's.
    fn streams(
        &mut self,
        what: &str,
        least: f64,
        tasks: &[Task],
        variants: &[Variant],
        reason: &str,
    ) {
        let each = tasks
            .iter()
            .flat_map(|task| variants.iter().map(move |variant| (task, variant)));
        let values = each
            .map(|(task, variant)| self.ratio(task, *variant, C))
            .collect();
        self.add(what, true, least, values, reason);
    }
}

/// Every target.
#[must_use]
pub fn targets(rows: Rows<'_>) -> Vec<Outcome> {
    let mut all = Figures {
        rows,
        out: Vec::new(),
    };
    in_one_thread(&mut all);
    streams(&mut all);
    round_trips(&mut all);
    on_xen(&mut all);
    all.out
}

fn in_one_thread(all: &mut Figures<'_>) {
    let task = other(Work::Pair, 64);
    let why = reasons::pair(all.rows);
    let same = |maker| Variant::of(maker, maker);
    let value = all.ratio(&task, C, OURS);
    all.add(
        "write and read of 64 B in one thread: C's time to ours",
        true,
        2.2,
        vec![value],
        &why,
    );
    let value = all.ratio(&task, OURS, same(Maker::Rtrb));
    all.add("the same: ours to rtrb's", false, 2.5, vec![value], &why);
}

fn streams(all: &mut Figures<'_>) {
    let both = [WE_READ, WE_WRITE];
    let limit = reasons::limit(all.rows);
    let writes = reasons::c_writes(all.rows);
    let sleeps = reasons::c_sleeps(all.rows);
    let small = stream(64, 64, 0);
    all.streams(
        "64 B writes, 64 KiB ring, ours both ends",
        10.0,
        &[small],
        &[OURS],
        &limit,
    );
    all.streams(
        "the same at +1 µs",
        4.0,
        &[stream(64, 64, 1000)],
        &[OURS],
        &limit,
    );
    all.streams(
        "the same, C writes, ours reads",
        3.0,
        &[small],
        &[WE_READ],
        &writes,
    );
    all.streams(
        "the same, ours writes corked, C reads",
        8.0,
        &[small],
        &[WE_WRITE.corked()],
        &limit,
    );
    let middle = [stream(64, 1 << 10, 0), stream(64, 4 << 10, 0)];
    all.streams(
        "1 and 4 KiB writes, 64 KiB ring, ours both ends",
        8.0,
        &middle,
        &[OURS],
        &limit,
    );
    all.streams(
        "the same, ours with C, in either role",
        5.0,
        &middle,
        &both,
        &sleeps,
    );
    let large = stream(64, 64 << 10, 0);
    all.streams(
        "64 KiB writes, 64 KiB ring, ours both ends",
        10.0,
        &[large],
        &[OURS],
        &limit,
    );
    let value = all.ratio(&large, OURS, UNIX);
    all.add("the same, to a UNIX socket", true, 2.0, vec![value], &limit);
    all.streams(
        "the same, ours with C, at +1 µs",
        3.5,
        &[stream(64, 64 << 10, 1000)],
        &both,
        &sleeps,
    );
    let tiny: Vec<Task> = [64, 1 << 10, 4 << 10, 64 << 10]
        .map(|size| stream(4, size, 0))
        .into();
    // A shortened run has one of them.
    let tiny: Vec<Task> = match tiny
        .iter()
        .filter(|t| all.rows.find(t, C).is_some())
        .copied()
        .collect::<Vec<_>>()
    {
        none if none.is_empty() => tiny,
        some => some,
    };
    all.streams(
        "4 KiB ring, writes of 64 B, 1, 4, 64 KiB, ours both ends",
        20.0,
        &tiny,
        &[OURS],
        "",
    );
    all.streams(
        "the same, ours with C, in either role",
        4.0,
        &tiny,
        &both,
        &sleeps,
    );
    let huge = stream(1024, 64 << 10, 0);
    all.streams(
        "64 KiB writes, 1 MiB ring, ours both ends",
        0.95,
        &[huge],
        &[OURS],
        "",
    );
    all.streams(
        "the same, ours with C, in either role",
        0.9,
        &[huge],
        &both,
        "",
    );
    let cpu = |variant| all.rows.find(&large, variant).map(|row| row.cpu);
    let value = cpu(OURS).zip(cpu(C)).map(|(ours, c)| ours / c);
    all.add(
        "CPU per KB, 64 KiB writes, 64 KiB ring, to C's",
        false,
        0.4,
        vec![value],
        &limit,
    );
}

fn round_trips(all: &mut Figures<'_>) {
    let task = other(Work::Pingpong, 64);
    let of = |f: fn(&Row) -> f64| all.rows.find(&task, OURS).map(f);
    let (p50, calls) = (of(|row| row.median / 1e3), of(|row| row.syscalls));
    let far = reasons::round_trip(all.rows);
    all.add("round trip of 64 B, p50 in µs", false, 0.6, vec![p50], &far);
    all.add("the same, system calls", false, 0.005, vec![calls], "");
    let asleep = [OURS, WE_READ, WE_WRITE].map(|v| all.ratio(&task, v.asleep(), C));
    all.add(
        "round trip without searching, p50 to C's: ours, C first, ours first (10 % are noise)",
        false,
        1.1,
        asleep.into(),
        &reasons::asleep(all.rows),
    );
}

fn on_xen(all: &mut Figures<'_>) {
    let why = reasons::emulator(all.rows);
    let tasks = all.rows.tasks(|task| task.xen && task.work != Work::Pair);
    let speed = |task: &Task, variant| {
        let ratio = all.ratio(task, variant, C)?;
        Some(if task.work == Work::Pingpong {
            1.0 / ratio
        } else {
            ratio
        })
    };
    let of = |pick: &dyn Fn(&Task) -> bool, variants: &[Variant]| -> Vec<Option<f64>> {
        let picked = tasks.iter().filter(|task| pick(task));
        picked
            .flat_map(|task| variants.iter().map(|v| speed(task, *v)))
            .collect()
    };
    let some = |values: Vec<Option<f64>>| {
        if values.is_empty() {
            vec![None]
        } else {
            values
        }
    };
    let worst = |values: &[Option<f64>]| {
        let known: Option<Vec<f64>> = values.iter().copied().collect();
        vec![
            known
                .filter(|k| !k.is_empty())
                .map(|k| k.into_iter().fold(f64::INFINITY, f64::min)),
        ]
    };
    let ours = some(of(&|_| true, &[OURS]));
    let mixed = some(of(&|_| true, &[WE_READ, WE_WRITE]));
    let mut upto_4k = of(
        &|task| task.work != Work::Pingpong && task.size <= 4096,
        &[OURS],
    );
    upto_4k.sort_by(|a, b| b.partial_cmp(a).unwrap_or(std::cmp::Ordering::Equal));
    let most = upto_4k.get(upto_4k.len() / 2).copied().flatten();
    let (ours, mixed) = (worst(&ours), worst(&mixed));
    all.add(
        "real Xen, the worst cell, ours both ends",
        true,
        1.0,
        ours,
        &why,
    );
    all.add(
        "real Xen, the worst cell, ours with C",
        true,
        1.0,
        mixed,
        &why,
    );
    all.add(
        "real Xen, half the cells up to 4 KiB writes, ours both ends",
        true,
        2.0,
        vec![most],
        &why,
    );
}
