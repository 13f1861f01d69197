//! Commands that run inside the stubdomain.

use std::process::ExitCode;

use clap::Subcommand;

use crate::guest::{self, InitOptions};
use crate::rt::error::Result;
use crate::screen::{self, Given};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Bring up a stubdomain: the job of its PID 1
    Init(InitOptions),
    /// Draw the guest's screen: a process of the init's
    #[command(name = "draw-screen", hide = true)]
    DrawScreen(Given),
}

pub(super) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Init(options) => Ok(guest::run(options)),
        Command::DrawScreen(given) => screen::run(given).map(|()| ExitCode::SUCCESS),
    }
}
