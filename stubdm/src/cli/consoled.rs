//! A stubdomain's consoles, served on the host.

use std::process::ExitCode;

use clap::Subcommand;

use crate::consoled::exec::{self, LaunchOptions};
use crate::consoled::run::{self, ConsoledOptions};
use crate::rt::error::Result;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve a stubdomain's consoles, in the place of the QEMU that libxl starts for them
    Consoled(ConsoledOptions),
    /// Stand in for libxl's device model: serve consoles, hand everything else over to the real one
    DeviceModel(LaunchOptions),
}

pub(super) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Consoled(options) => run::run(options)?,
        Command::DeviceModel(options) => exec::launch(&options.real, None, &options.arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}
