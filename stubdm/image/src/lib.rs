//! Builds and reads a stubdomain's ramdisk.
//!
//! ```text
//!   a root with packages unpacked ──▶ elf, linker: libraries ─┐
//!                                 ──▶ firmware: where QEMU looks
//!                                 ──▶ kernel, modules: order ─┼─▶ cpio: Archive ──▶ newc, gzip
//!   this program ─────────────────────────────────────────────┘
//! ```
//!
//! The archive depends on nothing but the files it is made from: sorted, owned by root, no times.
//! Two builds from the same files are the same byte for byte.

pub mod build;
pub mod cpio;
pub mod elf;
pub mod firmware;
pub mod kernel;
pub mod linker;
pub mod modules;
pub mod packed;
pub mod read;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use cpio::{Archive, Content};
use firmware::Firmware;
use linker::{Closure, Linker};
use modules::{Driver, Modules};

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
    "xen-fbfront",
    "xen-kbdfront",
    "evdev",
];

/// The optional ones of [`MODULES`], each with the feature that needs it.
pub const OPTIONAL_MODULES: &[(&str, &str)] = &[
    ("xenfs", "nothing that is known"),
    ("xen-netfront", "vif=[...]"),
    ("macvtap", "vif=[...]"),
    ("xen-pcifront", "pci=[...]"),
    ("xen-fbfront", "the guest's screen"),
    ("xen-kbdfront", "keyboard and mouse of the guest's screen"),
    ("evdev", "keyboard and mouse of the guest's screen"),
];

/// The init's path of QEMU in a ramdisk, unless its command line names another.
pub const QEMU: &str = "usr/libexec/xen-qemu-system-i386";

/// The memory a stubdomain with a packed ramdisk was tested with, in MiB: libxl's default.
pub const PACKED_MEMORY: u64 = 128;

/// The least memory a stubdomain with a packed ramdisk of Debian 12 started and ran in, in MiB. With
/// 104 its kernel panics while it unpacks the ramdisk.
pub const PACKED_LEAST: u64 = 112;

/// The least memory a stubdomain with an unpacked ramdisk starts in, in MiB.
pub const UNPACKED_MEMORY: u64 = 192;

/// The size of the ramdisk tested with [`PACKED_MEMORY`], unpacked, in MiB: that of Debian 12.
const TESTED: u64 = 20;

/// Returns the least memory a stubdomain starts in, in MiB, where [`memory`] returns `wanted`: of a
/// packed ramdisk seven eighths, which was tested with Debian 12's (112 MiB) and 13's (182 MiB).
pub fn least_memory(wanted: u64, packed: bool) -> u64 {
    match packed {
        true => wanted / 8 * 7,
        false => UNPACKED_MEMORY,
    }
}

/// Returns the memory to give a stubdomain, in MiB, for a ramdisk of `size` bytes that unpacks to
/// `unpacked`. While the kernel unpacks it, the ramdisk is there twice; the rest is for the kernel
/// and QEMU. A packed one gets what was tested; a larger one gets 64 MiB more and twice what it is
/// larger, which was tested with Debian 13's.
pub fn memory(unpacked: u64, size: u64, packed: bool) -> u64 {
    if packed {
        let size = unpacked.div_ceil(1 << 20);
        if size <= TESTED {
            return PACKED_MEMORY;
        }
        return (PACKED_MEMORY + 64 + 2 * (size - TESTED)).next_multiple_of(16);
    }
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
    /// Files below the root besides the firmware, with the libraries they need.
    pub files: &'a [String],
    /// Folders below the root to look for libraries in, before those of the tree's linker.
    pub libraries: &'a [String],
    /// Folders below the root to look for firmware in, before those of QEMU.
    pub firmware: &'a [String],
    /// Puts all but the init into a compressed file system ([`packed`]), if the kernel can mount
    /// it. Needs an init that mounts it.
    pub pack: bool,
}

