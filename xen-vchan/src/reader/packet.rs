//! Reading whole packets, and many small steps at once.

use std::time::Instant;

use super::{COALESCE_AFTER, ReadChunk, ReadHalf};
use crate::doorbell::Half;
use crate::{Error, Result};

/// Packets that are caught up with before a pause, at most.
const MAX_PAUSE_AFTER: u8 = 64;

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
    /// [`try_read`](Self::try_read) does and under the same conditions. If it finds only the packet
    /// asked for, as where each is an answer, it does so after 4, 8, … 64 such calls.
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
        let paused = look && self.short_reads >= self.pause_after;
        if paused {
            self.pause();
        }
        self.wait_for(buf.len(), deadline)?;
        if look {
            let ready = self.rx.known_ready() as usize;
            let in_vain = paused && ready <= buf.len();
            if in_vain {
                self.pause_after = (self.pause_after * 2).min(MAX_PAUSE_AFTER);
            } else if paused {
                self.pause_after = COALESCE_AFTER;
            }
            self.note(!in_vain && self.is_short(ready));
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

    use crate::reader::packet::{COALESCE_AFTER, ReadHalf};
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

    #[test]
    fn pauses_in_which_the_writer_does_not_get_ahead_become_rare() {
        let (server, mut client, _host) = pair();
        let (mut server, _writer) = server.split();
        let mut packet = [0; 32];
        let mut packets = |server: &mut ReadHalf, at_once: usize| {
            for _ in 0..at_once {
                client.write_all(&packet).unwrap();
            }
            for _ in 0..at_once {
                server.recv(&mut packet, None).unwrap();
            }
        };
        for after in [2, 4, 8, 16, 32, 64, 64] {
            assert_eq!((server.pause_after, server.short_reads), (after, 0));
            for _ in 0..after {
                packets(&mut server, 1);
            }
            assert_eq!(server.short_reads, after);
            packets(&mut server, 1);
        }
        for _ in 0..64 {
            packets(&mut server, 1);
        }
        packets(&mut server, 3);
        assert_eq!(server.pause_after, COALESCE_AFTER);
    }
}
