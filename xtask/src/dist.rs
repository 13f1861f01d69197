//! The static binaries: what is shipped (`stubdm-run`) and what the testbed runs in its guests.
//!
//! The C library's static form is used with the ordinary target, so that nothing but libc6-dev is
//! needed. Naming the target keeps the flags away from build scripts and procedural macros.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use stubdm_image::elf;

use crate::command::{cargo, succeed};
use crate::publish::cargo_home;
use crate::release::Arch;
use crate::workspace::Workspace;

/// Packages and the binaries they make.
const BINARIES: &[(&str, &str)] = &[("stubdm", STUBDM_RUN), ("xen-testbed-agent", AGENT)];

/// The binary that is shipped.
pub(crate) const STUBDM_RUN: &str = "stubdm-run";
/// The binary that runs the tests inside the guests.
pub(crate) const AGENT: &str = "xen-testbed-agent";

/// The tools of the package `xen-rust-tools`: their packages, kinds and names. An example is built
/// with its package's development dependencies, which must not bring the simulated host.
pub(crate) const TOOLS: &[(&str, &str, &str)] = &[
    ("xen-store-tool", "--bin", "xstore"),
    ("xen-interface", "--example", "xen-console-ring"),
    ("xen-interface", "--example", "xen-list"),
    ("xen-interface", "--example", "xen-top"),
];

/// Returns the target that programs for an architecture are built for. That of arm64 brings its own
/// C library.
fn target(arch: Arch) -> &'static str {
    match arch {
        Arch::Amd64 => "x86_64-unknown-linux-gnu",
        Arch::Arm64 => "aarch64-unknown-linux-musl",
    }
}

/// Settings of the profile `dist` for the agent where nothing is measured with it: its fat link
/// takes one processor longer than the compiler takes for the rest of it.
const AGENT_PROFILE: &[(&str, &str)] = &[
    ("CARGO_PROFILE_DIST_LTO", "off"),
    ("CARGO_PROFILE_DIST_CODEGEN_UNITS", "16"),
];

/// Returns the compiler's flags, as cargo takes them from the environment.
///
/// The machine's C library must offer a static form; the program is position independent all the
/// same, so that the kernel may put it anywhere. The names of sources in it are those below the
/// workspace, or below the registry's sources: they are the same on every machine.
fn flags(workspace: &Workspace) -> OsString {
    let registry = cargo_home().join("registry/src");
    let mut flags = OsString::from("-C\x1ftarget-feature=+crt-static");
    for (from, to) in [(workspace.root(), "."), (&registry, "registry")] {
        flags.push("\x1f--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    flags
}

/// Returns where a binary is once built.
pub(crate) fn path(workspace: &Workspace, name: &str) -> PathBuf {
    path_on(workspace, Arch::Amd64, name)
}

/// Returns where a binary for an architecture is once built.
pub(crate) fn path_on(workspace: &Workspace, arch: Arch, name: &str) -> PathBuf {
    workspace.dist().join(target(arch)).join("dist").join(name)
}

/// Builds every static binary and checks that each is what it must be. The agent, which is not
/// shipped, is built in less time.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    build_with(workspace, BINARIES, &[], AGENT_PROFILE)
}

/// Builds the agent for 64-bit Arm.
pub(crate) fn build_for_arm64(workspace: &Workspace) -> Result<()> {
    add_target(target(Arch::Arm64))?;
    let mut command = cargo();
    command.envs(AGENT_PROFILE.iter().copied()).arg("build");
    like_shipped_on(&mut command, workspace, Arch::Arm64);
    command.args(["-p", "xen-testbed-agent"]);
    succeed(command).with_context(|| format!("building {AGENT} for arm64"))?;
    check_static_on(&path_on(workspace, Arch::Arm64, AGENT), Arch::Arm64)
}

/// Has rustup add the standard library for a target, if it is missing.
fn add_target(target: &str) -> Result<()> {
    let mut command = Command::new("rustc");
    let found = command
        .args(["--print", "target-libdir", "--target", target])
        .output()
        .context("starting rustc")?;
    let folder = String::from_utf8_lossy(&found.stdout);
    if Path::new(folder.trim()).is_dir() {
        return Ok(());
    }
    let mut command = Command::new("rustup");
    command.args(["target", "add", target]);
    succeed(command).with_context(|| format!("adding the standard library for {target}"))
}

/// Builds only what is shipped.
pub(crate) fn build_shipped(workspace: &Workspace) -> Result<()> {
    build_with(workspace, &BINARIES[..1], &[], &[])
}

/// Builds the tools of the package `xen-rust-tools` for an architecture, and returns their files in
/// the order of [`TOOLS`].
pub(crate) fn build_tools(workspace: &Workspace, arch: Arch) -> Result<Vec<PathBuf>> {
    if arch != Arch::Amd64 {
        add_target(target(arch))?;
    }
    let mut files = Vec::new();
    for (package, kind, name) in TOOLS {
        let mut command = cargo();
        command.arg("build");
        like_shipped_on(&mut command, workspace, arch);
        command.args(["-p", package, kind, name]);
        succeed(command)?;
        let file = match *kind {
            "--example" => path_on(workspace, arch, "examples").join(name),
            _ => path_on(workspace, arch, name),
        };
        check_static_on(&file, arch)?;
        check_shipped(&file)?;
        files.push(file);
    }
    Ok(files)
}

/// The setting of the profile `dist` for the agent where it measures the libraries: that of a
/// program that is built for speed.
const MEASURED: &[(&str, &str)] = &[("CARGO_PROFILE_DIST_OPT_LEVEL", "3")];

/// As [`build`], all of them as they are shipped, for measurements: without what the environment
/// sets in the profile to make builds quicker.
pub(crate) fn build_as_shipped(workspace: &Workspace) -> Result<()> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let profile: Vec<String> = names
        .filter(|name| name.starts_with("CARGO_PROFILE_DIST_") || name == "CARGO_INCREMENTAL")
        .collect();
    build_with(workspace, BINARIES, &profile, MEASURED)
}

