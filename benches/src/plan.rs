//! The comparisons and how they are run: the same for a simulated host and for Xen.
//!
//! A group is a set of variants of one thing: the same work, ring and sizes, with different ends.
//! Its runs are interleaved (A B C, A B C, …), so that whatever else the machine does meets all of
//! them, and the figure of each is the median. A round during which the processors' distance changed
//! is dropped, and another is run in its place. How many bytes a run moves is found by a first run,
//! which is not counted.

mod groups;

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::end::Sample;

pub use groups::{PAIR, full, quick, xen};

/// The library of an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Maker {
    /// xen-vchan.
    Ours,
    /// The same, by `write_chunk` and `read_chunk`.
    Chunks,
    /// libxenvchan.
    C,
    /// A UNIX socket, at both ends.
    Unix,
    /// The ring of xen-vchan, without a channel around it, and a peer that never sleeps.
    Core,
    /// The crate rtrb.
    Rtrb,
    /// The crate ringbuf.
    Ringbuf,
    /// Two copies.
    Memcpy,
}

/// The operation of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// Writes of one size; the reader reads what there is, up to 64 KiB.
    Stream,
    /// Packets of one size, sent and received whole.
    Packets,
    /// A message there and back.
    Pingpong,
    /// A write and a read in one thread.
    Pair,
}

/// One way to do a group's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// The writing end; in a ping-pong, the asking one.
    pub writer: Maker,
    /// The reading end; in a ping-pong, the answering one.
    pub reader: Maker,
    /// Our writer is corked, and our reader takes packets as many as there are.
    pub cork: bool,
    /// Our ends search before they sleep, as is their default.
    pub spin: bool,
}

impl Variant {
    /// Two ends, in their default way.
    #[must_use]
    pub const fn of(writer: Maker, reader: Maker) -> Self {
        Self {
            writer,
            reader,
            cork: false,
            spin: true,
        }
    }

    /// The same, corked.
    #[must_use]
    pub const fn corked(self) -> Self {
        Self { cork: true, ..self }
    }

    /// The same, without searching.
    #[must_use]
    pub const fn asleep(self) -> Self {
        Self {
            spin: false,
            ..self
        }
    }
}

/// Work with everything but the ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The operation.
    pub work: Work,
    /// The size of both rings.
    pub ring: usize,
    /// The size of one operation.
    pub size: usize,
    /// The cost of a notify beyond one write to an eventfd; 0 on Xen, where it is real.
    pub notify_ns: u64,
    /// Whether it is real Xen.
    pub xen: bool,
}

impl Task {
    /// Whether `only` names it: `pair`, `pingpong`, `packets`, or for a stream `RING` or
    /// `RING,SIZE`.
    #[must_use]
    pub fn is_called(&self, only: &str) -> bool {
        let work = format!("{:?}", self.work).to_lowercase();
        let sizes = format!("{},{}", self.ring, self.size);
        only == work
            || (self.work == Work::Stream && (only == sizes || only == self.ring.to_string()))
    }
}

/// Variants that are compared with each other.
#[derive(Clone, Debug)]
pub struct Group {
    /// The work.
    pub task: Task,
    /// By whom.
    pub variants: Vec<Variant>,
    /// How many times each; more in place of rounds that are dropped, up to twice as many.
    pub runs: usize,
}

/// The results of one variant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The work.
    #[serde(flatten)]
    pub task: Task,
    /// By whom.
    #[serde(flatten)]
    pub variant: Variant,
    /// GB/s of each run; for a ping-pong, the median round trip of each in nanoseconds; for a pair,
    /// nanoseconds each.
    pub runs: Vec<f64>,
    /// Their median.
    pub median: f64,
    /// Half the runs lie within so much of each other, relative to the median.
    pub spread: f64,
    /// The 99th percentile of a round trip, in nanoseconds.
    pub p99: f64,
    /// Notifications of both ends, per 10^6 bytes; for a ping-pong, per round trip.
    pub notifies: f64,
    /// System calls of both ends for event channels, per 10^6 bytes; for a ping-pong, per round
    /// trip.
    pub syscalls: f64,
    /// Processor time of both ends, in nanoseconds per 1000 bytes.
    pub cpu: f64,
    /// The same of each run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpu_runs: Vec<f64>,
    /// How long a cache line took to the other processor and back between the rounds, in
    /// nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<f64>,
}

