//! The store: rules as scripts, played by connections of domain 0 and of the guest.

use anyhow::{Context as _, Result, bail};

use crate::Ends;

pub(crate) mod script;

use script::Script;

/// The rules as domain 0.
pub(crate) const DOM0: &str = include_str!("dom0.txt");
/// The rules as a guest.
pub(crate) const GUEST: &str = include_str!("guest.txt");
/// The rules as a guest with a target.
pub(crate) const TARGET: &str = include_str!("target.txt");
/// Where the embedded daemon and the C one differ.
pub(crate) const DIFFERENCES: &str = include_str!("differences.txt");

/// Carries out a script between the ends it names.
pub(crate) fn check(script: &Script, ends: &Ends) -> Result<()> {
    let dom0 = ends.dom0().context("no end is domain 0")?;
    let guest = ends.guest();
    if guest.is_none() && script.needs_guest() {
        bail!("no end is a guest");
    }
    script::play(script, ends.kind, dom0, guest).map_err(anyhow::Error::msg)
}
