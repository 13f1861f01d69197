//! QMP on the host: the proxy, and questions by hand.

use std::process::ExitCode;

use clap::Subcommand;

use crate::proxy;
use crate::proxy::options::ProxyOptions;
use crate::rt::error::Result;
use crate::tools::policy::{self, PolicyCommand};
use crate::tools::qmp::{self, QmpOptions};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Join a UNIX socket and a vchan, in the place of the program of that name
    VchanSocketProxy(ProxyOptions),
    /// Check or explain which QMP the proxy lets pass
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Ask a guest's QEMU something and print the answer as JSON
    Qmp(QmpOptions),
}

pub(super) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::VchanSocketProxy(options) => proxy::run::run(options)?,
        Command::Policy(command) => policy::run(command)?,
        Command::Qmp(options) => qmp::run(options)?,
    }
    Ok(ExitCode::SUCCESS)
}
