//! Debian's own store clients, run against xenstored and against the daemon of xen-store-server:
//! they must print the same.
//!
//! The script is `assets/store-clients.sh`. A line that only one of the two transcripts has fails
//! the test.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use xen_store_server::{Config, Server};
use xen_sys::DomId;

use crate::host::{TestHost, command};
use crate::suite::{Needs, Test};

const SCRIPT: &str = include_str!("../../assets/store-clients.sh");

/// Where the daemon of ours listens.
const SOCKET: &str = "/run/xen-testbed-store";

/// Fewer lines than this are no transcript of that script.
const LEAST: usize = 500;

pub(super) fn add_dom0(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "store/c_clients_print_the_same",
        Needs::Dom0,
        compare,
    ));
}

fn compare(_: &TestHost) -> Result<()> {
    let real = command(&["sh", "-c", SCRIPT]).context("with xenstored")?;
    let ours = {
        // Domains are what they are on this host: there is none but dom0.
        let server = Server::start(Config::new().domain_exists(|domain| domain == DomId::DOM0))?;
        server.listen(Path::new(SOCKET))?;
        let top = with_ours("xenstore-list /")?;
        ensure!(top == ["tool"], "this is not our daemon: {top:?}");
        with_ours(SCRIPT).context("with our daemon")?
    };
    ensure!(
        !Path::new(SOCKET).exists(),
        "our daemon left its socket behind"
    );
    let asked = real.iter().filter(|line| line.starts_with("$ ")).count();
    ensure!(
        real.len() >= LEAST,
        "only {} lines from xenstored:\n{}",
        real.len(),
        real.join("\n")
    );
    let mut last = "";
    for (number, line) in real.iter().enumerate() {
        if line.starts_with("$ ") {
            last = line;
        }
        let other = ours.get(number).map(String::as_str);
        if other != Some(line) {
            bail!(
                "line {number}, after `{}`:\nxenstored:  {line}\nour daemon: {}",
                shortened(last),
                other.unwrap_or("(no more lines)")
            );
        }
    }
    ensure!(
        ours.len() == real.len(),
        "our daemon's clients print {} lines more, first: {}",
        ours.len() - real.len(),
        ours[real.len()]
    );
    println!(
        "{asked} commands of Debian's store clients print the same {} lines with both daemons",
        real.len()
    );
    Ok(())
}

/// Runs a script whose store clients find our daemon.
fn with_ours(script: &str) -> Result<Vec<String>> {
    let script = format!("export XENSTORED_PATH={SOCKET}\n{script}");
    command(&["sh", "-c", &script])
}

fn shortened(line: &str) -> String {
    line.chars().take(100).collect()
}
