//! `cargo xtask test`: the workspace's tests and the suites on real Xen, then one count of all.
//!
//! An emulated machine takes one processor: with two or more, two parts run side by side, each line
//! after its part's name. A part that did not report how many tests it ran has failed, whatever its
//! exit status was.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read};
use std::num::NonZero;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::host::{self, Host, Options};
use crate::release::{Arch, RELEASES};
use crate::rules::Rules;
use crate::workspace::Workspace;
use crate::{command, debian, suite};

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
    /// The failed tests, each with the first lines of its reason where they follow its name.
    pub(crate) failures: Vec<String>,
    /// Why it failed although no single test did.
    pub(crate) fault: Option<String>,
    /// A deviation that is no failure.
    pub(crate) note: Option<String>,
    /// The rules it counted.
    pub(crate) rules: Rules,
    pub(crate) took: Duration,
}

impl Outcome {
    /// The outcome of a part that broke down before it counted anything.
    fn broken(name: &str, error: &anyhow::Error) -> Self {
        Self {
            name: name.to_owned(),
            count: Count::default(),
            failures: Vec::new(),
            fault: Some(format!("{error:#}")),
            note: None,
            rules: Rules::default(),
            took: Duration::ZERO,
        }
    }
}

/// The tests that run on the release that is not the default: those that depend most on kernel,
/// hypervisor, libxl and QEMU. Not Linux as a guest, which takes minutes of the emulator's time.
const ON_THE_OTHER: &[&str] = &["stubdom/", "vchan", "hypercalls/"];

/// A part of the run.
#[derive(Debug)]
enum Part<'a> {
    Cargo,
    Loom,
    Suite(suite::Place<'a>),
    /// The tests that run on the other release too; its host is put together when it is needed.
    Other(&'a Options),
}

/// Runs everything asked for and passes only if all of it did.
pub(crate) fn run(workspace: &Workspace, request: &Request) -> Result<ExitCode> {
    let debian_alone = alone(&request.only, "debian")?;
    let pci = alone(&request.only, "pci")?;
    let is_x86 = request.options.release.arch == Arch::Amd64;
    ensure!(
        is_x86 || !(request.no_xen || debian_alone || pci),
        "on arm64 there is the suite on real Xen alone, without the groups debian and pci"
    );
    let mut host = None;
    let mut other = None;
    if !request.no_xen {
        // First, because the tests with Debian's own libraries find them in what is unpacked here.
        let mirror = request.options.mirror.as_deref();
        if is_x86 {
            host::unpack_default(workspace, mirror)?;
        }
        let options = request.options.clone();
        host = Some(Host::prepare(workspace, &Options { pci, ..options })?);
        if request.other_release {
            let options = Options {
                release: &RELEASES[1],
                ..request.options.clone()
            };
            host::unpack(workspace, options.release, mirror)?;
            other = Some(options);
        }
    }
    // Where it is asked for, a gate included, what cannot run has failed.
    let debian = debian_alone
        || is_x86
            && request.only.is_empty()
            && (debian::buildable() || std::env::var_os("CI").is_some());
    let mut parts = parts(request, host.as_ref(), other.as_ref(), debian_alone, debian);
    if pci {
        parts.retain(|part| matches!(part, Part::Suite(_)));
    }
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
            outcomes.extend(run_part(workspace, request, part, at_once > 1));
        }
        outcomes
    };
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        let end = |worker: thread::ScopedJoinHandle<'_, _>| {
            let panicked = |_| {
                vec![Outcome::broken(
                    "a thread of tests",
                    &anyhow!("it panicked"),
                )]
            };
            worker.join().unwrap_or_else(panicked)
        };
        workers.into_iter().flat_map(end).collect()
    });
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
        for failure in &outcome.failures {
            println!("    FAILED: {failure}");
        }
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
    if is_x86 && request.only.is_empty() && !request.no_xen && !debian {
        println!(
            "\nThe package's tests on Debian's dom0 were NOT RUN: its root is built by root or with newuidmap \
             (Debian: uidmap)."
        );
    }
    if is_x86 && request.only.is_empty() && !request.no_xen {
        println!(
            "\nThe tests of PCI passthrough were NOT RUN: they have a machine of their own (--only pci)."
        );
        println!("\nThe longer test of the screen was NOT RUN (--only screen).");
    }
    if !is_x86 {
        println!(
            "\nThe workspace's own tests, and those of HVM guests, stubdomains, the package and PCI \
             passthrough, were NOT RUN (--arch arm64)."
        );
    } else if request.no_cargo {
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
fn parts<'a>(
    request: &'a Request,
    host: Option<&'a Host>,
    other: Option<&'a Options>,
    debian_alone: bool,
    debian: bool,
) -> Vec<Part<'a>> {
    let only = &request.only;
    let mut parts = Vec::new();
    let mirror = request.options.mirror.as_deref();
    if let (Some(host), false) = (host, debian_alone) {
        parts.push(Part::Suite(suite::Place::Dom0(host, only.clone())));
    }
    if !request.no_cargo && !debian_alone {
        parts.push(Part::Cargo);
    }
    parts.extend(other.map(Part::Other));
    if let (Some(host), true) = (host, debian) {
        parts.push(Part::Suite(suite::Place::Debian(host, mirror)));
    }
    // The shortest, and its compilers use what processors there are.
    if !request.no_cargo && !debian_alone {
        parts.push(Part::Loom);
    }
    parts
}

