//! A listening socket: bound over a dead one, never over a living one, removed at the end, and left
//! alone for a second when nobody can be let in.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, getsockname, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use tracing::warn;

use crate::rt::error::{Context, Failure, Result};
use crate::rt::poll::Interest;
use crate::rt::stream::connect;

/// How long nobody is let in after that failed.
const REST: Duration = Duration::from_secs(1);
/// How many of these failures are logged.
const COMPLAINTS: u32 = 20;

/// A bound socket file. Dropping it removes the file if it is still the one that was bound.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// The file at `path`, if `listener` is bound there and it is there.
    pub fn of(listener: &OwnedFd, path: &Path) -> Option<Self> {
        let address = getsockname::<UnixAddr>(listener.as_raw_fd()).ok()?;
        let identity = identity(path)?;
        (address.path() == Some(path)).then(|| Self {
            path: path.to_owned(),
            identity: Some(identity),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // Nothing can be done about a failure here, and nobody waits for the answer.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path)
        .ok()
        .map(|meta| (meta.dev(), meta.ino()))
}

/// Binds and listens at `path`, for this user only, whatever the umask. A socket file nobody
/// listens on any more is replaced.
///
/// # Errors
/// The directory is missing, somebody is listening there, or something that is no socket is there.
pub fn bind(path: &Path) -> Result<(UnixListener, SocketFile)> {
    let what = format!("cannot listen at {}", path.display());
    let listener = match bind_new(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path).context(&what)?;
            bind_new(path)
        }
        other => other,
    };
    let listener = listener.context(&what)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: identity(path),
    };
    Ok((listener, file))
}

/// As [`bind`], in the place of any socket that is there.
///
/// # Errors
/// The directory is missing, or something that is no socket is there.
pub fn bind_over(path: &Path) -> Result<(UnixListener, SocketFile)> {
    let there = std::fs::symlink_metadata(path);
    if there.is_ok_and(|meta| meta.file_type().is_socket()) {
        let _ = std::fs::remove_file(path);
    }
    bind(path)
}

fn bind_new(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // Linux makes the file with the mode that the socket has by then: nobody can be quicker.
    fchmod(&listener, Mode::S_IRUSR | Mode::S_IWUSR)?;
    nix::sys::socket::bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&listener, Backlog::MAXALLOWABLE)?;
    Ok(listener.into())
}

fn remove_stale(path: &Path) -> Result<()> {
    let meta = std::fs::symlink_metadata(path).context("looking at what is there")?;
    if !meta.file_type().is_socket() {
        return Err(Failure::new("what is there is no socket"));
    }
    match connect(path) {
        Ok(_) => Err(Failure::new("another process is listening there")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).context("removing the stale socket")
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(Failure::new("another process is listening there, and busy"))
        }
        Err(error) => Err(Failure::new(error)),
    }
}

/// A listening, non-blocking socket, and whether it is looked at.
///
/// A client that waits while descriptors or memory are used up keeps the socket readable, so the
/// listener rests, or the caller would never sleep.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    rest: Option<Instant>,
    failures: u32,
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self {
            listener,
            rest: None,
            failures: 0,
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Listener {
    /// Takes the next waiting client; `None` for none, or none now.
    pub fn accept(&mut self, now: Instant) -> Option<OwnedFd> {
        if self.rest.is_some_and(|rest| now < rest) {
            return None;
        }
        self.rest = None;
        let error = match self.listener.accept() {
            Ok((stream, _)) => return Some(stream.into()),
            Err(error) => error,
        };
        let for_nothing = [libc::EAGAIN, libc::EINTR, libc::ECONNABORTED];
        if !error
            .raw_os_error()
            .is_some_and(|n| for_nothing.contains(&n))
        {
            self.rest = Some(now + REST);
            self.failures = self.failures.saturating_add(1);
            if self.failures <= COMPLAINTS {
                warn!("nobody can be let in: {error}");
            }
        }
        None
    }

    /// Returns when to look again without an event.
    pub fn deadline(&self) -> Option<Instant> {
        self.rest
    }

    /// Returns the descriptor to wait for, if another client may connect.
    pub fn interest(&self) -> Option<Interest<'_>> {
        let rests = self.rest.is_some();
        (!rests).then(|| (self.listener.as_fd(), PollFlags::POLLIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let (listener, file) = bind(&path).unwrap();
        assert!(
            bind(&path)
                .unwrap_err()
                .to_string()
                .contains("another process")
        );
        assert!(UnixStream::connect(&path).is_ok());
        let (mut listener, now) = (Listener::from(listener), Instant::now());
        assert!(listener.accept(now).is_some(), "bind's own look");
        assert!(listener.accept(now).is_some());
        assert!(listener.accept(now).is_none());
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_lets_nobody_in_is_not_looked_at_all_the_time() {
        let (no_listener, _far) = UnixStream::pair().unwrap();
        let mut listener = Listener::from(UnixListener::from(OwnedFd::from(no_listener)));
        let now = Instant::now();
        assert!(listener.interest().is_some());
        for _ in 0..3 {
            assert!(listener.accept(now).is_none());
            assert!(listener.interest().is_none());
            assert_eq!(listener.failures, 1);
        }
        listener.accept(listener.deadline().unwrap());
        assert_eq!(listener.failures, 2);
    }

    #[test]
    fn a_file_that_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "precious").unwrap();
        assert!(bind(&path).unwrap_err().to_string().contains("no socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn anothers_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_listener, file) = bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn nobody_else_may_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _bound = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_missing_directory_is_one_clear_line() {
        let error = bind(Path::new("/nonexistent/dir/s"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nonexistent/dir/s") && error.contains("No such file"),
            "{error}"
        );
    }
}
