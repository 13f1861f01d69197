//! `cargo xtask test`: the workspace's tests and the suites on real Xen, then one count of all.
//!
//! An emulated machine takes one processor: with two or more, two parts run side by side, each line
//! after its part's name. A part that did not say how many tests it ran has failed, whatever its
//! exit status was.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::num::NonZero;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::host::{self, Host, Options};
use crate::release::RELEASES;
use crate::rules::Rules;
use crate::suite;
use crate::workspace::Workspace;

/// The requested run.
#[derive(Debug)]
pub(crate) struct Request {
    /// How the host is put together.
    pub(crate) options: Options,
    /// Only the tests whose names contain this.
    pub(crate) only: Vec<String>,
    /// A part of the suite on the other release too.
    pub(crate) other_release: bool,
    /// Leave the real-Xen suite out.
    pub(crate) no_xen: bool,
    /// Leave the cargo tests out.
    pub(crate) no_cargo: bool,
    /// How long the real-Xen suite may take.
    pub(crate) timeout: Duration,
}

/// How many tests passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

/// One part's outcome, for the summary.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) count: Count,
    /// Why it failed although no single test did.
    pub(crate) fault: Option<String>,
    /// A deviation that is no failure.
    pub(crate) note: Option<String>,
    /// The rules it counted.
    pub(crate) rules: Rules,
    pub(crate) took: Duration,
}

/// What the gate runs of the suite on the release that is not the default: what depends most on
/// kernel, hypervisor, libxl and QEMU.
const ON_THE_OTHER: &[&str] = &["stubdom/", "vchan"];

/// A part of the run.
#[derive(Debug)]
enum Part<'a> {
    Cargo,
    Suite(suite::Place<'a>),
}

/// Runs everything asked for and passes only if all of it did.
pub(crate) fn run(workspace: &Workspace, request: &Request) -> Result<ExitCode> {
    let mut hosts = Vec::new();
    if !request.no_xen {
        // First, because the tests with Debian's own libraries find them in what is unpacked here.
        host::unpack_default(workspace, &request.options)?;
        hosts.push(Host::prepare(workspace, &request.options)?);
        if request.other_release {
            let options = Options {
                release: &RELEASES[1],
                ..request.options.clone()
            };
            hosts.push(Host::prepare(workspace, &options)?);
        }
    }
    let parts = parts(request, &hosts);
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let at_once = AT_ONCE.min(processors).min(parts.len());
    let queue = Mutex::new(parts.iter().collect::<VecDeque<_>>());
    let next = || {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.pop_front()
    };
    let work = || {
        let mut outcomes = Vec::new();
        while let Some(part) = next() {
            outcomes.extend(run_part(workspace, request, part, at_once > 1)?);
        }
        Ok(outcomes)
    };
    let outcomes: Result<Vec<Vec<Outcome>>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        let end = |worker: thread::ScopedJoinHandle<'_, _>| match worker.join() {
            Ok(outcomes) => outcomes,
            Err(_) => bail!("a thread that ran tests panicked"),
        };
        workers.into_iter().map(end).collect()
    });
    let outcomes = outcomes?.concat();
    println!();
    let (mut total, mut faults) = (Count::default(), 0);
    for outcome in &outcomes {
        let Count { passed, failed } = outcome.count;
        let took = outcome.took.as_secs_f64();
        println!(
            "{:<22} {passed:>5} passed, {failed:>3} failed  {took:>6.1} s",
            outcome.name
        );
        total.passed += passed;
        total.failed += failed;
        if let Some(fault) = &outcome.fault {
            faults += 1;
            println!("    FAILED: {fault}");
        }
        if let Some(note) = &outcome.note {
            println!("    {note}");
        }
    }
    if request.no_xen {
        println!(
            "\nThe real-Xen suite and the tests with Debian's C libraries were NOT RUN (--no-xen): nothing above says that \
             this works on Xen."
        );
    }
    if request.no_cargo {
        println!("\nThe workspace's own tests were NOT RUN (--no-cargo).");
    }
    let mut rules = Rules::default();
    outcomes
        .iter()
        .for_each(|outcome| rules.add(&outcome.rules));
    print!("{rules}");
    // A part that broke down as a whole counts as one failure more.
    println!(
        "\n{} passed, {} failed",
        total.passed,
        total.failed + faults
    );
    let good = total.failed == 0 && faults == 0 && total.passed > 0;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Parts that run at once: a machine takes one processor, and what cargo runs leaves one.
const AT_ONCE: usize = 2;

/// The parts of a run, the longest first.
fn parts<'a>(request: &'a Request, hosts: &'a [Host]) -> Vec<Part<'a>> {
    let only = &request.only;
    let debian_alone = !only.is_empty() && only.iter().all(|only| only.starts_with("debian"));
    let mut parts = Vec::new();
    let mirror = request.options.mirror.as_deref();
    if let (Some(host), false) = (hosts.first(), debian_alone) {
        parts.push(Part::Suite(suite::Place::Dom0(host, only.clone())));
    }
    if !request.no_cargo && !debian_alone {
        parts.push(Part::Cargo);
    }
    for host in hosts.iter().skip(1) {
        let only = ON_THE_OTHER.iter().map(|&word| word.to_owned()).collect();
        parts.push(Part::Suite(suite::Place::Dom0(host, only)));
    }
    // By itself only: see docs/testing.md.
    if let (Some(host), true) = (hosts.first(), debian_alone) {
        parts.push(Part::Suite(suite::Place::Debian(host, mirror)));
    }
    parts
}

