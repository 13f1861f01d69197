//! Debian's own libxenvchan, unmodified, against our vchan: natively, on a simulated host.
//!
//! The C peer is a process of domain 0 and uses the C libxenstore; ours is a guest, in this
//! process. Needs what the testbed unpacks and builds under `target/xen` (`cargo xtask fetch`
//! and any boot); `XEN_C_ROOT` names another place.
#![cfg(feature = "c-libraries")]
#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use xen_store::Store;
use xen_store::server::{Config, Server as StoreServer};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, Client, Error, PeerState, Server};

const MIB: u64 = 1 << 20;

/// The folder with the unpacked packages (`tree`) and the C programs (`c`).
fn c_root() -> PathBuf {
    if let Some(root) = std::env::var_os("XEN_C_ROOT") {
        return root.into();
    }
    let xen = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/xen");
    let release = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        path.join("c/c-vchan-peer").exists().then_some(path)
    };
    let found = std::fs::read_dir(&xen)
        .ok()
        .and_then(|mut dir| dir.find_map(release));
    found.unwrap_or_else(|| panic!("no C programs under {}: boot a host once", xen.display()))
}

/// The library to preload, next to this test's own program.
fn preload() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let path = here.parent().unwrap().join("libxen_sim_preload.so");
    assert!(path.exists(), "{} was not built", path.display());
    path
}

/// A simulated host that C programs can join.
struct World {
    host: Simulation,
    stored: Arc<StoreServer>,
    guest: DomId,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Simulation::start().unwrap();
        host.listen(dir.path().join("host")).unwrap();
        let stored = xen_store::sim::start(&host, Config::new()).unwrap();
        stored.listen(dir.path().join("store")).unwrap();
        let guest = host.add_domain().unwrap();
        stored.add_domain(guest);
        // As libxl does; a vchan's server looks there for its own number.
        let dom0 = stored.connect(DomId::DOM0).unwrap();
        dom0.write(&format!("/local/domain/{guest}/domid"), guest.to_string())
            .unwrap();
        Self {
            host,
            stored,
            guest,
            dir,
        }
    }

    fn guest(&self) -> (Xen, Store) {
        let xen = self.host.xen(self.guest).unwrap();
        let store = Store::open(&xen).unwrap();
        (xen, store)
    }

    /// A server of the guest's, and where.
    fn serve(&self) -> (String, Channel) {
        let (xen, store) = self.guest();
        let path = format!("/local/domain/{}/data/vchan", self.guest);
        let server = Server::builder(DomId::DOM0, &path).listen(&xen, &store);
        (path, server.unwrap())
    }

    fn c_peer(&self, role: &str, path: &str, options: &[&str]) -> Peer {
        let root = c_root();
        let child = Command::new(root.join("c/c-vchan-peer"))
            .args([role, &self.guest.to_string(), path])
            .args(options)
            .env("LD_PRELOAD", preload())
            .env(
                "LD_LIBRARY_PATH",
                root.join("tree/usr/lib/x86_64-linux-gnu"),
            )
            .env("XEN_SIM_SOCKET", self.dir.path().join("host"))
            .env("XENSTORED_PATH", self.dir.path().join("store"))
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Peer { child, lines }
    }

    /// After each test, when both ends are gone.
    fn end(self) {
        self.host.assert_clean();
        let dom0 = self.stored.connect(DomId::DOM0).unwrap();
        for home in [DomId::DOM0, self.guest] {
            let vchan = format!("/local/domain/{home}/data/vchan");
            assert!(!dom0.exists(&vchan).unwrap(), "{vchan} is left");
        }
    }
}

/// A C program; killed when dropped.
struct Peer {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Peer {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn finish(mut self, last: &str) {
        assert_eq!(self.line(), last);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Eight bytes of a stream, as xtask/c/c-vchan-peer.c computes them.
fn word(key: u64, index: u64) -> [u8; 8] {
    let step = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut z = key.wrapping_add(step);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

/// Bytes from a position that is a multiple of eight on.
fn fill(key: u64, position: u64, out: &mut [u8]) {
    for (i, chunk) in out.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&word(key, position / 8 + i as u64)[..chunk.len()]);
    }
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(120))
}

/// Sends `bytes` with one key and checks as many with the other, both at once.
fn stream_both_ways(channel: Channel, bytes: u64, send_key: u64, recv_key: u64) {
    let (mut rx, mut tx) = channel.split();
    thread::scope(|s| {
        s.spawn(move || {
            let mut out = vec![0; 1 << 16];
            for position in (0..bytes).step_by(out.len()) {
                fill(send_key, position, &mut out);
                assert_eq!(tx.write_deadline(&out, soon()).unwrap(), out.len());
            }
        });
        s.spawn(move || {
            let (mut seen, mut want) = (vec![0; 1 << 16], vec![0; 1 << 16]);
            for position in (0..bytes).step_by(want.len()) {
                fill(recv_key, position, &mut want);
                let mut got = 0;
                while got < seen.len() {
                    got += rx.read_deadline(&mut seen[got..], soon()).unwrap();
                }
                assert!(seen == want, "bytes differ in {position}..+65536");
            }
        });
    });
}

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
    let world = World::new();

