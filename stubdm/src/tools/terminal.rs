//! The terminal of a command that draws over it until it ends.

use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{
    LocalFlags, SetArg, SpecialCharacterIndices, Termios, cfmakeraw, tcgetattr, tcsetattr,
};

/// The other screen, no cursor, long lines cut at the edge.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l";

/// The keys that the terminal leaves to the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// All but those that end or stop the command, such as Ctrl-C.
    Lines,
    /// All.
    Raw,
}

/// A terminal of the command's own until it is dropped.
#[derive(Debug)]
pub(super) struct Terminal {
    before: Option<Termios>,
}

impl Terminal {
    pub(super) fn take(keys: Keys) -> Self {
        let before = tcgetattr(io::stdin()).ok();
        if let Some(before) = &before {
            let mut own = before.clone();
            match keys {
                Keys::Lines => {
                    let lines = LocalFlags::ICANON | LocalFlags::ECHO;
                    own.local_flags.remove(lines);
                }
                Keys::Raw => cfmakeraw(&mut own),
            }
            // A read never waits.
            for index in [
                SpecialCharacterIndices::VMIN,
                SpecialCharacterIndices::VTIME,
            ] {
                if let Some(slot) = own.control_chars.get_mut(index as usize) {
                    *slot = 0;
                }
            }
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &own);
        }
        let _ = print(ENTER);
        Self { before }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = print(LEAVE);
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Returns the keys that were pressed, as the terminal sends them; `None` when none will be.
pub(super) fn pressed(buffer: &mut [u8]) -> Option<&[u8]> {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(0) | Err(Errno::EINTR) => return Some(&[]),
        Ok(_) => {}
        Err(_) => return None,
    }
    match nix::unistd::read(stdin.as_fd(), buffer) {
        Ok(0) => None,
        Ok(count) => buffer.get(..count),
        Err(Errno::EINTR | Errno::EAGAIN) => Some(&[]),
        Err(_) => None,
    }
}

/// Prints a frame at once.
pub(super) fn print(frame: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(frame.as_bytes())?;
    out.flush()
}
