//! The suite on real Xen, followed from outside: in a machine, and in another if the emulator
//! hangs.
//!
//! A guest in which an emulated processor fault repeats itself takes an emulator all its time; the
//! machine's own hardly passes then, so nothing in it can give up. The suite reports every few
//! seconds that time passes. When nothing arrives for long, or the emulator works very long at one
//! test, the machine is ended, and a new one begins with the test that was running. A test that
//! hangs three machines has failed.
//!
//! A guest with such a fault can also fail a test without an end of the machine. So up to [`AGAIN`]
//! failed tests are run once more, behind the others; the summary names each with the reason of its
//! first failure.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Write as _, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::debian::Debian;
use crate::host::{Host, Job, Silence, StoodStill};
use crate::rules::Rules;
use crate::tests_cmd::{self, Count, Outcome};
use crate::workspace::Workspace;

/// The longest that the suite may print nothing. It prints something every five seconds of the
/// machine's clock, which a busy host may make a minute, and for which the emulator works for half
/// a minute at most while Linux boots in a guest.
const SILENCE: Silence = Silence {
    clock: Duration::from_secs(240),
    work: Duration::from_secs(120),
};
/// The same across a reboot of Debian's dom0, when nothing runs that could print something.
const REBOOT: Silence = Silence {
    clock: Duration::from_secs(900),
    work: Duration::from_secs(300),
};
/// The longest that the emulator may work at one test, in processor time: the longest takes three
/// to four minutes. Not on this machine's clock, which advances while others have the processor.
const TEST: Duration = Duration::from_secs(420);
/// Machines that are tried.
const MACHINES: usize = 6;
/// Machines that may hang in one test.
const IN_ONE_TEST: usize = 2;
/// Failed tests that are run once more. If more fail, it is not the emulator.
const AGAIN: usize = 2;

/// The suite's output so far.
#[derive(Debug, Default)]
struct Output {
    text: String,
    line: Vec<u8>,
    /// The test that runs, and the processor time when it began.
    running: Option<(String, Duration)>,
    /// The processor time now.
    now: Duration,
    /// The tests that took the most processor time, the longest first.
    longest: Vec<(Duration, String)>,
    /// The most processor time between two pieces of output while a test ran.
    silence: Duration,
}

impl Output {
    /// Takes bytes that arrived at the processor time `now`; returns those for the reader, whole
    /// lines.
    fn take(&mut self, bytes: &[u8], now: Duration) -> Vec<u8> {
        if self.running.is_some() {
            self.silence = self.silence.max(now.saturating_sub(self.now));
        }
        self.now = now;
        let mut shown = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(piece);
            if !piece.ends_with(b"\n") {
                break;
            }
            let line = std::mem::take(&mut self.line);
            match line.strip_prefix(b"\x01") {
                Some(mark) => {
                    let mark = String::from_utf8_lossy(mark);
                    if let Some(name) = mark.trim_end().strip_prefix("begin ") {
                        self.over();
                        self.running = Some((name.to_owned(), now));
                    }
                }
                None => {
                    self.text.push_str(&String::from_utf8_lossy(&line));
                    shown.extend(line);
                }
            }
        }
        shown
    }

    /// Ends the running test and returns its name.
    fn over(&mut self) -> String {
        let Some((name, since)) = self.running.take() else {
            return String::new();
        };
        let took = self.now.saturating_sub(since);
        self.longest.push((took, name.clone()));
        self.longest.sort_by(|a, b| b.cmp(a));
        self.longest.truncate(3);
        name
    }

    /// Whether what runs takes far too long.
    fn crawls(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|(_, since)| self.now.saturating_sub(*since) > TEST)
    }

    /// Where the time went, for the reader.
    fn times(&self) -> String {
        let times = self.longest.iter();
        let times = times.map(|(time, name)| format!("{name} {} s", time.as_secs()));
        let times = times.collect::<Vec<_>>().join(", ");
        format!(
            "most processor time: {times}; longest silence {} s",
            self.silence.as_secs()
        )
    }

    /// Counts the tests that ended, by their lines: each by its last attempt.
    fn ended(&self) -> Count {
        let mut count = Count::default();
        let mut ended = BTreeMap::new();
        for line in self.text.lines() {
            if let Some((name, passed)) = outcome(line) {
                ended.insert(name, passed);
            }
        }
        for passed in ended.into_values() {
            count.passed += u64::from(passed);
            count.failed += u64::from(!passed);
        }
        count
    }

    /// The tests whose first attempt failed, each with the beginning of its reason, apart by
    /// whether their last one did.
    fn failures(&self) -> (Vec<String>, Vec<String>) {
        let mut failures = tests_cmd::failures(&self.text);
        let mut seen = BTreeSet::new();
        failures.retain(|failure| seen.insert(named(failure).to_owned()));
        let passed = |name: &str| {
            let mut outcomes = self.text.lines().filter_map(outcome);
            outcomes.any(|(own, passed)| passed && own == name)
        };
        failures.into_iter().partition(|f| !passed(named(f)))
    }
}

