//! The device model's saved state on its way out of the stubdomain and back into the next one.
//!
//! ```text
//!  save     QEMU ─▶ memory file (fdset 1) ─▶ Sender ─▶ console 1 ─▶ /var/lib/xen/qemu-save.G ─▶ libxl
//!  restore  libxl ─▶ qemu-resume.G ─▶ console 2 ─▶ Restore ─▶ pipe ─▶ QEMU
//! ```
//!
//! QEMU truncates the file it saves to, which a tty or a pipe refuses: hence the memory file. The
//! console is a stream whose reader appends to one file for the stubdomain's whole life, and libxl
//! takes that file as soon as QEMU answers. So each state is sent as a *record*, which declares its
//! end, and QEMU's answer passes when the record is through (`guest/save/intercept.rs`). On restore
//! `guest/save/restore.rs` finds the last record of the file. On the host
//! `proxy/broker/saved_file.rs` checks that the record is in the file before libxl gets the
//! success.
//!
//! # The record
//! | bytes | what |
//! |---|---|
//! | 0..8 | `stubdmS1` |
//! | 8..12 | number of the save in this stubdomain's life, from 1, little-endian as all that follow |
//! | 12..16 | CRC-32 of the state |
//! | 16..24 | length of the state |
//! | 24..28 | length of the filler |
//! | 28..32 | CRC-32 of the bytes before |
//! | 32.. | the state as QEMU wrote it, then the filler: zeros |
//!
//! The filler is twice the console's ring: once the ring has taken it all, the other end has taken
//! the state out, and has read again after it passed the state on.

use crc32fast::hash as crc32;

/// The command that libxl saves with: it takes the state as soon as QEMU reports success.
pub const COMMAND: &str = "xen-save-devices-state";
/// The first bytes of a record.
pub const MAGIC: [u8; 8] = *b"stubdmS1";
/// The first bytes of QEMU's state.
pub const QEMU_MAGIC: [u8; 4] = *b"QEVM";
/// The length of a record's header.
pub const HEADER: usize = 32;
/// Twice the length of a console's ring towards the backend.
pub const FILLER: u32 = 4096;
/// The largest state. A device model's is well under a megabyte; the guest's memory is not in it.
pub const STATE_MAX: u64 = 64 << 20;
/// The file descriptor set that libxl has a stubdomain's QEMU save to.
pub const FDSET: u32 = 1;

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The number of the save, from 1.
    pub number: u32,
    /// CRC-32 of the state.
    pub crc: u32,
    /// Length of the state in bytes.
    pub length: u64,
    /// Length of the filler in bytes.
    pub filler: u32,
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let fields = [
            &MAGIC[..],
            &self.number.to_le_bytes(),
            &self.crc.to_le_bytes(),
            &self.length.to_le_bytes(),
            &self.filler.to_le_bytes(),
        ];
        let fields: Vec<u8> = fields.concat();
        let crc = crc32(&fields).to_le_bytes();
        for (to, from) in bytes.iter_mut().zip(fields.iter().chain(&crc)) {
            *to = *from;
        }
        bytes
    }

    /// Reads a header; `None` if this is none, or has values that no record has.
    pub fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let word = |at: usize| -> Option<u32> {
            let bytes = bytes.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let header = Self {
            number: word(8)?,
            crc: word(12)?,
            length: u64::from(word(16)?) | u64::from(word(20)?) << 32,
            filler: word(24)?,
        };
        let whole = bytes.get(..8)? == MAGIC && crc32(bytes.get(..28)?) == word(28)?;
        let sane = header.number > 0 && header.length <= STATE_MAX && header.filler <= 1 << 20;
        (whole && sane).then_some(header)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A record as [`drain`] sends it.
    pub(crate) fn record(number: u32, state: &[u8]) -> Vec<u8> {
        let header = Header {
            number,
            crc: crc32(state),
            length: state.len() as u64,
            filler: FILLER,
        };
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(state);
        bytes.resize(bytes.len() + FILLER as usize, 0);
        bytes
    }

    #[test]
    fn a_header_comes_back_and_no_flipped_bit_passes() {
        let header = Header {
            number: 3,
            crc: 0xdead_beef,
            length: 0x0012_3456,
            filler: FILLER,
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Some(header));
        for bit in 0..HEADER * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn an_absurd_length_is_no_header() {
        let header = Header {
            number: 1,
            crc: 0,
            length: STATE_MAX + 1,
            filler: 0,
        };
        assert_eq!(Header::decode(&header.encode()), None);
        let header = Header {
            length: STATE_MAX,
            ..header
        };
        assert!(Header::decode(&header.encode()).is_some());
    }
}