    // C serves. The server's key is 1, the client's 2.
    let path = "/local/domain/0/data/vchan";
    let mut c = world.c_peer("server", path, &options);
    let (xen, store) = world.guest();
    let ours = Client::builder(DomId::DOM0, path)
        .wait_for_server(true)
        .timeout(Duration::from_secs(60))
        .connect(&xen, &store)
        .unwrap();
    assert_eq!(c.line(), "connected");
    stream_both_ways(ours, bytes, 2, 1);
    c.finish(&done);

    // We serve.
    let path = format!("/local/domain/{}/data/vchan", world.guest);
    let mut ours = Server::builder(DomId::DOM0, &path)
        .rings(
            xen_vchan::RingSize::at_least(rings),
            xen_vchan::RingSize::at_least(rings),
        )
        .listen(&xen, &store)
        .unwrap();
    let mut c = world.c_peer("client", &path, &options[..4]);
    assert_eq!(c.line(), "connected");
    ours.wait_connected(soon()).unwrap();
    stream_both_ways(ours, bytes, 1, 2);
    c.finish(&done);
    world.end();
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
    let world = World::new();
    let path = "/local/domain/0/data/vchan";
    let mut c = world.c_peer("server", path, &["--recv", "1000000"]);
    let (xen, store) = world.guest();
    let mut ours = Client::builder(DomId::DOM0, path)
        .wait_for_server(true)
        .timeout(Duration::from_secs(60))
        .connect(&xen, &store)
        .unwrap();
    assert_eq!(c.line(), "connected");
    assert_eq!(ours.write_deadline(&[0; 8], soon()).unwrap(), 8);
    // It finds a wrong byte and exits; or is killed before. Either way it says no farewell.
    c.child.kill().unwrap();
    let gone = ours.read_deadline(&mut [0; 8], soon());
    assert!(matches!(gone, Err(Error::Closed)), "{gone:?}");
    drop(ours);
    world.host.assert_clean();
}

#[test]
fn a_c_client_notices_that_our_domain_died() {
    let world = World::new();
    let (path, mut ours) = world.serve();
    let mut c = world.c_peer("client", &path, &["--recv", "8"]);
    assert_eq!(c.line(), "connected");
    ours.wait_connected(soon()).unwrap();
    world.host.destroy_domain(world.guest).unwrap();
    assert_eq!(
        c.line(),
        "FAILED sent=0 received=0: libxenvchan_read: the peer is gone"
    );
    assert!(!c.child.wait().unwrap().success());
    drop((ours, c));
    world.host.assert_clean();
}

/// The live byte goes 1, 0, 1 before our server looks, and libxenvchan announces nothing else.
#[test]
fn a_c_client_replaced_unseen_is_two_sessions() {
    let world = World::new();
    let (path, mut ours) = world.serve();
    let mut first = world.c_peer("client", &path, &["--recv", "8"]);
    assert_eq!(first.line(), "connected");
    ours.wait_connected(soon()).unwrap();
    drop(first);
    let mut second = world.c_peer("client", &path, &["--recv", "65536"]);
    assert_eq!(second.line(), "connected");

    assert_eq!(ours.peer().unwrap(), PeerState::Gone);
    assert_eq!(ours.sessions(), 1);
    ours.next_client().unwrap();
    assert_eq!(ours.peer().unwrap(), PeerState::Connected);
    assert_eq!(ours.sessions(), 2);
    stream_out(&mut ours, 65536, 1);
    second.finish("ok sent=0 received=65536");
    drop(ours);
    world.end();
}

fn stream_out(channel: &mut Channel, bytes: usize, key: u64) {
    let mut out = vec![0; bytes];
    fill(key, 0, &mut out);
    assert_eq!(channel.write_deadline(&out, soon()).unwrap(), bytes);
}