/// A ramdisk's archive, and the optional parts it lacks.
#[derive(Clone, Debug)]
pub struct Made {
    /// The root file system.
    pub archive: Archive,
    /// All but the init is in a compressed file system.
    pub packed: bool,
    /// Optional parts that were not found, one line each with the feature that needs it.
    pub lacks: Vec<String>,
}

/// Puts a stubdomain's ramdisk together.
///
/// # Errors
/// A file that every guest needs was not found or cannot be read; the error names it, and the
/// folders searched.
pub fn stubdomain(recipe: &Recipe<'_>, kernel: &Modules) -> Result<Made> {
    let mut archive = Archive::root();
    let mut lacks = Vec::new();
    let linker = Linker::new(recipe.root, recipe.libraries);
    let qemu = add_qemu(&mut archive, &linker, recipe)?;
    let firmware = Firmware::of(recipe.root, &qemu, recipe.firmware);
    add_firmware(&mut archive, recipe.root, &firmware, &mut lacks)?;
    let files: Vec<&str> = recipe.files.iter().map(String::as_str).collect();
    add_with(&mut archive, recipe.root, &linker, &files)?;
    let mut wanted: Vec<&str> = Vec::new();
    for name in MODULES {
        let optional = OPTIONAL_MODULES.iter().find(|(own, _)| own == name);
        match (kernel.driver(name), optional) {
            (Driver::Absent | Driver::Unknown, Some((_, what))) => {
                lacks.push(format!("{}; without it fails: {what}", kernel.lack(name)));
            }
            _ => wanted.push(name),
        }
    }
    wanted.extend(recipe.modules.iter().map(String::as_str));
    add_modules(&mut archive, kernel, &wanted)?;
    let mut packed = false;
    if let Some(init) = recipe.init {
        if recipe.pack {
            match packed::obstacle(kernel) {
                Some(why) => lacks.push(format!(
                    "{why}; without it QEMU is unpacked into memory, and the stubdomain needs more"
                )),
                None => {
                    let mut outer = Archive::root();
                    packed::add(&mut outer, &archive, kernel)?;
                    archive = outer;
                    packed = true;
                }
            }
        }
        let place = "usr/bin/stubdm-run";
        add_closure(&mut archive, recipe.root, linker.closure_of(place, init)?)?;
        archive.program(place, Content::File(init.to_owned()));
        archive.link("init", place);
    }
    Ok(Made {
        archive,
        packed,
        lacks,
    })
}

/// The first QEMU that serves a frame buffer only with `-vga xenfb`, which libxl up to 4.20 does
/// not pass.
pub const ASKED_FOR_SCREENS: (u32, u32) = (9, 1);

/// Returns QEMU's version from what `-version` prints, or from a program that prints it.
pub fn version_in(bytes: &[u8]) -> Option<(u32, u32)> {
    let mark = b"QEMU emulator version ";
    let at = bytes.windows(mark.len()).position(|part| part == mark)?;
    let text = bytes.get(at + mark.len()..)?;
    let text = text.get(..16).unwrap_or(text);
    let mut numbers = text.split(|byte| !byte.is_ascii_digit());
    let mut number = || std::str::from_utf8(numbers.next()?).ok()?.parse().ok();
    Some((number()?, number()?))
}

/// A QEMU in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    /// Its path in a ramdisk, where `$ORIGIN` and its data are.
    pub place: String,
    /// The path of its file in the tree: another one if our launcher is at its place.
    pub file: String,
}

impl Qemu {
    /// Looks for QEMU at a path of a tree: behind our launcher, behind a wrapper script of Nix's
    /// (`.NAME-wrapped` beside it), and at the path itself, in this order.
    ///
    /// # Errors
    /// There is no such file.
    pub fn at(tree: &Path, path: &str) -> Result<Self> {
        let mut moved = SUFFIXES.iter().map(|suffix| format!("{path}{suffix}"));
        if let Some(file) = moved.find(|moved| elf::resolve(tree, moved).is_ok()) {
            let place = path.trim_matches('/').to_owned();
            return Ok(Self { place, file });
        }
        let own = elf::inside(tree, path)?;
        let wrapped = own
            .rsplit_once('/')
            .map(|(folder, name)| format!("{folder}/.{name}-wrapped"));
        let place = wrapped.and_then(|path| elf::inside(tree, &path).ok());
        let place = place.unwrap_or(own);
        let file = place.clone();
        Ok(Self { place, file })
    }

