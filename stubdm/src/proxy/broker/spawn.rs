//! Starts the worker, and another if that ends before its time.
//!
//! ```text
//!   start ──▶ runs ──the socket closed, a rule broken, or too late──▶ ends ──reaped──▶ a pause ──▶ start
//! ```
//!
//! Every wait for the worker has a limit: one that closed its socket has `GRACE` to end by itself,
//! with its own exit status, and is killed then.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::PollFlags;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};
use tracing::{info, warn};

use crate::proxy::broker::log_relay::LogRelay;
use crate::proxy::broker::relay::Relay;
use crate::proxy::clients::Clients;
use crate::proxy::counters::CounterFile;
use crate::proxy::ipc::IpcSocket;
use crate::proxy::sandbox::Inherited;
use crate::proxy::saves::Saves;
use crate::rt::backoff::Backoff;
use crate::rt::error::{Context, Failure, Result};
use crate::rt::event_loop::{Progress, Task};
use crate::rt::log::budget::Budget;
use crate::rt::poll::{Interest, earlier, sleep};
use crate::rt::transport::Connect;
use crate::rt::{log, process};

/// How long a new process may take to be confined.
const START: Duration = Duration::from_secs(20);
/// How long one that closed its socket may take to end.
const GRACE: Duration = Duration::from_secs(1);
/// How often a process without a pidfd is looked at, and any that was killed.
const LOOK: Duration = Duration::from_millis(50);
/// How long the end of a killed process is waited for when the proxy ends.
const LAST: Duration = Duration::from_secs(2);
/// The pauses before another is started.
const PAUSES: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(10));
/// Uptime after which the back-off resets.
const SETTLED: Duration = Duration::from_secs(30);

/// The worker as a process. Dropping it kills the process.
#[derive(Debug)]
struct Worker {
    child: Child,
    /// Readable when the process has ended. Kernels before 5.3 have none.
    pidfd: Option<OwnedFd>,
    stderr: LogRelay,
    since: Instant,
    /// Confined, and in the log.
    ready: bool,
}

impl Worker {
    fn kill(&mut self) {
        // Until it is waited for, its number is nobody else's.
        let _ = self.child.kill();
    }

    fn interests(&self) -> Vec<Interest<'_>> {
        let pidfd = self.pidfd.as_ref();
        let pidfd = pidfd.map(|fd| (fd.as_fd(), PollFlags::POLLIN));
        self.stderr.interest().into_iter().chain(pidfd).collect()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
        let until = Instant::now() + LAST;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            let look = Instant::now() + LOOK;
            let pidfd = self.pidfd.as_ref();
            let ended: Vec<_> = pidfd
                .map(|fd| (fd.as_fd(), PollFlags::POLLIN))
                .into_iter()
                .collect();
            if sleep(&ended, Some(look)).is_err() {
                return;
            }
        }
    }
}

/// A worker that is being ended.
#[derive(Debug)]
struct Leaving {
    worker: Worker,
    /// Its violation, if it did not just close its socket.
    why: Option<String>,
    kill_at: Instant,
}

/// The relay with its worker.
#[derive(Debug)]
pub struct Broker<C: Connect> {
    relay: Relay<C>,
    worker: Option<Worker>,
    leaving: Option<Leaving>,
    clients: Clients,
    arguments: Vec<OsString>,
    log: Budget,
    /// One was confined.
    stood: bool,
    start_at: Instant,
    pauses: Backoff,
}