/// Returns the name in a line of [`tests_cmd::failures`].
fn named(failure: &str) -> &str {
    failure.lines().next().unwrap_or_default()
}

/// Returns the test whose end a line reports, and whether it passed.
fn outcome(line: &str) -> Option<(&str, bool)> {
    let (name, end) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let ends = |word: &str| {
        end.strip_prefix(word)
            .is_some_and(|rest| rest.starts_with(' '))
    };
    (ends("ok") || ends("FAILED")).then(|| (name, ends("ok")))
}

/// The place where a suite runs.
#[derive(Debug)]
pub(crate) enum Place<'a> {
    /// The agent's, in dom0 of a fresh host: the tests whose names contain one of these words, or
    /// all.
    Dom0(&'a Host, Vec<String>),
    /// The package's, on a Debian dom0 of a host's release, built from this mirror.
    Debian(&'a Host, Option<&'a str>),
}

impl Place<'_> {
    /// The name of its outcome.
    fn name(&self) -> String {
        match self {
            Self::Dom0(host, only) if only.len() > 1 => {
                format!("Xen {}: {}", host.parts.release.folder(), only.join(" "))
            }
            Self::Dom0(host, _) => format!("real Xen {}", host.parts.release.folder()),
            Self::Debian(host, _) => format!("Debian's dom0, {}", host.parts.release.suite),
        }
    }
}

/// Runs a suite and shows its output, each line after `prefix`.
pub(crate) fn run(place: &Place<'_>, timeout: Duration, prefix: &str) -> Outcome {
    let name = place.name();
    println!("\n== {name}");
    let started = Instant::now();
    let mut output = Output::default();
    let mut stood = Vec::new();
    let deadline = started + timeout;
    let (result, log) = match place {
        Place::Dom0(host, only) => {
            let limits = (deadline, SILENCE);
            let command =
                |from: Option<&String>, failed: &[&str]| command(only, from, failed, host.pci());
            let run: &Machine<'_> = &|job, sink| host.run(job, sink);
            let result = machines(run, &command, limits, prefix, &mut output, &mut stood);
            (result, Some(host.log()))
        }
        Place::Debian(host, mirror) => match Debian::prepare(host, *mirror) {
            Ok(debian) => {
                // Its tests build on each other: another machine begins from the start.
                let limits = (deadline, REBOOT);
                let command = |_: Option<&String>, _: &[&str]| String::new();
                let run: &Machine<'_> = &|job, sink| debian.run(job, sink);
                let result = machines(run, &command, limits, prefix, &mut output, &mut stood);
                (result, Some(debian.log()))
            }
            Err(error) => (Err(error), None),
        },
    };
    let last = suite_count(&output.text);
    let fault = match (&result, last) {
        (Err(error), _) => Some(format!("{error:#}")),
        (Ok(status), None) => Some(format!(
            "it ended with status {status} and without its count"
        )),
        (Ok(status), Some(Count { failed: 0, .. })) if *status != 0 => {
            Some(format!("every test passed and yet its status was {status}"))
        }
        _ => None,
    };
    let count = match (last, place) {
        (Some(count), Place::Debian(..)) => count,
        (Some(count), _) if stood.is_empty() => count,
        _ => output.ended(),
    };
    if let (Some(log), true) = (log, fault.is_some() || count.failed > 0) {
        println!("the host's console: {}", Workspace::show(&log));
    }
    output.over();
    let (failures, passed_later) = output.failures();
    let mut note = output.times();
    for failure in passed_later {
        note = format!("passed at the second attempt: {failure}\n    {note}");
    }
    if !stood.is_empty() {
        let tests = stood.join(", ");
        note = format!(
            "the emulator stood still in {tests}; another machine went on from there; {note}"
        );
    }
    Outcome {
        name,
        count,
        failures,
        fault,
        note: Some(note),
        rules: Rules::from_output(&output.text),
        took: started.elapsed(),
    }
}

