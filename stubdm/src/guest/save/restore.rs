//! On restore: finds the state in the bytes of console 2, which never end.
//!
//! A state that was not saved through [`crate::guest::save::sender`] has no header and is passed on
//! as it arrives: QEMU finds its end itself. Records are kept until the console is silent, then the
//! last one counts: a stubdomain that saved more than once appended each state to one file, and
//! only the last belongs to the guest's memory. No I/O, no clock: the caller reports silence by
//! [`Restore::silence`].

use crc32fast::hash as crc32;

use crate::libxl::state_record::{HEADER, Header, MAGIC, STATE_MAX};

/// The use of the received bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// More bytes are needed.
    Nothing,
    /// Pass these on to QEMU.
    Pass(Vec<u8>),
    /// A whole record: this save's number and its state. The last one returned counts.
    Record(u32, Vec<u8>),
}

#[derive(Debug)]
enum State {
    Start,
    Plain,
    Record(Header),
    Filler(u64),
}

/// The parser.
#[derive(Debug)]
pub struct Restore {
    state: State,
    bytes: Vec<u8>,
    last: u32,
}

impl Default for Restore {
    fn default() -> Self {
        Self {
            state: State::Start,
            bytes: Vec::new(),
            last: 0,
        }
    }
}

impl Restore {
    /// Takes the next bytes. Call again with none until nothing is found.
    ///
    /// # Errors
    /// Fails if the bytes are neither a state nor a record, or are a record that was altered.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Found, String> {
        self.bytes.extend_from_slice(bytes);
        loop {
            match &mut self.state {
                State::Plain => {
                    let bytes = std::mem::take(&mut self.bytes);
                    return Ok(if bytes.is_empty() {
                        Found::Nothing
                    } else {
                        Found::Pass(bytes)
                    });
                }
                State::Start => {
                    let known = self.bytes.len().min(MAGIC.len());
                    if self.bytes.get(..known) != MAGIC.get(..known) {
                        if self.last > 0 {
                            return Err("something follows the saved state".into());
                        }
                        self.state = State::Plain;
                        continue;
                    }
                    let Some(header) = self.bytes.first_chunk::<HEADER>() else {
                        return Ok(Found::Nothing);
                    };
                    let header = Header::decode(header).ok_or("a record's header is damaged")?;
                    if header.number <= self.last || header.length > STATE_MAX {
                        return Err(format!("save {} follows save {}", header.number, self.last));
                    }
                    self.bytes.drain(..HEADER);
                    self.state = State::Record(header);
                }
                State::Record(header) => {
                    let length = usize::try_from(header.length).unwrap_or(usize::MAX);
                    if self.bytes.len() < length {
                        return Ok(Found::Nothing);
                    }
                    let rest = self.bytes.split_off(length);
                    let state = std::mem::replace(&mut self.bytes, rest);
                    if crc32(&state) != header.crc {
                        return Err("the saved state was altered on its way".into());
                    }
                    self.last = header.number;
                    self.state = State::Filler(u64::from(header.filler));
                    return Ok(Found::Record(self.last, state));
                }
                State::Filler(left) => {
                    let count = self.bytes.len().min(usize::try_from(*left).unwrap_or(0));
                    self.bytes.drain(..count);
                    *left -= count as u64;
                    if *left > 0 {
                        return Ok(Found::Nothing);
                    }
                    self.state = State::Start;
                    if self.bytes.is_empty() {
                        return Ok(Found::Nothing);
                    }
                }
            }
        }
    }

    /// Returns whether bytes without a header are passed on, so that silence means nothing.
    pub fn is_plain(&self) -> bool {
        matches!(self.state, State::Plain)
    }

    /// Handles a silence: returns whether the received bytes are complete.
    ///
    /// # Errors
    /// A record was begun and not ended: the state before it must not be used in its place.
    pub fn silence(&self) -> Result<bool, String> {
        match &self.state {
            State::Start if self.bytes.is_empty() => Ok(self.last > 0),
            // The filler is not the state: a host may have stopped in it.
            State::Filler(_) => Ok(true),
            State::Plain => Ok(false),
            State::Start | State::Record(_) => Err("the saved state is cut short".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libxl::state_record::tests::record;

    /// Everything found in `stream`, cut into pieces of `size`.
    fn read(stream: &[u8], size: usize) -> (Restore, Result<Vec<Found>, String>) {
        let mut reader = Restore::default();
        let mut all = Vec::new();
        for piece in stream.chunks(size) {
            let mut piece = piece;
            loop {
                match reader.push(piece) {
                    Ok(Found::Nothing) => break,
                    Ok(found) => all.push(found),
                    Err(why) => return (reader, Err(why)),
                }
                piece = &[];
            }
        }
        (reader, Ok(all))
    }

    #[test]
    fn the_last_of_several_records_counts_however_they_are_cut() {
        let stream = [record(1, b"QEVM old"), record(2, b"QEVM new")].concat();
        for size in [1, 2, 31, 32, 33, 1000, 4099, stream.len()] {
            let (reader, found) = read(&stream, size);
            let found = found.unwrap();
            assert_eq!(found.len(), 2, "pieces of {size}");
            assert_eq!(found.last(), Some(&Found::Record(2, b"QEVM new".to_vec())));
            assert_eq!(reader.silence(), Ok(true));
        }
    }

    #[test]
    fn a_state_without_a_header_passes_as_it_comes() {
        let stream = b"QEVM\0\0\0\x03 stubdmS1 and so on";
        for size in 1..stream.len() {
            let (reader, found) = read(stream, size);
            let mut all = Vec::new();
            for found in found.unwrap() {
                let Found::Pass(bytes) = found else {
                    panic!("{found:?}")
                };
                all.extend(bytes);
            }
            assert_eq!(all, stream);
            assert!(reader.is_plain() && reader.silence() == Ok(false));
        }
    }

    #[test]
    fn a_second_record_that_is_cut_short_does_not_bring_back_the_first() {
        let first = record(1, b"QEVM old");
        let stream = [first.clone(), record(2, b"QEVM new")].concat();
        for end in first.len() + 1..first.len() + HEADER + 8 {
            let (reader, found) = read(&stream[..end], 100);
            assert!(found.is_ok());
            assert!(reader.silence().is_err(), "cut at {end}");
        }
        assert_eq!(Restore::default().silence(), Ok(false), "nothing came yet");
    }

    #[test]
    fn what_was_altered_is_refused() {
        let mut stream = record(1, b"QEVM state");
        stream[HEADER + 5] ^= 1;
        assert!(read(&stream, 64).1.unwrap_err().contains("altered"));
        let twice = [record(2, b"QEVM a"), record(2, b"QEVM b")].concat();
        assert!(read(&twice, 64).1.is_err());
        let tail = [record(1, b"QEVM a"), b"QEVM b".to_vec()].concat();
        assert!(read(&tail, 64).1.is_err());
        let mut header = record(1, b"QEVM a");
        header[9] ^= 1;
        assert!(read(&header, 64).1.unwrap_err().contains("header"));
    }
}
