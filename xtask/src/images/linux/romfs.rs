//! A romfs: the plainest file system that Linux mounts from a disk, made from an archive's folders
//! and files.
//!
//! ```text
//! "-rom1fs-" size checksum name      then, each at a multiple of 16 bytes:
//! next|type spec size checksum name  data
//! ```
//!
//! Numbers are big-endian; `next` is the next entry of the same folder, `spec` a folder's first
//! entry; each header's words add up to 0, as do those of the first 512 bytes
//! (Documentation/filesystems/romfs.rst).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

/// A folder's entries, by name.
pub(super) type Folder = BTreeMap<&'static str, Entry>;

/// A file or a folder.
#[derive(Debug)]
pub(super) enum Entry {
    Folder(Folder),
    /// A program, by its bytes.
    Program(Vec<u8>),
}

const FOLDER: u32 = 1;
const FILE: u32 = 2;
const EXECUTABLE: u32 = 8;
const HEADER: usize = 16;

/// The file system's bytes, a multiple of 512.
pub(super) fn build(root: &Folder) -> Result<Vec<u8>> {
    let mut bytes = b"-rom1fs-".to_vec();
    bytes.resize(HEADER, 0);
    name(&mut bytes, "linux-guest");
    // The root's own header, which its folder's first entry follows.
    let own = bytes.len();
    header(&mut bytes, ".");
    let first = fill(&mut bytes, root)?;
    set(&mut bytes, own, &[FOLDER | EXECUTABLE, first, 0]);
    add_up(&mut bytes, own, HEADER + 16);
    let size = number(bytes.len())?;
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    set(&mut bytes, 8, &[size]);
    add_up(&mut bytes, 0, 512);
    Ok(bytes)
}

/// Appends what a folder holds; gives the place of its first entry, 0 if there is none.
fn fill(bytes: &mut Vec<u8>, folder: &Folder) -> Result<u32> {
    let mut first = 0;
    let mut last = None;
    for (title, entry) in folder {
        let at = bytes.len();
        let place = number(at)?;
        match last {
            // Chained behind the one before, whose header checksum must be computed again.
            Some((before, length, kind)) => {
                set(bytes, before, &[place | kind]);
                add_up(bytes, before, length);
            }
            None => first = place,
        }
        let length = header(bytes, title);
        let (kind, spec, size) = match entry {
            Entry::Folder(inner) => (FOLDER | EXECUTABLE, fill(bytes, inner)?, 0),
            Entry::Program(data) => {
                bytes.extend(data);
                pad(bytes);
                (FILE | EXECUTABLE, 0, number(data.len())?)
            }
        };
        set(bytes, at, &[kind, spec, size]);
        add_up(bytes, at, length);
        last = Some((at, length, kind));
    }
    Ok(first)
}

/// Appends an empty header with its name; gives the length of both.
fn header(bytes: &mut Vec<u8>, title: &str) -> usize {
    let at = bytes.len();
    bytes.resize(at + HEADER, 0);
    name(bytes, title);
    bytes.len() - at
}

fn name(bytes: &mut Vec<u8>, title: &str) {
    bytes.extend(title.as_bytes());
    bytes.push(0);
    pad(bytes);
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(16), 0);
}

fn set(bytes: &mut [u8], at: usize, words: &[u32]) {
    for (place, word) in bytes[at..].chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_be_bytes());
    }
}

/// Sets the fourth word so that all of them add up to 0.
fn add_up(bytes: &mut [u8], at: usize, length: usize) {
    set(bytes, at + 12, &[0]);
    let sum = sum(&bytes[at..at + length]);
    set(bytes, at + 12, &[sum.wrapping_neg()]);
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks_exact(4)
        .filter_map(|word| word.try_into().ok().map(u32::from_be_bytes))
        .fold(0, u32::wrapping_add)
}

fn number(value: usize) -> Result<u32> {
    u32::try_from(value).context("too large for a romfs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> usize {
        u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    /// Follows a path as the kernel does, from the header at `at`; gives the file's bytes.
    fn find<'a>(bytes: &'a [u8], at: usize, path: &[&str]) -> Option<&'a [u8]> {
        let Some((first, rest)) = path.split_first() else {
            let data = at + HEADER + 16;
            return Some(&bytes[data..data + word(bytes, at + 8)]);
        };
        let mut entry = word(bytes, at + 4) & !15;
        while entry != 0 {
            assert_eq!(sum(&bytes[entry..entry + HEADER + 16]), 0);
            if bytes[entry + HEADER..].starts_with(format!("{first}\0").as_bytes()) {
                return find(bytes, entry, rest);
            }
            entry = word(bytes, entry) & !15;
        }
        None
    }

    #[test]
    fn what_is_put_in_is_found_by_its_path() {
        let root = Folder::from([
            ("dev", Entry::Folder(Folder::new())),
            (
                "sbin",
                Entry::Folder(Folder::from([
                    ("init", Entry::Program(b"the program".to_vec())),
                    ("other", Entry::Program(vec![7; 100])),
                ])),
            ),
        ]);
        let bytes = build(&root).unwrap();
        assert_eq!(bytes.len() % 512, 0);
        assert_eq!(sum(&bytes[..512]), 0);
        let own = HEADER + 16;
        assert_eq!(
            find(&bytes, own, &["sbin", "init"]),
            Some(&b"the program"[..])
        );
        assert_eq!(find(&bytes, own, &["sbin", "other"]), Some(&[7; 100][..]));
        assert_eq!(find(&bytes, own, &["sbin", "more"]), None);
        assert_eq!(find(&bytes, own, &["dev", "x"]), None);
    }
}
