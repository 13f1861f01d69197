//! The command line.
//!
//! Short options are those of the classic tools (`xenstore-ls -f -p`) where there is one.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use xen_store::{Perm, Store};
use xen_sys::Xen;

use crate::failure::{Failure, Outcome};

/// Read, write and watch Xen's store
#[derive(Debug, Parser)]
#[command(
    name = "xstore",
    version,
    infer_long_args = true,
    max_term_width = 100,
    after_help = "The store is that of this host. A link named xenstore-COMMAND is that command."
)]
pub(crate) struct Cli {
    /// Print one JSON object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// When to use colours; NO_COLOR switches them off too
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,
    /// Connect to this socket or device, in place of XENSTORED_PATH or this host's store
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Give the store this long to accept the connection and to answer a request, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value = "30")]
    #[arg(value_parser = seconds)]
    request_timeout: Duration,
    /// Accepted for the classic tools' sake: the socket is always tried first
    #[arg(short = 's', global = true, hide = true)]
    by_socket: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show nodes and everything below them, with values
    Ls(Ls),
    /// Print the names of nodes' children
    List(List),
    /// Print the values of nodes
    Read(Read),
    /// Set values; several of them in one transaction
    Write(Write),
    /// Remove nodes and everything below them, in one transaction
    Rm(Rm),
    /// Create nodes with empty values
    Mkdir(Paths),
    /// Set the permissions of a node: the owner's entry, then other domains'
    ///
    /// An entry is n (none), r (read), w (write) or b (both), and a domain's number. The first
    /// entry's domain owns the node; its letter is what every domain without an entry gets.
    #[command(verbatim_doc_comment)]
    Chmod(Chmod),
    /// Exit with status 0 if all nodes exist, 1 otherwise
    Exists(Paths),
    /// Print the path of each change at or below some paths, after the paths themselves
    Watch(Watch),
    /// Wait until a node exists, has a value, or is gone, and print its value
    Wait(Wait),
    /// Write a tree to standard output, to be imported again
    Export(Export),
    /// Write an exported tree into the store, in one transaction
    Import(Import),
    /// Show what differs between two trees; exit with status 1 if anything does
    Diff(Diff),
    /// Show which parts of the store change most
    Top(Top),
}

