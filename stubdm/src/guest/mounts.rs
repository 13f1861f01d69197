//! The file systems a bare root needs.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use tracing::warn;

struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const fn plain(kind: &'static str, target: &'static str, data: &'static str) -> Mount {
    let flags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
    Mount {
        kind,
        target,
        flags,
        data,
    }
}

const DEVICES: Mount = plain("devtmpfs", "/dev", "mode=0755");

const ALL: &[Mount] = &[
    plain("proc", "/proc", ""),
    plain("sysfs", "/sys", ""),
    DEVICES,
    plain("devpts", "/dev/pts", "mode=0620,ptmxmode=0666"),
    plain("tmpfs", "/dev/shm", "mode=1777"),
    plain("tmpfs", "/run", "mode=0755,size=16m"),
    plain("tmpfs", "/tmp", "mode=1777,size=16m"),
];

const XENFS: Mount = plain("xenfs", "/proc/xen", "");

/// Mounts everything that needs no module. Returns what did not work, for a log that does not
/// exist yet; nothing here is fatal by itself.
pub fn all() -> Vec<String> {
    ALL.iter().filter_map(|m| m.mount().err()).collect()
}

/// Mounts `/dev` alone.
///
/// # Errors
/// The kernel refuses it; the message is for a log.
pub fn devices() -> Result<(), String> {
    DEVICES.mount()
}

/// Mounts `/proc/xen`, which old libraries look into; the devices of today are in `/dev/xen`.
pub fn xenfs() {
    if let Err(note) = XENFS.mount() {
        warn!("{note}");
    }
}

impl Mount {
    fn mount(&self) -> Result<(), String> {
        // It may well exist; if it can neither be made nor be found, mounting fails.
        let _ = DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(self.target);
        let data = (!self.data.is_empty()).then_some(self.data);
        match mount(
            Some(self.kind),
            self.target,
            Some(self.kind),
            self.flags,
            data,
        ) {
            // Mounted by the kernel already.
            Ok(()) | Err(Errno::EBUSY) => Ok(()),
            Err(errno) => Err(format!(
                "mounting {} on {}: {}",
                self.kind,
                self.target,
                errno.desc()
            )),
        }
    }
}
