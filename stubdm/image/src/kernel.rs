//! Finds a kernel's file where distributions put it, and reads the version in its header.

use std::fs;
use std::path::{Path, PathBuf};

use crate::elf::{inside, resolve};
use crate::read;

/// Bytes of a bzImage that are read: the version is near its beginning.
const HEAD: u64 = 64 << 10;

/// Paths of kernels, `{}` for the version. At those without it, the file's header is read.
const PLACES: &[&str] = &[
    "boot/vmlinuz-{}",
    "lib/modules/{}/vmlinuz",
    "boot/kernel-{}",
    "boot/bzImage-{}",
    "boot/vmlinux-{}",
    "lib/modules/{}/vmlinux",
    "run/booted-system/kernel",
    "run/current-system/kernel",
];

/// Lists the places where a kernel's file is looked for, for a message.
pub fn places(version: &str) -> String {
    let all: Vec<_> = PLACES
        .iter()
        .map(|place| format!("/{}", place.replace("{}", version)))
        .collect();
    format!("{} and every file in /boot", all.join(", "))
}

/// Finds the kernel of a version below a root: by the file's name, or by the version in its header
/// (Alpine's `/boot/vmlinuz-lts`).
pub fn file(root: &Path, version: &str) -> Option<PathBuf> {
    let is_there = |path: &String| resolve(root, path).is_ok_and(|file| file.is_file());
    let named = PLACES.iter().filter(|place| place.contains("{}"));
    let mut named = named.map(|place| place.replace("{}", version));
    if let Some(path) = named.find(is_there) {
        return Some(root.join(path));
    }
    let folder = inside(root, "boot").and_then(|dir| Ok(fs::read_dir(root.join(dir))?));
    let names = folder.into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut all: Vec<_> = names.map(|name| format!("boot/{name}")).collect();
    all.sort();
    let others = PLACES.iter().filter(|place| !place.contains("{}"));
    all.extend(others.map(|place| (*place).to_owned()));
    let is_it = |path: &String| {
        let file = resolve(root, path).ok();
        file.and_then(|file| version_of(&file)).as_deref() == Some(version)
    };
    all.into_iter().find(is_it).map(|path| root.join(path))
}

/// Reads the version in a bzImage's header (`Documentation/arch/x86/boot.rst`); `None` for other
/// files.
pub fn version_of(file: &Path) -> Option<String> {
    let head = read::head(file, HEAD).ok()?;
    if head.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let at = head.get(0x20e..0x210)?;
    let at = usize::from(u16::from_le_bytes([*at.first()?, *at.get(1)?])) + 0x200;
    let text = head.get(at..)?.split(|&byte| byte == 0).next()?;
    let text = std::str::from_utf8(text).ok()?;
    Some(text.split_whitespace().next()?.to_owned())
}
