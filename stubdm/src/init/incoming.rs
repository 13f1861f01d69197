//! The guest's saved state, from console 2 to QEMU.
//!
//! On restore the toolstack feeds the state file into console 2, a tty in here. QEMU gets a pipe:
//! it must never see a tty, whose line discipline would alter and echo what passes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use tracing::{info, warn};

use crate::dmargv::DmArgv;
use crate::error::{Context, Result};

/// Console 2. Kernels number consoles in the order they are found, which is the toolstack's.
const CONSOLE: &str = "/dev/hvc2";

/// If the arguments ask for a saved state, starts feeding it to a pipe and puts the pipe's
/// descriptor number into the arguments. The descriptor is close-on-exec until QEMU is started.
///
/// # Errors
/// The console cannot be opened or set raw.
pub fn prepare(argv: &mut DmArgv) -> Result<Option<OwnedFd>> {
    if !argv.wants_incoming() {
        return Ok(None);
    }
    let console = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOCTTY)
        .open(CONSOLE);
    let console = console.context(format_args!("the saved state on {CONSOLE}"))?;
    set_raw(&console)?;
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("a pipe")?;
    argv.set_incoming(&format!("fd:{}", reader.as_raw_fd()));
    let feeder = std::thread::Builder::new().name("incoming".into());
    feeder
        .spawn(move || feed(console, File::from(writer)))
        .context("a thread")?;
    info!("the guest's saved state comes from {CONSOLE}");
    Ok(Some(reader))
}

fn set_raw(console: &File) -> Result<()> {
    let mut mode = tcgetattr(console.as_fd()).context(format_args!("the mode of {CONSOLE}"))?;
    cfmakeraw(&mut mode);
    tcsetattr(console.as_fd(), SetArg::TCSANOW, &mode)
        .context(format_args!("setting {CONSOLE} raw"))
}

/// Ends when QEMU has closed its end: the state has no end mark that the tty could tell.
fn feed(mut console: File, mut pipe: File) {
    let mut buffer = [0; 4096];
    let mut total = 0u64;
    loop {
        let count = match console.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => {
                warn!("reading {CONSOLE} after {total} bytes: {error}");
                break;
            }
        };
        if pipe
            .write_all(buffer.get(..count).unwrap_or_default())
            .is_err()
        {
            break;
        }
        total += count as u64;
    }
    info!("{total} bytes of saved state passed on");
}
