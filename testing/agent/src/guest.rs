//! The HVM guest with a stubdomain: `/etc/xen/hvm.cfg`, from `xl create` to `xl destroy`.
//!
//! Each creation also proves the order of readiness. xenstored reports changes in the order in
//! which they were made, so a watcher sees whether the vchan was published before the device model
//! called itself running; and a client that connects at that very moment must be answered.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use xen_store::{Store, Watch};
use xen_sys::DomId;

use crate::host::{command, soon, start_local};
use crate::job::Job;
use crate::qmp::Qmp;

pub(crate) const NAME: &str = "hvm";
pub(crate) const STUB: &str = "hvm-dm";
/// A guest beside it.
const OTHER: &str = "other";
pub(crate) const CONFIG: &str = "/etc/xen/hvm.cfg";

/// The file to which libxl has the stubdomain's first console written.
pub(crate) const LOG: &str = "/var/log/xen/qemu-dm-hvm.log";

/// A running guest.
#[derive(Debug)]
pub(crate) struct Guest {
    name: &'static str,
    pub(crate) id: DomId,
    pub(crate) stub: DomId,
    console: Job,
    /// Console lines that were looked at.
    seen: usize,
}

/// Observations while the guest was created.
#[derive(Debug)]
struct Start {
    /// A domain that is not the new stubdomain. dom0 is not either: it has such nodes for the QEMU
    /// that it runs itself.
    besides: DomId,
    /// The first moment of each path, counted in events.
    order: HashMap<String, usize>,
    /// The stubdomain's `state` node.
    state: Option<String>,
}

impl Guest {
    /// Creates the guest and checks what has to be true the moment it is called running.
    pub(crate) fn create(store: &Store) -> Result<Self> {
        Self::create_with(store, &[]).with_context(|| format!("creating {NAME}{}", diagnosis()))
    }

    /// As [`create`](Self::create), with more lines of configuration.
    pub(crate) fn create_with(store: &Store, more: &[&str]) -> Result<Self> {
        Self::create_from(store, CONFIG, more)
    }

    /// As [`create`](Self::create), from another configuration of a guest of this name.
    pub(crate) fn create_from(store: &Store, config: &str, more: &[&str]) -> Result<Self> {
        Self::create_as(store, NAME, config, more)
    }

    /// The guest [`OTHER`], with more lines of configuration, which name a disk of its own.
    pub(crate) fn create_other(store: &Store, more: &[&str]) -> Result<Self> {
        let name = format!("name=\"{OTHER}\"");
        let more: Vec<&str> = [&*name].into_iter().chain(more.iter().copied()).collect();
        Self::create_as(store, OTHER, CONFIG, &more)
    }

    fn create_as(store: &Store, name: &'static str, config: &str, more: &[&str]) -> Result<Self> {
        let watch = store.watch("/local/domain")?;
        let argv: Vec<&str> = ["xl", "create", config]
            .iter()
            .chain(more)
            .copied()
            .collect();
        let mut create = start_local(&argv)?;
        let start = Start::of_another_than(DomId::DOM0);
        let answered = start
            .follow(store, &watch, |end| match create.exit(Instant::now()) {
                Ok(exit) => bail!("xl create ended with {exit}{}", create.transcript()),
                Err(_) if end => bail!("xl create still runs{}", create.transcript()),
                Err(_) => Ok(()),
            })?
            .check();
        drop(watch);
        create.succeed(soon()).context("xl create")?;
        answered?;

        Self::running_as(name)
    }

    /// The guest as it runs now, however it came to be.
    pub(crate) fn running() -> Result<Self> {
        Self::running_as(NAME)
    }

    fn running_as(name: &'static str) -> Result<Self> {
        Ok(Self {
            name,
            id: domid(name)?,
            stub: domid(&format!("{name}-dm"))?,
            console: start_local(&["xl", "console", name])?,
            seen: 0,
        })
    }

    /// Has the guest restart by what is typed, and checks the new one as a created one is.
    pub(crate) fn restarts(self, store: &Store, typed: &str) -> Result<Self> {
        self.restarts_by(store, |guest| guest.types(store, typed))
    }

