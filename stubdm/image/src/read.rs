//! A ramdisk's list of contents: newc archives one after another, plain or gzip-compressed, as a
//! kernel takes them.
//!
//! The file may be anything: every length is checked against what is left, and no more is unpacked
//! than a kernel could use.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use flate2::bufread::MultiGzDecoder;

use crate::packed;

/// The most that is read, and the most that is unpacked: 2 GiB.
const LIMIT: u64 = 2 << 30;

/// One entry of a ramdisk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path, without a leading slash.
    pub path: String,
    /// Its type and permissions, as in `st_mode`.
    pub mode: u32,
    /// Its length in bytes.
    pub size: u64,
    /// Where a link leads.
    pub link: Option<String>,
}

/// A ramdisk as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Its entries, in the order in which a kernel makes them.
    pub entries: Vec<Entry>,
    /// How long it is unpacked.
    pub unpacked: u64,
    /// `true` if it is compressed.
    pub compressed: bool,
    /// All but the init is in a compressed file system ([`packed`]). Its entries are listed after
    /// it, with the paths they have once it is the root.
    pub packed: bool,
    /// The versions of the kernels that its uncompressed modules are made for.
    pub kernels: BTreeSet<String>,
}

/// Reads a plain file, without waiting for one that is not.
///
/// # Errors
/// The file cannot be read, is no plain file, or is over 2 GiB.
pub fn contents(path: &Path) -> Result<Vec<u8>> {
    let data = head(path, LIMIT)?;
    ensure!((data.len() as u64) < LIMIT, "it is over 2 GiB");
    Ok(data)
}

/// Reads the first `count` bytes of a plain file, or all of a shorter one.
///
/// # Errors
/// The file cannot be read, or is no plain file.
pub(crate) fn head(path: &Path, count: u64) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    open(path)?.take(count).read_to_end(&mut data)?;
    Ok(data)
}

/// Opens a plain file. The call does not block on a FIFO or a device.
///
/// # Errors
/// The file cannot be opened, or is no plain file.
pub(crate) fn open(path: &Path) -> Result<File> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let meta = file.metadata()?;
    ensure!(!meta.is_dir(), "it is a folder");
    ensure!(meta.is_file(), "it is no file");
    Ok(file)
}

/// Reads a ramdisk.
///
/// # Errors
/// It is none, it is cut short, or it is compressed in a way that is not known here.
pub fn listing(file: &[u8]) -> Result<Listing> {
    let compressed = file.starts_with(b"\x1f\x8b");
    let data = unpacked(file)?;
    let (mut entries, mut kernels) = (Vec::new(), BTreeSet::new());
    let mut rest = &data[..];
    loop {
        // Padding between two archives.
        let padding = rest.iter().take_while(|&&byte| byte == 0).count();
        rest = rest.get(padding..).unwrap_or_default();
        if rest.is_empty() {
            break;
        }
        rest = archive(rest, &mut entries, &mut kernels)?;
    }
    ensure!(!entries.is_empty(), "it has no entries");
    let packed = entries.iter().any(|entry| entry.path == packed::FILE);
    Ok(Listing {
        entries,
        unpacked: data.len() as u64,
        compressed,
        packed,
        kernels,
    })
}

fn unpacked(file: &[u8]) -> Result<Cow<'_, [u8]>> {
    for (magic, name) in [
        (&b"\xfd7zXZ"[..], "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"\x89LZO", "lzop"),
    ] {
        ensure!(
            !file.starts_with(magic),
            "it is compressed with {name}; unpack it first"
        );
    }
    if !file.starts_with(b"\x1f\x8b") {
        return Ok(Cow::Borrowed(file));
    }
    let mut data = Vec::new();
    let count = MultiGzDecoder::new(file)
        .take(LIMIT)
        .read_to_end(&mut data)?;
    ensure!((count as u64) < LIMIT, "it is over 2 GiB unpacked");
    Ok(Cow::Owned(data))
}

