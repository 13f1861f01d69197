//! Commands that a person runs on the host.

use std::process::ExitCode;

use clap::Subcommand;

use crate::rt::error::Result;
use crate::supervise::restart::{self, RestartOptions};
use crate::tools::dmargs::{self, DmargsCommand};
use crate::tools::doctor::{self, DoctorOptions};
use crate::tools::image::{self, ImageCommand};
use crate::tools::install::{self, InstallOptions, UninstallOptions};
use crate::tools::screen::{self, ScreenOptions};
use crate::tools::screenshot::{self, ScreenshotOptions};
use crate::tools::status::{self, StatusOptions};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show, check or explain the arguments a guest's QEMU was given
    #[command(subcommand)]
    Dmargs(DmargsCommand),
    /// Build a stubdomain's ramdisk, or list what is in one
    #[command(subcommand)]
    Image(ImageCommand),
    /// Say what this host lacks for guests with stubdomains, and how to mend it
    Doctor(DoctorOptions),
    /// Put this program into libxl's places; what lies there is put aside
    Install(InstallOptions),
    /// Take out what `install` put there, and bring back what it put aside
    Uninstall(UninstallOptions),
    /// Show a guest's screen in the terminal and pass keys, until Ctrl-]
    Screen(ScreenOptions),
    /// Write a picture of a guest's screen to a PNG file
    Screenshot(ScreenshotOptions),
    /// Show the guests with stubdomains
    Status(StatusOptions),
    /// Replace a guest's proxy and console server, as after an upgrade of this program
    Restart(RestartOptions),
}

pub(super) fn run(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Dmargs(command) => dmargs::run(command),
        Command::Screen(options) => screen::run(options).map(|()| ExitCode::SUCCESS),
        Command::Screenshot(options) => screenshot::run(options).map(|()| ExitCode::SUCCESS),
        Command::Status(options) => status::run(options).map(|()| ExitCode::SUCCESS),
        Command::Restart(options) => restart::run(options).map(|()| ExitCode::SUCCESS),
        Command::Install(options) => install::install(options).map(|()| ExitCode::SUCCESS),
        Command::Uninstall(options) => install::uninstall(options).map(|()| ExitCode::SUCCESS),
        Command::Doctor(options) => doctor::run(options),
        Command::Image(command) => image::run(command).map(|()| ExitCode::SUCCESS),
    }
}
