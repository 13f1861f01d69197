//! `cargo xtask ci`: every check there is, the cheap ones first.

use std::process::ExitCode;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::command::{cargo, succeed};
use crate::host::{self, Options};
use crate::publish::{self, LIBRARIES};
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

/// The check of the rustdoc, beside the static binaries' build, the demo and the fuzz targets.
const DOCUMENTATION: Check = Check {
    name: "documentation",
    arguments: &["doc", "--workspace", "--all-features", "--no-deps"],
    environment: &[("RUSTDOCFLAGS", "-D warnings")],
};

/// The oldest compiler that the libraries support: the workspace's `rust-version`.
const OLDEST: &str = "1.85.0";

/// Libraries that are compiled for systems on which they are not run.
struct Systems {
    name: &'static str,
    /// The toolchain, if it is not the one that runs the gate.
    toolchain: Option<&'static str>,
    libraries: &'static [&'static str],
    arguments: &'static [&'static str],
    systems: &'static [&'static str],
}

const SYSTEMS: &[Systems] = &[
    // The store's client and the types; the devices' requests are Linux's.
    Systems {
        name: "FreeBSD",
        toolchain: None,
        libraries: &["xen-interface", "xen-evtchn", "xen-gnttab", "xen-store"],
        arguments: &[],
        systems: &["x86_64-unknown-freebsd"],
    },
    Systems {
        name: "arm64",
        toolchain: None,
        libraries: LIBRARIES,
        arguments: &["--all-features"],
        systems: &["aarch64-unknown-linux-gnu"],
    },
    // No stage runs it: `cargo xtask test --arch arm64` does.
    Systems {
        name: "arm64's test agent",
        toolchain: None,
        libraries: &["xen-testbed-agent"],
        arguments: &[],
        systems: &["aarch64-unknown-linux-gnu"],
    },
    Systems {
        name: "oldest compiler, other systems",
        toolchain: Some(OLDEST),
        libraries: LIBRARIES,
        arguments: &["--locked"],
        systems: &[
            "x86_64-unknown-linux-musl",
            "aarch64-unknown-linux-musl",
            "i686-unknown-linux-gnu",
            "riscv64gc-unknown-linux-gnu",
        ],
    },
];

