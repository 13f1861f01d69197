//! What a person runs on the host.

use std::process::ExitCode;

use clap::Subcommand;

use crate::error::Result;
use crate::tools::dmargs::{self, DmargsCommand};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show, check or explain the arguments a guest's QEMU was given
    #[command(subcommand)]
    Dmargs(DmargsCommand),
}

pub(super) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Dmargs(command) => dmargs::run(command),
    }
}
