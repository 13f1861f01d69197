//! `cargo xtask bench vchan`: ours and libxenvchan, both ends and mixed, in one run.
//!
//! The comparison itself is a program of the package `benches`; here the C side is made ready for
//! it: Debian's libraries unpacked, the C program built, the library that puts them on a simulated
//! host built.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::command::{cargo, succeed};
use crate::dist;
use crate::host::{self, Host, Job, Options};
use crate::progress::Step;
use crate::workspace::Workspace;

/// The requested run.
#[derive(Debug)]
pub(crate) struct Request {
    /// How the host is put together.
    pub(crate) options: Options,
    /// A glance.
    pub(crate) quick: bool,
    /// Instructions instead of times.
    pub(crate) instructions: bool,
    /// Only some cells.
    pub(crate) only: Option<String>,
    /// Where the results go.
    pub(crate) out: PathBuf,
    /// On real Xen too.
    pub(crate) xen: bool,
    /// How long the host may take.
    pub(crate) timeout: Duration,
}

/// The rows of real Xen, kept beside the document so that a later run without Xen can show them
/// again.
const XEN_ROWS: &str = "vchan-xen.jsonl";

/// Makes everything ready and runs the comparison.
pub(crate) fn run(workspace: &Workspace, request: &Request) -> Result<ExitCode> {
    let xen_rows = request.out.join(XEN_ROWS);
    if request.xen {
        on_xen(workspace, request, &xen_rows)?;
    }
    let (program, libraries) = c_side(workspace, &request.options)?;
    let step = Step::begin("building the comparison");
    let target = workspace.root().join("target");
    let mut build = cargo();
    build
        .args([
            "build",
            "--locked",
            "--release",
            "-p",
            "benches",
            "-p",
            "xen-sim-preload",
        ])
        .current_dir(workspace.root())
        .env("CARGO_TARGET_DIR", &target);
    succeed(build).context("building the comparison")?;
    step.done();
    let mut command = Command::new(target.join("release/vchan-compare"));
    command
        .arg("--c-program")
        .arg(program)
        .arg("--libraries")
        .arg(libraries)
        .arg("--preload")
        .arg(target.join("release/libxen_sim_preload.so"))
        .arg("--out")
        .arg(&request.out);
    if request.quick {
        command.arg("--quick");
    }
    if request.instructions {
        command.arg("--instructions");
    }
    if let Some(only) = &request.only {
        command.args(["--only", only]);
    }
    if xen_rows.is_file() {
        command.arg("--xen-rows").arg(&xen_rows);
    }
    let status = command.status().context("starting the comparison")?;
    ensure!(status.success(), "the comparison failed");
    Ok(ExitCode::SUCCESS)
}

/// Debian's libraries and our C program on them: the program, and the folder of the libraries.
fn c_side(workspace: &Workspace, options: &Options) -> Result<(PathBuf, PathBuf)> {
    let (tree, programs) = host::unpack(workspace, options.release, options.mirror.as_deref())?;
    let program = programs
        .into_iter()
        .find(|path| path.ends_with("c-vchan-bench"))
        .context("testing/c has no c-vchan-bench")?;
    Ok((program, tree.root.join("usr/lib/x86_64-linux-gnu")))
}

/// Runs the cells of real Xen in a fresh host and keeps their rows.
fn on_xen(workspace: &Workspace, request: &Request, to: &Path) -> Result<()> {
    let rows = rows(
        workspace,
        &request.options,
        "exec xen-testbed-agent bench",
        request.timeout,
    )?;
    fs::create_dir_all(&request.out)?;
    fs::write(to, rows.join("\n") + "\n").with_context(|| format!("writing {}", to.display()))
}

/// Returns the rows that a script prints in dom0 of a fresh host, with the programs as they are
/// shipped.
pub(crate) fn rows(
    workspace: &Workspace,
    options: &Options,
    script: &str,
    timeout: Duration,
) -> Result<Vec<String>> {
    if !options.no_build {
        dist::build_as_shipped(workspace)?;
    }
    let options = &Options {
        no_build: true,
        ..options.clone()
    };
    let host = Host::prepare(workspace, options)?;
    let job = Job {
        command: Some(script.to_owned()),
        shell: false,
        timeout,
        ..Job::default()
    };
    let mut text = Vec::new();
    let status = host.run(&job, &mut |bytes| {
        text.extend_from_slice(bytes);
        let mut err = std::io::stderr().lock();
        err.write_all(bytes)?;
        Ok(err.flush()?)
    })?;
    ensure!(
        status == 0,
        "the comparison on real Xen ended with status {status}"
    );
    let text = String::from_utf8_lossy(&text);
    let rows = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("row "))
        .map(str::to_owned);
    let rows: Vec<String> = rows.collect();
    ensure!(!rows.is_empty(), "the comparison on real Xen gave no rows");
    Ok(rows)
}

/// As [`rows`], each row a JSON value.
pub(crate) fn values(
    workspace: &Workspace,
    options: &Options,
    script: &str,
    timeout: Duration,
) -> Result<Vec<Value>> {
    let rows = rows(workspace, options, script, timeout)?;
    let values = rows.iter().map(|row| serde_json::from_str(row));
    values.collect::<Result<_, _>>().context("a row")
}

/// Prints a page and writes it into the folder.
pub(crate) fn write_page(out: &Path, name: &str, page: &str) -> Result<()> {
    println!("{page}");
    fs::create_dir_all(out)?;
    let path = out.join(name);
    fs::write(&path, page).with_context(|| format!("writing {}", path.display()))
}
