//! `vchan-socket-proxy`'s command line.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::proxy::sandbox::Inherited;
use crate::service::claim::Resume;

/// Which end of the vchan this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Connect to a vchan for each client of the socket.
    Client,
    /// Offer a vchan, and connect to the socket for each of its clients.
    Server,
}

/// Whether QMP is filtered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Filtering {
    /// Only what the policy allows passes.
    On,
    /// All bytes pass unread, as with upstream's program: what a hostile stubdomain sends reaches
    /// the toolstack unchanged.
    Off,
    /// On for the client's end of a node named `qmp-vchan`, otherwise off.
    Auto,
}

/// Whether QMP is parsed in a process that can do nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sandboxing {
    /// In a process of its own without powers.
    On,
    /// In this one, with all the powers it was started with: for debugging.
    Off,
}

/// How many operands there are: DOMID, NODEPATH and the socket.
pub const OPERANDS: usize = 3;

/// The options and operands, as upstream's program takes them.
#[derive(Args, Clone, Debug)]
pub struct ProxyOptions {
    /// Which end of the vchan this is
    #[arg(short, long, value_enum, default_value = "client")]
    pub mode: Mode,
    /// Write "running" to this store path once clients can connect
    #[arg(short, long, value_name = "PATH")]
    pub state_path: Option<String>,
    /// In client mode, begin each vchan connection with the byte of this value; in server mode,
    /// take it for the beginning of a session. QubesOS's and OpenXT's libxl pass 1
    #[arg(short, long, value_name = "BYTE")]
    pub reconnect_marker: Option<u8>,
    /// Log every byte that passes to stderr
    #[arg(short, long)]
    pub verbose: bool,
    /// Let only QMP pass that the policy allows; off protects from nothing: all bytes pass unread
    /// both ways; auto is on for QMP in client mode
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    pub filter: Filtering,
    /// The policy, a TOML file, instead of /etc/stubdm/qmp-policy.toml or the built-in one
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// In client mode, parse what the domain sends in a process of its own that can do nothing
    /// else; off is for debugging
    #[arg(long, value_enum, value_name = "WHEN", default_value = "on")]
    pub sandbox: Sandboxing,
    /// The user, and group, of that process instead of 2013265920 plus DOMID
    #[arg(long, value_name = "UID", value_parser = clap::value_parser!(u32).range(1..=0xffff_fffe))]
    pub user: Option<u32>,
    /// The folder of the file that `stubdm-run status` reads, instead of /run/stubdm
    #[arg(long, value_name = "DIR")]
    pub counters: Option<PathBuf>,
    /// Go on where another one was killed
    #[arg(long, hide = true, value_name = "FD|-")]
    pub resume: Option<Resume>,
    /// Be that process
    #[arg(long, hide = true, value_name = "DESCRIPTORS")]
    pub worker: Option<Inherited>,
    /// The domain at the other end
    #[arg(value_name = "DOMID")]
    pub domid: u16,
    /// The store path of the vchan, absolute or relative to this domain's own
    #[arg(value_name = "NODEPATH")]
    pub node: String,
    /// A socket's path, the number of an open descriptor, or - for stdin and stdout
    #[arg(value_name = "SOCKET|FDNO|-")]
    pub socket: OsString,
}

/// The last operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Socket {
    /// A UNIX socket's path.
    Path(PathBuf),
    /// An inherited descriptor.
    Descriptor(RawFd),
    /// stdin and stdout.
    Stdio,
}

impl Socket {
    /// Reads the operand as upstream does: a number is never a path.
    pub fn parse(operand: &OsStr) -> Self {
        let text = operand.to_string_lossy();
        if text == "-" {
            Self::Stdio
        } else if let Ok(number) = text.parse() {
            Self::Descriptor(number)
        } else {
            Self::Path(operand.into())
        }
    }
}