fn run_part(
    workspace: &Workspace,
    request: &Request,
    part: &Part<'_>,
    beside: bool,
) -> Result<Vec<Outcome>> {
    let prefix = match part {
        _ if !beside => String::new(),
        Part::Cargo => "cargo  | ".to_owned(),
        Part::Suite(suite::Place::Dom0(host, _)) => format!("{:<6} | ", host.parts.release.name),
        Part::Suite(suite::Place::Debian(..)) => "debian | ".to_owned(),
    };
    match part {
        Part::Cargo => cargo_tests(workspace, request, &prefix),
        Part::Suite(place) => Ok(vec![suite::run(place, request.timeout, &prefix)]),
    }
}

/// The unit, integration and documentation tests.
fn cargo_tests(workspace: &Workspace, request: &Request, prefix: &str) -> Result<Vec<Outcome>> {
    let mut everything = vec!["--workspace", "--all-features"];
    if request.no_xen {
        everything.extend(["--exclude", "xen-sim-preload"]);
        everything.extend(["--exclude", "xen-stored-preload"]);
    }
    let mut all = Vec::new();
    let filter: Vec<&str> = (!request.only.is_empty())
        .then_some("--")
        .into_iter()
        .chain(request.only.iter().map(String::as_str))
        .collect();
    // Some tests run the examples as programs, and `cargo test --examples` builds them as tests
    // only.
    let built = cargo(workspace)
        .args(["build", "--examples"])
        .args(&everything)
        .status()
        .context("building the examples")?;
    anyhow::ensure!(built.success(), "the examples could not be built");
    // Not nextest: some tests start the processes of a simulated host and have a main function of
    // their own, which it cannot list. Not the benches either.
    let mut command = cargo(workspace);
    command.args([
        "test",
        "--no-fail-fast",
        "--lib",
        "--bins",
        "--tests",
        "--examples",
    ]);
    command.args(&everything).args(&filter);
    all.push(counted("cargo test", &mut command, prefix)?);
    let mut command = cargo(workspace);
    command
        .args(["test", "--doc", "--no-fail-fast"])
        .args(&everything);
    all.push(counted(
        "documentation tests",
        command.args(&filter),
        prefix,
    )?);
    // A crate of a user's, in a workspace of its own.
    let mut command = cargo(workspace);
    command
        .args(["test", "--locked", "--no-fail-fast"])
        .args(["--manifest-path", "examples/own-crate/Cargo.toml"])
        .env("CARGO_TARGET_DIR", workspace.root().join("target"));
    all.push(counted(
        "a user's own crate",
        command.args(&filter),
        prefix,
    )?);
    // The models replace the atomics, so they are a build of their own; explored in release,
    // because they are many.
    for (name, tests) in [
        (
            "loom models",
            ["-p", "xen-vchan", "--test", "loom"].as_slice(),
        ),
        (
            "loom models (store)",
            ["-p", "xen-store", "--lib", "models"].as_slice(),
        ),
    ] {
        let mut command = cargo(workspace);
        command
            .args(["test", "--release"])
            .args(tests)
            .args(&filter)
            .env("RUSTFLAGS", "--cfg loom")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("CARGO_TARGET_DIR", workspace.loom());
        all.push(counted(name, &mut command, prefix)?);
    }
    Ok(all)
}

fn cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace.root());
    command
}

/// Runs a test runner, shows what it says as it says it, and counts by its own words.
fn counted(name: &str, command: &mut Command, prefix: &str) -> Result<Outcome> {
    println!("\n== {name}");
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let errors = child.stderr.take().context("the runner's messages")?;
    let output = child.stdout.take().context("the runner's output")?;
    let text = thread::scope(|scope| {
        let errors = scope.spawn(|| show(errors, prefix));
        show(output, prefix) + &errors.join().unwrap_or_default()
    });
    let status = child.wait()?;
    let rules = Rules::said(&text);
    let count = libtest_count(&text);
    let fault = match (count, status.success()) {
        (None, _) => Some(format!("it did not say how many tests ran ({status})")),
        (Some(Count { failed: 0, .. }), false) => Some(format!("{status}")),
        _ => None,
    };
    let count = count.unwrap_or_default();
    Ok(Outcome {
        name: name.to_owned(),
        count,
        fault,
        note: None,
        rules,
        took: started.elapsed(),
    })
}

/// Copies a stream to the standard output line by line, and keeps it.
fn show(stream: impl Read, prefix: &str) -> String {
    let mut all = String::new();
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while matches!(stream.read_until(b'\n', &mut line), Ok(1..)) {
        let _ = suite::show(prefix, &line);
        all.push_str(&String::from_utf8_lossy(&line));
        line.clear();
    }
    all
}

/// libtest's summaries, `test result: ok. 3 passed; 0 failed; …`, added up.
fn libtest_count(text: &str) -> Option<Count> {
    let mut sum: Option<Count> = None;
    for line in text.lines().filter_map(|l| l.strip_prefix("test result: ")) {
        let number = |what: &str| -> Option<u64> {
            let words: Vec<_> = line
                .split([' ', ';', '.'])
                .filter(|w| !w.is_empty())
                .collect();
            let at = words.iter().position(|w| *w == what)?;
            words.get(at.checked_sub(1)?)?.parse().ok()
        };
        let sum = sum.get_or_insert_default();
        sum.passed += number("passed")?;
        sum.failed += number("failed")?;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(passed: u64, failed: u64) -> Option<Count> {
        Some(Count { passed, failed })
    }

    #[test]
    fn libtests_results_are_added_up() {
        let text = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured\nx\n\
                    test result: FAILED. 4 passed; 2 failed; 0 ignored";
        assert_eq!(libtest_count(text), count(7, 2));
        assert_eq!(libtest_count("error: could not compile"), None);
    }
}
