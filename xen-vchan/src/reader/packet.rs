//! Reading whole packets, and many small steps at once.

use std::time::Instant;

use super::{ReadChunk, ReadHalf};
use crate::doorbell::Half;
use crate::{Error, Result};

impl ReadHalf {
    /// Reads exactly `buf.len()` bytes or none, without blocking.
    ///
    /// # Errors
    ///
    /// As [`recv`](Self::recv), with [`Error::WouldBlock`] in place of [`Error::TimedOut`].
    pub fn try_recv(&mut self, buf: &mut [u8]) -> Result<()> {
        self.fits(buf.len())?;
        self.try_look(buf.len())?;
        self.rx.take(buf);
        self.give_back();
        Ok(())
    }

    /// Reads exactly `buf.len()` bytes, sleeping until all of them are there; or none, in case of
    /// an error. Their space is given back in one step.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if the ring cannot hold that many; [`Error::Closed`] if the peer left
    /// before they were complete (those that came can still be [read](std::io::Read)); otherwise as
    /// [`read_deadline`](Self::read_deadline).
    #[doc(alias = "libxenvchan_recv")]
    #[inline]
    pub fn recv(&mut self, buf: &mut [u8], deadline: Option<Instant>) -> Result<()> {
        // The usual packet is one of several that are known to be there, and nothing else is to be
        // reported first.
        if !self.shared.doorbell.has_failed(Half::Reader) && self.rx.take_fast(buf) {
            self.give_back();
            Ok(())
        } else {
            self.recv_patiently(buf, deadline)
        }
    }

    #[inline(never)]
    fn recv_patiently(&mut self, buf: &mut [u8], deadline: Option<Instant>) -> Result<()> {
        self.fits(buf.len())?;
        self.wait_for(buf.len(), deadline)?;
        self.rx.take(buf);
        self.give_back();
        Ok(())
    }

    fn fits(&self, len: usize) -> Result<()> {
        if len > self.rx.capacity() as usize {
            return Err(Error::TooLarge {
                what: "packet",
                asked: len,
                limit: self.rx.capacity() as usize,
            });
        }
        Ok(())
    }

    /// Sleeps until there is something, then lends all that is there: to be read in many small
    /// steps, with the ring's space given back once, when the loan ends.
    ///
    /// # Errors
    ///
    /// As [`read_deadline`](Self::read_deadline).
    pub fn read_chunk(&mut self, deadline: Option<Instant>) -> Result<ReadChunk<'_>> {
        self.coalesce();
        self.wait_for(1, deadline)?;
        Ok(ReadChunk::new(self))
    }
}
