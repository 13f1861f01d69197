//! The other toolchains, nightly (which Miri and cargo-fuzz need) and the oldest supported one, and
//! the rule for a machine without them.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

/// A cargo command of the nightly toolchain, whichever toolchain runs this program.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    cargo_of("nightly", arguments)
}

/// A cargo command of another toolchain.
pub(crate) fn cargo_of(toolchain: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", toolchain, "cargo"]).args(arguments);
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

/// Returns whether the nightly cargo has `subcommand`. A stage without it prints `NOT RUN` and
/// passes.
///
/// # Errors
///
/// It has not, and the environment has `CI` as `true` or `1`: there the stage fails.
pub(crate) fn has(subcommand: &str, stage: &str, install: &str) -> Result<bool> {
    let missing = format!("{stage} NOT RUN: no nightly cargo-{subcommand}; type: {install}");
    found(cargo(&[subcommand, "--help"]), &missing)
}

/// Returns whether `command` succeeds. If not, `missing` is printed.
///
/// # Errors
///
/// It does not, and the environment has `CI` as `true` or `1`.
pub(crate) fn found(mut command: Command, missing: &str) -> Result<bool> {
    let found = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true" || ci == "1");
        ensure!(!ci, "{missing}");
        println!("{missing}");
    }
    Ok(found)
}
