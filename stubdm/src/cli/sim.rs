//! The whole story on a simulated host.

use std::process::ExitCode;

use clap::Subcommand;

use crate::rt::error::Result;
use crate::sim::{self, SimOptions, role};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// See it work without Xen: a simulated host, a stubdomain, the proxy, one QMP answer
    Sim(SimOptions),
    /// A process of `sim`'s
    #[command(subcommand, hide = true)]
    SimRole(role::Role),
}

pub(super) fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Sim(options) => sim::run(&options).map(|()| ExitCode::SUCCESS),
        Command::SimRole(role) => role::play(role),
    }
}
