//! The simulation's directory, and a process that sweeps up when the simulation is killed.
//!
//! ```text
//!   stubdm-run sim ── a pipe, held open ──▶ the cleanup: makes the directory, and waits
//!        │                                    end of the pipe: kills what is left of the run,
//!        └─ parts, marked by their environment   removes the directory
//! ```
//!
//! A process that is killed cannot remove its files. So they belong to another one, which learns of
//! its end, in good order or not. Should the cleanup be killed instead, the simulation removes them
//! itself.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::rt::error::{Context, Failure, Result};

/// Marks the processes of a run: the name of its directory, which is like no other.
pub const MARK: &str = "STUBDM_SIM_DIRECTORY";
/// How long killed processes may take to end.
const LIMIT: Duration = Duration::from_secs(10);
/// Consecutive looks that must find nothing.
const CALM: u32 = 5;

/// A run's directory, and the process that it belongs to.
#[derive(Debug)]
pub struct Cleanup {
    child: Child,
    /// Closed by whatever ends this process.
    life: Option<ChildStdin>,
    directory: PathBuf,
}

impl Cleanup {
    /// Starts the process and has it make the directory.
    ///
    /// # Errors
    /// One of them could not be made.
    pub fn start() -> Result<Self> {
        let what = "a temporary directory";
        // Named here and made there: whichever of the two is killed, the other has the path to
        // remove.
        let directory = std::env::temp_dir().join(format!("stubdm-sim-{}", name().context(what)?));
        let program = std::env::current_exe().context("this program's file")?;
        let mut child = Command::new(program)
            .args(["sim-role", "cleanup"])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A Ctrl-C at the terminal is not for it.
            .process_group(0)
            .spawn()
            .context(what)?;
        let life = child.stdin.take();
        let output = child.stdout.take();
        let cleanup = Self {
            child,
            life,
            directory,
        };
        let mut made = [0];
        match output.map(|mut output| output.read_exact(&mut made)) {
            Some(Ok(())) => Ok(cleanup),
            // It has reported why, unless it was killed.
            _ => {
                cleanup.sweep()?;
                Err(Failure::new("no temporary directory could be made"))
            }
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Has everything removed.
    ///
    /// # Errors
    /// The directory is still there.
    pub fn sweep(mut self) -> Result<()> {
        self.end();
        clear(&self.directory)
    }

    fn end(&mut self) {
        drop(self.life.take());
        // It ends by itself; if it was killed, that is an end as well.
        let _ = self.child.wait();
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        self.end();
    }
}

/// A name that nobody else has or can guess.
fn name() -> io::Result<String> {
    let mut random = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Is the cleanup, to its end.
///
/// # Errors
/// The directory could not be made or removed.
pub fn play(directory: &Path) -> Result<ExitCode> {
    let place = directory.display();
    fs::DirBuilder::new()
        .mode(0o700)
        .create(directory)
        .context(format_args!("making {place}"))?;
    // If nobody reads it, the pipe's end is read next.
    let _ = io::stdout()
        .write_all(b"!")
        .and_then(|()| io::stdout().flush());
    let _ = io::stdin().read(&mut [0]);
    clear(directory)?;
    Ok(ExitCode::SUCCESS)
}

/// Kills what is left of the run and removes its directory, until neither is found any more: a
/// process that was being started is found only once it runs, and may have made something by then.
fn clear(directory: &Path) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let mut calm = 0;
    while calm < CALM {
        kill_marked(directory);
        // The result does not matter: what counts is whether the directory is there.
        let removed = fs::remove_dir_all(directory);
        let there = fs::symlink_metadata(directory).is_ok();
        if there && deadline <= Instant::now() {
            return removed.context(format_args!("removing {}", directory.display()));
        }
        calm = if there { 0 } else { calm + 1 };
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Kills the processes of the run until there are none.
fn kill_marked(directory: &Path) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let found = marked(directory);
        if found.is_empty() || deadline <= Instant::now() {
            return;
        }
        for pid in found {
            // It may have ended by itself meanwhile.
            let _ = kill(pid, Signal::SIGKILL);
        }
        // They are other processes' children: nothing reports their ends to this one.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The processes whose environment names the directory and that have not ended.
fn marked(directory: &Path) -> Vec<Pid> {
    let mark = [MARK.as_bytes(), b"=", directory.as_os_str().as_bytes()].concat();
    let Ok(all) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    all.flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|word| word == mark)
        })
        .map(Pid::from_raw)
        .collect()
}
