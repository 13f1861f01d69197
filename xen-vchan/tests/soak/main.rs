//! Random operations against a judge, as many as are asked for.
//!
//! ```text
//! cargo xtask soak vchan --ops 1e10
//! ```
//!
//! Without a number it is a short test. Four in five operations are single ring operations judged
//! one by one ([`ring`]); the others are made by two threads at once on shared memory
//! ([`threads`]) and, one in a hundred, by two processes through whole channels on a simulated host
//! ([`processes`]). Sizes are mixed, rings are of every kind, cursors start near 2^32. A failure
//! is printed with the seed that repeats it: `VCHAN_SOAK_SEED`.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[cfg(feature = "tokio")]
mod channels;
#[path = "../page/mod.rs"]
mod page;
mod processes;
mod ring;
mod stream;
mod threads;

use std::time::{Duration, Instant, SystemTime};

/// How many operations a kind is to do, of all that were asked for.
fn share(percent: u64) -> u64 {
    let all = std::env::var("VCHAN_SOAK_OPS").map_or(2_000_000, |text| {
        let number: f64 = text.parse().expect("VCHAN_SOAK_OPS is a number");
        number as u64
    });
    all / 100 * percent
}

/// Where the random numbers begin.
fn seed() -> u64 {
    match std::env::var("VCHAN_SOAK_SEED") {
        Ok(text) => text.parse().expect("VCHAN_SOAK_SEED is a number"),
        Err(_) => SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1,
    }
}

/// xorshift64*: fast, and good enough to mix operations.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Neighbouring seeds must not begin alike.
        let mut this = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        this.next();
        this
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        (((self.next() >> 32) * u64::from(limit)) >> 32) as u32
    }

    /// A length: mostly small, now and then around a whole ring, seldom enough that the time is not
    /// spent in copying.
    pub(crate) fn length(&mut self, size: u32) -> usize {
        let dice = self.next();
        let large = (dice as u32) < u32::MAX / (size / 256).max(2);
        let low = (dice >> 32) as u32;
        let len = if large {
            match low % 4 {
                0 => size - 1,
                1 => size,
                2 => size + 1,
                _ => low % (2 * size),
            }
        } else {
            low % 65
        };
        len as usize
    }
}

/// Says now and then how far a long run is.
#[derive(Debug)]
pub(crate) struct Progress {
    what: &'static str,
    total: u64,
    began: Instant,
    printed: Instant,
}

impl Progress {
    pub(crate) fn new(what: &'static str, total: u64) -> Self {
        let began = Instant::now();
        Self {
            what,
            total,
            began,
            printed: began,
        }
    }

    pub(crate) fn at(&mut self, done: u64) {
        if self.printed.elapsed() >= Duration::from_secs(10) {
            self.printed = Instant::now();
            self.print(done);
        }
    }

    pub(crate) fn print(&self, done: u64) {
        let seconds = self.began.elapsed().as_secs_f64();
        println!(
            "{}: {done} of {} operations, {seconds:.0} s, {:.1} million a second",
            self.what,
            self.total,
            done as f64 / 1e6 / seconds
        );
    }
}