/// Builds binaries without the variables `without` of the environment, and the agent with the
/// variables `agent`.
fn build_with(
    workspace: &Workspace,
    binaries: &[(&str, &str)],
    without: &[String],
    agent: &[(&str, &str)],
) -> Result<()> {
    for (package, name) in binaries {
        // Each on its own: built together, what one asks of a library would be in the other as
        // well.
        let mut command = cargo();
        without.iter().for_each(|name| {
            command.env_remove(name);
        });
        if *name == AGENT {
            command.envs(agent.iter().copied());
        }
        command.arg("build");
        like_shipped(&mut command, workspace);
        command.args(["-p", package]);
        succeed(command).with_context(|| format!("building {name}"))?;
        check_static(&path(workspace, name))?;
    }
    check_shipped(&path(workspace, STUBDM_RUN))
}

/// Adds the arguments and the environment of shipped programs to a command of cargo, which gets
/// those that choose a package after them.
pub(crate) fn like_shipped(command: &mut Command, workspace: &Workspace) {
    like_shipped_on(command, workspace, Arch::Amd64);
}

/// Does the same for programs of an architecture. Those of arm64 are linked by Rust's own linker,
/// so that no cross compiler is needed.
fn like_shipped_on(command: &mut Command, workspace: &Workspace, arch: Arch) {
    let mut flags = flags(workspace);
    if arch == Arch::Arm64 {
        flags.push("\x1f-C\x1flinker=rust-lld");
    }
    command
        .args(["--locked", "--profile", "dist", "--target", target(arch)])
        .current_dir(workspace.root())
        .env("CARGO_TARGET_DIR", workspace.dist())
        .env("CARGO_ENCODED_RUSTFLAGS", flags);
}

/// Fails if what is shipped has anything of the simulated host or of the store daemon in it: no
/// release may be led to a hypervisor that is none.
fn check_shipped(file: &Path) -> Result<()> {
    let program = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    // Parts of these libraries' source names, which a program contains for its panics.
    for part in ["xen-sys/src/sim", "xen-store/server/src"] {
        ensure!(
            !program.windows(part.len()).any(|at| at == part.as_bytes()),
            "{} contains {part}, which is for tests",
            file.display()
        );
    }
    Ok(())
}

/// Fails unless a file is an ELF program that needs neither an interpreter nor a library, and that
/// may be put anywhere.
fn check_static(file: &Path) -> Result<()> {
    ensure!(
        is_static(file)?,
        "{} is not position-independent: the kernel cannot randomise its addresses",
        file.display()
    );
    Ok(())
}

/// Does the same for a program of an architecture. Rust's target for arm64 makes static programs
/// that lie where they were linked.
fn check_static_on(file: &Path, arch: Arch) -> Result<()> {
    match arch {
        Arch::Amd64 => check_static(file),
        Arch::Arm64 => is_static(file).map(drop),
    }
}

/// Fails unless a file is an ELF program that needs neither an interpreter nor a library. Returns
/// whether it may be put anywhere.
fn is_static(file: &Path) -> Result<bool> {
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
    Ok(needs.anywhere)
}

/// Prints the place and size of each binary, and fails if one is not static.
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
