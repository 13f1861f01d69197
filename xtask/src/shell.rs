//! A person's terminal joined to the job's port.
//!
//! A shell is for a person: without a terminal there is none (a script can be given as the standard
//! input instead). The terminal is in raw mode meanwhile, so that every key (Ctrl-C too) reaches
//! the shell in dom0; Ctrl-] leaves at once.

use std::io::{IsTerminal as _, Read as _, Write as _, stdin, stdout};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::console::Event;
use crate::qemu::{Machine, send};

/// Ctrl-], which telnet and `xl console` use as well.
const LEAVE: u8 = 0x1d;

/// A shell has no time limit.
const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);

/// The terminal's columns and lines, as the shell is to believe them.
pub(crate) fn size() -> (u16, u16) {
    let out = Command::new("stty")
        .arg("size")
        .stdin(Stdio::inherit())
        .output();
    let text = out
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .unwrap_or_default();
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(lines @ 1..)), Some(Ok(columns @ 1..))) => (columns, lines),
        _ => (80, 24),
    }
}

/// Puts a terminal back as it was.
#[derive(Debug)]
struct Restore(Termios);

impl Drop for Restore {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin().as_fd(), SetArg::TCSANOW, &self.0);
    }
}

/// Returns whether a person is there.
pub(crate) fn is_possible() -> bool {
    stdin().is_terminal()
}

/// Joins them until the shell ends, whose status is given, or the person leaves.
pub(crate) fn attend(machine: &mut Machine) -> Result<i32> {
    let mut port = machine.take_port().context("the job's port is taken")?;
    let before = tcgetattr(stdin().as_fd()).context("a shell needs a terminal")?;
    let mut raw = before.clone();
    cfmakeraw(&mut raw);
    tcsetattr(stdin().as_fd(), SetArg::TCSANOW, &raw)?;
    let _restore = Restore(before);
    eprint!("xtask: a shell in dom0; exit or Ctrl-] ends it\r\n");
    let left = Arc::new(AtomicBool::new(false));
    let leave = Arc::clone(&left);
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(n @ 1..) = stdin().read(&mut buffer) {
            if buffer[..n].contains(&LEAVE) {
                leave.store(true, Ordering::Relaxed);
                return;
            }
            if send(&mut port, &buffer[..n]).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + NO_LIMIT;
    while !left.load(Ordering::Relaxed) {
        match machine.next(deadline)? {
            Some(Event::Bytes(bytes)) => {
                let mut out = stdout().lock();
                out.write_all(&bytes)?;
                out.flush()?;
            }
            Some(Event::Exit(status)) => return Ok(status),
            _ => {}
        }
    }
    Ok(0)
}
