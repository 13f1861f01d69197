//! `stubdm-run supervise`: starts the processes of all records again that were killed.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use tracing::{info, warn};
use xen_store::{Store, Watch};
use xen_sys::{DomId, Xen};

use crate::consoled::position;
use crate::libxl::domains::Domains;
use crate::libxl::store;
use crate::proxy::counters;
use crate::rt::backoff::Backoff;
use crate::rt::error::{Context, Result};
use crate::rt::event_loop::{self, Progress, Stop, Task};
use crate::rt::log;
use crate::rt::poll::{Interest, earlier, readable};
use crate::rt::signals::Signals;
use crate::service::claim as service;
use crate::service::record::{self, Kind, Liveness, Orphan, Record};
use crate::supervise::folder::FolderWatch;
use crate::supervise::process::{self, Process};

/// Uptime after which the back-off resets.
const SETTLED: Duration = Duration::from_secs(30);
/// How long a process may take to hold its record.
const START: Duration = Duration::from_secs(20);

/// The command line.
#[derive(Args, Clone, Debug)]
pub struct SuperviseOptions {
    /// Keep a second process that takes over when this one is killed: for inits that do not start
    /// a service again
    #[arg(long)]
    pub standby: bool,
    /// The folder of the records, instead of /run/stubdm
    #[arg(long, value_name = "DIR", default_value = counters::FOLDER, hide_short_help = true)]
    pub folder: PathBuf,
    /// The longest pause before the same process is started once more, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000, hide = true)]
    pub pause: u64,
    /// Log everything to stderr
    #[arg(short, long)]
    pub verbose: bool,
}

/// Supervises until a signal. Blocks first while another supervisor runs.
///
/// # Errors
/// The folder, the lock, Xen or the store cannot be opened, or the store is lost later.
pub fn run(options: &SuperviseOptions) -> Result<()> {
    run_on(options, store::open)
}

/// As [`run`], on the host and the store that `open` leads to.
///
/// # Errors
/// As [`run`], and those of `open`.
pub fn run_on(
    options: &SuperviseOptions,
    open: impl FnOnce() -> Result<(Xen, Store)>,
) -> Result<()> {
    log::to_stderr(options.verbose);
    log::follow();
    let records = record::folder(&options.folder)?;
    let lock = lock_file(&options.folder)?;
    let lock = Flock::lock(lock, FlockArg::LockExclusive);
    let lock = lock
        .map_err(|(_, errno)| errno)
        .context("waiting for the other supervisor")?;
    let signals = [
        Signal::SIGHUP,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGCHLD,
    ];
    let signals = Signals::take(&signals).context("taking over signals")?;
    let (xen, store) = open()?;
    let pid = std::process::id();
    let number = options.folder.join("supervise.pid");
    std::fs::write(&number, format!("{pid}\n")).context(number.display())?;
    let pause = Duration::from_millis(options.pause);
    let mut supervisor = Supervisor {
        domains: Domains::of(Some(&xen), &store),
        // Without it an ended domain's records stay until the next look.
        releases: store.watch("@releaseDomain").ok(),
        changes: FolderWatch::of(&records)?,
        folder: options.folder.clone(),
        services: HashMap::new(),
        pauses: Backoff::new(pause / 10, pause),
        children: Vec::new(),
        standby: None,
        has_standby: options.standby,
        next_standby: Instant::now(),
    };
    info!("supervising the services of {}", records.display());
    let mut asked = StopSignal(&signals);
    let ended = event_loop::run(&mut supervisor, &mut [&mut asked]).context("supervising")?;
    if let Some(mut standby) = supervisor.standby.take() {
        let _ = standby.kill();
        let _ = standby.wait();
    }
    let _ = std::fs::remove_file(&number);
    drop(lock);
    info!("{}: the services go on", ended.unwrap_or_default());
    Ok(())
}

