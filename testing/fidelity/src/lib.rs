//! Rules of Xen, of Linux's drivers, of xenstored and of vchan, each with its source, checked
//! wherever there is a host.
//!
//! A rule is a function, or a script, that uses the public API of the library crates and fails with
//! what it saw instead. The same rules run on the simulated host (`cargo test -p xen-fidelity`) and
//! on a real one (the tests `rules/…` of the testbed's agent), so the simulation cannot drift from
//! what it simulates without a rule noticing. An intended difference is a rule too, which expects
//! one answer on each kind of host ([`Area::Differences`]).
//!
//! [`Ends`] are two ends that rules play against each other: two domains, or one that talks to
//! itself, which Xen allows and treats as it treats two. An [`End`] is in this process, or in
//! another domain at the other side of a stream.

use std::fmt;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xen_sys::DomId;

mod call;
mod end;
mod evtchn;
mod gnttab;
mod handles;
pub mod hostile;
mod store;
mod vchan;
mod worker;

pub use call::Refusal;
pub use end::{Duplex, End, serve};
pub use worker::{Connect, Worker};

/// The kind of host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The simulated one.
    Simulated,
    /// Xen, Linux and the C xenstored.
    Real,
}

/// Two ends that can reach each other.
#[derive(Clone, Debug)]
pub struct Ends {
    /// One.
    pub a: End,
    /// The other; perhaps the same.
    pub b: End,
    /// On what host.
    pub kind: Kind,
    /// Pages a domain may share at once, over all its processes.
    pub shared_pages: usize,
    /// How long an event may be on its way.
    pub settle: Duration,
}

impl Ends {
    /// Two ends on a host of a kind, with the usual limits.
    #[must_use]
    pub fn new(a: End, b: End, kind: Kind) -> Self {
        // Within a domain, and on the simulated host, an event is there when its sender continues.
        let settle = if kind == Kind::Simulated || a.id == b.id {
            Duration::ZERO
        } else {
            Duration::from_millis(20)
        };
        // xen-gntalloc's default.
        let shared_pages = 1024;
        Self {
            a,
            b,
            kind,
            shared_pages,
            settle,
        }
    }

    /// The same with the roles changed.
    #[must_use]
    pub fn turned(&self) -> Self {
        let (a, b) = (self.b.clone(), self.a.clone());
        Self {
            a,
            b,
            ..self.clone()
        }
    }

    /// When what is on its way now has arrived.
    fn settled(&self) -> Option<Instant> {
        Some(Instant::now() + self.settle)
    }

    /// The end that is a guest, if one is not domain 0.
    fn guest(&self) -> Option<&End> {
        [&self.b, &self.a]
            .into_iter()
            .find(|end| end.id != DomId::DOM0)
    }

    /// The end that is domain 0.
    fn dom0(&self) -> Option<&End> {
        [&self.a, &self.b]
            .into_iter()
            .find(|end| end.id == DomId::DOM0)
    }
}

/// A number no domain has.
const NOBODY: DomId = DomId::new(0x7FE0);

/// The subject of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Area {
    /// Event channels.
    Evtchn,
    /// Grants.
    Gnttab,
    /// The store, as domain 0 sees it.
    Store,
    /// The store, as a guest sees it.
    StoreGuest,
    /// The same, where it leaves the guest with other rights than it had: the guest is not to be
    /// used afterwards.
    StoreTarget,
    /// vchan.
    Vchan,
    /// Documented differences of the simulated host.
    Differences,
}

