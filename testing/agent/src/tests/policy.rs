//! Unmodified xl acts on a guest with a stubdomain through the built-in policy: the rows that no
//! other test has.
//!
//! One guest for all of it, and one that does not run for its second processor: when such a guest
//! started, the emulated machine hung sometimes (two of four times), and the emulator translated
//! the same code of the guest's BIOS forever. A step is done when xl has ended as it should and the
//! proxy's audit reports that QEMU answered the command, or refused it itself: a command that the
//! policy had denied would not have reached QEMU.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::stubdom::is_alive;
use crate::guest::{Guest, NAME, diagnosis};
use crate::host::{TestHost, command, outcome};
use crate::job::Exit;
use crate::suite::{Needs, Test};

/// The proxy's log.
const LOG: &str = "/var/log/xen/qmp-proxy-hvm-dm.log";

pub(super) fn add(tests: &mut Vec<Test>) {
    tests.push(Test::new(
        "policy/xl_on_one_guest",
        Needs::Package,
        |host| {
            on_a_guest(host, &["-p", "maxvcpus=2"], |guest| {
                vcpu_set(guest).context("vcpu-set")?;
                nothing_was_denied()
            })?;
            on_a_guest(host, &[], steps)
        },
    ));
}

fn on_a_guest(
    host: &TestHost,
    more: &[&str],
    steps: impl FnOnce(&mut Guest) -> Result<()>,
) -> Result<()> {
    let mut guest = Guest::create_with(&host.store, more)
        .with_context(|| format!("creating {NAME}{}", diagnosis()))?;
    let done = steps(&mut guest).with_context(diagnosis);
    guest.destroy()?;
    done
}

fn steps(guest: &mut Guest) -> Result<()> {
    is_alive(guest)?;
    let step = |name: &'static str, done: Result<()>| done.context(name);
    step("USB", usb(guest))?;
    step("PCI", pci(guest))?;
    step("s3resume", s3resume())?;
    step("pause and shutdown", pause_and_shutdown(guest))?;
    nothing_was_denied()
}

/// Returns the audit so far: verdict and name of each command.
fn audit() -> Result<Vec<(String, String)>> {
    let log = fs::read_to_string(LOG).context(LOG)?;
    let lines = log
        .lines()
        .filter_map(|line| Some(&line[line.find("{\"audit\"")?..]));
    lines
        .map(|line| {
            let value: Value = serde_json::from_str(line).context(line.to_owned())?;
            let word = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
            Ok((word("audit"), word("command")))
        })
        .collect()
}

/// Fails unless the audit has this verdict on the latest of these commands, and so often in all.
fn audited(verdict: &str, command: &str, times: usize) -> Result<()> {
    let all = audit()?;
    let found = all.iter().filter(|line| line.1 == command);
    let latest = found.clone().next_back();
    ensure!(
        latest.is_some_and(|line| line.0 == verdict),
        "{command}: the audit says {latest:?} and not {verdict}"
    );
    let count = found.filter(|line| line.0 == verdict).count();
    ensure!(count == times, "{command} was {verdict} {count} times");
    Ok(())
}

fn nothing_was_denied() -> Result<()> {
    let wrong: Vec<_> = audit()?
        .into_iter()
        .filter(|line| ["denied", "refused", "dropped"].contains(&line.0.as_str()))
        .collect();
    ensure!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}

/// Sent as by libxl, by a test client: for requests that libxl itself refuses on this host.
pub(super) fn asked(guest: &Guest, name: &str, arguments: &str) -> Result<(Exit, String)> {
    let (exit, lines) = outcome(&["stubdm-run", "qmp", &guest.id.to_string(), name, arguments])?;
    Ok((exit, lines.join("\n")))
}

/// QEMU itself refuses it, in its own words.
fn refused_by_qemu(guest: &Guest, name: &str, arguments: &str) -> Result<()> {
    let (exit, said) = asked(guest, name, arguments)?;
    ensure!(
        exit == Exit::Status(1) && !said.contains("policy"),
        "{name} {arguments}: {exit}: {said}"
    );
    println!("    {name}: {said}");
    Ok(())
}

