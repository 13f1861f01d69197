//! The process that draws the guest's screen and types for its viewer, in the stubdomain.
//!
//! ```text
//!   QEMU ══its VNC server, a UNIX socket══ this process ── /dev/fb0 ══ the toolstack's VNC server
//!   (the guest's VGA, PS/2, USB tablet)                 ── /dev/input/event*    (in dom0)
//! ```
//!
//! It parses what QEMU sends, and a guest may have taken QEMU over. So it gets open descriptors
//! from the init ([`crate::guest::screen`]), and enters the sandbox before it reads a byte: a user
//! of its own, no files, and no calls but those that move bytes between its descriptors.
//!
//! It sleeps until one of its descriptors has something: an idle screen costs it nothing.

mod device;
mod ioctl;
mod worker;

use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use clap::Args;
use stubdm_screen::Size;

use crate::guest::screen::CONFINED;
use crate::proxy::sandbox::enter::{self, Allowed};
use crate::rt::error::{Context, Result};
use crate::rt::stream::Stream;
use crate::rt::{event_loop, fd};
use device::Device;
use worker::Worker;

/// Its user, and group: not QEMU's.
const USER: u32 = 1001;

/// The numbers of the open descriptors that the init gives it.
#[derive(Args, Clone, Debug)]
pub struct Given {
    /// A connection to QEMU's VNC server
    #[arg(long, value_name = "FD")]
    pub socket: RawFd,
    /// The frame buffer
    #[arg(long, value_name = "FD")]
    pub frame: RawFd,
    /// The largest width the frame buffer can have
    #[arg(long, value_name = "PIXELS")]
    pub width: u16,
    /// The largest height
    #[arg(long, value_name = "PIXELS")]
    pub height: u16,
    /// An input device
    #[arg(long, value_name = "FD")]
    pub input: Vec<RawFd>,
}

/// Confines this process and draws until QEMU closes the connection.
///
/// # Errors
/// A descriptor is not what it should be, a restriction could not be put up, or QEMU violates the
/// protocol.
pub fn run(given: &Given) -> Result<()> {
    let socket = fd::duplicate(given.socket).context("QEMU's screen")?;
    let frame = fd::duplicate(given.frame).context("the frame buffer")?;
    let mut inputs = Vec::new();
    for number in &given.input {
        let input = fd::duplicate(*number).context("an input device")?;
        ioctl::grab(&input).context("taking an input device over")?;
        inputs.push(input);
    }
    let frame = Device::new(frame).context("the frame buffer")?;
    let mut keep: Vec<BorrowedFd<'_>> = inputs.iter().map(AsFd::as_fd).collect();
    keep.extend([socket.as_fd(), frame.as_fd()]);
    let allowed = Allowed {
        output: 0,
        memory: enter::MEMORY,
        requests: &[ioctl::SET_VARIABLE],
        // Has the kernel pass on what was drawn.
        calls: &[libc::SYS_fsync],
    };
    enter::enter_with(&keep, USER, allowed)?;
    // Nobody but the init reads it.
    let _ = writeln!(std::io::stderr(), "{CONFINED}");
    let socket = Stream::socket(socket).context("QEMU's screen")?;
    let (width, height) = (given.width, given.height);
    let mut worker = Worker::new(socket, streams(inputs)?, frame, Size { width, height });
    event_loop::run(&mut worker, &mut []).context("the guest's screen")?;
    Ok(())
}

/// The input devices, without what was typed while nobody read.
fn streams(inputs: Vec<OwnedFd>) -> Result<Vec<Stream>> {
    let mut streams = Vec::new();
    for input in inputs {
        let mut stream = Stream::socket(input).context("an input device")?;
        worker::discard(&mut stream);
        streams.push(stream);
    }
    Ok(streams)
}
