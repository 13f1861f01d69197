//! The near side of the proxy: a connected UNIX socket, or a pair of descriptors such as stdin and
//! stdout, read and written without blocking.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};

/// A connection that may use one descriptor for each direction.
#[derive(Debug)]
pub struct Stream {
    input: OwnedFd,
    output: Option<OwnedFd>,
    ended: bool,
}

/// The result of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// This many bytes.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// The other side will send nothing more.
    End,
}

impl Stream {
    /// A connected socket.
    ///
    /// # Errors
    /// The descriptor could not be set non-blocking.
    pub fn socket(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(fd.as_fd())?;
        Ok(Self {
            input: fd,
            output: None,
            ended: false,
        })
    }

    /// Two descriptors, one for each direction.
    ///
    /// # Errors
    /// A descriptor could not be set non-blocking.
    pub fn pair(input: OwnedFd, output: OwnedFd) -> io::Result<Self> {
        set_nonblocking(input.as_fd())?;
        set_nonblocking(output.as_fd())?;
        Ok(Self {
            input,
            output: Some(output),
            ended: false,
        })
    }

    fn out(&self) -> BorrowedFd<'_> {
        self.output.as_ref().unwrap_or(&self.input).as_fd()
    }

    /// Reads what is there.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<Read> {
        loop {
            return match nix::unistd::read(&self.input, buffer) {
                Ok(0) => {
                    self.ended = true;
                    Ok(Read::End)
                }
                Ok(count) => Ok(Read::Bytes(count)),
                Err(Errno::EAGAIN) => Ok(Read::Nothing),
                Err(Errno::EINTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// Writes what fits; 0 for nothing now.
    ///
    /// # Errors
    /// Nobody reads any more, or the connection is broken otherwise. SIGPIPE is ignored in this
    /// program, as the Rust runtime sets it.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            return match nix::unistd::write(self.out(), bytes) {
                Ok(count) => Ok(count),
                Err(Errno::EAGAIN) => Ok(0),
                Err(Errno::EINTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// As [`write`](Self::write) over a socket, with a duplicate of `fd` for the other side.
    ///
    /// # Errors
    /// As for [`write`](Self::write); also if this is no UNIX socket.
    pub fn write_with(&mut self, bytes: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
        let fds = [fd.as_raw_fd()];
        let extra = [ControlMessage::ScmRights(&fds)];
        let bytes = [IoSlice::new(bytes)];
        loop {
            let flags = MsgFlags::MSG_NOSIGNAL;
            return match sendmsg::<()>(self.out().as_raw_fd(), &bytes, &extra, flags, None) {
                Ok(count) => Ok(count),
                Err(Errno::EINTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// Its descriptors.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [
            Some(self.input.as_fd()),
            self.output.as_ref().map(AsFd::as_fd),
        ]
        .into_iter()
        .flatten()
    }

    /// Returns whether one socket carries both directions.
    pub fn is_one(&self) -> bool {
        self.output.is_none()
    }

    /// Returns whether [`Read::End`] was returned.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Returns whether nobody can be listening any more: the other side closed both directions.
    pub fn hung_up(&self) -> bool {
        crate::rt::poll::hung_up(self.out())
    }

    /// Returns the events to wait for. A hang-up is always reported.
    pub fn interest(&self, read: bool, write: bool) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let mut input = PollFlags::empty();
        let mut output = PollFlags::empty();
        input.set(PollFlags::POLLIN, read && !self.ended);
        output.set(PollFlags::POLLOUT, write);
        match &self.output {
            None => vec![(self.input.as_fd(), input | output)],
            Some(fd) if input.is_empty() => vec![(fd.as_fd(), output)],
            Some(fd) => vec![(self.input.as_fd(), input), (fd.as_fd(), output)],
        }
    }
}

/// Connects to a UNIX socket at once or not at all. The connection does not block either.
///
/// # Errors
/// `WouldBlock` while the listener's queue is full, which a blocking connect would wait for
/// without limit; otherwise the system's.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// Makes a descriptor return `EAGAIN` where it would block.
///
/// # Errors
/// The system's.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_full_queue_is_reported_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let flags = SockFlag::SOCK_CLOEXEC;
        let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        nix::sys::socket::bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        let refused = connect(&path).unwrap_err().kind();
        assert_eq!(refused, io::ErrorKind::ConnectionRefused);
        let one = nix::sys::socket::Backlog::new(1).unwrap();
        nix::sys::socket::listen(&listener, one).unwrap();
        let queued: Vec<_> = std::iter::repeat_with(|| connect(&path)).take(4).collect();
        assert!(queued.first().unwrap().is_ok());
        let last = queued.last().unwrap().as_ref().unwrap_err().kind();
        assert_eq!(last, io::ErrorKind::WouldBlock);
    }

    #[test]
    fn half_closed_is_not_hung_up() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut near = Stream::socket(near.into()).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(near.read(&mut buffer).unwrap(), Read::Nothing);
        far.write_all(b"abc").unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        assert_eq!(near.read(&mut buffer).unwrap(), Read::Bytes(3));
        assert_eq!(near.read(&mut buffer).unwrap(), Read::End);
        assert!(!near.hung_up());
        assert_eq!(near.write(b"still there").unwrap(), 11);
        drop(far);
        assert!(near.hung_up());
        assert!(near.write(b"x").is_err(), "an error, and no signal");
    }
}
