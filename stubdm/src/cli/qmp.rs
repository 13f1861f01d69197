//! QMP on the host, by hand: the proxy's policy, and questions.

use std::process::ExitCode;

use clap::Subcommand;

use crate::rt::error::Result;
use crate::tools::policy::{self, PolicyCommand};
use crate::tools::qmp::{self, QmpOptions};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check or explain which QMP the proxy lets pass
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Ask a guest's QEMU something and print the answer as JSON
    Qmp(QmpOptions),
}

pub(super) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Policy(command) => policy::run(command)?,
        Command::Qmp(options) => qmp::run(options)?,
    }
    Ok(ExitCode::SUCCESS)
}
