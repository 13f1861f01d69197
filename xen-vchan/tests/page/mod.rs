//! A control page as a peer sees it, for tests: where its words are, by the public header and not by the crate, and rings on it.
#![allow(dead_code, reason = "no test file needs all of it")]

use std::sync::atomic::Ordering;

use xen_vchan::ring::{Consumer, Producer, Rings, Role};
use xen_vchan::{Geometry, Memory};

pub(crate) const LEFT_CONS: usize = 0;
pub(crate) const LEFT_PROD: usize = 4;
pub(crate) const RIGHT_CONS: usize = 8;
pub(crate) const RIGHT_PROD: usize = 12;
pub(crate) const CLI_NOTIFY: usize = 22;
pub(crate) const SRV_NOTIFY: usize = 23;
/// Of the notify bytes: tell when something was written, or read.
pub(crate) const WRITE: u8 = 1;
pub(crate) const READ: u8 = 2;

/// Overwrites a word, as a peer can at any time.
pub(crate) fn poke(control: &Memory, at: usize, value: u32) {
    let word = control.atomic_u32(at).unwrap();
    word.store(value, Ordering::Release);
}

/// What a word is.
pub(crate) fn peek(control: &Memory, at: usize) -> u32 {
    control.atomic_u32(at).unwrap().load(Ordering::Acquire)
}

/// A new page whose left cursors are both at one place, and the right ones at another.
pub(crate) fn control(left: u32, right: u32) -> Memory {
    let control = Memory::heap(4096);
    for (at, start) in [
        (LEFT_CONS, left),
        (LEFT_PROD, left),
        (RIGHT_CONS, right),
        (RIGHT_PROD, right),
    ] {
        poke(&control, at, start);
    }
    control
}

/// Rings on a control page, with the pages they need.
pub(crate) fn rings(control: &Memory, geometry: Geometry) -> Rings {
    let left = Memory::heap(geometry.left_bytes() as usize);
    let right = Memory::heap(geometry.right_bytes() as usize);
    Rings::new(control, geometry, Some(&left), Some(&right)).unwrap()
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
    let rings = rings(&control(start, start), geometry);
    (
        rings.producer(writer).unwrap(),
        rings.consumer(reader).unwrap(),
    )
}
