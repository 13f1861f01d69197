//! What QEMU may do through privcmd once it has started, and what we do through it: tell the guest's end.
//!
//! privcmd is loaded without the kernel's restriction, which QEMU's library does not survive ([`super::modules`]). It needs
//! that freedom while it starts. Before the guest runs, each descriptor of privcmd that QEMU has is tied to the guest
//! (`IOCTL_PRIVCMD_RESTRICT`: device-model operations on that domain and mappings of its memory, no hypercall), and the device is taken
//! out of its reach, so that it gets no other. The descriptors are QEMU's: they are reached by `pidfd_getfd`, and a file that
//! is restricted is restricted for everybody who has it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::unistd::Pid;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use tracing::{info, warn};
use xen_sys::privcmd::Privcmd;
use xen_sys::{DomId, Xen};

use crate::error::{Context, Failure, Result};

/// The device, by its names.
const DEVICES: &[&str] = &["/dev/xen/privcmd", "/proc/xen/privcmd"];
/// What QEMU needed for its first hypercalls only.
const TAKEN: &[&str] = &["/dev/xen/privcmd", "/dev/xen/hypercall"];

/// Ties QEMU's privcmd to its guest. What fails is a line in the log.
pub fn tie_down(xen: &Xen, qemu: Pid, guest: DomId) {
    for device in TAKEN.iter().map(Path::new).filter(|path| path.exists()) {
        let mode = fs::Permissions::from_mode(0o600);
        let taken =
            chown(device, Some(0), Some(0)).and_then(|()| fs::set_permissions(device, mode));
        if let Err(error) = taken {
            warn!("taking {} from QEMU: {error}", device.display());
        }
    }
    match tie(xen, qemu, guest) {
        Ok(count) => info!(
            "privcmd: {count} descriptors of QEMU's are tied to domain {guest}, and refuse hypercalls"
        ),
        Err(failure) => warn!("privcmd: QEMU stays unrestricted: {failure}"),
    }
}

fn tie(xen: &Xen, qemu: Pid, guest: DomId) -> Result<usize> {
    let process =
        rustix::process::Pid::from_raw(qemu.as_raw()).ok_or_else(|| Failure::new("no process"))?;
    let handle = pidfd_open(process, PidfdFlags::empty()).context("QEMU's process")?;
    let mut count = 0;
    for number in descriptors(qemu)? {
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

/// The numbers of QEMU's descriptors of privcmd.
fn descriptors(qemu: Pid) -> Result<Vec<i32>> {
    let folder = format!("/proc/{qemu}/fd");
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
