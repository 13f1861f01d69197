//! Shared by the benchmarks: a ring to measure, bytes to move, and the check that they arrived.
//!
//! # Safety
//!
//! This file is not safe code because both ends of a ring are made over one piece of memory, which
//! [`Memory`] gives to one owner.

#![allow(unsafe_code)]

pub mod calls;
pub mod end;
#[cfg(feature = "sim")]
pub mod local;
pub mod plan;
#[cfg(feature = "sim")]
pub mod report;
#[cfg(feature = "sim")]
pub mod sim;
pub mod store;

use xen_vchan::ring::{Consumer, Producer, Rings, Role};
use xen_vchan::{Geometry, Memory};

/// The writing and the reading half of a ring of `bytes` (a power of two from 4 KiB to 1 MiB) in
/// private memory.
///
/// # Panics
///
/// With a size that no ring has.
#[must_use]
pub fn ring(bytes: usize) -> (Producer, Consumer) {
    let pair = || {
        let order = u16::try_from(bytes.trailing_zeros()).ok()?;
        let geometry = Geometry::new(order, 11).ok()?;
        let (control, pages) = (Memory::heap(4096), Memory::heap(bytes));
        let twins = (twin(&control), twin(&pages));
        let client = Rings::new(control, geometry, Some(pages), None)?;
        let server = Rings::new(twins.0, geometry, Some(twins.1), None)?;
        let (producer, _) = client.attach(Role::Client).ok()?;
        let (_, consumer) = server.attach(Role::Server).ok()?;
        Some((producer, consumer))
    };
    match pair() {
        Some(pair) => pair,
        None => panic!("no ring has {bytes} bytes"),
    }
}

fn twin(memory: &Memory) -> Memory {
    // SAFETY: `ring` gives the memory and its twin to the two ends of one channel, which take the
    // words out at the same widths. Of these it gives out the producer and the consumer of one
    // ring, whose copies the cursors order (docs/xen-vchan.md). Nothing else has the cursors.
    unsafe { memory.alias() }
}

/// Bytes that differ from their neighbours and from one position modulo a ring to the next.
#[must_use]
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i >> 8) ^ (i >> 13)) as u8).collect()
}

/// Sends `count` messages of `message` bytes through a channel of any kind and checks what comes
/// out of it: called once per benchmark, before it is timed.
///
/// # Panics
///
/// If a byte is missing or wrong.
pub fn check(message: usize, count: usize, mut through: impl FnMut(&[u8], &mut [u8])) {
    let source = pattern(message * count);
    let mut out = vec![0; message];
    for bytes in source.chunks_exact(message) {
        out.fill(0x55);
        through(bytes, &mut out);
        assert_eq!(out, bytes, "the channel changed the bytes");
    }
}

/// The notifies and the system calls for event channels, notifies included, that this process has
/// made.
#[must_use]
pub fn counts() -> (u64, u64) {
    let counts = xen_evtchn::counters::counts();
    (counts.notifies, counts.system_calls)
}

/// Keeps this thread on one CPU, if there is such a CPU: two threads that share one measure the
/// scheduler.
pub fn pin(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    if set.set(cpu).is_ok() {
        let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set);
    }
}
