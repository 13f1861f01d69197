//! A write and a read in one thread through rings that need no channel, for comparison.

use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use ringbuf::traits::{Consumer as _, Producer as _, Split as _};

use crate::end::{pairs, pattern};
use crate::ring;

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
    let ns = began.elapsed().as_nanos();
    println!("ok ns={ns} bytes={total} cpu={ns} notifies=0 syscalls=0 p50=0 p99=0");
    Ok(())
}