#[derive(Debug, Args)]
pub(crate) struct Paths {
    /// Nodes; a path without a leading slash begins at the caller's own domain
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Where to begin
    #[arg(value_name = "PATH", default_value = "/")]
    pub(crate) paths: Vec<String>,
    /// Print whole paths, one a line
    #[arg(short, long, alias = "flat")]
    pub(crate) full: bool,
    /// Print permissions too
    #[arg(short, long, alias = "prefix")]
    pub(crate) permissions: bool,
    /// Go this many levels down only
    #[arg(short, long, value_name = "LEVELS")]
    pub(crate) depth: Option<u32>,
    /// Read in a transaction: the nodes are of one moment
    #[arg(long, conflicts_with = "depth")]
    pub(crate) consistent: bool,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) nodes: Paths,
    /// Print whole paths
    #[arg(short, long)]
    pub(crate) prefix: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Read {
    #[command(flatten)]
    pub(crate) nodes: Paths,
    /// Print the path before each value
    #[arg(short, long)]
    pub(crate) prefix: bool,
    /// Print the bytes as they are, without escapes and newlines
    #[arg(short = 'R', long, conflicts_with = "json")]
    pub(crate) raw: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Write {
    /// Paths and values in turn; with --from one path; `--` before a value that begins with `-`
    #[arg(
        required = true,
        value_name = "PATH VALUE",
        allow_negative_numbers = true
    )]
    pub(crate) words: Vec<OsString>,
    /// Take backslashes in values as they are, not as escapes (\n, \t, \\, \xHH)
    #[arg(short = 'R', long)]
    pub(crate) raw: bool,
    /// Take the value from this file as it is; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Rm {
    #[command(flatten)]
    pub(crate) nodes: Paths,
    /// Remove the parents too that have neither a value nor other children
    #[arg(short, long)]
    pub(crate) tidy: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Chmod {
    /// The node
    #[arg(value_name = "PATH")]
    pub(crate) path: String,
    /// Entries: the owner's first, as `n0 r5`
    #[arg(required = true, value_name = "ENTRY", value_parser = permission)]
    pub(crate) entries: Vec<Perm>,
    /// Set those of everything below too
    #[arg(short, long)]
    pub(crate) recurse: bool,
    /// Set those of all parents too, but for `/`
    #[arg(short, long)]
    pub(crate) upto: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Watch {
    #[command(flatten)]
    pub(crate) nodes: Paths,
    /// End after this many lines
    #[arg(short, long, value_name = "COUNT")]
    pub(crate) number: Option<u64>,
    /// Print each node's value too
    #[arg(short, long)]
    pub(crate) values: bool,
    /// Print changes at most this many levels below only; needs Xen 4.21
    #[arg(short, long, value_name = "LEVELS")]
    pub(crate) depth: Option<u32>,
    /// End after so many seconds, with status 4 if --number lines were not reached
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// The node
    #[arg(value_name = "PATH")]
    pub(crate) path: String,
    /// Wait until its value is this one
    #[arg(value_name = "VALUE", allow_negative_numbers = true)]
    pub(crate) value: Option<OsString>,
    /// Wait until its value is another one
    #[arg(long, requires = "value")]
    pub(crate) not: bool,
    /// Wait until it is gone
    #[arg(short, long, conflicts_with = "value")]
    pub(crate) gone: bool,
    /// Give up after so many seconds, with status 4
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Where to begin
    #[arg(value_name = "PATH", default_value = "/")]
    pub(crate) path: String,
    /// Read in a transaction: the nodes are of one moment
    #[arg(long)]
    pub(crate) consistent: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// An exported tree; `-` is standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub(crate) file: PathBuf,
    /// Import below this path, in place of the one that was exported
    #[arg(long, value_name = "PATH")]
    pub(crate) at: Option<String>,
    /// Leave permissions as they are
    #[arg(long)]
    pub(crate) no_permissions: bool,
    /// Remove nodes there that the file does not have
    #[arg(long)]
    pub(crate) replace: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// A file that was exported, `-` for standard input, or store:PATH
    #[arg(value_name = "BEFORE")]
    pub(crate) before: OsString,
    /// The same [default: the store, at the path that was exported]
    #[arg(value_name = "AFTER")]
    pub(crate) after: Option<OsString>,
    /// Compare permissions too
    #[arg(short, long)]
    pub(crate) permissions: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Count changes at and below this path
    #[arg(value_name = "PATH", default_value = "/")]
    pub(crate) path: String,
    /// Show them after so many seconds each time
    #[arg(short, long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    pub(crate) interval: Duration,
    /// End after showing them so many times
    #[arg(short, long, value_name = "COUNT")]
    pub(crate) number: Option<u64>,
    /// Show so many lines each time at most
    #[arg(short, long, value_name = "LINES", default_value_t = 20)]
    pub(crate) lines: usize,
}

/// Reads a span of time: seconds, also as a fraction.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "not a span of time".to_owned())
}

fn permission(text: &str) -> Result<Perm, String> {
    text.parse()
        .map_err(|error: xen_store::Invalid| error.to_string())
}

/// The classic tools that are commands here.
const CLASSIC: [&str; 8] = [
    "chmod", "exists", "list", "ls", "read", "rm", "watch", "write",
];

/// Returns `xstore ls …` for `xenstore-ls …`, the name of a link to the program.
pub(crate) fn from_classic(mut args: Vec<OsString>) -> Vec<OsString> {
    let name = args.first().map(Path::new).and_then(Path::file_name);
    let command = name
        .and_then(OsStr::to_str)
        .and_then(|name| name.strip_prefix("xenstore-"))
        .filter(|command| CLASSIC.contains(command))
        .map(OsString::from);
    if let Some(command) = command {
        args.insert(1, command);
    }
    args
}

impl Cli {
    /// Connects to the store.
    pub(crate) fn open(&self) -> Outcome<Store> {
        let named = std::env::var_os("XENSTORED_PATH").map(PathBuf::from);
        let store = match self.socket.clone().or(named) {
            Some(path) => Store::connect_until(path, self.request_timeout),
            None => {
                let xen = Xen::open().map_err(|error| Failure::failed(error.to_string()))?;
                Store::open(&xen)
            }
        };
        let store = store.map_err(Failure::about("the store"))?;
        Ok(store.with_timeout(Some(self.request_timeout)))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_link_with_a_classic_name_is_that_command() {
        let args = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let from = |words: &[&str]| from_classic(args(words));
        assert_eq!(
            from(&["/usr/bin/xenstore-ls", "-f"]),
            args(&["/usr/bin/xenstore-ls", "ls", "-f"])
        );
        assert_eq!(
            from(&["xenstore-control", "x"]),
            args(&["xenstore-control", "x"])
        );
        assert_eq!(from(&["xstore", "ls"]), args(&["xstore", "ls"]));
        assert_eq!(from(&[]), args(&[]));
    }

    #[test]
    fn spans_of_time_are_numbers_that_are_not_negative() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["", "-1", "nan", "inf", "1e300", "5s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
