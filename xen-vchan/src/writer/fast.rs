//! The usual write: one piece of code without a call, up to the copy of the bytes.

use std::io::{self, Write};

use super::WriteHalf;
use crate::doorbell::Half;
use crate::shared::piece;

impl WriteHalf {
    /// The usual write: the session runs, and the bytes fit contiguously into the known space.
    /// Returns `None`, and does nothing, if the write is any other; otherwise publishes them in one
    /// step, if corking allows. The result is that of [`put`](Self::put), in one piece of code
    /// without a call. For a small message the call would be half of the cost, so this is inlined
    /// into its caller.
    #[inline(always)]
    pub(crate) fn put_fast(&mut self, bytes: &[u8]) -> Option<usize> {
        if self.shared.doorbell.has_failed(Half::Writer) || !self.shared.session.runs() {
            return None;
        }
        // A half that is not attached has no run.
        if !self.tx.stage_fast(bytes) {
            self.stage_in_one(bytes)?;
        }
        self.publish_unless_corked();
        Some(bytes.len())
    }

    /// The same for bytes that the ring copies in steps.
    #[inline(never)]
    fn stage_in_one(&mut self, bytes: &[u8]) -> Option<usize> {
        let usual = !bytes.is_empty()
            && self.attached
            && bytes.len() <= (self.tx.known_space() as usize).min(piece(self.tx.capacity()));
        if !usual {
            return None;
        }
        // A broken half fails, and the slow path returns the cause.
        self.tx.stage(bytes).ok()
    }
}

/// Writes all of a buffer as a [`Write`] does that has only `write`.
pub(crate) struct BySteps<'a, W>(pub(crate) &'a mut W);

impl<W: Write> Write for BySteps<'_, W> {
    #[inline(never)]
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
