//! Whole channels between two threads on a simulated host: streams and round trips.
//!
//! ```text
//! cargo bench -p benches --bench vchan [-- RING [WRITE]]
//! ```
//!
//! A table on stdout, medians of five. Every byte that arrives is compared. The simulated notify is
//! one write to an eventfd: an event channel's hypercall costs a microsecond or so more.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use benches::sim::Host;
use benches::{pattern, pin};

const RUNS: usize = 5;

fn median(mut run: impl FnMut() -> f64) -> f64 {
    let mut all: Vec<f64> = (0..RUNS).map(|_| run()).collect();
    all.sort_by(f64::total_cmp);
    all[RUNS / 2]
}

/// GB/s of a stream of `message` byte writes.
fn stream(mut tx: impl Write + Send, mut rx: impl Read + Send, message: usize) -> f64 {
    let total = (message * 60_000).clamp(32 << 20, 256 << 20) / message * message;
    let bytes = pattern(message);
    let start = Barrier::new(2);
    let mut begin = Instant::now();
    thread::scope(|scope| {
        let (bytes, start) = (&bytes, &start);
        scope.spawn(move || {
            pin(1);
            start.wait();
            for _ in 0..total / message {
                tx.write_all(bytes).unwrap();
            }
            tx.flush().unwrap();
            tx
        });
        let mut buf = vec![0; 64 << 10];
        let mut got = 0;
        start.wait();
        begin = Instant::now();
        while got < total {
            let len = rx.read(&mut buf).unwrap();
            assert_ne!(len, 0, "the stream ended early");
            let mut at = got % message;
            let mut checked = 0;
            while checked < len {
                let part = (message - at).min(len - checked);
                assert!(
                    buf[checked..checked + part] == bytes[at..at + part],
                    "wrong bytes"
                );
                checked += part;
                at = 0;
            }
            got += len;
        }
    });
    total as f64 / begin.elapsed().as_secs_f64() / 1e9
}

/// Median round trip in microseconds.
fn ping_pong<C: Read + Write + Send>(mut a: C, mut b: C, rounds: usize) -> f64 {
    let mut times = Vec::with_capacity(rounds);
    thread::scope(|scope| {
        scope.spawn(move || {
            pin(1);
            let mut buf = [0; 64];
            for _ in 0..rounds {
                b.read_exact(&mut buf).unwrap();
                b.write_all(&buf).unwrap();
            }
            b
        });
        let bytes = pattern(64);
        let mut buf = [0; 64];
        for _ in 0..rounds {
            let begin = Instant::now();
            a.write_all(&bytes).unwrap();
            a.read_exact(&mut buf).unwrap();
            times.push(begin.elapsed());
            assert_eq!(buf[..], bytes[..]);
        }
    });
    times.sort();
    times[rounds / 2].as_secs_f64() * 1e6
}

fn main() {
    // `cargo test --benches` only checks that it runs.
    let quick = !std::env::args().any(|arg| arg == "--bench");
    let host = Host::new().unwrap();
    pin(0);
    println!("| ring | write | vchan GB/s | corked GB/s | asleep GB/s | unix socket GB/s |");
    println!("|---|---|---|---|---|---|");
    // Numbers on the command line pick a ring size and a write size.
    let wanted: Vec<usize> = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .collect();
    let picked = |at: usize, all: &[usize]| match wanted.get(at) {
        Some(one) => vec![*one],
        None => all.to_vec(),
    };
    let (rings, writes) = if quick {
        (vec![64 << 10], vec![65536])
    } else {
        (
            picked(0, &[4 << 10, 64 << 10, 1 << 20]),
            picked(1, &[64, 1024, 4096, 65536]),
        )
    };
    for ring in &rings {
        for write in &writes {
            let vchan = |spin: Option<Duration>, cork: bool| {
                median(|| {
                    let (mut server, mut client) = host.pair(*ring).unwrap();
                    if let Some(limit) = spin {
                        server.set_spin(limit);
                        client.set_spin(limit);
                    }
                    let (rx, _open) = server.split();
                    let (_open, mut tx) = client.split();
                    tx.set_cork(cork);
                    stream(tx, rx, *write)
                })
            };
            let (spinning, corked) = (vchan(None, false), vchan(None, true));
            let asleep = vchan(Some(Duration::ZERO), false);
            let unix = median(|| {
                let (a, b) = UnixStream::pair().unwrap();
                stream(a, b, *write)
            });
            println!(
                "| {ring} | {write} | {spinning:.2} | {corked:.2} | {asleep:.2} | {unix:.2} |"
            );
        }
    }
    let rounds = if quick { 100 } else { 20_000 };
    let spinning = median(|| {
        let (server, client) = host.pair(64 << 10).unwrap();
        ping_pong(client, server, rounds)
    });
    let asleep = median(|| {
        let (mut server, mut client) = host.pair(64 << 10).unwrap();
        server.set_spin(Duration::ZERO);
        client.set_spin(Duration::ZERO);
        ping_pong(client, server, rounds / 10)
    });
    let unix = median(|| {
        let (a, b) = UnixStream::pair().unwrap();
        ping_pong(a, b, rounds / 10)
    });
    println!(
        "\n64 B round trip, median: {spinning:.2} µs; asleep {asleep:.1} µs; unix {unix:.1} µs"
    );
}
