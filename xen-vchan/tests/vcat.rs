//! The example `vcat` as a program: processes on a simulated host.
#![cfg(all(not(loom), feature = "sim"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use xen_store::Store;
use xen_store::server::Config;
use xen_sys::sim::Simulation;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, Client, Server, service_path};

/// Built with the tests, unless they were picked with `--test`.
fn vcat() -> Command {
    let here = std::env::current_exe().unwrap();
    let path: PathBuf = here.parent().unwrap().join("../examples/vcat");
    assert!(
        path.exists(),
        "{} was not built: cargo build --examples",
        path.display()
    );
    Command::new(path)
}

struct World {
    host: Simulation,
    xen: Xen,
    store: Store,
    _stored: std::sync::Arc<xen_store::server::Server>,
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let host = Simulation::start().unwrap();
        let stored = xen_store::sim::start(&host, Config::new()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        host.listen(dir.path().join("xen")).unwrap();
        stored.listen(dir.path().join("store")).unwrap();
        let xen = host.xen(DomId::DOM0).unwrap();
        let store = Store::open(&xen).unwrap();
        Self {
            host,
            xen,
            store,
            _stored: stored,
            dir,
        }
    }

    fn start(&self, words: &[&str]) -> Running {
        let child = vcat()
            .arg("--sim")
            .arg(self.dir.path())
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Running(child.unwrap())
    }

    fn connect(&self, path: &str) -> Channel {
        let builder = Client::builder(DomId::DOM0, path).wait_for_server(true);
        let builder = builder.timeout(Duration::from_secs(20));
        let mut channel = builder.connect(&self.xen, &self.store).unwrap();
        channel.set_read_timeout(Some(Duration::from_secs(20)));
        channel
    }

    fn end(self) {
        drop(self.xen);
        self.host.assert_clean();
        // OCaml's library removes the folders above a service too; libxenvchan and we do not.
        for path in ["data/vchan/ring-ref", "data/vchan/0/echo", "data/other"] {
            assert!(!self.store.exists(path).unwrap(), "{path}");
        }
    }
}

struct Running(Child);

impl Running {
    fn wait(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_file_goes_from_one_to_the_other() {
    let world = World::new();
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7) as u8).collect();
    let mut sink = world.start(&["listen", "0", "data/other", "--rings", "65536", "4096"]);
    let mut source = world.start(&["connect", "0", "data/other", "--wait", "20", "--close", "0"]);
    let mut stdin = source.0.stdin.take().unwrap();
    let mut got = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stdin.write_all(&content).unwrap();
            drop(stdin);
        });
        sink.0.stdout.take().unwrap().read_to_end(&mut got).unwrap();
    });
    assert!(got == content, "{} bytes of {}", got.len(), content.len());
    source.wait();
    sink.wait();
    world.end();
}

#[test]
fn a_command_serves_one_client_after_another_where_ocaml_looks_for_it() {
    let world = World::new();
    let server = world.start(&["listen", "0", "echo", "--keep", "--exec", "cat"]);
    let path = service_path(DomId::DOM0, DomId::DOM0, "echo").unwrap();
    for round in 0..5 {
        let mut channel = world.connect(&path);
        let question = format!("question {round}");
        channel.write_all(question.as_bytes()).unwrap();
        let mut answer = vec![0; question.len()];
        channel.read_exact(&mut answer).unwrap();
        assert_eq!(answer, question.as_bytes());
    }
    drop(server);
    // A killed server leaves its nodes; the next one there takes them over.
    let next = Server::builder(DomId::DOM0, path).listen(&world.xen, &world.store);
    drop(next.unwrap());
    world.end();
}

#[test]
fn without_a_place_it_is_where_xencat_looks_for_it() {
    let world = World::new();
    let mut server = world.start(&["listen", "0"]);
    let mut channel = world.connect("/local/domain/0/data/vchan");
    channel.write_all(b"a line\n").unwrap();
    let mut stdin = server.0.stdin.take().unwrap();
    stdin.write_all(b"another\n").unwrap();
    let mut answer = [0; 8];
    channel.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"another\n");
    drop(channel);
    let mut got = String::new();
    server
        .0
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut got)
        .unwrap();
    assert_eq!(got, "a line\n");
    server.wait();
    world.end();
}

#[test]
fn one_command_shows_both_ends() {
    let begin = Instant::now();
    let mut demo = Running(
        vcat()
            .args(["sim", "sed", "-u", "s/hello/goodbye/"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut stdin = demo.0.stdin.take().unwrap();
    stdin.write_all(b"hello there\n").unwrap();
    drop(stdin);
    let mut got = String::new();
    demo.0
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut got)
        .unwrap();
    assert_eq!(got, "goodbye there\n", "after {:?}", begin.elapsed());
    demo.wait();
}
