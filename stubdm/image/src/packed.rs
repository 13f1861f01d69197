//! The compressed part of a ramdisk: QEMU, its libraries, firmware and modules in a SquashFS file.
//!
//! Files that a kernel unpacks from a ramdisk stay in memory. Pages of a mounted file system are
//! read when they are used, and given back when memory is short. So the ramdisk holds this file,
//! the init, and the modules that mount it:
//!
//! ```text
//!   ramdisk: /init, /packed/loop.ko, /packed/squashfs.ko, /packed/order, /packed/root.squashfs
//!                                                                            │ mounted by the init
//!   root:    /usr/libexec/xen-qemu-system-i386, /usr/lib, /usr/share/qemu ◀──┘
//! ```
//!
//! A kernel takes several archives in a row. Files in the folder `/packed/extra` of one that is
//! appended to the ramdisk are in `/extra` of the root.

use std::io::Cursor;

use anyhow::{Context as _, Result, ensure};
use backhand::compression::Compressor;
use backhand::{FilesystemCompressor, FilesystemReader, FilesystemWriter, InnerNode, NodeHeader};

use crate::add_modules_to;
use crate::cpio::{Archive, Content, Node};
use crate::modules::{Driver, Modules};
use crate::read::Entry;

/// The folder in the ramdisk of what belongs to the compressed part.
pub const FOLDER: &str = "packed";

/// The compressed file system.
pub const FILE: &str = "packed/root.squashfs";

/// The folder it is mounted on before it becomes the root.
pub const MOUNT: &str = "packed/root";

/// The folder in the ramdisk whose files are added to the root, if it exists, and its place there.
pub const EXTRA: &str = "packed/extra";
/// See [`EXTRA`].
pub const EXTRA_PLACE: &str = "extra";

/// The drivers that mount it, without what they depend on.
pub const DRIVERS: &[&str] = &["loop", "squashfs"];

/// The kernel's setting for files that SquashFS compressed with zlib.
const ZLIB: &str = "CONFIG_SQUASHFS_ZLIB";

/// The first bytes of the file system, and the place of its length and of its version's numbers.
const MAGIC: &[u8] = b"hsqs";
const LENGTH_AT: usize = 40;
const VERSION_AT: usize = 28;

/// The bytes that [`check`] looks at.
pub const HEAD: usize = 96;

/// The most entries that are listed.
const ENTRIES: u32 = 1 << 20;

/// Explains why a kernel cannot mount the file system; `None` if it can.
pub fn obstacle(kernel: &Modules) -> Option<String> {
    for name in DRIVERS {
        if matches!(kernel.driver(name), Driver::Absent | Driver::Unknown) {
            return Some(kernel.lack(name));
        }
    }
    (kernel.setting(ZLIB) == Some(false)).then(|| {
        format!(
            "this kernel ({}) was built without {ZLIB}",
            kernel.version()
        )
    })
}

/// Puts the contents of `inner` into `outer` as one compressed file, with the modules that mount
/// it.
///
/// # Errors
/// A file or module cannot be read.
pub fn add(outer: &mut Archive, inner: &Archive, kernel: &Modules) -> Result<()> {
    let mut inner = inner.clone();
    inner.dir(EXTRA_PLACE);
    outer.dir(MOUNT);
    outer.file(FILE, Content::Bytes(pack(&inner)?));
    add_modules_to(outer, FOLDER, kernel, DRIVERS)
}

