//! Console 1: the file libxl takes a saved device model's state from.
//!
//! libxl reads the file whole as soon as QEMU in the stubdomain has answered, and removes it when a
//! save has failed; it never empties it. dom0's QEMU appends every state to it, and keeps writing
//! to the removed one. Here each *record* of ours (see [`crate::libxl::state_record`]) begins the
//! file again, at its path, so that it holds one state: the last. Its filler is not written: from
//! the record's last byte on the file does not change, and once the ring has taken the whole
//! filler, the record has been written.
//!
//! A stream that is no record (another stubdomain's) is appended as it arrives. Either way the file
//! is no longer than [`STATE_MAX`] and a header: a record cannot declare more, and what follows of
//! other streams is dropped.

use std::io::{self, Write};
use std::path::Path;

use crc32fast::Hasher;
use tracing::{info, warn};

use super::position::StatePosition;
use crate::libxl::state_record::{HEADER, Header, MAGIC, STATE_MAX};
use crate::rt::log_file::{AppendFile, is_at};

/// A state holds the guest's data: nobody else may read it.
const MODE: u32 = 0o600;
/// How many lines about states our log gets: the domain could fill it otherwise, with states of no
/// length.
const LINES: u32 = 100;

/// Where in the stream we are.
#[derive(Debug)]
enum Place {
    /// Before a record: the received bytes of its header.
    Before(Vec<u8>),
    /// In the state: what is left of it.
    State {
        header: Header,
        left: u64,
        crc: Hasher,
    },
    /// In the filler: what is left of it.
    Filler(u64),
    /// Something that is no record.
    Plain,
}

/// The file.
#[derive(Debug)]
pub struct StateFile {
    file: AppendFile,
    size: u64,
    place: Place,
    /// Input is dropped until the next record.
    broken: bool,
    /// Lines logged.
    lines: u32,
}

impl StateFile {
    /// Opens and empties it.
    ///
    /// # Errors
    /// The system's.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::open(path, false)
    }

    /// Opens the file; keeps its contents and continues them if `kept`.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path, kept: bool) -> io::Result<Self> {
        let file = AppendFile::open(path, MODE, kept)?;
        Ok(Self {
            size: file.length()?,
            file,
            place: Place::Before(Vec::new()),
            broken: false,
            lines: 0,
        })
    }

    /// The file with its length.
    pub fn file(&self) -> &AppendFile {
        &self.file
    }

    /// Returns where in the stream the next byte is.
    pub fn position(&self) -> StatePosition {
        let mut position = StatePosition {
            broken: self.broken.into(),
            ..StatePosition::default()
        };
        match &self.place {
            Place::Before(head) => {
                position.left = head.len() as u64;
                for (to, byte) in position.head.iter_mut().zip(head) {
                    *to = *byte;
                }
            }
            Place::State { header, left, crc } => {
                (position.kind, position.left) = (1, *left);
                position.head = header.encode();
                position.crc = crc.clone().finalize();
            }
            Place::Filler(left) => (position.kind, position.left) = (2, *left),
            Place::Plain => position.kind = 3,
        }
        position
    }

    /// Goes on at `position`. One that this version never writes begins a stream.
    pub fn resume(&mut self, position: &StatePosition) {
        let head = position.head;
        let left = usize::try_from(position.left).unwrap_or(HEADER);
        self.broken = position.broken != 0;
        self.size = self.file.length().unwrap_or(STATE_MAX);
        self.place = match (position.kind, Header::decode(&head)) {
            (1, Some(header)) if (1..=header.length).contains(&position.left) => Place::State {
                header,
                left: position.left,
                crc: Hasher::new_with_initial_len(position.crc, header.length - position.left),
            },
            (2, _) => after_filler(position.left),
            (3, _) => Place::Plain,
            _ => Place::Before(head.get(..left).unwrap_or_default().to_vec()),
        };
    }

    /// Takes all of `bytes`; logs what cannot be written.
    pub fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = self.step(bytes);
        }
    }

    /// Takes the bytes up to the next change of place, one at least; returns the rest.
    fn step<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let up_to = |left: u64| {
            bytes.split_at(usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()))
        };
        match std::mem::replace(&mut self.place, Place::Plain) {
            Place::Before(mut head) => {
                let (more, rest) = up_to((HEADER - head.len()) as u64);
                head.extend_from_slice(more);
                self.place = self.begin(head);
                rest
            }
            Place::State {
                header,
                left,
                mut crc,
            } => {
                let (part, rest) = up_to(left);
                self.write(part);
                crc.update(part);
                let left = left - part.len() as u64;
                self.place = if left > 0 {
                    Place::State { header, left, crc }
                } else {
                    self.end(&header, crc)
                };
                rest
            }
            Place::Filler(left) => {
                let (part, rest) = up_to(left);
                self.place = after_filler(left - part.len() as u64);
                rest
            }
            Place::Plain => {
                self.write(bytes);
                &[]
            }
        }
    }

    /// Classifies the beginning of a header, or all of it.
    fn begin(&mut self, head: Vec<u8>) -> Place {
        let known = head.len().min(MAGIC.len());
        let Some(bytes) = head.first_chunk::<HEADER>() else {
            if head.get(..known) == MAGIC.get(..known) {
                return Place::Before(head);
            }
            self.write(&head);
            return Place::Plain;
        };
        let Some(header) = Header::decode(bytes) else {
            self.write(&head);
            return Place::Plain;
        };
        self.broken = false;
        if let Err(error) = self.renew() {
            self.complain(&error);
        }
        self.write(&head);
        let (left, crc) = (header.length, Hasher::new());
        match left {
            0 => self.end(&header, crc),
            _ => Place::State { header, left, crc },
        }
    }

    fn end(&mut self, header: &Header, crc: Hasher) -> Place {
        let (number, length) = (header.number, header.length);
        if crc.finalize() != header.crc {
            if self.may_log() {
                warn!("save {number}: {length} bytes that are not what was sent");
            }
        } else if !self.broken && self.may_log() {
            info!(
                "save {number}: {length} bytes are in {}",
                self.file.path().display()
            );
        }
        after_filler(header.filler.into())
    }

    /// An empty file at our path: libxl may have removed the one there was.
    fn renew(&mut self) -> io::Result<()> {
        if is_at(self.file.file(), self.file.path()).unwrap_or(false) {
            self.file.file().set_len(0)?;
        } else {
            self.file.renew()?;
            self.file.file().set_len(0)?;
        }
        self.size = 0;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.broken {
            return;
        }
        let length = bytes.len() as u64;
        let written = if self.size.saturating_add(length) > STATE_MAX + HEADER as u64 {
            Err(io::Error::other("more than a state can be"))
        } else {
            self.file.write_all(bytes)
        };
        match written {
            Ok(()) => self.size += length,
            Err(error) => self.complain(&error),
        }
    }

    /// A state that lacks a part is of no use: it stays cut, which the restoring side sees.
    fn complain(&mut self, error: &io::Error) {
        self.broken = true;
        if self.may_log() {
            warn!(
                "writing {}: {error}; this state is lost",
                self.file.path().display()
            );
        }
    }

    /// Counts a line of our log.
    fn may_log(&mut self) -> bool {
        self.lines = self.lines.saturating_add(1);
        if self.lines == LINES {
            warn!("{}: no more of this is logged", self.file.path().display());
        }
        self.lines < LINES
    }
}

