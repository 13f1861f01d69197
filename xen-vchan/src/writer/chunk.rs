//! Writes into all the space that was free: many small steps, one publish.
//!
//! The cost of one publish (a full barrier, a cache line's way to the peer and back, perhaps a
//! notification) is many times what copying a small message costs. A chunk lets the caller decide
//! where the steps end. It copies, and returns no reference into the ring, which the peer could
//! change meanwhile.

use std::io::{self, Write};

use super::WriteHalf;

/// The space that was free, lent by [`WriteHalf::write_chunk`].
///
/// [`Write`] never blocks here: when the space is used up it returns `Ok(0)`. The peer sees nothing
/// before [`commit`](Self::commit); dropping the loan instead discards it with its bytes.
#[derive(Debug)]
#[must_use = "nothing is sent before `commit`"]
pub struct WriteChunk<'a> {
    half: &'a mut WriteHalf,
}

impl<'a> WriteChunk<'a> {
    pub(crate) const fn new(half: &'a mut WriteHalf) -> Self {
        Self { half }
    }

    /// Returns the space left, in bytes.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.half.tx.known_space() as usize
    }

    /// Copies what fits of `bytes`; returns how many.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let len = bytes.len().min(self.remaining());
        // Within the space known, the ring is not looked at and the copy cannot fail.
        self.half.tx.stage(&bytes[..len]).unwrap_or(0)
    }

    /// Copies all of `bytes`, or copies nothing and returns `false`.
    #[inline]
    pub fn put_whole(&mut self, bytes: &[u8]) -> bool {
        self.remaining() >= bytes.len() && self.put(bytes) == bytes.len()
    }

    /// Makes everything visible to the peer, in one step.
    pub fn commit(self) {
        self.half.publish();
    }
}

impl Write for WriteChunk<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(self.put(buf))
    }

    /// Does nothing: see [`commit`](WriteChunk::commit).
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for WriteChunk<'_> {
    fn drop(&mut self) {
        // After a commit there is nothing left to discard.
        self.half.tx.discard();
    }
}
