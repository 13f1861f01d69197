//! The whole story on a simulated host.

use std::process::ExitCode;

use clap::Subcommand;

use crate::rt::error::Result;
use crate::sim::{self, SimOptions};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// See it work without Xen: a simulated host, a stubdomain, the proxy, one QMP answer
    Sim(SimOptions),
}

pub(super) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Sim(options) => sim::run(options).map(|()| ExitCode::SUCCESS),
    }
}
