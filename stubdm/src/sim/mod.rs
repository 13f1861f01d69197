//! `stubdm-run sim`: the stubdomain story on a machine without Xen, in one command.
//!
//! ```text
//!   this process: domain 0                        process: the stubdomain
//!   broker and store daemon ── dm-argv ─────────▶ the init's loop ──▶ QEMU -M none,
//!   toolstack stand-in                              ▲ vchan           or a scripted peer
//!   the person who asks ──▶ process: the proxy ═════╝
//! ```
//!
//! The parts are those of a real host; what stands in for something else is the hypervisor
//! ([`xen_sys::sim`]), the toolstack ([`host`]) and, where there is none, QEMU ([`fake_qemu`]).
//! Whatever happens, no process, socket or file of it stays: they belong to the [`cleanup`].

pub mod cleanup;
pub mod fake_qemu;
pub mod host;
pub mod part;
pub mod role;

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, Pid, access};
use stubdm_qmp::json::Json;
use stubdm_qmp::text::one_line;

use crate::guest::supervisor::LAUNCH_LIMIT;
use crate::rt::error::{Context, Failure, Result};
use crate::rt::poll::{Interest, sleep};
use crate::rt::signals::Signals;
use crate::tools::qmp::{self, QmpOptions, object};
use cleanup::Cleanup;
use host::Host;
use part::Part;

/// The QEMU that is looked for.
const QEMU: &str = "qemu-system-x86_64";
/// How long the answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Signals that end everything, and the one that reports the end of a process.
const SIGNALS: &[Signal] = &[
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGCHLD,
];

/// The command line.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Needs neither Xen nor root. Starts a simulated host in this process, writes what libxl writes for
a guest with a stubdomain, runs the stubdomain's init and the host's proxy as processes of their
own, and asks QEMU through all of them. Steps are printed on stderr, the answer on stdout.

Without --qemu it is qemu-system-x86_64 if that is on PATH, otherwise a scripted peer that knows
query-version, query-status, query-name, query-commands, cont, stop and quit.

The exit status is 0 if the answer came, otherwise 1. At the end, and on Ctrl-C, no process, socket
or file is left.")]
pub struct SimOptions {
    /// The QEMU to run, with -M none
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// Stay up after the answer, for more questions from elsewhere, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
    /// The QMP command
    #[arg(value_name = "COMMAND", default_value = "query-version")]
    pub command: String,
    /// The command's arguments, a JSON object
    #[arg(value_name = "JSON", value_parser = object)]
    pub arguments: Option<Json>,
}

/// Runs the simulation.
///
/// # Errors
/// Whatever prevented the answer, an interruption included, or something that was left over.
pub fn run(options: &SimOptions) -> Result<()> {
    let signals = Signals::take(SIGNALS).context("taking over signals")?;
    nix::sys::prctl::set_child_subreaper(true).context("becoming a subreaper")?;
    let cleanup = Cleanup::start()?;
    let result = story(options, cleanup.directory(), &signals);
    let removed = cleanup.sweep();
    if result.is_ok() && removed.is_ok() {
        step("ended: nothing is left");
    }
    result.and(removed)
}

/// One line for the person who watches.
fn step(line: impl std::fmt::Display) {
    // Nobody watching is no reason to stop.
    let _ = writeln!(io::stderr(), "{line}");
}

fn story(options: &SimOptions, directory: &Path, signals: &Signals) -> Result<()> {
    let host = Host::start(directory)?;
    step(format_args!(
        "host: simulated, in {}; domain {} is a guest, domain {} its stubdomain",
        directory.display(),
        host.guest,
        host.stub
    ));
    let (qemu, what) = qemu(options, directory)?;
    let argv = [
        "-M",
        "none",
        "-nodefaults",
        "-display",
        "none",
        "-name",
        "simulated",
    ];
    let node = host.describe(&argv.map(OsString::from))?;
    step(format_args!("toolstack: {node} says {}", argv.join(" ")));
    let mut parts = Parts {
        signals,
        directory,
        host: &host,
        started: Vec::new(),
    };
    let result = parts.run(options, &qemu, &what);
    let stopped = parts.stop();
    result.and(stopped).and(host.end())
}

/// The program to run as QEMU, and what to call it.
fn qemu(options: &SimOptions, directory: &Path) -> Result<(PathBuf, String)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = || {
        let mut places = std::env::split_paths(&path).map(|place| place.join(QEMU));
        places.find(|file| access(file, AccessFlags::X_OK).is_ok())
    };
    if let Some(file) = options.qemu.clone().or_else(on_path) {
        let what = file.display().to_string();
        return Ok((file, what));
    }
    let link = directory.join(fake_qemu::NAME);
    let me = std::env::current_exe().context("this program's file")?;
    std::os::unix::fs::symlink(me, &link).context(link.display())?;
    Ok((link, format!("a scripted peer (no {QEMU} on PATH)")))
}

/// The processes, and what they live on.
struct Parts<'a> {
    signals: &'a Signals,
    directory: &'a Path,
    host: &'a Host,
    /// With the signal that ends each in good order.
    started: Vec<(Part, Signal)>,
}

