//! The built program, given things it cannot do: one line on stderr, a status, no panic.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_stubdm-run"))
}

fn has_xen() -> bool {
    Path::new("/dev/xen/evtchn").exists() || Path::new("/proc/xen/capabilities").exists()
}

/// Runs it and returns its one line of error.
fn complaint(command: &mut Command, status: i32) -> String {
    let Output {
        status: ended,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(ended.code(), Some(status), "{command:?} said {text}");
    assert!(stdout.is_empty(), "{command:?}");
    assert_eq!(text.lines().count(), 1, "{command:?} said {text}");
    assert!(
        text.starts_with("stubdm-run: ") && text.ends_with('\n'),
        "{text}"
    );
    assert!(
        !text.contains("panicked") && !text.contains("RUST_BACKTRACE"),
        "{text}"
    );
    text
}

#[test]
fn wrong_command_lines_end_with_status_2() {
    assert!(complaint(program().arg("--bogus"), 2).contains("--bogus"));
    assert!(complaint(&mut program(), 2).contains("--help"));
    assert!(complaint(program().args(["qmp", "1"]), 2).contains("COMMAND"));
    assert!(complaint(program().args(["qmp", "1", "stop", "[1]"]), 2).contains("JSON object"));
    assert!(complaint(program().args(["qmp", "1", "stop", "{"]), 2).contains("not JSON"));
    assert!(complaint(program().args(["qmp", "x", "stop"]), 2).contains('x'));
    let line = ["vchan-socket-proxy", "-x", "1", "a/b", "-"];
    assert!(complaint(program().args(line), 2).contains("-x"));
    let line = ["vchan-socket-proxy", "32752", "a/b", "-"];
    assert!(complaint(program().args(line), 2).contains("32752"));
    for path in ["no path", "a//b", "/", "a/b/"] {
        let line = ["vchan-socket-proxy", "1", path, "/tmp/x"];
        assert!(
            complaint(program().args(line), 2).contains("store path"),
            "{path}"
        );
    }
}

#[test]
fn called_by_upstreams_name_it_is_upstreams_program() {
    let mut command = program();
    command.arg0("/usr/lib/xen-4.17/bin/vchan-socket-proxy");
    let text = complaint(command.args(["--mode=sideways", "1", "a/b", "-"]), 2);
    assert!(text.contains("sideways"), "{text}");
    let help = program()
        .arg0("vchan-socket-proxy")
        .arg("--help")
        .output()
        .unwrap();
    assert_eq!(help.status.code(), Some(0));
    let help = String::from_utf8(help.stdout).unwrap();
    for word in [
        "--state-path",
        "--mode",
        "--verbose",
        "DOMID",
        "NODEPATH",
        "SOCKET|FDNO|-",
    ] {
        assert!(help.contains(word), "{word} is missing in {help}");
    }
}

#[test]
fn every_command_has_help() {
    for command in [&["--help"][..], &["init", "--help"], &["qmp", "--help"]] {
        let output = program().args(command).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(
            output.stdout.len() > 200 && output.stderr.is_empty(),
            "{command:?}"
        );
    }
}

#[test]
fn a_missing_socket_directory_is_named() {
    let line = ["vchan-socket-proxy", "1", "a/b", "/nonexistent/dir/socket"];
    let text = complaint(program().args(line), 1);
    assert!(
        text.contains("/nonexistent/dir/socket") && text.contains("No such file"),
        "{text}"
    );
}

#[test]
fn a_wrong_descriptor_is_named() {
    let text = complaint(program().args(["vchan-socket-proxy", "1", "a/b", "777"]), 1);
    assert!(text.contains("descriptor 777"), "{text}");
    let text = complaint(program().args(["vchan-socket-proxy", "1", "a/b", "2"]), 1);
    assert!(text.contains("descriptor 2"), "{text}");
}

#[test]
fn without_xen_it_reports_that() {
    if has_xen() {
        eprintln!("skipped: this machine has Xen");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let mut command = program();
    command
        .args(["vchan-socket-proxy", "1", "a/b"])
        .arg(&socket);
    assert!(complaint(&mut command, 1).contains("/dev/xen"));
    assert!(!socket.exists(), "the socket it made is gone with it");
    assert!(complaint(program().args(["qmp", "1", "stop"]), 1).contains("/dev/xen"));
    let init = program().arg("init").output().unwrap();
    assert_eq!(init.status.code(), Some(1));
    let text = String::from_utf8(init.stderr).unwrap();
    assert!(
        text.contains("error: ") && text.contains("/dev/xen"),
        "{text}"
    );
    assert!(!text.contains("panicked"), "{text}");
}

/// Answers one conversation and returns what was asked.
fn monitor(listener: UnixListener, answer: &'static str) -> std::thread::JoinHandle<Vec<String>> {
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut out = stream.try_clone().unwrap();
        // An event may arrive first.
        out.write_all(b"{\"event\": \"RESUME\"}\r\n{\"QMP\": {}}\r\n")
            .unwrap();
        let mut asked = Vec::new();
        for line in BufReader::new(stream).lines() {
            asked.push(line.unwrap());
            let answer = if asked.len() == 1 {
                "{\"return\": {}, \"id\": 0}"
            } else {
                answer
            };
            out.write_all(format!("{answer}\r\n").as_bytes()).unwrap();
        }
        asked
    })
}

