//! The descriptor under a connection: how it is found, read and written.
//!
//! Two kinds behave differently, and [`Transport`] is where that ends:
//!
//! | | socket to the daemon | `/dev/xen/xenbus` |
//! |---|---|---|
//! | write | may be short, may say *not now*, `POLLOUT` follows | takes a whole message, may sleep; `POLLOUT` never comes |
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
    "/dev/xen/xenbus",
    "/proc/xen/xenbus",
];

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
            Host::Dev(_) => Self::find(),
            #[cfg(feature = "sim")]
            Host::Sim(client) => Self::from_fd(crate::sim::connection(client)?),
            _ => Err(Error::Unsupported),
        }
    }

    /// The first of the usual places that answers.
    ///
    /// If none does, the error is about the first place that exists, because that is where
    /// something can be mended.
    fn find() -> Result<Self> {
        let mut error = None;
        for place in PLACES {
            match Self::connect(Path::new(place)) {
                Ok(transport) => return Ok(transport),
                Err(Error::Connect { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && error.is_some() => {}
                Err(other) => {
                    let keep = error
                        .as_ref()
                        .is_some_and(|e: &Error| e.errno() != libc::ENOENT);
                    if !keep {
                        error = Some(other);
                    }
                }
            }
        }
        Err(error.unwrap_or(Error::Unsupported))
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
