//! The stubdomain's root: as `stubdm-run image build` makes it.

use std::path::PathBuf;

use anyhow::Result;
use stubdm::image::cpio::Content;
use stubdm::image::{self, Recipe};

use super::Parts;

/// Builds the stubdomain's image; `shell_init` puts a shell script in our init's place.
pub(crate) fn build(parts: &Parts, shell_init: bool) -> Result<PathBuf> {
    let init = parts.stubdm_run.as_deref().filter(|_| !shell_init);
    let recipe = Recipe {
        root: &parts.tree.root,
        qemu: "usr/libexec/xen-qemu-system-i386",
        init,
        modules: &[],
        files: &[],
    };
    let mut archive = image::stubdomain(&recipe, &parts.modules)?;
    if init.is_none() {
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
    parts.write("stub.img", &archive)
}
