//! The records of an HVM guest's context, as
//! [`Privcmd::hvm_context`](crate::privcmd::Privcmd::hvm_context) returns them: a reader that
//! trusts none of the lengths in them.
//!
//! ```
//! use xen_sys::hvm_save::Records;
//!
//! fn show(context: &[u8]) -> Result<(), xen_sys::hvm_save::ReadError> {
//!     for record in Records::new(context)? {
//!         let record = record?;
//!         println!("{} {}: {} bytes", record.kind, record.instance, record.body.len());
//!         if let Some(cpu) = record.cpu()? {
//!             println!("rip {:#x}", cpu.rip);
//!         }
//!     }
//!     Ok(())
//! }
//! ```

use zerocopy::FromBytes;

use crate::abi::hvm_save::{self as abi, Descriptor};
pub use crate::abi::hvm_save::{Cpu, Header};

/// The reason why a context cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The first record is not a header.
    #[error("the context begins with a record of kind {kind}, not with a header")]
    NoHeader {
        /// Its kind.
        kind: u16,
    },
    /// The header is not of this kind of file or of this version.
    #[error("the header has magic {magic:#x} and version {version}")]
    Header {
        /// Its magic number.
        magic: u32,
        /// Its version.
        version: u32,
    },
    /// The bytes end within a record, or before the end record.
    #[error("the context ends at byte {len}, within what starts at byte {at}")]
    Truncated {
        /// The offset of the record, in bytes.
        at: usize,
        /// The number of bytes available.
        len: usize,
    },
    /// A record is shorter than its kind requires.
    #[error("the record of kind {kind} has {len} bytes of {expected}")]
    Short {
        /// Its kind.
        kind: u16,
        /// Bytes it has.
        len: usize,
        /// Bytes it must have.
        expected: usize,
    },
}

/// One record.
///
/// C: `struct hvm_save_descriptor`, and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record<'a> {
    /// Its kind: `HVM_SAVE_CODE`.
    pub kind: u16,
    /// The number within that kind, such as the virtual CPU's number.
    pub instance: u16,
    /// Its bytes, without the descriptor.
    pub body: &'a [u8],
}

impl Record<'_> {
    /// The kind of the first record.
    #[doc(alias = "HVM_SAVE_CODE")]
    pub const HEADER: u16 = abi::CODE_HEADER;
    /// The kind of a virtual CPU's registers.
    pub const CPU: u16 = abi::CODE_CPU;

    /// Creates the record that [`Privcmd::hvm_record`](crate::privcmd::Privcmd::hvm_record) read.
    #[must_use]
    pub const fn of(kind: u16, instance: u16, body: &[u8]) -> Record<'_> {
        Record {
            kind,
            instance,
            body,
        }
    }

    /// Returns the registers of a virtual CPU, if the record contains them.
    ///
    /// # Errors
    ///
    /// [`ReadError::Short`].
    pub fn cpu(&self) -> Result<Option<Cpu>, ReadError> {
        match self.kind {
            Self::CPU => self.read().map(Some),
            _ => Ok(None),
        }
    }

    fn read<T: FromBytes>(&self) -> Result<T, ReadError> {
        let read = T::read_from_prefix(self.body);
        read.map(|(value, _)| value).map_err(|_| ReadError::Short {
            kind: self.kind,
            len: self.body.len(),
            expected: size_of::<T>(),
        })
    }
}

/// The records of a context, in their order; the record that marks the end is left out.
///
/// After an error there is no further record.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    /// The offset of the next record; behind the bytes after the last one.
    at: usize,
    header: Header,
}

impl<'a> Records<'a> {
    /// Reads the header and starts with it.
    ///
    /// # Errors
    ///
    /// [`ReadError`] for the header.
    pub fn new(bytes: &'a [u8]) -> Result<Self, ReadError> {
        let (first, _) = record(bytes, 0)?;
        if first.kind != Record::HEADER {
            return Err(ReadError::NoHeader { kind: first.kind });
        }
        let header: Header = first.read()?;
        if (header.magic, header.version) != (abi::FILE_MAGIC, abi::FILE_VERSION) {
            return Err(ReadError::Header {
                magic: header.magic,
                version: header.version,
            });
        }
        Ok(Self {
            bytes,
            at: 0,
            header,
        })
    }

    /// Returns the header.
    #[must_use]
    pub fn header(&self) -> Header {
        self.header
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        // The bytes have ended, with the end record or after an error.
        if self.at > self.bytes.len() {
            return None;
        }
        let (found, next) = match record(self.bytes, self.at) {
            Ok((record, next)) if record.kind != abi::CODE_END => (Ok(record), next),
            Ok(_) => (Err(None), self.bytes.len() + 1),
            Err(error) => (Err(Some(error)), self.bytes.len() + 1),
        };
        self.at = next;
        match found {
            Ok(record) => Some(Ok(record)),
            Err(end) => end.map(Err),
        }
    }
}

