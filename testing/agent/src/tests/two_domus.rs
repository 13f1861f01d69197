//! vchan between two domains of which neither is domain 0: the store grants them less than it
//! grants dom0.
//!
//! | ending | reported to the other domain by |
//! |---|---|
//! | a process is killed | its kernel: live byte and event |
//! | the server's domain is destroyed, or panics | the store: the server's node vanishes with its domain |
//! | the client's domain is destroyed | nothing; the server asks the hypervisor every five seconds |
//!
//! The server is in the first domU, the client in the second.

use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::vchan::{start_in, tidy};
use super::vchan_ends::{in_the_middle, outlives};
use crate::host::{DOMU_NAME, Place, SECOND_NAME, TestHost, command, soon};
use crate::job::Job;
use crate::suite::{Needs, Test};

const SERVER: Place = Place::DomU;
const CLIENT: Place = Place::Second;
const PEER: &[&str] = &["self", "role", "vchan"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    ServerKilled,
    ClientKilled,
    ServerDestroyed,
    ServerPanicked,
    ClientDestroyed,
}

pub(super) fn add(tests: &mut Vec<Test>) {
    let mut test = |name: &str, body: fn(&TestHost) -> Result<()>| {
        let name = format!("two_domus/{name}");
        tests.push(Test::new(name, Needs::TwoDomUs, body));
    };
    test("vchan_4mib", transfer);
    test("server_killed", |host| ended(host, Ending::ServerKilled));
    test("client_killed", |host| ended(host, Ending::ClientKilled));
    test("client_destroyed", |host| {
        ended(host, Ending::ClientDestroyed)
    });
    test("server_destroyed", |host| {
        ended(host, Ending::ServerDestroyed)
    });
    test("server_panicked", |host| {
        ended(host, Ending::ServerPanicked)
    });
}

fn transfer(host: &TestHost) -> Result<()> {
    let words = [
        "--send", "4194304", "--recv", "4194304", "--key", "6", "--chunk", "9999",
    ];
    let rings = ["--read-min", "65536", "--write-min", "65536"];
    let server = [&words[..], &rings].concat();
    let mut pair = start_in(host, (SERVER, CLIENT), (PEER, &server), (PEER, &words))?;
    pair.connected()?;
    let deadline = soon();
    pair.client.succeed(deadline).context("the client")?;
    pair.server.succeed(deadline).context("the server")?;
    pair.unpublished(host)?;
    tidy(host, SERVER)
}

fn ended(host: &TestHost, ending: Ending) -> Result<()> {
    let endless = u64::MAX.to_string();
    let words = [
        "--send",
        &endless,
        "--recv",
        &endless,
        "--key",
        "7",
        "--chunk",
        "3000",
        "--until-gone",
    ];
    let words = [&words[..], &["--watch-peer-domain"]].concat();
    let mut pair = start_in(host, (SERVER, CLIENT), (PEER, &words), (PEER, &words))?;
    in_the_middle(&mut pair)?;

    // Kept until its domain is gone: a job that is dropped is stopped.
    let mut panic = None;
    let began = Instant::now();
    match ending {
        Ending::ServerKilled => pair.server.kill(Signal::SIGKILL)?,
        Ending::ClientKilled => pair.client.kill(Signal::SIGKILL)?,
        Ending::ServerDestroyed => drop(command(&["xl", "destroy", DOMU_NAME])?),
        Ending::ClientDestroyed => drop(command(&["xl", "destroy", SECOND_NAME])?),
        Ending::ServerPanicked => panic = Some(host.role(SERVER, &["panic"])?),
    }
    let client_ends = matches!(ending, Ending::ClientKilled | Ending::ClientDestroyed);
    let (victim, witness) = if client_ends {
        (&mut pair.client, &mut pair.server)
    } else {
        (&mut pair.server, &mut pair.client)
    };
    outlives(witness, ending, began)?;
    match ending {
        Ending::ServerKilled | Ending::ClientKilled => drop(victim.exit(soon())?),
        Ending::ServerDestroyed | Ending::ServerPanicked | Ending::ClientDestroyed => {
            victim.forget();
            panic.iter_mut().for_each(Job::forget);
            host.lost_domu(if client_ends { CLIENT } else { SERVER })?;
        }
    }
    if client_ends {
        pair.unpublished(host)?;
    }
    // A killed server's kernel has no record of its nodes.
    if client_ends || ending == Ending::ServerKilled {
        tidy(host, SERVER)?;
    }
    Ok(())
}
