//! The errors of an access to shared bytes.

use std::io;

/// The reason why an access to a [`Region`](crate::Region) failed; nothing was read, written or
/// taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// Part of the access lies outside the region.
    #[error("access outside of a shared region")]
    OutOfRange,
    /// The region is mapped read-only.
    #[error("write to a shared region that is mapped for reading only")]
    ReadOnly,
    /// A word is not aligned to its size.
    #[error("misaligned access to a word of a shared region")]
    Misaligned,
}

impl From<RegionError> for io::Error {
    fn from(e: RegionError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, e)
    }
}
