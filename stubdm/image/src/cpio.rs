//! A root file system in memory, written as a "newc" cpio archive: what a Linux kernel unpacks as
//! its initramfs.
//!
//! The archive is deterministic (sorted, owned by root, no times) and device nodes need no
//! privilege, because they are only records in the file. Folders above an entry are made by
//! themselves. A merged `/usr` is assumed: `bin`, `sbin`, `lib` and `lib64` are links into it, and
//! every path is put below it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

/// The content of a file.
#[derive(Clone, Debug)]
pub enum Content {
    /// The bytes of a file on this machine.
    File(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
}

impl Content {
    /// All of it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self) -> Result<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::File(path) => {
                fs::read(path).with_context(|| format!("reading {}", path.display()))
            }
        }
    }
}

/// One entry.
#[derive(Clone, Debug)]
pub enum Node {
    /// A folder.
    Dir,
    /// A file.
    File {
        /// Its permissions.
        mode: u32,
        /// Its bytes.
        content: Content,
    },
    /// A symbolic link and where it leads.
    Link(String),
    /// A character device.
    CharDevice {
        /// Its driver's number.
        major: u32,
        /// Its number with the driver.
        minor: u32,
    },
}

/// The folders that are links in a merged `/usr`.
const MERGED: &[&str] = &["bin", "lib", "lib64", "sbin"];

/// A root file system being put together.
#[derive(Clone, Debug)]
pub struct Archive {
    nodes: BTreeMap<String, Node>,
}

impl Archive {
    /// A root with a merged `/usr`, the usual empty folders and the device nodes that exist before
    /// devtmpfs.
    pub fn root() -> Self {
        let mut archive = Self::bare();
        for name in MERGED {
            archive.dir(&format!("usr/{name}"));
            archive
                .nodes
                .insert((*name).to_owned(), Node::Link(format!("usr/{name}")));
        }
        for name in ["dev", "etc", "proc", "run", "sys", "tmp", "root", "var"] {
            archive.dir(name);
        }
        for (name, major, minor) in [("console", 5, 1), ("null", 1, 3), ("kmsg", 1, 11)] {
            archive
                .nodes
                .insert(format!("dev/{name}"), Node::CharDevice { major, minor });
        }
        archive
    }

    /// An archive with nothing in it, to be laid over another.
    pub fn bare() -> Self {
        Self {
            nodes: BTreeMap::new(),
        }
    }

    /// Adds a folder and those above it.
    pub fn dir(&mut self, path: &str) {
        let path = merged(path);
        self.parents(&path);
        self.nodes.entry(path).or_insert(Node::Dir);
    }

    /// Adds a file that can be run.
    pub fn program(&mut self, path: &str, content: Content) {
        self.add(
            path,
            Node::File {
                mode: 0o755,
                content,
            },
        );
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, content: Content) {
        self.add(
            path,
            Node::File {
                mode: 0o644,
                content,
            },
        );
    }

    /// Adds a text file.
    pub fn text(&mut self, path: &str, text: &str) {
        self.file(path, Content::Bytes(text.as_bytes().to_vec()));
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.add(path, Node::Link(target.to_owned()));
    }

    /// Returns whether there is an entry of that name.
    pub fn has(&self, path: &str) -> bool {
        self.nodes.contains_key(&merged(path))
    }