/// Boots a machine for a job and follows it to its end.
type Machine<'a> = dyn Fn(&Job, &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<i32> + 'a;

/// Runs the suite to its end, and gives its status.
fn machines(
    run: &Machine<'_>,
    command: &dyn Fn(Option<&String>, &[&str]) -> String,
    (deadline, silence): (Instant, Silence),
    prefix: &str,
    output: &mut Output,
    stood: &mut Vec<String>,
) -> Result<i32> {
    loop {
        let failures = output.failures().0;
        let failed: Vec<&str> = failures.iter().map(|failure| named(failure)).collect();
        let job = Job {
            command: Some(command(stood.last(), &failed)),
            shell: false,
            timeout: deadline.saturating_duration_since(Instant::now()),
            silence: Some(silence),
            ..Job::default()
        };
        let result = run(&job, &mut |bytes| {
            show(prefix, &output.take(bytes, job.used()))?;
            if output.crawls() {
                return Err(StoodStill::nearly(TEST).into());
            }
            Ok(())
        });
        let error = match result {
            Err(error) if error.is::<StoodStill>() => error,
            Err(error) => {
                let test = output.over();
                return Err(error.context(format!("while {test} ran")));
            }
            result => return result,
        };
        output.line.clear();
        let test = output.over();
        let before = stood.iter().filter(|name| **name == test).count();
        // One that failed before, in this machine or another.
        let second = output
            .failures()
            .0
            .iter()
            .any(|failure| named(failure) == test);
        if test.is_empty() || second || stood.len() + 2 > MACHINES || before == IN_ONE_TEST {
            return Err(error).with_context(|| format!("in {test}"));
        }
        println!("xtask: in {test}: {error:#}");
        println!("xtask: another machine goes on with {test}");
        stood.push(test);
    }
}

/// Prints whole lines, each after a prefix.
pub(crate) fn show(prefix: &str, lines: &[u8]) -> std::io::Result<()> {
    let mut out = stdout().lock();
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        out.write_all(prefix.as_bytes())?;
        out.write_all(line)?;
    }
    out.flush()
}

/// The suite's command line.
fn command(only: &[String], from: Option<&String>, failed: &[&str], pci: bool) -> String {
    let mut command = format!("exec xen-testbed-agent suite --beat --again {AGAIN}");
    if pci {
        command.push_str(" --pci");
    }
    let only = only.iter().map(|word| ("--only", word.as_str()));
    let failed = failed.iter().map(|word| ("--failed", *word));
    let from = from.map(|word| ("--from", word.as_str()));
    for (option, word) in only.chain(from).chain(failed) {
        command.push_str(&format!(" {option} '{}'", word.replace('\'', r"'\''")));
    }
    command
}

