//! A simulated host that C programs can join, and the programs.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use xen_store::Store;
use xen_store_server::{Config, Server as StoreServer};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, PeerState, RingSize, ServerBuilder};

use crate::stream::soon;

/// Where the C programs of domain 0 serve.
pub(crate) const PATH: &str = "/local/domain/0/data/vchan";

/// The folder with the unpacked packages (`tree`) and the C programs (`c`).
fn c_root() -> PathBuf {
    if let Some(root) = std::env::var_os("XEN_C_ROOT") {
        return root.into();
    }
    let xen = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/xen");
    let release = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        path.join("c/c-vchan-peer").exists().then_some(path)
    };
    let found = std::fs::read_dir(&xen)
        .ok()
        .and_then(|mut dir| dir.find_map(release));
    found.unwrap_or_else(|| panic!("no C programs under {}: boot a host once", xen.display()))
}

/// A file next to this test's own program.
fn built(name: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let path = here.parent().unwrap().join(name);
    assert!(
        path.exists(),
        "{} was not built: cargo build --workspace --all-features --examples",
        path.display()
    );
    path
}

/// A simulated host that C programs can join.
pub(crate) struct TestHost {
    pub(crate) sim: Simulation,
    stored: Arc<StoreServer>,
    pub(crate) guest: DomId,
    pub(crate) dir: tempfile::TempDir,
}

impl TestHost {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sim = Simulation::start().unwrap();
        // The names that the example vcat accepts.
        sim.listen(dir.path().join("xen")).unwrap();
        let stored = xen_store_server::sim::start(&sim, Config::new()).unwrap();
        stored.listen(dir.path().join("store")).unwrap();
        let guest = sim.add_domain().unwrap();
        stored.add_domain(guest);
        // As libxl does; a vchan's server looks there for its own number.
        let dom0 = stored.connect(DomId::DOM0).unwrap();
        dom0.write(&format!("/local/domain/{guest}/domid"), guest.to_string())
            .unwrap();
        Self {
            sim,
            stored,
            guest,
            dir,
        }
    }

    pub(crate) fn guest(&self) -> (Xen, Store) {
        let xen = self.sim.xen(self.guest).unwrap();
        let store = Store::open(&xen).unwrap();
        (xen, store)
    }

    /// Where the guest serves domain 0.
    pub(crate) fn guest_path(&self) -> String {
        format!("/local/domain/{}/data/vchan", self.guest)
    }

    /// A server of the guest's, with rings of at least so many bytes.
    pub(crate) fn serve(&self, ring: usize) -> Channel {
        self.serve_with(ring, false)
    }

    /// A server that has the same memory for all clients, if it is to `reuse` it.
    pub(crate) fn serve_with(&self, ring: usize, reuse: bool) -> Channel {
        let (xen, store) = self.guest();
        let ring = RingSize::at_least(ring);
        let server = ServerBuilder::new(DomId::DOM0, self.guest_path()).rings(ring, ring);
        server.reuse_memory(reuse).publish(&xen, &store).unwrap()
    }

    /// A C program of domain 0, for the guest.
    pub(crate) fn c_peer(&self, role: &str, path: &str, options: &[&str]) -> Peer {
        self.c_peer_of((DomId::DOM0, self.guest), role, path, options)
    }

    /// A C program of one domain, for another.
    pub(crate) fn c_peer_of(
        &self,
        (domain, other): (DomId, DomId),
        role: &str,
        path: &str,
        options: &[&str],
    ) -> Peer {
        let root = c_root();
        let mut command = Command::new(root.join("c/c-vchan-peer"));
        command
            .args([role, &other.to_string(), path])
            .args(options)
            .env("LD_PRELOAD", built("libxen_sim_preload.so"))
            .env(
                "LD_LIBRARY_PATH",
                root.join("tree/usr/lib/x86_64-linux-gnu"),
            )
            .env("XEN_SIM_SOCKET", self.dir.path().join("xen"))
            .env("XEN_SIM_DOMAIN", domain.to_string())
            .env("XENSTORED_PATH", self.dir.path().join("store"));
        Peer::start(&mut command)
    }

    /// The example vcat, of domain 0.
    pub(crate) fn vcat(&self, words: &[&str]) -> Peer {
        let mut command = Command::new(built("../examples/vcat"));
        command
            .arg("--sim")
            .arg(self.dir.path())
            .args(words)
            .stdin(Stdio::piped());
        Peer::start(&mut command)
    }

    /// After each test, when both ends are gone.
    pub(crate) fn end(self) {
        self.sim.assert_clean();
        let dom0 = self.stored.connect(DomId::DOM0).unwrap();
        for home in [DomId::DOM0, self.guest] {
            assert_empty(&dom0, &format!("/local/domain/{home}/data/vchan"));
        }
    }
}

/// Folders may stay, as they do with libxenvchan; no node that marks a running server.
fn assert_empty(store: &Store, path: &str) {
    for child in store.directory(path).unwrap_or_default() {
        let path = format!("{path}/{child}");
        assert_eq!(store.read(&path).unwrap(), b"", "{path} is left");
        assert_empty(store, &path);
    }
}

/// A program; killed when dropped.
pub(crate) struct Peer {
    pub(crate) child: Child,
    pub(crate) out: BufReader<ChildStdout>,
}

impl Peer {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn finish(mut self, last: &str) {
        assert_eq!(self.line(), last);
        assert!(self.child.wait().unwrap().success());
    }

    /// SIGKILL; it is gone when this returns.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sleeps until the client is gone.
pub(crate) fn wait_gone(channel: &mut Channel) {
    while channel.peer().unwrap() != PeerState::Gone {
        assert!(channel.wait(soon()).unwrap(), "its end was not noticed");
    }
}
