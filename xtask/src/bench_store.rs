//! `cargo xtask bench store`: the store's client beside libxenstore, on Debian's xenstored.
//!
//! Without Xen the measurement is a benchmark of the package xen-stored-preload; here Debian's
//! packages are unpacked and the C program is built for it. On Xen it is the agent's.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::bench;
use crate::host::{self, Options};
use crate::workspace::Workspace;

/// Runs it without Xen and writes `store.md` into the folder.
pub(crate) fn run(
    workspace: &Workspace,
    options: &Options,
    only: Option<&str>,
    rounds: usize,
    out: &Path,
) -> Result<ExitCode> {
    let root = host::unpack_default(workspace, options.mirror.as_deref())?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["bench", "--locked", "-p", "xen-stored-preload"])
        .args(["--features", "c-libraries", "--bench", "store", "--"])
        .current_dir(workspace.root())
        .env("CARGO_TARGET_DIR", workspace.root().join("target"))
        .env("XEN_C_ROOT", root)
        .args(["--rounds", &rounds.to_string()]);
    match only {
        // The page has all lines, or is not written.
        Some(only) => command.args(["--only", only]),
        None => command.arg("--out").arg(workspace.root().join(out)),
    };
    let status = command.status().context("starting cargo")?;
    ensure!(status.success(), "the comparison failed");
    Ok(ExitCode::SUCCESS)
}

/// Runs it in dom0 of a fresh host and writes `store-xen.md` into the folder.
pub(crate) fn run_on_xen(
    workspace: &Workspace,
    options: &Options,
    out: &Path,
    timeout: Duration,
) -> Result<ExitCode> {
    let rows = bench::rows(
        workspace,
        options,
        "exec xen-testbed-agent bench-store",
        timeout,
    )?;
    let release = options.release.name;
    let page = format!(
        "# The store's client on Xen, beside libxenstore\n\n\
         Written by `cargo xtask bench store --xen`. xenstored {release} in dom0 of Xen {release} in\n\
         QEMU, over its socket, five runs of a line, otherwise as [without Xen](store.md). The\n\
         machine's clock counts instructions, those of the kernel, of Xen and of xenstored included,\n\
         on all processors of dom0 in turn. \"others\" counts Xen's time too and takes no verdict.\n\
         \n{}\n",
        rows.join("\n")
    );
    bench::write_page(out, "store-xen.md", &page)?;
    Ok(ExitCode::SUCCESS)
}