fn after_filler(left: u64) -> Place {
    match left {
        0 => Place::Before(Vec::new()),
        _ => Place::Filler(left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libxl::state_record::FILLER;
    use crc32fast::hash as crc32;
    use std::os::unix::fs::MetadataExt;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Recorder(Arc<Mutex<Vec<u8>>>);

    impl Write for Recorder {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn record(number: u32, state: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let header = Header {
            number,
            crc: crc32(state),
            length: state.len() as u64,
            filler: FILLER,
        };
        let kept = [&header.encode()[..], state].concat();
        let mut sent = kept.clone();
        sent.resize(sent.len() + FILLER as usize, 0);
        (sent, kept)
    }

    #[test]
    fn the_file_holds_the_last_state_however_the_bytes_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qemu-save.1");
        let states = [
            vec![7; 10_000],
            b"QEVM short".to_vec(),
            Vec::new(),
            vec![9; 4096],
        ];
        for size in [1, 31, 32, 33, 100, 2048, 1 << 20] {
            let mut file = StateFile::create(&path).unwrap();
            for (number, state) in (1..).zip(&states) {
                let (sent, kept) = record(number, state);
                for piece in sent.chunks(size) {
                    file.take(piece);
                }
                assert!(
                    std::fs::read(&path).unwrap() == kept,
                    "save {number}, pieces of {size}"
                );
                assert!(matches!(&file.place, Place::Before(head) if head.is_empty()));
            }
        }
    }

    #[test]
    fn another_goes_on_at_every_byte_of_the_stream() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (first, _) = record(1, &[7; 100]);
        let (second, kept) = record(2, b"QEVM second");
        let sent = [first, second].concat();
        let end = sent.len() - FILLER as usize;
        let positions = |from: &mut StateFile, bytes: &[u8]| {
            let step = |bytes: &[u8]| {
                from.take(bytes);
                from.position()
            };
            bytes.chunks(5).map(step).collect::<Vec<_>>()
        };
        for at in (0..300).chain(end - 200..end) {
            let mut file = StateFile::create(&path).unwrap();
            file.take(&sent[..at]);
            let position = file.position();
            drop(file);
            let mut next = StateFile::open(&path, true).unwrap();
            next.resume(&position);
            let near = end.min(at + 50);
            let seen = positions(&mut next, &sent[at..near]);
            next.take(&sent[near..end]);
            assert!(std::fs::read(&path).unwrap() == kept, "at {at}");
            // The checksum too, which only the log would show to be wrong.
            let mut whole = StateFile::create(&dir.path().join("whole")).unwrap();
            whole.take(&sent[..at]);
            assert_eq!(seen, positions(&mut whole, &sent[at..near]), "at {at}");
            next.take(&sent[end..]);
            assert!(matches!(&next.place, Place::Before(head) if head.is_empty()));
        }
    }

    #[test]
    fn a_state_that_lacks_a_part_gets_no_other_from_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut file = StateFile::create(&path).unwrap();
        let (sent, kept) = record(1, &[5; 5000]);
        file.take(&sent[..1000]);
        file.file = AppendFile::open(Path::new("/dev/full"), MODE, true).unwrap();
        file.take(&sent[1000..2000]);
        let mut next = StateFile::open(&path, true).unwrap();
        next.resume(&file.position());
        next.take(&sent[2000..]);
        assert_eq!(std::fs::read(&path).unwrap(), kept[..1000]);
    }

    #[test]
    fn the_state_is_in_the_file_before_the_filler_has_come() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut file = StateFile::create(&path).unwrap();
        let (sent, kept) = record(1, b"QEVM");
        file.take(&sent[..kept.len()]);
        assert_eq!(std::fs::read(&path).unwrap(), kept);
    }

    #[test]
    fn a_file_that_libxl_removed_is_there_again_for_the_next_save() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut file = StateFile::create(&path).unwrap();
        file.take(&record(1, b"first").0);
        std::fs::remove_file(&path).unwrap();
        let (sent, kept) = record(2, b"second");
        file.take(&sent);
        assert_eq!(std::fs::read(&path).unwrap(), kept);
    }

    #[test]
    fn what_is_no_record_is_appended_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        for stream in [
            &b"QEVM and so on"[..],
            b"stubdmS",
            b"stubdmS1 with no header behind it at all",
            b"s",
            b"\0",
        ] {
            let mut file = StateFile::create(&path).unwrap();
            for byte in stream {
                file.take(&[*byte]);
            }
            let held = if let Place::Before(head) = &file.place {
                head.len()
            } else {
                0
            };
            assert_eq!(std::fs::read(&path).unwrap(), stream[..stream.len() - held]);
            assert!(held < HEADER);
        }
        let mut file = StateFile::create(&path).unwrap();
        file.take(b"x");
        file.size = STATE_MAX + 1;
        file.take(&[1; HEADER]);
        assert!(file.broken, "one byte too many");
        file.take(b"more");
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }

    #[test]
    fn states_are_for_their_owner_and_of_many_records_not_every_one_is_logged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let logged = || {
            let mut file = StateFile::create(&path).unwrap();
            let log = Recorder::default();
            let subscriber = tracing_subscriber::fmt().with_writer({
                let log = log.clone();
                move || log.clone()
            });
            let len = || log.0.lock().unwrap().len();
            tracing::subscriber::with_default(subscriber.finish(), || {
                file.take(&record(1, b"").0);
                let numbers = if len() > 0 { 2..10_000 } else { 0..0 };
                for number in numbers {
                    file.take(&record(number, b"").0);
                }
            });
            std::mem::take(&mut *log.0.lock().unwrap())
        };
        // tracing passes a new subscriber over if another test logs the same line for the first
        // time at that moment.
        let log = (0..1000).map(|_| logged()).find(|log| !log.is_empty());
        let log = log.unwrap();
        let lines = log.iter().filter(|byte| **byte == b'\n').count();
        assert!((2..200).contains(&lines), "{lines} lines");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_state_that_lost_a_part_stays_cut_and_the_next_one_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut file = StateFile::create(&path).unwrap();
        let (sent, kept) = record(1, &[5; 5000]);
        file.take(&sent[..1000]);
        file.file = AppendFile::open(Path::new("/dev/full"), MODE, true).unwrap();
        file.take(&sent[1000..2000]);
        file.file = AppendFile::open(&path, MODE, true).unwrap();
        file.take(&sent[2000..]);
        assert_eq!(std::fs::read(&path).unwrap(), kept[..1000]);
        let (sent, kept) = record(2, b"QEVM");
        file.take(&sent);
        assert_eq!(std::fs::read(&path).unwrap(), kept);
    }
}