impl<C: Connect> Broker<C> {
    /// Starts the worker. `arguments` is this program's command line, name first; the worker gets
    /// the same and its descriptors. Its counters are written to `counter_file`.
    ///
    /// The worker accepts clients as soon as it is confined. This call does not wait for that:
    /// earlier clients wait in the socket, as they do while a worker is replaced. From here on this
    /// process's log is limited.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(
        connect: C,
        saves: Box<dyn Saves + Send>,
        clients: Clients,
        arguments: Vec<OsString>,
        counter_file: Option<CounterFile>,
    ) -> Result<Self> {
        let (worker, ipc) = start_worker(&clients, &arguments)?;
        let now = Instant::now();
        Ok(Self {
            relay: Relay::new(connect, saves, ipc, now).with_counters(counter_file),
            worker: Some(worker),
            leaving: None,
            clients,
            arguments,
            log: log::limit(now),
            stood: false,
            start_at: now,
            pauses: PAUSES,
        })
    }

    /// Returns when the worker is too late to be confined; `None` if it is there.
    fn look_at_start(&mut self) -> Option<Instant> {
        let worker = self.worker.as_mut().filter(|worker| !worker.ready)?;
        if !self.relay.is_ready() {
            return Some(worker.since + START);
        }
        (worker.ready, self.stood) = (true, true);
        let pid = Pid::from_raw(i32::try_from(worker.child.id()).unwrap_or_default());
        info!("the worker: process {pid}, {}", process::status(pid));
        None
    }

    /// Handles a worker that has ended or has to end.
    fn dismiss(&mut self, error: &io::Error, now: Instant) -> Progress {
        self.stood |= self.relay.is_ready();
        self.relay.close();
        if let Some(worker) = self.worker.take() {
            // A worker that closed its end is ending by itself, and its status gives the reason.
            let left = error.kind() == io::ErrorKind::UnexpectedEof;
            self.leaving = Some(Leaving {
                worker,
                why: (!left).then(|| error.to_string()),
                kill_at: if left { now + GRACE } else { now },
            });
        }
        Progress::Again
    }

    /// Kills and reaps.
    fn see_off(&mut self, mut leaving: Leaving, now: Instant) -> io::Result<Progress> {
        if leaving.kill_at <= now {
            leaving.worker.kill();
            if leaving.why.is_none() {
                leaving.why = Some("it closed its socket and did not end".to_owned());
            }
        }
        leaving.worker.stderr.turn(&mut self.log, now);
        let Some(status) = leaving.worker.child.try_wait()? else {
            let look = match (&leaving.worker.pidfd, &leaving.why) {
                (Some(_), None) => leaving.kill_at,
                _ => now + LOOK,
            };
            self.leaving = Some(leaving);
            return Ok(Progress::Sleep(Some(look)));
        };
        // Its last words.
        leaving.worker.stderr.turn(&mut self.log, now);
        self.lost(&leaving, status, now)
    }

    fn lost(
        &mut self,
        leaving: &Leaving,
        status: ExitStatus,
        now: Instant,
    ) -> io::Result<Progress> {
        let in_order = leaving.why.is_none() && status.success();
        let why = leaving.why.as_ref().map(|why| format!("{why}; "));
        let why = format!("{}{status}", why.unwrap_or_default());
        if !self.stood {
            return Err(io::Error::other(format!(
                "the worker does not start: {why}; --sandbox=off does without"
            )));
        }
        if matches!(self.clients, Clients::Once(_)) {
            return match in_order {
                true => Ok(Progress::Done),
                false => Err(io::Error::other(format!("the worker is gone: {why}"))),
            };
        }
        // Its word alone does not end the proxy.
        if in_order && !self.relay.may_come() {
            return Ok(Progress::Done);
        }
        if leaving.worker.since.elapsed() >= SETTLED {
            self.pauses.reset();
        }
        Ok(self.again(now, &format!("the worker is gone: {why}")))
    }

    fn again(&mut self, now: Instant, why: &str) -> Progress {
        warn!("{why}; another is started");
        self.start_at = now + self.pauses.pause();
        Progress::Sleep(Some(self.start_at))
    }
}

impl<C: Connect> Task for Broker<C> {
    fn interests(&self) -> Vec<Interest<'_>> {
        let mut interests = Vec::new();
        if let Some(worker) = &self.worker {
            interests.extend(self.relay.interests());
            interests.extend(worker.stderr.interest());
        }
        if let Some(leaving) = &self.leaving {
            interests.extend(leaving.worker.interests());
        }
        interests
    }

    /// # Errors
    /// The system's; also if the first worker does not get confined, which is in the log,
    /// or if the only client's did not end in good order.
    fn turn(&mut self, now: Instant) -> io::Result<Progress> {
        if let Some(leaving) = self.leaving.take() {
            return self.see_off(leaving, now);
        }
        if self.worker.is_none() {
            if now < self.start_at {
                return Ok(Progress::Sleep(Some(self.start_at)));
            }
            match start_worker(&self.clients, &self.arguments) {
                Ok((worker, ipc)) => {
                    self.relay.restart(ipc);
                    self.worker = Some(worker);
                }
                Err(why) => return Ok(self.again(now, &why.to_string())),
            }
        }
        let mut logged = None;
        if let Some(worker) = &mut self.worker {
            worker.stderr.turn(&mut self.log, now);
            logged = worker.stderr.deadline();
        }
        match self.relay.turn(now) {
            Ok(true) => Ok(Progress::Again),
            Ok(false) => match self.look_at_start() {
                Some(late) if late <= now => Ok(self.dismiss(&io::ErrorKind::TimedOut.into(), now)),
                late => {
                    let due = earlier(self.relay.deadline(), logged);
                    Ok(Progress::Sleep(earlier(late, due)))
                }
            },
            Err(error) => Ok(self.dismiss(&error, now)),
        }
    }
}

fn start_worker(clients: &Clients, arguments: &[OsString]) -> Result<(Worker, IpcSocket)> {
    let what = "starting the worker";
    let (near, far) = IpcSocket::pair().context(what)?;
    let far = inheritable(far.as_fd()).context(what)?;
    let listener = match clients {
        Clients::Socket(socket) => Some(inheritable(socket.as_fd()).context(what)?),
        Clients::Once(_) => None,
    };
    let given = Inherited {
        ipc: far.as_raw_fd(),
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
        .arg(format!("--worker={given}"));
    if listener.is_some() {
        command.stdin(Stdio::null()).stdout(Stdio::null());
    }
    let (stderr, log) = LogRelay::new().context(what)?;
    let child = command.stderr(log).spawn().context(what)?;
    let pid = i32::try_from(child.id()).ok();
    let pid = pid.and_then(rustix::process::Pid::from_raw);
    let worker = Worker {
        pidfd: pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()),
        child,
        stderr,
        since: Instant::now(),
        ready: false,
    };
    Ok((worker, near))
}

/// A duplicate that a child process gets.
fn inheritable(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = fd.try_clone_to_owned()?;
    fcntl(&copy, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(copy)
}
