//! The domains that the tests act on: dom0, where they run, and the domUs that are booted when the
//! first test asks for them.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use xen_store::Store;
use xen_sys::{DomId, Xen};

use crate::guest::Guest;
use crate::job::{Exit, Job, LocalJob};
use crate::rpc::Agent;
use crate::suite::Needs;

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Dom0,
    DomU,
    /// A domU beside the other.
    Second,
}

impl Place {
    /// The other of dom0 and the domU.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Dom0 => Self::DomU,
            Self::DomU | Self::Second => Self::Dom0,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dom0 => "dom0",
            Self::DomU => "domu",
            Self::Second => "second domu",
        }
    }
}

/// Whether the domU's kernel lets privcmd make hypercalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privcmd {
    Unrestricted,
    Refusing,
}

impl Privcmd {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unrestricted => "unrestricted",
            Self::Refusing => "refusing",
        }
    }
}

/// How long anything may take before it counts as never: far longer than it does take, even on a
/// machine that is busy with ten other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The moment from which on it counts as never.
pub(crate) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Runs a program of dom0 to its end and gives its lines; anything but exit status 0 is an error
/// that shows them.
pub(crate) fn command(argv: &[&str]) -> Result<Vec<String>> {
    let mut job = start_local(argv)?;
    job.succeed(soon())
        .with_context(|| format!("`{}`", argv.join(" ")))?;
    job.lines()
}

/// The Xen release that this dom0 was made of.
pub(crate) fn host_release() -> (u32, u32) {
    let text = fs::read_to_string("/etc/xen/release").unwrap_or_default();
    let (major, minor) = text.trim().split_once('.').unwrap_or_default();
    (
        major.parse().unwrap_or_default(),
        minor.parse().unwrap_or_default(),
    )
}

/// Runs a program of dom0 to its end, however it ends.
pub(crate) fn outcome(argv: &[&str]) -> Result<(Exit, Vec<String>)> {
    let mut job = start_local(argv)?;
    let exit = job
        .exit(soon())
        .with_context(|| format!("`{}`", argv.join(" ")))?;
    Ok((exit, job.lines()?))
}

/// Starts a program of dom0; `self` is this program.
pub(crate) fn start_local(argv: &[&str]) -> Result<Job> {
    let (program, arguments) = argv.split_first().context("no program is named")?;
    let program = if *program == "self" {
        "/proc/self/exe"
    } else {
        program
    };
    Ok(Job::Local(LocalJob::start(
        Command::new(program).args(arguments),
    )?))
}

/// State that all tests share.
#[derive(Debug)]
pub(crate) struct TestHost {
    pub(crate) store: Store,
    domu: RefCell<Option<DomU>>,
    second: RefCell<Option<DomU>>,
    guest: RefCell<Option<Guest>>,
}

#[derive(Debug)]
struct DomU {
    agent: Agent,
    privcmd: Privcmd,
    /// Prints a line for each time that privcmd is opened.
    opens: Job,
}

/// The domU's name, and the second one's.
#[cfg(target_arch = "x86_64")]
mod domu {
    pub(crate) const DOMU_NAME: &str = "pv";
    pub(crate) const SECOND_NAME: &str = "pv-second";
    pub(super) const DOMU_CONFIG: &str = "/etc/xen/pv.cfg";
    pub(super) const PANIC: &str = "";
}
#[cfg(not(target_arch = "x86_64"))]
mod domu {
    pub(crate) const DOMU_NAME: &str = "pvh";
    pub(crate) const SECOND_NAME: &str = "pvh-second";
    pub(super) const DOMU_CONFIG: &str = "/etc/xen/pvh.cfg";
    /// A kernel that panics reports it to Xen on x86 alone; with this it reboots.
    pub(super) const PANIC: &str = " panic=-1";
}

use domu::{DOMU_CONFIG, PANIC};
pub(crate) use domu::{DOMU_NAME, SECOND_NAME};

