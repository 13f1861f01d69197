//! `cargo xtask bench store`: the store's client beside libxenstore, on Debian's xenstored.
//!
//! The measurement is a benchmark of the package xen-stored-preload; here Debian's packages are
//! unpacked and the C program is built for it.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::host;
use crate::workspace::Workspace;

/// Runs it and writes `store.md` into the folder.
pub(crate) fn run(
    workspace: &Workspace,
    mirror: Option<&str>,
    only: Option<&str>,
    out: &Path,
) -> Result<ExitCode> {
    let root = host::unpack_default(workspace, mirror)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["bench", "--locked", "-p", "xen-stored-preload"])
        .args(["--features", "c-libraries", "--bench", "store", "--"])
        .current_dir(workspace.root())
        .env("CARGO_TARGET_DIR", workspace.root().join("target"))
        .env("XEN_C_ROOT", root);
    match only {
        // The page has all lines, or is not written.
        Some(only) => command.args(["--only", only]),
        None => command.arg("--out").arg(workspace.root().join(out)),
    };
    let status = command.status().context("starting cargo")?;
    ensure!(status.success(), "the comparison failed");
    Ok(ExitCode::SUCCESS)
}
