//! The descriptor under a connection: how it is found, read and written.
//!
//! Two kinds behave differently, and only [`Transport`] distinguishes them:
//!
//! | | socket to the daemon | `/dev/xen/xenbus` |
//! |---|---|---|
//! | write | may be short or fail with `EAGAIN`, then `POLLOUT` follows | takes a whole message, may sleep; no `POLLOUT` |
//! | several requests unanswered | any number | one: see [`Quirks::XENBUS`] |
//! | a refused message | does not happen | `write` fails with the errno; the next one may succeed |
//! | read | byte stream | byte stream, messages cut anywhere |

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use xen_sys::{Host, Xen};

use crate::driver::Pollable;
use crate::error::{Error, Invalid, Result};
use crate::mux::Stream;
use crate::proto::Quirks;
use crate::ready_fd::{PollSet, Timer};
use crate::spin::{Look, SHARED};

/// The ways to the daemon, in the order tried: its socket, then the kernel's device.
const PLACES: [&str; 4] = [
    "/run/xenstored/socket",
    "/var/run/xenstored/socket",
    DEVICE,
    "/proc/xen/xenbus",
];
/// The device of every domain with Linux's drivers.
const DEVICE: &str = "/dev/xen/xenbus";

/// The file system at `/proc/xen`, where the device is a regular file (`XENFS_SUPER_MAGIC`).
const XENFS: FsType = FsType(0xabba_1974_u32 as _);

#[derive(Debug)]
pub(crate) struct Transport {
    fd: OwnedFd,
    is_socket: bool,
    /// Where it was found, unless it was made from a descriptor.
    place: Option<Origin>,
}

/// A place at which the daemon can be reached again, any number of times.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    Path(PathBuf),
    /// A simulated host.
    #[cfg(feature = "sim")]
    Sim(Xen),
}

impl Origin {
    /// Connects without waiting.
    pub(crate) fn connect(&self) -> Result<Transport> {
        match self {
            Self::Path(path) => Transport::try_connect(path),
            #[cfg(feature = "sim")]
            Self::Sim(xen) => Transport::open_with(xen, Transport::try_connect),
        }
    }
}

/// The result of one write attempt.
#[derive(Debug)]
pub(crate) enum Written {
    /// This many bytes were written.
    Some(usize),
    /// Nothing was written: wait for `POLLOUT`.
    NotNow,
    /// Nothing was written, and nothing ever will be: the peer is gone.
    Gone,
    /// The device refused this message.
    Refused(i32),
    /// The call failed.
    Failed(&'static str, i32),
}

impl Transport {
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Self> {
        let stat = fstat(&fd).map_err(|errno| os("fstat", errno))?;
        let is_socket = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFSOCK => true,
            SFlag::S_IFCHR => false,
            SFlag::S_IFREG if fstatfs(&fd).is_ok_and(|fs| fs.filesystem_type() == XENFS) => false,
            _ => {
                return Err(os(
                    "a file that is neither a socket nor a device",
                    Errno::ENOTSOCK,
                ));
            }
        };
        if !is_socket {
            // For a socket each call sets non-blocking itself; the device has only the flag of the
            // open file.
            let flags = fcntl(&fd, FcntlArg::F_GETFL).map_err(|errno| os("fcntl", errno))?;
            let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
            fcntl(&fd, FcntlArg::F_SETFL(flags)).map_err(|errno| os("fcntl", errno))?;
        }
        Ok(Self {
            fd,
            is_socket,
            place: None,
        })
    }

    /// Returns the place from which it can be opened again.
    ///
    /// # Errors
    ///
    /// [`Invalid::NoPlace`] if it was made from a descriptor.
    pub(crate) fn place(&self) -> Result<Origin> {
        Ok(self.place.clone().ok_or(Invalid::NoPlace)?)
    }

