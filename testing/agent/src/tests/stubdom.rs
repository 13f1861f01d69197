//! A guest with a stubdomain under unmodified xl: its life, and what happens when something in it
//! fails.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use xen_store::Store;

use crate::guest::{CONFIG, Guest, LOG, NAME, STUB, destroy_leftover, diagnosis, listed};
use crate::host::{TestHost, command, soon, start_local};
use crate::job::{Exit, Job};
use crate::leftovers::{Snapshot, assert_none};
use crate::suite::{Needs, Test};
use crate::tests::consoled::no_qemu_in_dom0;
use crate::tests::screen::shows_bios;

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "stubdom/three_guests_in_turn",
        Needs::Package,
        three_in_turn,
    ));
    tests.push(Test::new(
        "stubdom/printed_lines_pasted",
        Needs::Package,
        printed_lines,
    ));
    tests.push(Test::new(
        "stubdom/little_and_too_little_memory",
        Needs::Package,
        little_memory,
    ));
    tests.push(Test::new(
        "stubdom/dm_argv_emptied",
        Needs::Package,
        argv_emptied,
    ));
    tests.push(Test::new(
        "stubdom/dm_argv_of_mini_os",
        Needs::Package,
        argv_of_mini_os,
    ));
}

/// The first of the three does everything a guest is put through; each has to leave the host as it
/// was.
fn three_in_turn(host: &TestHost) -> Result<()> {
    let before = Snapshot::take(&host.store)?;
    let mut boots = Vec::new();
    for turn in 0..3 {
        let mut guest = Guest::create(&host.store)?;
        let alive = (|| -> Result<()> {
            let boot = guest.output_after("xen-guest: start boot=")?;
            boots.push(boot.parse::<u32>()?);
            guest.output_after("xen-guest: disk ok sum=")?;
            is_alive(&mut guest)?;
            if turn == 0 {
                both_listed()?;
                types_and_is_answered(host, &mut guest)?;
                pauses(&mut guest)?;
                log_has_the_start()?;
            }
            Ok(())
        })();
        guest.destroy()?;
        alive.with_context(|| format!("guest number {}{}", turn + 1, diagnosis()))?;
        assert_none(&host.store, &before)
            .with_context(|| format!("after guest number {}", turn + 1))?;
    }
    // The guest counts its boots on its disk: what it wrote had reached the host's file each time.
    ensure!(
        boots[1] == boots[0] + 1 && boots[2] == boots[1] + 1,
        "the boots are {boots:?}"
    );
    Ok(())
}

/// The lines of `image build`, with a name, memory and a disk, are a configuration: xl's default
/// shows the guest's screen. With `vnc=0`, which is printed where the screen would keep the guest
/// from starting, there is no QEMU in dom0.
fn printed_lines(host: &TestHost) -> Result<()> {
    let lines = "/etc/xen/printed-lines";
    let printed = fs::read_to_string(lines).context(lines)?;
    let config = "/run/printed.cfg";
    let disk =
        "format=raw,vdev=hda,access=rw,backendtype=phy,script=block-testbed,target=/dev/loop0";
    let own = format!("name=\"{NAME}\"\nmemory=128\ndisk=[\"{disk}\"]\n");
    fs::write(config, format!("{own}{printed}"))?;
    let guest = Guest::create_from(&host.store, config, &[])
        .with_context(|| format!("creating the guest from\n{own}{printed}{}", diagnosis()))?;
    let served = match printed.lines().any(|line| line == "vnc=0") {
        true => no_qemu_in_dom0(),
        false => shows_bios(&guest),
    };
    guest.destroy()?;
    fs::remove_file(config)?;
    served
}

