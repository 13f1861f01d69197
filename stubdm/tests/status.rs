//! `stubdm-run status` against a store with guests of several kinds.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use stubdm::service::record::{Claim, Kind, Record};
use xen_store::{Permissions, Store};
use xen_store_server::{Config, Server};
use xen_sys::DomId;

#[path = "../src/viewer/fake.rs"]
#[allow(dead_code)]
mod fake;

use fake::Fake;

fn status(socket: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
    command.arg("status").args(more).arg("--store").arg(socket);
    command.output().unwrap()
}

/// Makes domains, which the store's nodes alone do not.
fn exist(server: &Server, domains: &[u16]) {
    for domain in domains {
        server.add_domain(DomId::new(*domain));
        server.introduce(DomId::new(*domain));
    }
}

/// Killed in the end.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a store's daemon, and returns its socket and a connection of dom0's.
fn served(dir: &Path) -> (PathBuf, Server, Store) {
    let socket = dir.join("s");
    let server = Server::start(Config::new()).unwrap();
    server.listen(&socket).unwrap();
    let store = Store::connect(&socket).unwrap();
    (socket, server, store)
}

#[test]
fn guests_with_stubdomains_are_shown_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, server, store) = served(dir.path());
    std::fs::write(dir.path().join("log"), "1234567").unwrap();
    let log = format!("file:{}", dir.path().join("log").display());
    // As upstream's proxy, which has no record: the stubdomain's number is a word of its.
    let proxy = Command::new("sh")
        .args(["-c", "read line", "6"])
        .stdin(Stdio::piped())
        .spawn();
    let proxy = Ended(proxy.unwrap());
    let own = proxy.0.id().to_string();
    let recycled = std::process::id().to_string();
    let ghosts = [
        ("/local/domain/20/name", "ghost"),
        ("/local/domain/20/image/device-model-domid", "21"),
        ("/local/domain/21/device-model/20/state", "running"),
        ("/local/domain/30/name", "half"),
        ("/local/domain/30/image/device-model-domid", "31"),
        ("/local/domain/31/device-model/30/state", "running"),
        ("/local/domain/31/image/qmp-proxy-pid", recycled.as_str()),
    ];
    for (node, value) in ghosts {
        store.write(node, value).unwrap();
    }
    exist(&server, &[5, 6, 10, 12, 13, 30]);
    for (node, value) in [
        ("/local/domain/0/name", "Domain-0"),
        ("/local/domain/10/name", "plain"),
        ("/local/domain/5/name", "one"),
        ("/local/domain/5/image/device-model-domid", "6"),
        ("/local/domain/6/target", "5"),
        ("/local/domain/6/device-model/5/state", "running"),
        ("/local/domain/6/image/qmp-proxy-pid", own.as_str()),
        ("/local/domain/6/memory/target", "409600"),
        ("/local/domain/6/console/output", log.as_str()),
        (
            "/local/domain/6/device/console/1/output",
            "file:/nonexistent",
        ),
        ("/local/domain/6/device/console/3/output", log.as_str()),
        ("/local/domain/6/device/console/2/output", "pty"),
        ("/local/domain/13/console/output", "file:/"),
        ("/local/domain/13/image/device-model-pid", "4194305"),
        ("/local/domain/12/name", "two"),
        ("/local/domain/12/image/device-model-domid", "13"),
        (
            "/local/domain/13/device-model/12/state",
            "error: no\u{1b}[2J disk\nx",
        ),
        ("/local/domain/13/image/qmp-proxy-pid", "4194305"),
    ] {
        store.write(node, value).unwrap();
    }
    // The stubdomain's own nodes are not looked at.
    let theirs = Permissions::owner_none(DomId::new(6));
    let node = "/local/domain/6/device/console/3/output";
    store.set_permissions(node, &theirs).unwrap();
    let output = status(&socket, &[]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    // Every cell but the last is one word, as every column's name but the last is.
    let cell = |row: usize, name: &str| {
        let column = rows[0].iter().position(|word| *word == name).unwrap();
        rows[row][column]
    };
    for (name, one, two) in [
        ("NAME", "one", "two"),
        ("GUEST", "5", "12"),
        ("STUBDOM", "6", "13"),
        ("MiB", "400", "-"),
        ("PROXY", own.as_str(), "gone"),
        ("CONSOLES", "-", "gone"),
        ("BYTES", "7", "-"),
        ("DEVICE", "running", "error:"),
    ] {
        assert_eq!((cell(1, name), cell(2, name)), (one, two), "{name}");
    }
    assert!(text.contains("error: no [2J disk x\n"), "{text}");
    assert_eq!(rows.len(), 6, "{text}");
    assert_eq!((cell(5, "NAME"), cell(5, "PROXY")), ("half", "gone"));
    assert!(text.contains("\n  its proxy is gone: nothing starts it again"));
    assert!(text.contains("the stubdomain is gone\n"), "{text}");

    let value: Value = serde_json::from_slice(&status(&socket, &["--json"]).stdout).unwrap();
    let first = &value["guests"][0];
    assert!(
        first["proxy"]["memory_kib"].as_u64().unwrap() > 0,
        "{first}"
    );
    let mut first = first.clone();
    first["proxy"]["memory_kib"] = Value::Null;
    assert_eq!(
        first,
        json!({"guest": 5, "name": "one", "stubdomain": 6, "state": "running",
               "proxy": {"pid": proxy.0.id(), "alive": true, "memory_kib": null},
               "qmp": null, "consoles": null, "console_bytes": 7, "memory_kib": 409_600, "screen": null,
               "fault": null})
    );
    assert_eq!(value["guests"][1]["proxy"]["alive"], false);
    assert_eq!(value["guests"].as_array().unwrap().len(), 3);
}

