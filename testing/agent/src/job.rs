//! One running program, wherever it runs: its lines as they come, its end, a signal to it.
//!
//! ```text
//! Local      a child of this process: one thread reads its lines, one waits for its end
//! Remote     a child of the agent in a domU, followed through xenstore (rpc.rs)
//! ```
//!
//! Every wait has a deadline, and a job that is dropped while it runs is killed.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::rpc::RemoteJob;

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Status(i32),
    Signal(i32),
    /// It never ran.
    NotStarted(String),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::NotStarted(reason) => write!(f, "not started {reason}"),
        }
    }
}

impl std::str::FromStr for Exit {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(status) = text.strip_prefix("status ") {
            return Ok(Self::Status(status.parse()?));
        }
        if let Some(signal) = text.strip_prefix("signal ") {
            return Ok(Self::Signal(signal.parse()?));
        }
        match text.strip_prefix("not started ") {
            Some(reason) => Ok(Self::NotStarted(reason.to_owned())),
            None => bail!("`{text}` is no way to end"),
        }
    }
}

/// A running program.
#[derive(Debug)]
pub(crate) enum Job {
    Local(LocalJob),
    Remote(Box<RemoteJob>),
}

impl Job {
    /// Line `index`, the first being 0: waits until the program has printed that many, ended, or
    /// the deadline passed. `None` means that it ended with fewer lines.
    pub(crate) fn line(&mut self, index: usize, deadline: Instant) -> Result<Option<String>> {
        match self {
            Self::Local(job) => job.watcher.line(index, deadline),
            Self::Remote(job) => job.line(index, deadline),
        }
    }

    /// Waits for the program's end.
    pub(crate) fn exit(&mut self, deadline: Instant) -> Result<Exit> {
        match self {
            Self::Local(job) => job.watcher.exit(deadline),
            Self::Remote(job) => job.exit(deadline),
        }
    }

    /// Sends a signal.
    pub(crate) fn kill(&mut self, signal: Signal) -> Result<()> {
        match self {
            Self::Local(job) => job.kill(signal),
            Self::Remote(job) => job.kill(signal),
        }
    }

    /// The domain it ran in is gone.
    pub(crate) fn forget(&mut self) {
        if let Self::Remote(job) = self {
            job.forget();
        }
    }

    /// All lines there are by now.
    pub(crate) fn lines(&mut self) -> Result<Vec<String>> {
        match self {
            Self::Local(job) => Ok(job.watcher.lines()),
            Self::Remote(job) => job.lines(),
        }
    }

    /// Waits for the first line that starts with `prefix` and gives what follows it.
    pub(crate) fn expect(&mut self, prefix: &str, deadline: Instant) -> Result<String> {
        let mut index = 0;
        while let Some(line) = self
            .line(index, deadline)
            .with_context(|| format!("waiting for `{prefix}`{}", self.transcript()))?
        {
            if let Some(rest) = line.strip_prefix(prefix) {
                return Ok(rest.trim().to_owned());
            }
            index += 1;
        }
        let exit = self.exit(deadline)?;
        bail!(
            "ended with {exit} without a line `{prefix}`{}",
            self.transcript()
        );
    }

    /// Waits for the end, which has to be exit status 0.
    pub(crate) fn succeed(&mut self, deadline: Instant) -> Result<()> {
        let exit = self
            .exit(deadline)
            .with_context(|| format!("waiting for the end{}", self.transcript()))?;
        if exit != Exit::Status(0) {
            bail!("ended with {exit}{}", self.transcript());
        }
        Ok(())
    }

    /// Returns the output so far, for an error message.
    pub(crate) fn transcript(&mut self) -> String {
        match self.lines() {
            Ok(lines) if lines.is_empty() => "; it printed nothing".to_owned(),
            Ok(lines) => format!("; it printed:\n    | {}", lines.join("\n    | ")),
            Err(error) => format!("; its lines are not known: {error:#}"),
        }
    }
}

/// A child of this process.
#[derive(Debug)]
pub(crate) struct LocalJob {
    pid: Pid,
    watcher: Watcher,
}

