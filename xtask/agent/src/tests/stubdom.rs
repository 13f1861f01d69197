//! A guest with a stubdomain under unmodified xl: its life, and what happens when something in it fails.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use xen_store::Store;

use crate::guest::{CONFIG, Guest, LOG, NAME, STUB, destroy_leftover, diagnosis, listed};
use crate::job::Exit;
use crate::leftovers::{Snapshot, assert_none};
use crate::suite::{Needs, Test};
use crate::world::{World, command, start_local, within};

const XL: Duration = Duration::from_secs(60);

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "stubdom/three_guests_in_turn",
        Needs::Dom0,
        three_in_turn,
    ));
    tests.push(Test::new("stubdom/qemu_killed", Needs::Dom0, qemu_killed));
    tests.push(Test::new(
        "stubdom/dm_argv_emptied",
        Needs::Dom0,
        argv_emptied,
    ));
    tests.push(Test::new(
        "stubdom/dm_argv_never_written",
        Needs::Dom0,
        argv_missing,
    ));
}

/// The first of the three does everything a guest is put through; each has to leave the host as it was.
fn three_in_turn(world: &World) -> Result<()> {
    let before = Snapshot::take(&world.store)?;
    let mut boots = Vec::new();
    for turn in 0..3 {
        let mut guest = Guest::create(&world.store)?;
        let alive = (|| -> Result<()> {
            let boot = guest.says("xen-guest: start boot=", 60)?;
            boots.push(boot.parse::<u32>()?);
            guest.says("xen-guest: disk ok sum=", 60)?;
            is_alive(&mut guest)?;
            if turn == 0 {
                both_listed()?;
                types_and_is_answered(&mut guest)?;
                pauses(&mut guest)?;
                log_tells_of_the_start()?;
            }
            Ok(())
        })();
        guest.destroy()?;
        alive.with_context(|| format!("guest number {}{}", turn + 1, diagnosis()))?;
        assert_none(&world.store, &before, Duration::from_secs(15))
            .with_context(|| format!("after guest number {}", turn + 1))?;
    }
    // The guest counts its boots on its disk: what it wrote had reached the host's file each time.
    ensure!(
        boots[1] == boots[0] + 1 && boots[2] == boots[1] + 1,
        "the boots are {boots:?}"
    );
    Ok(())
}

fn is_alive(guest: &mut Guest) -> Result<()> {
    let line = guest.says("xen-guest: alive second=", 60)?;
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
fn types_and_is_answered(guest: &mut Guest) -> Result<()> {
    guest.types("?")?;
    guest.says("xen-guest: answer second=", 30).map(drop)
}

/// Nothing comes while the guest is paused, and again something after. `xl unpause` has libxl send QMP to QEMU.
fn pauses(guest: &mut Guest) -> Result<()> {
    command(&["xl", "pause", NAME], XL)?;
    let mut last = guest.catch_up()?;
    let mut quiet_since = Instant::now();
    let deadline = within(30);
    // What was under way may still arrive. A guest that runs would print three lines in this time.
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
    command(&["xl", "unpause", NAME], XL)?;
    is_alive(guest).context("after unpausing")
}

fn log_tells_of_the_start() -> Result<()> {
    let log = fs::read_to_string(LOG).with_context(|| format!("reading {LOG}"))?;
    for part in ["stubdm-run", "privcmd"] {
        ensure!(log.contains(part), "nothing about {part} in {LOG}:\n{log}");
    }
    Ok(())
}

/// The ramdisk with one program more, which runs QEMU and kills it when dom0 says so.
fn ramdisk_with_killer() -> Result<&'static str> {
    const IMAGE: &str = "/tmp/stub-killer.img";
    const SCRIPT: &str = "set -e; rm -rf /tmp/killer; mkdir -p /tmp/killer/usr/bin; \
        cp /usr/bin/xen-testbed-agent /tmp/killer/usr/bin/mortal-qemu; cd /tmp/killer; \
        cp /boot/stub.img /tmp/stub-killer.img; \
        find . | cpio -o -H newc 2>/dev/null | gzip -1 >> /tmp/stub-killer.img; rm -rf /tmp/killer";
    command(&["sh", "-c", SCRIPT], XL)?;
    Ok(IMAGE)
}