/// Serves dom0's connections at `socket` for the daemon, and rewrites `node` whenever its
/// permissions were sent.
fn rewritten_at_each_look(server: &std::sync::Arc<Server>, socket: &Path, node: &'static str) {
    let listener = UnixListener::bind(socket).unwrap();
    let dom0 = server.connect(DomId::DOM0).unwrap();
    let server = std::sync::Arc::clone(server);
    std::thread::spawn(move || {
        while let Ok((mut near, _)) = listener.accept() {
            let (mut far, theirs) = UnixStream::pair().unwrap();
            server.add_connection(theirs.into(), DomId::DOM0);
            while let Some(request) = message(&mut near) {
                far.write_all(&request).unwrap();
                let reply = message(&mut far).unwrap();
                if request[0] == 3 && request[16..] == *format!("{node}\0").as_bytes() {
                    dom0.write(node, "again").unwrap();
                }
                near.write_all(&reply).unwrap();
            }
        }
    });
}

/// One message of the store's protocol.
fn message(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut message = vec![0; 16];
    stream.read_exact(&mut message).ok()?;
    let length = u32::from_ne_bytes(message[12..].try_into().unwrap());
    message.resize(16 + length as usize, 0);
    stream.read_exact(&mut message[16..]).ok()?;
    Some(message)
}

#[test]
fn a_stubdomain_that_rewrites_its_own_node_or_has_an_accomplice_fails_no_other_guests_row() {
    let dir = tempfile::tempdir().unwrap();
    let server = std::sync::Arc::new(Server::start(Config::new()).unwrap());
    let store = server.connect(DomId::DOM0).unwrap();
    let victim = dir.path().join("victim");
    std::fs::write(&victim, "1234567").unwrap();
    let victim = format!("file:{}", victim.display());
    for (node, value) in [
        ("/local/domain/5/image/device-model-domid", "6"),
        ("/local/domain/6/device/console/1/output", "null"),
        ("/local/domain/6/console/output", victim.as_str()),
        ("/local/domain/7/image/device-model-domid", "8"),
        ("/local/domain/7/name", "honest"),
    ] {
        store.write(node, value).unwrap();
    }
    // The stubdomain may only read what its accomplice, domain 9, writes.
    exist(&server, &[5, 6, 7, 8, 9]);
    let accomplices = Permissions::owner_none(DomId::new(9)).grant_read(DomId::new(6));
    let node = "/local/domain/6/console/output";
    store.set_permissions(node, &accomplices).unwrap();
    let own = Permissions::owner_none(DomId::new(6));
    let node = "/local/domain/6/device/console/1/output";
    for perms in [own, Permissions::owner_none(DomId::DOM0)] {
        store.set_permissions(node, &perms).unwrap();
        let socket = dir.path().join(perms.to_string());
        rewritten_at_each_look(&server, &socket, node);
        let output = status(&socket, &["--json"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(value["guests"][1]["name"], "honest", "{value}");
        let bytes = &value["guests"][0]["console_bytes"];
        assert_eq!(*bytes, Value::Null, "the accomplice's file: {value}");
    }
}

#[test]
fn a_screen_is_shown_as_its_vnc_server_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, server, store) = served(dir.path());
    exist(&server, &[5, 6]);
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let node = "/local/domain/5/image/device-model-domid";
    store.write(node, "6").unwrap();
    let node = "/local/domain/6/console/vnc-port";
    store.write(node, port.to_string()).unwrap();
    let serving = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let (width, height) = (1024, 768);
        let mut server = Fake {
            stream,
            width,
            height,
        };
        assert_eq!(server.security(&[1]).unwrap(), 1);
        server.accept().unwrap();
        while server.message().is_ok() {}
    });
    let output = status(&socket, &[]);
    serving.join().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = format!("  its screen: 1024x768, viewers not known, VNC at 127.0.0.1 port {port}\n");
    assert!(text.contains(&line), "{text}");

    // The server has ended, and its address is shown all the same.
    let output = status(&socket, &["--json"]);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let address = format!("127.0.0.1:{port}");
    assert_eq!(
        value["guests"][0]["screen"],
        json!({"address": address, "width": null, "height": null, "viewers": null})
    );
    store.write(node, "70000").unwrap();
    let output = status(&socket, &["--json"]);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    let fault = value["guests"][0]["fault"].as_str().unwrap();
    assert!(
        fault.starts_with("/local/domain/6/console/vnc-port: "),
        "{fault}"
    );
}

