//! Finds QEMU's firmware files where QEMU looks for them.
//!
//! In the ramdisk they are all in one folder, [`FOLDER`], which the init names to QEMU (`-L`):
//! distributions compile different folders into QEMU.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::elf::{inside, plain, resolve};
use crate::read;

/// The firmware's folder in a ramdisk.
pub const FOLDER: &str = "usr/share/qemu";

/// Files without which a guest of xl's defaults does not start: the ROMs of its graphics cards.
pub const NEEDED: &[&str] = &["vgabios-cirrus.bin", "vgabios-stdvga.bin"];

/// Other files, each with the feature that needs it.
pub const OPTIONAL: &[(&str, &str)] = &[
    ("kvmvapic.bin", "some machine types"),
    ("linuxboot_dma.bin", "-kernel"),
    ("vgabios-qxl.bin", "vga=\"qxl\""),
    // QEMU's VNC server reads one, although it is sent scancodes.
    ("keymaps/en-us", "the guest's screen"),
];

/// The emulated network cards that have a boot ROM: QEMU's class of the card, the file.
pub const CARD_ROMS: &[(&str, &str)] = &[
    ("e1000", "efi-e1000.rom"),
    ("e1000-82544gc", "efi-e1000.rom"),
    ("e1000-82545em", "efi-e1000.rom"),
    ("e1000e", "efi-e1000e.rom"),
    ("i82550", "pxe-eepro100.rom"),
    ("i82551", "pxe-eepro100.rom"),
    ("i82557a", "pxe-eepro100.rom"),
    ("i82557b", "pxe-eepro100.rom"),
    ("i82557c", "pxe-eepro100.rom"),
    ("i82558a", "pxe-eepro100.rom"),
    ("i82558b", "pxe-eepro100.rom"),
    ("i82559a", "pxe-eepro100.rom"),
    ("i82559b", "pxe-eepro100.rom"),
    ("i82559c", "pxe-eepro100.rom"),
    ("i82559er", "pxe-eepro100.rom"),
    ("i82562", "pxe-eepro100.rom"),
    ("i82801", "pxe-eepro100.rom"),
    ("ne2k_pci", "efi-ne2k_pci.rom"),
    ("pcnet", "efi-pcnet.rom"),
    ("rtl8139", "efi-rtl8139.rom"),
    ("virtio-net-pci", "efi-virtio.rom"),
    ("virtio-net-pci-non-transitional", "efi-virtio.rom"),
    ("virtio-net-pci-transitional", "efi-virtio.rom"),
    ("vmxnet3", "efi-vmxnet3.rom"),
];

/// Returns QEMU's class of a network card, which `-global` takes, and its boot ROM; `None` for a
/// card that has none or is not known. The model may be an alias of QEMU's.
pub fn card_rom(model: &str) -> Option<(&'static str, &'static str)> {
    let class = match model {
        "e1000-82540em" => "e1000",
        "virtio-net" => "virtio-net-pci",
        own => own,
    };
    CARD_ROMS.iter().find(|(own, _)| *own == class).copied()
}

/// Lists the files of all boot ROMs, each once: [`CARD_ROMS`] has the cards of one ROM in a row.
pub fn card_roms() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    CARD_ROMS.iter().filter_map(move |(_, rom)| {
        let first = *rom != last;
        last = rom;
        first.then_some(*rom)
    })
}

/// Folders of distributions' packages, searched after those QEMU itself names.
const USUAL: &[&str] = &[
    "usr/share/qemu",
    "usr/share/seabios",
    "usr/share/seavgabios",
    "usr/share/vgabios",
    "usr/lib/ipxe/qemu",
    "usr/share/ipxe/qemu",
    "usr/share/ipxe",
    "usr/share/qemu-firmware",
    "usr/share/qemu-kvm",
    "usr/share/qemu-xen/qemu",
    "usr/share/qemu-xen",
    "usr/share/xen/qemu",
    "usr/lib/xen/boot",
    "usr/lib64/xen/boot",
    "usr/libexec/xen/boot",
    "usr/local/share/qemu",
    "usr/local/share/qemu-xen/qemu",
    "usr/local/lib/xen/boot",
    "usr/local/libexec/xen/boot",
    "run/current-system/sw/share/qemu",
];

