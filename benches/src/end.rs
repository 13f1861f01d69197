//! One end of a channel in a process of its own, at a piece of work that is timed: the counterpart
//! of `testing/c/c-vchan-bench.c`, with the same arguments, the same loops, the same check and the
//! same line.
//!
//! ```text
//! WORK SIDE DOMID PATH SIZE TOTAL RING CPU [cork] [spin=NANOSECONDS]
//! ```
//!
//! The reader sends one byte when it is ready and one when it has everything; between the two the
//! clock runs. Every byte is compared with what it must be at its position in the stream: byte `p`
//! is byte `p % PERIOD` of a pattern. The period is a prime, so a byte of another round of the ring
//! is never right.

mod pipe;
mod work;

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::{ClientBuilder, RingSize, ServerBuilder};

pub use work::pairs;
use work::{pair, timed};

use crate::pin;

/// The length of the pattern, a prime.
pub const PERIOD: usize = 4099;
/// The largest operation, and what a stream's reader reads into.
pub const BUFFER: usize = 65536;

/// The pattern, long enough to take an operation from any place in its first period.
#[must_use]
pub fn pattern() -> Vec<u8> {
    let byte = |i: usize| {
        let x = (i % PERIOD) as u32;
        (x.wrapping_mul(167) ^ x >> 4 ^ x >> 9) as u8
    };
    (0..PERIOD + BUFFER).map(byte).collect()
}

/// Compares bytes of the stream from `position` on: in pieces of a period, so that the pattern
/// stays in the first cache and the check costs one more reading of bytes that were just written.
///
/// # Errors
///
/// Where they differ.
#[inline]
pub fn check(bytes: &[u8], position: u64, pattern: &[u8]) -> Result<()> {
    let mut at = (position % PERIOD as u64) as usize;
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, more) = rest.split_at(rest.len().min(PERIOD - at));
        if piece != &pattern[at..at + piece.len()] {
            bail!("wrong bytes at {position} or after");
        }
        (rest, at) = (more, 0);
    }
    Ok(())
}

/// The measurements of one end, in nanoseconds and bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// The time from the first operation to the last.
    pub ns: u64,
    /// The bytes moved, checked if this end received them.
    pub bytes: u64,
    /// Processor time, user and system.
    pub cpu: u64,
    /// Notifications sent.
    pub notifies: u64,
    /// System calls for event channels.
    pub syscalls: u64,
    /// The median round trip.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
}

impl Sample {
    /// Reads the line that either end prints.
    ///
    /// # Errors
    ///
    /// If it is not such a line: then it is the error.
    pub fn parse(line: &str) -> Result<Self> {
        let mut seen = Self::default();
        let fields = line
            .trim()
            .strip_prefix("ok ")
            .with_context(|| format!("an end says `{line}`"))?;
        for (name, value) in fields.split(' ').filter_map(|word| word.split_once('=')) {
            let value = value.parse().with_context(|| format!("in `{line}`"))?;
            match name {
                "ns" => seen.ns = value,
                "bytes" => seen.bytes = value,
                "cpu" => seen.cpu = value,
                "notifies" => seen.notifies = value,
                "syscalls" => seen.syscalls = value,
                "p50" => seen.p50 = value,
                "p99" => seen.p99 = value,
                _ => bail!("unknown field in `{line}`"),
            }
        }
        Ok(seen)
    }
}

/// The task of an end.
#[derive(Debug)]
struct Arguments<'a> {
    work: &'a str,
    server: bool,
    domain: DomId,
    path: &'a str,
    size: usize,
    total: u64,
    ring: usize,
    cork: bool,
    chunks: bool,
    spin: Option<Duration>,
}

/// Carries out the arguments' task and prints its figures, or `FAILED` and the reason. `open`
/// connects to the hypervisor and the store; `counts` returns the notifies and the system calls so
/// far.
///
/// # Errors
///
/// The failure that it printed.
pub fn main(
    arguments: &[String],
    open: impl FnOnce() -> Result<(Xen, Store)>,
    counts: impl Fn() -> (u64, u64),
) -> Result<()> {
    match parse(arguments).and_then(|parsed| run(&parsed, open, counts)) {
        Ok(seen) => {
            let Sample {
                ns,
                bytes,
                cpu,
                notifies,
                syscalls,
                p50,
                p99,
            } = seen;
            println!(
                "ok ns={ns} bytes={bytes} cpu={cpu} notifies={notifies} syscalls={syscalls} p50={p50} p99={p99}"
            );
            Ok(())
        }
        Err(error) => {
            println!("FAILED {error:#}");
            Err(error)
        }
    }
}

fn parse(arguments: &[String]) -> Result<Arguments<'_>> {
    let [
        work,
        side,
        domain,
        path,
        size,
        total,
        ring,
        cpu,
        options @ ..,
    ] = arguments
    else {
        bail!("usage: WORK SIDE DOMID PATH SIZE TOTAL RING CPU [cork] [chunks] [spin=NS]");
    };
    let mut args = Arguments {
        work,
        server: side == "server",
        domain: domain.parse()?,
        path,
        size: size.parse()?,
        total: total.parse()?,
        ring: ring.parse()?,
        cork: false,
        chunks: false,
        spin: None,
    };
    for option in options {
        match option.split_once('=') {
            None if option == "cork" => args.cork = true,
            None if option == "chunks" => args.chunks = true,
            Some(("spin", nanos)) => args.spin = Some(Duration::from_nanos(nanos.parse()?)),
            _ => bail!("unknown option {option}"),
        }
    }
    ensure!(
        (1..=BUFFER).contains(&args.size) && args.total % args.size as u64 == 0,
        "impossible sizes"
    );
    pin(cpu.parse()?);
    Ok(args)
}

fn run(
    args: &Arguments<'_>,
    open: impl FnOnce() -> Result<(Xen, Store)>,
    counts: impl Fn() -> (u64, u64),
) -> Result<Sample> {
    // Before anybody is connected: a peer that is ready earlier has its clock running.
    let pattern = pattern();
    if args.work.starts_with("unix-") {
        let stream = if args.server {
            UnixListener::bind(args.path)?.accept()?.0
        } else {
            connect(args.path)?
        };
        return timed(args, stream, &pattern, counts);
    }
    let (xen, store) = open()?;
    let server = || {
        let ring = RingSize::at_least(args.ring);
        // As libxenvchan, which does not notice the end of a domain.
        ServerBuilder::new(args.domain, args.path)
            .watch_peer_domain(false)
            .rings(ring, ring)
            .publish(&xen, &store)
    };
    let client = || {
        ClientBuilder::new(args.domain, args.path)
            .watch_peer_domain(false)
            .wait_for_server(true)
            .connect(&xen, &store)
    };
    if args.work == "pair" {
        let (mut a, mut b) = (server()?, client()?);
        a.wait_connected(None)?;
        b.wait_connected(None)?;
        return pair(args, b, a, counts);
    }
    let mut channel = if args.server { server()? } else { client()? };
    channel.wait_connected(None)?;
    if let Some(spin) = args.spin {
        channel.set_spin(spin);
    }
    channel.halves().1.set_cork(args.cork);
    timed(args, channel, &pattern, counts)
}

fn connect(path: &str) -> Result<UnixStream> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > until => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
