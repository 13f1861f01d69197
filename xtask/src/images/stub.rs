//! The stubdomain's root: an init, QEMU with its libraries and firmware, the kernel's modules.

use std::path::PathBuf;

use anyhow::Result;

use super::Parts;
use super::dom0::QEMU_DATA;
use crate::cpio::{Archive, Content};

/// What the kernel package keeps as modules and the device model needs.
const MODULES: &[&str] = &[
    "xen-privcmd",
    "xenfs",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-blkfront",
    "xen-netfront",
    "bridge",
    "tun",
];

/// Builds the stubdomain's image; `shell_init` puts a shell script in our init's place.
pub(crate) fn build(parts: &Parts, shell_init: bool) -> Result<PathBuf> {
    let mut archive = Archive::root();
    parts.add(&mut archive, &["usr/libexec/xen-qemu-system-i386"])?;
    parts.add(&mut archive, QEMU_DATA)?;
    parts.add_modules(&mut archive, MODULES)?;
    match &parts.stubdm_run {
        Some(file) if !shell_init => {
            archive.program("usr/bin/stubdm-run", Content::File(file.clone()));
            archive.link("init", "usr/bin/stubdm-run");
        }
        _ => {
            parts.add_busybox(&mut archive)?;
            let proxy = format!("{}/vchan-socket-proxy", parts.release.xen_bin);
            parts.add(
                &mut archive,
                &["usr/bin/xenstore-read", "usr/bin/xenstore-list", &proxy],
            )?;
            archive.link("usr/bin/vchan-socket-proxy", &format!("/{proxy}"));
            let script = include_str!("../../assets/stub-shell-init");
            archive.program("init", Content::Bytes(script.as_bytes().to_vec()));
        }
    }
    parts.write("stub.img", &archive)
}