    /// Returns whether dom0 serves a guest's screen with this QEMU: our launcher is at its place,
    /// or the version is older than [`ASKED_FOR_SCREENS`]. `None` if the file shows no version.
    pub fn serves_screens(&self, tree: &Path) -> Option<bool> {
        let launched = SUFFIXES.iter().any(|suffix| self.file.ends_with(suffix));
        let version = || {
            let file = elf::resolve(tree, &self.file).ok()?;
            version_in(&fs::read(file).ok()?)
        };
        if launched {
            return Some(true);
        }
        version().map(|version| version < ASKED_FOR_SCREENS)
    }

    /// Returns whether the file loads Xen's libraries, as a QEMU that was built for Xen does.
    pub fn is_for_xen(&self, tree: &Path) -> bool {
        let needs = elf::resolve(tree, &self.file).and_then(|file| elf::needs(&file));
        needs.ok().flatten().is_some_and(|needs| {
            let mut libraries = needs.libraries.iter();
            libraries.any(|own| own.starts_with("libxen"))
        })
    }
}

/// Puts QEMU into an archive at its own place, and a link where the init looks. Returns its file's
/// path in the tree.
fn add_qemu(archive: &mut Archive, linker: &Linker<'_>, recipe: &Recipe<'_>) -> Result<String> {
    let tree = recipe.root;
    let Qemu { place, file: real } = Qemu::at(tree, recipe.qemu)?;
    let file = elf::resolve(tree, &real)?;
    let script = read::head(&file, 2).is_ok_and(|bytes| bytes == b"#!");
    anyhow::ensure!(
        !script,
        "{} is a script, and the program it starts was not found beside it; --qemu names QEMU itself",
        file.display()
    );
    add_closure(archive, tree, linker.closure_of(&place, &file)?)?;
    archive.program(&place, Content::File(file));
    if !archive.has(QEMU) {
        archive.link(QEMU, &format!("/{place}"));
    }
    Ok(real)
}

fn add_firmware(
    archive: &mut Archive,
    tree: &Path,
    firmware: &Firmware<'_>,
    lacks: &mut Vec<String>,
) -> Result<()> {
    let put = |archive: &mut Archive, name: &str| -> Result<bool> {
        let Some(path) = firmware.find(name) else {
            return Ok(false);
        };
        let file = elf::resolve(tree, &path)?;
        archive.file(&format!("{}/{name}", firmware::FOLDER), Content::File(file));
        Ok(true)
    };
    for name in firmware::NEEDED {
        anyhow::ensure!(
            put(archive, name)?,
            "QEMU's firmware {name} was not found below {} in {}; --firmware-dir names another folder",
            tree.display(),
            firmware.searched()
        );
    }
    let mut missing = Vec::new();
    for rom in firmware::card_roms() {
        if !put(archive, rom)? {
            missing.push(rom);
        }
    }
    if !missing.is_empty() {
        lacks.push(format!(
            "boot ROMs of network cards were not found: {}; without them such a card boots no guest",
            missing.join(", ")
        ));
    }
    for (name, what) in firmware::OPTIONAL {
        if !put(archive, name)? {
            lacks.push(format!(
                "QEMU's firmware {name} was not found; without it fails: {what}"
            ));
        }
    }
    Ok(())
}

/// Puts files of a tree into an archive under their own names, with the libraries they need.
///
/// # Errors
/// A file or a library was not found.
pub fn add(archive: &mut Archive, tree: &Path, paths: &[&str]) -> Result<()> {
    add_with(archive, tree, &Linker::new(tree, &[]), paths)
}

