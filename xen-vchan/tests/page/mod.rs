//! A control page as a peer sees it, for tests: where its words are, by the public header and not
//! by the crate, and rings on it.
//!
//! # Safety
//!
//! This file is not safe code because both ends of a ring are made over one piece of memory, which
//! [`Region`](xen_gnttab::Region) gives to one owner. The cursors order the copies of the two ends
//! (`docs/xen-vchan.md`); Miri checks that they do.
#![allow(dead_code, reason = "no test file needs all of it")]
#![allow(unsafe_code)]

use std::sync::atomic::Ordering;

use xen_vchan::ring::{Consumer, ControlWords, Producer, Rings, Role};
use xen_vchan::{Geometry, Memory};

pub(crate) const LEFT_CONS: usize = 0;
pub(crate) const LEFT_PROD: usize = 4;
pub(crate) const RIGHT_CONS: usize = 8;
pub(crate) const RIGHT_PROD: usize = 12;
pub(crate) const CLI_NOTIFY: usize = 22;
pub(crate) const SRV_NOTIFY: usize = 23;
/// Of the notify bytes: requests to notify after a write, or a read.
pub(crate) const WRITE: u8 = 1;
pub(crate) const READ: u8 = 2;

/// Overwrites a word, as a peer can at any time.
pub(crate) fn poke(words: &ControlWords, at: usize, value: u32) {
    let word = words.atomic_u32(at).unwrap();
    word.store(value, Ordering::Release);
}

/// Loads a word.
pub(crate) fn peek(words: &ControlWords, at: usize) -> u32 {
    words.atomic_u32(at).unwrap().load(Ordering::Acquire)
}

/// One end of a channel on memory of its own, and the words that its peer can scribble on.
pub(crate) fn rings(geometry: Geometry) -> (Rings, ControlWords) {
    let pages = |bytes| Some(Memory::heap(bytes as usize));
    let (left, right) = (pages(geometry.left_bytes()), pages(geometry.right_bytes()));
    let rings = Rings::new(Memory::heap(4096), geometry, left, right).unwrap();
    let words = rings.words().clone();
    (rings, words)
}

/// Both ends of a channel, whose left cursors are both at one place and the right ones at another.
/// Only the ends may store to the cursors once they are attached.
pub(crate) fn pair(geometry: Geometry, left: u32, right: u32) -> [Rings; 2] {
    let memory = [4096, geometry.left_bytes(), geometry.right_bytes()]
        .map(|bytes| Memory::heap(bytes as usize));
    let twins = memory.each_ref().map(alias);
    let ends = [memory, twins].map(|[control, left, right]| {
        Rings::new(control, geometry, Some(left), Some(right)).unwrap()
    });
    for (at, start) in [
        (LEFT_CONS, left),
        (LEFT_PROD, left),
        (RIGHT_CONS, right),
        (RIGHT_PROD, right),
    ] {
        poke(ends[0].words(), at, start);
    }
    ends
}

#[cfg(not(loom))]
fn alias(memory: &Memory) -> Memory {
    // SAFETY: `pair` gives the memory and its twin to the two ends of one channel. Its words are
    // taken out at the same widths by both. A payload byte is accessed by the producer or the
    // consumer of its ring only; the producer writes it when an acquire load of `cons` has read the
    // release store that came after the consumer's read of it, and the other way round with `prod`
    // (docs/xen-vchan.md, which loom and, on this very memory, Miri check).
    unsafe { memory.alias() }
}

#[cfg(loom)]
fn alias(memory: &Memory) -> Memory {
    memory.alias()
}

/// Both ends of one ring of `order`, with all cursors at `start`: of the left one, which the client
/// writes, or of the right one.
pub(crate) fn ends(order: u16, start: u32, left: bool) -> (Producer, Consumer) {
    // Two orders may not be the same in-page ring, and are not needlessly large.
    let other = match order {
        10 => 11,
        20 => 12,
        _ => 10,
    };
    let (orders, writer, reader) = if left {
        ((order, other), Role::Client, Role::Server)
    } else {
        ((other, order), Role::Server, Role::Client)
    };
    let geometry = Geometry::new(orders.0, orders.1).unwrap();
    let [one, two] = pair(geometry, start, start);
    let (tx, _) = one.attach(writer).unwrap();
    let (_, rx) = two.attach(reader).unwrap();
    (tx, rx)
}
