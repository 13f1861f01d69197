//! `stubdm-run restart`: replaces a guest's host processes by the program as it is installed now.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use nix::poll::PollFlags;
use xen_sys::DomId;

use crate::libxl::store::{Pair, StoreOptions, domid};
use crate::proxy::counters;
use crate::rt::error::{Context, Failure, Result};
use crate::rt::poll::{readable, sleep};
use crate::service::record::{self, Liveness};
use crate::supervise::folder::FolderWatch;
use crate::supervise::process::{self, Process};
use crate::supervise::run::is_running;

/// How long a process may take to end, and the next one to start.
const LIMIT: Duration = Duration::from_secs(10);

/// The command line.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false, id = "which")]
pub struct RestartOptions {
    /// The guest, or its stubdomain
    #[arg(value_name = "DOMID", value_parser = domid, group = "which")]
    pub domain: Option<DomId>,
    /// All guests
    #[arg(long, group = "which")]
    pub all: bool,
    /// Where the records and the store are
    #[command(flatten)]
    pub more: RestartPlace,
}

/// Where the records and the store are.
#[derive(Args, Clone, Debug)]
pub struct RestartPlace {
    /// The folder of the records, instead of /run/stubdm
    #[arg(long, value_name = "DIR", default_value = counters::FOLDER, hide_short_help = true)]
    pub folder: PathBuf,
    /// The store
    #[command(flatten)]
    pub store: StoreOptions,
}

/// Kills each process that is recorded, and starts it again where it stopped.
///
/// # Errors
/// There is none for that guest, or one did not start within 10 s. The others are restarted.
pub fn run(options: &RestartOptions) -> Result<()> {
    let folder = &options.more.folder;
    let wanted = match options.domain {
        Some(domain) => {
            let store = options.more.store.open()?;
            let pair = Pair::of(&store, domain)?;
            Some(pair.stubdomain.unwrap_or(domain).as_u16())
        }
        None => None,
    };
    // Without their locks: each is read again in its turn.
    let mut records: Vec<_> = record::all(folder)
        .into_iter()
        .map(|(path, record, _)| (path, record))
        .collect();
    records.retain(|(_, record)| wanted.is_none_or(|wanted| wanted == record.stubdomain));
    if let (Some(domain), true) = (wanted, records.is_empty()) {
        return Err(Failure::new(format_args!(
            "no process of domain {domain} is recorded in {}",
            folder.display()
        )));
    }
    let mut failed = Vec::new();
    for (path, record) in records {
        let what = format!("the {} of domain {}", record.kind.name(), record.stubdomain);
        let restarted = restart(folder, &path).and_then(|(old, new)| {
            writeln!(io::stdout(), "{what}: process {new} in place of {old}").context("printing")
        });
        if let Err(why) = restarted {
            failed.push(format!("{what}: {why}"));
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(failed.join("; "))),
    }
}

/// Returns the numbers of the old process and of the new one.
fn restart(folder: &Path, path: &Path) -> Result<(u32, u32)> {
    let (record, life) = record::read(path).ok_or_else(|| Failure::new("it has ended"))?;
    let record = &record;
    let watch = FolderWatch::of(&record::folder(folder)?)?;
    let mut listener = None;
    if let Liveness::Alive = life {
        if let Some(mut process) = Process::of(path, record).context("its process")? {
            listener = process.listener.take();
            process.kill().context("ending it")?;
            let deadline = Instant::now() + LIMIT;
            let ended = [(process.as_fd(), PollFlags::POLLIN)];
            sleep(&ended, Some(deadline)).context("waiting for its end")?;
        }
    }
    drop(life);
    let deadline = Instant::now() + LIMIT;
    let mut child = match is_running(folder) {
        // It has the same socket, and starts it.
        true => None,
        false => Some(process::start(record, listener.as_ref())?),
    };
    loop {
        watch.drain();
        if let Some((now, Liveness::Alive)) = record::read(path) {
            if now.pid != record.pid {
                return Ok((record.pid, now.pid));
            }
        }
        if let Some(Ok(Some(status))) = child.as_mut().map(std::process::Child::try_wait) {
            return Err(Failure::new(format_args!("{status}; its log has more")));
        }
        if deadline <= Instant::now() {
            return Err(Failure::new("it does not start; its log has more"));
        }
        let look = Instant::now() + Duration::from_millis(200);
        sleep(&[readable(watch.as_fd())], Some(look)).context("waiting")?;
    }
}
