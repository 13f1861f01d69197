//! Fuzzing with cargo-fuzz: every target of every `fuzz/` folder, in the gate and for as long as
//! one likes.
//!
//! | where | |
//! |---|---|
//! | `CRATE/fuzz/Cargo.toml` | its `[[bin]]` entries are the targets |
//! | `CRATE/fuzz/seeds/TARGET/` | the inputs that are kept; a run begins with them |
//! | `target/fuzz/corpus/CRATE-TARGET/` | what runs have found since that covers more |
//! | `target/fuzz/artifacts/CRATE-TARGET/` | inputs that failed |

use std::collections::VecDeque;
use std::fs::{self, File};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::nightly;
use crate::workspace::Workspace;

/// How long each target runs in the gate, in seconds.
pub(crate) const GATE: u32 = 20;
/// An input that takes longer, in seconds, is a finding: a hang.
const INPUT_LIMIT: u32 = 20;
/// Memory that is a finding when exceeded, in MiB: a growth without bound.
const MEMORY_LIMIT: u32 = 2048;
/// Codegen units of a crate. cargo-fuzz's own number is 1, with which the builds take longer than
/// the runs of the gate.
const CODEGEN_UNITS: &str = "--codegen-units=16";
/// Runs at the same time, if there are as many processors.
const AT_ONCE: usize = 2;
/// How a machine gets what the runs need.
const INSTALL: &str =
    "rustup toolchain install nightly --profile minimal && cargo install cargo-fuzz --locked";
/// Lines of a failed run that are shown.
const SHOWN: usize = 60;

/// A fuzz target.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    /// The `fuzz/` folder.
    folder: PathBuf,
    /// The crate's name and the target's.
    name: String,
    /// The target's name in its crate.
    bin: String,
}

/// A run's own report.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    executions: u64,
    seconds: f64,
    failed: bool,
}

/// Builds and runs all targets, or those whose name contains `only`, for so many seconds each.
pub(crate) fn run(workspace: &Workspace, seconds: u32, only: Option<&str>) -> Result<ExitCode> {
    if !nightly::has("fuzz", "the fuzz targets were", INSTALL)? {
        return Ok(ExitCode::SUCCESS);
    }
    let mut targets = targets(workspace.root())?;
    targets.retain(|target| only.is_none_or(|only| target.name.contains(only)));
    ensure!(!targets.is_empty(), "no fuzz target has such a name");
    let mut folders: Vec<&Path> = targets
        .iter()
        .map(|target| target.folder.as_path())
        .collect();
    folders.dedup();
    for folder in folders {
        build(workspace, folder)?;
    }
    let outcomes = run_all(workspace, seconds, &targets)?;
    println!(
        "\n{:<22} {:>12} {:>9} {:>10}",
        "fuzz target", "executions", "seconds", "per second"
    );
    for (target, outcome) in &outcomes {
        let rate = outcome.executions as f64 / outcome.seconds.max(0.1);
        let verdict = if outcome.failed { "  FAILED" } else { "" };
        println!(
            "{:<22} {:>12} {:>9.1} {rate:>10.0}{verdict}",
            target.name, outcome.executions, outcome.seconds
        );
    }
    let failed = outcomes
        .iter()
        .filter(|(_, outcome)| outcome.failed)
        .count();
    let total: u64 = outcomes.iter().map(|(_, outcome)| outcome.executions).sum();
    println!(
        "{} fuzz targets, {total} executions, {failed} failed",
        outcomes.len()
    );
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Every target of every crate that has a `fuzz/` folder, in the order of their names.
fn targets(root: &Path) -> Result<Vec<Target>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root)? {
        let folder = entry?.path().join("fuzz");
        let manifest = folder.join("Cargo.toml");
        let Ok(text) = fs::read_to_string(&manifest) else {
            continue;
        };
        let bins = bins(&text);
        ensure!(!bins.is_empty(), "{} has no [[bin]]", manifest.display());
        let name = folder
            .parent()
            .and_then(Path::file_name)
            .unwrap_or_default();
        let name = name.to_string_lossy();
        all.extend(bins.into_iter().map(|bin| Target {
            folder: folder.clone(),
            name: format!("{name}-{bin}"),
            bin,
        }));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

/// The names of a manifest's `[[bin]]` entries.
fn bins(manifest: &str) -> Vec<String> {
    let mut in_bin = false;
    let mut names = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_bin = line.trim() == "[[bin]]";
        }
        let name = line
            .strip_prefix("name = \"")
            .and_then(|rest| rest.strip_suffix('"'));
        if let (true, Some(name)) = (in_bin, name) {
            names.push(name.to_owned());
        }
    }
    names
}

fn state(workspace: &Workspace, kind: &str, target: &Target) -> Result<PathBuf> {
    let path = workspace.fuzz().join(kind).join(&target.name);
    fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}

