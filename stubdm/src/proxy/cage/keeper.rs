//! Starts the caged half, and another if that ends in disorder.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::Pid;
use tracing::{info, warn};

use super::Given;
use super::carrier::Carrier;
use super::wire::Wire;
use crate::error::{Context, Failure, Result};
use crate::event::Interest;
use crate::init::confine;
use crate::proxy::client::{Clients, Turn};
use crate::stats::Board;
use crate::transport::Connect;

/// How long a new process may take to get behind its walls.
const START: Duration = Duration::from_secs(20);
/// The first pause before another is started; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Who lived this long was no failure to start.
const SETTLED: Duration = Duration::from_secs(30);

/// The caged half as a process. Dropping it ends the process and waits for that.
#[derive(Debug)]
struct Caged {
    child: Child,
    since: Instant,
    /// Behind its walls, and in the log.
    ready: bool,
}

impl Caged {
    fn end(&mut self) -> io::Result<ExitStatus> {
        // It may have ended; until it is waited for its number is nobody else's.
        let _ = self.child.kill();
        self.child.wait()
    }
}

impl Drop for Caged {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// The carrier with its caged half.
#[derive(Debug)]
pub struct Keeper<C: Connect> {
    carrier: Carrier<C>,
    caged: Option<Caged>,
    clients: Clients,
    arguments: Vec<OsString>,
    /// There was one that got behind its walls.
    stood: bool,
    start_at: Instant,
    pause: Duration,
}

impl<C: Connect> Keeper<C> {
    /// Starts the caged half. `arguments` is this program's
    /// command line, name first; the other gets the same and what it was given. What it counts is written to `board`.
    ///
    /// It takes clients as soon as it is behind its walls, which is not waited for: those who come before that wait,
    /// as they do when another takes its place.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(
        connect: C,
        clients: Clients,
        arguments: Vec<OsString>,
        board: Option<Board>,
    ) -> Result<Self> {
        let (caged, wire) = launch(&clients, &arguments)?;
        Ok(Self {
            carrier: Carrier::new(connect, wire).with_board(board),
            caged: Some(caged),
            clients,
            arguments,
            stood: false,
            start_at: Instant::now(),
            pause: PAUSE_MIN,
        })
    }

    /// What to wait for.
    pub fn interests(&self) -> Vec<Interest<'_>> {
        match self.caged {
            Some(_) => self.carrier.interests(),
            None => Vec::new(),
        }
    }

    /// Does all that can be done without waiting.
    ///
    /// # Errors
    /// The system's; also if the first caged half does not get behind its walls. It has said why.
    pub fn turn(&mut self, now: Instant) -> io::Result<Turn> {
        if self.caged.is_none() {
            if now < self.start_at {
                return Ok(Turn::Sleep(Some(self.start_at)));
            }
            match launch(&self.clients, &self.arguments) {
                Ok((caged, wire)) => {
                    self.carrier.restart(wire);
                    self.caged = Some(caged);
                }
                Err(why) => return Ok(self.again(now, &why.to_string())),
            }
        }
        match self.carrier.turn() {
            Ok(true) => Ok(Turn::Again),
            Ok(false) => match self.look_at_start() {
                Some(late) if late <= now => self.lost(now, &io::ErrorKind::TimedOut.into()),
                late => Ok(Turn::Sleep(late)),
            },
            Err(error) => self.lost(now, &error),
        }
    }

    /// When the caged half is too late to get behind its walls; `None` if it is there.
    fn look_at_start(&mut self) -> Option<Instant> {
        let caged = self.caged.as_mut().filter(|caged| !caged.ready)?;
        if !self.carrier.is_ready() {
            return Some(caged.since + START);
        }
        (caged.ready, self.stood) = (true, true);
        let pid = Pid::from_raw(i32::try_from(caged.child.id()).unwrap_or_default());
        info!("the caged half: process {pid}, {}", confine::status(pid));
        None
    }

    /// The caged half is gone or has to go.
    fn lost(&mut self, now: Instant, error: &io::Error) -> io::Result<Turn> {
        self.carrier.close();
        let Some(mut caged) = self.caged.take() else {
            return Ok(Turn::Again);
        };
        let left = error.kind() == io::ErrorKind::UnexpectedEof;
        // One that closed its end is ending by itself, and its status says how.
        let status = if left {
            caged.child.wait()
        } else {
            caged.end()
        }?;
        let why = if left {
            String::new()
        } else {
            format!("{error}; ")
        };
        if !self.stood {
            return Err(io::Error::other(format!(
                "the caged half does not start: {why}{status}; --cage=off does without"
            )));
        }
        if left && status.success() || matches!(self.clients, Clients::Once(_)) {
            return Ok(Turn::Done);
        }
        if caged.since.elapsed() >= SETTLED {
            self.pause = PAUSE_MIN;
        }
        Ok(self.again(now, &format!("the caged half is gone: {why}{status}")))
    }

    fn again(&mut self, now: Instant, why: &str) -> Turn {
        warn!("{why}; another is started");
        self.start_at = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Turn::Sleep(Some(self.start_at))
    }
}

fn launch(clients: &Clients, arguments: &[OsString]) -> Result<(Caged, Wire)> {
    let what = "starting the caged half";
    let (near, far) = Wire::pair().context(what)?;
    let far = inheritable(far.as_fd()).context(what)?;
    let listener = match clients {
        Clients::Socket(socket) => Some(inheritable(socket.as_fd()).context(what)?),
        Clients::Once(_) => None,
    };
    let given = Given {
        wire: far.as_raw_fd(),
        listener: listener.as_ref().map(AsRawFd::as_raw_fd),
    };
    // The file this program was started from, even if another is in its place by now.
    let mut command = Command::new("/proc/self/exe");
    let (name, rest) = arguments
        .split_first()
        .ok_or_else(|| Failure::new("no command line"))?;
    command
        .arg0(name)
        .args(rest)
        .arg(format!("--caged={given}"));
    if listener.is_some() {
        command.stdin(Stdio::null()).stdout(Stdio::null());
    }
    let caged = Caged {
        child: command.spawn().context(what)?,
        since: Instant::now(),
        ready: false,
    };
    Ok((caged, near))
}

/// A duplicate that a child process gets.
fn inheritable(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = fd.try_clone_to_owned()?;
    fcntl(&copy, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(copy)
}
