//! Random programs of a hostile peer, for `VCHAN_FUZZ_SECONDS` (2 unless set), and those that are
//! kept.
//!
//! `fuzz/` has the same entry functions for cargo-fuzz.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../fuzz/entry/mod.rs"]
mod entry;
#[path = "../../xen-vchan/fuzz/harness.rs"]
mod harness;

use harness::fuzz;

#[test]
fn a_ring_with_a_hostile_peer() {
    fuzz("ring", entry::ring, 600);
}

#[test]
fn the_requests_of_a_hostile_guest() {
    fuzz("ioreq", entry::ioreq, 600);
}
