//! QEMU's words and its end; and the end of whatever else has no parent but us.

use std::time::Instant;

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use stubdm_qmp::lines::Line;

use crate::guest::supervisor::{Event, Exit};
use crate::guest::watch::Watch;
use crate::rt::error::{Failure, Result};
use crate::rt::stream::Read;

/// The longest line of QEMU's output that is kept whole.
pub(super) const WORDS_MAX: usize = 4096;

impl Watch<'_> {
    /// Takes the status of every process that ended: as PID 1 we are everybody's last parent.
    pub(super) fn reap(&mut self) -> Result<()> {
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => (pid, Exit::Status(status)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal.to_string())),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Failure::new(errno.desc())),
            };
            if let Some(screen) = &mut self.screen {
                if screen.handle_exit(pid, &exit, Instant::now()) {
                    continue;
                }
            }
            if self.qemu == Some(pid) {
                self.qemu = None;
                // Its last words explain its end.
                self.read_output();
                self.handle_event(Event::QemuExited(exit));
            }
        }
    }

    pub(super) fn read_output(&mut self) {
        let mut lines = Vec::new();
        let mut buffer = [0; 4096];
        // A QEMU that never stops talking must not keep us from everything else.
        for _ in 0..64 {
            match self.output.read(&mut buffer) {
                Ok(Read::Bytes(count)) => {
                    let bytes = buffer.get(..count).unwrap_or_default();
                    self.words.push(bytes, |line| lines.push(line));
                }
                Ok(Read::Nothing) => break,
                Ok(Read::End) | Err(_) => {
                    lines.push(Line::Whole(self.words.take_partial()));
                    break;
                }
            }
        }
        for line in lines {
            self.handle_event(Event::Line(match line {
                Line::Whole(line) => String::from_utf8_lossy(&line).into_owned(),
                Line::TooLong(_) => format!("(a line of over {WORDS_MAX} bytes)"),
            }));
        }
    }
}
