//! The stand-in for libxl's device model on the host.

use std::process::ExitCode;

use clap::Subcommand;

use crate::consoled::exec::{self, ExecOptions};
use crate::consoled::select_console::{self, SelectOptions};
use crate::rt::error::Result;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Stand in for libxl's device model: serve consoles, hand everything else over to the real one
    DeviceModel(ExecOptions),
    /// Make a QEMU's VNC server show the stubdomain's frame buffer: a process of the launcher's
    #[command(name = "select-console", hide = true)]
    SelectConsole(SelectOptions),
}

pub(super) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::SelectConsole(options) => select_console::run(options)?,
        Command::DeviceModel(options) => {
            exec::serve_or_exec(&options.real, None, &options.arguments)?
        }
    }
    Ok(ExitCode::SUCCESS)
}