/// Returns the record at a byte, and where the next one starts: always further on, within the
/// bytes.
fn record(bytes: &[u8], at: usize) -> Result<(Record<'_>, usize), ReadError> {
    let len = bytes.len();
    let truncated = ReadError::Truncated { at, len };
    let rest = bytes.get(at..).ok_or(truncated)?;
    let (head, rest) = Descriptor::read_from_prefix(rest).map_err(|_| truncated)?;
    let body = usize::try_from(head.length).ok();
    let body = body
        .and_then(|length| rest.get(..length))
        .ok_or(truncated)?;
    let record = Record {
        kind: head.typecode,
        instance: head.instance,
        body,
    };
    Ok((record, at + size_of::<Descriptor>() + body.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(bytes: &mut Vec<u8>, kind: u16, instance: u16, body: &[u8]) {
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(instance.to_ne_bytes());
        bytes.extend((body.len() as u32).to_ne_bytes());
        bytes.extend(body);
    }

    fn context() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut header = Vec::new();
        header.extend(0x5438_1286_u32.to_ne_bytes());
        header.extend(1_u32.to_ne_bytes());
        header.extend(7_u64.to_ne_bytes());
        header.extend(0x6fb_u32.to_ne_bytes());
        header.extend(2_000_000_u32.to_ne_bytes());
        put(&mut bytes, 1, 0, &header);
        let mut cpu = vec![0; size_of::<Cpu>()];
        // 16 registers of 8 bytes stand between the FPU's and RIP.
        cpu[512 + 128..][..8].copy_from_slice(&0xfff0_u64.to_ne_bytes());
        put(&mut bytes, 2, 1, &cpu);
        put(&mut bytes, 99, 3, b"four");
        put(&mut bytes, 0, 0, &[]);
        bytes
    }

    #[test]
    fn records_are_read_to_the_mark_of_the_end() {
        let mut bytes = context();
        bytes.extend(b"behind the end");
        let records = Records::new(&bytes).unwrap();
        let header = records.header();
        assert_eq!((header.changeset, header.cpuid), (7, 0x6fb));
        let records: Vec<Record<'_>> = records.map(Result::unwrap).collect();
        let kinds: Vec<_> = records.iter().map(|r| (r.kind, r.instance)).collect();
        assert_eq!(kinds, [(1, 0), (2, 1), (99, 3)]);
        assert_eq!(records[1].cpu().unwrap().unwrap().rip, 0xfff0);
        assert!(records[0].cpu().unwrap().is_none());
        assert_eq!(records[2].body, b"four");
    }

    #[test]
    fn a_context_cut_anywhere_is_an_error_and_ends() {
        let whole = context();
        for len in 0..whole.len() {
            let cut = &whole[..len];
            let error = match Records::new(cut) {
                Err(error) => error,
                Ok(records) => {
                    let read: Vec<_> = records.collect();
                    assert!(read.len() <= 4, "{len}: {read:?}");
                    read.last().unwrap().unwrap_err()
                }
            };
            assert!(
                matches!(error, ReadError::Truncated { len: told, .. } if told == len),
                "{len}: {error:?}"
            );
        }
    }

    #[test]
    fn a_length_beyond_the_bytes_or_a_short_record_is_an_error() {
        let mut bytes = context();
        let cpu = 8 + 24;
        bytes[cpu + 4..cpu + 8].copy_from_slice(&u32::MAX.to_ne_bytes());
        let mut records = Records::new(&bytes).unwrap();
        assert!(records.next().unwrap().is_ok());
        let error = records.next().unwrap().unwrap_err();
        assert_eq!(
            error,
            ReadError::Truncated {
                at: cpu,
                len: bytes.len()
            }
        );
        assert!(records.next().is_none());

        let mut bytes = context();
        bytes[0] = 2;
        let error = Records::new(&bytes).unwrap_err();
        assert_eq!(error, ReadError::NoHeader { kind: 2 });
        let mut bytes = context();
        bytes[8] = 0;
        let error = Records::new(&bytes).unwrap_err();
        assert!(matches!(error, ReadError::Header { version: 1, .. }));

        let short = Record {
            kind: Record::CPU,
            instance: 0,
            body: &[0; 100],
        };
        assert!(matches!(
            short.cpu().unwrap_err(),
            ReadError::Short { len: 100, .. }
        ));
    }
}
