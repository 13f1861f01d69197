//! The command line: selects the part of the program, or reports in one line what is wrong.
//!
//! The commands are in groups, one file each: their names, and the functions that run them.

mod consoled;
mod qmp;
mod services;
#[cfg(feature = "sim")]
mod sim;
mod stubdomain;
mod tools;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use stubdm_qmp::text::one_line;

use crate::consoled::exec;
use crate::guest::{self, InitOptions};
use crate::proxy;
use crate::proxy::options::{OPERANDS, ProxyOptions, known_only};
use crate::rt::error::{Failure, Result};
use crate::rt::log;

/// The stubdomain's device-model runner, and the host's end of its QMP
#[derive(Debug, Parser)]
#[command(
    name = "stubdm-run",
    version,
    infer_long_args = true,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Stubdomain(stubdomain::Command),
    #[command(flatten)]
    Qmp(qmp::Command),
    #[command(flatten)]
    Services(services::Command),
    #[command(flatten)]
    Consoled(consoled::Command),
    #[command(flatten)]
    Tools(tools::Command),
    #[cfg(feature = "sim")]
    #[command(flatten)]
    Sim(sim::Command),
}

/// The stubdomain's device-model runner: its processes that run for months
#[derive(Debug, Parser)]
#[command(
    name = "stubdm-run",
    version,
    infer_long_args = true,
    max_term_width = 100
)]
struct ServicesCli {
    #[command(subcommand)]
    command: services::Command,
}

/// Join a UNIX socket and a vchan
#[derive(Debug, Parser)]
#[command(
    name = "vchan-socket-proxy",
    version,
    infer_long_args = true,
    max_term_width = 100
)]
struct ProxyCli {
    #[command(flatten)]
    options: ProxyOptions,
}

/// Reads `vchan-socket-proxy`'s command line, program name first. `None` when help or the version
/// was asked for and printed. Options that are not known here are passed over, and reported on
/// stderr.
///
/// # Errors
/// One line that names the word and its fault.
pub fn proxy_options(args: Vec<OsString>) -> Result<Option<ProxyOptions>> {
    let definition = <ProxyCli as clap::CommandFactory>::command();
    let (args, unknown) = known_only(definition, args, OPERANDS);
    let options = parse::<ProxyCli>(args)?.map(|cli| cli.options);
    // The worker is started with the same line, whose faults are in the log by then.
    if options.as_ref().is_none_or(|o| o.worker.is_none()) {
        for arg in unknown {
            let arg = one_line(&arg.to_string_lossy());
            log::complain(format_args!("{arg} is not known here and is passed over"));
        }
    }
    Ok(options)
}

/// The definition of the whole command line, for manual pages and shells' completions.
pub fn definition() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Runs the program. `args` begins with the name it was called by.
pub fn main(args: Vec<OsString>) -> ExitCode {
    if std::process::id() == 1 {
        // Whatever the kernel's command line left as arguments: there is one thing to do.
        return guest::run(&InitOptions::default());
    }
    match dispatch(args) {
        Ok(code) => code,
        Err(failure) => {
            log::complain(&failure);
            ExitCode::from(failure.status())
        }
    }
}

fn dispatch(args: Vec<OsString>) -> Result<ExitCode> {
    let name = args.first().map(Path::new).and_then(Path::file_name);
    if name == Some(OsStr::new("vchan-socket-proxy")) {
        let Some(options) = proxy_options(args)? else {
            return Ok(ExitCode::SUCCESS);
        };
        return proxy::run::run(&options).map(|()| ExitCode::SUCCESS);
    }
    if name == Some(OsStr::new("init")) {
        return Ok(guest::run(&InitOptions::default()));
    }
    if name.is_some_and(exec::is_device_model) {
        return exec::called(&args).map(|()| ExitCode::SUCCESS);
    }
    #[cfg(feature = "sim")]
    if name == Some(OsStr::new(crate::sim::fake_qemu::NAME)) {
        return crate::sim::fake_qemu::play(&args);
    }
    let command = args.get(1).and_then(|word| word.to_str());
    if command.is_some_and(services::Command::has_subcommand) {
        return match parse::<ServicesCli>(args)? {
            Some(cli) => services::run(cli.command),
            None => Ok(ExitCode::SUCCESS),
        };
    }
    let Some(cli) = parse::<Cli>(args)? else {
        return Ok(ExitCode::SUCCESS);
    };
    match cli.command {
        Command::Stubdomain(command) => stubdomain::run(&command),
        Command::Qmp(command) => qmp::run(&command),
        Command::Services(command) => services::run(command),
        Command::Consoled(command) => consoled::run(&command),
        Command::Tools(command) => tools::run(&command),
        #[cfg(feature = "sim")]
        Command::Sim(command) => sim::run(&command),
    }
}

