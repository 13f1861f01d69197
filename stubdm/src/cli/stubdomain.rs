//! What runs inside the stubdomain.

use std::process::ExitCode;

use clap::Subcommand;

use crate::error::Result;
use crate::init::{self, InitOptions};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Bring up a stubdomain: the job of its PID 1
    Init(InitOptions),
}

pub(super) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Init(options) => Ok(init::run(options)),
    }
}
