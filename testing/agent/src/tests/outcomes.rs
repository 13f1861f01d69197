//! A QEMU that does not start, floods, hangs or crashes leaves a reason in the log and in the
//! store, `crash` as the way in which stubdomain and guest ended, and a toolstack that still works.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use xen_store::Store;

use super::stubdom::{ends_with_reason, is_alive};
use crate::guest::{CONFIG, Guest, LOG, NAME, STUB, destroy_leftover, diagnosis, listed};
use crate::host::{TestHost, command, soon, start_local};
use crate::qmp::Qmp;
use crate::roles::mortal::{BREAK_OUT, DONE, ORDER};
use crate::suite::{Needs, Test};

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "stubdom/image_without_a_shell",
        Needs::Package,
        |_| no_shell(),
    ));
    tests.push(Test::new(
        "stubdom/qemu_does_not_start",
        Needs::Package,
        does_not_start,
    ));
    tests.push(Test::new(
        "stubdom/qemu_floods_hangs_and_crashes",
        Needs::Package,
        floods_hangs_and_crashes,
    ));
}

/// There is nothing in the stubdomain's ramdisk that runs scripts.
fn no_shell() -> Result<()> {
    let files = command(&["stubdm-run", "image", "inspect", "/boot/stub.img"])?;
    // Mode, length, path, and where a link leads.
    let name = |line: &String| {
        let path = line.split_whitespace().nth(2).unwrap_or_default();
        path.rsplit('/').next().unwrap_or_default().to_owned()
    };
    let names: Vec<String> = files.iter().map(name).collect();
    ensure!(
        names.iter().any(|name| name == "xen-qemu-system-i386"),
        "not the image: {names:?}"
    );
    const SHELLS: [&str; 8] = [
        "sh", "ash", "bash", "dash", "busybox", "perl", "python3", "toybox",
    ];
    let found: Vec<&String> = names
        .iter()
        .filter(|name| SHELLS.contains(&name.as_str()))
        .collect();
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

/// The configuration's command line for the stubdomain, with more words.
pub(super) fn command_line(more: &str) -> Result<String> {
    let config = fs::read_to_string(CONFIG).context(CONFIG)?;
    let line = config
        .lines()
        .find_map(|line| line.strip_prefix("stubdomain_cmdline=\""))
        .context("no stubdomain_cmdline")?;
    Ok(format!(
        "stubdomain_cmdline=\"{} {more}\"",
        line.trim_end_matches('"')
    ))
}

/// An unknown option of QEMU; a privcmd that is restricted from the start, which this QEMU does not
/// survive.
fn does_not_start(host: &TestHost) -> Result<()> {
    // Not for the QEMU in dom0 as well.
    let option = "device_model_args_hvm=[\"-no-such-option\"]".to_owned();
    let restricted = command_line("stubdm.privcmd-restricted")?;
    // QEMU's message about a restricted privcmd differs from release to release.
    for (more, named) in [(option, "no-such-option"), (restricted, "")] {
        let ended =
            fails(&host.store, &more, named).with_context(|| format!("with {more}{}", diagnosis()));
        destroy_leftover();
        ended?;
    }
    Ok(())
}

/// Starts the guest with one line more of configuration. Its stubdomain has to end, with QEMU's
/// last words as the reason; they contain `named`.
fn fails(store: &Store, more: &str, named: &str) -> Result<()> {
    let said = does_not_run(store, &["xl", "create", CONFIG, more])?;
    let words = said.strip_prefix("error: QEMU ended with status 1; its last words: ");
    ensure!(
        words.is_some_and(|words| !words.trim().is_empty() && words.contains(named)),
        "the store says {said}"
    );
    let log = fs::read_to_string(LOG).context(LOG)?;
    ensure!(log.contains(&said), "the log does not say `{said}`");
    Ok(())
}

/// Has `xl` make a guest whose stubdomain ends before it is running; gives the reason in the store.
pub(super) fn does_not_run(store: &Store, xl: &[&str]) -> Result<String> {
    let changes = store.watch("/local/domain")?;
    let mut create = start_local(xl)?;
    let deadline = soon();
    let said = loop {
        let event = changes
            .next(Some(deadline))?
            .context("no word in the store")?;
        let parts: Vec<&str> = event.path.split('/').collect();
        let ["", "local", "domain", stub, "device-model", _, "state"] = parts[..] else {
            continue;
        };
        if stub != "0" {
            break store.read_str(&event.path)?;
        }
    };
    state_of(STUB, 'c')?;
    // libxl would wait for the word `running` until its 30 seconds are over.
    create.kill(Signal::SIGKILL)?;
    create.exit(soon())?;
    Ok(said)
}

/// Waits until a domain's state, as `xl list` shows it, has this letter.
fn state_of(name: &str, letter: char) -> Result<()> {
    let deadline = soon();
    loop {
        let state = listed()?.remove(name).unwrap_or_default();
        if state.contains(letter) {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the state of {name} is `{state}`"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The ramdisk with an additional program, which runs QEMU and spoils it when dom0 requests it.
pub(super) fn ramdisk_with_killer() -> Result<&'static str> {
    const IMAGE: &str = "/tmp/stub-killer.img";
    const SCRIPT: &str = "set -e; rm -rf /tmp/killer; mkdir -p /tmp/killer/packed/extra; \
        cp /usr/bin/xen-testbed-agent /tmp/killer/packed/extra/mortal-qemu; cd /tmp/killer; \
        cp /boot/stub.img /tmp/stub-killer.img; \
        find . | cpio -o -H newc 2>/dev/null | gzip -1 >> /tmp/stub-killer.img; rm -rf /tmp/killer";
    command(&["sh", "-c", SCRIPT])?;
    Ok(IMAGE)
}

fn floods_hangs_and_crashes(host: &TestHost) -> Result<()> {
    let image = ramdisk_with_killer()?;
    let result = (|| {
        let ramdisk = format!("stubdomain_ramdisk=\"{image}\"");
        let line = command_line("stubdm.qemu=/extra/mortal-qemu stubdm.hang-after=3")?;
        let mut guest = Guest::create_with(&host.store, &[&ramdisk, &line])
            .with_context(|| format!("creating {NAME}{}", diagnosis()))?;
        let spoiled = is_alive(&mut guest)
            .and_then(|()| is_kept_in(&host.store, &guest))
            .and_then(|()| floods(&host.store, &mut guest))
            .and_then(|()| hangs(&host.store, &mut guest))
            .and_then(|()| crashes(&host.store, &guest))
            .with_context(diagnosis);
        guest.destroy()?;
        spoiled
    })();
    fs::remove_file(image)?;
    result
}

/// A node of the stubdomain's own.
fn node(guest: &Guest, name: &str) -> String {
    format!("/local/domain/{}/{name}", guest.stub)
}

pub(super) fn order(store: &Store, guest: &Guest, order: &str) -> Result<()> {
    Ok(store.write(&node(guest, ORDER), order)?)
}

/// Waits until a node of the stubdomain has the expected value.
fn expect_node(store: &Store, guest: &Guest, name: &str, wanted: &str) -> Result<()> {
    let path = node(guest, name);
    let found = |value: Option<&[u8]>| (value? == wanted.as_bytes()).then_some(());
    let said = store.wait_for(&path, Some(soon()), found)?;
    said.with_context(|| format!("{path} says {:?} and not `{wanted}`", store.read_str(&path)))
}

/// A process of QEMU's identity makes no namespace and gains no capability. Why it failed is in the
/// stubdomain's log.
fn is_kept_in(store: &Store, guest: &Guest) -> Result<()> {
    order(store, guest, BREAK_OUT)?;
    expect_node(store, guest, DONE, BREAK_OUT)
}

/// More than the log takes, on QEMU's standard error and as events on all its monitors: the log
/// stays small, the guest and libxl's QMP continue.
fn floods(store: &Store, guest: &mut Guest) -> Result<()> {
    const LINES: &str = "20000";
    for flood in ["flood-log", "flood-monitors"] {
        let flood = format!("{flood} {LINES}");
        order(store, guest, &flood)?;
        let status = Qmp::connect(guest.socket())?.execute("query-status", None)?;
        ensure!(status["running"] == true, "QEMU says {status}");
        expect_node(store, guest, DONE, &flood)?;
    }
    guest.catch_up()?;
    is_alive(guest)?;
    let log = fs::read(LOG).context(LOG)?;
    ensure!(log.len() < 200_000, "the log has {} bytes", log.len());
    let log = String::from_utf8_lossy(&log);
    ensure!(
        log.contains("lines are left out"),
        "nothing is said to be left out"
    );
    let tied = "descriptors of QEMU's are tied to domain";
    ensure!(
        log.contains(tied),
        "nothing of privcmd's restriction:\n{log}"
    );
    // The log has QMP only on request.
    ensure!(!log.contains("query-status"), "QMP is in the log:\n{log}");
    expect_node(store, guest, "data/stubdm", "running")
}

/// Reported and left alone; the toolstack continues; so does the guest, when QEMU does.
fn hangs(store: &Store, guest: &mut Guest) -> Result<()> {
    order(store, guest, "SIGSTOP")?;
    let trouble = "trouble: QEMU has not answered for 3 s";
    expect_node(store, guest, "data/stubdm", trouble)?;
    for name in [NAME, STUB] {
        let state = listed()?.remove(name).unwrap_or_default();
        ensure!(
            !state.is_empty() && !state.contains(['s', 'c']),
            "{name} is {state}"
        );
    }
    let log = fs::read(LOG).context(LOG)?;
    ensure!(
        String::from_utf8_lossy(&log).contains(trouble),
        "the log does not say so"
    );
    order(store, guest, "SIGCONT")?;
    expect_node(store, guest, "data/stubdm", "running")?;
    guest.catch_up()?;
    is_alive(guest)
}

/// The reason is where a person looks for it, and so is the guest's end: it has crashed as well.
fn crashes(store: &Store, guest: &Guest) -> Result<()> {
    order(store, guest, "SIGSEGV")?;
    ends_with_reason(store, guest, "SIGSEGV")?;
    state_of(NAME, 'c').context("of a guest without a device model")?;
    let said = store.read_str(&node(guest, "data/stubdm"))?;
    ensure!(
        said.starts_with("error: QEMU was killed by SIGSEGV"),
        "{said}"
    );
    Ok(())
}
