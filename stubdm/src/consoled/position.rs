//! The position up to which a console has been written, in a small file: another `consoled`
//! continues there.
//!
//! ```text
//!   copy from the ring ──▶ write to the sink ──▶ write the position ──▶ give the ring's room back
//! ```
//!
//! A `consoled` can be killed between any two of these steps. The next one compares the ring's
//! index with the position's:
//!
//! * The position is ahead: the bytes between are written. They are skipped.
//! * Both are equal: bytes may be written that the position does not count. The file is cut to the
//!   position's length, and they are written again. If the position's file has become the `.old`
//!   one, the new file is emptied.
//!
//! So no byte that was taken out of the ring is lost or doubled. The kernel writes these bytes
//! whole or not at all when the process is killed; a checksum shows any other damage, and a damaged
//! position is none.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::libxl::state_record::HEADER;

/// The first bytes of the file.
const MAGIC: [u8; 8] = *b"stubdmP1";
/// The highest number of a console that libxl makes, and then some.
const CONSOLES: u32 = 64;

/// The ring and the file, as of one moment.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Eq)]
pub struct Position {
    magic: [u8; 8],
    /// The CRC-32 of the domain's UUID.
    pub domain: u32,
    /// The reference and the port that the ring was published with, and its index.
    pub reference: u32,
    /// See `reference`.
    pub port: u32,
    /// See `reference`.
    pub index: u32,
    /// The file: its device, its inode and its length.
    pub file: [u64; 3],
    /// Where a saved state is.
    pub state: StatePosition,
    sum: u32,
    pad: u32,
}

/// Where in the stream of saved states a console is; all zero elsewhere.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq, Eq,
)]
pub struct StatePosition {
    /// The kind of place, in the words of [`super::statefile`].
    pub kind: u32,
    /// The checksum so far.
    pub crc: u32,
    /// The bytes left of the place; of a header, those that were received.
    pub left: u64,
    /// The header, or its first bytes.
    pub head: [u8; HEADER],
    /// 1 if the rest of the state is dropped.
    pub broken: u32,
    /// Padding.
    pub pad: u32,
}

impl Position {
    /// At the beginning of a ring that was published with these numbers.
    pub fn new(domain: u32, (reference, port): (u32, u32)) -> Self {
        let mut position = Self::new_zeroed();
        (position.magic, position.domain) = (MAGIC, domain);
        (position.reference, position.port) = (reference, port);
        position
    }

    fn checksum(&self) -> u32 {
        let mut copy = *self;
        copy.sum = 0;
        crc32fast::hash(copy.as_bytes())
    }
}

/// The file.
#[derive(Debug)]
pub struct PositionFile {
    file: File,
    path: PathBuf,
}

impl PositionFile {
    /// Opens the file of one console below `folder`; empties it unless it is `kept`.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(folder: &Path, domain: u16, console: u32, kept: bool) -> io::Result<Self> {
        let path = path(folder, domain, console);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).mode(0o600);
        let file = options
            .truncate(!kept)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&path)?;
        Ok(Self { file, path })
    }

    /// The position that was written last.
    pub fn read(&self) -> Option<Position> {
        let mut position = Position::new_zeroed();
        self.file.read_exact_at(position.as_mut_bytes(), 0).ok()?;
        let whole = position.magic == MAGIC && position.sum == position.checksum();
        whole.then_some(position)
    }

    /// Writes a position.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, mut position: Position) -> io::Result<()> {
        position.sum = position.checksum();
        self.file.write_all_at(position.as_bytes(), 0)
    }

    /// Removes the file.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn path(folder: &Path, domain: u16, console: u32) -> PathBuf {
    folder.join(format!("console-{domain}.{console}"))
}

/// Removes the positions of an ended domain's consoles.
pub fn remove(folder: &Path, domain: u16) {
    for console in 0..CONSOLES {
        let _ = fs::remove_file(path(folder, domain, console));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_back_and_a_damaged_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = PositionFile::open(dir.path(), 7, 1, false).unwrap();
        assert_eq!(file.read(), None);
        let mut position = Position::new(1, (2, 3));
        position.index = 4;
        file.write(position).unwrap();
        let kept = PositionFile::open(dir.path(), 7, 1, true).unwrap();
        assert_eq!(kept.read().unwrap().index, 4);
        let bytes = fs::read(&file.path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(&file.path, damaged).unwrap();
            assert_eq!(file.read(), None, "byte {at}");
        }
        file.write(position).unwrap();
        let emptied = PositionFile::open(dir.path(), 7, 1, false).unwrap();
        assert_eq!(emptied.read(), None);
        remove(dir.path(), 7);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