/// Returns whether a supervisor runs.
pub fn is_running(folder: &Path) -> bool {
    let Ok(file) = File::open(folder.join(LOCK)) else {
        return false;
    };
    Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
}

/// The file that the one active supervisor has locked.
const LOCK: &str = "supervise.lock";

fn lock_file(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(0o600);
    options.open(&path).context(path.display())
}

/// Any signal but SIGCHLD, which only wakes the loop.
struct StopSignal<'a>(&'a Signals);

impl Stop for StopSignal<'_> {
    fn interests(&self) -> Vec<Interest<'_>> {
        vec![readable(self.0.as_fd())]
    }

    fn reason(&mut self) -> io::Result<Option<String>> {
        while let Some(signal) = self.0.next()? {
            if signal != Signal::SIGCHLD {
                return Ok(Some(signal.to_string()));
            }
        }
        Ok(None)
    }
}

/// One record's service.
#[derive(Debug)]
struct Service {
    record: Record,
    /// The process, while it lives.
    process: Option<Process>,
    since: Instant,
    /// A failure to watch the process was logged, which is tried again every second.
    unwatched: bool,
    /// The listening socket that was kept of the last one.
    listener: Option<std::os::fd::OwnedFd>,
    /// The process that was started and does not hold the record yet.
    child: Option<(Child, Instant)>,
    next: Instant,
    pauses: Backoff,
}

#[derive(Debug)]
struct Supervisor {
    domains: Domains,
    releases: Option<Watch>,
    changes: FolderWatch,
    folder: PathBuf,
    services: HashMap<PathBuf, Service>,
    /// The pauses before a service is started once more.
    pauses: Backoff,
    /// Processes that were started and are to be reaped when they end, whatever their records are.
    children: Vec<Child>,
    standby: Option<Child>,
    has_standby: bool,
    next_standby: Instant,
}

impl Supervisor {
    /// Looks at one record; returns when to look again without an event.
    fn look(
        &mut self,
        path: &Path,
        record: Record,
        life: Liveness,
        now: Instant,
    ) -> Option<Instant> {
        let service = self
            .services
            .entry(path.to_owned())
            .or_insert_with(|| Service {
                record: record.clone(),
                process: None,
                since: now,
                unwatched: false,
                listener: None,
                child: None,
                next: now,
                pauses: self.pauses,
            });
        match life {
            Liveness::Alive => {
                if service.process.is_some() && service.record == record {
                    return None;
                }
                service.record = record;
                match Process::of(path, &service.record) {
                    Ok(Some(mut process)) => {
                        // Reaped when it ends: it may be a child of this process.
                        let listener = process.listener.take();
                        service.listener = listener.or_else(|| service.listener.take());
                        service.process = Some(process);
                        service.since = now;
                        service.unwatched = false;
                        None
                    }
                    Ok(None) => Some(now),
                    Err(error) => {
                        if !std::mem::replace(&mut service.unwatched, true) {
                            let pid = service.record.pid;
                            warn!("process {pid} is not watched, tried every second: {error}");
                        }
                        Some(now + Duration::from_secs(1))
                    }
                }
            }
            Liveness::Gone(orphan) => self.gone(path, orphan, now),
        }
    }

