//! The descriptor under a connection: how it is found, read and written.
//!
//! Two kinds behave differently, and [`Transport`] is where that ends:
//!
//! | | socket to the daemon | `/dev/xen/xenbus` |
//! |---|---|---|
//! | write | may be short, may say *not now*, `POLLOUT` follows | takes a whole message, may sleep; `POLLOUT` never comes |
//! | several requests unanswered | as many as one likes | one: see [`Quirks::XENBUS`] |
//! | a refused message | cannot be | `write` fails with the errno; the next one may succeed |
//! | read | byte stream | byte stream, messages cut anywhere |

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::stat::{SFlag, fstat};
use xen_sys::{Host, Xen};

use crate::error::{Error, Result};
use crate::proto::Quirks;

/// The ways to the daemon, in the order tried: its socket, then the kernel's device.
const PLACES: [&str; 4] = [
    "/run/xenstored/socket",
    "/var/run/xenstored/socket",
    DEVICE,
    "/proc/xen/xenbus",
];
/// What every domain with Linux's drivers has.
const DEVICE: &str = "/dev/xen/xenbus";

#[derive(Debug)]
pub(crate) struct Transport {
    fd: OwnedFd,
    is_socket: bool,
}

/// What one write attempt did.
#[derive(Debug)]
pub(crate) enum Written {
    /// So many bytes.
    Some(usize),
    /// Nothing: wait for `POLLOUT`.
    NotNow,
    /// Nothing, and nothing ever will be: the peer is gone.
    Gone,
    /// The device refused this message.
    Refused(i32),
    /// The call failed.
    Failed(&'static str, i32),
}

impl Transport {
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Self> {
        let stat = fstat(&fd).map_err(|errno| os("fstat", errno))?;
        let is_socket = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFSOCK.bits();
        if !is_socket {
            // Sockets are asked per call; the device only knows the flag of the open file.
            let flags = fcntl(&fd, FcntlArg::F_GETFL).map_err(|errno| os("fcntl", errno))?;
            let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
            fcntl(&fd, FcntlArg::F_SETFL(flags)).map_err(|errno| os("fcntl", errno))?;
        }
        Ok(Self { fd, is_socket })
    }