/// The ends' own reports: the writer's and the reader's.
pub type Both = (Sample, Sample);

/// How long one run should last.
pub const LENGTH: Duration = Duration::from_millis(40);

/// A cache line's way may take so many times as long after a round as before it. Beyond that the
/// round's ratios would compare two machines.
const STEADY: f64 = 1.4;

impl Group {
    /// Runs every variant and gives a row for each. `run` moves so many bytes once; `length` is how
    /// long that should take. `line` measures a cache line's way to the other processor and back, if
    /// that can be measured.
    ///
    /// # Errors
    ///
    /// The first run or measurement that fails.
    pub fn measure(
        &self,
        length: Duration,
        mut line: impl FnMut() -> Result<Option<f64>>,
        mut run: impl FnMut(&Task, &Variant, u64) -> Result<Both>,
    ) -> Result<Vec<Row>> {
        let mut run = |variant: &Variant, total: u64| {
            run(&self.task, variant, total).with_context(|| format!("{:?}, {variant:?}", self.task))
        };
        let mut totals = Vec::new();
        for variant in &self.variants {
            totals.push(self.total(length, |total| run(variant, total))?);
        }
        let mut seen = vec![Vec::new(); self.variants.len()];
        let (mut lines, mut before) = (Vec::new(), line()?);
        for round in 0..2 * self.runs {
            let both = self.variants.iter().zip(&totals);
            let round_seen: Vec<Both> = both
                .map(|(variant, total)| run(variant, *total))
                .collect::<Result<_>>()?;
            let after = line()?;
            let is_steady =
                |(before, after): (f64, f64)| before.max(after) < STEADY * before.min(after);
            let kept = before.zip(after).is_none_or(is_steady);
            // On a machine that is never steady the last rounds count all the same.
            let needed = self.runs - seen[0].len();
            if kept || needed >= 2 * self.runs - round {
                lines.extend(before.zip(after).map(|(a, b)| f64::midpoint(a, b)));
                seen.iter_mut()
                    .zip(round_seen)
                    .for_each(|(all, one)| all.push(one));
            }
            before = after;
            if seen[0].len() == self.runs {
                break;
            }
        }
        let line = (!lines.is_empty()).then(|| median(lines));
        let rows = self.variants.iter().zip(seen);
        Ok(rows
            .map(|(variant, seen)| Row {
                line,
                ..self.row(*variant, &seen)
            })
            .collect())
    }

    /// Measures how many bytes take `length`, with a run that is long enough for a result.
    fn total(&self, length: Duration, mut run: impl FnMut(u64) -> Result<Both>) -> Result<u64> {
        let size = self.task.size as u64;
        let mut total = match self.task.work {
            Work::Stream | Work::Packets => (256 << 10) / size * size,
            Work::Pingpong | Work::Pair => 64 * size,
        };
        loop {
            let both = run(total)?;
            let took = Duration::from_nanos(self.clock(&both).ns.max(1));
            let times = length.as_secs_f64() / took.as_secs_f64();
            let enough = times <= 8.0;
            total = (((total as f64 * times.min(64.0)) as u64) / size).max(16) * size;
            if enough {
                return Ok(total);
            }
        }
    }

    /// The end whose clock counts: the one that receives the last byte.
    fn clock(&self, both: &Both) -> Sample {
        match self.task.work {
            Work::Pingpong => both.0,
            _ => both.1,
        }
    }

    fn row(&self, variant: Variant, seen: &[Both]) -> Row {
        let bytes = |both: &Both| both.1.bytes as f64;
        let rounds = |both: &Both| both.1.bytes as f64 / self.task.size as f64;
        let value = |both: &Both| match self.task.work {
            Work::Pingpong => both.0.p50 as f64,
            Work::Pair => both.1.ns as f64 / rounds(both),
            _ => bytes(both) / both.1.ns as f64,
        };
        let per = |both: &Both, count: fn(&Sample) -> u64| {
            let count = (count(&both.0) + count(&both.1)) as f64;
            match self.task.work {
                Work::Pingpong => count / rounds(both),
                _ => count * 1e6 / bytes(both),
            }
        };
        let of = |f: &dyn Fn(&Both) -> f64| median(seen.iter().map(f).collect());
        let runs: Vec<f64> = seen.iter().map(value).collect();
        let cpu = |both: &Both| (both.0.cpu + both.1.cpu) as f64 * 1e3 / bytes(both);
        let cpu_runs: Vec<f64> = seen.iter().map(cpu).collect();
        let middle = median(runs.clone());
        Row {
            task: self.task,
            variant,
            median: middle,
            spread: quartiles(&runs).map_or(f64::NAN, |(low, high)| (high - low) / middle),
            p99: of(&|both| both.0.p99 as f64),
            notifies: of(&|both| per(both, |s| s.notifies)),
            syscalls: of(&|both| per(both, |s| s.syscalls)),
            cpu: median(cpu_runs.clone()),
            cpu_runs,
            line: None,
            runs,
        }
    }
}

