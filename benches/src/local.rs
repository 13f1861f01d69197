//! The same work through rings that need no channel, for comparison: in one thread, and as a stream
//! between two. They never sleep and notify no peer, so the stream shows what the machine can do.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ringbuf::traits::{Consumer as _, Producer as _, Split as _};

use crate::end::{BUFFER, PERIOD, check, pairs, pattern};
use crate::plan::median;
use crate::{pin, ring};

const RING: usize = 64 << 10;

/// Moves `total` bytes, `size` at a time, and prints the line of an end.
///
/// # Errors
///
/// If a byte is wrong.
pub fn run(maker: &str, size: usize, total: u64) -> Result<()> {
    let pattern = pattern();
    let began;
    match maker {
        "core" => {
            let (mut tx, mut rx) = ring(RING);
            began = Instant::now();
            pairs(size, total, &pattern, |bytes, into| {
                ensure!(tx.stage(bytes)? == bytes.len());
                let _ = tx.publish();
                rx.refresh()?;
                ensure!(rx.take(into) == into.len());
                let _ = rx.release();
                Ok(())
            })?;
        }
        "rtrb" => {
            let (mut tx, mut rx) = rtrb::RingBuffer::<u8>::new(RING);
            began = Instant::now();
            pairs(size, total, &pattern, |bytes, into| {
                tx.push_entire_slice(bytes).ok().context("full")?;
                rx.pop_entire_slice(into).ok().context("empty")
            })?;
        }
        "ringbuf" => {
            let (mut tx, mut rx) = ringbuf::HeapRb::<u8>::new(RING).split();
            began = Instant::now();
            pairs(size, total, &pattern, |bytes, into| {
                ensure!(tx.push_slice(bytes) == bytes.len());
                ensure!(rx.pop_slice(into) == into.len());
                Ok(())
            })?;
        }
        "memcpy" => {
            let mut between = vec![0; size];
            began = Instant::now();
            pairs(size, total, &pattern, |bytes, into| {
                between.copy_from_slice(bytes);
                into.copy_from_slice(std::hint::black_box(&between));
                Ok(())
            })?;
        }
        _ => bail!("unknown ring {maker}"),
    }
    report(began, total, 1);
    Ok(())
}

/// Moves `total` bytes from one thread to another, `size` at a time, and prints the line of an end.
///
/// # Errors
///
/// If a byte is wrong.
pub fn stream(maker: &str, size: usize, total: u64) -> Result<()> {
    match maker {
        "core" => {
            let (mut tx, mut rx) = ring(RING);
            let put = move |bytes: &[u8]| {
                let count = tx.stage(bytes)?;
                let _ = tx.publish();
                Ok(count)
            };
            let get = move |into: &mut [u8]| {
                rx.refresh()?;
                let count = rx.take(into);
                let _ = rx.release();
                Ok(count)
            };
            between(size, total, put, get)
        }
        "rtrb" => {
            let (mut tx, mut rx) = rtrb::RingBuffer::<u8>::new(RING);
            let put = move |bytes: &[u8]| {
                let room = bytes.len().min(tx.slots());
                Ok(match tx.push_entire_slice(&bytes[..room]) {
                    Ok(()) => room,
                    Err(_) => 0,
                })
            };
            let get = move |into: &mut [u8]| {
                let ready = into.len().min(rx.slots());
                Ok(match rx.pop_entire_slice(&mut into[..ready]) {
                    Ok(()) => ready,
                    Err(_) => 0,
                })
            };
            between(size, total, put, get)
        }
        _ => bail!("no stream through {maker}"),
    }
}

/// After a read of less than this the reader pauses for a moment, as that of a channel does: a
/// reader that fetches every message by itself is slower.
const SHORT: usize = 4096;
const MOMENT: Duration = Duration::from_micros(2);

fn between(
    size: usize,
    total: u64,
    mut put: impl FnMut(&[u8]) -> Result<usize> + Send,
    mut get: impl FnMut(&mut [u8]) -> Result<usize> + Send,
) -> Result<()> {
    let pattern = &pattern();
    thread::scope(|scope| {
        let writer = scope.spawn(move || -> Result<()> {
            pin(0);
            let (mut sent, mut at) = (0, 0);
            while sent < total {
                let mut bytes = &pattern[at..at + size];
                while !bytes.is_empty() {
                    match put(bytes)? {
                        0 => spin_loop(),
                        count => bytes = &bytes[count..],
                    }
                }
                sent += size as u64;
                at = (at + size) % PERIOD;
            }
            Ok(())
        });
        let mut buffer = vec![0; BUFFER];
        let mut done = 0;
        pin(1);
        let began = Instant::now();
        while done < total {
            let count = get(&mut buffer)?;
            check(&buffer[..count], done, pattern)?;
            done += count as u64;
            if count < SHORT {
                let since = Instant::now();
                while since.elapsed() < MOMENT {
                    spin_loop();
                }
            }
        }
        report(began, total, 2);
        writer.join().ok().context("the writer panicked")?
    })
}

/// A message to another processor and back, through one cache line: the median of many, in
/// nanoseconds. On a virtual machine it shows how far from each other the host has placed the two.
///
/// # Errors
///
/// If no thread can be made.
pub fn line_round_trip() -> Result<f64> {
    const ROUNDS: u32 = 10_000;
    let line = &Line(AtomicU32::new(0));
    thread::scope(|scope| {
        scope.spawn(move || {
            pin(1);
            for round in 0..ROUNDS {
                line.wait(2 * round + 1);
                line.0.store(2 * round + 2, Ordering::Release);
            }
        });
        // A separate thread, so that the caller stays on its processor.
        let asks = scope.spawn(move || {
            pin(0);
            let times = (0..ROUNDS).map(|round| {
                let began = Instant::now();
                line.0.store(2 * round + 1, Ordering::Release);
                line.wait(2 * round + 2);
                began.elapsed().as_nanos() as f64
            });
            median(times.collect())
        });
        asks.join().ok().context("a thread panicked")
    })
}

#[repr(align(128))]
struct Line(AtomicU32);

impl Line {
    fn wait(&self, value: u32) {
        let mut looks = 0u32;
        while self.0.load(Ordering::Acquire) != value {
            spin_loop();
            looks += 1;
            // On one processor the other needs this one.
            if looks % 100_000 == 0 {
                thread::yield_now();
            }
        }
    }
}

fn report(began: Instant, total: u64, threads: u128) {
    let ns = began.elapsed().as_nanos();
    let cpu = ns * threads;
    println!("ok ns={ns} bytes={total} cpu={cpu} notifies=0 syscalls=0 p50=0 p99=0");
}
