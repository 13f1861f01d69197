//! `cargo xtask ci`: every check there is, the cheap ones first.

use std::process::{Command, ExitCode};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::host::{self, Options};
use crate::workspace::Workspace;
use crate::{api, demo, dist, fuzz, miri, nightly, tests_cmd, tidy};

/// One cargo command of the gate.
struct Check {
    name: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

/// The checks that come first.
const LINTS: &[Check] = &[
    Check {
        name: "formatting",
        arguments: &["fmt", "--all", "--check"],
        environment: &[],
    },
    Check {
        name: "clippy",
        arguments: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--",
            "-D",
            "warnings",
        ],
        environment: &[],
    },
    // Without the features: what is shipped is built so.
    Check {
        name: "clippy, no features",
        arguments: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
        environment: &[],
    },
];

/// The checks that run beside the static binaries' build, the demo and the fuzz targets.
const OTHERS: &[Check] = &[
    // The store's client and the types; the devices' requests are Linux's.
    Check {
        name: "FreeBSD",
        arguments: &[
            "check",
            "-p",
            "xen-sys",
            "-p",
            "xen-evtchn",
            "-p",
            "xen-gnttab",
            "-p",
            "xen-store",
            "--target",
            "x86_64-unknown-freebsd",
        ],
        environment: &[("RUSTFLAGS", "-D warnings")],
    },
    Check {
        name: "arm64",
        arguments: &[
            "check",
            "-p",
            "xen-sys",
            "-p",
            "xen-evtchn",
            "-p",
            "xen-gnttab",
            "-p",
            "xen-store",
            "-p",
            "xen-vchan",
            "--all-features",
            "--target",
            "aarch64-unknown-linux-gnu",
        ],
        environment: &[("RUSTFLAGS", "-D warnings")],
    },
    Check {
        name: "documentation",
        arguments: &["doc", "--workspace", "--all-features", "--no-deps"],
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
    },
];

/// The oldest compiler that the libraries support: the workspace's `rust-version`.
const OLDEST: &str = "1.85.0";
/// The libraries for Xen, which are compiled with [`OLDEST`].
const LIBRARIES: &[&str] = &[
    "xen-sys",
    "xen-evtchn",
    "xen-gnttab",
    "xen-store",
    "xen-store-server",
    "xen-vchan",
];
/// The systems that they are compiled for with it.
const SYSTEMS: &[&str] = &[
    "x86_64-unknown-linux-musl",
    "aarch64-unknown-linux-musl",
    "i686-unknown-linux-gnu",
    "riscv64gc-unknown-linux-gnu",
];

/// Runs everything; the first fault ends it, and what runs beside it ends first.
pub(crate) fn run(workspace: &Workspace, options: &Options, skip_tests: bool) -> Result<ExitCode> {
    stage("inventories", || tidy::check(workspace))?;
    let minutes = |m: u64| Duration::from_secs(m * 60);
    let (binaries, others) = thread::scope(|scope| {
        // It waits for the network most of the time.
        let packages = scope.spawn(move || {
            stage("Debian's packages", || {
                host::prepare_packages(workspace, options)
            })
        });
        let lints = LINTS
            .iter()
            .try_for_each(|check| run_check(workspace, check));
        if lints.is_err() {
            return (joined(packages), lints);
        }
        // The optimiser's last pass and the demo's machine take one processor each; the compilers
        // of the others and the interpreter have the other one.
        let binaries = scope.spawn(move || {
            stage("static binaries", || {
                dist::build(workspace)?;
                dist::report(workspace)
            })?;
            joined(packages)?;
            let packages = scope.spawn(move || {
                stage("Debian's packages for the tests", || {
                    host::prepare_for_tests(workspace, options)
                })
            });
            stage("demo", || {
                let code = demo::run(workspace, options, minutes(10))?;
                ensure!(code == ExitCode::SUCCESS, "the demo did not see everything");
                Ok(())
            })?;
            stage("fuzz targets", || {
                let code = fuzz::run(workspace, fuzz::GATE, None)?;
                ensure!(code == ExitCode::SUCCESS, "a fuzz target found something");
                Ok(())
            })?;
            joined(packages)
        });
        let others = OTHERS
            .iter()
            .try_for_each(|check| run_check(workspace, check))
            .and_then(|()| stage("oldest compiler, other systems", || oldest(workspace)))
            .and_then(|()| stage("public APIs", || api::check(workspace)))
            .and_then(|()| stage("Miri", || miri::check(workspace)));
        (joined(binaries), others)
    });
    both(binaries, others)?;
    if skip_tests {
        println!("\nThe tests were NOT RUN (--skip-tests).");
        return Ok(ExitCode::SUCCESS);
    }
    tests_cmd::run(
        workspace,
        &tests_cmd::Request {
            options: options.clone(),
            only: Vec::new(),
            other_release: true,
            no_xen: false,
            no_cargo: false,
            timeout: minutes(40),
        },
    )
}

