//! Parts of the machine for a domU, and the machine's power management.

use anyhow::{Context as _, Result, bail, ensure};
use xen_sys::privcmd::{PirqSource, PortState, Privcmd};
use xen_sys::{DomId, Error, PciFunction};

use super::hypercalls::privcmd;
use crate::guest;
use crate::host::{Place, TestHost, command, outcome};

const EPERM: i32 = 1;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;

fn refused(result: xen_sys::Result<()>, errno: i32, part: &str) -> Result<()> {
    let error = result.err();
    let error = error.with_context(|| format!("{part}: it was not refused"))?;
    ensure!(
        matches!(error, Error::ResourceRefused { .. }) && error.errno() == Some(errno),
        "{error:?}"
    );
    ensure!(error.to_string().contains(part), "{error}");
    Ok(())
}

/// Arm has neither ports nor pirqs of other domains.
const IS_X86: bool = cfg!(target_arch = "x86_64");

fn unsupported<T: std::fmt::Debug>(result: xen_sys::Result<T>) -> Result<()> {
    ensure!(
        matches!(result, Err(Error::Unsupported { .. })),
        "{result:?}"
    );
    Ok(())
}

fn permissions_on_x86(privcmd: &Privcmd, domu: DomId) -> Result<()> {
    // Two ports that no device of the machine has, and two that Xen keeps from domain 0: those of
    // the interrupt controller.
    for allow in [true, false] {
        privcmd.set_ioport_permission(domu, 0x1f00, 2, allow)?;
        privcmd.set_iomem_permission(domu, 0xf0000, 1, allow)?;
    }
    let ports = privcmd.set_ioport_permission(domu, 0x20, 2, true);
    refused(ports, EPERM, "I/O ports 0x20 to 0x21 and domain")?;
    let ports = privcmd.set_ioport_permission(domu, 0xffff, 2, true);
    refused(ports, EINVAL, "I/O ports 0xffff to 0x10000 and domain")?;
    // The local interrupt controller, too.
    let frames = privcmd.set_iomem_permission(domu, 0xfee00, 1, true);
    refused(frames, EPERM, "machine frames 0xfee00 to 0xfee00")
}

fn permissions_on_arm(privcmd: &Privcmd, domu: DomId) -> Result<()> {
    // A frame of the PCI bus, which is domain 0's, and one of memory, which is Xen's.
    for allow in [true, false] {
        privcmd.set_iomem_permission(domu, 0x30000, 1, allow)?;
    }
    let frames = privcmd.set_iomem_permission(domu, 0x40000, 1, true);
    refused(frames, EPERM, "machine frames 0x40000 to 0x40000")?;
    unsupported(privcmd.set_ioport_permission(domu, 0x1f00, 2, true))
}

pub(super) fn permissions(host: &TestHost) -> Result<()> {
    let (privcmd, domu) = (privcmd()?, host.domid(Place::DomU)?);
    if IS_X86 {
        permissions_on_x86(&privcmd, domu)?;
    } else {
        permissions_on_arm(&privcmd, domu)?;
    }
    let irq = privcmd.set_irq_permission(domu, u32::MAX, true);
    refused(irq, EINVAL, "interrupt 4294967295")?;
    let device = PciFunction::new(0, 0x1f, 3, 1).context("an address")?;
    // The machine has no IOMMU.
    let assigned = privcmd.assign_device(domu, device);
    refused(assigned, EOPNOTSUPP, "device 0000:1f:03.1 and domain")?;
    let assignable = privcmd.is_assignable(domu, device).map(drop);
    refused(assignable, EOPNOTSUPP, "XEN_DOMCTL_test_assign_device")?;
    let taken = privcmd.deassign_device(domu, device);
    refused(taken, EOPNOTSUPP, "XEN_DOMCTL_deassign_device")?;

    let none = DomId::new(0x7000);
    let ports = privcmd.set_ioport_permission(none, 0x1f00, 1, true);
    let pirq = privcmd.map_pirq(none, PirqSource::Gsi(20), None).map(drop);
    let of_x86 = [ports, pirq].into_iter().filter(|_| IS_X86);
    let of_all = [
        privcmd.set_irq_permission(none, 9, true),
        privcmd.set_target(none, domu),
        privcmd.set_target(domu, none),
        privcmd.allocate_port(none, DomId::DOM0).map(drop),
    ];
    for (number, error) in of_all.into_iter().chain(of_x86).enumerate() {
        match error {
            Err(Error::NoDomain { domain, .. }) if domain == none => {}
            other => bail!("call {number}: {other:?}"),
        }
    }
    // A PV domain cannot be a target; domain 0 is none on Arm.
    if IS_X86 {
        let target = privcmd.set_target(domu, DomId::DOM0);
        let errno = target.as_ref().err().and_then(Error::errno);
        ensure!(errno == Some(EOPNOTSUPP), "target: {target:?}");
    }

    let port = privcmd.allocate_port(domu, DomId::DOM0)?;
    let status = privcmd.port_status(domu, port)?;
    let dom0 = PortState::Unbound {
        remote: DomId::DOM0,
    };
    ensure!(status.state == dom0, "{status:?}");
    ensure!(privcmd.grant_table_version(domu)? == 1);
    Ok(())
}

