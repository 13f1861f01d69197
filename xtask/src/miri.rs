//! The gate's stage "Miri": the in-memory parts of all crates under the interpreter that knows the
//! language's rules, so that a data race, an access outside of an allocation or a wrong reference is a
//! failure and not a chance.
//!
//! It runs what makes no system call beyond clocks and files: rings on heap memory, protocol cores,
//! parsers. Random tests run a few cases only, which `PROPTEST_CASES` and `cfg(miri)` say.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::workspace::Workspace;

/// Tests of one package.
struct Part {
    package: &'static str,
    /// Which of its test targets, and which tests in them.
    arguments: &'static [&'static str],
    /// Schedules to be tried; 1 but for tests with threads.
    seeds: u32,
}

const PARTS: &[Part] = &[
    // Two threads over one page: the cursors order every copy, under each schedule.
    Part {
        package: "xen-vchan",
        arguments: &["--test", "model", "--", "two_threads"],
        seeds: 8,
    },
    Part {
        package: "xen-vchan",
        arguments: &["--test", "model", "--", "reaching", "a_run_ends"],
        seeds: 1,
    },
    Part {
        package: "xen-gnttab",
        arguments: &["--lib", "--test", "region"],
        seeds: 1,
    },
];

/// The environment variable that a machine which only runs gates has set.
const CI: &str = "CI";

/// Runs everything; the first fault ends it.
///
/// Without Miri the stage says so and passes, but for a machine that runs gates: there it fails.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    if !installed(workspace) {
        let wanted = "rustup component add miri rust-src --toolchain nightly";
        if std::env::var_os(CI).is_some_and(|ci| ci == "true") {
            bail!("Miri is not installed: {wanted}");
        }
        println!("NOT RUN: Miri is not installed ({wanted})");
        return Ok(());
    }
    for part in PARTS {
        run(workspace, part)?;
    }
    Ok(())
}

/// A cargo of the nightly toolchain. That of this process has set variables which name its own.
fn cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new("cargo");
    command
        .arg("+nightly")
        .env_remove("CARGO")
        .env_remove("RUSTC")
        .env_remove("RUSTDOC")
        .env_remove("RUSTUP_TOOLCHAIN")
        .current_dir(workspace.root());
    command
}

fn installed(workspace: &Workspace) -> bool {
    let version = cargo(workspace)
        .args(["miri", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    version.is_ok_and(|status| status.success())
}

fn run(workspace: &Workspace, part: &Part) -> Result<()> {
    // The clock and the environment are the machine's; proptest asks for both.
    let mut flags = String::from("-Zmiri-disable-isolation");
    if part.seeds > 1 {
        flags += &format!(" -Zmiri-many-seeds=0..{}", part.seeds);
    }
    println!("{} {}", part.package, part.arguments.join(" "));
    let status = cargo(workspace)
        .args(["miri", "test", "--quiet", "--locked", "-p", part.package])
        .args(part.arguments)
        .env("MIRIFLAGS", flags)
        .env("PROPTEST_CASES", "4")
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true")
        .env("CARGO_TARGET_DIR", workspace.root().join("target/miri"))
        .status()
        .context("starting cargo miri")?;
    ensure!(status.success(), "Miri: {} failed", part.package);
    Ok(())
}
