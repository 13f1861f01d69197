//! A console on a terminal of its own, for `xl console`.
//!
//! We keep the far side open as well: its mode stays raw, and the terminal does not hang up when a
//! person leaves. The newest [`BACKLOG`] unread bytes wait here, so that a later reader sees what
//! led up to now; the stubdomain never waits for a person.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::poll::PollFlags;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use crate::rt::poll::Interest;
use crate::rt::stream::{Read, Stream};

/// How much waits for a reader, in bytes.
pub const BACKLOG: usize = 64 << 10;

/// The terminal.
#[derive(Debug)]
pub struct Pty {
    near: Stream,
    _far: OwnedFd,
    name: PathBuf,
    waiting: VecDeque<u8>,
    failed: bool,
}

impl Pty {
    /// Makes one, in raw mode.
    ///
    /// # Errors
    /// The system's.
    pub fn open() -> io::Result<Self> {
        let near = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
        grantpt(&near)?;
        unlockpt(&near)?;
        let name = PathBuf::from(ptsname_r(&near)?);
        let far = open(
            &name,
            OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let mut mode = tcgetattr(&far)?;
        cfmakeraw(&mut mode);
        tcsetattr(&far, SetArg::TCSANOW, &mode)?;
        Ok(Self {
            near: Stream::socket(OwnedFd::from(near))?,
            _far: far,
            name,
            waiting: VecDeque::new(),
            failed: false,
        })
    }

    /// The terminal's name, such as `/dev/pts/3`.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Takes all of `bytes` towards the reader; the oldest are left out if too many wait.
    pub fn take(&mut self, bytes: &[u8]) {
        self.waiting.extend(bytes);
        self.flush();
        let over = self.waiting.len().saturating_sub(BACKLOG);
        self.waiting.drain(..over);
    }

    /// Gives the terminal what it takes now.
    pub fn flush(&mut self) {
        while !self.waiting.is_empty() && !self.failed {
            match self.near.write(self.waiting.as_slices().0) {
                Ok(0) => return,
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(_) => self.failed = true,
            }
        }
    }

    /// Reads typed bytes into `buffer` and returns their number; 0 for nothing now.
    pub fn give(&mut self, buffer: &mut [u8]) -> usize {
        match self.near.read(buffer) {
            Ok(Read::Bytes(count)) => count,
            Ok(Read::Nothing) => 0,
            // Not while we hold the far side.
            Ok(Read::End) | Err(_) => {
                self.failed = true;
                0
            }
        }
    }

    /// Returns the events to wait for: typed bytes if `wanted`, room to write if bytes wait.
    pub fn interests(&self, wanted: bool) -> Vec<Interest<'_>> {
        if self.failed {
            return Vec::new();
        }
        let interests = self.near.interest(wanted, !self.waiting.is_empty());
        let useful = |(_, flags): &Interest<'_>| *flags != PollFlags::empty();
        interests.into_iter().filter(useful).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    #[test]
    fn bytes_pass_unaltered_both_ways() {
        let mut pty = Pty::open().unwrap();
        let mut person = File::options()
            .read(true)
            .write(true)
            .open(pty.name())
            .unwrap();
        let all: Vec<u8> = (0..=255).collect();
        pty.take(&all);
        let mut got = vec![0; 256];
        person.read_exact(&mut got).unwrap();
        assert_eq!(got, all);
        person.write_all(&all).unwrap();
        drop(person);
        let mut got = Vec::new();
        let mut buffer = [0; 64];
        while got.len() < 256 {
            let count = pty.give(&mut buffer);
            got.extend_from_slice(&buffer[..count]);
        }
        assert_eq!(got, all);
        assert_eq!(pty.give(&mut buffer), 0, "and no hang-up");
        assert!(!pty.failed);
    }

    #[test]
    fn nobody_is_waited_for_and_the_newest_stay() {
        let mut pty = Pty::open().unwrap();
        for n in 0..100_000u32 {
            pty.take(&n.to_le_bytes());
            assert!(pty.waiting.len() <= BACKLOG);
        }
        assert_eq!(pty.waiting.len(), BACKLOG);
        let newest: Vec<u8> = pty.waiting.iter().rev().take(4).rev().copied().collect();
        assert_eq!(newest, 99_999u32.to_le_bytes());
        assert_eq!(pty.interests(true).len(), 1);
        let mut person = File::open(pty.name()).unwrap();
        let mut first = [0; 8];
        person.read_exact(&mut first).unwrap();
        assert_eq!(
            first,
            [0, 0, 0, 0, 1, 0, 0, 0],
            "how it began is there as well"
        );
    }
}