/// The suite's last line, `N passed, N failed`.
fn suite_count(text: &str) -> Option<Count> {
    let line = text.lines().rev().find(|l| !l.trim().is_empty())?;
    let (passed, failed) = line.trim().split_once(" passed, ")?;
    Some(Count {
        passed: passed.parse().ok()?,
        failed: failed.strip_suffix(" failed")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_for_us_is_not_shown_however_it_is_cut() {
        let whole = b"running\n\x01begin a/b\ntest a/b ... ok (1.00 s)\n\x01beat\n\x01begin a/c\n1 passed, 0 failed\n";
        for cut in 0..whole.len() {
            let mut output = Output::default();
            let mut shown = output.take(&whole[..cut], Duration::ZERO);
            shown.extend(output.take(&whole[cut..], Duration::ZERO));
            assert_eq!(
                String::from_utf8(shown).unwrap(),
                "running\ntest a/b ... ok (1.00 s)\n1 passed, 0 failed\n"
            );
            assert!(!output.crawls());
            assert_eq!(output.silence, Duration::ZERO);
            assert_eq!(output.over(), "a/c");
            let times: Vec<&str> = output
                .longest
                .iter()
                .map(|(_, name)| name.as_str())
                .collect();
            assert_eq!(times.len(), 2);
            assert!(times.contains(&"a/b"));
            assert_eq!((output.ended().passed, output.ended().failed), (1, 0));
            assert_eq!(suite_count(&output.text).unwrap().passed, 1);
        }
    }

    #[test]
    fn a_test_crawls_by_the_emulators_time_alone() {
        let mut output = Output::default();
        output.take(b"\x01begin a/b\n", TEST);
        output.take(b"\x01beat\n", TEST * 2);
        assert!(!output.crawls());
        output.take(b"\x01beat\n", TEST * 2 + Duration::from_millis(1));
        assert!(output.crawls());
    }

    #[test]
    fn the_longest_silence_is_one_within_a_test() {
        let seconds = Duration::from_secs;
        let mut output = Output::default();
        output.take(b"\x01begin a/b\n", seconds(30));
        output.take(b"\x01beat\n", seconds(37));
        output.take(b"\x01beat\n", seconds(40));
        let text = output.times();
        assert!(text.ends_with("longest silence 7 s"), "{text}");
    }

    #[test]
    fn the_suites_count_must_be_its_last_line() {
        assert_eq!(
            suite_count("test a ... ok\n12 passed, 1 failed\n\n"),
            Some(Count {
                passed: 12,
                failed: 1
            })
        );
        assert_eq!(suite_count("12 passed, 1 failed\nkilled"), None);
        assert_eq!(suite_count(""), None);
    }

    #[test]
    fn a_suite_is_gone_on_with_by_name() {
        let from = "a/b".to_owned();
        assert!(command(&[], Some(&from), &[], false).ends_with(" --from 'a/b'"));
        let only = ["a".to_owned(), "b".to_owned()];
        assert!(command(&only, None, &[], true).ends_with(" --pci --only 'a' --only 'b'"));
        let failed = command(&[], Some(&from), &["a/c", "a/d"], false);
        assert!(failed.ends_with(" --from 'a/b' --failed 'a/c' --failed 'a/d'"));
    }

    #[test]
    fn a_test_counts_by_its_last_attempt_and_its_first_failure_is_shown() {
        let mut output = Output::default();
        output.take(
            b"test a/b ... ok (1.00 s)\ntest a/c ... FAILED (1.00 s)\n    why\n\
              test a/d ... FAILED (1.00 s)\n    that\n\
              test a/c ... ok at the second attempt (1.00 s)\n",
            Duration::ZERO,
        );
        let count = |passed, failed| Count { passed, failed };
        let c = || vec!["a/c\n        why".to_owned()];
        let d = || vec!["a/d\n        that".to_owned()];
        assert_eq!(output.ended(), count(2, 1));
        assert_eq!(output.failures(), (d(), c()));
        output.take(
            b"test a/e ... FAILED (1.00 s)\n\
              test a/d ... FAILED at the second attempt (1.00 s)\n    this\n\
              test a/e ... ok at the second attempt (1.00 s)\n",
            Duration::ZERO,
        );
        assert_eq!(output.ended(), count(3, 1));
        assert_eq!(
            output.failures(),
            (d(), [c(), vec!["a/e".to_owned()]].concat())
        );
    }

    #[test]
    fn a_test_that_failed_and_then_stands_still_ends_the_suite() {
        let boots = |output: &'static [u8]| {
            let boots = Cell::new(0);
            let run: &Machine<'_> = &|_, sink| {
                boots.set(boots.get() + 1);
                match boots.get() {
                    1 => {
                        sink(output)?;
                        Err(StoodStill::nearly(TEST).into())
                    }
                    _ => Ok(0),
                }
            };
            let limits = (Instant::now() + REBOOT.clock, SILENCE);
            let command = |_: Option<&String>, _: &[&str]| String::new();
            let (mut output, mut stood) = (Output::default(), Vec::new());
            let _ = machines(
                run,
                &command,
                limits,
                "of a test | ",
                &mut output,
                &mut stood,
            );
            boots.get()
        };
        assert_eq!(boots(b"\x01begin a/b\n"), 2);
        let again = b"\x01begin a/b\ntest a/b ... FAILED (1.00 s)\n\x01begin a/b\n";
        assert_eq!(boots(again), 1);
    }
}
