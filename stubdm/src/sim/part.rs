//! A process of the simulation and all that it starts: one process group, of which nothing is left.
//!
//! The first process keeps its number until the group has ended, since it is not waited for before.
//! So the group's number cannot be reused.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use stubdm_qmp::text::one_line;

use crate::rt::error::{Context, Result};
use crate::rt::poll::sleep;
use crate::rt::signals::Signals;
use crate::sim::cleanup::MARK;

/// How long an ending in good order may take.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A process that was started, in a group of its own. Dropping it kills the group and waits.
#[derive(Debug)]
pub struct Part {
    name: &'static str,
    pid: Pid,
    log: PathBuf,
}

impl Part {
    /// Starts `command`, with its output in a file in `directory`. To be called on the first
    /// thread, which lives until the program ends.
    ///
    /// # Errors
    /// The file or the process could not be made.
    pub fn start(name: &'static str, command: &mut Command, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let words = File::create(&log).context(log.display())?;
        let child = command
            .env(MARK, directory)
            .stdin(Stdio::null())
            .stdout(words.try_clone().context(log.display())?)
            .stderr(words)
            .process_group(0)
            .spawn()
            .context(format_args!("starting the {name}"))?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("a process number")?);
        Ok(Self { name, pid, log })
    }

    /// Its number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Returns a line with how it ended, if it has ended.
    pub fn ended(&self) -> Option<String> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let how = match waitid(Id::Pid(self.pid), flags) {
            Ok(WaitStatus::Exited(_, status)) => format!("ended with status {status}"),
            Ok(WaitStatus::Signaled(_, signal, _)) => format!("was killed by {signal}"),
            _ => return None,
        };
        let said = std::fs::read(&self.log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let last = said.lines().last().map(one_line).unwrap_or_default();
        let last = last.strip_prefix("stubdm-run: ").unwrap_or(&last);
        Some(if last.is_empty() {
            format!("the {} {how}", self.name)
        } else {
            format!("the {} {how}: {last}", self.name)
        })
    }

    /// Kills it; whoever waits for it is notified of its end.
    pub fn kill(&self) {
        // It is our child until it is dropped: there is always something to send this to.
        let _ = kill(self.pid, Signal::SIGKILL);
    }

    /// Asks it to end, and waits until it has, or for ten seconds. `signals` has SIGCHLD.
    ///
    /// # Errors
    /// The system's.
    pub fn stop(self, signal: Signal, signals: &Signals) -> Result<()> {
        let deadline = Instant::now() + END_LIMIT;
        kill(self.pid, signal).context(format_args!("ending the {}", self.name))?;
        while self.ended().is_none() && Instant::now() < deadline {
            sleep(&[(signals.as_fd(), PollFlags::POLLIN)], Some(deadline)).context("waiting")?;
            // A second Ctrl-C cannot make it faster.
            while signals.next().context("reading signals")?.is_some() {}
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // The first process is waited for only below, so the group is ours.
        let _ = killpg(self.pid, Signal::SIGKILL);
        let group = Pid::from_raw(-self.pid.as_raw());
        // Orphans of the group become children of this process, which is a subreaper.
        while matches!(waitpid(group, None), Ok(_) | Err(Errno::EINTR)) {}
    }
}
