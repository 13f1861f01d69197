//! The path of dom0's own QEMU stays what it was before `stubdm-run install device-model`.
//!
//! Others find that QEMU by its path: `start-stop-daemon --exec` in init scripts, `pidof`,
//! monitors, AppArmor. The file there is the launcher, and a QEMU that is simply executed runs as
//! `PATH.distrib`. So QEMU gets a mount namespace of its own, with the real file mounted over the
//! launcher's, and is executed by the launcher's path: `/proc/PID/exe` is that path, which on the
//! host is the launcher, which is what a script compares it with.
//!
//! The namespace follows the host's mounts as a slave, for disks that are mounted later. Where the
//! root is not shared with it (a host without systemd), it would not follow; QEMU then runs as
//! `PATH.distrib` in the host's namespace.

use std::fs::{Metadata, metadata, read_to_string};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;

use crate::rt::error::{Context, Failure, Result};

/// The list of this process's mounts.
pub const MOUNTS: &str = "/proc/self/mountinfo";

/// Returns whether mounts on the root reach other namespaces, by the text of [`MOUNTS`]. A line of
/// it, from proc(5): `36 35 98:0 / /mnt rw,noatime shared:1 - ext4 /dev/root rw`.
pub fn root_is_shared(mountinfo: &str) -> bool {
    let on_root = |line: &&str| line.split(' ').nth(4) == Some("/");
    // The last one is on top.
    let Some(line) = mountinfo.lines().rfind(on_root) else {
        return false;
    };
    let optional = line.split(' ').skip(6).take_while(|field| *field != "-");
    optional
        .into_iter()
        .any(|field| field.starts_with("shared:"))
}

/// Mounts `real` over `path` for this process and its children. From now on, to execute `path` is
/// to execute `real`.
///
/// # Errors
/// The root is not shared, or the process may not mount. `path` is then what it was, perhaps in
/// another namespace.
pub fn mount_over(real: &Path, path: &Path) -> Result<()> {
    if !root_is_shared(&read_to_string(MOUNTS).context(MOUNTS)?) {
        return Err(Failure::new("mounts on / are not shared"));
    }
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace")?;
    let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).context("mounts on /")?;
    // The link itself, not where it leads to: that is this program for others too.
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let link = open(path, flags, Mode::empty()).context(path.display())?;
    let target = format!("/proc/self/fd/{}", link.as_raw_fd());
    let bind = MsFlags::MS_BIND;
    mount(
        Some(real),
        target.as_str(),
        None::<&str>,
        bind,
        None::<&str>,
    )
    .context(path.display())?;
    // Else the launcher would start itself forever.
    let same = |a: Metadata, b: Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    let real = metadata(real).context(real.display())?;
    match same(real, metadata(path).context(path.display())?) {
        true => Ok(()),
        false => Err(Failure::new(format_args!(
            "{}: another file",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_on_the_root_decides() {
        let private = "22 1 254:1 / / rw,relatime - ext4 /dev/root rw\n";
        let shared = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n";
        let slave = "22 1 254:1 / / rw,relatime master:4 - ext4 shared:1 rw\n";
        let elsewhere = "23 22 0:5 / /proc rw shared:2 - proc proc rw\n";
        let both = "22 1 254:1 / / rw master:4 shared:7 - ext4 /dev/root rw\n";
        assert!(root_is_shared(shared));
        assert!(root_is_shared(both));
        assert!(root_is_shared(&format!(
            "{private}{elsewhere}{shared}{elsewhere}"
        )));
        for text in [private, slave, "", "x", &format!("{private}{elsewhere}")] {
            assert!(!root_is_shared(text), "{text}");
        }
        assert!(!root_is_shared(&format!("{shared}{private}")));
    }
}
