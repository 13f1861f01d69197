//! Running programs in a domU from dom0, through xenstore: dom0's side.
//!
//! libxl makes `/local/domain/N/data` writable by domain N. Below it the agent that runs as init
//! there keeps
//!
//! ```text
//! data/agent/ready              agent: its boot report, once it listens
//! data/agent/jobs/J/request     dom0:  {"argv": [...]}; the program "self" is the agent
//! data/agent/jobs/J/lines/K     agent: line K of the program's output
//! data/agent/jobs/J/exit        agent: how it ended, after the last line
//! data/agent/jobs/J/kill        dom0:  the number of a signal to send
//! ```
//!
//! The end is the last thing the agent writes, and dom0 removes the job's folder after it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use xen_store::{Store, Watch};
use xen_sys::DomId;

use crate::job::{Exit, Job};

/// Where everything lies, seen from the domU.
pub(crate) const AGENT: &str = "data/agent";

/// At most this many lines of a job are passed on.
pub(crate) const MAX_LINES: usize = 400;

/// At most this many bytes of a line are passed on: a xenstore message holds 4096.
pub(crate) const MAX_LINE: usize = 3000;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) argv: Vec<String>,
}

/// The agent in a domU.
#[derive(Debug)]
pub(crate) struct Agent {
    store: Store,
    domain: DomId,
    next_job: AtomicU32,
}

impl Agent {
    /// Waits until the agent in `domain` listens.
    pub(crate) fn connect(store: &Store, domain: DomId, deadline: Instant) -> Result<Self> {
        let ready = format!("/local/domain/{domain}/{AGENT}/ready");
        let watch = store.watch(&ready)?;
        while !store.exists(&ready)? {
            if watch.next(Some(deadline))?.is_none() {
                bail!("the agent in domain {domain} did not report ready: see its console");
            }
        }
        Ok(Self {
            store: store.clone(),
            domain,
            next_job: AtomicU32::new(0),
        })
    }

    pub(crate) fn domain(&self) -> DomId {
        self.domain
    }

    /// Returns the agent's report of its boot.
    pub(crate) fn boot_report(&self) -> Result<String> {
        Ok(self
            .store
            .read_str(&format!("/local/domain/{}/{AGENT}/ready", self.domain))?)
    }

    /// Starts a program in the domU.
    pub(crate) fn start(&self, argv: &[String]) -> Result<Job> {
        let number = self.next_job.fetch_add(1, Ordering::Relaxed);
        let base = format!("/local/domain/{}/{AGENT}/jobs/{number}", self.domain);
        let watch = self.store.watch(&base)?;
        let request = serde_json::to_vec(&Request {
            argv: argv.to_vec(),
        })?;
        self.store
            .write(&format!("{base}/request"), &request)
            .with_context(|| format!("asking domain {} to run {argv:?}", self.domain))?;
        Ok(Job::Remote(Box::new(RemoteJob {
            store: self.store.clone(),
            base,
            watch,
            lines: Vec::new(),
            exit: None,
        })))
    }
}

/// A program that runs in a domU.
#[derive(Debug)]
pub(crate) struct RemoteJob {
    store: Store,
    base: String,
    watch: Watch,
    lines: Vec<String>,
    exit: Option<Exit>,
}

impl RemoteJob {
    pub(crate) fn line(&mut self, index: usize, deadline: Instant) -> Result<Option<String>> {
        loop {
            if let Some(line) = self.lines.get(index) {
                return Ok(Some(line.clone()));
            }
            if self.exit.is_some() {
                return Ok(None);
            }
            if !self.look()? {
                self.wait(deadline)
                    .context("no further line within the time given")?;
            }
        }
    }

    pub(crate) fn exit(&mut self, deadline: Instant) -> Result<Exit> {
        loop {
            if let Some(exit) = &self.exit {
                return Ok(exit.clone());
            }
            if !self.look()? {
                self.wait(deadline)
                    .context("still running after the time given")?;
            }
        }
    }

    pub(crate) fn kill(&mut self, signal: Signal) -> Result<()> {
        let text = (signal as i32).to_string();
        Ok(self
            .store
            .write(&format!("{}/kill", self.base), text.as_bytes())?)
    }

    /// Its domain is gone, and its folder with it: nothing is to be written there again.
    pub(crate) fn forget(&mut self) {
        self.exit = Some(Exit::Signal(Signal::SIGKILL as i32));
    }

    pub(crate) fn lines(&mut self) -> Result<Vec<String>> {
        while self.look()? {}
        Ok(self.lines.clone())
    }

    /// Takes what is new. Lines are numbered and written before `exit`, so a line that is not there
    /// when `exit` is will never be.
    fn look(&mut self) -> Result<bool> {
        if self.exit.is_some() {
            return Ok(false);
        }
        let exit = self.read("exit")?;
        let mut found = false;
        while let Some(line) = self.read(&format!("lines/{}", self.lines.len()))? {
            self.lines.push(line);
            found = true;
        }
        if let Some(exit) = exit {
            self.exit = Some(exit.parse()?);
            found = true;
        }
        Ok(found)
    }

    fn read(&self, name: &str) -> Result<Option<String>> {
        match self.store.read(&format!("{}/{name}", self.base)) {
            Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn wait(&mut self, deadline: Instant) -> Result<()> {
        if self.watch.next(Some(deadline))?.is_none() {
            bail!("nothing new");
        }
        Ok(())
    }
}

impl Drop for RemoteJob {
    fn drop(&mut self) {
        if self.exit.is_none() && self.kill(Signal::SIGKILL).is_ok() {
            // The agent writes until the end; what it wrote after the removal would stay.
            let _ = self.exit(Instant::now() + Duration::from_secs(5));
        }
        let _ = self.store.rm(&self.base);
    }
}