impl Parts<'_> {
    /// From the first process to the last answer.
    fn run(&mut self, options: &SimOptions, qemu: &Path, what: &str) -> Result<()> {
        let host = self.host;
        let begun = Instant::now();
        let stub = host.stub.to_string();
        let run = self.directory.join("run").into_os_string();
        let init = ["--run".into(), run, "--qemu".into(), qemu.into()];
        let pid = self.start("stubdomain", &stub, &init, Signal::SIGTERM)?;
        step(format_args!("stubdomain: process {pid}, with {what}"));
        let socket = self.directory.join(format!("qmp-libxl-{}", host.guest));
        let state = format!("--state-path={}", host.proxy_node());
        let node = host.vchan_node();
        let proxy = [
            state.into(),
            stub.into(),
            node.into(),
            socket.clone().into(),
        ];
        // libxl's own way to end it is SIGHUP.
        let pid = self.start("vchan-socket-proxy", "0", &proxy, Signal::SIGHUP)?;
        self.wait_for_running(&host.proxy_node())?;
        step(format_args!(
            "proxy: process {pid}, listening at {}",
            socket.display()
        ));
        self.wait_for_running(&host.phase_node())?;
        step(format_args!(
            "stubdomain: running after {:.2} s, its vchan at {}",
            begun.elapsed().as_secs_f64(),
            host.vchan_node()
        ));
        step(format_args!("asking {}", options.command));
        self.ask(QmpOptions {
            socket: Some(socket.clone()),
            timeout: ANSWER_LIMIT,
            pretty: false,
            domid: host.guest,
            command: options.command.clone(),
            arguments: options.arguments.clone(),
        })?;
        if options.keep {
            step(format_args!(
                "staying up: stubdm-run qmp --socket {} {} COMMAND asks more, Ctrl-C ends it",
                socket.display(),
                host.guest
            ));
            let ended: Result<()> = self.until(None, true, &[], || Ok(None));
            if let Err(why) = ended {
                step(format_args!("ending: {why}"));
            }
        }
        Ok(())
    }

    /// Starts this program again, as a process of domain `me`.
    fn start(
        &mut self,
        name: &'static str,
        me: &str,
        args: &[OsString],
        end: Signal,
    ) -> Result<Pid> {
        let program = std::env::current_exe().context("this program's file")?;
        let mut command = Command::new(program);
        command.args(["sim-role", name, "--me", me, "--broker"]);
        command.arg(self.host.broker()).args(args);
        let part = Part::start(name, &mut command, self.directory)?;
        let pid = part.pid();
        self.started.push((part, end));
        Ok(pid)
    }

    /// Waits until a node has the value `running`, as libxl does.
    fn wait_for_running(&self, node: &str) -> Result<()> {
        let store = self.host.store();
        let watch = store.watch(node).context(format_args!("watching {node}"))?;
        let fd = watch.poll_fd().context("watching the store")?;
        let deadline = Instant::now() + LAUNCH_LIMIT + ANSWER_LIMIT;
        self.until(Some(deadline), true, &[(fd, PollFlags::POLLIN)], || {
            while watch.try_next().context("watching the store")?.is_some() {}
            match store.read_str(node) {
                Ok(value) if value == "running" => Ok(Some(())),
                Ok(value) => match value.strip_prefix("error: ") {
                    Some(why) => Err(Failure::new(format_args!("the stubdomain: {why}"))),
                    None => Ok(None),
                },
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error).context(format_args!("reading {node}")),
            }
        })
    }

    /// Asks as `stubdm-run qmp` does, in a thread: Ctrl-C is handled meanwhile.
    fn ask(&self, question: QmpOptions) -> Result<()> {
        let (mut ours, theirs) = UnixStream::pair().context("a socket")?;
        ours.set_nonblocking(true).context("a socket")?;
        let end = ours.try_clone().context("a socket")?;
        std::thread::scope(|scope| {
            let asking = scope.spawn(move || {
                let answer = qmp::run(&question);
                // Closing it is what the other thread waits for.
                drop(theirs);
                answer
            });
            let waited = self.until(None, false, &[(end.as_fd(), PollFlags::POLLIN)], || {
                Ok(matches!(ours.read(&mut [0]), Ok(0)).then_some(()))
            });
            if waited.is_err() {
                // Without them the question ends, too.
                for (part, _) in &self.started {
                    part.kill();
                }
            }
            let answer = asking.join();
            let answer = answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // An answer that arrived all the same has been printed.
            answer.map_err(|failure| waited.err().unwrap_or(failure))
        })
    }

    /// Sleeps until `look` finds something: calls it at first and at every event. A signal, the
    /// deadline and, if requested, the end of a process are errors.
    fn until<T>(
        &self,
        deadline: Option<Instant>,
        all_live: bool,
        events: &[Interest<'_>],
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let mut interests = events.to_vec();
        interests.push((self.signals.as_fd(), PollFlags::POLLIN));
        loop {
            while let Some(signal) = self.signals.next().context("reading signals")? {
                if signal != Signal::SIGCHLD {
                    return Err(Failure::new(format_args!("interrupted by {signal}")));
                }
            }
            // Before the look: what a process wrote at its end explains more than its end.
            let ended = self.started.iter().find_map(|(part, _)| part.ended());
            if let Some(found) = look()? {
                return Ok(found);
            }
            if let Some(how) = ended.filter(|_| all_live) {
                return Err(Failure::new(one_line(&how)));
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(Failure::new("nothing happens"));
            }
            sleep(&interests, deadline).context("waiting")?;
        }
    }

    /// Ends the processes, the last first.
    fn stop(mut self) -> Result<()> {
        let mut stopped = Ok(());
        while let Some((part, signal)) = self.started.pop() {
            stopped = stopped.and(part.stop(signal, self.signals));
        }
        stopped
    }
}
