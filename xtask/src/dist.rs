//! The static binaries: what is shipped (`stubdm-run`) and what the testbed runs in its guests.
//!
//! The C library's static form is used with the ordinary target, so that nothing but libc6-dev is needed. Naming the
//! target keeps the flags away from build scripts and procedural macros.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::elf;
use crate::workspace::Workspace;

/// Packages and the binaries they make.
const BINARIES: &[(&str, &str)] = &[("stubdm", STUBDM_RUN), ("xen-testbed-agent", AGENT)];

/// The binary that is shipped.
pub(crate) const STUBDM_RUN: &str = "stubdm-run";
/// The binary that runs the tests inside the guests.
pub(crate) const AGENT: &str = "xen-testbed-agent";

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The machine's C library and the linker must offer a static form; these flags ask for it, at a fixed address.
const FLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// Where a binary is once built.
pub(crate) fn path(workspace: &Workspace, name: &str) -> PathBuf {
    workspace.dist().join(TARGET).join("dist").join(name)
}

/// Builds every static binary and checks that each is what it must be.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--locked", "--profile", "dist", "--target", TARGET])
        .current_dir(workspace.root())
        .env("CARGO_TARGET_DIR", workspace.dist())
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    for (package, _) in BINARIES {
        command.args(["-p", package]);
    }
    let status = command.status().context("starting cargo")?;
    ensure!(status.success(), "the static binaries do not build");
    for (_, name) in BINARIES {
        check_static(&path(workspace, name))?;
    }
    Ok(())
}

/// Fails unless a file is an ELF program that needs neither an interpreter nor a library.
fn check_static(file: &Path) -> Result<()> {
    let Some(needs) = elf::needs(file)? else {
        bail!("{} is no ELF file", file.display())
    };
    if let Some(interpreter) = needs.interpreter {
        bail!(
            "{} is not static: it asks for {interpreter}",
            file.display()
        );
    }
    ensure!(
        needs.libraries.is_empty(),
        "{} is not static: it needs {}",
        file.display(),
        needs.libraries.join(", ")
    );
    Ok(())
}

/// Says what was built, how large it is, and that it is static.
pub(crate) fn report(workspace: &Workspace) -> Result<()> {
    for (_, name) in BINARIES {
        let file = path(workspace, name);
        check_static(&file)?;
        let size = fs::metadata(&file)?.len();
        println!(
            "{}: static, {:.1} MiB",
            Workspace::show(&file),
            size as f64 / 1_048_576.0
        );
    }
    Ok(())
}
