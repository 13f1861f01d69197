//! `cargo xtask bench dom0`: what a guest costs dom0, by many guests on simulated hosts.
//!
//! The measurement is a benchmark of the package stubdm, built as the shipped program is, except
//! for the simulated host in it.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::command::{cargo, succeed};
use crate::dist;
use crate::workspace::Workspace;

/// Runs the measurement and writes `dom0.md` into the folder.
pub(crate) fn run(workspace: &Workspace, guests: u32, out: &Path) -> Result<ExitCode> {
    let mut command = cargo();
    command.arg("bench");
    dist::like_shipped(&mut command, workspace);
    command
        .args(["-p", "stubdm", "--features", "sim", "--bench", "dom0", "--"])
        .args(["--guests", &guests.to_string(), "--out"])
        .arg(workspace.root().join(out));
    succeed(command).context("the measurement")?;
    Ok(ExitCode::SUCCESS)
}
