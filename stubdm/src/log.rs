//! Log lines on stderr, one line each, whatever is in them.
//!
//! On the host stderr is libxl's log file for the proxy. In the stubdomain the init points it at
//! the domain's console, which the toolstack keeps as the guest's device-model log.

use std::io::{self, Write};

use tracing::Level;

/// A stderr that never fails and never panics: a log that cannot be written is no reason to stop.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends the log to stderr: everything if `verbose`, otherwise what a person wants to know.
/// A second call changes nothing.
pub fn to_stderr(verbose: bool) {
    let level = if verbose { Level::DEBUG } else { Level::INFO };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(false)
        .with_writer(|| Stderr)
        .finish();
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// As [`to_stderr`], with the seconds since the start instead of the date: the stubdomain has no
/// clock worth showing.
pub fn to_console(verbose: bool) {
    let level = if verbose { Level::DEBUG } else { Level::INFO };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(false)
        .with_timer(tracing_subscriber::fmt::time::uptime())
        .with_writer(|| Stderr)
        .finish();
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// One line on stderr for the person who typed the command.
pub fn complain(line: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "stubdm-run: {line}");
}