#[test]
fn a_person_gets_the_answer_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let server = monitor(
        UnixListener::bind(&path).unwrap(),
        r#"{"return": {"status": "running"}, "id": 1}"#,
    );
    let mut command = program();
    command
        .args(["qmp", "--socket"])
        .arg(&path)
        .args(["1", "query-status", "{\"a\": [1]}"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, b"{\"status\":\"running\"}\n");
    let asked = server.join().unwrap();
    let expected = r#"{"execute":"query-status","arguments":{"a":[1]},"id":1}"#;
    assert_eq!(asked.get(1).map(String::as_str), Some(expected));
}

#[test]
fn qemus_refusal_and_silence_are_distinguished() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let refusal = r#"{"id": 1, "error": {"class": "GenericError", "desc": "no\u001b[2J\nway"}}"#;
    let server = monitor(UnixListener::bind(&path).unwrap(), refusal);
    let mut command = program();
    command.args(["qmp", "1", "stop", "--socket"]).arg(&path);
    let text = complaint(&mut command, 1);
    assert!(text.contains("GenericError: no [2J way"), "{text}");
    server.join().unwrap();

    // The proxy's words are not QEMU's.
    std::fs::remove_file(&path).unwrap();
    let refusal = r#"{"id": 1, "error": {"class": "GenericError", "desc": "stubdm-run: the answer is too long"}}"#;
    let server = monitor(UnixListener::bind(&path).unwrap(), refusal);
    let text = complaint(&mut command, 1);
    assert!(
        text.contains("the proxy gave no answer of QEMU's to stop: the answer is too long")
            && !text.contains("QEMU refused"),
        "{text}"
    );
    server.join().unwrap();

    std::fs::remove_file(&path).unwrap();
    let _silent = UnixListener::bind(&path).unwrap();
    let text = complaint(command.args(["--timeout", "0.05"]), 1);
    assert!(text.contains("greeting within 50ms"), "{text}");
    drop(_silent);
    let text = complaint(&mut command, 1);
    // Another test's child may hold the listener until it becomes its program: then there is nobody
    // only a little later.
    assert!(
        text.contains("refused") && text.contains(path.to_str().unwrap())
            || text.contains("reset by peer"),
        "{text}"
    );
}

#[test]
fn a_policy_is_checked_and_explained() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    let policy = |args: &[&str]| {
        let mut command = program();
        command.arg("policy").args(args);
        command
    };
    let file = path.to_str().unwrap();
    let said = complaint(&mut policy(&["check", file]), 1);
    assert!(
        said.contains("p.toml") && said.contains("No such file"),
        "{said}"
    );
    std::fs::write(
        &path,
        "version = 1\n[[row]]\ncommand = \"a\"\nsurprise = 1\n",
    )
    .unwrap();
    let said = complaint(&mut policy(&["check", file]), 1);
    assert!(
        said.contains("line 4") && said.contains("surprise"),
        "{said}"
    );

    std::fs::write(&path, "version = 1\nbase = \"built-in\"\n").unwrap();
    let shown = |args: &[&str]| {
        let Output {
            status,
            stdout,
            stderr,
        } = policy(args).output().unwrap();
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    };
    assert!(shown(&["check", file]).contains("rows"));
    let table = shown(&["explain", "--policy", file]);
    assert!(table.contains("device_add, PCI") && table.contains("pci-pt-{hex2}_{hex2}.{hex1}"));
    let usb = r#"{"driver":"nec-usb-xhci","id":"xenusb-0","p2":"4","p3":"4"}"#;
    let explain = [
        "explain",
        "--policy",
        file,
        "--qemu",
        "9.2",
        "device_add",
        usb,
    ];
    let said = shown(&explain);
    assert!(
        said.contains("USB controller") && said.contains("\"p2\":4"),
        "{said}"
    );
    let said = complaint(&mut policy(&["explain", "--policy", file, "quit"]), 1);
    assert!(said.contains("quit is denied"), "{said}");
}

/// libxl 4.20 asks for QEMU's options before each start, that of a domain with a QEMU too.
#[test]
fn libxls_question_goes_to_the_real_qemu_where_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("xen-qemu-system-i386");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_stubdm-run"), &link).unwrap();
    // By another process: none of this one's children inherits the file open for writing.
    let script = "printf '#!/bin/sh\\necho the real one\\n' > \"$1\" && chmod 755 \"$1\"";
    let real = dir.path().join("xen-qemu-system-i386.real");
    let mut writer = Command::new("sh");
    writer.args(["-c", script, "sh"]).arg(real);
    assert!(writer.status().unwrap().success());
    let question = "-S -no-user-config -nodefaults -nographic -machine none,accel=xen \
                    -chardev socket,id=libxl-cmd,fd=0,server=on,wait=off \
                    -mon chardev=libxl-cmd,mode=control";
    let mut qemu = Command::new(&link);
    let output = qemu.args(question.split_whitespace()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "the real one\n", "{output:?}");
}
