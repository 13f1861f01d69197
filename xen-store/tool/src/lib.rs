//! `xstore`: reads, writes and watches Xen's store from a shell.
//!
//! ```text
//!   cli                      the command line
//!   nodes watch archive top  the commands
//!   output  failure  text    lines, colours and JSON; statuses; escapes
//! ```
//!
//! It uses only the public interface of `xen-store`. Guests choose values and names: none of their
//! bytes except printable ASCII reaches a terminal unescaped, unless `--raw` is given.

#![forbid(unsafe_code)]

mod archive;
mod cli;
mod failure;
mod nodes;
mod output;
mod text;
mod top;
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _};

use crate::cli::{Cli, Command};
use crate::failure::{Failure, Outcome};
use crate::output::Output;

/// The program's name.
pub const PROGRAM: &str = "xstore";

/// The exit statuses and their meanings.
pub const STATUSES: [(u8, &str); 5] = [
    (
        0,
        "Done. For exists: every node exists; for diff: nothing differs.",
    ),
    (
        1,
        "The answer is no: there is no such node, or the trees differ.",
    ),
    (2, "The command line is wrong."),
    (
        3,
        "The store refused a request or could not be reached, or a file is wrong.",
    ),
    (4, "The time was over before an answer or a change came."),
];

/// Returns the definition of the command line.
#[must_use]
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Runs the program with its command line, program name first.
#[must_use]
pub fn main(args: Vec<OsString>) -> ExitCode {
    let matches = match definition().try_get_matches_from(cli::from_classic(args)) {
        Ok(matches) => matches,
        Err(error) => return usage(&error),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let mut output = Output::new(cli.color, cli.json);
    let ended = run(&cli, &mut output);
    // The lines before a failure belong to the result.
    let failure = match (ended, output.flush()) {
        (Ok(()), Ok(())) => return ExitCode::SUCCESS,
        (Ok(()), Err(failure)) | (Err(failure), Ok(())) => failure,
        (Err(failure), Err(unwritten)) => failure.or_worse(unwritten),
    };
    failure.report();
    failure.status()
}

/// Reports a fault of the command line, or prints the help or version that was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A closed standard output is no failure of `--help`.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a command is missing".to_owned(),
        _ => error.to_string(),
    };
    // The fault, without a usage and hints behind it.
    let fault = text.split("\n\n").next().unwrap_or_default();
    let fault = fault.strip_prefix("error: ").unwrap_or(fault);
    let lines: Vec<&str> = fault.lines().map(str::trim).collect();
    let failure = Failure::usage(format!("{}; see --help", lines.join(" ")));
    failure.report();
    failure.status()
}

fn run(cli: &Cli, output: &mut Output) -> Outcome {
    // Two files are compared without a store.
    if let Command::Diff(args) = &cli.command {
        return archive::diff(args, || cli.open(), output);
    }
    let store = cli.open()?;
    match &cli.command {
        Command::Ls(args) => nodes::ls(&store, args, output),
        Command::List(args) => nodes::list(&store, args, output),
        Command::Read(args) => nodes::read(&store, args, output),
        Command::Write(args) => nodes::write(&store, args),
        Command::Rm(args) => nodes::rm(&store, args),
        Command::Mkdir(args) => nodes::mkdir(&store, args),
        Command::Chmod(args) => nodes::chmod(&store, args),
        Command::Exists(args) => nodes::exists(&store, args, output),
        Command::Watch(args) => watch::watch(&store, args, output),
        Command::Wait(args) => watch::wait(&store, args, output),
        Command::Export(args) => archive::export(&store, args, output),
        Command::Import(args) => archive::import(&store, args),
        Command::Top(args) => top::top(&store, args, output),
        Command::Diff(_) => Ok(()),
    }
}