/// Writes an archive as a SquashFS file with zlib's compression: owned by root, without times.
///
/// # Errors
/// A file cannot be read.
pub fn pack(archive: &Archive) -> Result<Vec<u8>> {
    let header = |mode| NodeHeader::new(mode, 0, 0, 0);
    let mut writer = FilesystemWriter::default();
    writer.set_compressor(FilesystemCompressor::new(Compressor::Gzip, None)?);
    writer.set_root_mode(0o755);
    for (path, node) in archive.nodes() {
        let pushed = match node {
            Node::Dir => writer.push_dir(path, header(0o755)),
            Node::Link(target) => writer.push_symlink(target, path, header(0o777)),
            Node::CharDevice { major, minor } => {
                let number = (major << 8) | minor;
                writer.push_char_device(number, path, header(0o600))
            }
            Node::File { mode, content } => {
                let mode = u16::try_from(*mode).context("a file's mode")?;
                writer.push_file(Cursor::new(content.read()?), path, header(mode))
            }
        };
        pushed.with_context(|| format!("packing {path}"))?;
    }
    let mut file = Cursor::new(Vec::new());
    writer.write(&mut file).context("packing")?;
    Ok(file.into_inner())
}

/// Checks the first [`HEAD`] bytes of a file of `length` bytes: a whole SquashFS 4.0.
///
/// # Errors
/// It is none, or it is cut short.
pub fn check(head: &[u8], length: u64) -> Result<()> {
    ensure!(head.starts_with(MAGIC), "it is no SquashFS file");
    let word = |at: usize| head.get(at..at + 4);
    ensure!(
        word(VERSION_AT) == Some(&[4, 0, 0, 0]),
        "it is no SquashFS file of version 4.0"
    );
    let bytes = head.get(LENGTH_AT..LENGTH_AT + 8);
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    let said = u64::from_le_bytes(bytes.context("it is cut short")?);
    ensure!(
        said <= length,
        "it is cut short: {length} of {said} bytes are there"
    );
    Ok(())
}