/// Parses; `None` when help or the version was asked for and printed.
fn parse<P: Parser>(args: Vec<OsString>) -> Result<Option<P>> {
    let error = match P::try_parse_from(args) {
        Ok(parsed) => return Ok(Some(parsed)),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            Ok(None)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            Err(Failure::usage("a command is missing; see --help"))
        }
        _ => {
            let text = error.to_string();
            let what = text.split("\n\n").next().unwrap_or_default();
            let what = what.strip_prefix("error: ").unwrap_or(what);
            Err(Failure::usage(format_args!(
                "{}; see --help",
                one_line(what)
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
        ProxyCli::command().debug_assert();
        ServicesCli::command().debug_assert();
    }

    #[test]
    fn a_service_is_the_same_by_either_definition() {
        let whole = Cli::command();
        for mut service in ServicesCli::command().get_subcommands().cloned() {
            let name = service.get_name().to_owned();
            assert!(services::Command::has_subcommand(&name), "{name}");
            let mut same = whole.find_subcommand(&name).unwrap().clone();
            assert_eq!(
                service.render_long_help().to_string(),
                same.render_long_help().to_string()
            );
        }
        for other in ["status", "consoled2", "help", ""] {
            assert!(!services::Command::has_subcommand(other), "{other}");
        }
    }

    fn proxy(line: &str) -> Result<ProxyOptions> {
        let args = line.split(' ').map(OsString::from).collect();
        Ok(proxy_options(args)?.unwrap())
    }

    #[test]
    fn libxls_own_line_is_taken() {
        let options = proxy(
            "/usr/bin/vchan-socket-proxy --state-path=/local/domain/0/device-model/5/qmp-proxy-state \
             5 /local/domain/5/device-model/4/qmp-vchan /var/run/xen/qmp-libxl-4",
        )
        .unwrap();
        assert_eq!(options.domid, 5);
        assert_eq!(options.mode, proxy::options::Mode::Client);
        assert_eq!(options.socket, "/var/run/xen/qmp-libxl-4");
    }

    #[test]
    fn an_option_that_is_not_known_is_passed_over_with_its_value() {
        let plain = proxy("p -v --state-path=a/s 5 a/b /s").unwrap();
        for line in [
            "p -v --state-path=a/s --new 5 a/b /s",
            "p -v --new=7 --state-path=a/s 5 a/b /s --newer",
            "p --new 7 -v --state-path a/s 5 a/b /s",
            "p -v -x --state-path=a/s -y7 5 a/b /s",
            "p -v -x 7 --state-path=a/s --new -- 5 a/b /s",
            "p -v --s=7 --state-path=a/s 5 a/b /s",
        ] {
            let options = proxy(line).unwrap();
            assert_eq!(format!("{options:?}"), format!("{plain:?}"), "{line}");
        }
        assert!(proxy("p --new").is_err(), "operands are needed");
        let args = ["p", "--new", "--help"].map(OsString::from);
        assert!(proxy_options(args.to_vec()).unwrap().is_none());
        let strict = ["p", "vchan-socket-proxy", "--new", "5", "a/b", "/s"].map(OsString::from);
        assert_eq!(parse::<Cli>(strict.to_vec()).unwrap_err().status(), 2);
    }

    #[test]
    fn the_reconnect_marker_is_a_byte() {
        for line in ["p --reconnect-marker=1 5 a/b /s", "p -r 1 5 a/b /s"] {
            assert_eq!(proxy(line).unwrap().reconnect_marker, Some(1), "{line}");
        }
        for bad in ["256", "-1", "x"] {
            let line = format!("p --reconnect-marker={bad} 5 a/b /s");
            assert_eq!(proxy(&line).unwrap_err().status(), 2, "{line}");
        }
    }

    #[test]
    fn every_spelling_upstream_takes() {
        for line in [
            "p -m server 0 a/b -",
            "p --mode=server -v 0 a/b -",
            "p 0 a/b - -mserver",
        ] {
            assert_eq!(
                proxy(line).unwrap().mode,
                proxy::options::Mode::Server,
                "{line}"
            );
        }
        assert!(proxy("p --verb 0 a/b 5").unwrap().verbose, "abbreviated");
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        for line in [
            "p --bogus",
            "p",
            "p 1",
            "p x a b",
            "p 99999999 a b",
            "p -m both 1 a b",
        ] {
            let failure = proxy(line).unwrap_err();
            let text = failure.to_string();
            assert_eq!(failure.status(), 2, "{line}");
            assert!(!text.contains('\n') && text.len() > 20, "{line}: {text}");
        }
    }
}