/// Returns whether the tests of a group with a machine of its own are asked for, which run by
/// themselves.
fn alone(only: &[String], group: &str) -> Result<bool> {
    let of_group = |word: &&String| word.split('/').next() == Some(group);
    let count = only.iter().filter(of_group).count();
    ensure!(
        count == 0 || count == only.len(),
        "the tests of {group} run by themselves: no other --only beside \"{group}\""
    );
    Ok(count > 0)
}

fn run_part(
    workspace: &Workspace,
    request: &Request,
    part: &Part<'_>,
    beside: bool,
) -> Vec<Outcome> {
    let prefix = match part {
        _ if !beside => String::new(),
        Part::Cargo => "cargo  | ".to_owned(),
        Part::Loom => "loom   | ".to_owned(),
        Part::Suite(suite::Place::Dom0(host, _)) => {
            format!("{:<6} | ", host.parts.release.folder())
        }
        Part::Other(options) => format!("{:<6} | ", options.release.name),
        Part::Suite(suite::Place::Debian(..)) => "debian | ".to_owned(),
    };
    match part {
        Part::Cargo => cargo_tests(workspace, request, &prefix),
        Part::Loom => loom_models(workspace, request, &prefix),
        Part::Suite(place) => vec![suite::run(place, request.timeout, &prefix)],
        Part::Other(options) => {
            let host = match Host::prepare(workspace, options) {
                Ok(host) => host,
                Err(error) => {
                    let name = format!("Xen {}", options.release.name);
                    return vec![Outcome::broken(&name, &error)];
                }
            };
            let only = ON_THE_OTHER.iter().map(|&word| word.to_owned()).collect();
            let place = suite::Place::Dom0(&host, only);
            vec![suite::run(&place, request.timeout, &prefix)]
        }
    }
}