fn add_with(archive: &mut Archive, tree: &Path, linker: &Linker<'_>, paths: &[&str]) -> Result<()> {
    let roots: Vec<String> = paths.iter().map(|&p| p.to_owned()).collect();
    add_closure(archive, tree, linker.closure(&roots)?)?;
    for path in roots {
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
/// The file or a library was not found.
pub fn add_own(archive: &mut Archive, tree: &Path, path: &str, file: &Path) -> Result<()> {
    let linker = Linker::new(tree, &[]);
    add_closure(archive, tree, linker.closure_of(path, file)?)?;
    archive.program(path, Content::File(file.to_owned()));
    Ok(())
}

/// Puts libraries into an archive, with links where every linker looks for those that only a
/// configuration or a cache leads to.
fn add_closure(archive: &mut Archive, tree: &Path, closure: Closure) -> Result<()> {
    for (path, link) in closure {
        if !archive.has(&path) {
            archive.program(&path, Content::File(elf::resolve(tree, &path)?));
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        for folder in ["usr/lib", "usr/lib64"] {
            let place = format!("{folder}/{name}");
            if link && !archive.has(&place) {
                archive.link(&place, &format!("/{path}"));
            }
        }
    }
    Ok(())
}

/// Puts modules and what they depend on into `lib/modules`, with their order in
/// `lib/modules/order`.
///
/// # Errors
/// A module is missing or cannot be read.
pub fn add_modules(archive: &mut Archive, kernel: &Modules, names: &[&str]) -> Result<()> {
    add_modules_to(archive, "lib/modules", kernel, names)
}

/// As [`add_modules`], into another folder.
pub(crate) fn add_modules_to(
    archive: &mut Archive,
    folder: &str,
    kernel: &Modules,
    names: &[&str],
) -> Result<()> {
    let mut order = String::new();
    for (name, content) in kernel.closure(names)? {
        archive.file(&format!("{folder}/{name}"), content);
        order.push_str(&name);
        order.push('\n');
    }
    archive.text(&format!("{folder}/order"), &order);
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
        anyhow::bail!(
            "no kernel's modules were found below {} in {}",
            root.display(),
            Modules::searched()
        );
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_two_numbers_behind_its_name() {
        for (text, expected) in [
            ("QEMU emulator version 9.0.2\nCopyright", Some((9, 0))),
            ("QEMU emulator version 9.1.0 (Debian 1:9.1)", Some((9, 1))),
            ("QEMU emulator version 10.0.2 (v10)", Some((10, 0))),
            ("QEMU emulator version 10", None),
            ("QEMU emulator version x.1", None),
            ("10.0", None),
            ("", None),
        ] {
            assert_eq!(version_in(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_screen_is_served_by_an_old_qemu_or_behind_the_launcher() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        for (version, moved, serves) in [
            ("7.2.22", false, Some(true)),
            ("9.0.4", false, Some(true)),
            ("9.1.0", false, Some(false)),
            ("10.0.2", false, Some(false)),
            ("10.0.2", true, Some(true)),
            ("", true, Some(true)),
            ("", false, None),
        ] {
            let text = format!("\0QEMU emulator version {version} (Debian)\n\0");
            fs::write(tree.join("qemu"), &text).unwrap();
            let _ = fs::remove_file(tree.join("qemu.distrib"));
            if moved {
                fs::write(tree.join("qemu.distrib"), &text).unwrap();
            }
            let qemu = Qemu::at(tree, "/qemu").unwrap();
            assert_eq!(qemu.serves_screens(tree), serves, "{version}, {moved}");
        }
    }

    /// The sizes of the ramdisks of Debian 12 and 13, which were tested with these figures.
    #[test]
    fn a_larger_packed_ramdisk_needs_more_memory_to_start() {
        for (mib, wanted, least) in [(18, 128, 112), (28, 208, 182)] {
            let memory = memory(mib << 20, 0, true);
            assert_eq!((memory, least_memory(memory, true)), (wanted, least));
        }
        assert_eq!(PACKED_LEAST, least_memory(PACKED_MEMORY, true));
        assert_eq!(least_memory(320, false), UNPACKED_MEMORY);
    }
}
