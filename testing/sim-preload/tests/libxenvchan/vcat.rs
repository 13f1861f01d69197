//! The example `vcat` in domain 0, and C programs in the guest, where `xencat` would look for each
//! other.

use std::io::Read;
use std::thread;

use xen_sys::DomId;
use xen_vchan::{ServerBuilder, service_path};

use crate::MIB;
use crate::host::{Peer, TestHost};
use crate::stream::{receive, send, stream};

/// A C program of the guest's, for domain 0.
fn c_peer(host: &TestHost, role: &str, path: &str, options: &[&str]) -> Peer {
    host.c_peer_of((host.guest, DomId::DOM0), role, path, options)
}

/// Both directions through a vcat and its pipes, at once; then both programs end well.
fn check_transfer(mut vcat: Peer, mut c: Peer, bytes: u64, send_key: u64, recv_key: u64) {
    assert_eq!(c.line(), "connected");
    let stdin = vcat.child.stdin.take().unwrap();
    thread::scope(|scope| {
        // The end of stdin is not the end of a vcat's session: the other direction continues.
        scope.spawn(move || send(stdin, send_key, bytes).unwrap());
        let got = receive(&mut vcat.out, recv_key, 0..u64::MAX);
        assert_eq!(got.unwrap(), bytes);
    });
    c.finish(&format!("ok sent={bytes} received={bytes}"));
    assert!(vcat.child.wait().unwrap().success());
}

fn both_roles(bytes: u64, ring: usize) {
    let host = TestHost::new();
    let (guest, total, ring) = (host.guest.to_string(), bytes.to_string(), ring.to_string());
    let both = ["--send", &total, "--recv", &total];

    let vcat = host.vcat(&["listen", &guest, "hello", "--rings", &ring, &ring]);
    let path = service_path(DomId::DOM0, host.guest, "hello").unwrap();
    check_transfer(vcat, c_peer(&host, "client", &path, &both), bytes, 1, 2);

    let path = service_path(host.guest, DomId::DOM0, "hello").unwrap();
    let rings = ["--read-min", &ring, "--write-min", &ring];
    let c = c_peer(&host, "server", &path, &[both, rings].concat());
    let vcat = host.vcat(&["connect", &guest, "hello", "--wait", "60"]);
    check_transfer(vcat, c, bytes, 2, 1);
    host.end();
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
    let host = TestHost::new();
    let (bytes, guest) = (3 * MIB, host.guest.to_string());
    let file = host.dir.path().join("file");
    std::fs::write(&file, stream(1, bytes)).unwrap();
    let file = file.to_str().unwrap();
    let vcat = host.vcat(&["listen", &guest, "file", "--keep", "--exec", "cat", file]);
    let path = service_path(DomId::DOM0, host.guest, "file").unwrap();
    for round in 0..5 {
        // One is killed as soon as it has connected; the others end first, or wait for the end.
        let want = [bytes / 3, bytes, bytes * 2][round % 3];
        let mut ends = format!("ok sent=0 received={want}");
        if want > bytes {
            ends = format!("FAILED sent=0 received={bytes}: libxenvchan_read: the peer is gone");
        }
        loop {
            let mut c = c_peer(&host, "client", &path, &["--recv", &want.to_string()]);
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
    let xen = host.sim.xen(DomId::DOM0).unwrap();
    let store = xen_store::Store::open(&xen).unwrap();
    drop(
        ServerBuilder::new(host.guest, path)
            .publish(&xen, &store)
            .unwrap(),
    );
    drop((xen, store));
    host.end();
}

#[test]
fn a_c_client_notices_that_our_process_was_killed() {
    let host = TestHost::new();
    let guest = host.guest.to_string();
    let vcat = host.vcat(&["listen", &guest, "brief"]);
    let path = service_path(DomId::DOM0, host.guest, "brief").unwrap();
    let mut c = c_peer(&host, "client", &path, &["--recv", "8"]);
    assert_eq!(c.line(), "connected");
    vcat.kill();
    assert_eq!(
        c.line(),
        "FAILED sent=0 received=0: libxenvchan_read: the peer is gone"
    );
    assert!(!c.child.wait().unwrap().success());
    drop(c);
    host.sim.assert_clean();
}

#[test]
fn a_command_of_vcat_exchanges_bytes_with_a_c_server() {
    let host = TestHost::new();
    let path = service_path(host.guest, DomId::DOM0, "swap").unwrap();
    let total = (2 * MIB).to_string();
    let c = c_peer(&host, "server", &path, &["--send", &total]);
    let (guest, copy) = (host.guest.to_string(), host.dir.path().join("copy"));
    let script = format!("exec cat > '{}'", copy.display());
    let mut vcat = host.vcat(&[
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
    host.end();
}
