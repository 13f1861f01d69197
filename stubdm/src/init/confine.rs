//! What QEMU is not given: root, capabilities, new privileges, a root it can write, the kernel's log.
//!
//! QEMU parses what the guest makes up. The hypervisor ties this domain to its guest; in here QEMU runs
//! as a user of its own who owns the devices it needs and nothing else. Switching to that user takes all
//! capabilities away, and with no new privileges no program can give one back.
//!
//! It stays root where it is to be, for PCI devices of the guest's own, which it reaches through files that are root's.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::prctl;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::Pid;
use tracing::warn;

use crate::dmargv::DmArgv;

/// Its user, and group, which have no name in here.
const USER: u32 = 1000;

/// The hypervisor's devices that QEMU opens. Grants are mapped by it, never made: no gntalloc.
const XEN: &[&str] = &[
    "/dev/xen/privcmd",
    "/dev/xen/hypercall",
    "/dev/xen/evtchn",
    "/dev/xen/gntdev",
    "/dev/xen/xenbus",
];

/// What only root reads from now on.
const CLOSED: &[(&str, &str)] = &[
    ("/proc/sys/kernel/dmesg_restrict", "1"),
    ("/proc/sys/kernel/kptr_restrict", "2"),
];

/// A user to run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User(u32);

impl User {
    /// Its number, and its group's.
    pub fn id(self) -> u32 {
        self.0
    }

    /// Gives it a file. What is not there is none of its business; what fails, QEMU will complain of.
    pub fn owns(self, path: &Path) {
        if let (true, Err(error)) = (path.exists(), chown(path, Some(self.0), Some(self.0))) {
            warn!("giving {} to QEMU: {error}", path.display());
        }
    }
}

/// Closes what can be closed, for this process and all that it starts. Gives the user QEMU is to run as;
/// `None` if it has to be root.
pub fn prepare(argv: &DmArgv, root: bool) -> Option<User> {
    if let Err(errno) = prctl::set_no_new_privs() {
        warn!("no new privileges: {}", errno.desc());
    }
    for (node, value) in CLOSED {
        if let Err(error) = fs::write(node, value) {
            warn!("{node}: {error}");
        }
    }
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(errno) = mount(None::<&str>, "/", None::<&str>, flags, None::<&str>) {
        warn!("making the root read-only: {}", errno.desc());
    }
    if root {
        warn!("QEMU stays root, as it was told to");
        return None;
    }
    let user = User(USER);
    let devices = XEN.iter().map(|&path| path.to_owned());
    for path in devices.chain(argv.disks()).chain(argv.serial_ttys()) {
        user.owns(Path::new(&path));
    }
    Some(user)
}

/// How a process is confined, as the kernel sees it.
pub fn facts(pid: Pid) -> String {
    let read_only = statvfs("/").is_ok_and(|root| root.flags().contains(FsFlags::ST_RDONLY));
    let root = if read_only { "read-only" } else { "writable" };
    format!("QEMU: {}; root {root}", status(pid))
}

/// The user, capabilities and restrictions of a process, as the kernel sees them, in one line.
pub fn status(pid: Pid) -> String {
    summary(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default())
}

/// The lines of `/proc/PID/status` that matter, in one.
fn summary(status: &str) -> String {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let words = line.unwrap_or(" ?").split_whitespace();
        words.collect::<Vec<_>>().join(" ")
    };
    format!(
        "user {}, capabilities {}, no new privileges {}, seccomp {}",
        field("Uid:"),
        field("CapPrm:"),
        field("NoNewPrivs:"),
        field("Seccomp:")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_become_one_line() {
        let status = "Name:\tqemu\nUid:\t1000\t1000\t1000\t1000\nCapInh:\t0\nCapPrm:\t0000000000000000\n\
                      NoNewPrivs:\t1\nSeccomp:\t0\nSeccomp_filters:\t0\n";
        assert_eq!(
            summary(status),
            "user 1000 1000 1000 1000, capabilities 0000000000000000, no new privileges 1, seccomp 0"
        );
        assert!(summary("").starts_with("user ?, "));
    }
}