/// A stubdomain runs with seven eighths of the memory that `image build` prints (112 MiB for Debian
/// 12's). One with 96 MiB ends, and its log has its kernel's reason.
fn little_memory(host: &TestHost) -> Result<()> {
    let lines = "/etc/xen/printed-lines";
    let printed = fs::read_to_string(lines).context(lines)?;
    let memory = printed
        .lines()
        .find_map(|l| l.strip_prefix("stubdomain_memory="));
    let memory: u64 = memory.context("no memory is printed")?.trim().parse()?;
    let least = format!("stubdomain_memory={}", memory / 8 * 7);
    let mut guest = Guest::create_with(&host.store, &[&least]).context(least)?;
    let alive = is_alive(&mut guest);
    guest.destroy()?;
    alive?;

    let mut create = start_local(&["xl", "create", CONFIG, "stubdomain_memory=96"])?;
    let exit = create.exit(soon())?;
    if exit == Exit::Status(0) {
        destroy_leftover();
        bail!("xl create succeeded with 96 MiB{}", diagnosis());
    }
    let log = fs::read_to_string(LOG).with_context(|| format!("reading {LOG}"))?;
    // Linux 6.1 is deadlocked on memory; 6.12 has unpacked too little to find an init.
    let reason = "Kernel panic - not syncing: ";
    ensure!(log.contains(reason), "no reason in the log{}", diagnosis());
    let listed = listed()?;
    ensure!(
        !listed.contains_key(NAME) && !listed.contains_key(STUB),
        "xl list shows {listed:?}"
    );
    Ok(())
}

pub(super) fn is_alive(guest: &mut Guest) -> Result<()> {
    let line = guest.output_after("xen-guest: alive second=")?;
    ensure!(line.contains("disk=ok"), "the guest says: {line}");
    Ok(())
}

fn both_listed() -> Result<()> {
    let listed = listed()?;
    ensure!(
        listed.contains_key(NAME) && listed.contains_key(STUB),
        "xl list shows {listed:?}"
    );
    Ok(())
}

/// From the keyboard to the guest's emulated serial port and back.
fn types_and_is_answered(host: &TestHost, guest: &mut Guest) -> Result<()> {
    guest.types(&host.store, "?")?;
    guest.output_after("xen-guest: answer second=").map(drop)
}

/// Nothing comes while the guest is paused, and again something after. `xl unpause` has libxl send
/// QMP to QEMU.
fn pauses(guest: &mut Guest) -> Result<()> {
    command(&["xl", "pause", NAME])?;
    let mut last = guest.catch_up()?;
    let mut quiet_since = Instant::now();
    let deadline = soon();
    // Output under way may still arrive. A guest that runs would print three lines in this time.
    while quiet_since.elapsed() < Duration::from_secs(3) {
        ensure!(
            Instant::now() < deadline,
            "the paused guest goes on printing"
        );
        thread::sleep(Duration::from_millis(200));
        let now = guest.catch_up()?;
        if now != last {
            (last, quiet_since) = (now, Instant::now());
        }
    }
    let state = listed()?.remove(NAME).unwrap_or_default();
    ensure!(state.contains('p'), "the paused guest's state is {state}");
    command(&["xl", "unpause", NAME])?;
    is_alive(guest).context("after unpausing")
}

/// How QEMU is confined is read from what the stubdomain's kernel reported of the running process.
fn log_has_the_start() -> Result<()> {
    let log = fs::read_to_string(LOG).with_context(|| format!("reading {LOG}"))?;
    let confined = "QEMU: user 1000 1000 1000 1000, capabilities 0000000000000000 of 0000000000000000, no new privileges 1, seccomp 2";
    for part in ["stubdm-run", "privcmd", confined, "; root read-only"] {
        ensure!(log.contains(part), "nothing about {part} in {LOG}:\n{log}");
    }
    Ok(())
}

/// Waits until the stubdomain is down, and looks for the reason where a person would.
pub(super) fn ends_with_reason(store: &Store, guest: &Guest, word: &str) -> Result<()> {
    let deadline = soon();
    loop {
        match listed()?.get(STUB) {
            // c: crashed, as the reason of its end; what is left of it is the toolstack's to
            // destroy.
            Some(state) if state.contains('c') => break,
            Some(state) if state.contains('s') => bail!("the stubdomain's state is {state}"),
            Some(_) => {}
            None => bail!("there is no stubdomain"),
        }
        ensure!(
            Instant::now() < deadline,
            "the stubdomain is still up{}",
            diagnosis()
        );
        thread::sleep(Duration::from_millis(200));
    }
    let log = fs::read_to_string(LOG).with_context(|| format!("reading {LOG}"))?;
    ensure!(
        log.lines()
            .any(|line| line.contains("error") && line.contains("QEMU") && line.contains(word)),
        "no reason with `{word}` in the log{}",
        diagnosis()
    );
    let node = format!(
        "/local/domain/{}/device-model/{}/state",
        guest.stub, guest.id
    );
    let state = store.read_str(&node)?;
    ensure!(
        state.starts_with("error: ") && state.contains(word),
        "{node} says {state}"
    );
    Ok(())
}

