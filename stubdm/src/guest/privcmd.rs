//! Ties QEMU's privcmd to the guest once it has started, and reports the guest's crash through
//! ours.
//!
//! privcmd is loaded without the kernel's restriction, which QEMU's library does not survive
//! ([`crate::guest::modules`]). It needs that freedom while it starts. Before the guest runs, each
//! descriptor of privcmd that QEMU has is tied to the guest (`IOCTL_PRIVCMD_RESTRICT`: device-model
//! operations on that domain and mappings of its memory, no hypercall), and the device is taken out
//! of its reach, so that it gets no other. The descriptors are QEMU's: they are reached by
//! `pidfd_getfd`, and a file that is restricted is restricted for everybody who has it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::unistd::Pid;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use tracing::{info, warn};
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, Xen};

use crate::rt::error::{Context, Failure, Result};

/// The device, by its names.
const DEVICES: &[&str] = &["/dev/xen/privcmd", "/proc/xen/privcmd"];
/// Devices that QEMU needed for its first hypercalls only.
const TAKEN: &[&str] = &["/dev/xen/privcmd", "/dev/xen/hypercall"];

/// Ties to its guest what QEMU, or a process that it has started, has of privcmd.
///
/// # Errors
/// A descriptor stays free, or may have been missed: the guest must not run with it. With
/// `optional` that is a line in the log.
pub fn tie_down(xen: &Xen, qemu: Pid, guest: DomId, optional: bool) -> Result<()> {
    verdict(
        take_away().and_then(|()| tie_all(xen, qemu, guest)),
        guest,
        optional,
    )
}

/// Judges the result of tying descriptors down.
fn verdict(tied: Result<usize>, guest: DomId, optional: bool) -> Result<()> {
    match tied {
        Ok(count) => info!(
            "privcmd: {count} descriptors of QEMU's are tied to domain {guest}, and refuse hypercalls"
        ),
        Err(failure) if optional => warn!("privcmd: QEMU stays unrestricted: {failure}"),
        Err(failure) => {
            return Err(Failure::new(format_args!(
                "QEMU's privcmd cannot be tied to domain {guest}: {failure}; \
                 the kernel parameter stubdm.allow-unconfined starts the guest all the same"
            )));
        }
    }
    Ok(())
}

/// No process but root's opens the device from now on.
fn take_away() -> Result<()> {
    for device in TAKEN.iter().map(Path::new).filter(|path| path.exists()) {
        let mode = fs::Permissions::from_mode(0o600);
        chown(device, Some(0), Some(0))
            .and_then(|()| fs::set_permissions(device, mode))
            .context(format_args!("taking {} from QEMU", device.display()))?;
    }
    Ok(())
}

/// QEMU's and those of every other process but this one: QEMU may have handed one on.
fn tie_all(xen: &Xen, qemu: Pid, guest: DomId) -> Result<usize> {
    let mut count = tie(xen, qemu, guest)?;
    for entry in fs::read_dir("/proc").context("/proc")?.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = number.map(Pid::from_raw) else {
            continue;
        };
        if pid == qemu || pid == Pid::this() {
            continue;
        }
        match tie(xen, pid, guest) {
            Ok(more) => count += more,
            // It has ended.
            Err(_) if !Path::new("/proc").join(&name).exists() => {}
            Err(failure) => return Err(failure).context(format_args!("process {pid}")),
        }
    }
    Ok(count)
}

fn tie(xen: &Xen, qemu: Pid, guest: DomId) -> Result<usize> {
    let process =
        rustix::process::Pid::from_raw(qemu.as_raw()).ok_or_else(|| Failure::new("no process"))?;
    let numbers = descriptors(qemu)?;
    if numbers.is_empty() {
        return Ok(0);
    }
    let handle = pidfd_open(process, PidfdFlags::empty()).context("the process")?;
    let mut count = 0;
    for number in numbers {
        let fd: OwnedFd = pidfd_getfd(&handle, number, PidfdGetfdFlags::empty())
            .context(format_args!("descriptor {number}"))?;
        let privcmd = Privcmd::adopt(xen, fd).context(format_args!("descriptor {number}"))?;
        let restricted = privcmd
            .restrict(guest)
            .context(format_args!("descriptor {number}"))?;
        if !restricted.refuses_hypercalls() {
            return Err(Failure::new(format_args!(
                "descriptor {number} makes hypercalls all the same"
            )));
        }
        count += 1;
    }
    Ok(count)
}

/// The numbers of a process's descriptors of privcmd.
fn descriptors(process: Pid) -> Result<Vec<i32>> {
    let folder = format!("/proc/{process}/fd");
    let mut numbers = Vec::new();
    for entry in fs::read_dir(&folder).context(&folder)?.flatten() {
        let Ok(file) = fs::read_link(entry.path()) else {
            continue;
        };
        if DEVICES.iter().any(|device| file == Path::new(device)) {
            numbers.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<i32>().ok()),
            );
        }
    }
    Ok(numbers)
}

/// Tells the hypervisor that the guest has crashed.
pub fn crash(xen: &Xen, guest: DomId) {
    let crashed = Privcmd::open(xen).and_then(|privcmd| privcmd.restrict(guest)?.crash());
    match crashed {
        Ok(()) => info!("domain {guest} has crashed: it has no device model any more"),
        Err(error) => warn!("domain {guest} goes on without a device model: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_whose_qemu_is_not_tied_down_does_not_start_unless_that_is_allowed() {
        let guest = DomId::new(5);
        let failed = || Err(Failure::new("descriptor 7: not the device"));
        let failure = verdict(failed(), guest, false).unwrap_err().to_string();
        for part in ["domain 5", "descriptor 7", "stubdm.allow-unconfined"] {
            assert!(failure.contains(part), "{failure}");
        }
        assert_eq!(verdict(failed(), guest, true), Ok(()));
        assert_eq!(verdict(Ok(2), guest, false), Ok(()));
    }

    #[test]
    fn a_process_without_privcmd_has_none_to_be_tied() {
        assert_eq!(descriptors(Pid::this()), Ok(Vec::new()));
    }
}
