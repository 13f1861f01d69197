//! The stubdomain's root: as `stubdm-run image build` makes it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use stubdm_image::Recipe;
use stubdm_image::build::{Build, Compress};
use stubdm_image::cpio::Content;

use super::Parts;
use crate::store::write_atomically;

/// Builds the stubdomain's image; `shell_init` puts a shell script in our init's place.
pub(crate) fn build(parts: &Parts, shell_init: bool) -> Result<PathBuf> {
    let init = parts.stubdm_run.as_deref().filter(|_| !shell_init);
    let recipe = Recipe {
        root: &parts.tree.root,
        qemu: stubdm_image::QEMU,
        init,
        modules: &[],
        files: &[],
        libraries: &[],
        firmware: &[],
        pack: true,
    };
    let made = stubdm_image::stubdomain(&recipe, &parts.modules)?;
    ensure!(
        made.lacks.is_empty(),
        "the ramdisk lacks: {}",
        made.lacks.join("; ")
    );
    let mut archive = made.archive;
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

/// Returns the lines of `stubdm-run image build` for the same image, with its and its kernel's
/// paths in dom0; empty if there is no `stubdm-run`.
pub(crate) fn printed(parts: &Parts) -> Result<String> {
    let Some(init) = parts.stubdm_run.clone() else {
        return Ok(String::new());
    };
    let stamp = fs::read_to_string(parts.out.join("stub.img.stamp"))?;
    let (file, mark) = (parts.out.join("printed"), parts.out.join("printed.stamp"));
    if fs::read_to_string(&mark).is_ok_and(|have| have == stamp) {
        return Ok(fs::read_to_string(&file)?);
    }
    let output = parts.out.join("printed.img");
    let build = Build {
        output: &output,
        kernel: None,
        recipe: Recipe {
            root: &parts.tree.root,
            qemu: stubdm_image::QEMU,
            init: Some(&init),
            modules: &[],
            files: &[],
            libraries: &[],
            firmware: &[],
            pack: true,
        },
        compress: Compress::None,
    };
    let text = build.run()?.to_string();
    fs::remove_file(&output)?;
    let kernel = text
        .lines()
        .find_map(|line| line.strip_prefix("stubdomain_kernel="));
    let kernel = kernel.context("no kernel among the printed lines")?;
    let text = text.replace(kernel, "\"/boot/vmlinuz\"");
    let output = std::path::absolute(&output)?.display().to_string();
    let text = text.replace(&output, "/boot/stub.img");
    write_atomically(&file, text.as_bytes())?;
    write_atomically(&mark, stamp.as_bytes())?;
    Ok(text)
}