/// A change of the arguments after libxl has written them and before the stubdomain reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoiled {
    /// Taken away one by one.
    Emptied,
    /// Replaced by what a Mini-OS stubdomain would get.
    MiniOs,
}

/// The stubdomain ends with a clear word in the log and in the store; libxl gives up and clears
/// everything away.
fn argv_emptied(host: &TestHost) -> Result<()> {
    let (mut create, said) = spoil(&host.store, Spoiled::Emptied)?;
    ensure!(said.contains("dm-argv"), "the store says: {said}");
    // libxl waits 30 seconds for the word `running` and takes no notice of any other.
    let exit = create.exit(soon())?;
    if exit == Exit::Status(0) {
        destroy_leftover();
        bail!(
            "xl create succeeded without arguments for QEMU{}",
            diagnosis()
        );
    }
    let listed = listed()?;
    ensure!(
        !listed.contains_key(NAME) && !listed.contains_key(STUB),
        "xl list shows {listed:?}"
    );
    Ok(())
}

fn argv_of_mini_os(host: &TestHost) -> Result<()> {
    let spoiled = spoil(&host.store, Spoiled::MiniOs).and_then(|(mut create, said)| {
        ensure!(
            said.contains("dm-argv") && said.contains("Mini-OS"),
            "the store says: {said}"
        );
        // How libxl gives up is another test's.
        create.kill(Signal::SIGKILL)?;
        create.exit(soon()).map(drop)
    });
    destroy_leftover();
    spoiled
}

/// Starts the guest and spoils its stubdomain's arguments; returns the stubdomain's report of it in
/// the store, once that is in the log as well.
fn spoil(store: &Store, how: Spoiled) -> Result<(Job, String)> {
    let changes = store.watch("/")?;
    let mut create = start_local(&["xl", "create", CONFIG])?;
    let deadline = soon();
    let mut spoiled = false;
    loop {
        ensure!(
            Instant::now() < deadline,
            "no word in the store; xl create{}{}",
            create.transcript(),
            diagnosis()
        );
        let Some(event) = changes.next(Some(Instant::now() + Duration::from_millis(300)))? else {
            continue;
        };
        if let Some((image, _)) = event.path.split_once("/dm-argv/") {
            if !spoiled {
                spoiled = true;
                match how {
                    Spoiled::Emptied => {
                        let folder = format!("{image}/dm-argv");
                        for name in store.directory(&folder)? {
                            store.rm(&format!("{folder}/{name}"))?;
                        }
                    }
                    Spoiled::MiniOs => {
                        let rights = store.permissions(&format!("{image}/dm-argv"))?;
                        store.rm(&format!("{image}/dm-argv"))?;
                        store.write(&format!("{image}/dmargs"), " -d 5")?;
                        store.set_permissions(&format!("{image}/dmargs"), &rights)?;
                    }
                }
            }
        }
        let parts: Vec<&str> = event.path.split('/').collect();
        let ["", "local", "domain", stub, "device-model", _, "state"] = parts[..] else {
            continue;
        };
        if stub == "0" {
            continue;
        }
        let Ok(said) = store.read_str(&event.path) else {
            continue;
        };
        ensure!(spoiled, "{said}, before the arguments were there");
        ensure!(
            said.starts_with("error: "),
            "without arguments the stubdomain says: {said}"
        );
        while !fs::read_to_string(LOG).is_ok_and(|log| log.contains(&said)) {
            ensure!(
                Instant::now() < deadline,
                "the log does not say `{said}`{}",
                diagnosis()
            );
            thread::sleep(Duration::from_millis(50));
        }
        return Ok((create, said));
    }
}
