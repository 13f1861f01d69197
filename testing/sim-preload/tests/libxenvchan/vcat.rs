//! The example `vcat` in domain 0, and C programs in the guest, where `xencat` would look for each
//! other.

use std::io::Read;
use std::thread;

use xen_sys::DomId;
use xen_vchan::{ServerBuilder, service_path};

use crate::MIB;
use crate::stream::{receive, send, stream};
use crate::world::{Peer, World};

/// A C program of the guest's, for domain 0.
fn c_peer(world: &World, role: &str, path: &str, options: &[&str]) -> Peer {
    world.c_peer_of((world.guest, DomId::DOM0), role, path, options)
}

/// Both directions through a vcat and its pipes, at once; then both programs end well.
fn pump(mut vcat: Peer, mut c: Peer, bytes: u64, send_key: u64, recv_key: u64) {
    assert_eq!(c.line(), "connected");
    let stdin = vcat.child.stdin.take().unwrap();
    thread::scope(|scope| {
        // The end of stdin is not the end of a vcat's session: the other direction goes on.
        scope.spawn(move || send(stdin, send_key, bytes).unwrap());
        let got = receive(&mut vcat.out, recv_key, 0..u64::MAX);
        assert_eq!(got.unwrap(), bytes);
    });
    c.finish(&format!("ok sent={bytes} received={bytes}"));
    assert!(vcat.child.wait().unwrap().success());
}

fn both_roles(bytes: u64, ring: usize) {
    let world = World::new();
    let (guest, total, ring) = (world.guest.to_string(), bytes.to_string(), ring.to_string());
    let both = ["--send", &total, "--recv", &total];

    let vcat = world.vcat(&["listen", &guest, "hello", "--rings", &ring, &ring]);
    let path = service_path(DomId::DOM0, world.guest, "hello").unwrap();
    pump(vcat, c_peer(&world, "client", &path, &both), bytes, 1, 2);

    let path = service_path(world.guest, DomId::DOM0, "hello").unwrap();
    let rings = ["--read-min", &ring, "--write-min", &ring];
    let c = c_peer(&world, "server", &path, &[both, rings].concat());
    let vcat = world.vcat(&["connect", &guest, "hello", "--wait", "60"]);
    pump(vcat, c, bytes, 2, 1);
    world.end();
}

#[test]
fn vcat_moves_mebibytes_to_c_and_from_it_in_both_roles() {
    both_roles(8 * MIB, 1 << 16);
}

#[test]
fn vcat_and_c_with_the_rings_inside_the_page() {
    both_roles(MIB, 0);
}

#[test]
fn vcat_serves_c_clients_in_turn_each_with_its_own_command() {
    let world = World::new();
    let (bytes, guest) = (3 * MIB, world.guest.to_string());
    let file = world.dir.path().join("file");
    std::fs::write(&file, stream(1, bytes)).unwrap();
    let file = file.to_str().unwrap();
    let vcat = world.vcat(&["listen", &guest, "file", "--keep", "--exec", "cat", file]);
    let path = service_path(DomId::DOM0, world.guest, "file").unwrap();
    for round in 0..5 {
        // One is killed as soon as it has connected; the others end first, or wait for the end.
        let want = [bytes / 3, bytes, bytes * 2][round % 3];
        let mut ends = format!("ok sent=0 received={want}");
        if want > bytes {
            ends = format!("FAILED sent=0 received={bytes}: libxenvchan_read: the peer is gone");
        }
        loop {
            let mut c = c_peer(&world, "client", &path, &["--recv", &want.to_string()]);
            assert_eq!(c.line(), "connected");
            if round == 1 {
                c.kill();
                break;
            }
            match c.line() {
                line if line == ends => break,
                // It came upon the ring of the one that was killed, which is no longer on offer.
                line => assert_eq!(
                    line,
                    "FAILED sent=0 received=0: libxenvchan_read: the peer is gone"
                ),
            }
        }
    }
    vcat.kill();
    // A killed server leaves its nodes; the next one there takes them over.
    let xen = world.host.xen(DomId::DOM0).unwrap();
    let store = xen_store::Store::open(&xen).unwrap();
    drop(
        ServerBuilder::new(world.guest, path)
            .publish(&xen, &store)
            .unwrap(),
    );
    drop((xen, store));
    world.end();
}

#[test]
fn a_c_client_notices_that_our_process_was_killed() {
    let world = World::new();
    let guest = world.guest.to_string();
    let vcat = world.vcat(&["listen", &guest, "brief"]);
    let path = service_path(DomId::DOM0, world.guest, "brief").unwrap();
    let mut c = c_peer(&world, "client", &path, &["--recv", "8"]);
    assert_eq!(c.line(), "connected");
    vcat.kill();
    assert_eq!(
        c.line(),
        "FAILED sent=0 received=0: libxenvchan_read: the peer is gone"
    );
    assert!(!c.child.wait().unwrap().success());
    drop(c);
    world.host.assert_clean();
}

#[test]
fn a_command_of_vcat_talks_to_a_c_server() {
    let world = World::new();
    let path = service_path(world.guest, DomId::DOM0, "swap").unwrap();
    let total = (2 * MIB).to_string();
    let c = c_peer(&world, "server", &path, &["--send", &total]);
    let (guest, copy) = (world.guest.to_string(), world.dir.path().join("copy"));
    let script = format!("exec cat > '{}'", copy.display());
    let mut vcat = world.vcat(&[
        "connect", &guest, "swap", "--wait", "60", "--exec", "sh", "-c", &script,
    ]);
    let mut c = c;
    assert_eq!(c.line(), "connected");
    c.finish(&format!("ok sent={total} received=0"));
    let mut said = String::new();
    vcat.out.read_to_string(&mut said).unwrap();
    assert_eq!(said, "", "stdout is the command's");
    assert!(vcat.child.wait().unwrap().success());
    assert!(std::fs::read(copy).unwrap() == stream(1, 2 * MIB));
    world.end();
}
