//! Saving and restoring the guest with its stubdomain, by unmodified xl.
//!
//! The guest counts its seconds and reads a mark back from its disk each second: a state that is
//! stale or cut would show in its lines, or would stop it.

use std::fs::{self, File};
use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::altered::{self, HEADER, MAGIC, length, word};
use crate::guest::{Guest, LOG, NAME, diagnosis};
use crate::host::{TestHost, command, outcome};
use crate::job::Exit;
use crate::qmp::Qmp;
use crate::suite::{Needs, Test};

/// Where guests are saved to.
pub(super) const IMAGE: &str = "/tmp/hvm.save";
/// The file that takes the console's records until the domain's end.
const RECORDS: &str = "/var/lib/xen/qemu-save";

pub(super) fn add(tests: &mut Vec<Test>) {
    let mut test = |name: &str, body: fn(&TestHost) -> Result<()>| {
        tests.push(Test::new(name, Needs::Package, move |host| {
            let result = body(host).with_context(diagnosis);
            let _ = fs::remove_file(IMAGE);
            result
        }));
    };
    test("stubdom/save_and_restore", save_and_restore);
    test("stubdom/migrated_to_the_same_host", migrated);
    test("stubdom/saved_three_times", saved_three_times);
    test("stubdom/saves_that_fail", saves_that_fail);
}

/// The second that the guest prints, its disk being what it wrote.
pub(super) fn second(guest: &mut Guest) -> Result<u32> {
    // Whatever the guest is.
    let line = guest.output_after("-guest: alive second=")?;
    ensure!(line.contains("disk=ok"), "the guest says: {line}");
    let number = line.split_whitespace().next().context("no second")?;
    Ok(number.parse()?)
}

/// Goes on where it was: neither from its beginning nor from an older state, and with no time lost
/// to speak of.
pub(super) fn goes_on(guest: &mut Guest, from: u32) -> Result<u32> {
    guest.catch_up()?;
    let now = second(guest)?;
    // A guest whose state is older than its memory would not get this far; one that was started
    // again would print 1.
    ensure!(now > from, "second {now} comes after second {from}");
    Ok(now)
}

/// Restores a guest that was saved by `xl save`, after its domain has ended.
pub(super) fn restore(guest: Guest) -> Result<Guest> {
    guest.has_left()?;
    command(&["xl", "restore", IMAGE])?;
    Guest::running()
}

/// Twice, and the second time only after the state was altered in several ways, each of which is
/// refused.
fn save_and_restore(host: &TestHost) -> Result<()> {
    let mut guest = Guest::create(&host.store)?;
    let mut before = second(&mut guest)?;
    command(&["xl", "save", NAME, IMAGE])?;
    guest = restore(guest)?;
    before = goes_on(&mut guest, before)?;
    command(&["xl", "save", NAME, IMAGE])?;
    guest.has_left()?;
    altered::states_are_refused(&host.store)?;
    command(&["xl", "restore", IMAGE])?;
    guest = Guest::running()?;
    goes_on(&mut guest, before)?;
    let log = fs::read_to_string(LOG)?;
    ensure!(
        log.contains("that of save number 1"),
        "each stubdomain counts its own saves:\n{log}"
    );
    ensure!(
        log.contains("the host is told that /dev/hvc2 is read"),
        "dom0's end did not ask for the ready byte:\n{log}"
    );
    guest.types(&host.store, "?")?;
    guest.output_after("xen-guest: answer second=")?;
    guest.destroy()
}

/// A guest on its way here has another name until it has arrived.
const INCOMING_LOG: &str = "/var/log/xen/qemu-dm-hvm--incoming.log";

/// To this same host: another domain with another stubdomain, while the old ones still run.
fn migrated(host: &TestHost) -> Result<()> {
    let mut guest = Guest::create(&host.store)?;
    let before = second(&mut guest)?;
    let (id, stub) = (guest.id, guest.stub);
    // With an empty `-s` the host's name is the command that receives.
    command(&["xl", "migrate", "-s", "", NAME, "xl migrate-receive"])?;
    guest.has_left()?;
    guest = Guest::running()?;
    ensure!(
        guest.id != id && guest.stub != stub,
        "the guest is domain {id} as before"
    );
    goes_on(&mut guest, before)?;
    let log = fs::read_to_string(INCOMING_LOG).with_context(|| INCOMING_LOG.to_owned())?;
    ensure!(
        log.contains("that of save number 1"),
        "another state was taken:\n{log}"
    );
    guest.types(&host.store, "?")?;
    guest.output_after("xen-guest: answer second=")?;
    guest.destroy()
}

