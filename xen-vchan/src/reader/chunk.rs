//! Reads of everything that was ready: many small steps, one publish.
//!
//! The cost of one publish (a full barrier, a cache line's way to the peer and back, perhaps a
//! notification) is many times what copying a small message costs. A chunk lets the caller decide
//! where the steps end. It copies, and returns no reference into the ring, which the peer could
//! change meanwhile.

use std::io::{self, Read};

use super::ReadHalf;

/// The bytes that were ready, lent by [`ReadHalf::read_chunk`].
///
/// [`Read`] never blocks here: at the end of the loan it returns `Ok(0)`. When the loan ends, the
/// space of the bytes read is given back in one step; the other bytes stay.
#[derive(Debug)]
pub struct ReadChunk<'a> {
    half: &'a mut ReadHalf,
}

impl<'a> ReadChunk<'a> {
    pub(crate) const fn new(half: &'a mut ReadHalf) -> Self {
        Self { half }
    }

    /// Returns how many bytes are not read yet.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.half.rx.known_ready() as usize
    }

    /// Copies what fits into `buf`; returns how many bytes.
    #[inline]
    pub fn get(&mut self, buf: &mut [u8]) -> usize {
        self.half.rx.take(buf)
    }

    /// Copies exactly `buf.len()` bytes, or copies none and returns `false`.
    #[inline]
    pub fn get_exact(&mut self, buf: &mut [u8]) -> bool {
        if self.half.rx.take_fast(buf) {
            return true;
        }
        let enough = self.remaining() >= buf.len();
        if enough {
            self.half.rx.take(buf);
        }
        enough
    }
}

impl Read for ReadChunk<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(self.get(buf))
    }
}

impl Drop for ReadChunk<'_> {
    fn drop(&mut self) {
        self.half.give_back();
    }
}
