//! PCI passthrough, on a machine of its own with an IOMMU and devices: `cargo xtask test --only
//! pci`.
//!
//! dom0's pciback is loaded with its defaults, under which a device has another address in the
//! stubdomain than on the host.

mod lifecycle;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::linux::Disk;
use super::save::second;
use crate::guest::{Guest, LOG, NAME, diagnosis};
use crate::host::{TestHost, command, soon};
use crate::linux::sum;
use crate::qmp::Qmp;
use crate::suite::{Needs, Test};

/// The network card, an e1000e.
const CARD: &str = "0000:00:08.0";
/// The disk, an nvme.
const DISK: &str = "0000:00:09.0";
/// QEMU's edu, which a guest can have do DMA of any kind.
const EDU: &str = "0000:00:0a.0";
/// Two more of these, functions of one device.
const PAIR: [&str; 2] = ["0000:00:0b.0", "0000:00:0b.1"];
/// A USB controller, with a disk.
const USB: &str = "0000:00:0c.0";
/// All of them.
const ALL: [&str; 6] = [CARD, DISK, EDU, PAIR[0], PAIR[1], USB];

pub(super) fn add(tests: &mut Vec<Test>) {
    let mut test = |name, body: fn(&TestHost) -> Result<()>| {
        tests.push(Test::new(name, Needs::Package, body));
    };
    test("pci/assignable", assignable);
    test("pci/attached_without_root", attached);
    test("pci/dma_outside_the_guest_is_refused", dma);
    test("pci/linux_drives_card_nvme_and_usb", |host| {
        // With Linux 6.12 as the guest the emulated machine hangs.
        let disk = Disk::make_with_default_kernel()?;
        let result = driven(host, &disk);
        disk.remove().and(result)
    });
    lifecycle::add(tests);
}

/// pciback, which dom0 does not load by itself.
const MODULE: &str = "/lib/modules/xen-pciback.ko";

/// Loads pciback and gives it the devices, if that was not done yet.
fn given() -> Result<()> {
    if !Path::new("/sys/bus/pci/drivers/pciback").exists() {
        command(&["insmod", MODULE])?;
    }
    for device in ALL {
        if !listed()?.iter().any(|line| line == device) {
            command(&["xl", "pci-assignable-add", device])?;
        }
    }
    Ok(())
}

/// The devices that xl shows as assignable.
fn listed() -> Result<Vec<String>> {
    let lines = command(&["xl", "pci-assignable-list"])?;
    let first = |line: &String| line.split_whitespace().next().map(str::to_owned);
    Ok(lines.iter().filter_map(first).collect())
}

/// Xen uses the IOMMU, and the devices can be assigned: xl and the doctor list them.
fn assignable(_: &TestHost) -> Result<()> {
    let info = command(&["xl", "info"])?;
    let words = info
        .iter()
        .find_map(|line| line.strip_prefix("virt_caps"))
        .context("xl info has no virt_caps")?;
    ensure!(words.contains("hvm_directio"), "virt_caps{words}");
    given()?;
    let mut listed = listed()?;
    listed.sort_unstable();
    ensure!(listed == ALL, "assignable: {listed:?}");
    let said = command(&["stubdm-run", "doctor"])?;
    let said: Vec<&String> = said.iter().filter(|line| line.contains("  pci ")).collect();
    let has = |line: &String, device: &str| line.contains(&format!("{device}: "));
    let all =
        said.len() == ALL.len() && said.iter().zip(ALL).all(|(line, device)| has(line, device));
    ensure!(all, "the doctor lists {said:#?}");
    ensure!(
        said[0].contains("8086:10d3, class 020000, is with pciback; reset by "),
        "{}",
        said[0]
    );
    Ok(())
}

/// The stubdomain's memory: its kernel's PCI frontend brings 64 MiB of bounce buffers.
const MEMORY: &str = "stubdomain_memory=192";

/// A guest that begins without a device can get one later.
const PASSTHROUGH: &str = "passthrough=\"enabled\"";
/// xl makes a new guest when it restarts.
const RESTART: &str = "on_reboot=\"restart\"";

/// Returns the names of the passed-through devices that QEMU has.
fn passed(guest: &Guest) -> Result<Vec<String>> {
    let mut qmp = Qmp::connect(guest.socket())?;
    let buses = qmp.execute("query-pci", None)?;
    let devices = buses.as_array().context("no buses")?.iter();
    let devices = devices.flat_map(|bus| bus["devices"].as_array().cloned().unwrap_or_default());
    let names = devices.filter_map(|device| device["qdev_id"].as_str().map(str::to_owned));
    let mut names: Vec<String> = names.filter(|name| name.starts_with("pci-pt-")).collect();
    names.sort_unstable();
    Ok(names)
}