fn build(workspace: &Workspace, folder: &Path) -> Result<()> {
    // cargo-fuzz has no `--locked`: it would write a new lock file where the kept one is out of
    // date.
    let locked = nightly::cargo(&["fetch", "--quiet", "--locked"])
        .current_dir(folder)
        .status()
        .context("starting cargo fetch")?;
    ensure!(
        locked.success(),
        "cargo fetch --locked fails in {}",
        folder.display()
    );
    let status = nightly::cargo(&["fuzz", "build", CODEGEN_UNITS, "--fuzz-dir"])
        .arg(folder)
        .arg("--target-dir")
        .arg(workspace.fuzz())
        .current_dir(folder)
        .status()
        .context("starting cargo fuzz")?;
    ensure!(
        status.success(),
        "the targets of {} do not build",
        folder.display()
    );
    Ok(())
}

/// Runs the targets, as many at once as there are processors to do it.
fn run_all<'a>(
    workspace: &Workspace,
    seconds: u32,
    targets: &'a [Target],
) -> Result<Vec<(&'a Target, Outcome)>> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let queue = Mutex::new(targets.iter().collect::<VecDeque<_>>());
    let next = || {
        queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    };
    let work = || {
        let mut outcomes = Vec::new();
        while let Some(target) = next() {
            outcomes.push((target, run_one(workspace, seconds, target)?));
        }
        Ok(outcomes)
    };
    let all: Result<Vec<Vec<_>>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE.min(processors))
            .map(|_| scope.spawn(work))
            .collect();
        let end = |worker: thread::ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(outcomes) => outcomes,
            Err(_) => bail!("a thread that ran a fuzz target panicked"),
        };
        workers.into_iter().map(end).collect()
    });
    let mut outcomes = all?.concat();
    outcomes.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    Ok(outcomes)
}

fn run_one(workspace: &Workspace, seconds: u32, target: &Target) -> Result<Outcome> {
    let corpus = state(workspace, "corpus", target)?;
    let artifacts = state(workspace, "artifacts", target)?;
    let log = corpus.with_extension("log");
    let seeds = target.folder.join("seeds").join(&target.bin);
    let mut command = nightly::cargo(&["fuzz", "run", CODEGEN_UNITS, "--fuzz-dir"]);
    command
        .arg(&target.folder)
        .arg("--target-dir")
        .arg(workspace.fuzz());
    command.arg(&target.bin).arg(&corpus);
    command.args(Some(&seeds).filter(|seeds| seeds.is_dir()));
    let output = File::create(&log).with_context(|| format!("making {}", log.display()))?;
    println!("xtask: fuzzing {} for {seconds} s …", target.name);
    let started = Instant::now();
    let status = command
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_LIMIT}"))
        .arg(format!("-rss_limit_mb={MEMORY_LIMIT}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        .current_dir(&target.folder)
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .context("starting cargo fuzz")?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let executions = executions(&said);
    // A run without a count has not done anything.
    let failed = !status.success() || executions.is_none_or(|count| count == 0);
    if failed {
        let lines: Vec<_> = said.lines().collect();
        println!("\n{} failed ({status}):", target.name);
        lines[lines.len().saturating_sub(SHOWN)..]
            .iter()
            .for_each(|line| println!("    {line}"));
        println!(
            "its input is under {}, all it said in {}",
            artifacts.display(),
            log.display()
        );
    }
    Ok(Outcome {
        executions: executions.unwrap_or(0),
        seconds: started.elapsed().as_secs_f64(),
        failed,
    })
}

/// Returns libFuzzer's count of executions.
fn executions(said: &str) -> Option<u64> {
    let line = said
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    line?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_a_manifests_programs() {
        let text = "[package]\nname = \"x\"\n[[bin]]\nname = \"a\"\n[lints]\nname = \"no\"\n[[bin]]\nname = \"b\"\n";
        assert_eq!(bins(text), ["a", "b"]);
    }

    #[test]
    fn every_fuzz_folder_is_found() {
        let all = targets(Workspace::find().unwrap().root()).unwrap();
        let names: Vec<_> = all.iter().map(|target| target.name.as_str()).collect();
        for name in ["stubdm-console", "xen-gnttab-ioreq", "xen-store-daemon"] {
            assert!(names.contains(&name), "{names:?}");
        }
        for target in &all {
            let seeds = target.folder.join("seeds").join(&target.bin);
            let kept = fs::read_dir(&seeds).map_or(0, Iterator::count);
            assert!(kept > 0, "no inputs are kept in {}", seeds.display());
        }
    }

    #[test]
    fn executions_are_what_libfuzzer_prints() {
        assert_eq!(
            executions("x\nstat::number_of_executed_units: 812\ny"),
            Some(812)
        );
        assert_eq!(executions("error: could not compile"), None);
    }
}
