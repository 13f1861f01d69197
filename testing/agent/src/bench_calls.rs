//! These crates and Xen's C libraries in dom0: the hypervisor's operations, one after another.
//!
//! One line for each task, `row` and a JSON object. The testbed's clock counts instructions,
//! including those of the kernel and of Xen: the ratios show which library needs less work.

use std::time::Duration;

use anyhow::{Context as _, Result};
use benches::calls::{self, TASKS, Task, Who};

use crate::guest::Guest;
use crate::host::{TestHost, command};
use crate::suite::Needs;

/// How long a run should last, by the machine's own clock.
const LENGTH: Duration = Duration::from_millis(20);

/// Runs every task.
pub(crate) fn run() -> Result<()> {
    let host = TestHost::new()?;
    host.provide(Needs::Guest)?;
    let mut guest = host.take_guest()?;
    let measured = all(&mut guest);
    guest.destroy()?;
    measured
}

fn all(guest: &mut Guest) -> Result<()> {
    // Its pages are all there when it speaks.
    guest.output_after("-guest: alive second=")?;
    // The programs inherit it: an event between two processors costs another amount, and which
    // processors a program gets is the scheduler's choice.
    benches::pin(0);
    let domid = guest.id.to_string();
    for task in TASKS {
        eprintln!("{task:?}");
        let row = task.measure(LENGTH, |who, count| once(task, who, count, &domid))?;
        println!("row {}", row.summary());
    }
    Ok(())
}

fn once(task: &Task, who: Who, count: u64, domid: &str) -> Result<Duration> {
    let (units, count) = (task.units.to_string(), count.to_string());
    let one_by_one = |one| if one { "1" } else { units.as_str() };
    let lines = match who {
        Who::Ours => command(&[
            "self",
            "role",
            "bench-calls",
            "--",
            task.operation,
            &units,
            &count,
            domid,
        ]),
        Who::C { one_by_one: one } => command(&[
            "/usr/bin/c-call-bench",
            task.operation,
            &units,
            one_by_one(one),
            &count,
            domid,
        ]),
    }?;
    let line = lines.first().context("no line")?;
    calls::parse(line).with_context(|| format!("{task:?}, {who:?}"))
}
