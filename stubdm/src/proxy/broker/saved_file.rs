//! On the host: checks that the state that QEMU reports as saved is in the file that libxl takes.
//!
//! After a success libxl opens the file by its name at once and takes all that is in it. After a
//! failure it removes the name. The console server meanwhile appends every record to one open file;
//! it keeps bytes that a full disk refuses and writes them later, some twice. So
//! [`SavedFile::stored`] checks before libxl gets the answer:
//!
//! | found | done |
//! |---|---|
//! | the file begins with the record, and nothing but filler follows | nothing |
//! | the record is the last thing in the file, or in the one that lost its name | a new file takes the name, with this record only |
//! | no record, an older one, one that is cut short or altered | refused: the save fails, the guest runs on |
//!
//! The record is the one whose end is the file's, but for filler, with a checksum that is right.
//! Records are counted: one that a full disk kept back is not taken for the next. A stream without
//! records is from another kind of stubdomain, and libxl judges it.
//!
//! The stubdomain writes the file: it is read up to a limit, in pieces.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use tracing::{debug, warn};

use crate::libxl::state_record::{HEADER, Header, MAGIC, STATE_MAX};

/// How much is read at a time.
const PIECE: usize = 64 << 10;
/// How much may have been written since the last record: that one's filler, records that a full
/// disk kept back, and a record.
const NEW_MAX: u64 = 2 * STATE_MAX;
/// How many headers are tried whose record could be the last thing in the file.
const TRIES: usize = 4;

/// The file, as far as it is known.
#[derive(Debug)]
pub struct SavedFile {
    path: PathBuf,
    /// The file that the console server writes, even when its name is removed.
    held: Option<File>,
    /// The offset in it at which the last record ended.
    from: u64,
    /// The number that the next record has at least.
    next: u32,
    /// A record was there once.
    ours: bool,
}

/// A record in a file.
#[derive(Debug)]
struct Record {
    at: u64,
    end: u64,
    number: u32,
}

/// The end of a file.
#[derive(Debug)]
enum Ending {
    Record(Record),
    /// A broken record.
    Broken,
    /// Nothing of ours.
    Other,
}

impl SavedFile {
    /// Over the file of this name, which need not be there yet.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            held: None,
            from: 0,
            next: 1,
            ours: false,
        }
    }

    /// Keeps the file, so that it can be read when it has no name any more. To be called as soon as
    /// there may be one, and before a save can fail.
    pub fn hold(&mut self) {
        if self.held.is_none() {
            match open(&self.path) {
                Ok(file) => self.held = Some(file),
                Err(error) => debug!("{}: {error}", self.path.display()),
            }
        }
    }

    /// Handles QEMU's report of a save: ensures that libxl finds this state, and no other, under
    /// the name.
    ///
    /// # Errors
    /// Why libxl would not find it: one line for people.
    pub fn stored(&mut self) -> Result<(), String> {
        self.hold();
        let number = self.find();
        // Whatever became of this record: the next one has another number.
        let due = *number.as_ref().unwrap_or(&self.next);
        self.next = self.next.max(due).saturating_add(1);
        number.map(drop)
    }

    /// The number of the record that is in place.
    fn find(&mut self) -> Result<u32, String> {
        let path = self.path.display().to_string();
        let broken = |error: io::Error| format!("{path}: {error}");
        let named = match open(&self.path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(broken(error)),
        };
        let same = match (&named, &self.held) {
            (Some(named), Some(held)) => identity(named).ok() == identity(held).ok(),
            _ => false,
        };
        let start = named.as_ref().map_or(Ok(Ending::Other), at_start);
        let start = start.map_err(broken)?;
        if let Ending::Record(found) = &start {
            if found.number >= self.next {
                self.ours = true;
                if same {
                    self.from = found.end;
                }
                return Ok(found.number);
            }
        }
        let mut why = "the state has not arrived";
        let ending = match (start, &self.held) {
            (Ending::Broken, _) => Ending::Broken,
            (_, Some(file)) => ending(file, self.from, self.ours).map_err(broken)?,
            (_, None) => Ending::Other,
        };
        match (ending, &self.held) {
            (Ending::Record(found), Some(file)) if found.number >= self.next => {
                self.ours = true;
                self.from = found.end;
                spare(file, found.at);
                replace(file, &self.path, &found).map_err(broken)?;
                spare(file, found.end);
                return Ok(found.number);
            }
            (Ending::Other, _) if !self.ours && named.as_ref().is_some_and(has_bytes) => {
                debug!("{path}: no state of ours");
                return Ok(0);
            }
            (Ending::Broken, _) => why = "the state is cut short or altered",
            _ => {}
        }
        if let Some(meta) = self.held.as_ref().and_then(|file| file.metadata().ok()) {
            // Skip it: it can never become valid.
            self.from = meta.len();
        }
        Err(format!("{path}: {why}"))
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("no plain file"))
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let meta = file.metadata()?;
    Ok((meta.dev(), meta.ino()))
}

fn has_bytes(file: &File) -> bool {
    file.metadata().is_ok_and(|meta| meta.len() > 0)
}

