//! The HVM guest with a stubdomain: `/etc/xen/hvm.cfg`, from `xl create` to `xl destroy`.
//!
//! Each creation also proves the order of readiness. xenstored reports changes in the order in
//! which they were made, so whoever watches sees whether the vchan was published before the device
//! model called itself running; and a client that connects at that very moment has to be answered.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use xen_store::Store;
use xen_sys::DomId;

use crate::job::Job;
use crate::qmp::Qmp;
use crate::world::{command, soon, start_local};

pub(crate) const NAME: &str = "hvm";
pub(crate) const STUB: &str = "hvm-dm";
pub(crate) const CONFIG: &str = "/etc/xen/hvm.cfg";

/// The file to which libxl has the stubdomain's first console written.
pub(crate) const LOG: &str = "/var/log/xen/qemu-dm-hvm.log";

/// A running guest.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) id: DomId,
    pub(crate) stub: DomId,
    console: Job,
    /// Console lines that were looked at.
    seen: usize,
}

/// Observations while the guest was created.
#[derive(Debug, Default)]
struct Start {
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
        let watch = store.watch("/local/domain")?;
        let argv: Vec<&str> = ["xl", "create", config]
            .iter()
            .chain(more)
            .copied()
            .collect();
        let mut create = start_local(&argv)?;
        let mut start = Start::default();
        let deadline = soon();
        while start.state.is_none() {
            if let Some(event) = watch.next(Some(Instant::now() + Duration::from_millis(500)))? {
                ensure!(!event.rescan, "events were lost");
                start.note(store, &event.path)?;
            } else if let Ok(exit) = create.exit(Instant::now()) {
                bail!(
                    "xl create ended with {exit} and nothing is running{}",
                    create.transcript()
                );
            }
            ensure!(
                Instant::now() < deadline,
                "nothing is running after 90 s{}",
                create.transcript()
            );
        }
        let answered = start.check();
        drop(watch);
        create.succeed(soon()).context("xl create")?;
        answered?;

        Self::running()
    }

    /// The guest as it runs now, however it came to be.
    pub(crate) fn running() -> Result<Self> {
        Ok(Self {
            id: domid(NAME)?,
            stub: domid(STUB)?,
            console: start_local(&["xl", "console", NAME])?,
            seen: 0,
        })
    }

    /// Waits for a console line that was not looked at yet and begins with `prefix`; gives what
    /// follows.
    pub(crate) fn says(&mut self, prefix: &str) -> Result<String> {
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
        command(&["xl", "destroy", NAME])?;
        self.has_left()
    }

    /// The guest is gone from here by itself.
    pub(crate) fn has_left(mut self) -> Result<()> {
        self.console
            .exit(soon())
            .context("xl console after the guest's end")?;
        Ok(())
    }
}

impl Start {
    fn note(&mut self, store: &Store, path: &str) -> Result<()> {
        let count = self.order.len();
        self.order.entry(path.to_owned()).or_insert(count);
        // /local/domain/STUB/device-model/GUEST/state; dom0 has nodes of that name for the QEMU it
        // runs itself.
        let parts: Vec<&str> = path.split('/').collect();
        if let ["", "local", "domain", stub, "device-model", _, "state"] = parts[..] {
            if stub != "0" && store.read_str(path).is_ok_and(|value| value == "running") {
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
        for name in [NAME, STUB] {
            if listed.contains_key(name) {
                let _ = command(&["xl", "destroy", name]);
            }
        }
    }
}
