//! The proxy's listening socket: bound over a dead one, never over a living one, and removed when
//! the proxy ends.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::local::connect;
use crate::error::{Context, Failure, Result};

/// A bound socket file. Dropping it removes the file if it is still the one that was bound.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
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

/// Binds and listens at `path`. A socket file nobody listens on any more is replaced.
///
/// # Errors
/// The directory is missing, somebody is listening there, or something that is no socket is there.
pub fn bind(path: &Path) -> Result<(UnixListener, SocketFile)> {
    let what = format!("cannot listen at {}", path.display());
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path).context(&what)?;
            UnixListener::bind(path)
        }
        other => other,
    };
    let listener = listener.context(&what)?;
    listener.set_nonblocking(true).context(&what)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: identity(path),
    };
    Ok((listener, file))
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

/// Takes the next waiting client, `None` for none.
///
/// # Errors
/// The socket does not listen any more.
pub fn accept(listener: &UnixListener) -> io::Result<Option<OwnedFd>> {
    match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream.into())),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED) => Ok(None),
            _ => Err(error),
        },
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
        assert!(accept(&listener).unwrap().is_some(), "bind's own look");
        assert!(accept(&listener).unwrap().is_some());
        assert!(accept(&listener).unwrap().is_none());
        drop(file);
        assert!(!path.exists());
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