/// Classifies a file with one record at most, and filler.
fn at_start(file: &File) -> io::Result<Ending> {
    Ok(match ending_at(file, 0, file.metadata()?.len())? {
        At::Cut => Ending::Broken,
        At::Last(record, header) if is_whole(file, &record, &header)? => Ending::Record(record),
        At::Last(..) | At::Other => Ending::Other,
    })
}

/// Classifies the end of the bytes from `from` on. A stream that is `ours` has nothing but records;
/// any other may have a record's first word somewhere, but does not begin with it.
fn ending(file: &File, from: u64, ours: bool) -> io::Result<Ending> {
    let size = file.metadata()?.len();
    if size.saturating_sub(from) > NEW_MAX {
        return Err(io::Error::other("more has come than a state can be"));
    }
    let mut tries = 0;
    let mut seen = false;
    let mut piece = vec![0; PIECE];
    let mut at = from;
    while at < size {
        let count = up_to(size - at, PIECE);
        let bytes = piece.get_mut(..count).unwrap_or_default();
        file.read_exact_at(bytes, at)?;
        for start in (0..count).filter(|start| begins(bytes, *start)) {
            let place = at + start as u64;
            seen |= ours || place == from;
            let here = match bytes.get(start..).and_then(<[u8]>::first_chunk) {
                Some(header) => judge(header, place, size),
                None => ending_at(file, place, size)?,
            };
            match here {
                // Whatever looks like a record in what there is of this one is the guest's.
                At::Cut => return Ok(Ending::Broken),
                At::Last(record, header) => {
                    tries += 1;
                    if tries <= TRIES && is_whole(file, &record, &header)? {
                        return Ok(Ending::Record(record));
                    }
                }
                At::Other => {}
            }
        }
        at += count as u64;
    }
    Ok(if seen { Ending::Broken } else { Ending::Other })
}

/// The header at a place.
enum At {
    /// The file ends in the middle of this record.
    Cut,
    /// The file ends with this record, and as much of its filler as there is.
    Last(Record, Header),
    /// It is no header, or something else follows.
    Other,
}

fn ending_at(file: &File, at: u64, size: u64) -> io::Result<At> {
    let mut header = [0; HEADER];
    if size.saturating_sub(at) < HEADER as u64 {
        return Ok(At::Other);
    }
    file.read_exact_at(&mut header, at)?;
    Ok(judge(&header, at, size))
}

fn judge(header: &[u8; HEADER], at: u64, size: u64) -> At {
    let Some(header) = Header::decode(header) else {
        return At::Other;
    };
    let end = at + HEADER as u64 + header.length;
    let number = header.number;
    if end > size {
        At::Cut
    } else if size - end > u64::from(header.filler) {
        At::Other
    } else {
        At::Last(Record { at, end, number }, header)
    }
}

/// Returns whether a record's first bytes are here, as many as there are.
fn begins(bytes: &[u8], start: usize) -> bool {
    let rest = bytes.get(start..).unwrap_or_default();
    let known = rest.len().min(MAGIC.len());
    known > 0 && rest.get(..known) == MAGIC.get(..known)
}

/// Returns whether the checksum is right, and nothing but filler follows.
fn is_whole(file: &File, record: &Record, header: &Header) -> io::Result<bool> {
    let mut crc = crc32fast::Hasher::new();
    each_piece(file, record.at + HEADER as u64, record.end, |piece| {
        crc.update(piece);
        Ok(())
    })?;
    let mut blank = true;
    let size = file.metadata()?.len();
    let size = size.min(record.end + u64::from(header.filler));
    each_piece(file, record.end, size, |piece| {
        blank &= piece.iter().all(|byte| *byte == 0);
        Ok(())
    })?;
    Ok(blank && crc.finalize() == header.crc)
}

fn each_piece(
    file: &File,
    mut at: u64,
    end: u64,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    while at < end {
        let bytes = piece.get_mut(..up_to(end - at, PIECE)).unwrap_or_default();
        file.read_exact_at(bytes, at)?;
        take(bytes)?;
        at += bytes.len() as u64;
    }
    Ok(())
}

fn up_to(count: u64, most: usize) -> usize {
    usize::try_from(count).unwrap_or(most).min(most)
}

/// A file with this record only takes the name.
fn replace(file: &File, path: &Path, record: &Record) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".whole");
    let whole = PathBuf::from(name);
    match fs::remove_file(&whole) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        let mut options = File::options();
        let new = options.write(true).create_new(true).mode(0o600);
        let copy = new.open(&whole)?;
        let mut to = 0;
        each_piece(file, record.at, record.end, |piece| {
            copy.write_all_at(piece, to)?;
            to += piece.len() as u64;
            Ok(())
        })?;
        fs::rename(&whole, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&whole);
    }
    written
}

/// Frees the file's blocks before `end`: nobody reads them any more. The console's server continues
/// after them.
fn spare(file: &File, end: u64) {
    let Ok(length @ 1..) = i64::try_from(end) else {
        return;
    };
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    if let Err(error) = fallocate(file, hole, 0, length) {
        warn!("old saved states stay on the disk: {error}");
    }
}

#[cfg(test)]
mod tests;