/// A line of the interrupt controller that no device of the machine uses.
pub(super) fn pirq(host: &TestHost) -> Result<()> {
    let (privcmd, domu) = (privcmd()?, host.domid(Place::DomU)?);
    if !IS_X86 {
        return unsupported(privcmd.map_pirq(domu, PirqSource::Gsi(23), None));
    }
    let pirq = privcmd.map_pirq(domu, PirqSource::Gsi(23), None)?;
    privcmd.unmap_pirq(domu, pirq)?;
    let again = privcmd.unmap_pirq(domu, pirq);
    let errno = again.as_ref().err().and_then(Error::errno);
    ensure!(errno == Some(EINVAL), "{again:?}");
    let far = privcmd.map_pirq(domu, PirqSource::Gsi(10_000), None);
    let errno = far.as_ref().err().and_then(Error::errno);
    ensure!(errno == Some(EINVAL), "{far:?}");
    Ok(())
}

/// The guest's stubdomain has its target since it was made.
pub(super) fn target(_: &TestHost) -> Result<()> {
    let privcmd = privcmd()?;
    let (model, hvm) = (guest::domid("hvm-dm")?, guest::domid(guest::NAME)?);
    let again = privcmd.set_target(model, hvm);
    let errno = again.as_ref().err().and_then(Error::errno);
    ensure!(errno == Some(EINVAL), "{again:?}");
    Ok(())
}

fn states_on_x86(privcmd: &Privcmd) -> Result<()> {
    let (exit, lines) = outcome(&["xenpm", "get-cpuidle-states", "0"])?;
    let text = lines.join("\n");
    let states = privcmd.idle_states(0)?;
    println!("    idle states {states:?}; xenpm: {exit:?}");
    let total = lines.iter().find_map(|line| {
        let (name, number) = line.split_once(':')?;
        name.contains("total C-states")
            .then(|| number.trim().parse::<usize>().ok())?
    });
    let ours = states.as_ref().map(|states| states.states.len());
    ensure!(total.filter(|&n| n > 0) == ours, "{text}, we {ours:?}");
    // QEMU's machine has none of these.
    ensure!(privcmd.frequency_states(0)?.is_none());
    ensure!(privcmd.average_khz(0)?.is_none());
    for error in [
        privcmd.frequency_states(4000).map(drop),
        privcmd.idle_states(4000).map(drop),
        privcmd.average_khz(4000).map(drop),
    ] {
        let errno = error.as_ref().err().and_then(Error::errno);
        ensure!(errno == Some(EINVAL), "{error:?}");
    }
    Ok(())
}

pub(super) fn power(_: &TestHost) -> Result<()> {
    let privcmd = privcmd()?;
    let cpus = privcmd.phys_info()?.cpus as usize;
    let before = privcmd.cpu_idle_times()?;
    let after = privcmd.cpu_idle_times()?;
    ensure!(before.len() >= cpus && before.len() == after.len());
    ensure!(before.iter().zip(&after).all(|(b, a)| b <= a), "{before:?}");
    let distances = privcmd.numa_distances()?;
    let nodes = privcmd.numa_memory()?.len();
    ensure!(distances.len() == nodes, "{distances:?}");
    // Xen has no NUMA on Arm, and calls everything far.
    let own = if IS_X86 { 10 } else { 20 };
    ensure!(distances[0][0] == Some(own), "{distances:?}");

    if IS_X86 {
        states_on_x86(&privcmd)?;
    } else {
        // Xen manages nothing of these on Arm.
        unsupported(privcmd.idle_states(0))?;
        unsupported(privcmd.frequency_states(0))?;
        unsupported(privcmd.average_khz(0))?;
    }
    privcmd.debug_keys(b"h")?;
    let ring = privcmd.console_ring()?;
    let said = String::from_utf8_lossy(&ring)
        .matches("'h' pressed")
        .count();
    privcmd.debug_keys(b"hh")?;
    let ring = privcmd.console_ring()?;
    let more = String::from_utf8_lossy(&ring)
        .matches("'h' pressed")
        .count();
    ensure!(said >= 1 && more >= said + 2, "{said} and {more}");
    let xl = command(&["xl", "info", "-n"])?.join("\n");
    ensure!(xl.contains(&format!(" {own}")), "{xl}");
    Ok(())
}
