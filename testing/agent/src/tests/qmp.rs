//! libxl's way to QEMU, through our proxy in dom0, the vchan and our server in the stubdomain.
//!
//! These tests share one guest; the last one ends it.

use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::stubdom::ends_with_reason;
use crate::guest::{Guest, NAME};
use crate::host::{TestHost, command, outcome, soon, start_local};
use crate::job::Exit;
use crate::qmp::Qmp;
use crate::suite::{Needs, Test};

pub(super) fn add(tests: &mut Vec<Test>) {
    let mut on_guest = |name: &str, body: fn(&TestHost, &mut Guest) -> Result<()>| {
        tests.push(Test::new(name, Needs::Guest, move |host| {
            host.with_guest(body)
        }));
    };
    on_guest("qmp/two_hundred_connections", two_hundred);
    on_guest("qmp/client_killed_mid_command", client_killed);
    on_guest("qmp/clients_at_the_same_time", at_the_same_time);
    on_guest("qmp/a_persons_client", by_hand);
    tests.push(Test::new(
        "qmp/quit_ends_the_stubdomain",
        Needs::Guest,
        |host| {
            let mut guest = host.take_guest()?;
            let ended = quit(host, &mut guest);
            guest.destroy()?;
            ended
        },
    ));
}

fn ask(guest: &Guest) -> Result<()> {
    let mut qmp = Qmp::connect(guest.socket())?;
    let status = qmp.execute("query-status", None)?;
    ensure!(status["running"] == true, "QEMU says {status}");
    Ok(())
}

fn two_hundred(_: &TestHost, guest: &mut Guest) -> Result<()> {
    for number in 0..200 {
        ask(guest).with_context(|| format!("connection {number}"))?;
    }
    Ok(())
}

/// A client of libxl's kind dies at every stage of a conversation; the next one must not notice.
fn client_killed(_: &TestHost, guest: &mut Guest) -> Result<()> {
    let socket = guest.socket();
    for round in 0..3 {
        for stage in ["dialled", "greeted", "half-sent", "sent", "much-to-come"] {
            let mut client = start_local(&["self", "role", "qmp-client", &socket, stage])?;
            client
                .expect("there", soon())
                .with_context(|| format!("stage {stage}"))?;
            client.kill(Signal::SIGKILL)?;
            ensure!(
                client.exit(soon())? == Exit::Signal(9),
                "the client was not killed"
            );
            ask(guest).with_context(|| format!("after one killed when {stage}, round {round}"))?;
        }
    }
    // And libxl itself: pausing needs no QMP, unpausing does.
    command(&["xl", "pause", NAME])?;
    command(&["xl", "unpause", NAME])?;
    guest.catch_up()?;
    guest.output_after("xen-guest: alive second=").map(drop)
}

/// The proxy serves one after the other; each client is served and receives its own answers only.
fn at_the_same_time(_: &TestHost, guest: &mut Guest) -> Result<()> {
    let socket = guest.socket();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let socket = socket.as_str();
                scope.spawn(move || -> Result<()> {
                    for _ in 0..5 {
                        let mut qmp = Qmp::connect(socket)?;
                        let version = qmp.execute("query-version", None)?;
                        ensure!(version["qemu"]["major"].is_u64(), "no version: {version}");
                        // Longer than both rings.
                        let commands = qmp.execute("query-commands", None)?;
                        ensure!(commands.as_array().is_some_and(|all| all.len() > 100));
                    }
                    Ok(())
                })
            })
            .collect();
        for client in clients {
            match client.join() {
                Ok(result) => result?,
                Err(_) => bail!("a client panicked"),
            }
        }
        Ok(())
    })
}

fn by_hand(_: &TestHost, guest: &mut Guest) -> Result<()> {
    let id = guest.id.to_string();
    let lines = command(&["stubdm-run", "qmp", &id, "query-status"])?;
    let status: Value = serde_json::from_str(&lines.join("\n")).context("the answer")?;
    ensure!(status["running"] == true, "{status}");
    let arguments = r#"{"command-line": "info version"}"#;
    let lines = command(&["stubdm-run", "qmp", &id, "human-monitor-command", arguments])?;
    let version: String = serde_json::from_str(&lines.join("\n")).context("the answer")?;
    ensure!(version.contains('.'), "info version says {version}");

    for (argv, word) in [
        (["qmp", &id, "no-such-command"], "no-such-command"),
        (
            ["qmp", &guest.stub.to_string(), "query-status"],
            "stubdomain",
        ),
    ] {
        let argv: Vec<&str> = ["stubdm-run"].into_iter().chain(argv).collect();
        let (exit, lines) = outcome(&argv)?;
        ensure!(
            exit == Exit::Status(1),
            "{argv:?} ended with {exit}: {lines:?}"
        );
        ensure!(
            lines.len() == 1 && lines[0].contains(word),
            "{argv:?} printed {lines:?}"
        );
    }
    Ok(())
}

/// A program may not end QEMU; a person may, by the monitor's own words.
fn quit(host: &TestHost, guest: &mut Guest) -> Result<()> {
    let mut qmp = Qmp::connect(guest.socket())?;
    match qmp.execute("quit", None) {
        Ok(answer) => bail!("quit was answered: {answer}"),
        Err(denied) => ensure!(
            format!("{denied}").contains("not in the policy"),
            "{denied}"
        ),
    }
    let status = qmp.execute("query-status", None)?;
    ensure!(
        status["running"] == true,
        "after a denied quit QEMU says {status}"
    );
    drop(qmp);
    // A QEMU on its way out shuts down a guest that asks it for I/O at that moment; xl would
    // destroy both domains then, while they are being looked at here. A paused guest asks for
    // nothing.
    command(&["xl", "pause", NAME])?;
    // QEMU may be gone before its answer is through.
    outcome(&["xl", "qemu-monitor-command", NAME, "quit"])?;
    ends_with_reason(&host.store, guest, "status 0")
}