/// Runs everything; the first fault ends it, and what runs beside it ends first.
pub(crate) fn run(workspace: &Workspace, options: &Options, skip_tests: bool) -> Result<ExitCode> {
    stage("inventories", || tidy::check(workspace))?;
    thread::scope(|scope| {
        // It waits for the network most of the time.
        let packages = scope.spawn(|| {
            stage("Debian's packages", || {
                host::prepare_packages(workspace, options)
            })
        });
        let lints = LINTS
            .iter()
            .try_for_each(|check| run_check(workspace, check));
        if lints.is_err() {
            return both(joined(packages), lints);
        }
        // The optimiser's last pass and the demo's machine take one processor each; the compilers
        // of the others and the interpreter have the other one.
        beside(
            || {
                let binaries = stage("static binaries", || {
                    dist::build(workspace)?;
                    dist::report(workspace)
                });
                both(joined(packages), binaries)?;
                demo_and_fuzz_targets(workspace, options)
            },
            || other_checks(workspace),
        )
    })?;
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

const fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

/// Runs the stages that need the static binaries.
fn demo_and_fuzz_targets(workspace: &Workspace, options: &Options) -> Result<()> {
    beside(
        || {
            stage("Debian's packages for the tests", || {
                host::prepare_for_tests(workspace, options)
            })
        },
        || {
            stage("demo", || {
                let code = demo::run(workspace, options, minutes(10))?;
                ensure!(code == ExitCode::SUCCESS, "the demo did not see everything");
                Ok(())
            })?;
            stage("fuzz targets", || {
                let code = fuzz::run(workspace, fuzz::GATE, None)?;
                ensure!(code == ExitCode::SUCCESS, "a fuzz target found something");
                Ok(())
            })
        },
    )
}

/// Runs the stages that need none.
fn other_checks(workspace: &Workspace) -> Result<()> {
    for systems in SYSTEMS {
        stage(systems.name, || compile(workspace, systems))?;
    }
    run_check(workspace, &DOCUMENTATION)?;
    stage("packages", || publish::check(workspace))?;
    stage("public APIs", || api::check(workspace))?;
    stage("Miri", || miri::check(workspace))
}

fn run_check(workspace: &Workspace, check: &Check) -> Result<()> {
    stage(check.name, || {
        let mut command = cargo();
        command
            .args(check.arguments)
            .envs(check.environment.iter().copied())
            .current_dir(workspace.root());
        succeed(command)
    })
}

/// Compiles libraries for systems. Without the toolchain it passes, except where `CI` is set: see
/// [`nightly::found`].
fn compile(workspace: &Workspace, systems: &Systems) -> Result<()> {
    let targets = systems.systems.join(",");
    let (mut command, install) = match systems.toolchain {
        None => (cargo(), format!("rustup target add {targets}")),
        Some(toolchain) => {
            let install = format!(
                "rustup toolchain install {toolchain} --profile minimal --target {targets}"
            );
            let name = systems.name;
            let missing = format!("{name}: NOT RUN: no Rust {toolchain}; type: {install}");
            if !nightly::found(nightly::cargo_of(toolchain, &["--version"]), &missing)? {
                return Ok(());
            }
            let mut command = nightly::cargo_of(toolchain, &[]);
            command.env("CARGO_TARGET_DIR", workspace.oldest());
            (command, install)
        }
    };
    command.arg("check").args(systems.arguments);
    for library in systems.libraries {
        command.args(["-p", library]);
    }
    for system in systems.systems {
        command.args(["--target", system]);
    }
    command
        .env("RUSTFLAGS", "-D warnings")
        .current_dir(workspace.root());
    succeed(command)
        .with_context(|| format!("if a system's standard library is missing, type: {install}"))
}

/// Runs `other` in a thread beside `work`, and returns the errors of both.
fn beside(
    other: impl FnOnce() -> Result<()> + Send,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    thread::scope(|scope| {
        let other = scope.spawn(other);
        let work = work();
        both(joined(other), work)
    })
}

/// Returns the result of a thread of stages; a panic is an error, too.
fn joined(thread: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    let panicked = |_| Err(anyhow!("a thread of the gate's stages panicked"));
    thread.join().unwrap_or_else(panicked)
}

/// Returns the errors of two stages that ran side by side: none is lost.
fn both(one: Result<()>, other: Result<()>) -> Result<()> {
    match (one, other) {
        (Err(one), Err(other)) => Err(anyhow!("{one:#}; and {other:#}")),
        (one, other) => one.and(other),
    }
}

/// Runs a stage between two lines with its name. The second one states a failure, too: the error
/// itself ends the gate only when the stages beside it have ended.
fn stage(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n== {name}");
    let started = Instant::now();
    let result = work();
    let seconds = started.elapsed().as_secs_f64();
    match &result {
        Ok(()) => println!("== {name}: passed in {seconds:.1} s"),
        Err(error) => println!("== {name}: FAILED after {seconds:.1} s: {error:#}"),
    }
    result.with_context(|| format!("the gate's stage \"{name}\""))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

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
        let code = script
            .lines()
            .map(str::trim_start)
            .filter(|line| !line.starts_with('#'));
        let code = code.collect::<Vec<_>>().join("\n");
        let systems = SYSTEMS.iter().flat_map(|systems| systems.systems);
        for word in systems.chain([&OLDEST]) {
            assert!(code.contains(word), "{word}");
        }
    }

    #[test]
    fn of_two_stages_each_failure_is_reported() {
        let fail = |text: &'static str| Err(anyhow!(text));
        let run = |other: Result<()>, work: Result<()>| {
            beside(|| other, || work).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(run(Ok(()), Ok(())), Ok(()));
        assert_eq!(run(fail("a"), Ok(())), Err("a".to_owned()));
        assert_eq!(run(Ok(()), fail("b")), Err("b".to_owned()));
        assert_eq!(run(fail("a"), fail("b")), Err("a; and b".to_owned()));
    }

    #[test]
    fn a_panic_beside_a_failure_hides_none() {
        let error = beside(|| panic!("for the test"), || Err(anyhow!("b"))).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("panicked") && text.ends_with("; and b"),
            "{text}"
        );
    }

    #[test]
    fn a_stage_fails_with_a_command_that_a_signal_ends() {
        let mut command = Command::new("sh");
        command.args(["-c", "kill -9 $$"]);
        let error = stage("a test", || succeed(command)).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("stage \"a test\"") && text.contains("signal: 9"),
            "{text}"
        );
    }
}
