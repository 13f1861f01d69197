//! A descriptor that the parent process left open and named on the command line by its number.
//!
//! # Safety
//! `vchan-socket-proxy`'s command line takes a descriptor number, and a bare number becomes a
//! descriptor only by an unsafe call: the language cannot check that it is open, nor its owner. The
//! number is borrowed just long enough to duplicate it, so this program closes only what it opened.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// A duplicate of inherited descriptor `number`, closed on exec. The original stays open.
///
/// # Errors
/// `EBADF` when there is no such descriptor; `InvalidInput` for a negative number.
pub fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY:
    // - `number` is not -1, checked above;
    // - the borrow ends with this function, and all it is used for is `F_DUPFD_CLOEXEC`, which
    //   answers `EBADF` for a number that is not open and changes nothing about one that is.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    borrowed.try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn an_open_number_is_duplicated_and_others_are_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let copy = duplicate(file.as_raw_fd()).unwrap();
        assert_ne!(copy.as_raw_fd(), file.as_raw_fd());
        assert_eq!(
            duplicate(1_000_000).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
        assert!(duplicate(-1).is_err());
    }
}
