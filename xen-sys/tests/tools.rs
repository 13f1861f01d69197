//! The tools among the examples, on a simulated host.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

use std::process::Command;

/// Returns the output of an example.
fn run(name: &str, options: &[&str]) -> String {
    // Built with the tests, unless they were picked with `--test`.
    let here = std::env::current_exe().unwrap();
    let path = here.parent().unwrap().join("../examples").join(name);
    assert!(
        path.exists(),
        "{} was not built: cargo build --examples",
        path.display()
    );
    let output = Command::new(path).args(options).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn xen_list_prints_a_table_and_json() {
    let table = run("xen-list", &["--sim", "50"]);
    assert_eq!(table.lines().count(), 52, "{table}");
    let line = table.lines().nth(8).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(&words[..5], ["guest-7", "7", "64", "1", "-b----"]);
    let json = run("xen-list", &["--sim", "2", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["name"], "Domain-0");
    assert_eq!(json[2]["id"], 2);
    assert_eq!(json[2]["memory_bytes"], 64 << 20);
    assert_eq!(json.as_array().unwrap().len(), 3);
}

#[test]
fn xen_top_looks_once() {
    let options = ["--sim", "2", "--once", "--interval", "0.05"];
    let table = run("xen-top", &options);
    assert!(
        table.starts_with("3 domains, 4 CPUs at 2000 MHz"),
        "{table}"
    );
    assert_eq!(table.lines().count(), 5, "{table}");
    let json = run("xen-top", &[&options[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["domains"][1]["cpu_percent"].as_f64().unwrap() > 0.0);
    assert_eq!(json["cpus"], 4);
}

#[test]
fn xen_console_ring_prints_the_ring() {
    let text = run("xen-console-ring", &["--sim", "3"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert_eq!(lines[3], "(XEN) d3 is created");
}
