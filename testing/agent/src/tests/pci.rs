//! PCI passthrough, on a machine of its own with an IOMMU and two devices: `cargo xtask test --only
//! pci`.
//!
//! dom0's pciback is loaded with its defaults, under which a device has another address in the
//! stubdomain than on the host.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::suite::{Needs, Test};
use crate::world::{World, command};

/// The network card, an e1000e.
const CARD: &str = "0000:00:08.0";
/// The disk, an nvme.
const DISK: &str = "0000:00:09.0";

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new("pci/assignable", Needs::Dom0, assignable));
}

/// Loads pciback and gives it both devices, if that was not done yet.
fn given() -> Result<()> {
    if !Path::new("/sys/bus/pci/drivers/pciback").exists() {
        command(&["insmod", "/lib/modules/xen-pciback.ko"])?;
    }
    for device in [CARD, DISK] {
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

/// Xen uses the IOMMU, and both devices can be assigned.
fn assignable(_: &World) -> Result<()> {
    let info = command(&["xl", "info"])?;
    let words = info
        .iter()
        .find_map(|line| line.strip_prefix("virt_caps"))
        .context("xl info has no virt_caps")?;
    ensure!(words.contains("hvm_directio"), "virt_caps{words}");
    given()?;
    let listed = listed()?;
    ensure!(listed == [CARD, DISK], "assignable: {listed:?}");
    Ok(())
}