/// Returns the arguments that `definition` has, and those that were taken out.
///
/// Each downstream libxl may add options to upstream's. Without an unknown option, a guest can
/// still be served; a proxy that ends serves nobody. `args` begins with the program's name. An
/// unknown option takes along the argument behind it only if there are more operands than
/// `operands` otherwise.
pub fn known_only(
    mut definition: clap::Command,
    args: Vec<OsString>,
    operands: usize,
) -> (Vec<OsString>, Vec<OsString>) {
    definition.build();
    let mut words = Vec::with_capacity(args.len());
    let mut args = args.into_iter();
    let mut is_value = true;
    while let Some(arg) = args.next() {
        let word = match is_value {
            true => Spelling::Known { value_next: false },
            false if arg == "--" => {
                words.push((arg, Spelling::Known { value_next: false }));
                words.extend(args.by_ref().map(|arg| (arg, Spelling::Operand)));
                break;
            }
            false => Spelling::of(&definition, &arg),
        };
        is_value = matches!(word, Spelling::Known { value_next: true });
        words.push((arg, word));
    }
    let given = words.iter().filter(|(_, word)| *word == Spelling::Operand);
    let mut surplus = given.count().saturating_sub(operands);
    let (mut kept, mut unknown) = (Vec::new(), Vec::new());
    let mut takes_next = false;
    for (arg, word) in words {
        let taken = takes_next && word == Spelling::Operand && surplus > 0;
        surplus -= usize::from(taken);
        takes_next = word == Spelling::Unknown && !arg.as_bytes().contains(&b'=');
        match taken || word == Spelling::Unknown {
            true => unknown.push(arg),
            false => kept.push(arg),
        }
    }
    (kept, unknown)
}

/// The kind of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// An option, the value of one, or the program's name.
    Known {
        value_next: bool,
    },
    Unknown,
    Operand,
}

impl Spelling {
    fn of(definition: &clap::Command, arg: &OsStr) -> Self {
        let bytes = arg.as_bytes();
        let known = |option: &clap::Arg, has_value: bool| Self::Known {
            value_next: option.get_action().takes_values() && !has_value,
        };
        if let Some(long) = bytes.strip_prefix(b"--") {
            let name = long.split(|&b| b == b'=').next().unwrap_or_default();
            let options = definition.get_arguments().filter_map(|option| {
                let own = option.get_long()?.as_bytes();
                own.starts_with(name).then_some((own == name, option))
            });
            let options: Vec<_> = options.collect();
            let exact = options.iter().find(|(exact, _)| *exact);
            return match (exact, options.as_slice()) {
                (Some((_, option)), _) | (None, [(_, option)]) => {
                    known(option, name.len() < long.len())
                }
                _ => Self::Unknown,
            };
        }
        let Some(letters) = bytes.strip_prefix(b"-").filter(|rest| !rest.is_empty()) else {
            return Self::Operand;
        };
        for (at, &letter) in letters.iter().enumerate() {
            let mut options = definition.get_arguments();
            let Some(option) = options.find(|o| o.get_short() == Some(char::from(letter))) else {
                return Self::Unknown;
            };
            if option.get_action().takes_values() {
                return known(option, at + 1 < letters.len());
            }
        }
        Self::Known { value_next: false }
    }
}

/// Returns whether `path` can be a store path at all; the store itself has the last word.
pub fn is_store_path(path: &str) -> bool {
    let limit = if path.starts_with('/') { 3072 } else { 2048 };
    let trimmed = path.strip_prefix('/').unwrap_or(path);
    !trimmed.is_empty()
        && path.len() < limit
        && trimmed.split('/').all(|part| {
            let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'@' | b':');
            !part.is_empty() && part.bytes().all(ok)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_operand_is_distinguished_as_upstream_does() {
        assert_eq!(Socket::parse(OsStr::new("-")), Socket::Stdio);
        assert_eq!(Socket::parse(OsStr::new("7")), Socket::Descriptor(7));
        assert_eq!(
            Socket::parse(OsStr::new("/run/s")),
            Socket::Path("/run/s".into())
        );
        assert_eq!(Socket::parse(OsStr::new("7a")), Socket::Path("7a".into()));
    }

    #[test]
    fn store_paths() {
        for good in [
            "/local/domain/3/device-model/2/qmp-vchan",
            "device-model/2/qmp-vchan",
            "a",
        ] {
            assert!(is_store_path(good), "{good}");
        }
        for bad in ["", "/", "//a", "a//b", "a/", "a b", "a\n", "é", "a.b"] {
            assert!(!is_store_path(bad), "{bad:?}");
        }
    }
}