/// The unit, integration and documentation tests.
fn cargo_tests(workspace: &Workspace, request: &Request, prefix: &str) -> Vec<Outcome> {
    let mut everything = vec!["--workspace", "--all-features"];
    if request.no_xen {
        everything.extend(["--exclude", "xen-sim-preload"]);
        everything.extend(["--exclude", "xen-stored-preload"]);
    }
    let mut all = Vec::new();
    let filter = filter(request);
    // Some tests run the examples as programs, and `cargo test --examples` builds them as tests
    // only.
    let built = cargo(workspace)
        .args(["build", "--examples"])
        .args(&everything)
        .status();
    let built = built.context("starting cargo").and_then(|status| {
        ensure!(
            status.success(),
            "the examples could not be built: {status}"
        );
        Ok(())
    });
    if let Err(error) = built {
        return vec![Outcome::broken("examples", &error)];
    }
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
    all.push(counted("cargo test", &mut command, prefix));
    let mut command = cargo(workspace);
    command
        .args(["test", "--doc", "--no-fail-fast"])
        .args(&everything);
    all.push(counted(
        "documentation tests",
        command.args(&filter),
        prefix,
    ));
    // A crate of a user's, in a workspace of its own.
    let mut command = cargo(workspace);
    command
        .args(["test", "--locked", "--no-fail-fast"])
        .args(["--manifest-path", "examples/own-crate/Cargo.toml"])
        .env("CARGO_TARGET_DIR", workspace.root().join("target"));
    all.push(counted("a user's own crate", command.args(&filter), prefix));
    all
}

/// The loom models: they replace the atomics, so they are a build of their own, in a folder of its
/// own; explored in release, because they are many.
fn loom_models(workspace: &Workspace, request: &Request, prefix: &str) -> Vec<Outcome> {
    let mut all = Vec::new();
    let filter = filter(request);
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
        all.push(counted(name, &mut command, prefix));
    }
    all
}

/// The arguments that leave all tests out but those asked for.
fn filter(request: &Request) -> Vec<&str> {
    (!request.only.is_empty())
        .then_some("--")
        .into_iter()
        .chain(request.only.iter().map(String::as_str))
        .collect()
}

fn cargo(workspace: &Workspace) -> Command {
    let mut command = command::cargo();
    command.current_dir(workspace.root());
    command
}

/// Runs a test runner, shows what it prints line by line, and counts by its own words.
fn counted(name: &str, command: &mut Command, prefix: &str) -> Outcome {
    println!("\n== {name}");
    let started = Instant::now();
    let (text, status) = match printed(command, prefix) {
        Ok(printed) => printed,
        Err(error) => return Outcome::broken(name, &error),
    };
    let (count, fault) = judged(&text, status.success(), &status.to_string());
    Outcome {
        name: name.to_owned(),
        count,
        failures: failures(&text),
        fault,
        note: None,
        rules: Rules::from_output(&text),
        took: started.elapsed(),
    }
}

/// Returns all that a command printed, and its status.
fn printed(command: &mut Command, prefix: &str) -> Result<(String, ExitStatus)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    let errors = child.stderr.take().context("the runner's messages")?;
    let output = child.stdout.take().context("the runner's output")?;
    let text = thread::scope(|scope| {
        let errors = scope.spawn(|| show(errors, prefix));
        show(output, prefix) + &errors.join().unwrap_or_default()
    });
    Ok((text, child.wait()?))
}

/// Returns how many tests passed and failed, and the fault of a run without a failed test.
fn judged(text: &str, success: bool, status: &str) -> (Count, Option<String>) {
    let Some(mut count) = libtest_count(text) else {
        let fault = format!("it did not say how many tests ran ({status})");
        return (Count::default(), Some(fault));
    };
    count.failed += failed_without_result(text);
    let fault = (!success && count.failed == 0).then(|| status.to_owned());
    (count, fault)
}

/// Returns the names of the failed tests in a runner's output, libtest's or the agent's, and of the
/// targets with a failed test, since one without libtest prints no names. The agent prints a test's
/// reason, indented, behind its name: its first lines are added.
pub(crate) fn failures(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(target) = line.strip_prefix(RERUN) {
            all.push(format!("cargo test {}", target.trim_end_matches('`')));
            continue;
        }
        let name = line.strip_prefix("test ");
        let Some((name, _)) = name.and_then(|rest| rest.split_once(" ... FAILED")) else {
            continue;
        };
        let mut failure = name.to_owned();
        for _ in 0..REASON {
            let Some(reason) = lines.next_if(|line| line.starts_with("    ")) else {
                break;
            };
            failure.push_str("\n    ");
            failure.push_str(reason);
        }
        all.push(failure);
    }
    all
}