/// Each state replaces the one before in the file that libxl takes it from; the last one is the
/// guest's.
fn saved_three_times(host: &TestHost) -> Result<()> {
    let mut guest = Guest::create(&host.store)?;
    let mut before = second(&mut guest)?;
    let records = format!("{RECORDS}.{}", guest.id);
    for number in 1..=2 {
        command(&["xl", "save", "-c", NAME, IMAGE])?;
        before = goes_on(&mut guest, before)?;
        let file = fs::read(&records).context(records.clone())?;
        let saved = word(&file, 8)?;
        ensure!(
            file.starts_with(MAGIC) && saved == number,
            "{records} begins with save {saved}, not {number}"
        );
        let length = length(&file);
        ensure!(
            file.len() == HEADER + length,
            "{records} has {} bytes, its state {length}",
            file.len()
        );
    }
    command(&["xl", "save", NAME, IMAGE])?;
    guest = restore(guest)?;
    goes_on(&mut guest, before)?;
    let log = fs::read_to_string(LOG)?;
    ensure!(
        log.contains("that of save number 3"),
        "another state was taken:\n{log}"
    );
    guest.destroy()
}

/// The log of the host's proxy.
const PROXY_LOG: &str = "/var/log/xen/qmp-proxy-hvm-dm.log";

/// A small disk on a folder of dom0's.
struct Small(&'static str);

impl Small {
    fn mount(folder: &'static str) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let (tmpfs, none) = (Some("tmpfs"), MsFlags::empty());
        mount(tmpfs, folder, tmpfs, none, Some("size=4m")).context(folder)?;
        Ok(Self(folder))
    }

    /// Fills the file system. A file may still grow to the end of its last page.
    fn fill(&self) -> Result<()> {
        let mut filler = File::create(self.filler())?;
        while filler.write_all(&[1; 4096]).is_ok() {}
        Ok(())
    }

    fn filler(&self) -> String {
        format!("{}/filler", self.0)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // A file still open in it is closed with the process that is ending.
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

/// Saves that fail in three ways. After each the guest continues; at last it is saved and restored.
fn saves_that_fail(host: &TestHost) -> Result<()> {
    let folder = Small::mount("/var/lib/xen")?;
    let mut guest = Guest::create(&host.store)?;
    let mut before = second(&mut guest)?;

    // The state does not fit where libxl takes it from, and QEMU has no information about that.
    // There is no state yet whose room this one could take.
    folder.fill()?;
    before = fails(&mut guest, before, IMAGE)?;
    fs::remove_file(folder.filler())?;
    let said = fs::read_to_string(PROXY_LOG).context(PROXY_LOG)?;
    ensure!(
        said.contains("the guest is not saved: /var/lib/xen/qemu-save."),
        "the proxy does not say why:\n{said}"
    );

    // After the device model's part of it is done: the image's own disk is full.
    let small = Small::mount("/tmp/small")?;
    before = fails(&mut guest, before, "/tmp/small/hvm.save")?;
    drop(small);
    fs::remove_dir("/tmp/small")?;

    // QEMU refuses: its file was taken from it.
    let set = serde_json::json!({"fdset-id": 1});
    Qmp::connect(guest.socket())?.execute("remove-fd", Some(set))?;
    before = fails(&mut guest, before, IMAGE)?;

    command(&["xl", "save", "-c", NAME, IMAGE])?;
    before = goes_on(&mut guest, before)?;
    command(&["xl", "save", NAME, IMAGE])?;
    guest = restore(guest)?;
    goes_on(&mut guest, before)?;
    let log = fs::read_to_string(LOG)?;
    ensure!(
        log.contains("that of save number 4"),
        "another state was taken:\n{log}"
    );
    guest.destroy()
}

/// The save fails and the guest continues.
fn fails(guest: &mut Guest, before: u32, image: &str) -> Result<u32> {
    let (exit, lines) = outcome(&["xl", "save", NAME, image])?;
    let said = lines.join("\n");
    ensure!(
        exit != Exit::Status(0),
        "saved, though it cannot be: {said}"
    );
    goes_on(guest, before).with_context(|| format!("after a save that failed:\n{said}"))
}
