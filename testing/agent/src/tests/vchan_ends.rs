//! The end of a domU, or of a process in it, at a random moment of a transfer: what dom0 sees of
//! it.
//!
//! | ending | how | reported to dom0's end by |
//! |---|---|---|
//! | killed | SIGKILL of the process | the domU's kernel: live byte and event |
//! | destroyed | `xl destroy` | the store: `@releaseDomain` |
//! | panicked | the magic key `c` | the store, when the toolstack has taken the domain away |
//!
//! Each test is one ending. For many: `xen-testbed-agent suite --only vchan_ends --times 5`.

use std::fmt::Debug;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::named;
use super::vchan::{Pair, start, tidy};
use crate::host::{DOMU_NAME, Place, TestHost, command, soon};
use crate::job::Job;
use crate::suite::{Needs, Test};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Killed,
    Destroyed,
    Panicked,
}

/// Every ending of the domU's side, as server and as client.
pub(super) fn add(tests: &mut Vec<Test>, needs: Needs) {
    for (ending, name) in [
        (Ending::Killed, "killed"),
        (Ending::Destroyed, "destroyed"),
        (Ending::Panicked, "panicked"),
    ] {
        // Where the server is; the victim is in the domU.
        for (place, side) in [(Place::DomU, "server"), (Place::Dom0, "client")] {
            let name = format!("vchan_ends/{side}_in_domu_{name}");
            tests.push(Test::new(named(&name, needs), needs, move |host| {
                ended(host, place, ending)
            }));
        }
    }
}

/// How long the end may take to be seen, the toolstack's work included.
const LIMIT: Duration = Duration::from_secs(20);

/// Waits until both ends move bytes, and a random moment more.
pub(super) fn in_the_middle(pair: &mut Pair) -> Result<()> {
    pair.connected()?;
    for job in [&mut pair.server, &mut pair.client] {
        job.expect("moving", soon())?;
    }
    let noise = SystemTime::UNIX_EPOCH.elapsed()?.subsec_nanos();
    sleep(Duration::from_micros(u64::from(noise % 300_000)));
    Ok(())
}

/// The other end sees an `ending` that `began` to come about, in time, and ends well.
pub(super) fn outlives(witness: &mut Job, ending: impl Debug, began: Instant) -> Result<()> {
    let words = witness.expect("gone ", soon()).context("the survivor")?;
    let took = began.elapsed();
    // Its bytes are checked one by one as they come: what it read is a true beginning.
    witness.succeed(soon()).context("the survivor")?;
    println!(
        "    {ending:?}: seen after {} ms; {words}",
        took.as_millis()
    );
    ensure!(took < LIMIT, "seen only after {took:?}");
    Ok(())
}

fn ended(host: &TestHost, place: Place, ending: Ending) -> Result<()> {
    let program: &[&str] = &["self", "role", "vchan"];
    let endless = u64::MAX.to_string();
    let words: &[&str] = &[
        "--send",
        &endless,
        "--recv",
        &endless,
        "--key",
        "9",
        "--chunk",
        "3000",
        "--until-gone",
    ];
    let watching: Vec<&str> = words
        .iter()
        .copied()
        .chain(["--watch-peer-domain"])
        .collect();
    let (server, client): (&[&str], &[&str]) = match place {
        Place::Dom0 => (&watching, words),
        _ => (words, &watching),
    };
    let mut pair = start(host, place, (program, server), (program, client))?;
    in_the_middle(&mut pair)?;

    let Pair { server, client, .. } = &mut pair;
    let (victim, witness) = match place {
        Place::Dom0 => (client, server),
        _ => (server, client),
    };
    // Kept until its domain is gone: a job that is dropped is stopped.
    let mut panic = None;
    let began = Instant::now();
    match ending {
        Ending::Killed => victim.kill(Signal::SIGKILL)?,
        Ending::Destroyed => drop(command(&["xl", "destroy", DOMU_NAME])?),
        Ending::Panicked => panic = Some(host.role(Place::DomU, &["panic"])?),
    }
    outlives(witness, ending, began)?;
    if ending == Ending::Killed {
        victim.exit(soon())?;
    } else {
        victim.forget();
        panic.iter_mut().for_each(Job::forget);
        host.lost_domu(Place::DomU)?;
    }
    if place == Place::Dom0 {
        pair.unpublished(host)?;
        tidy(host, Place::Dom0)?;
    } else if ending == Ending::Killed {
        tidy(host, Place::DomU)?;
    }
    Ok(())
}