/// Returns whether `image build` puts a firmware file at this path of a ramdisk.
pub fn in_image(path: &str) -> bool {
    let name = path
        .trim_start_matches('/')
        .strip_prefix(FOLDER)
        .and_then(|rest| rest.strip_prefix('/'));
    name.is_some_and(|name| names().any(|own| own == name))
}

/// Lists the names of all firmware files that a ramdisk can have.
pub fn names() -> impl Iterator<Item = &'static str> {
    let optional = OPTIONAL.iter().map(|(name, _)| *name);
    NEEDED.iter().copied().chain(optional).chain(card_roms())
}

/// The folders of a tree where firmware may be.
#[derive(Clone, Debug)]
pub struct Firmware<'a> {
    tree: &'a Path,
    folders: Vec<String>,
}

impl<'a> Firmware<'a> {
    /// Lists the folders to search: those in `named`, those near QEMU (a path in the tree), those
    /// that its file names, and the usual ones, in this order.
    pub fn of(tree: &'a Path, qemu: &str, named: &[String]) -> Self {
        let mut all: Vec<String> = named.to_vec();
        // Relative to its own folder, as QEMU relocates what was compiled in.
        let mut prefix = inside(tree, qemu).unwrap_or_else(|_| qemu.to_owned());
        while let Some((folder, _)) = prefix.rsplit_once('/') {
            for share in ["share/qemu", "share/qemu-xen/qemu", "share/qemu-xen"] {
                all.push(format!("{folder}/{share}"));
            }
            prefix = folder.to_owned();
        }
        let file = resolve(tree, qemu).and_then(|file| read::contents(&file));
        all.extend(named_in(tree, &file.unwrap_or_default()));
        all.extend(USUAL.iter().map(|dir| (*dir).to_owned()));
        // A folder for each release of Xen: usr/lib/xen-4.17/boot.
        for lib in ["usr/lib", "usr/lib64"] {
            let entries = inside(tree, lib).and_then(|dir| Ok(fs::read_dir(tree.join(dir))?));
            let names = entries.into_iter().flatten().flatten();
            let names = names.filter_map(|entry| entry.file_name().into_string().ok());
            let mut names: Vec<_> = names.filter(|name| name.starts_with("xen-")).collect();
            names.sort();
            all.extend(names.iter().map(|name| format!("{lib}/{name}/boot")));
        }
        let mut seen = BTreeSet::new();
        let trimmed = all.iter().map(|dir| dir.trim_matches('/').to_owned());
        let folders = trimmed.filter(|dir| seen.insert(dir.clone())).collect();
        Self { tree, folders }
    }

    /// Returns the path of a firmware file in the tree.
    pub fn find(&self, name: &str) -> Option<String> {
        let mut places = self.folders.iter().map(|dir| format!("{dir}/{name}"));
        places.find(|path| resolve(self.tree, path).is_ok_and(|file| file.is_file()))
    }

    /// Lists the folders that are searched, for a message.
    pub fn searched(&self) -> String {
        let all: Vec<_> = self.folders.iter().map(|dir| format!("/{dir}")).collect();
        all.join(", ")
    }
}

/// Returns the folders of the tree whose paths are strings in a program.
fn named_in(tree: &Path, program: &[u8]) -> Vec<String> {
    let words = program.split(|&byte| byte == 0);
    let words = words.filter(|word| (2..256).contains(&word.len()) && word.starts_with(b"/"));
    let usual = |&b: &u8| b.is_ascii_alphanumeric() || b"/-_.+".contains(&b);
    let words = words.filter(|word| word.iter().all(usual));
    let mut all: Vec<String> = Vec::new();
    for word in words.filter_map(|word| std::str::from_utf8(word).ok()) {
        // Its data, not its programs and devices.
        let data = word.contains("/share/") || word.contains("/lib");
        if data && resolve(tree, word).is_ok_and(|found| found.is_dir()) {
            all.extend(plain(word));
        }
    }
    all
}
