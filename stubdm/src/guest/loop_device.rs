//! Attaches a file to the loop device, whose contents it becomes.
//!
//! # Safety
//! `ioctl(2)` is not safe code because some requests take an address. The one used here,
//! `LOOP_SET_FD` of `include/uapi/linux/loop.h`, takes a descriptor's number, and it is sent to a
//! loop device only.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use nix::errno::Errno;
use nix::sys::stat::major;

use crate::rt::error::{Context, Failure, Result};

/// The device. Nothing else in a stubdomain uses one.
pub const DEVICE: &str = "/dev/loop0";

/// The request, from the kernel's header.
const LOOP_SET_FD: u32 = 0x4C00;

/// The number of the loop driver (`include/uapi/linux/major.h`).
const LOOP_MAJOR: u64 = 7;

/// Gives [`DEVICE`] the contents of a file, for reading. The device keeps the file after both are
/// closed.
///
/// # Errors
/// There is no such device, it is no loop device, or it has a file.
pub fn attach(file: &File) -> Result<()> {
    let device = File::open(DEVICE).context(DEVICE)?;
    attach_to(&device, file).context(DEVICE)
}

fn attach_to(device: &File, file: &File) -> Result<()> {
    let meta = device.metadata().map_err(Failure::new)?;
    if !meta.file_type().is_block_device() || major(meta.rdev()) != LOOP_MAJOR {
        return Err(Failure::new("it is no loop device"));
    }
    // SAFETY: `device` is open on a block device of the loop driver, which its own metadata just
    // confirmed. That driver takes this request's argument as the number of an open file, which
    // `file` keeps open during the call, and as no address.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_FD as _, file.as_raw_fd()) };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Failure::new(errno.desc()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_loop_device_gets_no_request() {
        let file = tempfile::tempfile().unwrap();
        for other in ["/dev/null", "/", "/proc/self/status"] {
            let error = attach_to(&File::open(other).unwrap(), &file).unwrap_err();
            assert_eq!(error.to_string(), "it is no loop device", "{other}");
        }
    }
}
