//! The PV guest's root: the test agent as its init, the C programs, the kernel's modules. No
//! privcmd is loaded.

use std::path::PathBuf;

use anyhow::Result;
use stubdm_image::cpio::{Archive, Content};

use super::Parts;

/// Modules of the kernel package that our libraries need. `xen-privcmd` is there so that a test can
/// see that it refuses everything in such a domain.
const MODULES: &[&str] = &[
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xenfs",
    "xen-privcmd",
];

/// Builds the PV guest's image.
pub(crate) fn build(parts: &Parts) -> Result<PathBuf> {
    let mut archive = Archive::root();
    parts.add_modules(&mut archive, MODULES)?;
    for file in &parts.c_programs {
        let name = file
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        parts.add_own(&mut archive, &format!("usr/bin/{name}"), file)?;
    }
    match &parts.agent {
        Some(file) => {
            archive.program("usr/bin/xen-testbed-agent", Content::File(file.clone()));
            archive.link("init", "usr/bin/xen-testbed-agent");
        }
        None => {
            parts.add_busybox(&mut archive)?;
            let script = include_str!("../../assets/domu-shell-init");
            archive.program("init", Content::Bytes(script.as_bytes().to_vec()));
        }
    }
    if let Some(file) = &parts.stubdm_run {
        archive.program("usr/bin/stubdm-run", Content::File(file.clone()));
    }
    parts.write("domu.img", &archive)
}
