//! Writes of whole packets, and of many small steps at once: the reader sees all of it or nothing.

use std::time::Instant;

use super::{WriteChunk, WriteHalf};
use crate::doorbell::Half;
use crate::{Error, Result};

impl WriteHalf {
    /// Writes all of `bytes` in one step or nothing, without blocking.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send), with [`Error::WouldBlock`] in place of [`Error::TimedOut`].
    pub fn try_send(&mut self, bytes: &[u8]) -> Result<()> {
        self.fits(bytes.len())?;
        self.try_look(bytes.len())?;
        self.stage_whole(bytes)
    }

    /// Writes all of `bytes` in one step, sleeping until there is room for them; after an error,
    /// none are written. The reader never sees a part of them.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if the ring cannot hold that many; otherwise as
    /// [`write_deadline`](Self::write_deadline).
    #[doc(alias = "libxenvchan_send")]
    #[inline]
    pub fn send(&mut self, bytes: &[u8], deadline: Option<Instant>) -> Result<()> {
        // Contiguously, if at all.
        if self.put_fast(bytes).is_some() {
            Ok(())
        } else {
            self.send_patiently(bytes, deadline)
        }
    }

    #[inline(never)]
    fn send_patiently(&mut self, bytes: &[u8], deadline: Option<Instant>) -> Result<()> {
        self.fits(bytes.len())?;
        self.shared.doorbell.check(Half::Writer)?;
        self.wait_for(bytes.len(), bytes.len(), deadline)?;
        self.stage_whole(bytes)
    }

    fn stage_whole(&mut self, bytes: &[u8]) -> Result<()> {
        let staged = self.tx.stage(bytes);
        let len = self.checked(staged)?;
        debug_assert_eq!(len, bytes.len(), "space cannot shrink");
        self.publish_unless_corked();
        Ok(())
    }

    fn fits(&self, len: usize) -> Result<()> {
        if len > self.tx.capacity() as usize {
            return Err(Error::TooLarge {
                what: "packet",
                asked: len,
                limit: self.tx.capacity() as usize,
            });
        }
        Ok(())
    }

    /// Sleeps until there are `least` bytes of space, then lends all the space there is. The caller
    /// fills it in many small steps and publishes it once with [`WriteChunk::commit`].
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn write_chunk(
        &mut self,
        least: usize,
        deadline: Option<Instant>,
    ) -> Result<WriteChunk<'_>> {
        self.fits(least)?;
        self.publish();
        self.shared.doorbell.check(Half::Writer)?;
        self.wait_for(least, least, deadline)?;
        Ok(WriteChunk::new(self))
    }
}
