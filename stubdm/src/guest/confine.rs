//! Confines QEMU: no root, capabilities, new privileges, namespaces, writable root or kernel log.
//!
//! QEMU parses what the guest makes up. The hypervisor ties this domain to its guest; in here QEMU
//! runs as a user of its own who owns the devices it needs and nothing else. Switching to that user
//! takes all capabilities away, and with no new privileges and an empty bounding set no program can
//! give one back.
//!
//! A new user namespace would: its maker has all capabilities inside, and with them reaches parts
//! of the kernel that are closed to everybody else. So no namespace of any kind can be made in this
//! domain (`/proc/sys/user/max_*_namespaces`), and [`seccomp`] refuses QEMU the calls that make
//! one, among others.
//!
//! QEMU stays root where the administrator configures that. It keeps its capabilities then; the
//! rest still applies. [`pci::broker`](crate::guest::pci::broker) does for it what PCI devices of
//! the guest's own need root for.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::prctl;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::Pid;
use rustix::thread::{
    CapabilitySet, capability_is_in_bounding_set, remove_capability_from_bounding_set,
};
use tracing::warn;

use crate::guest::{InitOptions, seccomp};
use crate::libxl::dm_argv::DmArgv;
use crate::rt::error::{Context, Result};
use crate::rt::process;

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

/// Files that only root reads from now on.
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

    /// Makes the user the owner of a file. Skips a missing file; QEMU reports a failure later.
    pub fn owns(self, path: &Path) {
        if let (true, Err(error)) = (path.exists(), chown(path, Some(self.0), Some(self.0))) {
            warn!("giving {} to QEMU: {error}", path.display());
        }
    }
}

/// The folder of the limits to namespaces, one file a kind.
const LIMITS: &str = "/proc/sys/user";

/// The confinement of a QEMU to be started.
#[derive(Clone, Copy, Debug)]
pub struct Confinement {
    /// Its user; `None` if it has to be root.
    pub user: Option<User>,
    /// It is started also where not all of it can be put up.
    optional: bool,
}

impl Confinement {
    /// Confines the calling thread, and with it what it starts from now on, for good: no new
    /// privileges, no capability in the bounding set unless QEMU is root, the calls of [`seccomp`].
    ///
    /// # Errors
    /// The kernel refuses a part of it, and that was not allowed.
    pub fn enter(self) -> Result<()> {
        let entered = match self.user {
            Some(_) => empty_bounding_set().and_then(|()| seccomp::apply()),
            None => seccomp::apply(),
        };
        match entered {
            Err(failure) if self.optional => {
                warn!("QEMU is not confined as it should be: {failure}");
                Ok(())
            }
            other => other.context(
                "QEMU cannot be confined; the kernel parameter stubdm.allow-unconfined starts it all the same",
            ),
        }
    }
}

/// Closes what can be closed for this whole domain. The rest is done by [`Confinement::enter`].
pub fn prepare(argv: &DmArgv, options: &InitOptions) -> Confinement {
    if let Err(errno) = prctl::set_no_new_privs() {
        warn!("no new privileges: {}", errno.desc());
    }
    let limits = fs::read_dir(LIMITS).into_iter().flatten().flatten();
    let limits = limits.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("max_") && name.ends_with("_namespaces")
    });
    let closed = CLOSED
        .iter()
        .map(|(node, value)| (PathBuf::from(node), *value));
    for (node, value) in closed.chain(limits.map(|limit| (limit, "0"))) {
        if let Err(error) = fs::write(&node, value) {
            warn!("{}: {error}", node.display());
        }
    }
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(errno) = mount(None::<&str>, "/", None::<&str>, flags, None::<&str>) {
        warn!("making the root read-only: {}", errno.desc());
    }
    let optional = options.allow_unconfined;
    if options.qemu_root {
        warn!("QEMU stays root, as it was told to");
        let user = None;
        return Confinement { user, optional };
    }
    let user = User(USER);
    let devices = XEN.iter().map(|&path| path.to_owned());
    for path in devices.chain(argv.disks()).chain(argv.serial_ttys()) {
        user.owns(Path::new(&path));
    }
    Confinement {
        user: Some(user),
        optional,
    }
}

/// No program that this thread starts gains a capability by being root's or by its file.
fn empty_bounding_set() -> Result<()> {
    // Also those that this program has no name for: the kernel refuses the first number after the
    // last.
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) => remove_capability_from_bounding_set(capability)
                .context(format_args!("capability {number}"))?,
            Ok(false) => {}
            Err(_) => break,
        }
    }
    Ok(())
}

/// Returns how a process is confined, as the kernel sees it.
pub fn facts(pid: Pid) -> String {
    let read_only = statvfs("/").is_ok_and(|root| root.flags().contains(FsFlags::ST_RDONLY));
    let root = if read_only { "read-only" } else { "writable" };
    format!("QEMU: {}; root {root}", process::status(pid))
}