    fn add(&mut self, path: &str, node: Node) {
        let path = merged(path);
        self.parents(&path);
        self.nodes.insert(path, node);
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.nodes.entry(path[..at].to_owned()).or_insert(Node::Dir);
        }
    }

    /// Every entry with its path, sorted.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Writes the archive, padded so that another may follow it.
    ///
    /// # Errors
    /// A file cannot be read, or is too large for the format; or writing to `out` fails.
    pub fn write(&self, out: &mut dyn Write) -> Result<()> {
        for (index, (path, node)) in self.nodes.iter().enumerate() {
            let (mode, data, device) = match node {
                Node::Dir => (0o040_755, Vec::new(), (0, 0)),
                Node::Link(target) => (0o120_777, target.clone().into_bytes(), (0, 0)),
                Node::CharDevice { major, minor } => (0o020_600, Vec::new(), (*major, *minor)),
                Node::File { mode, content } => (0o100_000 | mode, content.read()?, (0, 0)),
            };
            let number = u32::try_from(index + 1).context("too many files for one archive")?;
            write_entry(out, number, path, mode, &data, device)?;
        }
        write_entry(out, 0, "TRAILER!!!", 0, &[], (0, 0))?;
        Ok(())
    }
}

/// A path as it is kept: relative, and below the merged `/usr`.
fn merged(path: &str) -> String {
    let path = path.trim_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    if MERGED.contains(&first) {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

/// One record: the header of fourteen hexadecimal numbers, the name, the data, each padded to four
/// bytes.
fn write_entry(
    out: &mut dyn Write,
    number: u32,
    path: &str,
    mode: u32,
    data: &[u8],
    device: (u32, u32),
) -> Result<()> {
    ensure!(!path.contains('\0'), "a NUL in the name {path:?}");
    let size = u32::try_from(data.len()).with_context(|| format!("{path} is too large"))?;
    let name_size = u32::try_from(path.len() + 1)?;
    let fields = [
        number, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0,
    ];
    let mut header = String::from("070701");
    for field in fields {
        header.push_str(&format!("{field:08x}"));
    }
    out.write_all(header.as_bytes())?;
    out.write_all(path.as_bytes())?;
    // The name's own NUL and the padding are both zeros.
    pad(out, header.len() + path.len(), 1)?;
    out.write_all(data)?;
    pad(out, data.len(), 0)?;
    Ok(())
}

/// Writes `least` zeros and as many more as make `written` a multiple of four.
fn pad(out: &mut dyn Write, written: usize, least: usize) -> io::Result<()> {
    let end = (written + least).next_multiple_of(4);
    out.write_all(&[0; 4][..end - written])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The archive's records as (name, mode, data), read back by the format's description
    /// (cpio(5)).
    fn parse(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut at = 0;
        let mut all = Vec::new();
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = &bytes[at + 110..at + 110 + name_size - 1];
            assert_eq!(bytes[at + 110 + name_size - 1], 0);
            let data = (at + 110 + name_size).next_multiple_of(4);
            let name = String::from_utf8(name.to_vec()).unwrap();
            if name == "TRAILER!!!" {
                assert_eq!(bytes.len() % 4, 0);
                return all;
            }
            all.push((name, mode, bytes[data..data + size].to_vec()));
            at = (data + size).next_multiple_of(4);
        }
    }

    #[test]
    fn what_is_written_is_read_back_sorted_and_merged() {
        let mut archive = Archive::root();
        archive.program("/sbin/x", Content::Bytes(b"abc".to_vec()));
        archive.link("lib64/ld.so", "../lib/ld.so");
        archive.text("etc/a/b", "hello");
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        let all = parse(&bytes);
        let names: Vec<_> = all.iter().map(|e| e.0.as_str()).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(names, sorted);
        let find = |n: &str| {
            all.iter()
                .find(|e| e.0 == n)
                .unwrap_or_else(|| panic!("no {n}"))
        };
        assert_eq!(
            (find("usr/sbin/x").1, &find("usr/sbin/x").2[..]),
            (0o100_755, &b"abc"[..])
        );
        assert_eq!(find("lib").2, b"usr/lib");
        assert_eq!(find("usr/lib64/ld.so").1, 0o120_777);
        assert_eq!(find("etc/a").1, 0o040_755);
        assert_eq!(find("dev/console").1, 0o020_600);
        let mut again = Vec::new();
        archive.write(&mut again).unwrap();
        assert_eq!(bytes, again);
    }
}
