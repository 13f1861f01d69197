//! Debian's own libxenvchan, unmodified, against our vchan: natively, on a simulated host.
//!
//! The C peer is a process of domain 0 (unless a test sets another) and uses the C libxenstore;
//! ours is a guest, in this process, or the example `vcat`. Needs what the testbed unpacks and
//! builds under `target/xen` (`cargo xtask fetch` and any boot; `XEN_C_ROOT` names another place),
//! and the examples: `cargo build --workspace --all-features --examples`.
#![cfg(feature = "c-libraries")]
#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod clients;
mod host;
mod stream;
mod vcat;

use std::time::{Duration, Instant};

use xen_sys::DomId;
use xen_vchan::{ClientBuilder, PeerState};

use crate::host::{PATH, TestHost};
use crate::stream::{assert_closed, send, soon, stream_both_ways};

const MIB: u64 = 1 << 20;

fn both_roles(bytes: u64, rings: usize) {
    let (total, ring) = (bytes.to_string(), rings.to_string());
    let options = [
        "--send",
        &total,
        "--recv",
        &total,
        "--read-min",
        &ring,
        "--write-min",
        &ring,
    ];
    let done = format!("ok sent={bytes} received={bytes}");
    let host = TestHost::new();

    // C serves. The server's key is 1, the client's 2.
    let mut c = host.c_peer("server", PATH, &options);
    let (xen, store) = host.guest();
    let mut ours = ClientBuilder::new(DomId::DOM0, PATH)
        .wait_for_server(true)
        .timeout(Duration::from_secs(60))
        .connect(&xen, &store)
        .unwrap();
    assert_eq!(c.line(), "connected");
    stream_both_ways(&mut ours, bytes, 2, 1);
    drop(ours);
    c.finish(&done);

    // We serve.
    let mut ours = host.serve(rings);
    let mut c = host.c_peer("client", &host.guest_path(), &options[..4]);
    assert_eq!(c.line(), "connected");
    ours.wait_connected(soon()).unwrap();
    stream_both_ways(&mut ours, bytes, 1, 2);
    drop(ours);
    c.finish(&done);
    drop((xen, store));
    host.end();
}

#[test]
fn sixty_four_mebibytes_each_way_in_both_roles() {
    let start = Instant::now();
    both_roles(64 * MIB, 1 << 18);
    println!("256 MiB in all: {:?}", start.elapsed());
}

#[test]
fn a_mebibyte_through_the_rings_inside_the_page() {
    both_roles(MIB, 1024);
}

#[test]
fn a_killed_c_server_is_noticed() {
    let host = TestHost::new();
    let mut c = host.c_peer("server", PATH, &["--recv", "1000000"]);
    let (xen, store) = host.guest();
    let mut ours = ClientBuilder::new(DomId::DOM0, PATH)
        .wait_for_server(true)
        .timeout(Duration::from_secs(60))
        .connect(&xen, &store)
        .unwrap();
    assert_eq!(c.line(), "connected");
    assert_eq!(ours.write_deadline(&[0; 8], soon()).unwrap(), 8);
    // It finds a wrong byte and exits; or is killed before. Either way it sends no farewell.
    c.kill();
    assert_closed(&mut ours);
    drop((ours, xen));
    host.sim.assert_clean();
}

/// The live byte goes 1, 0, 1 before our server looks, and libxenvchan announces nothing else.
#[test]
fn a_c_client_replaced_unseen_is_two_sessions() {
    let host = TestHost::new();
    let mut ours = host.serve_with(0, true);
    let path = host.guest_path();
    let mut first = host.c_peer("client", &path, &["--recv", "8"]);
    assert_eq!(first.line(), "connected");
    ours.wait_connected(soon()).unwrap();
    first.kill();
    let mut second = host.c_peer("client", &path, &["--recv", "65536"]);
    assert_eq!(second.line(), "connected");

    assert_eq!(ours.peer().unwrap(), PeerState::Gone);
    assert_eq!(ours.sessions(), 1);
    ours.next_client().unwrap();
    assert_eq!(ours.peer().unwrap(), PeerState::Connected);
    assert_eq!(ours.sessions(), 2);
    send(&mut ours, 1, 65536).unwrap();
    second.finish("ok sent=0 received=65536");
    drop(ours);
    host.end();
}
