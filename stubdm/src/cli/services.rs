//! The processes that run for months, one or more for each guest.
//!
//! They have a definition of their own ([`ServicesCli`](super::ServicesCli)): that of the whole
//! command line leaves 120 KiB more of heap in each of them.

use std::process::ExitCode;

use clap::Subcommand;

use crate::consoled::run::{self as consoled, ConsoledOptions};
use crate::consoled::screen::process::{self, Given};
use crate::proxy;
use crate::proxy::options::ProxyOptions;
use crate::rt::error::Result;
#[cfg(feature = "sim")]
use crate::sim::role;
use crate::supervise::run::{self as supervise, SuperviseOptions};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Join a UNIX socket and a vchan, in the place of the program of that name
    VchanSocketProxy(ProxyOptions),
    /// Serve a stubdomain's consoles, in the place of the QEMU that libxl starts for them
    Consoled(ConsoledOptions),
    /// Serve a screen's viewers: a process of consoled's
    #[command(name = process::COMMAND, hide = true)]
    ServeScreen(Given),
    /// Start the proxies and console servers of guests again when they were killed
    Supervise(SuperviseOptions),
    /// A process of `sim`'s
    #[cfg(feature = "sim")]
    #[command(subcommand, hide = true)]
    SimRole(role::Role),
}

pub(super) fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::VchanSocketProxy(options) => proxy::run::run(&options)?,
        Command::Consoled(options) => consoled::run(&options)?,
        Command::ServeScreen(given) => process::run(&given)?,
        Command::Supervise(options) => supervise::run(&options)?,
        #[cfg(feature = "sim")]
        Command::SimRole(role) => return role::play(role),
    }
    Ok(ExitCode::SUCCESS)
}