fn qemu_killed(world: &World) -> Result<()> {
    let image = ramdisk_with_killer()?;
    let result = (|| {
        let ramdisk = format!("stubdomain_ramdisk=\"{image}\"");
        let line = "stubdomain_cmdline=\"console=hvc0 rdinit=/init quiet stubdm.qemu=/usr/bin/mortal-qemu\"";
        let mut guest = Guest::create_with(&world.store, &[&ramdisk, line])
            .with_context(|| format!("creating {NAME}{}", diagnosis()))?;
        let ended = is_alive(&mut guest).and_then(|()| {
            let order = format!("/local/domain/{}/data/kill-qemu", guest.stub);
            world.store.write(&order, "now")?;
            ends_with_reason(&world.store, &guest, "SIGKILL")
        });
        guest.destroy()?;
        ended
    })();
    fs::remove_file(image)?;
    result
}

/// Waits until the stubdomain is down, and looks for the reason where a person would.
pub(super) fn ends_with_reason(store: &Store, guest: &Guest, word: &str) -> Result<()> {
    let deadline = within(60);
    loop {
        match listed()?.get(STUB) {
            // s: shut down; what is left of it is the toolstack's to destroy.
            Some(state) if !state.contains('s') => {}
            _ => break,
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

/// Takes the arguments away after libxl has written them and before the stubdomain reads them.
fn argv_emptied(world: &World) -> Result<()> {
    fails_for_want_of_arguments(world, &[], true)
}

/// libxl writes no arguments at all when one of them is too long for a node, and starts the stubdomain all the same.
fn argv_missing(world: &World) -> Result<()> {
    let long = format!("device_model_args=[\"{}\"]", "x".repeat(5000));
    fails_for_want_of_arguments(world, &[&long], false)
}

fn fails_for_want_of_arguments(world: &World, more: &[&str], empty_it: bool) -> Result<()> {
    let store = &world.store;
    let changes = store.watch("/")?;
    let argv: Vec<&str> = ["xl", "create", CONFIG]
        .iter()
        .chain(more)
        .copied()
        .collect();
    let mut create = start_local(&argv)?;
    let deadline = within(120);
    let mut emptied = false;
    let mut said = None;
    let exit = loop {
        if let Ok(exit) = create.exit(Instant::now()) {
            break exit;
        }
        ensure!(
            Instant::now() < deadline,
            "xl create does not end{}",
            create.transcript()
        );
        let Some(event) = changes.next(Some(Instant::now() + Duration::from_millis(300)))? else {
            continue;
        };
        if let Some((folder, _)) = event.path.split_once("/image/dm-argv/") {
            let folder = format!("{folder}/image/dm-argv");
            if empty_it && !emptied {
                for name in store.directory(&folder)? {
                    store.rm(&format!("{folder}/{name}"))?;
                }
                ensure!(
                    store.directory(&folder)?.is_empty(),
                    "{folder} was filled again"
                );
                emptied = true;
            }
        }
        let parts: Vec<&str> = event.path.split('/').collect();
        if let ["", "local", "domain", stub, "device-model", _, "state"] = parts[..] {
            if let (true, Ok(state)) = (stub != "0", store.read_str(&event.path)) {
                ensure!(state != "running", "running without arguments");
                said.get_or_insert(state);
            }
        }
    };
    if exit == Exit::Status(0) {
        destroy_leftover();
        bail!(
            "xl create succeeded without arguments for QEMU{}",
            diagnosis()
        );
    }
    ensure!(
        emptied == empty_it,
        "the arguments were never seen in the store"
    );
    let said = said.with_context(|| format!("no word in the store{}", diagnosis()))?;
    ensure!(
        said.starts_with("error: ") && said.contains("dm-argv"),
        "the store says: {said}"
    );
    let log = fs::read_to_string(Path::new(LOG)).with_context(|| format!("reading {LOG}"))?;
    ensure!(log.contains(&said), "the log does not say `{said}`:\n{log}");
    let listed = listed()?;
    ensure!(
        !listed.contains_key(NAME) && !listed.contains_key(STUB),
        "xl list shows {listed:?}"
    );
    Ok(())
}
