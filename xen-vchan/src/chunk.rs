//! Many small steps, one publish: loans of what is ready and of what is free.
//!
//! The cost of one publish (a full barrier, a cache line's way to the peer and back, perhaps a
//! notification) is many times what copying a small message costs. These two types let a caller
//! decide where the steps end.
//!
//! Both copy; neither gives out a reference into the ring, which the peer could change under the
//! reader's eyes.

use std::io::{self, Read, Write};

use crate::{ReadHalf, WriteHalf};

/// Everything that was ready, lent by [`ReadHalf::read_chunk`].
///
/// [`Read`] never blocks here: at the end of the loan it returns `Ok(0)`. When the loan ends, the
/// space of what was read is given back in one step; what was not read stays.
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
    pub const fn remaining(&self) -> usize {
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

/// All the space that was free, lent by [`WriteHalf::write_chunk`].
///
/// [`Write`] never blocks here: when the space is used up it returns `Ok(0)`. Nothing is seen by
/// the peer before [`commit`](Self::commit); a loan that is dropped instead is forgotten, bytes and
/// all.
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
    pub const fn remaining(&self) -> usize {
        self.half.tx.known_space() as usize
    }

    /// Copies what fits of `bytes`; returns how many.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let len = bytes.len().min(self.remaining());
        // Within the space known, the ring is not looked at and cannot refuse.
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