/// Waits until xl shows a device as assignable again.
fn is_assignable_again(device: &str) -> Result<()> {
    let deadline = soon();
    while !listed()?.iter().any(|line| line == device) {
        ensure!(
            Instant::now() < deadline,
            "{device} is not assignable again"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// At creation and while the guest runs, with a QEMU that is as unprivileged as any.
fn attached(host: &TestHost) -> Result<()> {
    given()?;
    let card = format!("pci=[\"{CARD},permissive=1\"]");
    let guest = Guest::create_with(&host.store, &[&card, MEMORY])
        .with_context(|| format!("creating {NAME}{}", diagnosis()))?;
    let result = come_and_go(&guest).with_context(diagnosis);
    guest.destroy()?;
    result?;
    is_assignable_again(CARD)?;
    is_assignable_again(DISK)
}

fn come_and_go(guest: &Guest) -> Result<()> {
    ensure!(passed(guest)? == ["pci-pt-00_08.0"], "{:?}", passed(guest));
    let attached = format!("{DISK},permissive=1");
    command(&["xl", "pci-attach", NAME, &attached])?;
    let both = ["pci-pt-00_08.0", "pci-pt-00_09.0"];
    ensure!(passed(guest)? == both, "{:?}", passed(guest));
    let log = fs::read_to_string(LOG).context(LOG)?;
    for part in [
        "QEMU: user 1000 1000 1000 1000, capabilities 0000000000000000 of 0000000000000000",
        "PCI: 0000:00:08.0, in here 0000:00:00.0: QEMU opened it",
        "PCI: 0000:00:09.0, in here 0000:00:01.0: QEMU opened it",
    ] {
        ensure!(log.contains(part), "nothing about `{part}`");
    }
    for part in ["hypercall of QEMU's", "QEMU cannot open it"] {
        ensure!(!log.contains(part), "`{part}` in the log");
    }
    Ok(())
}

/// The device copies within the guest's memory; an address that the guest has no memory at is
/// refused by the IOMMU, and Xen's log has the device and the address.
fn dma(host: &TestHost) -> Result<()> {
    given()?;
    let device = format!("pci=[\"{EDU},permissive=1\"]");
    let mut guest = Guest::create_with(&host.store, &[&device, MEMORY])?;
    let result = (|| -> Result<()> {
        guest.output_after("xen-guest: alive second=")?;
        guest.types(&host.store, "^")?;
        let said = guest.output_after("xen-guest: dma ")?;
        ensure!(said.starts_with("inside=0x5a5aa5a5 outside="), "{said}");
        ensure!(!said.ends_with("outside=0x5a5aa5a5"), "{said}");
        guest.output_after("xen-guest: alive second=").map(drop)
    })();
    let log = command(&["xl", "dmesg"])?;
    guest.destroy()?;
    result.with_context(diagnosis)?;
    // The log has the address's page.
    let fault = |line: &String| line.contains(EDU) && line.contains("fault addr c000000");
    let last = &log[log.len().saturating_sub(12)..];
    ensure!(
        log.iter().any(fault),
        "no fault in Xen's log:\n{}",
        last.join("\n")
    );
    is_assignable_again(EDU)
}

/// The file that the card's network serves; the disk begins with the same bytes.
const DATA: &str = "/job/pci-data";

/// Linux as the guest has the devices by its own drivers, by DMA and MSI-X; two of them are
/// attached while it runs, and one is detached. The guest that xl makes when it has Linux restart
/// can have them again.
fn driven(host: &TestHost, disk: &Disk) -> Result<()> {
    given()?;
    let devices = format!("pci=[\"{CARD},permissive=1\"]");
    let more = [&*devices, MEMORY, PASSTHROUGH, RESTART, &disk.line()];
    let mut guest = Guest::create_with(&host.store, &more)?;
    used(&mut guest).with_context(diagnosis)?;
    let reboot = |_: &Guest| command(&["xl", "reboot", NAME]).map(drop);
    guest = guest
        .restarts_by(&host.store, reboot)
        .with_context(diagnosis)?;
    let result = (|| {
        for device in [CARD, DISK, USB] {
            is_assignable_again(device)?;
            command(&["xl", "pci-attach", NAME, &format!("{device},permissive=1")])?;
        }
        let all = ["pci-pt-00_08.0", "pci-pt-00_09.0", "pci-pt-00_0c.0"];
        ensure!(passed(&guest)? == all, "{:?}", passed(&guest));
        Ok(())
    })();
    guest.destroy()?;
    result.with_context(diagnosis)?;
    [CARD, DISK, USB]
        .into_iter()
        .try_for_each(is_assignable_again)
}

fn used(guest: &mut Guest) -> Result<()> {
    let data = fs::read(DATA).context(DATA)?;
    let wanted = format!("sum=0x{:08x} bytes={}", sum(&data), data.len());
    for (name, later) in [("e1000e", None), ("nvme", Some(DISK)), ("xhci", Some(USB))] {
        if let Some(device) = later {
            command(&["xl", "pci-attach", NAME, &format!("{device},permissive=1")])?;
        }
        let said = guest.output_after(&format!("linux-guest: passed {name} "))?;
        println!("    {name}: {said}");
        let (read, messages) = said.split_once(" msix=").context("no count")?;
        ensure!(read == wanted, "{name} has {read}, not {wanted}");
        ensure!(messages.parse::<u32>()? > 0, "{name}: no message came");
    }
    leaves(guest)?;
    second(guest).map(drop)
}

/// Linux lets the nvme go when QEMU asks for it.
fn leaves(guest: &mut Guest) -> Result<()> {
    let id = serde_json::json!({"id": "pci-pt-00_09.0"});
    Qmp::connect(guest.socket())?.execute("device_del", Some(id))?;
    let deadline = soon();
    while passed(guest)? != ["pci-pt-00_08.0", "pci-pt-00_0c.0"] {
        ensure!(Instant::now() < deadline, "{:?} stay", passed(guest));
        std::thread::sleep(Duration::from_secs(1));
    }
    let log = fs::read_to_string(LOG).context(LOG)?;
    ensure!(!log.contains("hypercall of QEMU's"), "a hypercall failed");
    Ok(())
}
