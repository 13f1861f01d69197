//! The host's processes of a guest are killed, and the guest and xl continue.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::guest::{Guest, LOG, NAME, diagnosis};
use crate::host::{TestHost, command, outcome, soon, start_local};
use crate::suite::{Needs, Test};
use crate::tests::save::{IMAGE, goes_on, restore, second};

/// How often each process is killed.
const KILLS: u32 = 5;

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new("killed/xl_works_again", Needs::Package, |host| {
        let mut supervisor = start_local(&["stubdm-run", "supervise", "--standby"])?;
        let result = xl_works_again(host).with_context(diagnosis);
        let _ = fs::remove_file(IMAGE);
        supervisor.kill(Signal::SIGTERM)?;
        supervisor.exit(soon()).context("the supervisor's end")?;
        result
    }));
}

/// Kills the process whose number libxl's node has. Returns the time until another's is there.
pub(super) fn kill_and_wait(host: &TestHost, guest: &Guest, node: &str) -> Result<Duration> {
    let node = format!("/local/domain/{}/image/{node}", guest.stub);
    let pid = host.store.read_str(&node)?;
    let number = pid.trim().parse().context(node.clone())?;
    kill(Pid::from_raw(number), Signal::SIGKILL)?;
    let killed = Instant::now();
    let check = |now: Option<&[u8]>| now.filter(|now| *now != pid.as_bytes()).map(|_| ());
    let found = host.store.wait_for(&node, Some(soon()), check)?;
    ensure!(found.is_some(), "{node} is still {pid}");
    Ok(killed.elapsed())
}

/// xl's command succeeds, once a dying proxy takes no more clients.
fn succeeds(argv: &[&str]) -> Result<u32> {
    for attempt in 1..=3 {
        let (exit, lines) = outcome(argv)?;
        if exit.to_string().contains("status 0") {
            return Ok(attempt);
        }
        println!("    {argv:?}, attempt {attempt}: {exit}: {lines:?}");
    }
    bail!("{argv:?} does not succeed")
}

fn xl_works_again(host: &TestHost) -> Result<()> {
    let mut guest = Guest::create(&host.store)?;
    let mut before = second(&mut guest)?;
    let mut longest = Duration::ZERO;
    for _ in 0..KILLS {
        longest = longest.max(kill_and_wait(host, &guest, "qmp-proxy-pid")?);
        command(&["xl", "pause", NAME])?;
        succeeds(&["xl", "unpause", NAME])?;
        let written = fs::metadata(LOG)?.len();
        longest = longest.max(kill_and_wait(host, &guest, "device-model-pid")?);
        ensure!(fs::metadata(LOG)?.len() >= written, "{LOG} was emptied");
        // Its terminal is another.
        guest = Guest::running()?;
        before = goes_on(&mut guest, before)?;
    }
    println!("    another process was there after {longest:?} at most");
    // In the middle of saves.
    for pause in [300, 1000, 2000] {
        let mut save = start_local(&["xl", "save", NAME, IMAGE])?;
        let over = Instant::now() + Duration::from_millis(pause);
        let ended = save.exit(over).is_ok();
        if !ended {
            kill_and_wait(host, &guest, "qmp-proxy-pid")?;
        }
        let exit = save.exit(soon())?;
        println!("    xl save, its proxy killed after {pause} ms: {exit}");
        guest = match exit.to_string().contains("status 0") {
            true => restore(guest)?,
            false => {
                succeeds(&["xl", "unpause", NAME])?;
                guest
            }
        };
        before = goes_on(&mut guest, before)?;
    }
    command(&["xl", "save", NAME, IMAGE])?;
    guest = restore(guest)?;
    goes_on(&mut guest, before)?;
    guest.destroy()
}
