//! A hostile stubdomain's QMP server, and the watching of what has to bear it.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::resource::{UsageWho, getrusage};
use xen_fidelity::hostile::{Behaviour, play};
use xen_store::Store;
use xen_sys::{DomId, Xen};

/// In the stubdomain.
#[derive(Args, Debug)]
pub(crate) struct Hostile {
    client: DomId,
    path: String,
    behaviour: String,
    /// How many bytes much is.
    flood: usize,
}

impl Hostile {
    /// Behaves so until it is killed.
    pub(crate) fn run(&self) -> Result<()> {
        let xen = Xen::open()?;
        let store = Store::open(&xen)?;
        let Some(behaviour) = Behaviour::named(&self.behaviour) else {
            bail!("no behaviour has the name {}", self.behaviour);
        };
        println!("behaves");
        let (path, flood) = (&self.path, self.flood);
        play(&xen, &store, self.client, path, behaviour, flood, &|| false)
    }
}

/// Runs a program, and prints as the last line how much memory it needed.
#[derive(Args, Debug)]
pub(crate) struct Measured {
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    argv: Vec<String>,
}

impl Measured {
    pub(crate) fn run(&self) -> Result<()> {
        let (program, arguments) = self.argv.split_first().context("no program is named")?;
        let mut child = Command::new(program).args(arguments).spawn()?;
        let status = child.wait()?;
        let resident = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
        println!("measured: {resident} KiB");
        match status.code() {
            Some(0) => Ok(()),
            _ => bail!("{status}"),
        }
    }
}
