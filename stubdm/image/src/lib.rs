//! The stubdomain's ramdisk: what it is made of, and how it is put together and read back.
//!
//! ```text
//!   a root with packages unpacked ──▶ elf: libraries ─┐
//!                                 ──▶ modules: order ─┼─▶ cpio: Archive ──▶ newc, gzip
//!   this program ─────────────────────────────────────┘
//! ```
//!
//! The archive depends on nothing but the files it is made from: sorted, owned by root, no times.
//! Two builds from the same files are the same byte for byte.

pub mod build;
pub mod cpio;
pub mod elf;
pub mod modules;
pub mod read;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use cpio::{Archive, Content};
use modules::Modules;

/// The suffixes of the real QEMU's file where a launcher has its place: the first that exists. The
/// second is `dpkg-divert`'s own.
pub const SUFFIXES: [&str; 2] = [".real", ".distrib"];

/// The kernel modules a device model needs, each with what it depends on.
pub const MODULES: &[&str] = &[
    "xen-privcmd",
    "xenfs",
    "xen-evtchn",
    "xen-gntdev",
    "xen-gntalloc",
    "xen-blkfront",
    "xen-netfront",
    "macvtap",
    "xen-pcifront",
];

/// The firmware QEMU looks for with what libxl asks of it.
pub const QEMU_DATA: &[&str] = &[
    "usr/share/qemu/kvmvapic.bin",
    "usr/share/qemu/linuxboot_dma.bin",
    "usr/share/seabios/vgabios-cirrus.bin",
    "usr/share/seabios/vgabios-qxl.bin",
    "usr/share/seabios/vgabios-stdvga.bin",
];

/// The least memory a stubdomain with such a ramdisk starts in, in MiB.
pub const LEAST_MEMORY: u64 = 192;

/// The memory to give a stubdomain, in MiB, for a ramdisk of `size` bytes that unpacks to
/// `unpacked`: while the kernel unpacks it, the ramdisk is there twice; the rest is for the kernel
/// and QEMU.
pub fn memory(unpacked: u64, size: u64) -> u64 {
    let ramdisk = (unpacked + size).div_ceil(1 << 20);
    (ramdisk + 288).next_multiple_of(16)
}

/// The contents of a stubdomain's ramdisk.
#[derive(Clone, Debug)]
pub struct Recipe<'a> {
    /// Where the packages' files are.
    pub root: &'a Path,
    /// QEMU, below the root.
    pub qemu: &'a str,
    /// The program that becomes `/init`, `stubdm-run`; without one, the caller adds an init.
    pub init: Option<&'a Path>,
    /// Kernel modules besides [`MODULES`].
    pub modules: &'a [String],
    /// Files below the root besides [`QEMU_DATA`], with the libraries they need.
    pub files: &'a [String],
}

/// Puts a stubdomain's ramdisk together.
///
/// # Errors
/// Something it is made of is missing or cannot be read; the error names it.
pub fn stubdomain(recipe: &Recipe<'_>, kernel: &Modules) -> Result<Archive> {
    let mut archive = Archive::root();
    add_qemu(&mut archive, recipe.root, recipe.qemu)?;
    add(&mut archive, recipe.root, QEMU_DATA)?;
    let files: Vec<&str> = recipe.files.iter().map(String::as_str).collect();
    add(&mut archive, recipe.root, &files)?;
    let wanted: Vec<&str> = MODULES
        .iter()
        .copied()
        .chain(recipe.modules.iter().map(String::as_str))
        .collect();
    add_modules(&mut archive, kernel, &wanted)?;
    if let Some(init) = recipe.init {
        add_own(&mut archive, recipe.root, "usr/bin/stubdm-run", init)?;
        archive.link("init", "usr/bin/stubdm-run");
    }
    Ok(archive)
}

/// Puts QEMU into an archive: where our launcher has its place, the real one under its own name.
fn add_qemu(archive: &mut Archive, tree: &Path, path: &str) -> Result<()> {
    let moved = SUFFIXES
        .iter()
        .find_map(|suffix| elf::resolve(tree, &format!("{path}{suffix}")).ok());
    match moved {
        Some(file) => add_own(archive, tree, path, &file),
        None => add(archive, tree, &[path]),
    }
}

/// Puts files of a tree into an archive under their own names, with the libraries they need.
///
/// # Errors
/// A file or a library is missing.
pub fn add(archive: &mut Archive, tree: &Path, paths: &[&str]) -> Result<()> {
    let roots: Vec<String> = paths.iter().map(|&p| p.to_owned()).collect();
    let all = elf::closure(tree, &roots)?;
    for path in all.into_iter().chain(roots) {
        if !archive.has(&path) {
            archive.program(&path, Content::File(elf::resolve(tree, &path)?));
        }
    }
    Ok(())
}

/// Puts a file from outside the tree into an archive as `path`, with the libraries it needs from
/// the tree.
///
/// # Errors
/// The file or a library is missing.
pub fn add_own(archive: &mut Archive, tree: &Path, path: &str, file: &Path) -> Result<()> {
    for library in elf::closure_of(tree, file)? {
        if !archive.has(&library) {
            let file = elf::resolve(tree, &library)?;
            archive.program(&library, Content::File(file));
        }
    }
    archive.program(path, Content::File(file.to_owned()));
    Ok(())
}

/// Puts modules and what they depend on into `lib/modules`, with their order in
/// `lib/modules/order`.
///
/// # Errors
/// A module is missing or cannot be read.
pub fn add_modules(archive: &mut Archive, kernel: &Modules, names: &[&str]) -> Result<()> {
    let mut order = String::new();
    for (name, content) in kernel.closure(names)? {
        archive.file(&format!("lib/modules/{name}"), content);
        order.push_str(&name);
        order.push('\n');
    }
    archive.text("lib/modules/order", &order);
    Ok(())
}

/// The kernel to take the modules of: the named one, the only one, or the one that runs here.
///
/// # Errors
/// There is none, or there are several and none of them is named or runs.
pub fn pick_kernel(root: &Path, named: Option<&str>, running: Option<&str>) -> Result<String> {
    let versions = Modules::versions(root);
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    if let [one] = versions.as_slice() {
        return Ok(one.clone());
    }
    let place = root.join("lib/modules");
    if versions.is_empty() {
        anyhow::bail!("no kernel's modules in {}", place.display());
    }
    let runs = versions.iter().find(|v| Some(v.as_str()) == running);
    runs.cloned().with_context(|| {
        format!(
            "several kernels in {}, name one with --kernel: {}",
            place.display(),
            versions.join(", ")
        )
    })
}

/// The kernel itself below a root, if it is where distributions put it.
pub fn kernel_file(root: &Path, version: &str) -> Option<PathBuf> {
    let names = [
        format!("boot/vmlinuz-{version}"),
        format!("lib/modules/{version}/vmlinuz"),
    ];
    names
        .iter()
        .map(|name| root.join(name))
        .find(|path| path.is_file())
}
