//! The example `vcat` as a program: processes on a simulated host.
#![cfg(all(not(loom), feature = "sim"))]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use xen_store::Store;
use xen_store_server::Config;
use xen_sys::sim::Simulation;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, ClientBuilder, ServerBuilder, service_path};

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

struct TestHost {
    sim: Simulation,
    xen: Xen,
    store: Store,
    _stored: std::sync::Arc<xen_store_server::Server>,
    dir: tempfile::TempDir,
}

impl TestHost {
    fn new() -> Self {
        let sim = Simulation::start().unwrap();
        let stored = xen_store_server::sim::start(&sim, Config::new()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        sim.listen(dir.path().join("xen")).unwrap();
        stored.listen(dir.path().join("store")).unwrap();
        let xen = sim.xen(DomId::DOM0).unwrap();
        let store = Store::open(&xen).unwrap();
        Self {
            sim,
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
            .stderr(Stdio::piped())
            .spawn();
        Running(child.unwrap())
    }

    fn connect(&self, path: &str) -> Channel {
        let builder = ClientBuilder::new(DomId::DOM0, path).wait_for_server(true);
        let builder = builder.timeout(Duration::from_secs(20));
        let mut channel = builder.connect(&self.xen, &self.store).unwrap();
        channel.set_read_timeout(Some(Duration::from_secs(20)));
        channel
    }

    fn end(self) {
        drop(self.xen);
        self.sim.assert_clean();
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

impl Running {
    /// Waits for its end and returns its status and stderr.
    fn complaint(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        let mut stderr = self.0.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        (self.0.wait().unwrap().code(), said)
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
    let host = TestHost::new();
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7) as u8).collect();
    let mut sink = host.start(&["listen", "0", "data/other", "--rings", "65536", "4096"]);
    let mut source = host.start(&["connect", "0", "data/other", "--wait", "20", "--close", "0"]);
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
    host.end();
}

#[test]
fn a_command_serves_one_client_after_another_where_xencat_looks_for_it() {
    let host = TestHost::new();
    let server = host.start(&["listen", "0", "echo", "--keep", "--exec", "cat"]);
    let path = service_path(DomId::DOM0, DomId::DOM0, "echo").unwrap();
    for round in 0..5 {
        let mut channel = host.connect(&path);
        let question = format!("question {round}");
        channel.write_all(question.as_bytes()).unwrap();
        let mut answer = vec![0; question.len()];
        channel.read_exact(&mut answer).unwrap();
        assert_eq!(answer, question.as_bytes());
    }
    drop(server);
    // A killed server leaves its nodes; the next one there takes them over.
    let next = ServerBuilder::new(DomId::DOM0, path).publish(&host.xen, &host.store);
    drop(next.unwrap());
    host.end();
}

#[test]
fn without_a_place_it_is_at_data_vchan() {
    let host = TestHost::new();
    let mut server = host.start(&["listen", "0"]);
    let mut channel = host.connect("/local/domain/0/data/vchan");
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
    host.end();
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

/// A filter between two pipes is full when its output is not read: its input must not be waited
/// for.
#[test]
fn a_command_that_answers_as_it_reads_does_not_stall() {
    let host = TestHost::new();
    let server = host.start(&[
        "listen",
        "0",
        "data/other",
        "--rings",
        "1048576",
        "1048576",
        "--exec",
        "cat",
    ]);
    let mut channel = host.connect("/local/domain/0/data/other");
    channel.set_write_timeout(Some(Duration::from_secs(20)));
    let content: Vec<u8> = (0..6_000_000u32).map(|i| (i >> 3) as u8).collect();
    let mut got = vec![0; content.len()];
    std::thread::scope(|scope| {
        let (rx, tx) = channel.halves();
        scope.spawn(|| tx.write_all(&content).unwrap());
        rx.read_exact(&mut got).unwrap();
    });
    assert!(got == content);
    drop(channel);
    server.wait();
    host.end();
}

#[test]
fn a_command_that_ends_first_ends_the_session_and_its_failure_is_reported() {
    let host = TestHost::new();
    let script = "head -c 6; exit 3";
    let server = host.start(&["listen", "0", "data/other", "--exec", "sh", "-c", script]);
    let mut channel = host.connect("/local/domain/0/data/other");
    channel.write_all(b"twelve bytes").unwrap();
    let mut answer = String::new();
    channel.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "twelve");
    let (status, said) = server.complaint();
    assert_eq!((status, &*said), (Some(1), "vcat: sh: exit status: 3\n"));
    drop(channel);
    host.end();
}

#[test]
fn a_command_may_close_its_output_and_read_on_or_its_input_and_talk_on() {
    let host = TestHost::new();
    let file = host.dir.path().join("copy");
    let script = format!("exec cat > '{}'", file.display());
    let server = host.start(&["listen", "0", "data/other", "--exec", "sh", "-c", &script]);
    let mut channel = host.connect("/local/domain/0/data/other");
    for _ in 0..100 {
        channel.write_all(&[7; 1000]).unwrap();
    }
    drop(channel);
    server.wait();
    assert!(std::fs::read(file).unwrap() == [7; 100_000]);

    // It continues when a byte is written to the other pipe.
    let pipe = host.dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = format!(
        "read -r line; exec <&-; echo \"$line\"; cat '{}'",
        pipe.display()
    );
    let server = host.start(&["listen", "0", "data/other", "--exec", "sh", "-c", &script]);
    let mut channel = host.connect("/local/domain/0/data/other");
    channel.write_all(b"hello\n").unwrap();
    // Nobody reads this.
    for _ in 0..100 {
        channel.write_all(&[7; 1000]).unwrap();
    }
    std::fs::write(pipe, "that was all\n").unwrap();
    let mut answer = String::new();
    channel.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "hello\nthat was all\n");
    drop(channel);
    server.wait();
    host.end();
}

#[test]
fn one_clients_command_that_fails_does_not_end_the_service() {
    let host = TestHost::new();
    let script = "read -r line; echo \"$line\"; exit 1";
    let server = host.start(&[
        "listen",
        "0",
        "data/other",
        "--keep",
        "--exec",
        "sh",
        "-c",
        script,
    ]);
    for _ in 0..3 {
        let mut channel = host.connect("/local/domain/0/data/other");
        channel.write_all(b"and again\n").unwrap();
        let mut answer = String::new();
        channel.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "and again\n");
    }
    drop(server);
    let next = ServerBuilder::new(DomId::DOM0, "data/other").publish(&host.xen, &host.store);
    drop(next.unwrap());
    host.end();
}

fn answer(words: &[&str]) -> Output {
    vcat().args(words).output().unwrap()
}

#[test]
fn it_prints_how_it_is_called_and_what_is_wrong_with_a_call() {
    for help in ["--help", "-h", "help"] {
        let help = answer(&[help]);
        assert_eq!(help.status.code(), Some(0));
        assert!(help.stdout.starts_with(b"usage: vcat "));
        assert_eq!(help.stderr, b"");
    }
    for (words, complaint) in [
        (&[][..], "a role is missing"),
        (&["serve", "1"], "\"serve\" is no role"),
        (&["listen"], "the peer's domain id is missing"),
        (&["listen", "dom0"], "DOMID: \"dom0\": "),
        (&["listen", "1", "a", "b"], "\"b\" is no option of listen"),
        (
            &["connect", "1", "--keep"],
            "\"--keep\" is no option of connect",
        ),
        (
            &["listen", "1", "--wait", "1"],
            "\"--wait\" is no option of listen",
        ),
        (
            &["connect", "1", "--wait"],
            "the number of seconds is missing",
        ),
        (&["connect", "1", "--wait", "soon"], "--wait: \"soon\": "),
        (&["connect", "1", "--close", "-1"], "--close: "),
        (
            &["listen", "1", "--rings", "4096"],
            "RIGHT of --rings is missing",
        ),
        (&["listen", "1", "--exec"], "a command is missing"),
        (&["sim"], "a command is missing"),
    ] {
        let refused = answer(words);
        assert_eq!(refused.status.code(), Some(2), "{words:?}");
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(
            said.starts_with(&format!("vcat: {complaint}")),
            "{words:?}: {said}"
        );
        assert!(said.contains("\nusage: vcat "), "{said}");
    }
}

#[test]
fn what_fails_is_reported_in_one_line() {
    let host = TestHost::new();
    for (words, complaint) in [
        (
            &["connect", "0", "nobody"][..],
            "no vchan server at /local/domain/0/data/vchan/0/nobody",
        ),
        (
            &["connect", "0", "nobody", "--wait", "0"],
            "the deadline of the vchan operation passed",
        ),
        (
            &["listen", "0", "a name"],
            "a vchan service's name is made of letters, digits, _ and -",
        ),
        (
            &["listen", "0", "--rings", "1048577", "0"],
            "a vchan ring of 1048577 bytes where 1048576 is the most",
        ),
    ] {
        let (status, said) = host.start(words).complaint();
        assert_eq!((status, said), (Some(1), format!("vcat: {complaint}\n")));
    }
    let server = host.start(&["listen", "0", "data/other", "--exec", "/no/such/command"]);
    let client = host.connect("/local/domain/0/data/other");
    let (status, said) = server.complaint();
    drop(client);
    assert_eq!(status, Some(1));
    assert!(
        said.starts_with("vcat: /no/such/command: No such file"),
        "{said}"
    );
    host.end();
}
