//! A descriptor whose reads block for callers that wait, and for no others.
//!
//! To wait with poll and then to read are two system calls; a read that blocks is one, and a sleep
//! is what costs most of a channel that is seldom busy. But blocking is a property of the open
//! file, not of a call, and a caller that asks what is pending must never be made to wait. So the
//! first wait without a deadline makes the file block. The first read that may not block changes it
//! back, permanently:
//!
//! ```text
//!   Polled ──wait without deadline──> Blocks ──any other read──> Both
//! ```
//!
//! The file of a set that is only waited for stays in `Blocks`, that of an event loop in `Polled`.
//! In `Both` a wait polls first: switching back and forth would cost more than it saves.

use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use xen_sys::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Polled,
    Blocks,
    Both,
}

/// How the file is used so far. The lock is held across a read that must not block, so that no
/// other thread makes the file block in between; never across a read that may block.
#[derive(Debug)]
pub(crate) struct Blocking(Mutex<Mode>);

impl Blocking {
    /// Takes charge of a file: its reads do not block yet.
    pub(crate) fn new(file: impl AsFd) -> Result<Self> {
        set(file, false)?;
        Ok(Self(Mutex::new(Mode::Polled)))
    }

    /// Calls `read`, which reads from `file`, at a time when that does not block.
    pub(crate) fn without<T>(
        &self,
        file: impl AsFd,
        read: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let mut mode = self.mode();
        if *mode == Mode::Blocks {
            // A thread asleep in a read stays there until an event.
            set(file, false)?;
            *mode = Mode::Both;
        }
        read()
    }

    /// Makes reads of `file` block, if that is how it is used; returns `false` if reads do not
    /// block and the caller must poll first. Another thread may undo this at any moment: a read
    /// that finds nothing is no error.
    pub(crate) fn begin(&self, file: impl AsFd) -> Result<bool> {
        let mut mode = self.mode();
        if *mode == Mode::Polled {
            set(file, true)?;
            *mode = Mode::Blocks;
        }
        Ok(*mode == Mode::Blocks)
    }

    fn mode(&self) -> MutexGuard<'_, Mode> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set(file: impl AsFd, block: bool) -> Result<()> {
    let failed = |e: nix::errno::Errno| Error::os("fcntl", e.into());
    let mut flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).map_err(failed)?);
    flags.set(OFlag::O_NONBLOCK, !block);
    fcntl(&file, FcntlArg::F_SETFL(flags)).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    /// A read as the device's: `None` if there is nothing.
    fn read(mut from: &UnixStream) -> Result<Option<u8>> {
        let mut byte = [0];
        match from.read(&mut byte) {
            Ok(_) => Ok(Some(byte[0])),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(Error::os("read", e)),
        }
    }

    fn blocks(file: &UnixStream) -> bool {
        let flags = fcntl(file, FcntlArg::F_GETFL).unwrap();
        !OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK)
    }

    #[test]
    fn who_may_not_block_does_not_whatever_was_before() {
        let (from, mut to) = UnixStream::pair().unwrap();
        let blocking = Blocking::new(&from).unwrap();
        let look = || {
            let read = || {
                assert!(!blocks(&from), "a read that must not");
                read(&from)
            };
            blocking.without(&from, read).unwrap()
        };
        assert_eq!(look(), None);
        assert!(blocking.begin(&from).unwrap());
        to.write_all(&[7]).unwrap();
        assert_eq!(read(&from).unwrap(), Some(7));
        assert!(blocking.begin(&from).unwrap(), "only waited for: it stays");
        assert_eq!(look(), None);
        assert!(!blocking.begin(&from).unwrap(), "used both ways: poll");
        assert_eq!(read(&from).unwrap(), None);
    }

    #[test]
    fn one_who_sleeps_and_one_who_looks_do_not_disturb_each_other() {
        let (from, mut to) = UnixStream::pair().unwrap();
        let blocking = Blocking::new(&from).unwrap();
        assert!(blocking.begin(&from).unwrap());
        thread::scope(|scope| {
            // It finds nothing if the look came first, and sleeps through it if not.
            let sleeper = scope.spawn(|| read(&from).unwrap());
            let looked = blocking.without(&from, || Ok((!blocks(&from)).then(|| read(&from))));
            to.write_all(&[7]).unwrap();
            let slept = sleeper.join().unwrap();
            assert!(slept.is_none_or(|byte| byte == 7), "{slept:?}");
            let looked = looked.unwrap().expect("a look does not block");
            assert_eq!(looked.unwrap(), None);
        });
    }

    #[test]
    fn other_flags_stay() {
        let (file, _peer) = UnixStream::pair().unwrap();
        fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND)).unwrap();
        let blocking = Blocking::new(&file).unwrap();
        let flags = || OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).unwrap());
        assert!(flags().contains(OFlag::O_APPEND | OFlag::O_NONBLOCK));
        blocking.begin(&file).unwrap();
        assert!(flags().contains(OFlag::O_APPEND));
        assert!(!flags().contains(OFlag::O_NONBLOCK));
    }
}
