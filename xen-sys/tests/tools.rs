//! The tools among the examples, on a simulated host.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Returns the path of an example.
fn example(name: &str) -> PathBuf {
    // Built with the tests, unless they were picked with `--test`.
    let here = std::env::current_exe().unwrap();
    let path = here.parent().unwrap().join("../examples").join(name);
    assert!(
        path.exists(),
        "{} was not built: cargo build --examples",
        path.display()
    );
    path
}

/// Returns the output of an example.
fn run(name: &str, options: &[&str]) -> String {
    let output = Command::new(example(name)).args(options).output().unwrap();
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
fn metrics_are_of_prometheus_format() {
    let text = run("metrics", &["--sim", "50"]);
    let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    // Five of the host, and six of each domain, which has one virtual CPU.
    assert_eq!(samples.len(), 5 + 51 * 6, "{text}");
    for sample in &samples {
        let (series, value) = sample.rsplit_once(' ').unwrap();
        assert!(
            value.parse::<f64>().is_ok_and(|value| value >= 0.0),
            "{sample}"
        );
        let name = series.split('{').next().unwrap();
        assert!(text.contains(&format!("# TYPE {name} ")), "{sample}");
    }
    for line in [
        "xen_domains 51",
        "xen_host_cpus 4",
        "xen_domain_memory_bytes{domid=\"50\",name=\"guest-50\"} 67108864",
        "xen_domain_paused{domid=\"0\",name=\"Domain-0\"} 0",
    ] {
        assert!(samples.contains(&line), "{line} is missing:\n{text}");
    }
}

#[test]
fn metrics_are_served_to_slow_and_to_broken_clients() {
    let path = example("metrics");
    let mut server = Command::new(path)
        .args(["--sim", "2", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = server.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("http://").unwrap();
    let address = address.strip_suffix("/metrics").unwrap();
    // One that leaves at once, and one that asks in pieces.
    drop(TcpStream::connect(address).unwrap());
    let mut client = TcpStream::connect(address).unwrap();
    for piece in ["GET /metrics HTTP/1.1\r\nHost: ", "x\r\n", "\r\n"] {
        client.write_all(piece.as_bytes()).unwrap();
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.contains(&format!("Content-Length: {}", body.len())),
        "{head}"
    );
    assert!(body.contains("xen_domains 3\n"), "{body}");
}

#[test]
fn a_tool_looks_at_the_simulated_host_that_the_environment_names() {
    let host = xen_sys::sim::Simulation::start().unwrap();
    host.add_domain_as(xen_sys::DomId::new(77)).unwrap();
    let path = std::env::temp_dir().join(format!("xen-sys-tools-{}", std::process::id()));
    host.listen(&path).unwrap();
    let output = Command::new(example("xen-list"))
        .arg("--json")
        .env("XEN_SIM_SOCKET", &path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json[1]["id"], 77, "{json}");
}

#[test]
fn xen_console_ring_prints_the_ring() {
    let text = run("xen-console-ring", &["--sim", "3"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert_eq!(lines[3], "(XEN) d3 is created");
}
