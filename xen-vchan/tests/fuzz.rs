//! Random programs of a hostile peer, for `VCHAN_FUZZ_SECONDS` (2 unless set), and those that once
//! found something.
//!
//! `fuzz/` has the same entry functions for cargo-fuzz, which steers its inputs by coverage but
//! needs a nightly compiler.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../fuzz/entry/mod.rs"]
mod entry;
#[path = "../fuzz/harness.rs"]
mod harness;

use harness::fuzz;

#[test]
fn a_ring_with_a_hostile_peer() {
    fuzz("ring", entry::ring, 2000);
}

#[test]
fn a_channel_with_a_hostile_peer() {
    fuzz("channel", entry::channel, 500);
}

#[test]
fn sessions_with_hostile_clients_among_them() {
    fuzz("sessions", entry::sessions, 200);
}
