//! Commands that run inside the stubdomain.

use std::process::ExitCode;

use clap::Subcommand;

use crate::guest::{self, InitOptions};
use crate::rt::error::Result;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Bring up a stubdomain: the job of its PID 1
    Init(InitOptions),
}

pub(super) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Init(options) => Ok(guest::run(options)),
    }
}
