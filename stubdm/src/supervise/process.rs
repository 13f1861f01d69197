//! The process of a record, held by a descriptor: its number can become another's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{UnixAddr, getsockname, getsockopt, sockopt};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal,
};

use crate::rt::error::{Context, Failure, Result};
use crate::service::claim::{self as service, Resume};
use crate::service::record::{self, Liveness, Record};

/// A living process.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
    /// A duplicate of the socket that libxl connects to: clients wait in it when the process has
    /// ended.
    pub listener: Option<OwnedFd>,
}

impl AsFd for Process {
    /// Readable once the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Process {
    /// Opens the process that holds the record at `path`, read as `record` before. Returns `None`
    /// if it holds it no more.
    ///
    /// # Errors
    /// The kernel has no such descriptors (before 5.3), or none is left.
    pub fn of(path: &Path, record: &Record) -> io::Result<Option<Self>> {
        let number = i32::try_from(record.pid).ok().and_then(Pid::from_raw);
        let number = number.ok_or(io::ErrorKind::InvalidData)?;
        let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            other => other?,
        };
        // The process that wrote this number still holds the lock, so the number is still its own.
        match record::read(path) {
            Some((now, Liveness::Alive)) if now.pid == record.pid => {}
            _ => return Ok(None),
        }
        let listener = listener(&pidfd, record);
        Ok(Some(Self { pidfd, listener }))
    }

    /// Kills it.
    ///
    /// # Errors
    /// `EPERM`: this user may not signal it.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => Ok(other?),
        }
    }
}

/// A duplicate of the process's listening socket, if it is the one at that path. Kernels before 5.6
/// give none.
fn listener(pidfd: &OwnedFd, record: &Record) -> Option<OwnedFd> {
    let (path, number) = record.listener.as_ref()?;
    let fd = pidfd_getfd(pidfd, *number, PidfdGetfdFlags::empty()).ok()?;
    let address = getsockname::<UnixAddr>(std::os::fd::AsRawFd::as_raw_fd(&fd)).ok()?;
    let listens = getsockopt(&fd, sockopt::AcceptConn).ok()?;
    (listens && address.path() == Some(path)).then_some(fd)
}

/// Starts `record`'s service again, with the socket that was kept.
///
/// # Errors
/// The record has no command line, or the program cannot be started.
pub fn start(record: &Record, listener: Option<&OwnedFd>) -> Result<Child> {
    let what = format!("starting {} again", record.program.display());
    let (name, rest) = record
        .arguments
        .split_first()
        .ok_or_else(|| Failure::new(format_args!("{what}: no command line")))?;
    let listener = listener.map(inheritable).transpose().context(&what)?;
    let resume = Resume {
        listener: listener.as_ref().map(std::os::fd::AsRawFd::as_raw_fd),
    };
    let log = record.log.as_ref().and_then(|path| {
        let mut options = std::fs::OpenOptions::new();
        let options = options.append(true).create(true).mode(0o644);
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_NONBLOCK;
        let file = options.custom_flags(flags.bits()).open(path).ok()?;
        file.metadata().ok()?.is_file().then_some(file)
    });
    let mut command = Command::new(&record.program);
    command
        .arg0(name)
        .args(rest)
        .arg(service::option(resume))
        .current_dir("/")
        .stdin(Stdio::null())
        .process_group(0);
    if let Some(log) = log {
        command.stdout(log.try_clone().context(&what)?).stderr(log);
    }
    command.spawn().context(&what)
}

fn inheritable(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let copy = fd.try_clone()?;
    fcntl(&copy, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::record::{Claim, Kind};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn only_the_listening_socket_of_the_recorded_path_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("socket");
        let listening = UnixListener::bind(&at).unwrap();
        let connected = UnixStream::connect(&at).unwrap();
        let (accepted, _) = listening.accept().unwrap();
        let record = Record::of_this_process(Kind::Proxy, 7, String::new()).unwrap();
        let mut claim = Claim::take(dir.path(), record).unwrap().unwrap();
        let (path, _, _) = record::all(dir.path()).pop().unwrap();
        for (socket, number, kept) in [
            (&at, listening.as_raw_fd(), true),
            (&dir.path().join("other"), listening.as_raw_fd(), false),
            (&at, connected.as_raw_fd(), false),
            // Its address is the listening one's.
            (&at, accepted.as_raw_fd(), false),
            (&at, 1_000_000, false),
        ] {
            claim.set_listener(socket.clone(), number).unwrap();
            let process = Process::of(&path, claim.record()).unwrap().unwrap();
            assert_eq!(process.listener.is_some(), kept, "{number} {socket:?}");
        }
    }
}