    fn gone(&mut self, path: &Path, orphan: Orphan, now: Instant) -> Option<Instant> {
        let stubdomain = DomId::new(self.services.get(path)?.record.stubdomain);
        let lives = self.domains.exists(stubdomain).unwrap_or(true);
        let service = self.services.get_mut(path)?;
        let record = &service.record;
        let (kind, pid) = (record.kind.name(), record.pid);
        let same = match service::uuid(self.domains.store(), stubdomain) {
            Ok(uuid) => uuid == record.uuid,
            // An error does not make it another domain.
            Err(_) if lives => return Some(now + Duration::from_secs(1)),
            Err(_) => false,
        };
        if !lives || !same {
            info!("domain {stubdomain} is gone, and so is its {kind}");
            discard(&self.folder, orphan, record);
            let child = self.services.remove(path).and_then(|service| service.child);
            self.children.extend(child.map(|(child, _)| child));
            return None;
        }
        if let Some((child, since)) = &mut service.child {
            match child.try_wait() {
                Ok(None) if now < *since + START => return Some(*since + START),
                Ok(None) => {
                    let _ = child.kill();
                    let _ = child.wait();
                }
                Ok(Some(status)) => warn!("the {kind} of domain {stubdomain}: {status}"),
                Err(error) => warn!("the {kind} of domain {stubdomain}: {error}"),
            }
            service.child = None;
        }
        if service.process.take().is_some() && now >= service.since + SETTLED {
            service.pauses.reset();
        }
        if now < service.next {
            return Some(service.next);
        }
        service.next = now + service.pauses.pause();
        drop(orphan);
        warn!("the {kind} of domain {stubdomain}, process {pid}, is gone: it is started again");
        match process::start(record, service.listener.as_ref()) {
            Ok(child) => service.child = Some((child, now)),
            Err(why) => warn!("{why}"),
        }
        Some(service.next)
    }

    fn keep_standby(&mut self, now: Instant) -> Option<Instant> {
        if !self.has_standby {
            return None;
        }
        let standby = self.standby.as_mut();
        if standby.is_some_and(|child| matches!(child.try_wait(), Ok(None))) {
            return None;
        }
        self.standby = None;
        if now < self.next_standby {
            return Some(self.next_standby);
        }
        self.next_standby = now + Duration::from_secs(1);
        // By its name, which an init script looks for. After an upgrade it is the new program.
        let program = record::this_program().unwrap_or_else(|_| "/proc/self/exe".into());
        let mut command = Command::new(program);
        let mut arguments = std::env::args_os();
        if let Some(name) = arguments.next() {
            std::os::unix::process::CommandExt::arg0(&mut command, name);
        }
        command.args(arguments).stdin(Stdio::null());
        match command.spawn() {
            Ok(child) => self.standby = Some(child),
            Err(error) => warn!("starting the standby: {error}"),
        }
        None
    }
}

impl Task for Supervisor {
    fn interests(&self) -> Vec<Interest<'_>> {
        let mut interests = vec![readable(self.changes.as_fd())];
        let processes = self.services.values().filter_map(|s| s.process.as_ref());
        interests.extend(processes.map(|process| readable(process.as_fd())));
        let releases = self.releases.as_ref();
        interests.extend(releases.and_then(|w| w.poll_fd().ok()).map(readable));
        interests
    }

    fn turn(&mut self, now: Instant) -> io::Result<Progress> {
        self.changes.drain();
        while let Some(Some(_)) = self
            .releases
            .as_ref()
            .map(Watch::try_next)
            .transpose()
            .map_err(io::Error::other)?
        {}
        self.domains.look();
        let all = record::all(&self.folder);
        let children = &mut self.children;
        self.services.retain(|path, service| {
            let recorded = all.iter().any(|(other, _, _)| other == path);
            if !recorded || service.process.is_some() {
                children.extend(service.child.take().map(|(child, _)| child));
            }
            recorded
        });
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let mut deadline = self.keep_standby(now);
        for (path, record, life) in all {
            deadline = earlier(deadline, self.look(&path, record, life, now));
        }
        Ok(Progress::Sleep(deadline))
    }
}

/// Removes what a service of an ended domain left. The other kind's files may be those of a living
/// domain of the same number.
fn discard(folder: &Path, orphan: Orphan, record: &Record) {
    if let Some((socket, _)) = &record.listener {
        // Without a process, no client is served there.
        let _ = std::fs::remove_file(socket);
    }
    match record.kind {
        Kind::Proxy => counters::remove(folder, record.stubdomain),
        Kind::Consoled => position::remove(folder, record.stubdomain),
    }
    orphan.remove();
}