/// The line of cargo's that names a target with a failed test.
const RERUN: &str = "error: test failed, to rerun pass `";

/// The most lines of a failed test's reason in the summary.
const REASON: usize = 4;

/// The targets that cargo reports as failed beyond those whose summary reports it: a test program
/// with its own `main` that panicked, or one that a signal ended.
fn failed_without_result(text: &str) -> u64 {
    let lines = |part: &str| text.lines().filter(|line| line.contains(part)).count() as u64;
    let failed = text
        .lines()
        .filter(|line| line.starts_with("test result: FAILED"));
    lines("test failed, to rerun pass `").saturating_sub(failed.count() as u64)
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

    #[test]
    fn a_target_that_fails_without_a_summary_counts_one() {
        let whole = "test result: ok. 3 passed; 0 failed; 0 ignored";
        let failed = "test result: FAILED. 4 passed; 2 failed; 0 ignored\n\
                      error: test failed, to rerun pass `--test lt`";
        let own = "error: test failed, to rerun pass `-p x --test own`";
        let signal = "error: test failed, to rerun pass `--test sig`\n\nCaused by:\n  \
                      process didn't exit successfully: `sig` (signal: 6, SIGABRT)";
        let of = |parts: &[&str]| judged(&parts.join("\n"), false, "exit status: 101");
        let counts = |passed, failed| (Count { passed, failed }, None);
        assert_eq!(of(&[whole, failed]), counts(7, 2));
        assert_eq!(of(&[whole, own]), counts(3, 1));
        assert_eq!(of(&[whole, failed, own, signal]), counts(7, 4));
    }

    #[test]
    fn failed_tests_are_named_with_the_beginning_of_their_reasons() {
        let text = "test a/b ... ok (1.00 s)\n\
                    test a/c ... FAILED (2.00 s)\n    one\n    two\n    3\n    \n    5\n\
                    test a/d ... FAILED (0.00 s)\n\
                    test a/e ... ok (1.00 s)\n    note\n\nfailed:\n    a/c\n";
        let reason = "a/c\n        one\n        two\n        3\n        ";
        assert_eq!(failures(text), [reason, "a/d"]);
        let text =
            "test m::one ... FAILED\ntest m::two ... ok\n\nfailures:\n\n---- m::one stdout ----\n";
        assert_eq!(failures(text), ["m::one"]);
    }

    #[test]
    fn a_run_that_fails_without_a_failed_test_is_a_fault() {
        let text = "test result: ok. 3 passed; 0 failed; 0 ignored";
        let status = || Some("exit status: 1".to_owned());
        let whole = Count {
            passed: 3,
            failed: 0,
        };
        assert_eq!(judged(text, false, "exit status: 1"), (whole, status()));
        assert_eq!(judged(text, true, "exit status: 0"), (whole, None));
        assert!(judged("error: could not compile", true, "").1.is_some());
    }

    #[test]
    fn the_tests_of_some_groups_run_by_themselves() {
        let of = |words: &[&str], group| {
            let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
            alone(&words, group).ok()
        };
        assert_eq!(of(&["pci/", "pci"], "pci"), Some(true));
        assert_eq!(of(&["pci/", "pcifront"], "pci"), None);
        let debian = |words: &[&str]| of(words, "debian");
        assert_eq!(debian(&[]), Some(false));
        assert_eq!(debian(&["debian"]), Some(true));
        assert_eq!(debian(&["debian/install", "debian"]), Some(true));
        assert_eq!(debian(&["debian_entries_are_kept"]), Some(false));
        assert_eq!(debian(&["debian", "stubdom/"]), None);
    }
}
