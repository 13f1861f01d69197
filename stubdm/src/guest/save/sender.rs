//! In the stubdomain: the file QEMU saves into, and its way to console 1.
//!
//! QEMU duplicates the descriptor in fdset 1 for every save, so all saves share one file offset:
//! [`SaveFile::rewind`] must precede each, or the second state would follow a hole.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::libxl::state_record::{FILLER, HEADER, Header, QEMU_MAGIC, STATE_MAX};
use crate::rt::stream::Stream;

/// How much is read from the file at a time.
const PIECE: usize = 4096;

/// The memory file.
#[derive(Debug)]
pub struct SaveFile {
    /// Ours, to read.
    file: File,
    /// A second opening, for writing only: the access mode has to be the one QEMU opens with. QEMU
    /// gets a duplicate of it, which shares its offset.
    writer: File,
    saves: u32,
}

impl SaveFile {
    /// Makes the file.
    ///
    /// # Errors
    /// The system's; `/proc` has to be mounted.
    pub fn new() -> io::Result<Self> {
        let file = File::from(memfd_create(c"device-model-state", MFdFlags::MFD_CLOEXEC)?);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let writer = File::options().write(true).open(path)?;
        Ok(Self {
            file,
            writer,
            saves: 0,
        })
    }

    /// Returns the descriptor for QEMU.
    ///
    /// # Errors
    /// The system's.
    pub fn for_qemu(&self) -> io::Result<OwnedFd> {
        self.writer.as_fd().try_clone_to_owned()
    }

    /// Makes the file fit for the next save.
    ///
    /// # Errors
    /// The system's.
    pub fn rewind(&mut self) -> io::Result<()> {
        self.writer.seek(SeekFrom::Start(0))?;
        self.writer.set_len(0)
    }

    /// Returns the sender of the state that QEMU has reported as saved.
    ///
    /// # Errors
    /// Fails if the file holds no state of QEMU's, or one that is too long.
    pub fn drain(&mut self) -> io::Result<Sender> {
        let length = self.file.metadata()?.len();
        if length > STATE_MAX {
            let what = format!("the state has {length} bytes");
            return Err(io::Error::other(what));
        }
        let mut crc = crc32fast::Hasher::new();
        let mut reader = &self.file;
        reader.seek(SeekFrom::Start(0))?;
        let mut start = [0; QEMU_MAGIC.len()];
        reader.read_exact(&mut start)?;
        if start != QEMU_MAGIC {
            // Seen when a save was still under way while the next one was asked for.
            return Err(io::Error::other("the state does not begin as QEMU's do"));
        }
        crc.update(&start);
        let mut buffer = [0; PIECE];
        loop {
            let count = reader.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            crc.update(buffer.get(..count).unwrap_or_default());
        }
        self.saves += 1;
        let header = Header {
            number: self.saves,
            crc: crc.finalize(),
            length,
            filler: FILLER,
        };
        Ok(Sender {
            header,
            bytes: header.encode(),
            sent: 0,
        })
    }
}

/// One record on its way.
#[derive(Debug)]
pub struct Sender {
    header: Header,
    bytes: [u8; HEADER],
    sent: u64,
}

impl Sender {
    /// Returns the header of the record being sent.
    pub fn header(&self) -> &Header {
        &self.header
    }

    fn total(&self) -> u64 {
        HEADER as u64 + self.header.length + u64::from(self.header.filler)
    }

    /// The bytes from `at` on, as many as `buffer` holds or there are.
    fn piece(&self, file: &SaveFile, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let state = HEADER as u64;
        let filler = state + self.header.length;
        if at < state {
            let rest = self.bytes.get(at as usize..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            for (to, from) in buffer.iter_mut().zip(rest) {
                *to = *from;
            }
            return Ok(count);
        }
        let end = if at < filler { filler } else { self.total() };
        let count = usize::try_from(end - at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let buffer = buffer.get_mut(..count).unwrap_or_default();
        if at < filler {
            file.file.read_exact_at(buffer, at - state)?;
        } else {
            buffer.fill(0);
        }
        Ok(count)
    }

    /// Sends what the console takes now. `true` when all is sent.
    ///
    /// # Errors
    /// The console's, or the memory file's.
    pub fn turn(&mut self, file: &SaveFile, console: &mut Stream) -> io::Result<bool> {
        let mut buffer = [0; PIECE];
        while self.sent < self.total() {
            let count = self.piece(file, self.sent, &mut buffer)?;
            let sent = console.write(buffer.get(..count).unwrap_or_default())?;
            if sent == 0 {
                return Ok(false);
            }
            self.sent += sent as u64;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libxl::state_record::tests::record;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    /// Saves as QEMU does: a duplicate of the descriptor, truncated, written, closed.
    fn save(file: &SaveFile, state: &[u8]) {
        let mut copy = File::from(file.for_qemu().unwrap());
        copy.set_len(0).unwrap();
        copy.write_all(state).unwrap();
    }

    fn drained(file: &mut SaveFile) -> Vec<u8> {
        let (near, far) = UnixStream::pair().unwrap();
        let mut console = Stream::socket(near.into()).unwrap();
        far.set_nonblocking(true).unwrap();
        let mut drain = file.drain().unwrap();
        let mut all = Vec::new();
        loop {
            let done = drain.turn(file, &mut console).unwrap();
            let _ = (&far).read_to_end(&mut all);
            if done {
                return all;
            }
        }
    }

    #[test]
    fn each_save_is_a_record_of_its_own_with_nothing_of_the_last() {
        let mut file = SaveFile::new().unwrap();
        let states = [
            [&b"QEVM"[..], &[1; 300_000]].concat(),
            b"QEVMshort".to_vec(),
            [&b"QEVM"[..], &[2; 5000]].concat(),
        ];
        for (number, state) in (1..).zip(&states) {
            file.rewind().unwrap();
            save(&file, state);
            assert!(
                drained(&mut file) == record(number, state),
                "save number {number}"
            );
        }
    }

    #[test]
    fn without_rewinding_the_second_save_is_seen_to_be_broken() {
        let mut file = SaveFile::new().unwrap();
        save(&file, b"QEVM one");
        save(&file, b"QEVM two");
        let error = file.drain().unwrap_err().to_string();
        assert!(error.contains("does not begin"), "{error}");
        file.rewind().unwrap();
        assert!(file.drain().is_err(), "nothing was saved");
        save(&file, b"QEVM three");
        assert_eq!(file.drain().unwrap().header().number, 1);
    }
}