impl Area {
    /// Every area.
    pub const ALL: [Self; 7] = [
        Self::Evtchn,
        Self::Gnttab,
        Self::Store,
        Self::StoreGuest,
        Self::StoreTarget,
        Self::Vchan,
        Self::Differences,
    ];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Evtchn => "evtchn",
            Self::Gnttab => "gnttab",
            Self::Store => "store",
            Self::StoreGuest => "store-guest",
            Self::StoreTarget => "store-target",
            Self::Vchan => "vchan",
            Self::Differences => "differences",
        }
    }

    /// Its rules, by name.
    #[must_use]
    pub fn rules(self) -> Vec<&'static str> {
        match self.table() {
            Table::Rules(lists) => lists.iter().copied().flatten().map(|r| r.name).collect(),
            Table::Scripts(text) => store::script::parse(text).iter().map(|s| s.name).collect(),
        }
    }

    fn table(self) -> Table {
        match self {
            Self::Evtchn => Table::Rules(&[evtchn::RULES, evtchn::bind::RULES]),
            Self::Gnttab => Table::Rules(&[gnttab::RULES, gnttab::unmap::RULES]),
            Self::Vchan => Table::Rules(&[vchan::RULES]),
            Self::Differences => Table::Scripts(store::DIFFERENCES),
            Self::Store => Table::Scripts(store::DOM0),
            Self::StoreGuest => Table::Scripts(store::GUEST),
            Self::StoreTarget => Table::Scripts(store::TARGET),
        }
    }
}

enum Table {
    /// Functions, in lists by what they are about.
    Rules(&'static [&'static [Rule]]),
    /// The text of scripts.
    Scripts(&'static str),
}

/// One rule.
#[derive(Clone, Copy, Debug)]
struct Rule {
    /// The statement that holds.
    name: &'static str,
    /// Its source: file and function.
    source: &'static str,
    /// The check.
    check: fn(&Ends) -> Result<()>,
}

/// The results of an area's rules.
#[derive(Clone, Debug)]
pub struct Report {
    /// The area.
    pub area: Area,
    /// How many held.
    pub held: usize,
    /// The others: a line each, with what was seen and the source that contradicts it.
    pub broken: Vec<String>,
}

/// Checks every rule of an area.
#[must_use]
pub fn run(ends: &Ends, area: Area) -> Report {
    let mut report = Report {
        area,
        held: 0,
        broken: Vec::new(),
    };
    let mut note = |name: &str, source: &str, seen: Result<()>| match seen {
        Ok(()) => report.held += 1,
        Err(error) => report.broken.push(format!("{name}: {error:#} [{source}]")),
    };
    match area.table() {
        Table::Rules(lists) => {
            for rule in lists.iter().copied().flatten() {
                note(rule.name, rule.source, (rule.check)(ends));
            }
        }
        Table::Scripts(text) => {
            for script in store::script::parse(text) {
                note(script.name, script.source, store::check(&script, ends));
            }
        }
    }
    report
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (area, broken) = (self.area.name(), self.broken.len());
        write!(f, "{} {area} rules hold, {broken} are broken", self.held)?;
        self.broken
            .iter()
            .try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// The first word of the lines that [`report`] writes.
pub const MARK: &str = "fidelity:";

/// Checks areas between two ends, prints how many rules held there (for `cargo xtask test`, which
/// adds it up), and fails if any did not. `place` is one word.
///
/// # Errors
///
/// The rules that are broken, with what was seen.
pub fn report(ends: &Ends, place: &str, areas: &[Area]) -> Result<()> {
    let mut broken = Vec::new();
    for area in areas {
        let report = run(ends, *area);
        let (area, held) = (area.name(), report.held);
        // Not print!, which a test's runner would keep to itself.
        writeln!(std::io::stdout(), "\n{MARK} {area} {place} {held}")?;
        if !report.broken.is_empty() {
            broken.push(report.to_string());
        }
        ensure!(
            held + report.broken.len() > 0,
            "there are no rules about {area}"
        );
    }
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

/// When something that must happen has not.
fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(30))
}

/// Checks that something was refused, with this errno.
fn refused<T>(result: handles::Result<T>, errno: i32, what: &str) -> Result<()> {
    match result {
        Ok(_) => anyhow::bail!("{what} was allowed"),
        Err(e) => {
            let want = std::io::Error::from_raw_os_error(errno);
            ensure!(e.errno == Some(errno), "{what}: {e}, not {want}");
            Ok(())
        }
    }
}
