//! The command line.

use std::error::Error as StdError;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use xen_sys::DomId;

use crate::Outcome;

pub(crate) const USAGE: &str = "\
usage: vcat [--sim DIR] listen  DOMID [WHERE] [--rings LEFT RIGHT] [--keep] [--close SECONDS] [--exec CMD ARG...]
       vcat [--sim DIR] connect DOMID [WHERE] [--wait SECONDS] [--close SECONDS] [--exec CMD ARG...]
       vcat sim-host DIR
       vcat sim CMD [ARG...]
WHERE: a path in the store, or a name for /local/domain/SERVER/data/vchan/CLIENT/NAME";

#[derive(Default)]
pub(crate) struct Args {
    pub(crate) sim: Option<PathBuf>,
    pub(crate) role: String,
    pub(crate) peer: Option<DomId>,
    pub(crate) path: String,
    pub(crate) rings: (usize, usize),
    pub(crate) keep: bool,
    /// Silence after the end of stdin.
    pub(crate) close: Option<Duration>,
    pub(crate) wait: Option<u64>,
    pub(crate) exec: Vec<String>,
}

impl Args {
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut words = words;
        let mut next = |what: &str| words.next().ok_or(format!("{what} is missing"));
        let mut args = Self {
            role: next("a role")?,
            ..Self::default()
        };
        if args.role == "--sim" {
            args.sim = Some(next("the host's directory")?.into());
            args.role = next("a role")?;
        }
        match args.role.as_str() {
            "-h" | "--help" | "help" => return Ok(args),
            "sim-host" => {
                args.path = next("the host's directory")?;
                return Ok(args);
            }
            "sim" => {
                args.exec.push(next("a command")?);
                args.exec.extend(words);
                return Ok(args);
            }
            "listen" | "connect" => {}
            other => return Err(format!("{other:?} is no role").into()),
        }
        let listens = args.role == "listen";
        args.peer = Some(number("DOMID", &next("the peer's domain id")?)?);
        while let Ok(word) = next("") {
            match word.as_str() {
                _ if args.path.is_empty() && !word.starts_with("--") => args.path = word,
                "--keep" if listens => args.keep = true,
                "--close" => {
                    let seconds = number(&word, &next("the number of seconds")?)?;
                    let close = Duration::try_from_secs_f64(seconds);
                    args.close = Some(close.map_err(|error| format!("--close: {error}"))?);
                }
                "--wait" if !listens => {
                    args.wait = Some(number(&word, &next("the number of seconds")?)?);
                }
                "--rings" if listens => {
                    let left = number(&word, &next("LEFT of --rings")?)?;
                    args.rings = (left, number(&word, &next("RIGHT of --rings")?)?);
                }
                "--exec" => {
                    args.exec.push(next("a command")?);
                    while let Ok(word) = next("") {
                        args.exec.push(word);
                    }
                }
                _ => return Err(format!("{word:?} is no option of {}", args.role).into()),
            }
        }
        Ok(args)
    }
}

fn number<T: FromStr<Err: StdError>>(what: &str, word: &str) -> Outcome<T> {
    let number = word.parse();
    number.map_err(|error| format!("{what}: {word:?}: {error}").into())
}
