//! Memory and speed of the embedded daemon, as the table of `docs/xen-store-server.md`:
//!
//! ```text
//! cargo run --release -p xen-store-server --example figures
//! ```
//!
//! Client and daemon are two threads of this process. A time is the median of nine rounds.

use std::error::Error;
use std::fs;
use std::time::{Duration, Instant};

use xen_store::Store;
use xen_store::request::Write;
use xen_store_server::{Config, Server};
use xen_sys::DomId;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROUNDS: usize = 9;

fn main() -> Result<()> {
    print(1)
}

/// Prints the table, of that many times fewer nodes and requests.
fn print(divisor: usize) -> Result<()> {
    println!("| figure | value |");
    println!("|---|---|");
    // First, while no memory that was given back is left to be used again.
    memory(divisor)?;
    let start = median(|| {
        let begun = Instant::now();
        drop(Server::start(Config::new())?);
        Ok(begun.elapsed())
    })?;
    row("start and end of a daemon", &micros(start, 1));
    speed(1_000 / divisor)
}

fn row(figure: &str, value: &str) {
    println!("| {figure} | {value} |");
}

fn micros(time: Duration, count: usize) -> String {
    format!("{:.1} µs", time.as_secs_f64() * 1e6 / count as f64)
}

fn median(mut round: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let mut times = (0..ROUNDS).map(|_| round()).collect::<Result<Vec<_>>>()?;
    times.sort();
    Ok(times[ROUNDS / 2])
}

fn speed(count: usize) -> Result<()> {
    let server = Server::start(Config::new())?;
    let store = server.connect(DomId::DOM0)?;
    let paths: Vec<String> = (0..count).map(|n| format!("/t/{}/{n}", n % 10)).collect();
    fill(&store, &paths)?;
    let time = |work: &dyn Fn() -> xen_store::Result<()>| {
        median(|| {
            let begun = Instant::now();
            work()?;
            Ok(begun.elapsed())
        })
    };
    let read = time(&|| paths.iter().try_for_each(|path| store.read(path).map(drop)))?;
    row("a read, one at a time", &micros(read, count));
    let write = time(&|| paths.iter().try_for_each(|path| store.write(path, "value")))?;
    row("a write, one at a time", &micros(write, count));
    let many = time(&|| {
        let mut values = store.read_many(&paths).into_iter();
        values.try_for_each(|value| value.map(drop))
    })?;
    row("a read, 128 in flight", &micros(many, count));
    let walk = time(&|| store.walk("/t", u32::MAX).map(drop))?;
    row("a node of a walk", &micros(walk, count));
    let transaction = time(&|| store.with_transaction(|t| t.write("/t/0/0", "value")))?;
    row("a transaction with one write", &micros(transaction, 1));
    let watch = store.watch("/t")?;
    let events = time(&|| {
        for path in &paths {
            store.write(path, "value")?;
            watch.next(None)?;
        }
        Ok(())
    })?;
    row("a write and the event it causes", &micros(events, count));
    Ok(())
}

fn memory(divisor: usize) -> Result<()> {
    let server = Server::start(Config::new())?;
    let dom0 = server.connect(DomId::DOM0)?;
    let domain = |id| {
        server.add_domain(DomId::new(id));
        server.connect(DomId::new(id))
    };
    let mut guests = vec![domain(1)?];
    let before = resident()?;
    for id in 2..=301 {
        guests.push(domain(id)?);
    }
    let each = resident()?.saturating_sub(before) / 300;
    row(
        "memory of a connection of a domain, both ends",
        &format!("{each} B"),
    );
    let count = 100_000 / divisor;
    let paths: Vec<String> = (0..count).map(|n| format!("/m/{}/{n}", n / 100)).collect();
    let before = resident()?;
    fill(&dom0, &paths)?;
    let each = resident()?.saturating_sub(before) / count;
    row("of a node with a value of 16 B", &format!("{each} B"));
    let before = resident()?;
    let watches = paths.iter().take(count / 10).map(|path| dom0.watch(path));
    let watches = watches.collect::<xen_store::Result<Vec<_>>>()?;
    let each = resident()?.saturating_sub(before) / watches.len();
    row("of a watch, both ends", &format!("{each} B"));
    Ok(())
}

/// Writes nodes with values of 16 bytes.
fn fill(store: &Store, paths: &[String]) -> xen_store::Result<()> {
    let write = |path| Write {
        path,
        value: b"a value of 16 by",
    };
    for paths in paths.chunks(1000) {
        let writes: Vec<_> = paths.iter().map(|path| write(path)).collect();
        store
            .batch(writes)
            .into_iter()
            .collect::<xen_store::Result<()>>()?;
    }
    Ok(())
}

/// Resident memory of this process in bytes.
fn resident() -> Result<usize> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("no VmRSS")?.parse::<usize>()? * 1024)
}

#[test]
fn it_runs() {
    print(100).unwrap();
}