    /// Connects to a socket, or opens the kernel's device. Nothing is written to any other file.
    ///
    /// Waits while the daemon's backlog is full.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        Self::connect_with(path, UnixStream::connect)
    }

    /// As `connect`, without waiting: `WouldBlock` while the daemon's backlog is full.
    pub(crate) fn try_connect(path: &Path) -> Result<Self> {
        Self::connect_with(path, connect_nonblocking)
    }

    fn connect_with<F: Into<OwnedFd>>(
        path: &Path,
        connect: impl FnOnce(PathBuf) -> io::Result<F>,
    ) -> Result<Self> {
        let attempt = || -> io::Result<Self> {
            let kind = std::fs::metadata(path)?.file_type();
            let fd = if kind.is_socket() {
                connect(path.to_owned())?.into()
            } else if kind.is_char_device() || kind.is_file() {
                File::options().read(true).write(true).open(path)?.into()
            } else {
                return Err(Errno::ENOTSOCK.into());
            };
            // Checks the descriptor itself: the path may name another file by now.
            let transport = Self::from_fd(fd).map_err(|error| {
                io::Error::from_raw_os_error(error.errno().unwrap_or(libc::EIO))
            })?;
            let place = Some(Origin::Path(path.to_owned()));
            Ok(Self { place, ..transport })
        };
        attempt().map_err(|source| Error::Connect {
            path: path.into(),
            source: source.into(),
        })
    }

    /// Opens the store of the host of `xen`.
    pub(crate) fn open(xen: &Xen) -> Result<Self> {
        Self::open_with(xen, Self::connect)
    }

    /// As `open`, without waiting: `WouldBlock` while the daemon's backlog is full.
    #[cfg(feature = "tokio")]
    pub(crate) fn try_open(xen: &Xen) -> Result<Self> {
        Self::open_with(xen, Self::try_connect)
    }

    fn open_with(xen: &Xen, connect: impl Fn(&Path) -> Result<Self>) -> Result<Self> {
        match xen.host() {
            Host::Dev(_) => Self::first_of(&PLACES, DEVICE, connect),
            #[cfg(feature = "sim")]
            Host::Sim(client) => {
                let place = Some(Origin::Sim(xen.clone()));
                let transport = Self::from_fd(simulated(client)?)?;
                Ok(Self { place, ..transport })
            }
            _ => Err(Error::Unsupported),
        }
    }

    /// Connects to the first of these places that answers.
    ///
    /// If none does, the error is about the first one that exists, because an administrator can
    /// mend something there; if none exists, about `expected`. A daemon whose backlog is full
    /// exists, and no other place is tried.
    fn first_of(
        places: &[&str],
        expected: &str,
        connect: impl Fn(&Path) -> Result<Self>,
    ) -> Result<Self> {
        let (mut refused, mut missing) = (None, None);
        for place in places {
            match connect(Path::new(place)) {
                Ok(transport) => return Ok(transport),
                Err(error) if error.errno() == Some(libc::EAGAIN) => return Err(error),
                Err(error) if error.errno() != Some(libc::ENOENT) => {
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
}

impl Transport {
    /// As [`Stream::read`].
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

    /// Writes without waiting for room; the xenbus device sleeps until it has the message.
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

    /// As [`Stream::is_drained`].
    pub(crate) fn is_drained(&self, count: usize, size: usize) -> bool {
        // The device may give one message at a time.
        self.is_socket && count < size
    }
}

/// A transport on which threads sleep.
#[derive(Debug)]
pub(crate) struct Polled {
    renewal: Renewal,
    /// Non-zero until an interruption was seen.
    interruption: EventFd,
}

#[derive(Debug)]
enum Renewal {
    /// The end of the transport is the end of the connection.
    Never(Transport),
    Possible(Renewable),
}

/// A transport that is replaced when it is lost.
#[derive(Debug)]
struct Renewable {
    place: Origin,
    /// `None` while it is lost.
    current: Mutex<Option<Arc<Transport>>>,
    /// Made by [`Stream::connect_again`], for [`Stream::install`].
    next: Mutex<Option<Arc<Transport>>>,
    /// Readable when the transport or the timer is.
    set: PollSet,
    /// Fires when it is time to connect.
    timer: Timer,
}

impl Renewable {
    fn current(&self) -> Option<Arc<Transport>> {
        lock(&self.current).clone()
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Polled {
    /// # Errors
    ///
    /// [`Error::Os`] if there is no descriptor left.
    pub(crate) fn new(transport: Transport) -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let interruption = EventFd::from_flags(flags).map_err(|errno| os("eventfd", errno))?;
        Ok(Self {
            renewal: Renewal::Never(transport),
            interruption,
        })
    }

    /// Returns the same transport, to be replaced when it is lost.
    ///
    /// # Errors
    ///
    /// [`Invalid::NoPlace`]; [`Error::Os`] if there is no descriptor left.
    pub(crate) fn renewable(self) -> Result<Self> {
        let Renewal::Never(transport) = self.renewal else {
            return Ok(self);
        };
        let timer = Timer::new()?;
        let set = PollSet::new([transport.as_fd(), timer.as_fd()])?;
        let renewal = Renewal::Possible(Renewable {
            place: transport.place()?,
            current: Mutex::new(Some(Arc::new(transport))),
            next: Mutex::new(None),
            set,
            timer,
        });
        Ok(Self {
            renewal,
            interruption: self.interruption,
        })
    }

    /// Calls `with` on the transport; returns `None` while it is lost.
    fn transport<T>(&self, with: impl FnOnce(&Transport) -> T) -> Option<T> {
        match &self.renewal {
            Renewal::Never(transport) => Some(with(transport)),
            Renewal::Possible(renewable) => renewable.current().map(|transport| with(&transport)),
        }
    }
}

impl Stream for Polled {
    fn read(&self, buf: &mut [u8]) -> std::result::Result<Option<usize>, Errno> {
        self.transport(|transport| transport.read(buf))
            .unwrap_or(Ok(None))
    }

    fn writer(&self) -> impl Fn(&[u8]) -> Written {
        let current = match &self.renewal {
            Renewal::Never(_) => None,
            Renewal::Possible(renewable) => renewable.current(),
        };
        move |bytes| match (&self.renewal, &current) {
            (Renewal::Never(transport), _) => transport.write(bytes),
            (Renewal::Possible(_), Some(transport)) => transport.write(bytes),
            (Renewal::Possible(_), None) => Written::Gone,
        }
    }

    fn is_drained(&self, count: usize, size: usize) -> bool {
        self.transport(|transport| transport.is_drained(count, size))
            .unwrap_or(true)
    }

    fn interrupt(&self) {
        // The only failure is a full counter, and that interrupts as well.
        let _ = self.interruption.write(1);
    }

    fn handle_loss(&self, retry: Instant) {
        if let Renewal::Possible(renewable) = &self.renewal {
            if let Some(lost) = lock(&renewable.current).take() {
                renewable.set.remove(lost.as_fd());
            }
            let wait = retry.saturating_duration_since(Instant::now());
            renewable.timer.set(Some(wait));
        }
    }

    fn connect_again(&self) -> Result<Quirks> {
        let Renewal::Possible(renewable) = &self.renewal else {
            return Err(Error::Unsupported);
        };
        let transport = renewable.place.connect()?;
        renewable.set.add(transport.as_fd())?;
        let quirks = transport.quirks();
        *lock(&renewable.next) = Some(Arc::new(transport));
        Ok(quirks)
    }

    fn install(&self) {
        if let Renewal::Possible(renewable) = &self.renewal {
            renewable.timer.set(None);
            *lock(&renewable.current) = lock(&renewable.next).take();
        }
    }
}

impl Pollable for Polled {
    fn poll(&self, output: bool, deadline: Option<Instant>, spin: Duration) -> Result<Look> {
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, output);
        let interruption = PollFd::new(self.interruption.as_fd(), PollFlags::POLLIN);
        let polled = self.transport(|transport| {
            let mut fds = [PollFd::new(transport.as_fd(), flags), interruption.clone()];
            // The device's daemon is in another domain, which may need this processor.
            let look = if transport.is_socket && !spin.is_zero() {
                look(&mut fds, deadline, spin)?
            } else {
                Look::None
            };
            if look != Look::Saved && fds.iter().all(|fd| fd.any() != Some(true)) {
                poll(&mut fds, timeout(deadline))?;
            }
            Ok(look)
        });
        let looked = polled.unwrap_or_else(|| {
            poll(&mut [interruption.clone()], timeout(deadline)).map(|_| Look::None)
        });
        match looked {
            Err(Errno::EINTR) => Ok(Look::None),
            looked => looked.map_err(|errno| os("poll", errno)),
        }
    }

    fn rearm(&self) {
        // The only failure is an empty counter.
        let _ = self.interruption.read();
    }
}

impl AsFd for Polled {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.renewal {
            Renewal::Never(transport) => transport.as_fd(),
            Renewal::Possible(renewable) => renewable.set.as_fd(),
        }
    }
}

/// Returns the socket or device that the environment names, as libxenstore does.
pub(crate) fn path_from_environment() -> Option<PathBuf> {
    std::env::var_os("XENSTORED_PATH").map(PathBuf::from)
}

/// Connects without waiting for room in the backlog.
fn connect_nonblocking(path: PathBuf) -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(&path)?)?;
    Ok(fd)
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

/// Looks until one of `fds` is ready, `spin` or `deadline` has passed, or another process had the
/// processor.
///
/// It does not yield: on a busy machine the thread would lose the processor for milliseconds.
fn look(
    fds: &mut [PollFd<'_>],
    deadline: Option<Instant>,
    spin: Duration,
) -> std::result::Result<Look, Errno> {
    if poll(fds, PollTimeout::ZERO)? > 0 {
        return Ok(Look::None);
    }
    let mut now = Instant::now();
    let end = now + spin;
    let end = deadline.map_or(end, |deadline| deadline.min(end));
    while now < end {
        let is_there = poll(fds, PollTimeout::ZERO)? > 0;
        let last = std::mem::replace(&mut now, Instant::now());
        if now.saturating_duration_since(last) > SHARED {
            break;
        }
        if is_there {
            return Ok(Look::Saved);
        }
    }
    Ok(Look::InVain)
}

/// Returns the time left in milliseconds, rounded up so that a poll never ends just before its
/// deadline.
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

/// A connection to the store of a simulated host.
#[cfg(feature = "sim")]
fn simulated(host: &xen_sys::sim::Client) -> Result<OwnedFd> {
    host.store().map_err(|error| match error {
        xen_sys::Error::Os { op, source } => Error::Os { op, source },
        _ => Error::Unsupported,
    })
}

pub(crate) fn os(op: &'static str, errno: Errno) -> Error {
    Error::Os {
        op,
        source: io::Error::from(errno).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_first_place_that_answers_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (none, left, live) = (place("none"), place("left"), place("live"));
        drop(UnixListener::bind(&left).unwrap());
        let _listener = UnixListener::bind(&live).unwrap();
        let taken = Transport::first_of(&[&none, &left, &live], &none, Transport::connect).unwrap();
        assert_eq!(taken.quirks(), Quirks::SOCKET);
    }

    #[test]
    fn if_none_answers_the_error_is_about_what_can_be_mended() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (none, left, expected) = (place("none"), place("left"), place("expected"));
        drop(UnixListener::bind(&left).unwrap());
        let error = Transport::first_of(&[&none, &left, &expected], &expected, Transport::connect)
            .unwrap_err();
        assert!(error.to_string().starts_with(&left), "{error}");
        assert_eq!(error.errno(), Some(libc::ECONNREFUSED));
        let error =
            Transport::first_of(&[&none, &expected], &expected, Transport::connect).unwrap_err();
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert_eq!(error.errno(), Some(libc::ENOENT));
    }

    /// A character device is treated as the kernel's device.
    #[test]
    fn a_device_is_opened_and_not_waited_for() {
        let device = Transport::connect(Path::new("/dev/null")).unwrap();
        assert_eq!(device.quirks(), Quirks::XENBUS);
        assert!(matches!(device.write(b"x"), Written::Some(1)));
        assert!(matches!(device.read(&mut [0; 8]), Ok(Some(0))));
        let flags = fcntl(device.as_fd(), FcntlArg::F_GETFL).unwrap();
        assert_ne!(flags & OFlag::O_NONBLOCK.bits(), 0);
    }

    #[test]
    fn a_poll_looks_before_it_sleeps_if_asked_to_and_only_on_a_socket() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let socket = Polled::new(Transport::from_fd(ours.into()).unwrap()).unwrap();
        let spin = Duration::from_micros(50);
        let poll = |polled: &Polled, spin| {
            let deadline = Instant::now() + Duration::from_millis(2);
            polled.poll(false, Some(deadline), spin).unwrap()
        };
        assert_eq!(poll(&socket, Duration::ZERO), Look::None);
        assert_eq!(poll(&socket, spin), Look::InVain);
        // The wait does not sleep for it: there is no deadline.
        theirs.write_all(b"x").unwrap();
        assert_eq!(socket.poll(false, None, spin).unwrap(), Look::None);
        let pty = nix::pty::openpty(None, None).unwrap();
        let device = Polled::new(Transport::from_fd(pty.master).unwrap()).unwrap();
        assert_eq!(poll(&device, spin), Look::None);
    }

    /// A child process, or another thread that is about to write, may keep a lost transport open.
    #[test]
    fn a_lost_transport_that_is_still_open_is_neither_polled_nor_written_to_in_place_of_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let first = Transport::connect(&path).unwrap();
        let copy = first.fd.try_clone().unwrap();
        let polled = Polled::new(first).unwrap().renewable().unwrap();
        drop(listener.accept().unwrap());
        let write = polled.writer();
        let hour = Duration::from_secs(3600);
        polled.handle_loss(Instant::now() + hour);
        let is_readable = || {
            let mut fds = [PollFd::new(polled.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
        };
        assert!(!is_readable(), "a poll loop would not sleep");
        polled.connect_again().unwrap();
        polled.install();
        assert!(matches!(write(b"x"), Written::Gone));
        assert!(!is_readable());
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(b"y").unwrap();
        assert!(is_readable());
        assert!(matches!(polled.writer()(b"z"), Written::Some(1)));
        let mut got = [0; 2];
        assert_eq!(io::Read::read(&mut peer, &mut got).unwrap(), 1);
        assert_eq!(got[0], b'z');
        drop(copy);
    }

    #[test]
    fn a_file_that_is_neither_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "important").unwrap();
        for path in [&file, dir.path()] {
            let error = Transport::connect(path).unwrap_err();
            assert!(matches!(error, Error::Connect { .. }), "{error:?}");
            assert_eq!(error.errno(), Some(libc::ENOTSOCK));
        }
        let opened = File::options().read(true).write(true).open(&file).unwrap();
        let error = Transport::from_fd(opened.into()).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOTSOCK));
        assert_eq!(std::fs::read(&file).unwrap(), b"important");
    }
}
