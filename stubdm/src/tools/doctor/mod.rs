//! `stubdm-run doctor`: examines a host and reports what is missing for guests with stubdomains,
//! and how to fix it.
//!
//! It only reads files, below a root that may be artificial: no device is opened and nothing is
//! changed. Each check prints one line: `ok`, `note` (works, with a remark) or `wrong` (does not
//! work; with what to do about it).

mod checks;
mod guests;
mod image;
mod pci;
mod services;
mod toolstack;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use stubdm_qmp::text::one_line;

use crate::rt::error::{Context, Result};

/// The command line.
#[derive(Args, Clone, Debug)]
pub struct DoctorOptions {
    /// Look at the host whose files are here
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// A stubdomain's ramdisk to look into, besides those that guests' configurations name
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, with a remark for the administrator.
    Note,
    /// It does not work.
    Wrong,
}

impl State {
    /// The word for it, in text and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Wrong => "wrong",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its subject, one word.
    pub name: &'static str,
    /// How it is.
    pub state: State,
    /// The finding.
    pub found: String,
    /// The remedy; empty if none is needed.
    pub mend: String,
}

/// Looks at everything.
pub fn examine(options: &DoctorOptions) -> Vec<Check> {
    checks::all(options)
}

/// Looks and prints; status 1 if something is wrong.
///
/// # Errors
/// There is no such root; the result cannot be printed.
pub fn run(options: &DoctorOptions) -> Result<ExitCode> {
    std::fs::read_dir(&options.root).context(options.root.display())?;
    let checks = examine(options);
    let wrong = checks.iter().filter(|c| c.state == State::Wrong).count();
    let text = match options.json {
        true => {
            let all = checks.iter().map(|check| {
                json!({
                    "name": check.name,
                    "state": check.state.word(),
                    "found": check.found,
                    "mend": check.mend,
                })
            });
            let value = json!({ "ok": wrong == 0, "checks": all.collect::<Vec<_>>() });
            stubdm_qmp::text::json(&value) + "\n"
        }
        false => table(&checks, wrong),
    };
    io::stdout()
        .write_all(text.as_bytes())
        .context("printing")?;
    Ok(match wrong {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn table(checks: &[Check], wrong: usize) -> String {
    let mut text = String::new();
    for check in checks {
        let (state, found) = (check.state.word(), one_line(&check.found));
        text += &format!("{state:<5}  {:<8}  {found}\n", check.name);
        if !check.mend.is_empty() {
            text += &format!("{:17}{}\n", "", one_line(&check.mend));
        }
    }
    text + &match wrong {
        0 => "guests with stubdomains can be started here\n".to_owned(),
        1 => "1 thing is wrong\n".to_owned(),
        more => format!("{more} things are wrong\n"),
    }
}