#[test]
fn a_store_that_is_not_there_is_one_line() {
    let output = status(Path::new("/nonexistent/store"), &[]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("/nonexistent/store") && text.lines().count() == 1,
        "{text}"
    );
}

/// `status --watch` as a process, and its lines.
fn watching(socket: &Path, more: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
    command
        .args(["status", "--watch"])
        .args(more)
        .arg("--store")
        .arg(socket);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

fn end(mut child: Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{signal}");
}

#[test]
fn watched_guests_come_and_go_until_a_signal() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, server, store) = served(dir.path());
    store.write("/local/domain/0/name", "Domain-0").unwrap();
    exist(&server, &[5, 6, 7, 8]);

    let (child, mut lines) = watching(&socket, &["0.1", "--json"]);
    let mut wait = |count: usize| loop {
        let line = lines.next().unwrap().unwrap();
        let value: Value = serde_json::from_str(&line).unwrap();
        if value["guests"].as_array().unwrap().len() == count {
            return value;
        }
    };
    wait(0);
    store
        .write("/local/domain/5/image/device-model-domid", "6")
        .unwrap();
    assert_eq!(wait(1)["guests"][0]["state"], Value::Null);
    store
        .write("/local/domain/7/image/device-model-domid", "8")
        .unwrap();
    wait(2);
    store.rm("/local/domain/5").unwrap();
    assert_eq!(wait(1)["guests"][0]["guest"], 7);
    end(child, Signal::SIGTERM);

    // Without a terminal, one table after another, and nothing meant for one.
    let (child, mut lines) = watching(&socket, &[]);
    let head = lines.next().unwrap().unwrap();
    assert!(
        head.starts_with("NAME ") && !head.contains('\u{1b}'),
        "{head}"
    );
    assert!(lines.next().unwrap().unwrap().contains(" 7 "));
    end(child, Signal::SIGINT);

    // Nobody reads any more.
    let (mut child, lines) = watching(&socket, &["0.1", "--json"]);
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));

    // The store ends: one line.
    let (child, mut lines) = watching(&socket, &["0.1", "--json"]);
    lines.next().unwrap().unwrap();
    drop(store);
    drop(server);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(1));
}

#[test]
fn a_time_that_is_none_is_one_line_and_status_2() {
    for time in ["0", "-1", "x", "nan", "1e9"] {
        let output = status(Path::new("/nonexistent"), &[&format!("--watch={time}")]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{time}: {text}");
        assert!(
            text.lines().count() == 1 && text.contains("seconds"),
            "{text}"
        );
    }
}

#[test]
fn a_recorded_process_that_was_killed_is_gone_and_its_mend_named() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, server, store) = served(dir.path());
    let folder = dir.path().join("run");
    exist(&server, &[5, 6]);
    let node = "/local/domain/5/image/device-model-domid";
    store.write(node, "6").unwrap();
    let record = Record::of_this_process(Kind::Proxy, 6, String::new()).unwrap();
    let claim = Claim::take(&folder, record).unwrap().unwrap();
    let shown = || {
        let output = status(&socket, &["--folder", folder.to_str().unwrap()]);
        String::from_utf8(output.stdout).unwrap()
    };
    let own = std::process::id().to_string();
    assert!(shown().contains(&own), "{}", shown());
    // As a kill leaves it, though the number is this living process's.
    let file = folder.join("services/proxy-6");
    let left = std::fs::read(&file).unwrap();
    drop(claim);
    std::fs::write(&file, left).unwrap();
    let text = shown();
    assert!(
        text.contains("its proxy is gone: stubdm-run restart 5"),
        "{text}"
    );
    assert!(!text.contains(&own), "{text}");
}
