//! Random programs of a hostile stubdomain against the proxy that filters and the servers of
//! consoles and screens, for `VCHAN_FUZZ_SECONDS` seconds (2 unless set).
//!
//! `fuzz/` has the same entry functions for cargo-fuzz.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../fuzz/entry/console.rs"]
mod console;
#[path = "../fuzz/entry/ends.rs"]
mod ends;
#[path = "../fuzz/entry/filter.rs"]
mod filter;
#[path = "../../xen-vchan/fuzz/harness.rs"]
mod harness;
#[path = "../fuzz/entry/input.rs"]
mod input;
#[path = "../fuzz/entry/rfb_server.rs"]
mod rfb_server;
#[path = "../fuzz/entry/screen.rs"]
mod screen;
#[path = "../fuzz/entry/vfb.rs"]
mod vfb;

use harness::fuzz;

#[test]
fn a_console_with_a_hostile_frontend() {
    fuzz("console", console::console, 500);
}

#[test]
fn a_proxy_between_hostile_clients_and_a_hostile_qemu() {
    fuzz("filter", filter::filter, 600);
}

#[test]
fn a_screen_with_a_hostile_qemu() {
    fuzz("screen", screen::screen, 600);
}

#[test]
fn a_frame_buffer_and_a_keyboard_with_a_hostile_frontend() {
    fuzz("vfb", vfb::vfb, 600);
}

#[test]
fn a_vnc_server_with_a_hostile_viewer() {
    fuzz("rfb_server", rfb_server::rfb_server, 600);
}
