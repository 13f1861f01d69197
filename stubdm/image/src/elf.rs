//! Reads the dynamic section of ELF files, and follows paths and links inside an unpacked tree.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use object::elf::{
    DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_STRTAB, ET_DYN, FileHeader64, PT_DYNAMIC, PT_INTERP,
};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};
use object::{Endianness, StringTable};

use crate::read;

/// The most bytes of library names and folders in one file's dynamic section. Debian's QEMU has
/// about 2 KiB.
const TEXT_LIMIT: usize = 64 << 10;

/// The longest path of an interpreter (Linux's `PATH_MAX`).
const PATH_LIMIT: usize = 4096;

/// Requests to the dynamic linker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The program interpreter, an absolute path.
    pub interpreter: Option<String>,
    /// The libraries' names.
    pub libraries: Vec<String>,
    /// DT_RPATH: folders for this file and the libraries it leads to, `$ORIGIN` not yet replaced.
    pub rpath: Vec<String>,
    /// DT_RUNPATH: folders for this file only, `$ORIGIN` not yet replaced. It overrides DT_RPATH.
    pub runpath: Vec<String>,
    /// The file has a dynamic section.
    pub dynamic: bool,
    /// The file may be loaded at any address, and the kernel chooses one at random.
    pub anywhere: bool,
    /// The processor, ELF's `e_machine`.
    pub machine: u16,
}

/// Reads a file's requests to the dynamic linker; `None` if it is not a 64-bit ELF file.
///
/// # Errors
/// The file cannot be read, is no plain file, is broken, or names more than 64 KiB of libraries
/// and folders.
pub fn needs(path: &Path) -> Result<Option<Needs>> {
    let data = read::contents(path).with_context(|| format!("reading {}", path.display()))?;
    if !data.starts_with(b"\x7fELF\x02") {
        return Ok(None);
    }
    parse(&data)
        .with_context(|| format!("{} as an ELF file", path.display()))
        .map(Some)
}

fn parse(data: &[u8]) -> Result<Needs> {
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, data)?;
    let mut needs = Needs {
        anywhere: header.e_type(endian) == ET_DYN,
        machine: header.e_machine(endian),
        ..Needs::default()
    };
    for segment in segments {
        if segment.p_type(endian) == PT_INTERP {
            let bytes = segment.data(endian, data).ok().context("its interpreter")?;
            let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
            ensure!(
                bytes.len() < PATH_LIMIT,
                "its interpreter's path is too long"
            );
            needs.interpreter = Some(String::from_utf8(bytes.to_vec())?);
        }
        if segment.p_type(endian) != PT_DYNAMIC {
            continue;
        }
        ensure!(!needs.dynamic, "it has two dynamic sections");
        needs.dynamic = true;
        let Some(entries) = segment.dynamic(endian, data)? else {
            continue;
        };
        let find = |tag| {
            entries
                .iter()
                .find(|e| e.tag32(endian) == Some(tag))
                .map(|e| e.d_val(endian))
        };
        let Some(table) = find(DT_STRTAB) else {
            continue;
        };
        // The table is given by its address: the segment that holds it leads to its place in the
        // file.
        let Some((from, end)) = segments.iter().find_map(|s| {
            let (address, size) = (s.p_vaddr(endian), s.p_filesz(endian));
            let inside = table.checked_sub(address).filter(|&inside| inside < size)?;
            let start = s.p_offset(endian);
            Some((start.checked_add(inside)?, start.checked_add(size)?))
        }) else {
            bail!("its string table is in no segment")
        };
        let strings = StringTable::new(data, from, end);
        // Many entries may name the same long string.
        let mut left = TEXT_LIMIT;
        let mut text = |value: u64| -> Result<String> {
            let bytes = u32::try_from(value).ok().and_then(|v| strings.get(v).ok());
            let bytes = bytes.context("a string outside its table")?;
            let rest = left.checked_sub(bytes.len() + 1);
            left = rest.context("it names more than 64 KiB of libraries and folders")?;
            Ok(String::from_utf8(bytes.to_vec())?)
        };
        for entry in entries {
            match entry.tag32(endian) {
                Some(DT_NEEDED) => needs.libraries.push(text(entry.d_val(endian))?),
                Some(tag @ (DT_RPATH | DT_RUNPATH)) => {
                    let path = text(entry.d_val(endian))?;
                    let folders = path.split(':').map(str::to_owned);
                    match tag {
                        DT_RPATH => needs.rpath.extend(folders),
                        _ => needs.runpath.extend(folders),
                    }
                }
                _ => {}
            }
        }
    }
    Ok(needs)
}

