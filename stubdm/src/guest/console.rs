//! Points this process's output at the domain's console, which the toolstack keeps as a log.

use std::fs::{File, OpenOptions};
use std::path::Path;

use crate::rt::error::{Context, Failure, Result};

/// Where a line reaches the toolstack, best first.
const PLACES: &[&str] = &["/dev/console", "/dev/hvc0", "/dev/kmsg"];

/// Makes stdout and stderr the console and stdin `/dev/null`.
///
/// # Errors
/// There is no console; output stays where the kernel pointed it.
pub fn take() -> Result<()> {
    let null = File::open("/dev/null").context("/dev/null")?;
    nix::unistd::dup2_stdin(&null).context("stdin")?;
    let console = PLACES.iter().find_map(|place| open(Path::new(place)));
    let Some(console) = console else {
        return Err(Failure::new(format_args!(
            "no console at any of {PLACES:?}"
        )));
    };
    nix::unistd::dup2_stdout(&console).context("stdout")?;
    nix::unistd::dup2_stderr(&console).context("stderr")
}

fn open(place: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(place)
        .ok()
}
