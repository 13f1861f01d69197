//! The guest's saved state, from console 2 to QEMU.
//!
//! On restore the toolstack feeds the state file into console 2, a tty in here. QEMU gets a pipe:
//! it must never see a tty, whose line discipline would alter and echo what passes. A host that
//! asks for it receives a [ready byte](xen_console::ready) when the tty is raw.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{info, warn};
use xen_console::ready;
use xen_store::Store;

use crate::guest::save::restore::{Found, Restore};
use crate::guest::tty::{Direction, open_raw};
use crate::libxl::dm_argv::DmArgv;
use crate::rt::error::{Context, Result};
use crate::rt::outcome::Outcome;

/// Console 2. Kernels number consoles in the order they are found, which is the toolstack's.
const CONSOLE: &str = "/dev/hvc2";
/// Its number in the store.
const NUMBER: u32 = 2;
/// The backend sends as fast as the ring is emptied: after this many milliseconds without a byte it
/// has sent all.
const SILENCE: u16 = 1000;

/// A state on its way to QEMU.
#[derive(Debug)]
pub struct Incoming {
    /// QEMU's end of the pipe.
    pub pipe: OwnedFd,
    /// The outcome of the state.
    pub outcome: Outcome,
}

/// If the arguments ask for a saved state, starts feeding it to a pipe and puts the pipe's
/// descriptor number into the arguments. The descriptor is close-on-exec until QEMU is started.
///
/// QEMU waits forever if no first byte of the state arrives: the caller must kill it when the
/// outcome is an error.
///
/// # Errors
/// The console cannot be opened or set raw.
pub fn prepare(argv: &mut DmArgv, store: &Store) -> Result<Option<Incoming>> {
    if !argv.wants_incoming() {
        return Ok(None);
    }
    let console = open(ready::is_asked(store, NUMBER))?;
    let (restore, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("a pipe")?;
    argv.set_incoming(&format!("fd:{}", restore.as_raw_fd()));
    let work = move || feed(console, File::from(writer));
    let outcome = Outcome::of("incoming", work).context("a thread")?;
    info!("the guest's saved state comes from {CONSOLE}");
    Ok(Some(Incoming {
        pipe: restore,
        outcome,
    }))
}

/// Opens the console, and with `tell` sends the host the ready byte.
fn open(tell: bool) -> Result<File> {
    if !tell {
        return open_raw(CONSOLE, Direction::In);
    }
    let mut console = open_raw(CONSOLE, Direction::Both)?;
    match console.write_all(&[ready::BYTE]) {
        Ok(()) => info!("the host is told that {CONSOLE} is read"),
        Err(error) => warn!("telling the host that {CONSOLE} is read: {error}"),
    }
    Ok(console)
}

/// Ends when QEMU has closed its end, or has all: the console itself has no end.
fn feed(mut console: File, pipe: File) -> std::result::Result<(), String> {
    let total = pass_on(&mut console, pipe)?;
    info!("{total} bytes of saved state passed on");
    Ok(())
}

/// Passes the state on and returns its length. Blocks until QEMU has it all: if the state has no
/// header, QEMU closes its end then.
///
/// # Errors
/// Fails if the bytes are no state, or were cut short or altered, and with the console's errors.
pub fn pass_on(console: &mut File, mut pipe: File) -> std::result::Result<u64, String> {
    let mut restore = Restore::default();
    let mut last = None;
    let mut total = 0u64;
    let mut buffer = [0; 4096];
    loop {
        if !restore.is_plain() && !readable(console, SILENCE).map_err(|e| e.to_string())? {
            if !restore.silence()? {
                continue;
            }
            let (number, state): (u32, Vec<u8>) = last.take().ok_or("no state came")?;
            info!("the state is that of save number {number}");
            if let Err(error) = pipe.write_all(&state) {
                // QEMU itself reports why it ends.
                warn!("QEMU does not take the state: {error}");
            }
            return Ok(state.len() as u64);
        }
        let count = match console.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(format!("{CONSOLE}: {error}")),
        };
        let mut bytes = buffer.get(..count).unwrap_or_default();
        loop {
            match restore.push(bytes)? {
                Found::Nothing => break,
                Found::Record(number, state) => last = Some((number, state)),
                Found::Pass(bytes) => {
                    total += bytes.len() as u64;
                    if pipe.write_all(&bytes).is_err() {
                        // QEMU has read the whole state.
                        return Ok(total);
                    }
                }
            }
            bytes = &[];
        }
    }
}

fn readable(console: &File, within: u16) -> nix::Result<bool> {
    let mut fds = [PollFd::new(console.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(within)) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(true),
        Err(errno) => Err(errno),
    }
}
