//! Requests to frame buffers and input devices.
//!
//! # Safety
//! `ioctl(2)` is not safe code because some requests take an address, and because a number means
//! something else to another driver. The requests here are sent only to devices whose type and
//! major number were checked. Each gets a buffer of at least the size that the driver's header
//! names.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use libc::c_int;
use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat, major};

use crate::rt::error::{Context, Failure, Result};

/// The drivers' numbers (`include/uapi/linux/major.h`).
const FRAME_BUFFERS: u64 = 29;
const INPUT: u64 = 13;

/// The frame buffers' requests (`include/uapi/linux/fb.h`).
const GET_VARIABLE: u32 = 0x4600;
/// Changes the mode.
pub(super) const SET_VARIABLE: u32 = 0x4601;
const GET_FIXED: u32 = 0x4602;
/// `EVIOCGRAB` (`include/uapi/linux/input.h`).
const GRAB: u32 = 0x4004_4590;

/// `struct fb_var_screeninfo`: 40 words.
pub(super) type Variable = [u32; 40];
/// `struct fb_fix_screeninfo`: 80 bytes where a machine word has eight, and less elsewhere.
pub(super) type Fixed = [u8; 80];

/// An open frame buffer.
#[derive(Debug)]
pub(super) struct FrameBuffer(OwnedFd);

impl FrameBuffer {
    /// Takes a descriptor of one.
    ///
    /// # Errors
    /// It is something else.
    pub(super) fn new(fd: OwnedFd) -> Result<Self> {
        check(&fd, FRAME_BUFFERS)?;
        Ok(Self(fd))
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Returns what can change: the mode.
    ///
    /// # Errors
    /// The driver refuses.
    pub(super) fn variable(&self) -> io::Result<Variable> {
        let mut all: Variable = [0; 40];
        // SAFETY: the descriptor is a frame buffer's, as `new` has checked. The driver writes one
        // `struct fb_var_screeninfo` of 160 bytes to the address, where `all` has as many.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), GET_VARIABLE as _, &raw mut all) };
        checked(result)?;
        Ok(all)
    }

    /// Changes the mode; `all` is what it has become afterwards.
    ///
    /// # Errors
    /// The driver refuses it.
    pub(super) fn set_variable(&self, all: &mut Variable) -> io::Result<()> {
        // SAFETY: as in `variable`; the driver reads as many bytes there, too.
        checked(unsafe { libc::ioctl(self.0.as_raw_fd(), SET_VARIABLE as _, &raw mut *all) })
    }

    /// Returns what stays as it is.
    ///
    /// # Errors
    /// The driver refuses.
    pub(super) fn fixed(&self) -> io::Result<Fixed> {
        let mut all: Fixed = [0; 80];
        // SAFETY: as in `variable`, with a `struct fb_fix_screeninfo` of at most 80 bytes.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), GET_FIXED as _, &raw mut all) };
        checked(result)?;
        Ok(all)
    }
}

/// Grabs an input device for all that share this open file: nobody else gets the keys. So no key of
/// the viewer's reaches the kernel's own console, where it could restart the domain.
///
/// # Errors
/// It is no input device, or the driver refuses.
pub(super) fn grab(fd: &OwnedFd) -> Result<()> {
    check(fd, INPUT)?;
    let on: c_int = 1;
    // SAFETY: the descriptor is an input device's, as was just checked. This request's argument is
    // a number and no address.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), GRAB as _, on) };
    match Errno::result(result) {
        // Held by an earlier process, through the same open file.
        Ok(_) | Err(Errno::EBUSY) => Ok(()),
        Err(errno) => Err(Failure::new(errno.desc())),
    }
}

fn check(fd: &OwnedFd, driver: u64) -> Result<()> {
    let meta = fstat(fd).context("its type")?;
    let kind = SFlag::from_bits_truncate(meta.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFCHR || major(meta.st_rdev) != driver {
        return Err(Failure::new("it is another kind of file"));
    }
    Ok(())
}

fn checked(result: c_int) -> io::Result<()> {
    Errno::result(result).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_file_that_is_no_such_device_gets_no_request() {
        for other in ["/dev/null", "/", "/proc/self/status"] {
            let file = || OwnedFd::from(File::open(other).unwrap());
            let error = FrameBuffer::new(file()).unwrap_err();
            assert_eq!(error.to_string(), "it is another kind of file", "{other}");
            let error = grab(&file()).unwrap_err();
            assert_eq!(error.to_string(), "it is another kind of file", "{other}");
        }
    }
}
