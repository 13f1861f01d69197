//! A kernel's file: where distributions put it, and the version it says it is.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::elf::{inside, resolve};

/// As much of a bzImage as is read: the version is near its beginning.
const HEAD: u64 = 64 << 10;

/// Paths with `{}` for the version. Those without it belong to whichever kernel they hold.
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

/// The places where a kernel's file is looked for, for a person.
pub fn places(version: &str) -> String {
    let all: Vec<_> = PLACES
        .iter()
        .map(|place| format!("/{}", place.replace("{}", version)))
        .collect();
    format!("{} and every file in /boot", all.join(", "))
}

/// The kernel of a version below a root: by its name, or by what it says in itself (Alpine's
/// `/boot/vmlinuz-lts`).
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
    let says = |path: &String| {
        let file = resolve(root, path).ok().filter(|file| file.is_file());
        file.and_then(|file| version_of(&file)).as_deref() == Some(version)
    };
    all.into_iter().find(says).map(|path| root.join(path))
}

/// The version a bzImage says it is (`Documentation/arch/x86/boot.rst`); `None` for other files.
pub fn version_of(file: &Path) -> Option<String> {
    let mut head = Vec::new();
    File::open(file)
        .ok()?
        .take(HEAD)
        .read_to_end(&mut head)
        .ok()?;
    if head.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let at = head.get(0x20e..0x210)?;
    let at = usize::from(u16::from_le_bytes([*at.first()?, *at.get(1)?])) + 0x200;
    let text = head.get(at..)?.split(|&byte| byte == 0).next()?;
    let text = std::str::from_utf8(text).ok()?;
    Some(text.split_whitespace().next()?.to_owned())
}