impl TestHost {
    pub(crate) fn new() -> Result<Self> {
        let store = Store::open(&Xen::open()?)?;
        Ok(Self {
            store,
            domu: RefCell::new(None),
            second: RefCell::new(None),
            guest: RefCell::new(None),
        })
    }

    /// Sees to it that what a test needs is there, and nothing that it does not need, except in
    /// dom0, where the domU may stay.
    pub(crate) fn provide(&self, needs: Needs) -> Result<()> {
        if needs != Needs::Guest {
            self.no_guest()?;
        }
        if needs != Needs::TwoDomUs {
            self.end(Place::Second)?;
        }
        match needs {
            Needs::Dom0 | Needs::Package => {}
            Needs::DomU(privcmd) => self.provide_domu(Place::DomU, privcmd)?,
            Needs::TwoDomUs => {
                self.provide_domu(Place::DomU, Privcmd::Refusing)?;
                self.provide_domu(Place::Second, Privcmd::Refusing)?;
            }
            Needs::Guest => {
                self.no_domu()?;
                if self.guest.borrow().is_none() {
                    *self.guest.borrow_mut() = Some(Guest::create(&self.store)?);
                }
            }
        }
        Ok(())
    }

    fn provide_domu(&self, place: Place, privcmd: Privcmd) -> Result<()> {
        let (domu, name) = self.domu_in(place)?;
        let known = domu.borrow().as_ref().map(|domu| domu.privcmd);
        if known != Some(privcmd) {
            self.end(place)?;
            *domu.borrow_mut() = Some(self.boot_domu(name, privcmd)?);
        }
        Ok(())
    }

    /// The domU of that place, and its name.
    fn domu_in(&self, place: Place) -> Result<(&RefCell<Option<DomU>>, &'static str)> {
        match place {
            Place::Dom0 => bail!("dom0 is no domU"),
            Place::DomU => Ok((&self.domu, DOMU_NAME)),
            Place::Second => Ok((&self.second, SECOND_NAME)),
        }
    }

    pub(crate) fn has_guest(&self) -> bool {
        self.guest.borrow().is_some()
    }

    pub(crate) fn with_guest(&self, body: fn(&Self, &mut Guest) -> Result<()>) -> Result<()> {
        let mut guest = self.guest.borrow_mut();
        body(self, guest.as_mut().context("no guest runs")?)
    }

    /// Gives the guest to a test that ends it.
    pub(crate) fn take_guest(&self) -> Result<Guest> {
        self.guest.borrow_mut().take().context("no guest runs")
    }

    fn no_guest(&self) -> Result<()> {
        match self.guest.borrow_mut().take() {
            Some(guest) => guest.destroy(),
            None => Ok(()),
        }
    }

    /// Destroys the domUs, if there are any.
    pub(crate) fn no_domu(&self) -> Result<()> {
        self.end(Place::Second)?;
        self.end(Place::DomU)
    }

    fn end(&self, place: Place) -> Result<()> {
        let (domu, name) = self.domu_in(place)?;
        if let Some(domu) = domu.borrow_mut().take() {
            drop(domu);
            command(&["xl", "destroy", name])?;
        }
        Ok(())
    }

    /// A domU was ended by a test: waits until the toolstack has taken it away.
    pub(crate) fn lost_domu(&self, place: Place) -> Result<()> {
        let (domu, _) = self.domu_in(place)?;
        let Some(mut domu) = domu.borrow_mut().take() else {
            return Ok(());
        };
        domu.opens.forget();
        let home = format!("/local/domain/{}", domu.agent.domain());
        let watch = self.store.watch(&home)?;
        let deadline = soon();
        while self.store.exists(&home)? {
            if watch.next(Some(deadline))?.is_none() {
                bail!("{home} is still there");
            }
        }
        Ok(())
    }

