//! Signals as readable events.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::rt::event_loop::Stop;
use crate::rt::poll::{Interest, readable};

/// The signals of a set, taken out of the ordinary way of delivery for this thread and those it
/// starts. Child processes made by [`std::process::Command`] get the ordinary way back.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Takes over `signals`. To be called before any thread is started.
    ///
    /// # Errors
    /// The system's.
    pub fn take(signals: &[Signal]) -> io::Result<Self> {
        let set: SigSet = signals.iter().copied().collect();
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { fd })
    }

    /// Returns the next pending signal, if any.
    ///
    /// # Errors
    /// The system's.
    pub fn next(&self) -> io::Result<Option<Signal>> {
        let Some(info) = self.fd.read_signal()? else {
            return Ok(None);
        };
        let number = i32::try_from(info.ssi_signo).unwrap_or_default();
        Ok(Signal::try_from(number).ok())
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Any of the signals ends a loop.
impl Stop for &Signals {
    fn interests(&self) -> Vec<Interest<'_>> {
        vec![readable(self.as_fd())]
    }

    fn reason(&mut self) -> io::Result<Option<String>> {
        Ok(self.next()?.map(|signal| signal.to_string()))
    }
}
