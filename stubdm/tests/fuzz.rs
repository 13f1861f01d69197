//! Random programs of a hostile stubdomain against the consoles' server, for as long as `VCHAN_FUZZ_SECONDS` says (2 unless set).
//!
//! `fuzz/` has the same entry function for cargo-fuzz.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../fuzz/entry/mod.rs"]
mod entry;
#[path = "../../xen-vchan/fuzz/harness.rs"]
mod harness;

use harness::fuzz;

#[test]
fn a_console_with_a_hostile_frontend() {
    fuzz("console", entry::console, 500);
}
