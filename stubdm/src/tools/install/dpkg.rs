//! dpkg's diversions: a package's file gets another name, now and whenever the package is upgraded
//! (`dpkg-divert(1)`).

use std::env;
use std::process::Command;

use super::root::Root;
use crate::rt::error::{Context, Failure, Result};

/// The suffix of a file that is put aside, by dpkg's own habit.
pub(super) const SUFFIX: &str = ".distrib";

/// dpkg's list: three lines for each, the path, the other path, and the package or `:`.
const DIVERSIONS: &str = "/var/lib/dpkg/diversions";

/// The folder of `dpkg`'s database.
const DATABASE: &str = "/var/lib/dpkg";

/// One diversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Diversion {
    pub(super) place: String,
    pub(super) to: String,
    /// The package whose own file stays; `None` for a diversion an administrator made.
    pub(super) package: Option<String>,
}

/// Returns whether there is dpkg below the root; an error where it is and cannot be used.
pub(super) fn is_there(root: &Root) -> Result<bool> {
    if !root.is_folder(DATABASE) {
        return Ok(false);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    match env::split_paths(&path).any(|dir| dir.join("dpkg-divert").is_file()) {
        true => Ok(true),
        false => Err(Failure::new(format_args!(
            "{} is there but no dpkg-divert is; --rename moves files aside without it",
            root.real(DATABASE).display()
        ))),
    }
}

/// Every diversion below the root.
pub(super) fn diversions(root: &Root) -> Vec<Diversion> {
    let text = root.read(DIVERSIONS).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines
        .chunks_exact(3)
        .map(|three| Diversion {
            place: three[0].to_owned(),
            to: three[1].to_owned(),
            package: Some(three[2].to_owned()).filter(|name| name != ":"),
        })
        .collect()
}

/// The package whose maintainer script runs this program, if one does (`dpkg(1)`).
pub(super) fn calling_package() -> Option<String> {
    env::var("DPKG_MAINTSCRIPT_PACKAGE")
        .ok()
        .filter(|name| !name.is_empty())
}

/// `dpkg-divert`'s arguments that make a diversion, or take it back.
pub(super) fn arguments(root: &Root, verb: &str, diversion: &Diversion) -> Vec<String> {
    let mut all = Vec::new();
    if !root.is_own() {
        all.extend(["--root".to_owned(), root.dir().display().to_string()]);
    }
    match &diversion.package {
        Some(name) => all.extend(["--package".to_owned(), name.clone()]),
        None => all.push("--local".to_owned()),
    }
    all.extend(["--rename", "--divert"].map(str::to_owned));
    all.push(diversion.to.clone());
    all.extend([verb.to_owned(), diversion.place.clone()]);
    all
}

/// Runs `dpkg-divert`.
pub(super) fn divert(arguments: &[String]) -> Result<()> {
    let mut command = Command::new("dpkg-divert");
    // The root is in the arguments, whatever a maintainer script was given.
    command
        .args(arguments)
        .env_remove("DPKG_ROOT")
        .env("LC_ALL", "C.UTF-8");
    let out = command.output().context("dpkg-divert")?;
    if out.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(Failure::new(format_args!(
        "dpkg-divert {}: {}",
        arguments.join(" "),
        said.trim()
    )))
}
