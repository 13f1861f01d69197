//! Operations of the hypervisor's, many times: the counterpart of `testing/c/c-call-bench.c`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use xen_evtchn::EventChannels;
use xen_gnttab::{CopySegment, GrantCopier, GrantedBytes, PageAccess, Region, foreign, share};
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, PAGE_SIZE, Port, Xen};

use crate::plan::{median, quartiles};

/// Bytes of one segment of a grant copy.
const SEGMENT: usize = 64;
/// Rounds of each task.
const ROUNDS: usize = 7;

/// One operation, on so many pages, segments or ports.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    /// The operation's name, for both programs.
    pub operation: &'static str,
    /// The number of pages, segments or ports in it.
    pub units: usize,
}

/// The operations that are measured, in the order of the report.
pub const TASKS: &[Task] = &[
    Task::of("hypercall", 1),
    Task::of("info", 1),
    Task::of("map", 1),
    Task::of("map", 16),
    Task::of("map", 256),
    Task::of("grant-map", 1),
    Task::of("grant-map", 16),
    Task::of("grant-copy", 1),
    Task::of("grant-copy", 64),
    Task::of("notify", 1),
    Task::of("events", 1),
    Task::of("events", 64),
];

/// One task's figures: nanoseconds an operation, a figure for each round.
#[derive(Clone, Debug)]
pub struct Row {
    /// The operation.
    pub operation: String,
    /// Its pages, segments or ports.
    pub units: usize,
    /// These crates.
    pub ours: Vec<f64>,
    /// The C libraries, by as few calls as they allow.
    pub c: Vec<f64>,
    /// The C libraries, one page, segment or port by one call; empty where that is the same.
    pub c_one_by_one: Vec<f64>,
}

/// The implementation that runs a task. A batch is the input of one call of its library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// These crates.
    Ours,
    /// The C libraries.
    C {
        /// One page, segment or port for each call.
        one_by_one: bool,
    },
}

impl Task {
    const fn of(operation: &'static str, units: usize) -> Self {
        Self { operation, units }
    }

    /// Runs all variants in turn; `once` does so many operations and returns what they took.
    ///
    /// # Errors
    /// Those of `once`.
    pub fn measure(
        &self,
        length: Duration,
        mut once: impl FnMut(Who, u64) -> Result<Duration>,
    ) -> Result<Row> {
        let variants = [
            Who::Ours,
            Who::C { one_by_one: false },
            Who::C { one_by_one: true },
        ];
        // The C library's calls for events take one port only: there is no other way.
        let is_batched = self.units > 1 && self.operation != "events";
        let variants = if is_batched {
            &variants[..]
        } else {
            &variants[..2]
        };
        let mut counts = Vec::new();
        for who in variants {
            const FIRST: u64 = 20;
            let took = once(*who, FIRST)?.as_nanos().max(1);
            let count = length.as_nanos() * u128::from(FIRST) / took;
            counts.push(u64::try_from(count)?.max(FIRST));
        }
        let mut seen = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for ((who, &count), seen) in variants.iter().zip(&counts).zip(&mut seen) {
                let took = once(*who, count)?;
                seen.push(took.as_nanos() as f64 / count as f64);
            }
        }
        let [ours, c, c_one_by_one] = seen;
        Ok(Row {
            operation: self.operation.to_owned(),
            units: self.units,
            ours,
            c,
            c_one_by_one,
        })
    }
}

impl Row {
    /// The row as `cargo xtask bench calls` reads it.
    #[must_use]
    pub fn summary(&self) -> Value {
        let [ours, c] = self.medians();
        let [ratio, one_by_one] = self.ratios();
        json!({
            "operation": self.operation,
            "units": self.units,
            "ours_ns": ours,
            "c_ns": c,
            "ratio": ratio,
            "ratio_one_by_one": one_by_one,
        })
    }

    /// The medians of ours and of C's, in nanoseconds.
    #[must_use]
    pub fn medians(&self) -> [f64; 2] {
        [median(self.ours.clone()), median(self.c.clone())]
    }

    /// How many times ours C takes: the median of the rounds' ratios, and its quartiles. The first
    /// is of C as it is, the second of C one by one.
    #[must_use]
    pub fn ratios(&self) -> [Option<(f64, f64, f64)>; 2] {
        [&self.c, &self.c_one_by_one].map(|theirs| {
            let ratios: Vec<f64> = theirs
                .iter()
                .zip(&self.ours)
                .map(|(c, us)| c / us)
                .collect();
            let (low, high) = quartiles(&ratios)?;
            Some((low, median(ratios), high))
        })
    }
}

/// Does `count` operations and prints `ok ns=N`. Arguments: OPERATION UNITS COUNT DOMID.
///
/// # Errors
/// A wrong argument, or an operation that fails.
pub fn main(arguments: &[String]) -> Result<()> {
    let [operation, units, count, domid] = arguments else {
        bail!("OPERATION UNITS COUNT DOMID");
    };
    let bench = Bench {
        xen: Xen::open()?,
        units: units.parse()?,
        count: count.parse()?,
        guest: DomId::new(domid.parse()?),
    };
    let took = match operation.as_str() {
        "hypercall" => bench.hypercall(),
        "info" => bench.info(),
        "map" => bench.map(),
        "grant-map" => bench.grant_map(),
        "grant-copy" => bench.grant_copy(),
        "notify" => bench.events(false),
        "events" => bench.events(true),
        other => bail!("{other}: no such operation"),
    }?;
    println!("ok ns={}", took.as_nanos());
    Ok(())
}

