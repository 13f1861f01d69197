//! Ours and libxenvchan between dom0 and a domU, in the groups that the comparison on a simulated
//! host has too.
//!
//! One line for each variant, `row` and a JSON object. The testbed's clock counts instructions, so
//! a nanosecond here is half an instruction: the ratios show which side needs less work, and
//! nothing about a real machine's caches.

use std::time::Duration;

use anyhow::{Context as _, Result};
use benches::end::Sample;
use benches::plan::{self, Both, Group, Maker, Task, Variant, Work};

use crate::host::{Place, Privcmd, TestHost, soon};
use crate::suite::Needs;

/// How long a run should last, by the machine's own clock.
const LENGTH: Duration = Duration::from_millis(30);

/// Runs every group, or those that `only` names.
pub(crate) fn run(only: &[String]) -> Result<()> {
    let host = TestHost::new()?;
    host.provide(Needs::DomU(Privcmd::Refusing))?;
    let is_meant =
        |group: &Group| only.is_empty() || only.iter().any(|name| group.task.is_called(name));
    for group in plan::xen().into_iter().filter(is_meant) {
        eprintln!("{:?}", group.task);
        for row in group.measure(
            LENGTH,
            || Ok(None),
            |task, variant, total| once(&host, task, variant, total),
        )? {
            println!("row {}", serde_json::to_string(&row)?);
        }
    }
    host.store.rm(&host.folder(Place::DomU)?)?;
    Ok(())
}

/// One run: the writer in dom0, the reader, which serves, in the domU.
fn once(host: &TestHost, task: &Task, variant: &Variant, total: u64) -> Result<Both> {
    let (first, second) = match task.work {
        Work::Stream => ("write", "read"),
        Work::Packets => ("send", "recv"),
        Work::Pingpong | Work::Pair => ("ping", "pong"),
    };
    let folder = host.folder(Place::DomU)?;
    host.store.mkdir(&folder)?;
    let start = |place: Place, maker: Maker, work: &str, side: &str| {
        let peer = host.domid(place.other())?.to_string();
        let (size, total, ring) = (
            task.size.to_string(),
            total.to_string(),
            task.ring.to_string(),
        );
        let path = format!("{folder}/bench");
        let program: &[&str] = match maker {
            Maker::C => &["/usr/bin/c-vchan-bench"],
            _ => &["self", "role", "bench-end", "--"],
        };
        let mut words: Vec<&str> = program.to_vec();
        words.extend([work, side, &peer, &path, &size, &total, &ring, "0"]);
        if maker == Maker::Ours && variant.cork {
            words.push("cork");
        }
        if maker == Maker::Ours && !variant.spin {
            words.push("spin=0");
        }
        host.start(place, &words)
    };
    let mut server = start(Place::DomU, variant.reader, second, "server")?;
    let mut client = start(Place::Dom0, variant.writer, first, "client")?;
    let mut seen = [Sample::default(); 2];
    for (seen, job) in seen.iter_mut().zip([&mut client, &mut server]) {
        let line = job.line(0, soon())?.context("an end said nothing")?;
        *seen = Sample::parse(&line)?;
    }
    client.succeed(soon())?;
    server.succeed(soon())?;
    Ok((seen[0], seen[1]))
}
