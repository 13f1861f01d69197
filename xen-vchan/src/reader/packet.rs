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

    /// Reads exactly `buf.len()` bytes, sleeping until all of them are there; after an error, none
    /// are read. Their space is given back in one step.
    ///
    /// After two calls in a row that found little it spins for up to 2 µs before it looks, as
    /// [`try_read`](Self::try_read) does and under the same conditions.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if the ring cannot hold that many; [`Error::Closed`] if the peer left
    /// before they were complete (those that arrived can still be [read](std::io::Read)); otherwise
    /// as [`read_deadline`](Self::read_deadline).
    #[doc(alias = "libxenvchan_recv")]
    #[inline]
    pub fn recv(&mut self, buf: &mut [u8], deadline: Option<Instant>) -> Result<()> {
        // The usual packet is one of several that are ready, and there is no earlier error to
        // return first.
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
        let look = (self.rx.known_ready() as usize) < buf.len();
        if look {
            self.coalesce();
        }
        self.wait_for(buf.len(), deadline)?;
        if look {
            self.note(self.is_short(self.rx.known_ready() as usize));
        }
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

    /// Sleeps until there is something, then lends all that is there. The caller reads it in many
    /// small steps; the ring's space is given back once, when the loan ends.
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

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io::Write;

    use crate::reader::COALESCE_AFTER;
    use crate::test_window::pair;

    #[test]
    fn a_channel_that_only_receives_lets_the_writer_get_ahead() {
        let (mut server, mut client, _host) = pair();
        let mut packet = [0; 32];
        for _ in 0..COALESCE_AFTER {
            client.write_all(&packet).unwrap();
            server.halves().0.recv(&mut packet, None).unwrap();
        }
        assert_eq!(server.halves().0.short_reads, COALESCE_AFTER);
        server.halves().1.send(&packet, None).unwrap();
        assert_eq!(
            server.halves().0.short_reads,
            0,
            "the packet may be a question: its answer is worth no delay"
        );
    }
}