/// Reads what [`main`] and the C program print.
///
/// # Errors
/// It is something else: the reason of a failure.
pub fn parse(line: &str) -> Result<Duration> {
    let ns = line
        .strip_prefix("ok ns=")
        .with_context(|| line.to_owned())?;
    Ok(Duration::from_nanos(ns.trim().parse()?))
}

struct Bench {
    xen: Xen,
    units: usize,
    count: u64,
    guest: DomId,
}

impl Bench {
    fn timed(&self, mut operation: impl FnMut() -> Result<()>) -> Result<Duration> {
        let began = Instant::now();
        for _ in 0..self.count {
            operation()?;
        }
        Ok(began.elapsed())
    }

    fn hypercall(&self) -> Result<Duration> {
        let privcmd = Privcmd::open(&self.xen)?;
        self.timed(|| {
            privcmd.xen_page_size()?;
            Ok(())
        })
    }

    fn info(&self) -> Result<Duration> {
        let privcmd = Privcmd::open(&self.xen)?;
        // The first call finds out the interface's version.
        privcmd.domain_info(self.guest)?;
        self.timed(|| {
            let info = privcmd.domain_info(self.guest)?;
            ensure!(info.id == self.guest);
            Ok(())
        })
    }

    fn map(&self) -> Result<Duration> {
        let privcmd = Privcmd::open(&self.xen)?;
        // From 1 MiB on there is memory only.
        let frames: Vec<u64> = (0x100..).take(self.units).collect();
        self.timed(|| {
            let guest = privcmd.guest(self.guest);
            touch(&foreign::map(guest, &frames, PageAccess::ReadOnly)?)
        })
    }

    fn grant_map(&self) -> Result<Duration> {
        let me = DomId::DOM0;
        let pages = share(&self.xen, me, self.units, PageAccess::ReadWrite)?;
        self.timed(|| {
            let mapped = xen_gnttab::map(&self.xen, me, pages.refs(), PageAccess::ReadOnly)?;
            touch(mapped.region())
        })
    }

    fn grant_copy(&self) -> Result<Duration> {
        let domain = DomId::DOM0;
        let pages = share(&self.xen, domain, 1, PageAccess::ReadWrite)?;
        let gref = *pages.refs().first().context("no reference")?;
        let copier = GrantCopier::open(&self.xen)?;
        let mut buffer = vec![0; self.units * SEGMENT];
        let segment = |(i, part): (usize, _)| {
            let offset = i * SEGMENT % PAGE_SIZE;
            let from = GrantedBytes {
                domain,
                gref,
                offset,
            };
            CopySegment::read(from, part)
        };
        let parts = buffer.chunks_mut(SEGMENT).enumerate();
        let mut segments: Vec<_> = parts.map(segment).collect();
        self.timed(|| {
            copier.copy(&mut segments)?;
            let done = |segment: &CopySegment<'_>| segment.status().is_some_and(|s| s.is_okay());
            ensure!(segments.iter().all(done));
            Ok(())
        })
    }

    fn events(&self, wait: bool) -> Result<Duration> {
        let (sender, receiver) = (
            EventChannels::open(&self.xen)?,
            EventChannels::open(&self.xen)?,
        );
        let (mut from, mut to) = (Vec::new(), Vec::new());
        for _ in 0..self.units {
            let port = receiver.bind_unbound(DomId::DOM0)?;
            from.push(sender.bind_interdomain(DomId::DOM0, port.port())?);
            to.push(port);
        }
        // A port may have an event from its binding.
        std::thread::sleep(Duration::from_millis(1));
        while let Some(port) = receiver.pending()? {
            receiver.unmask(port)?;
        }
        let mut ports = vec![Port::default(); self.units];
        self.timed(|| {
            for port in &from {
                port.notify()?;
            }
            let mut seen = 0;
            while wait && seen < self.units {
                let first = receiver.wait(None)?.context("no event")?;
                ports[0] = first;
                let rest = match self.units {
                    1 => 0,
                    _ => receiver.pending_batch(&mut ports[1..])?,
                };
                receiver.unmask_batch(&ports[..=rest])?;
                seen += rest + 1;
            }
            Ok(())
        })
    }
}

/// Reads a byte of each page.
fn touch(region: &Region) -> Result<()> {
    let mut byte = [0];
    for offset in (0..region.len()).step_by(PAGE_SIZE) {
        region.copy_out(offset, &mut byte)?;
        std::hint::black_box(byte);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_has_every_variant_and_a_ratio_of_its_own() {
        let mut order = Vec::new();
        let task = Task::of("map", 16);
        let row = task
            .measure(Duration::from_micros(100), |who, count| {
                order.push((who, count));
                let each = match who {
                    Who::Ours => 100,
                    Who::C { one_by_one: false } => 150,
                    Who::C { one_by_one: true } => 400,
                };
                Ok(Duration::from_nanos(each * count))
            })
            .unwrap();
        assert_eq!(order.len(), 3 * (ROUNDS + 1));
        assert_eq!(order[3], (Who::Ours, 1000));
        assert_eq!(order[5], (Who::C { one_by_one: true }, 250));
        assert_eq!(row.medians(), [100.0, 150.0]);
        assert_eq!(row.ratios(), [Some((1.5, 1.5, 1.5)), Some((4.0, 4.0, 4.0))]);
        let row = Task::of("events", 64)
            .measure(Duration::from_micros(100), |_, count| {
                Ok(Duration::from_nanos(count))
            })
            .unwrap();
        assert_eq!(row.ratios()[1], None);
    }

    #[test]
    fn a_failure_is_passed_on() {
        assert_eq!(parse("ok ns=12\n").unwrap(), Duration::from_nanos(12));
        let error = parse("FAILED pages: Invalid argument").unwrap_err();
        assert!(error.to_string().contains("Invalid argument"), "{error}");
    }
}