/// xl gives up by itself, with a word about why and before QEMU is asked.
fn refused_by_xl(argv: &[&str], word: &str) -> Result<()> {
    let (exit, lines) = outcome(argv)?;
    let said = lines.join("\n");
    ensure!(
        matches!(exit, Exit::Status(status) if status != 0) && said.contains(word),
        "{argv:?}: {exit}: {said}"
    );
    Ok(())
}

/// The second processor is there for QEMU, and stays when the guest is to use one only.
fn vcpu_set(guest: &Guest) -> Result<()> {
    command(&["xl", "vcpu-set", NAME, "2"])?;
    audited("answered", "device_add", 1)?;
    audited("answered", "query-hotpluggable-cpus", 1)?;
    let (exit, said) = asked(guest, "query-cpus-fast", "{}")?;
    let cpus: Value = serde_json::from_str(&said).context(said)?;
    ensure!(
        exit == Exit::Status(0) && cpus.as_array().is_some_and(|cpus| cpus.len() == 2),
        "{exit}: {cpus}"
    );
    command(&["xl", "vcpu-set", NAME, "1"]).map(drop)
}

/// A controller of each version is attached and detached. This host has no USB device to attach:
/// libxl reports that by itself, and its request to QEMU would pass the policy and fail there for
/// the same reason.
fn usb(guest: &Guest) -> Result<()> {
    for (number, (version, ports)) in [("1", "2"), ("2", "6"), ("3", "4")].iter().enumerate() {
        let (version, ports) = (format!("version={version}"), format!("ports={ports}"));
        let attach = [
            "xl",
            "usbctrl-attach",
            NAME,
            "type=devicemodel",
            &version,
            &ports,
        ];
        command(&attach).with_context(|| version.clone())?;
        audited("answered", "device_add", 1 + number)?;
    }
    let listed = command(&["xl", "usb-list", NAME])?.join("\n");
    ensure!(listed.matches("devicemodel").count() == 3, "{listed}");
    let device = ["hostbus=1", "hostaddr=1"];
    let attach = ["xl", "usbdev-attach", NAME, device[0], device[1]];
    refused_by_xl(&attach, "not assignable")?;
    let arguments = r#"{"id": "xenusb-0-1", "driver": "usb-host", "bus": "xenusb-0.0", "port": "1",
        "hostbus": "1", "hostaddr": "1"}"#;
    refused_by_qemu(guest, "device_add", arguments)?;
    refused_by_qemu(guest, "device_del", r#"{"id": "xenusb-0-1"}"#)?;
    for number in 0..3 {
        command(&["xl", "usbctrl-detach", NAME, &number.to_string()])?;
        audited("answered", "device_del", 1 + number)?;
    }
    Ok(())
}

/// This host has no IOMMU, so libxl asks QEMU for nothing; as with USB devices otherwise.
fn pci(guest: &Guest) -> Result<()> {
    refused_by_xl(&["xl", "pci-attach", NAME, "00:02.0"], "cannot be assigned")?;
    let arguments = r#"{"driver": "xen-pci-passthrough", "id": "pci-pt-00_02.0",
        "hostaddr": "0000:00:02.0", "addr": "6.0"}"#;
    refused_by_qemu(guest, "device_add", arguments)?;
    refused_by_qemu(guest, "device_del", r#"{"id": "pci-pt-00_02.0"}"#)?;
    // libxl asks this after it has added or removed a device.
    let (exit, said) = asked(guest, "query-pci", "{}")?;
    ensure!(
        exit == Exit::Status(0) && said.contains("qdev_id"),
        "{exit}: {said}"
    );
    Ok(())
}

/// QEMU receives the command, and reports that the guest does not sleep.
fn s3resume() -> Result<()> {
    let (_, lines) = outcome(&["xl", "trigger", NAME, "s3resume"])?;
    let said = lines.join("\n");
    ensure!(said.contains("not in suspended state"), "{said}");
    audited("failed", "system_wakeup", 1)
}

/// The power button is the hypervisor's, not QEMU's, and this guest does not have it.
fn pause_and_shutdown(guest: &mut Guest) -> Result<()> {
    command(&["xl", "pause", NAME])?;
    command(&["xl", "unpause", NAME])?;
    // The first time was at the guest's creation.
    audited("answered", "cont", 2)?;
    let said = command(&["xl", "shutdown", "-F", NAME])?.join("\n");
    ensure!(said.contains("ACPI power button"), "{said}");
    guest.catch_up()?;
    is_alive(guest)
}