    /// Does the same for a guest that restarts by something else.
    pub(crate) fn restarts_by(
        self,
        store: &Store,
        order: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Self> {
        let watch = store.watch("/local/domain")?;
        order(&self)?;
        let (name, id) = (self.name, self.id);
        let start = Start::of_another_than(self.stub);
        start.follow(store, &watch, |_| Ok(()))?.check()?;
        self.has_left()?;
        let guest = Self::running_as(name)?;
        ensure!(guest.id != id, "{name} is domain {id} as before");
        Ok(guest)
    }

    /// Waits for a console line that was not looked at yet and begins with `prefix`; gives what
    /// follows.
    pub(crate) fn output_after(&mut self, prefix: &str) -> Result<String> {
        let deadline = soon();
        loop {
            let line = self.console.line(self.seen, deadline).with_context(|| {
                format!(
                    "waiting for `{prefix}` on the guest's console{}",
                    self.console.transcript()
                )
            })?;
            let Some(line) = line else {
                bail!(
                    "xl console ended without `{prefix}`{}",
                    self.console.transcript()
                );
            };
            self.seen += 1;
            if let Some(at) = line.find(prefix) {
                return Ok(line[at + prefix.len()..].trim().to_owned());
            }
        }
    }

    /// How many console lines there are, all of them now being looked at.
    pub(crate) fn catch_up(&mut self) -> Result<usize> {
        self.seen = self.console.lines()?.len();
        Ok(self.seen)
    }

    /// Types on the guest's console: on the terminal that `xl console` opens, which by itself
    /// passes on nothing from a program that is not a person's terminal.
    pub(crate) fn types(&self, store: &Store, text: &str) -> Result<()> {
        let node = format!("/local/domain/{}/device/console/3/tty", self.stub);
        let terminal = store.read_str(&node).context(node)?;
        let mut terminal = fs::File::options()
            .write(true)
            .open(&terminal)
            .context(terminal)?;
        Ok(terminal.write_all(text.as_bytes())?)
    }

    pub(crate) fn socket(&self) -> String {
        Qmp::socket(self.id)
    }

    /// Destroys the guest, and with it the stubdomain.
    pub(crate) fn destroy(self) -> Result<()> {
        command(&["xl", "destroy", self.name])?;
        self.has_left()
    }

    /// Waits for the end of the console of a guest that has left this host by itself.
    pub(crate) fn has_left(mut self) -> Result<()> {
        self.console
            .exit(soon())
            .context("xl console after the guest's end")?;
        Ok(())
    }
}

impl Start {
    fn of_another_than(besides: DomId) -> Self {
        Self {
            besides,
            order: HashMap::new(),
            state: None,
        }
    }

    /// Follows the store until a stubdomain's device model is running. `ended` fails if that can no
    /// longer be; its argument is true when the time is over.
    fn follow(
        mut self,
        store: &Store,
        watch: &Watch,
        mut ended: impl FnMut(bool) -> Result<()>,
    ) -> Result<Self> {
        let deadline = soon();
        while self.state.is_none() {
            if let Some(event) = watch.next(Some(Instant::now() + Duration::from_millis(500)))? {
                ensure!(!event.rescan, "events were lost");
                self.note(store, &event.path)?;
            } else {
                ended(false).context("nothing is running")?;
            }
            if Instant::now() >= deadline {
                ended(true).context("nothing is running in time")?;
                bail!("nothing is running in time");
            }
        }
        Ok(self)
    }

    fn note(&mut self, store: &Store, path: &str) -> Result<()> {
        let count = self.order.len();
        self.order.entry(path.to_owned()).or_insert(count);
        // /local/domain/STUB/device-model/GUEST/state
        let parts: Vec<&str> = path.split('/').collect();
        if let ["", "local", "domain", stub, "device-model", _, "state"] = parts[..] {
            let known = [DomId::DOM0, self.besides].map(|domain| domain.to_string());
            if !known.contains(&stub.to_owned())
                && store.read_str(path).is_ok_and(|value| value == "running")
            {
                self.state = Some(path.to_owned());
            }
        }
        Ok(())
    }

    /// The vchan was there first, and answers now.
    fn check(&self) -> Result<()> {
        let state = self.state.as_deref().context("nothing is running")?;
        let base = state.trim_end_matches("/state");
        let ready = self.order[state];
        for node in ["ring-ref", "event-channel"] {
            let path = format!("{base}/qmp-vchan/{node}");
            match self.order.get(&path) {
                Some(&published) if published < ready => {}
                Some(_) => bail!("{path} was published after {state} said running"),
                None => bail!("{path} was not published when {state} said running"),
            }
        }
        let guest = base
            .rsplit('/')
            .next()
            .context("no guest")?
            .parse::<DomId>()?;
        let mut qmp = Qmp::connect(Qmp::socket(guest))
            .context("QMP the moment the device model called itself running")?;
        let status = qmp.execute("query-status", None)?;
        ensure!(status["running"] == true, "running, but QEMU says {status}");
        Ok(())
    }
}

/// A domain's number by its name.
pub(crate) fn domid(name: &str) -> Result<DomId> {
    let lines = command(&["xl", "domid", name])?;
    let line = lines
        .first()
        .with_context(|| format!("`xl domid {name}` printed nothing"))?;
    Ok(DomId::new(line.trim().parse()?))
}

/// The names that `xl list` shows, with their state letters.
pub(crate) fn listed() -> Result<HashMap<String, String>> {
    let lines = command(&["xl", "list"])?;
    Ok(lines
        .iter()
        .skip(1)
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            Some(((*words.first()?).to_owned(), (*words.get(4)?).to_owned()))
        })
        .collect())
}

/// Returns the logs, for an error message.
pub(crate) fn diagnosis() -> String {
    let mut text = String::new();
    for path in [
        LOG,
        "/var/log/xen/qmp-proxy-hvm-dm.log",
        "/var/log/xen/xl-hvm.log",
    ] {
        text.push_str(&format!("\n{path}:"));
        match fs::read(path) {
            Ok(bytes) => {
                let all = String::from_utf8_lossy(&bytes);
                let lines: Vec<&str> = all.lines().collect();
                for line in &lines[lines.len().saturating_sub(12)..] {
                    text.push_str(&format!("\n    | {line}"));
                }
            }
            Err(error) => text.push_str(&format!(" {error}")),
        }
    }
    text
}

/// After a failed test: destroys what is there of the guest, whatever its state.
pub(crate) fn destroy_leftover() {
    if let Ok(listed) = listed() {
        for guest in [NAME, OTHER] {
            for name in [guest, &format!("{guest}-dm")] {
                if listed.contains_key(name) {
                    let _ = command(&["xl", "destroy", name]);
                }
            }
        }
    }
}
