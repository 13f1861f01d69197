//! The nightly toolchain, which Miri and cargo-fuzz need, and the rule for a machine without it.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

/// A cargo command of the nightly toolchain, whichever toolchain runs this program.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "cargo"]).args(arguments);
    // The cargo that started this program has set some of these for its own toolchain.
    for variable in [
        "CARGO",
        "RUSTC",
        "RUSTDOC",
        "RUSTUP_TOOLCHAIN",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
    ] {
        command.env_remove(variable);
    }
    command
}

/// Whether the nightly cargo has `subcommand`. A stage without it prints `NOT RUN` and passes.
///
/// # Errors
///
/// It has not, and the environment has `CI` as `true` or `1`: there the stage fails.
pub(crate) fn has(subcommand: &str, stage: &str, install: &str) -> Result<bool> {
    let found = cargo(&[subcommand, "--help"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        let missing = format!("{stage} NOT RUN: no nightly cargo-{subcommand}; type: {install}");
        let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true" || ci == "1");
        ensure!(!ci, "{missing}");
        println!("{missing}");
    }
    Ok(found)
}
