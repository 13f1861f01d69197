//! `stubdm-run status` against a store with guests of several kinds.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use xen_store::Store;
use xen_store::server::{Config, Server};

fn status(socket: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
    command.arg("status").args(more).arg("--store").arg(socket);
    command.output().unwrap()
}

#[test]
fn guests_with_stubdomains_are_shown_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let server = Server::start(Config::new()).unwrap();
    server.listen(&socket).unwrap();
    let store = Store::connect(&socket).unwrap();
    let own = std::process::id().to_string();
    for (node, value) in [
        ("/local/domain/0/name", "Domain-0"),
        ("/local/domain/10/name", "plain"),
        ("/local/domain/5/name", "one"),
        ("/local/domain/5/image/device-model-domid", "6"),
        ("/local/domain/6/target", "5"),
        ("/local/domain/6/device-model/5/state", "running"),
        ("/local/domain/6/image/qmp-proxy-pid", own.as_str()),
        ("/local/domain/6/memory/target", "409600"),
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
    let output = status(&socket, &[]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(rows[1], ["one", "5", "6", "400", own.as_str(), "running"]);
    assert_eq!(rows[2][..5], ["two", "12", "13", "-", "gone"]);
    assert!(text.ends_with("error: no [2J disk x\n"), "{text}");
    assert_eq!(rows.len(), 3, "{text}");

    let value: Value = serde_json::from_slice(&status(&socket, &["--json"]).stdout).unwrap();
    assert_eq!(
        value["guests"][0],
        json!({"guest": 5, "name": "one", "stubdomain": 6, "state": "running",
               "proxy": {"pid": std::process::id(), "alive": true}, "memory_kib": 409_600})
    );
    assert_eq!(value["guests"][1]["proxy"]["alive"], false);
    assert_eq!(value["guests"].as_array().unwrap().len(), 2);
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
