//! Requests that cannot be met: one clear line, an exit status of failure, no panic.

use anyhow::{Context, Result, ensure};

use crate::host::outcome;
use crate::job::Exit;
use crate::suite::{Needs, Test};

/// The test's name, the command, and words that its error line must contain.
const CASES: [(&str, &[&str], &str); 11] = [
    ("unknown_flag", &["stubdm-run", "--nonsense"], "--nonsense"),
    ("no_command", &["stubdm-run"], "command"),
    ("proxy_without_operands", &["vchan-socket-proxy"], "DOMID"),
    (
        "missing_socket_directory",
        &[
            "vchan-socket-proxy",
            "0",
            "/local/domain/0/nothing",
            "/no/such/folder/socket",
        ],
        "/no/such/folder",
    ),
    (
        "domain_that_is_not_there",
        &["stubdm-run", "qmp", "4242", "query-status"],
        "4242",
    ),
    (
        "domain_that_is_no_number",
        &["stubdm-run", "qmp", "hvm7x", "query-status"],
        "hvm7x",
    ),
    (
        "domain_out_of_range",
        &["stubdm-run", "qmp", "99999", "query-status"],
        "99999",
    ),
    (
        "no_store_path",
        &["vchan-socket-proxy", "1", "no store path", "/tmp/unused"],
        "no store path",
    ),
    (
        "arguments_that_are_no_json",
        &["stubdm-run", "qmp", "4242", "stop", "{"],
        "JSON",
    ),
    (
        "no_dev_xen_for_the_proxy",
        &[
            "self",
            "role",
            "without-dev-xen",
            "vchan-socket-proxy",
            "--mode=server",
            "0",
            "data/x",
            "/tmp/unused",
        ],
        "/dev/xen",
    ),
    (
        "no_dev_xen_for_a_person",
        &[
            "self",
            "role",
            "without-dev-xen",
            "stubdm-run",
            "qmp",
            "4242",
            "query-status",
        ],
        "",
    ),
];

pub(super) fn add(tests: &mut Vec<Test>) {
    for (name, argv, mentions) in CASES {
        tests.push(Test::new(
            format!("badinput/{name}"),
            Needs::Package,
            move |_| {
                let (exit, lines) = outcome(argv)?;
                one_line(&exit, &lines, mentions)
            },
        ));
    }
    tests.push(Test::new(
        "badinput/unknown_flag_to_proxy".to_owned(),
        Needs::Package,
        |_| unknown_flag_to_proxy(),
    ));
}

/// By upstream's name the program takes the options of every libxl: an unknown one is reported in a
/// separate line and skipped, and the rest is judged without it.
fn unknown_flag_to_proxy() -> Result<()> {
    let argv = ["vchan-socket-proxy", "--nonsense", "4242", "a", "b"];
    let (exit, lines) = outcome(&argv)?;
    let (first, rest) = lines.split_first().context("no line")?;
    ensure!(first.contains("--nonsense"), "{first}");
    one_line(&exit, rest, "4242")
}

fn one_line(exit: &Exit, lines: &[String], mentions: &str) -> Result<()> {
    let shown = lines.join("\n");
    match exit {
        Exit::Status(status) => ensure!(*status != 0, "exit status 0; it printed:\n{shown}"),
        other => ensure!(false, "ended with {other}; it printed:\n{shown}"),
    }
    ensure!(
        lines.len() == 1,
        "{} lines instead of one:\n{shown}",
        lines.len()
    );
    let line = lines.first().context("no line")?;
    ensure!(line.len() > 20, "no clear line: {line}");
    ensure!(!line.contains("panicked"), "{line}");
    ensure!(
        line.contains(mentions),
        "nothing about `{mentions}`: {line}"
    );
    Ok(())
}
