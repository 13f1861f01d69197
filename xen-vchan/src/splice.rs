//! Bytes between the ring and a descriptor, copied by the kernel.
//!
//! For proxies: one copy instead of two, and no byte of the peer is copied through this process's
//! memory. The kernel reads the ring's pages while the peer may write them: the result is any
//! mixture, as with any other read.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use crate::{ReadHalf, Result, WriteHalf};

impl ReadHalf {
    /// Writes what is there to `fd`, without waiting for the peer; returns how many bytes, at least
    /// 1.
    ///
    /// Blocks if `fd` does. Bytes that `fd` did not take stay in the ring.
    ///
    /// # Errors
    ///
    /// As [`try_read`](Self::try_read); [`Error::Os`](crate::Error::Os) for errors of `fd`. A full
    /// non-blocking `fd` is one of them (`EAGAIN`), to distinguish it from the ring's own
    /// [`WouldBlock`](crate::Error::WouldBlock).
    pub fn try_write_to(&mut self, fd: impl AsFd) -> Result<usize> {
        self.try_look(1)?;
        let len = retried(|| self.rx.take_to(&fd)).map_err(|e| xen_sys::Error::os("writev", e))?;
        self.give_back();
        Ok(len)
    }
}

impl WriteHalf {
    /// Reads from `fd` into the ring what fits, at most `max` bytes, without waiting for the peer;
    /// returns how many bytes: 0 at the end of the file.
    ///
    /// Blocks if `fd` does.
    ///
    /// # Errors
    ///
    /// As [`try_write`](Self::try_write); [`Error::Os`](crate::Error::Os) for errors of `fd`,
    /// including an empty non-blocking `fd` (`EAGAIN`).
    pub fn try_read_from(&mut self, fd: impl AsFd, max: usize) -> Result<usize> {
        self.try_look(1)?;
        let len =
            retried(|| self.tx.stage_from(&fd, max)).map_err(|e| xen_sys::Error::os("readv", e))?;
        self.publish();
        Ok(len)
    }
}

fn retried(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
