//! `cargo xtask bench dom0`: what a guest costs dom0, by many guests on simulated hosts.
//!
//! The measurement is a benchmark of the package stubdm, built as what is shipped but for the
//! simulated host in it.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::dist;
use crate::workspace::Workspace;

/// Runs it and writes `dom0.md` into the folder.
pub(crate) fn run(workspace: &Workspace, guests: u32, out: &Path) -> Result<ExitCode> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg("bench");
    dist::like_shipped(&mut command, workspace);
    command
        .args(["-p", "stubdm", "--features", "sim", "--bench", "dom0", "--"])
        .args(["--guests", &guests.to_string(), "--out"])
        .arg(workspace.root().join(out));
    let status = command.status().context("starting cargo")?;
    ensure!(status.success(), "the measurement failed");
    Ok(ExitCode::SUCCESS)
}
