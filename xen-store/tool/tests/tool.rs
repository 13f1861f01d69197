//! The built program against the embedded daemon, and against a daemon that lies.

// The lint exempts test functions, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use xen_store::wire::{Decoder, MsgType, encode};
use xen_store::{Permissions, Store};
use xen_store_server::{Config, Server};
use xen_sys::DomId;

const DONE: i32 = 0;
const NO: i32 = 1;
const USAGE: i32 = 2;
const FAILED: i32 = 3;
const TIMED_OUT: i32 = 4;
/// Nothing here takes that long unless it hangs.
const STUCK: Duration = Duration::from_secs(20);

/// A daemon, a client of domain 0, and the program.
struct TestDaemon {
    server: Server,
    store: Store,
    dir: TempDir,
}

impl TestDaemon {
    fn new() -> Self {
        Self::with(Config::new())
    }

    fn with(config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start(config).unwrap();
        server.listen(dir.path().join("socket")).unwrap();
        let store = server.connect(DomId::DOM0).unwrap();
        Self { server, store, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        command(&self.socket(), args)
    }

    fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Standard output of a run that ends with this status.
    #[track_caller]
    fn ends<S: AsRef<OsStr>>(&self, status: i32, args: &[S]) -> String {
        check(&self.run(args), status)
    }

    #[track_caller]
    fn done<S: AsRef<OsStr>>(&self, args: &[S]) -> String {
        self.ends(DONE, args)
    }

    fn start<S: AsRef<OsStr>>(&self, args: &[S]) -> (Child, BufReader<impl std::io::Read>) {
        let mut child = self.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        (child, lines)
    }
}

fn command<S: AsRef<OsStr>>(socket: &Path, args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xstore"));
    command.args(args).env("XENSTORED_PATH", socket);
    command.stdin(Stdio::null());
    command
}

/// Checks a status, and that neither output has a control character.
#[track_caller]
fn check(output: &Output, status: i32) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{out}{err}");
    for text in [&out, &err] {
        let is_plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n'));
        assert!(is_plain, "{text:?}");
    }
    assert!(!err.contains("panicked"), "{err}");
    out
}

fn line(lines: &mut impl std::io::BufRead) -> String {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    line
}

#[test]
fn values_are_written_read_and_removed() {
    let test = TestDaemon::new();
    test.done(&["write", "/a/b", "one", "/a/c", r"two\n\x1b"]);
    assert_eq!(test.store.read("/a/c").unwrap(), b"two\n\x1b");
    assert_eq!(test.done(&["read", "/a/b", "/a/c"]), "one\ntwo\\n\\x1b\n");
    assert_eq!(test.done(&["read", "-p", "/a/b"]), "/a/b: one\n");
    assert_eq!(test.done(&["read", "-Rp", "/a/b"]), "/a/b: one");
    test.done(&["write", "-R", "/a/d", r"\n"]);
    assert_eq!(test.store.read("/a/d").unwrap(), br"\n");
    test.done(&["write", "/a/minus", "-5", "--", "/a/dash", "-R"]);
    assert_eq!(test.done(&["read", "/a/minus", "/a/dash"]), "-5\n-R\n");
    test.done(&["rm", "/a/dash"]);
    test.done(&["mkdir", "/a/e", "/a/f"]);
    assert_eq!(test.done(&["list", "/a"]), "b\nc\nd\nminus\ne\nf\n");
    assert_eq!(
        test.done(&["list", "-p", "/a"]).lines().next(),
        Some("/a/b")
    );
    test.done(&["exists", "/a", "/a/b"]);
    assert_eq!(test.ends(NO, &["exists", "/a", "/none"]), "");
    test.done(&["rm", "/a/b", "/a/c"]);
    test.ends(NO, &["read", "/a/b"]);
    // The parent has other children, and stays.
    test.done(&["rm", "-t", "/a/d"]);
    assert!(test.store.exists("/a").unwrap());
    test.store.write("/t/u/v", "").unwrap();
    test.done(&["rm", "--tidy", "/t/u/v"]);
    assert!(!test.store.exists("/t").unwrap());
    // All of them or none.
    test.ends(FAILED, &["rm", "/a/minus", "/"]);
    assert!(test.store.exists("/a/minus").unwrap());
}

