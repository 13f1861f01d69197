//! Rules of Xen and of Linux's drivers, each with its source, checked wherever there is a host.
//!
//! A rule is a function that uses the public API of the library crates and fails with what it
//! saw instead. The same functions run on the simulated host (`cargo test -p xen-fidelity`) and
//! on a real one (the example `real`, and a test of the testbed's agent), so the simulation
//! cannot drift from what it simulates without a rule noticing.
//!
//! A [`World`] is two ends that rules play against each other. On the simulated host they are
//! two domains. On a real one they are one domain that talks to itself, which Xen allows and
//! treats as it treats two.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xen_sys::{DomId, Xen};

mod evtchn;
mod gnttab;

/// One end: a process of a domain.
#[derive(Clone, Debug)]
pub struct End {
    /// The way to the hypervisor.
    pub xen: Xen,
    /// The domain.
    pub id: DomId,
}

/// Two ends that can reach each other.
#[derive(Clone, Debug)]
pub struct World {
    /// One.
    pub a: End,
    /// The other; perhaps the same domain.
    pub b: End,
    /// Pages a domain may share at once, over all its processes.
    pub shared_pages: usize,
}

impl World {
    /// A domain that talks to itself. `me` is its own number.
    #[must_use]
    pub fn loopback(xen: &Xen, me: DomId) -> Self {
        let end = End {
            xen: xen.clone(),
            id: me,
        };
        // xen-gntalloc's default.
        Self {
            a: end.clone(),
            b: end,
            shared_pages: 1024,
        }
    }
}

/// A number no domain has.
const NOBODY: DomId = DomId::new(0x7FE0);

/// One rule.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// What holds.
    pub name: &'static str,
    /// Who says so: file and function.
    pub source: &'static str,
    /// The check.
    pub check: fn(&World) -> Result<()>,
}

/// Every rule.
pub fn rules() -> impl Iterator<Item = &'static Rule> {
    evtchn::RULES.iter().chain(gnttab::RULES)
}

/// Checks every rule and reports each as a line; says how many held and which did not.
pub fn run(world: &World, mut line: impl FnMut(&str)) -> (usize, Vec<&'static str>) {
    let (mut held, mut broken) = (0, Vec::new());
    for rule in rules() {
        match (rule.check)(world) {
            Ok(()) => {
                held += 1;
                line(&format!("ok      {}", rule.name));
            }
            Err(e) => {
                broken.push(rule.name);
                line(&format!("BROKEN  {}: {e:#} [{}]", rule.name, rule.source));
            }
        }
    }
    (held, broken)
}

/// When something that must happen has not.
fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(10))
}

/// Checks that something was refused, with this errno.
fn refused<T>(result: xen_sys::Result<T>, errno: i32, what: &str) -> Result<()> {
    match result {
        Ok(_) => anyhow::bail!("{what} was allowed"),
        Err(e) => {
            let want = std::io::Error::from_raw_os_error(errno);
            ensure!(e.errno() == Some(errno), "{what}: {e}, not {want}");
            Ok(())
        }
    }
}