fn run_check(workspace: &Workspace, check: &Check) -> Result<()> {
    stage(check.name, || {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(check.arguments)
            .envs(check.environment.iter().copied())
            .current_dir(workspace.root())
            .status()
            .context("starting cargo")?;
        ensure!(
            status.success(),
            "cargo {} failed",
            check.arguments.join(" ")
        );
        Ok(())
    })
}

/// Compiles the [`LIBRARIES`] for each of [`SYSTEMS`] with the [`OLDEST`] compiler. Without it the
/// stage passes, except where `CI` is set: see [`nightly::found`].
fn oldest(workspace: &Workspace) -> Result<()> {
    let install = format!(
        "rustup toolchain install {OLDEST} --profile minimal --target {}",
        SYSTEMS.join(",")
    );
    let missing = format!("the oldest compiler was NOT RUN: no Rust {OLDEST}; type: {install}");
    if !nightly::found(nightly::cargo_of(OLDEST, &["--version"]), &missing)? {
        return Ok(());
    }
    let mut command = nightly::cargo_of(OLDEST, &["check", "--locked"]);
    for library in LIBRARIES {
        command.args(["-p", library]);
    }
    for system in SYSTEMS {
        command.args(["--target", system]);
    }
    let status = command
        .env("RUSTFLAGS", "-D warnings")
        .env("CARGO_TARGET_DIR", workspace.oldest())
        .current_dir(workspace.root())
        .status()
        .context("starting cargo")?;
    ensure!(
        status.success(),
        "a library does not compile; if a system's libraries are missing, type: {install}"
    );
    Ok(())
}

/// The result of a thread of stages; a panic is an error, too.
fn joined(thread: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    let panicked = |_| Err(anyhow!("a thread of the gate's stages panicked"));
    thread.join().unwrap_or_else(panicked)
}

/// The errors of two stages that ran side by side: none is lost.
fn both(one: Result<()>, other: Result<()>) -> Result<()> {
    match (one, other) {
        (Err(one), Err(other)) => Err(anyhow!("{one:#}; and {other:#}")),
        (one, other) => one.and(other),
    }
}

fn stage(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n== {name}");
    let started = Instant::now();
    work().with_context(|| format!("the gate's stage \"{name}\""))?;
    println!(
        "== {name}: passed in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_compiler_is_the_manifests() {
        let manifest = include_str!("../../Cargo.toml");
        let (version, _) = OLDEST.rsplit_once('.').unwrap();
        assert!(manifest.contains(&format!("\nrust-version = \"{version}\"\n")));
    }

    /// The gate's script installs what the stages need.
    #[test]
    fn the_gate_installs_the_systems() {
        let script = include_str!("../../.ci/run");
        for word in SYSTEMS.iter().chain([&OLDEST]) {
            assert!(script.contains(word), "{word}");
        }
    }

    #[test]
    fn of_two_stages_each_failure_is_reported() {
        let said = |one: Result<()>, other: Result<()>| {
            both(one, other).map_err(|error| format!("{error:#}"))
        };
        let fail = |text: &'static str| Err(anyhow!(text));
        assert_eq!(said(Ok(()), Ok(())), Ok(()));
        assert_eq!(said(fail("a"), Ok(())), Err("a".to_owned()));
        assert_eq!(said(Ok(()), fail("b")), Err("b".to_owned()));
        assert_eq!(said(fail("a"), fail("b")), Err("a; and b".to_owned()));
    }
}