/// The middle one, or the mean of the two in the middle.
#[must_use]
pub fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    match all.len() {
        0 => f64::NAN,
        n => (all[(n - 1) / 2] + all[n / 2]) / 2.0,
    }
}

/// The first and the third quartile; `None` of nothing.
#[must_use]
pub fn quartiles(runs: &[f64]) -> Option<(f64, f64)> {
    let mut all = runs.to_vec();
    all.sort_by(f64::total_cmp);
    let last = all.len().checked_sub(1)?;
    let at = |part: f64| all[(part * last as f64).round() as usize];
    Some((at(0.25), at(0.75)))
}

#[cfg(test)]
mod tests {
    use super::groups::{KIB, ROUNDS, stream};
    use super::*;

    #[test]
    fn the_median_and_the_quartiles_of_five() {
        let runs = vec![5.0, 1.0, 3.0, 100.0, 4.0];
        assert_eq!(median(runs.clone()), 4.0);
        assert_eq!(quartiles(&runs), Some((3.0, 5.0)));
        assert_eq!(quartiles(&[]), None);
        assert_eq!(median(vec![1.0, 2.0]), 1.5);
    }

    #[test]
    fn a_group_finds_out_how_much_to_move_and_takes_turns() {
        let group = stream(64 * KIB, 64, 0);
        let mut order = Vec::new();
        // One nanosecond per byte.
        let rows = group.measure(
            Duration::from_millis(10),
            || Ok(None),
            |_, variant, total| {
                order.push((*variant, total));
                let seen = Sample {
                    ns: total,
                    bytes: total,
                    cpu: total,
                    notifies: 7,
                    ..Sample::default()
                };
                Ok((seen, seen))
            },
        );
        let rows = rows.unwrap();
        assert_eq!(rows.len(), group.variants.len());
        let measured = &order[order.len() - ROUNDS * rows.len()..];
        for (i, (variant, total)) in measured.iter().enumerate() {
            assert_eq!(*variant, group.variants[i % rows.len()]);
            assert!((9_900_000..=10_000_000).contains(total), "{total}");
        }
        assert_eq!(rows[0].median, 1.0);
        assert_eq!(rows[0].cpu, 2000.0);
        assert!((rows[0].notifies - 1.4).abs() < 0.1);
    }

    /// Returns the rounds that were run and those that counted, with these times of a cache line.
    fn rounds(lines: impl IntoIterator<Item = f64>) -> (usize, usize) {
        let group = stream(64 * KIB, 64, 0);
        let mut lines = lines.into_iter();
        let mut asked = 0;
        let line = || {
            asked += 1;
            Ok(lines.next())
        };
        let rows = group.measure(Duration::from_millis(10), line, |_, _, total| {
            let seen = Sample {
                ns: total,
                bytes: total,
                ..Sample::default()
            };
            Ok((seen, seen))
        });
        let rows = rows.unwrap();
        assert!(rows.iter().all(|row| row.runs.len() == rows[0].runs.len()));
        (asked - 1, rows[0].runs.len())
    }

    #[test]
    fn a_round_during_which_the_processors_moved_is_run_again() {
        assert_eq!(rounds([]), (ROUNDS, ROUNDS));
        assert_eq!(rounds([100.0; 2 * ROUNDS]), (ROUNDS, ROUNDS));
        let moved_once = [100.0, 100.0].into_iter().chain([150.0; 2 * ROUNDS]);
        assert_eq!(rounds(moved_once), (ROUNDS + 1, ROUNDS));
        let restless = (0..).map(|n| if n % 2 == 0 { 100.0 } else { 350.0 });
        assert_eq!(rounds(restless), (2 * ROUNDS, ROUNDS));
    }
}
