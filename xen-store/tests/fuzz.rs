//! Random programs of hostile clients, and random bytes, for `VCHAN_FUZZ_SECONDS` (2 unless set).
//!
//! `fuzz/` has the same entry functions for cargo-fuzz.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../fuzz/entry/client.rs"]
mod client;
#[path = "../fuzz/entry/codec.rs"]
mod codec;
#[path = "../fuzz/entry/daemon.rs"]
mod daemon;
#[path = "../../xen-vchan/fuzz/harness.rs"]
mod harness;
#[path = "../fuzz/entry/input.rs"]
mod input;
#[path = "../fuzz/entry/plans.rs"]
mod plans;

use harness::fuzz;

#[test]
fn bytes_that_are_to_be_messages_and_paths() {
    fuzz("codec", codec::codec, 600);
}

#[test]
fn a_client_with_a_hostile_daemon() {
    fuzz("client", client::client, 800);
}

#[test]
fn a_daemon_with_hostile_clients() {
    fuzz("daemon", daemon::daemon, 1500);
}

#[test]
fn walks_snapshots_and_batches_with_a_hostile_daemon() {
    fuzz("plans", plans::plans, 1500);
}