/// Lists the entries of a SquashFS file. Contents are not read.
///
/// # Errors
/// It is none, it is cut short, or it is damaged.
pub(crate) fn entries(file: &[u8]) -> Result<Vec<Entry>> {
    check(file, file.len() as u64)?;
    let count = file.get(4..8).and_then(|bytes| bytes.try_into().ok());
    let count = count.map(u32::from_le_bytes);
    ensure!(
        count.is_some_and(|count| count <= ENTRIES),
        "it has over {ENTRIES} entries"
    );
    let reader = FilesystemReader::from_reader(Cursor::new(file))?;
    let mut entries = Vec::new();
    for node in reader.files() {
        let path = node.fullpath.to_string_lossy();
        let path = path.trim_start_matches('/');
        let mut entry = Entry {
            path: path.to_owned(),
            mode: 0,
            size: 0,
            link: None,
        };
        let kind = match &node.inner {
            InnerNode::File(own) => {
                entry.size = own.file_len() as u64;
                0o100_000
            }
            InnerNode::Symlink(link) => {
                let to = link.link.to_string_lossy().into_owned();
                entry.size = to.len() as u64;
                entry.link = Some(to);
                0o120_000
            }
            InnerNode::Dir(_) => 0o040_000,
            InnerNode::CharacterDevice(_) => 0o020_000,
            InnerNode::BlockDevice(_) => 0o060_000,
            InnerNode::NamedPipe => 0o010_000,
            InnerNode::Socket => 0o140_000,
        };
        entry.mode = kind | u32::from(node.header.permissions & 0o7777);
        if !path.is_empty() {
            entries.push(entry);
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read as _;

    use super::*;
    use crate::read::listing;

    fn archive() -> Archive {
        let mut archive = Archive::root();
        // Over a block, so that it has whole blocks and a rest.
        let large: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        archive.program("usr/libexec/qemu", Content::Bytes(large));
        archive.text("usr/share/qemu/x.bin", "firmware");
        archive.text("usr/share/qemu/empty", "");
        archive.link("usr/lib/libx.so", "libx.so.1");
        archive
    }

    fn contents(file: &[u8]) -> Vec<(String, Vec<u8>)> {
        let reader = FilesystemReader::from_reader(Cursor::new(file)).unwrap();
        let files = reader.files().filter_map(|node| {
            let InnerNode::File(own) = &node.inner else {
                return None;
            };
            let mut data = Vec::new();
            reader.file(own).reader().read_to_end(&mut data).unwrap();
            let path = node.fullpath.to_str().unwrap();
            Some((path.trim_start_matches('/').to_owned(), data))
        });
        files.collect()
    }

    #[test]
    fn what_is_packed_is_read_back_with_modes_and_contents() {
        let archive = archive();
        let file = pack(&archive).unwrap();
        assert!(file == pack(&archive).unwrap(), "two files differ");
        assert_eq!(file.len() % 512, 0, "a loop device has whole sectors");
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        let by_path = |mut all: Vec<Entry>| {
            all.sort_by(|one, other| one.path.cmp(&other.path));
            all
        };
        let plain = by_path(listing(&bytes).unwrap().entries);
        assert_eq!(by_path(entries(&file).unwrap()), plain);
        let mut found = contents(&file).into_iter();
        for (path, node) in archive.nodes() {
            if let Node::File { content, .. } = node {
                let (own, data) = found.next().unwrap();
                assert!(own == path && data == content.read().unwrap(), "{own}");
            }
        }
        assert_eq!(found.next(), None);
    }

    /// A tree with a kernel that has these modules and this configuration.
    fn kernel(modules: &[&str], config: &str) -> (tempfile::TempDir, Modules) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("lib/modules/6.1.0/kernel");
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir(dir.path().join("boot")).unwrap();
        for name in modules {
            fs::write(folder.join(format!("{name}.ko")), "").unwrap();
        }
        fs::write(dir.path().join("boot/config-6.1.0"), config).unwrap();
        let modules = Modules::find(dir.path(), "6.1.0").unwrap();
        (dir, modules)
    }

    #[test]
    fn a_kernel_that_cannot_mount_it_is_found_by_modules_and_settings() {
        let zlib = "CONFIG_SQUASHFS_ZLIB=y\n";
        let built_in = format!("CONFIG_BLK_DEV_LOOP=y\nCONFIG_SQUASHFS=y\n{zlib}");
        for (modules, config, part) in [
            (&["loop", "squashfs"][..], zlib, None),
            (&["xenfs"], &built_in, None),
            (&["squashfs"], zlib, Some("no module loop")),
            (&["loop"], zlib, Some("no module squashfs")),
            (
                &["loop", "squashfs"],
                "# CONFIG_SQUASHFS_ZLIB is not set\n",
                Some("without CONFIG_SQUASHFS_ZLIB"),
            ),
        ] {
            let found = obstacle(&kernel(modules, config).1);
            let fits = match (&found, part) {
                (Some(found), Some(part)) => found.contains(part),
                (found, part) => found.is_none() && part.is_none(),
            };
            assert!(fits, "{found:?} where {part:?} was expected");
        }
    }

    #[test]
    fn a_cut_or_other_file_is_no_image() {
        let file = pack(&archive()).unwrap();
        let length = file.len() as u64;
        assert!(check(&file[..HEAD], length).is_ok());
        // It is padded: what is missing from the padding alone is not.
        let error = check(&file[..HEAD], length - 5000).unwrap_err().to_string();
        assert!(error.contains("cut short"), "{error}");
        for (head, part) in [
            (&file[..20], "version"),
            (&file[..LENGTH_AT + 7], "cut short"),
            (&b"\x7fELF"[..], "no SquashFS"),
            (&[], "no SquashFS"),
        ] {
            let error = check(head, length).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn no_byte_of_an_image_makes_its_list_panic() {
        let mut small = Archive::bare();
        small.text("usr/x.ko", "\0vermagic=6 \0");
        small.link("usr/y", "x");
        let whole = pack(&small).unwrap();
        let said = u64::from_le_bytes(whole[LENGTH_AT..LENGTH_AT + 8].try_into().unwrap());
        let end = usize::try_from(said).unwrap();
        for cut in 0..end {
            assert!(entries(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..end {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                let _ = entries(&bytes);
            }
        }
    }
}