#[test]
fn any_bytes_pass_through() {
    let test = TestDaemon::new();
    let bytes: Vec<u8> = (0..=255).collect();
    let file = test.file("value");
    std::fs::write(&file, &bytes).unwrap();
    let from = file.to_str().unwrap();
    test.done(&["write", "/bytes", "--from", from]);
    assert_eq!(test.store.read("/bytes").unwrap(), bytes);
    let raw = test.run(&["read", "--raw", "/bytes"]);
    assert_eq!(raw.stdout, bytes);
    let text = test.done(&["read", "/bytes"]);
    test.done(&["write", "/again", text.trim_end_matches('\n')]);
    assert_eq!(test.store.read("/again").unwrap(), bytes);
    let word = OsStr::from_bytes(b"\xff\xfe");
    test.done(&[OsStr::new("write"), OsStr::new("/word"), word]);
    assert_eq!(test.store.read("/word").unwrap(), b"\xff\xfe");
    let json = test.done(&["--json", "read", "/word", "/again"]);
    assert!(
        json.starts_with("{\"path\":\"/word\",\"value_hex\":\"fffe\"}\n"),
        "{json}"
    );
    // Standard input, and more than a message carries.
    for (count, status) in [(4000, DONE), (5000, FAILED)] {
        let mut command = test.command(&["write", "/in", "--from", "-"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&vec![0; count])
            .unwrap();
        check(&child.wait_with_output().unwrap(), status);
    }
    assert_eq!(test.store.read("/in").unwrap(), vec![0; 4000]);
}

#[test]
fn trees_are_shown_as_the_classic_tool_does() {
    let test = TestDaemon::new();
    test.store.write("/t/a/x", "1").unwrap();
    test.store.write("/t/a-b", "quote\"\x1b[2J").unwrap();
    let rights = Permissions::owner_none(DomId::DOM0).grant_read(DomId::new(5));
    test.store.set_permissions("/t/a/x", &rights).unwrap();
    let nested = "a = \"\"\n x = \"1\"\na-b = \"quote\\\"\\x1b[2J\"\n";
    assert_eq!(test.done(&["ls", "/t"]), nested);
    assert_eq!(test.done(&["ls", "--consistent", "/t"]), nested);
    assert_eq!(
        test.done(&["ls", "-f", "-p", "/t/a"]),
        "/t/a/x = \"1\"   (n0,r5)\n"
    );
    assert_eq!(
        test.done(&["ls", "-f", "-d", "1", "/t"]),
        "/t/a = \"\"\n/t/a-b = \"quote\\\"\\x1b[2J\"\n"
    );
    let all = test.done(&["ls", "-f"]);
    assert!(
        all.contains("/t/a/x = \"1\"\n") && all.contains("/tool/xenstored = "),
        "{all}"
    );
    assert_eq!(
        test.done(&["ls", "--json", "/t/a"]),
        "{\"path\":\"/t/a/x\",\"permissions\":[\"n0\",\"r5\"],\"value\":\"1\"}\n"
    );
    assert_eq!(
        test.done(&["ls", "--flat", "--prefix", "/t/a"]),
        "/t/a/x = \"1\"   (n0,r5)\n"
    );
    test.ends(NO, &["ls", "/none"]);
    // Under the classic name, through a link.
    let link = test.file("xenstore-ls");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_xstore"), &link).unwrap();
    let mut classic = Command::new(&link);
    let classic = classic
        .args(["-s", "/t"])
        .env("XENSTORED_PATH", test.socket());
    assert_eq!(check(&classic.output().unwrap(), DONE), nested);
}

#[test]
fn colours_are_for_terminals_and_for_those_who_ask() {
    let test = TestDaemon::new();
    test.store.write("/t/a", "1").unwrap();
    assert_eq!(test.done(&["ls", "/t"]), "a = \"1\"\n");
    let painted = test.run(&["--color", "always", "ls", "/t"]).stdout;
    assert_eq!(painted, b"\x1b[36ma\x1b[0m = \x1b[32m\"1\"\x1b[0m\n");
    let json = test.done(&["--color", "always", "--json", "ls", "/t"]);
    assert!(json.starts_with('{'), "{json}");
}

#[test]
fn permissions_are_set_alone_below_and_above() {
    let test = TestDaemon::new();
    test.store.write("/p/q/r", "").unwrap();
    let shown = |path: &str| test.store.permissions(path).unwrap().to_string();
    test.done(&["chmod", "/p/q", "n0", "r5", "b6"]);
    assert_eq!(
        [shown("/p"), shown("/p/q"), shown("/p/q/r")],
        ["n0", "n0 r5 b6", "n0"]
    );
    test.done(&["chmod", "-r", "/p", "r0"]);
    assert_eq!(
        [shown("/p"), shown("/p/q"), shown("/p/q/r")],
        ["r0", "r0", "r0"]
    );
    test.done(&["chmod", "-u", "/p/q/r", "n0", "w7"]);
    assert_eq!(
        [shown("/"), shown("/p"), shown("/p/q")],
        ["n0", "n0 w7", "n0 w7"]
    );
    test.ends(USAGE, &["chmod", "/p", "x5"]);
    test.ends(NO, &["chmod", "/none/at/all", "n0"]);
}

#[test]
fn changes_are_printed_as_they_come() {
    let test = TestDaemon::new();
    let (mut child, mut lines) = test.start(&["watch", "-v", "-n", "5", "/w", "/v"]);
    assert_eq!(line(&mut lines), "/w (no such node)\n");
    assert_eq!(line(&mut lines), "/v (no such node)\n");
    test.store.write("/w/a", "\x1b]0;title\x07").unwrap();
    assert_eq!(line(&mut lines), "/w/a = \"\\x1b]0;title\\x07\"\n");
    test.store.write("/v", "1").unwrap();
    assert_eq!(line(&mut lines), "/v = \"1\"\n");
    test.store.rm("/w/a").unwrap();
    assert_eq!(line(&mut lines), "/w/a (no such node)\n");
    assert_eq!(child.wait().unwrap().code(), Some(DONE));
    let timed = test.ends(TIMED_OUT, &["watch", "-n", "2", "-t", "0.05", "/w"]);
    assert_eq!(timed, "/w\n");
    assert_eq!(
        test.done(&["watch", "-t", "0.05", "@releaseDomain"]),
        "@releaseDomain\n"
    );
    let json = test.done(&["--json", "watch", "-n", "1", "-v", "/v"]);
    assert_eq!(
        json,
        "{\"below\":false,\"exists\":true,\"path\":\"/v\",\"value\":\"1\"}\n"
    );
    // Of a path that is named twice there is one watch.
    test.ends(TIMED_OUT, &["watch", "-n", "2", "-t", "0.05", "/w", "/w"]);
    // The daemon is one without depths.
    test.ends(FAILED, &["watch", "-d", "1", "/w"]);
    let new = TestDaemon::with(Config::new().extensions(true));
    assert_eq!(new.done(&["watch", "-d", "1", "-n", "1", "/w"]), "/w\n");
}

#[test]
fn a_watch_ends_in_time_while_changes_arrive() {
    let test = TestDaemon::new();
    let is_over = AtomicBool::new(false);
    let begun = Instant::now();
    let output = thread::scope(|scope| {
        scope.spawn(|| {
            for n in (0..500).cycle() {
                if is_over.load(Ordering::Relaxed) || begun.elapsed() > STUCK {
                    break;
                }
                test.store.write(&format!("/w/{n}"), "").unwrap();
            }
        });
        let output = test.run(&["watch", "-v", "-t", "0.2", "/w"]);
        is_over.store(true, Ordering::Relaxed);
        output
    });
    assert!(check(&output, DONE).lines().count() > 1);
    assert!(begun.elapsed() < STUCK);
}

#[test]
fn a_node_that_may_not_be_read_is_marked() {
    let test = TestDaemon::new();
    test.store.write("/secret", "1").unwrap();
    test.store.write("/guest", "").unwrap();
    let guest = DomId::new(5);
    let read = Permissions::owner_none(DomId::DOM0).grant_read(guest);
    test.store.set_permissions("/", &read).unwrap();
    let socket = test.file("guest");
    let listener = UnixListener::bind(&socket).unwrap();
    let ends = |status, args: &[&str]| {
        let mut command = command(&socket, args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let (stream, _) = listener.accept().unwrap();
        test.server.add_connection(stream.into(), guest);
        check(&child.wait_with_output().unwrap(), status)
    };
    let remark = "/secret (no permission to read)\n";
    assert!(ends(DONE, &["ls", "-f"]).contains(remark));
    assert!(ends(DONE, &["ls", "-f", "-d", "1"]).contains(remark));
    assert_eq!(ends(DONE, &["watch", "-v", "-n", "1", "/secret"]), remark);
    assert_eq!(
        ends(DONE, &["--json", "watch", "-v", "-n", "1", "/secret"]),
        "{\"below\":false,\"path\":\"/secret\",\"value\":null}\n"
    );
    ends(FAILED, &["read", "/secret"]);
}

#[test]
fn a_wait_ends_with_the_state_that_is_waited_for() {
    let test = TestDaemon::new();
    test.ends(TIMED_OUT, &["wait", "-t", "0.05", "/s"]);
    let ready = test
        .command(&["wait", "/s", "4"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    for state in 1..=4 {
        test.store.write("/s", state.to_string()).unwrap();
    }
    assert_eq!(check(&ready.wait_with_output().unwrap(), DONE), "4\n");
    assert_eq!(test.done(&["wait", "/s"]), "4\n");
    assert_eq!(test.done(&["wait", "--not", "/s", "3"]), "4\n");
    test.ends(TIMED_OUT, &["wait", "--not", "/s", "4", "-t", "0.05"]);
    let gone = test
        .command(&["wait", "--gone", "/s"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    test.store.rm("/s").unwrap();
    assert_eq!(check(&gone.wait_with_output().unwrap(), DONE), "");
    test.ends(USAGE, &["wait", "--not", "/s"]);
}

#[test]
fn a_tree_is_exported_imported_and_compared() {
    let test = TestDaemon::new();
    let rights = Permissions::owner_none(DomId::DOM0).grant_read(DomId::new(5));
    test.store.write("/from/a/b", b"\xff\0").unwrap();
    test.store.write("/from/a-b", "text").unwrap();
    test.store.write("/from", "root").unwrap();
    test.store.set_permissions("/from/a", &rights).unwrap();
    let file = test.file("tree");
    let tree = file.to_str().unwrap();
    let text = test.done(&["export", "--consistent", "/from"]);
    std::fs::write(&file, &text).unwrap();
    assert_eq!(test.done(&["diff", "-p", tree]), "");

    test.store.write("/to/old/node", "").unwrap();
    test.done(&["import", "--at", "/to", "--replace", tree]);
    assert!(!test.store.exists("/to/old").unwrap());
    assert_eq!(test.store.read("/to/a/b").unwrap(), b"\xff\0");
    assert_eq!(test.store.read("/to").unwrap(), b"root");
    assert_eq!(test.store.permissions("/to/a").unwrap(), rights);
    assert_eq!(test.done(&["diff", "-p", "store:/from", "store:/to"]), "");

    test.store.write("/to/a/b", "\x1b").unwrap();
    test.store.rm("/to/a-b").unwrap();
    test.store.write("/to/new", "").unwrap();
    assert_eq!(
        test.ends(NO, &["diff", tree, "store:/to"]),
        "- /from/a-b = \"text\"\n- /from/a/b = \"\\xff\\x00\"\n+ /to/a/b = \"\\x1b\"\n+ /to/new = \"\"\n"
    );
    let json = test.ends(NO, &["--json", "diff", tree, "store:/to"]);
    assert_eq!(json.lines().count(), 3);

    // The same over standard input, as a whole.
    let mut command = test.command(&["import", "--no-permissions"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    test.store.rm("/from").unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    check(&child.wait_with_output().unwrap(), DONE);
    assert_eq!(test.done(&["diff", tree]), "");
    assert_eq!(test.store.permissions("/from/a").unwrap().to_string(), "n0");

    std::fs::write(&file, text.replace("a/b", "../b")).unwrap();
    test.ends(FAILED, &["import", tree]);
    std::fs::write(&file, "\x1b[2J").unwrap();
    test.ends(FAILED, &["import", tree]);
    test.ends(FAILED, &["diff", "/no/such/file"]);
}

#[test]
fn the_parts_that_change_most_come_first() {
    let test = TestDaemon::new();
    test.store
        .write("/local/domain/5/name", "busy\x1b")
        .unwrap();
    let (mut child, mut lines) = test.start(&["--json", "top", "-i", "0.2"]);
    let is_over = AtomicBool::new(false);
    let first = thread::scope(|scope| {
        scope.spawn(|| {
            for n in (0..20).cycle() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let path = format!("/local/domain/5/data/{n}");
                test.store.write(&path, "").unwrap();
            }
        });
        let first = line(&mut lines);
        is_over.store(true, Ordering::Relaxed);
        first
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(first.contains("\"where\":\"/local/domain/5\""), "{first}");
    assert!(first.contains("\"name\":\"busy\\u001b\""), "{first}");
    let table = test.done(&["top", "-i", "0.05", "-n", "1"]);
    assert!(table.starts_with("WHERE"), "{table}");
}

#[test]
fn faults_have_statuses_and_one_line() {
    let test = TestDaemon::new();
    for args in [
        &["read"][..],
        &["read", "a b"],
        &["read", ""],
        &["write", "/a"],
        &["write", "/a", r"\q"],
        &["write", "/a", "b", "--from", "x"],
        &["frobnicate"],
        &["watch", "-n", "x", "/a"],
        &["top", "-i", "-1"],
        &["ls", "--color", "red"],
        &["read", "-\x1b[2J"],
        &["read", "--raw", "--json", "/a"],
        &[],
    ] {
        let output = test.run(args);
        check(&output, USAGE);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.starts_with("xstore: "), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    let missing = test.run(&["read", "/none"]);
    check(&missing, NO);
    let message = String::from_utf8(missing.stderr).unwrap();
    assert_eq!(message, "xstore: /none: READ: no such node (ENOENT)\n");
    let gone = command(&test.file("none"), &["ls"]).output().unwrap();
    check(&gone, FAILED);
    let other = test.run(&["--socket", "/dev/null/x", "ls"]);
    check(&other, FAILED);
    assert!(test.done(&["--help"]).contains("Usage: xstore"));
    assert!(test.done(&["ls", "--help"]).contains("--permissions"));
    assert!(test.done(&["--version"]).starts_with("xstore "));
}

#[test]
fn a_daemon_that_does_not_answer_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let _silent = UnixListener::bind(&socket).unwrap();
    for args in [&["read", "/a"][..], &["wait", "/a"], &["watch", "/a"]] {
        let args = [&["--request-timeout", "0.05"], args].concat();
        check(&command(&socket, &args).output().unwrap(), TIMED_OUT);
    }
    // A span that the clock cannot count is without a limit.
    let test = TestDaemon::new();
    test.done(&["--request-timeout", "1e19", "exists", "/"]);
}

#[test]
fn lines_that_cannot_be_written_are_a_failure() {
    let test = TestDaemon::new();
    test.store.write("/a", "1").unwrap();
    for args in [
        &["read", "/a"][..],
        &["read", "/a", "/none"],
        &["diff", "store:/", "store:/a"],
        &["watch", "-n", "1", "/a"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = test.command(args).stdout(full).output().unwrap();
        check(&output, FAILED);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(
            message.starts_with("xstore: standard output: "),
            "{message}"
        );
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let test = TestDaemon::new();
    for n in 0..3000 {
        test.store
            .write(&format!("/many/node-{n}"), "a value")
            .unwrap();
    }
    let (mut child, mut lines) = test.start(&["ls", "-f", "/many"]);
    assert!(line(&mut lines).starts_with("/many/node-0 = "));
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(DONE));
    // The answer of a comparison stays the same.
    let (mut child, mut lines) = test.start(&["diff", "store:/many", "store:/tool"]);
    assert!(line(&mut lines).starts_with("- /many"));
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(NO));
}

/// A daemon may send names that no path has, and anything else.
#[test]
fn a_lying_daemon_reaches_no_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let (mut decoder, mut buf) = (Decoder::new(), [0; 4096]);
                while let Ok(count @ 1..) = stream.read(&mut buf) {
                    let mut input = &buf[..count];
                    while let Ok(Some(request)) = decoder.next(&mut input) {
                        let kind = match request.kind {
                            MsgType::READ if request.payload.starts_with(b"/error") => {
                                MsgType::ERROR
                            }
                            kind => kind,
                        };
                        let payload: &[u8] = match kind {
                            MsgType::ERROR => b"E\x1b[2J\0",
                            MsgType::DIRECTORY => b"\x1b[2J\0\xc2\x9b\0../x\0",
                            MsgType::READ => b"\x1b]0;x\x07\xc2\x9b\xff",
                            MsgType::GET_PERMS => b"n0\0",
                            _ => b"OK\0",
                        };
                        let reply = encode(kind, request.req_id, 0, &[payload]).unwrap();
                        if stream.write_all(&reply).is_err() {
                            return;
                        }
                        if request.kind == MsgType::WATCH {
                            let token = request.payload.split(|byte| *byte == 0).nth(1);
                            let fields = [b"\x1b[2J\0", token.unwrap(), b"\0"];
                            let event = encode(MsgType::WATCH_EVENT, 0, 0, &fields).unwrap();
                            let _ = stream.write_all(&event);
                        }
                    }
                }
            });
        }
    });
    for (args, status) in [
        (&["list", "/"][..], DONE),
        (&["list", "-p", "/"], DONE),
        (&["--json", "list", "/"], DONE),
        (&["read", "/a"], DONE),
        (&["read", "-p", "/a"], DONE),
        (&["--json", "read", "/a"], DONE),
        (&["read", "/error"], FAILED),
        (&["ls", "/"], FAILED),
        (&["export", "/"], FAILED),
        (&["watch", "-v", "-n", "1", "/a"], DONE),
        (&["wait", "-t", "5", "/a"], DONE),
        (&["top", "-i", "0.05", "-n", "1"], DONE),
    ] {
        let output = command(&socket, args).output().unwrap();
        check(&output, status);
    }
}