/// Returns the file behind a path in a tree. Links are followed as if the tree were the root, 40 at
/// most. Where packages already put everything below `/usr`, a path outside it is looked for there.
///
/// # Errors
/// There is no such file.
pub fn resolve(tree: &Path, path: &str) -> Result<PathBuf> {
    Ok(tree.join(inside(tree, path)?))
}

/// As [`resolve`], but returns the path relative to the tree.
///
/// # Errors
/// There is no such file.
pub fn inside(tree: &Path, path: &str) -> Result<String> {
    let outside = !path.trim_start_matches('/').starts_with("usr/");
    match inside_at(tree, path) {
        Err(error) if outside => inside_at(tree, &format!("usr/{path}")).map_err(|_| error),
        result => result,
    }
}

/// Returns a path without leading slash, `.` and `..`; `None` for an empty one.
pub(crate) fn plain(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.trim().split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn inside_at(tree: &Path, path: &str) -> Result<String> {
    let mut parts: Vec<String> = Vec::new();
    let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                parts.pop();
                continue;
            }
            _ => parts.push(part),
        }
        let here = tree.join(parts.join("/"));
        let Ok(target) = fs::read_link(&here) else {
            continue;
        };
        links += 1;
        if links > 40 {
            bail!("too many links on the way to {path}");
        }
        let target = target
            .to_str()
            .context("a link that is not UTF-8")?
            .to_owned();
        parts.pop();
        if target.starts_with('/') {
            parts.clear();
        }
        todo.extend(target.split('/').rev().map(str::to_owned));
    }
    let file = tree.join(parts.join("/"));
    if !file.exists() {
        bail!("there is no {}", file.display());
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_program_needs_the_c_library() {
        let needs = needs(&std::env::current_exe().unwrap()).unwrap().unwrap();
        assert!(needs.dynamic);
        assert!(
            needs.libraries.iter().any(|l| l == "libc.so.6"),
            "{needs:?}"
        );
        assert!(needs.interpreter.unwrap().starts_with("/lib"));
    }

    #[test]
    fn a_program_made_for_one_address_is_known() {
        let mut program = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(parse(&program).unwrap().anywhere);
        // e_type of the header, now ET_EXEC.
        program[16] = 2;
        assert!(!parse(&program).unwrap().anywhere);
    }

    #[test]
    fn links_are_followed_inside_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        fs::create_dir_all(tree.join("usr/lib")).unwrap();
        fs::write(tree.join("usr/lib/real"), "not an ELF file").unwrap();
        std::os::unix::fs::symlink("/usr/lib", tree.join("lib")).unwrap();
        std::os::unix::fs::symlink("../lib/./real", tree.join("usr/lib/name")).unwrap();
        std::os::unix::fs::symlink("loop", tree.join("loop")).unwrap();
        assert_eq!(
            resolve(tree, "lib/name").unwrap(),
            tree.join("usr/lib/real")
        );
        assert_eq!(needs(&tree.join("usr/lib/real")).unwrap(), None);
        assert!(resolve(tree, "lib/other").is_err());
        fs::create_dir_all(tree.join("usr/lib64")).unwrap();
        fs::write(tree.join("usr/lib64/merged"), "").unwrap();
        assert_eq!(
            resolve(tree, "lib64/merged").unwrap(),
            tree.join("usr/lib64/merged")
        );
        assert!(resolve(tree, "loop").is_err());
    }
}