/// A child of this process, as any thread sees it.
#[derive(Clone, Debug)]
pub(crate) struct Watcher(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    no_more_lines: bool,
    exit: Option<Exit>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until `done` returns true. `None`: the deadline passed first.
    fn wait<T>(
        &self,
        deadline: Instant,
        mut done: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(value) = done(&mut state) {
                return Some(value);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

impl LocalJob {
    /// Starts `command` with an empty standard input; its two outputs become one sequence of lines.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        // The command holds the pipe's writing ends until they are replaced.
        command.stdout(Stdio::null()).stderr(Stdio::null());

        let shared = Arc::new(Shared::default());
        let pid = Pid::from_raw(child.id().try_into()?);
        let for_lines = Arc::clone(&shared);
        thread::spawn(move || {
            for line in BufReader::new(std::fs::File::from(reader)).split(b'\n') {
                let Ok(line) = line else { break };
                let line = String::from_utf8_lossy(&line)
                    .trim_end_matches('\r')
                    .to_owned();
                for_lines.lock().lines.push(line);
                for_lines.changed.notify_all();
            }
            for_lines.lock().no_more_lines = true;
            for_lines.changed.notify_all();
        });
        let for_exit = Arc::clone(&shared);
        thread::spawn(move || {
            // Waits without reaping: see `kill`.
            let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            while waitid(Id::Pid(pid), ended) == Err(Errno::EINTR) {}
            let mut state = for_exit.lock();
            state.exit = Some(reap(&mut child));
            drop(state);
            for_exit.changed.notify_all();
        });
        Ok(Self {
            pid,
            watcher: Watcher(shared),
        })
    }

    /// For a thread that follows this program.
    pub(crate) fn watcher(&self) -> Watcher {
        self.watcher.clone()
    }

    /// Sends a signal, unless the program has ended.
    pub(crate) fn kill(&self, signal: Signal) -> Result<()> {
        // The child is reaped with the state locked, so no other process has its number here.
        let state = self.watcher.0.lock();
        if state.exit.is_none() {
            kill(self.pid, signal)?;
        }
        Ok(())
    }
}

impl Watcher {
    /// As [`Job::line`].
    pub(crate) fn line(&self, index: usize, deadline: Instant) -> Result<Option<String>> {
        self.0
            .wait(deadline, |state| match state.lines.get(index) {
                Some(line) => Some(Some(line.clone())),
                None if state.no_more_lines => Some(None),
                None => None,
            })
            .context("no further line within the time given")
    }

    /// As [`Job::exit`].
    pub(crate) fn exit(&self, deadline: Instant) -> Result<Exit> {
        let exit = self
            .0
            .wait(deadline, |state| state.exit.clone())
            .context("still running after the time given")?;
        // A grandchild may hold the pipe: what the program itself printed is in it by now and read
        // within this time.
        let moment = Instant::now() + Duration::from_millis(500);
        self.0
            .wait(moment, |state| state.no_more_lines.then_some(()));
        Ok(exit)
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().lines.clone()
    }
}

impl Drop for LocalJob {
    fn drop(&mut self) {
        if self.watcher.0.lock().exit.is_none() && self.kill(Signal::SIGKILL).is_ok() {
            let moment = Instant::now() + Duration::from_secs(2);
            self.watcher.0.wait(moment, |state| state.exit.clone());
        }
    }
}

fn reap(child: &mut std::process::Child) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    match child.wait() {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Status(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::NotStarted("neither exited nor was killed".to_owned()),
        },
        Err(error) => Exit::NotStarted(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Job {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Job::Local(LocalJob::start(&mut command).unwrap())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn lines_and_status_of_a_program() {
        let mut job = shell("echo one; echo two >&2; exit 3");
        assert_eq!(job.line(0, soon()).unwrap().as_deref(), Some("one"));
        assert_eq!(job.line(1, soon()).unwrap().as_deref(), Some("two"));
        assert_eq!(job.line(2, soon()).unwrap(), None);
        assert_eq!(job.exit(soon()).unwrap(), Exit::Status(3));
        assert!(job.succeed(soon()).is_err());
    }

    #[test]
    fn a_line_is_there_before_the_program_ends() {
        let mut job = shell("echo port 7; exec sleep 1000");
        assert_eq!(job.expect("port ", soon()).unwrap(), "7");
        job.kill(Signal::SIGTERM).unwrap();
        assert_eq!(job.exit(soon()).unwrap(), Exit::Signal(15));
    }

    #[test]
    fn a_deadline_that_passed_is_an_error() {
        let mut job = shell("exec sleep 1000");
        assert!(job.line(0, Instant::now()).is_err());
        assert!(job.exit(Instant::now()).is_err());
    }

    #[test]
    fn a_dropped_job_is_no_longer_there() {
        let mut job = shell("echo $$; exec sleep 1000");
        let pid: i32 = job.line(0, soon()).unwrap().unwrap().parse().unwrap();
        drop(job);
        assert!(kill(Pid::from_raw(pid), None).is_err());
    }

    #[test]
    fn ends_are_read_back_from_their_text() {
        for exit in [
            Exit::Status(0),
            Exit::Signal(9),
            Exit::NotStarted("no file".to_owned()),
        ] {
            assert_eq!(exit.to_string().parse::<Exit>().unwrap(), exit);
        }
        assert!("gone".parse::<Exit>().is_err());
    }
}