/// Reads one archive up to its trailer, and returns the bytes after it.
fn archive<'a>(
    data: &'a [u8],
    entries: &mut Vec<Entry>,
    kernels: &mut BTreeSet<String>,
) -> Result<&'a [u8]> {
    let mut at = 0_usize;
    loop {
        let cut = || anyhow::anyhow!("it ends in the middle of an entry");
        let header = data.get(at..at + 110).ok_or_else(cut)?;
        if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
            bail!("there is no newc archive at byte {at}");
        }
        let field = |n: usize| -> Result<u32> {
            let digits = header.get(6 + 8 * n..14 + 8 * n).unwrap_or_default();
            let text = std::str::from_utf8(digits).unwrap_or_default();
            u32::from_str_radix(text, 16).map_err(|_| anyhow::anyhow!("a bad header at byte {at}"))
        };
        let (mode, size, name_size) = (field(1)?, field(6)? as usize, field(11)? as usize);
        let name = data.get(at + 110..at + 110 + name_size).ok_or_else(cut)?;
        let name = name.strip_suffix(b"\0").unwrap_or(name);
        let from = (at + 110 + name_size).next_multiple_of(4);
        let body = data.get(from..from + size).ok_or_else(cut)?;
        at = (from + size).next_multiple_of(4);
        if name == b"TRAILER!!!" {
            return Ok(data.get(at..).unwrap_or_default());
        }
        if name.ends_with(b".ko") {
            kernels.extend(version_of(body));
        }
        let link =
            (mode & 0o170_000 == 0o120_000).then(|| String::from_utf8_lossy(body).into_owned());
        entries.push(Entry {
            path: String::from_utf8_lossy(name).into_owned(),
            mode,
            size: size as u64,
            link,
        });
        if name == packed::FILE.as_bytes() {
            let inner = packed::entries(body);
            entries.extend(inner.with_context(|| packed::FILE)?);
        }
    }
}

/// Reads the kernel's version in a module's record of it: `vermagic=6.1.0-56-amd64 SMP ...`.
fn version_of(module: &[u8]) -> Option<String> {
    let mark = b"\0vermagic=";
    let at = module.windows(mark.len()).position(|part| part == mark)?;
    let text = module.get(at + mark.len()..)?;
    let word = text.split(|byte| matches!(byte, 0 | b' ')).next()?;
    std::str::from_utf8(word).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::{Archive, Content};

    fn ramdisk() -> Vec<u8> {
        let mut archive = Archive::root();
        archive.program("usr/bin/x", Content::Bytes(b"abcde".to_vec()));
        archive.link("init", "usr/bin/x");
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_was_written_is_listed_however_often() {
        let once = listing(&ramdisk()).unwrap();
        let find = |path: &str| once.entries.iter().find(|e| e.path == path).unwrap();
        assert_eq!(
            (find("usr/bin/x").mode, find("usr/bin/x").size),
            (0o100_755, 5)
        );
        assert_eq!(find("init").link.as_deref(), Some("usr/bin/x"));
        assert!(!once.compressed && once.kernels.is_empty());
        let twice = [ramdisk(), vec![0; 512], ramdisk()].concat();
        assert_eq!(
            listing(&twice).unwrap().entries.len(),
            2 * once.entries.len()
        );
    }

    #[test]
    fn the_kernel_of_the_modules_is_read() {
        let mut archive = Archive::root();
        let module = b"\x7fELF\0license=GPL\0vermagic=6.1.0-9-amd64 SMP preempt\0";
        archive.file("lib/modules/x.ko", Content::Bytes(module.to_vec()));
        archive.file("etc/x", Content::Bytes(b"\0vermagic=5 x\0".to_vec()));
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        let listing = listing(&bytes).unwrap();
        assert_eq!(
            listing.kernels.into_iter().collect::<Vec<_>>(),
            ["6.1.0-9-amd64"]
        );
    }

    #[test]
    fn no_cut_and_no_byte_makes_it_panic() {
        let whole = ramdisk();
        for end in 0..whole.len() - 4 {
            assert!(listing(&whole[..end]).is_err(), "cut at {end}");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] = b'f';
            let _ = listing(&bytes);
        }
        assert!(listing(b"").is_err());
        assert!(listing(b"\x1f\x8bnonsense").is_err());
        assert!(
            listing(b"\xfd7zXZ\0")
                .unwrap_err()
                .to_string()
                .contains("xz")
        );
    }
}