    fn boot_domu(&self, name: &str, privcmd: Privcmd) -> Result<DomU> {
        if !Path::new(DOMU_CONFIG).exists() {
            bail!("{DOMU_CONFIG} is missing: the testbed's dom0 image has it");
        }
        let command_line = format!(
            "cmdline=\"console=hvc0 rdinit=/init quiet agent.privcmd={}{PANIC}\"",
            privcmd.name()
        );
        let named = format!("name=\"{name}\"");
        command(&["xl", "create", DOMU_CONFIG, &command_line, &named])?;
        let domid = command(&["xl", "domid", name])?;
        let domid = domid
            .first()
            .context("`xl domid` printed nothing")?
            .trim()
            .parse::<u16>()?;
        let booted = Agent::connect(&self.store, DomId::new(domid), soon()).and_then(|agent| {
            let report = agent.boot_report()?;
            if !report.contains(&format!("privcmd={}", privcmd.name())) {
                bail!("the domU reports `{report}`");
            }
            let mut opens = agent.start(&[
                "self".to_owned(),
                "role".to_owned(),
                "watch-privcmd".to_owned(),
            ])?;
            opens.expect("watching", soon())?;
            Ok(DomU {
                agent,
                privcmd,
                opens,
            })
        });
        if booted.is_err() {
            let _ = command(&["xl", "destroy", name]);
            for line in console_of(name) {
                println!("    {name}'s console: {line}");
            }
        }
        booted
    }

    /// How often privcmd was opened in the domU since it booted.
    pub(crate) fn privcmd_opens(&self) -> Result<usize> {
        match self.domu.borrow_mut().as_mut() {
            Some(domu) => {
                let lines = domu.opens.lines()?;
                Ok(lines
                    .iter()
                    .filter(|line| line.starts_with("opened"))
                    .count())
            }
            None => Ok(0),
        }
    }

    pub(crate) fn domid(&self, place: Place) -> Result<DomId> {
        match place {
            Place::Dom0 => Ok(DomId::DOM0),
            Place::DomU | Place::Second => {
                let domu = self.domu_in(place)?.0.borrow();
                Ok(domu.as_ref().context("no domU runs")?.agent.domain())
            }
        }
    }

    /// Starts a program; `self` is this program, which is in both places.
    pub(crate) fn start(&self, place: Place, argv: &[&str]) -> Result<Job> {
        match place {
            Place::Dom0 => start_local(argv),
            Place::DomU | Place::Second => {
                let argv: Vec<String> = argv.iter().map(|&word| word.to_owned()).collect();
                let domu = self.domu_in(place)?.0.borrow();
                domu.as_ref().context("no domU runs")?.agent.start(&argv)
            }
        }
    }

    /// Starts one of this program's roles.
    pub(crate) fn role(&self, place: Place, words: &[&str]) -> Result<Job> {
        let argv: Vec<&str> = ["self", "role"]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        self.start(place, &argv)
            .with_context(|| format!("in {}", place.name()))
    }

    /// Runs a role to its successful end.
    pub(crate) fn run_role(&self, place: Place, words: &[&str]) -> Result<()> {
        self.role(place, words)?
            .succeed(soon())
            .with_context(|| format!("role `{}` in {}", words.join(" "), place.name()))
    }

    /// A folder in xenstore that a program in `place` may write to, as an absolute path.
    pub(crate) fn folder(&self, place: Place) -> Result<String> {
        Ok(match place {
            Place::Dom0 => "/xen-testbed".to_owned(),
            Place::DomU | Place::Second => {
                format!("/local/domain/{}/data/test", self.domid(place)?)
            }
        })
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        for result in [self.no_domu(), self.no_guest()] {
            if let Err(error) = result {
                println!("at the end: {error:#}");
            }
        }
    }
}

/// The last lines of a domain's console, as far as the host keeps them.
pub(crate) fn console_of(name: &str) -> Vec<String> {
    let path = format!("/var/log/xen/console/guest-{name}.log");
    let Ok(text) = fs::read(&path) else {
        return vec![format!("(no {path})")];
    };
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..]
        .iter()
        .map(|&line| line.to_owned())
        .collect()
}