    /// A socket, or anything else as the kernel's device.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let attempt = || -> io::Result<OwnedFd> {
            if std::fs::metadata(path)?.file_type().is_socket() {
                return Ok(UnixStream::connect(path)?.into());
            }
            Ok(File::options().read(true).write(true).open(path)?.into())
        };
        match attempt() {
            Ok(fd) => Self::from_fd(fd),
            Err(source) => Err(Error::Connect {
                path: path.into(),
                source,
            }),
        }
    }

    /// The store of the host that `xen` leads to.
    pub(crate) fn open(xen: &Xen) -> Result<Self> {
        match xen.host() {
            Host::Dev(_) => Self::first_of(&PLACES, DEVICE),
            #[cfg(feature = "sim")]
            Host::Sim(client) => Self::from_fd(crate::sim::connection(client)?),
            _ => Err(Error::Unsupported),
        }
    }

    /// The first of these places that answers.
    ///
    /// If none does, the error is about the first one that exists, because that is where
    /// something can be mended; if none exists, about `expected`.
    fn first_of(places: &[&str], expected: &str) -> Result<Self> {
        let (mut refused, mut missing) = (None, None);
        for place in places {
            match Self::connect(Path::new(place)) {
                Ok(transport) => return Ok(transport),
                Err(error) if error.errno() != libc::ENOENT => {
                    refused.get_or_insert(error);
                }
                Err(error) if *place == expected => missing = Some(error),
                Err(_) => {}
            }
        }
        Err(refused.or(missing).unwrap_or(Error::Unsupported))
    }

    pub(crate) fn quirks(&self) -> Quirks {
        if self.is_socket {
            Quirks::SOCKET
        } else {
            Quirks::XENBUS
        }
    }

    /// Reads without waiting; `Ok(None)` if there is nothing now, `Ok(Some(0))` at the end.
    pub(crate) fn read(&self, buf: &mut [u8]) -> std::result::Result<Option<usize>, Errno> {
        loop {
            let got = if self.is_socket {
                use std::os::fd::AsRawFd;
                recv(self.fd.as_raw_fd(), buf, MsgFlags::MSG_DONTWAIT)
            } else {
                nix::unistd::read(&self.fd, buf)
            };
            return match got {
                Ok(count) => Ok(Some(count)),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => Ok(None),
                Err(Errno::ECONNRESET) => Ok(Some(0)),
                Err(errno) => Err(errno),
            };
        }
    }

    /// Writes without waiting (a socket) or until the kernel has the message (the device).
    pub(crate) fn write(&self, bytes: &[u8]) -> Written {
        loop {
            let sent = if self.is_socket {
                use std::os::fd::AsRawFd;
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                send(self.fd.as_raw_fd(), bytes, flags)
            } else {
                nix::unistd::write(&self.fd, bytes)
            };
            return match sent {
                Ok(count) => Written::Some(count),
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => Written::NotNow,
                Err(Errno::EPIPE | Errno::ECONNRESET) => Written::Gone,
                Err(errno) if self.is_socket => Written::Failed("send", errno as i32),
                Err(errno) => Written::Refused(errno as i32),
            };
        }
    }

    /// Sleeps until the descriptor is readable (if `input`) or writable (if `output`), a signal
    /// comes, or `deadline` passes.
    pub(crate) fn poll(&self, input: bool, output: bool, deadline: Option<Instant>) -> Result<()> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::POLLIN, input);
        flags.set(PollFlags::POLLOUT, output);
        let mut fds = [PollFd::new(self.fd.as_fd(), flags)];
        match poll(&mut fds, timeout(deadline)) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(os("poll", errno)),
        }
    }
}

#[cfg(feature = "tokio")]
impl std::os::fd::AsRawFd for Transport {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.fd)
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The time left in milliseconds, rounded up so that a poll never ends just before its deadline.
fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else {
        return PollTimeout::NONE;
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let millis = left.as_nanos().div_ceil(1_000_000);
    i32::try_from(millis)
        .ok()
        .and_then(|ms| ms.try_into().ok())
        .unwrap_or(PollTimeout::MAX)
}

pub(crate) fn os(op: &'static str, errno: Errno) -> Error {
    Error::Os {
        op,
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_first_place_that_answers_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (none, left, live) = (place("none"), place("left"), place("live"));
        drop(UnixListener::bind(&left).unwrap());
        let _listener = UnixListener::bind(&live).unwrap();
        let taken = Transport::first_of(&[&none, &left, &live], &none).unwrap();
        assert_eq!(taken.quirks(), Quirks::SOCKET);
    }

    #[test]
    fn if_none_answers_the_error_is_about_what_can_be_mended() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (none, left, expected) = (place("none"), place("left"), place("expected"));
        drop(UnixListener::bind(&left).unwrap());
        let error = Transport::first_of(&[&none, &left, &expected], &expected).unwrap_err();
        assert!(error.to_string().starts_with(&left), "{error}");
        assert_eq!(error.errno(), libc::ECONNREFUSED);
        let error = Transport::first_of(&[&none, &expected], &expected).unwrap_err();
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert_eq!(error.errno(), libc::ENOENT);
    }

    /// Anything that is no socket is used as the kernel's device is.
    #[test]
    fn a_device_is_opened_and_not_waited_for() {
        let device = Transport::connect(Path::new("/dev/null")).unwrap();
        assert_eq!(device.quirks(), Quirks::XENBUS);
        assert!(matches!(device.write(b"x"), Written::Some(1)));
        assert!(matches!(device.read(&mut [0; 8]), Ok(Some(0))));
        let flags = fcntl(device.as_fd(), FcntlArg::F_GETFL).unwrap();
        assert_ne!(flags & OFlag::O_NONBLOCK.bits(), 0);
    }
}
