//! The suite on real Xen, followed from outside: in a machine, and in another if the emulator
//! stands still.
//!
//! A guest in which an emulated processor fault repeats itself takes an emulator all its time; the
//! machine's own hardly passes then, so nothing in it can give up. The suite says every few seconds
//! that time passes. When nothing comes for long, or one test takes very long on this machine's
//! clock, the machine is ended, and a new one begins with the test that was running. A test in
//! which three machines stood still has failed.

use std::io::{Write as _, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::host::{Host, Job, StoodStill};
use crate::rules::Rules;
use crate::tests_cmd::{Count, Outcome, Request};
use crate::workspace::Workspace;

/// The longest that the suite may say nothing; it says something every five seconds of the
/// machine's clock, which a busy host may make a minute.
const SILENCE: Duration = Duration::from_secs(240);
/// The longest that one test may take on this machine's clock: on a quiet one the longest takes
/// three minutes.
const TEST: Duration = Duration::from_secs(600);
/// Machines that are tried.
const MACHINES: usize = 6;
/// Machines that may stand still in one test.
const IN_ONE_TEST: usize = 2;

/// The suite's output so far.
#[derive(Debug, Default)]
struct Said {
    text: String,
    line: Vec<u8>,
    /// The test that runs, and since when.
    running: Option<(String, Instant)>,
    /// The tests that took longest on this machine's clock, the longest first.
    longest: Vec<(Duration, String)>,
}

impl Said {
    /// Takes bytes; gives those for the reader, whole lines.
    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
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
                        self.running = Some((name.to_owned(), Instant::now()));
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
        self.longest.push((since.elapsed(), name.clone()));
        self.longest.sort_by(|a, b| b.cmp(a));
        self.longest.truncate(3);
        name
    }

    /// Whether what runs takes far too long.
    fn crawls(&self) -> bool {
        let since = self.running.as_ref().map(|(_, since)| since.elapsed());
        since.is_some_and(|time| time > TEST)
    }

    /// Where the time went, for the reader.
    fn times(&self) -> String {
        let times = self.longest.iter();
        let times = times.map(|(time, name)| format!("{name} {} s", time.as_secs()));
        times.collect::<Vec<_>>().join(", ")
    }

    /// Tests that came to their end, by their lines.
    fn ended(&self) -> Count {
        let mut count = Count::default();
        for line in self.text.lines().filter(|line| line.starts_with("test ")) {
            count.passed += u64::from(line.contains(" ... ok ("));
            count.failed += u64::from(line.contains(" ... FAILED ("));
        }
        count
    }
}

/// The suite in dom0 of a fresh host.
pub(crate) fn run(workspace: &Workspace, request: &Request) -> Outcome {
    let name = format!("real Xen {}", request.options.release.name);
    println!("\n== {name}");
    let started = Instant::now();
    let mut said = Said::default();
    let mut stood = Vec::new();
    let result = Host::prepare(workspace, &request.options)
        .and_then(|host| Ok((machines(&host, request, &mut said, &mut stood)?, host.log())));
    let last = suite_count(&said.text);
    let fault = match (&result, last) {
        (Err(error), _) => Some(format!("{error:#}")),
        (Ok((status, _)), None) => Some(format!(
            "it ended with status {status} and without its count"
        )),
        (Ok((status, _)), Some(Count { failed: 0, .. })) if *status != 0 => {
            Some(format!("every test passed and yet its status was {status}"))
        }
        _ => None,
    };
    let count = match last {
        Some(count) if stood.is_empty() => count,
        _ => said.ended(),
    };
    if let (Ok((_, log)), true) = (&result, fault.is_some() || count.failed > 0) {
        println!("the host's console: {}", Workspace::show(log));
    }
    said.over();
    let mut note = format!("longest on this machine's clock: {}", said.times());
    if !stood.is_empty() {
        let tests = stood.join(", ");
        note = format!(
            "the emulator stood still in {tests}; another machine went on from there; {note}"
        );
    }
    Outcome {
        name,
        count,
        fault,
        note: Some(note),
        rules: Rules::said(&said.text),
        took: started.elapsed(),
    }
}

/// Runs the suite to its end, and gives its status.
fn machines(
    host: &Host,
    request: &Request,
    said: &mut Said,
    stood: &mut Vec<String>,
) -> Result<i32> {
    let deadline = Instant::now() + request.timeout;
    loop {
        let job = Job {
            command: Some(command(request.only.as_deref(), stood.last())),
            shell: false,
            timeout: deadline.saturating_duration_since(Instant::now()),
            silence: Some(SILENCE),
        };
        let result = host.run(&job, &mut |bytes| {
            let mut out = stdout().lock();
            out.write_all(&said.take(bytes))?;
            out.flush()?;
            if said.crawls() {
                return Err(StoodStill::nearly(TEST).into());
            }
            Ok(())
        });
        let error = match result {
            Err(error) if error.is::<StoodStill>() => error,
            Err(error) => {
                let test = said.over();
                return Err(error.context(format!("while {test} ran")));
            }
            result => return result,
        };
        said.line.clear();
        let test = said.over();
        let before = stood.iter().filter(|name| **name == test).count();
        if test.is_empty() || stood.len() + 2 > MACHINES || before == IN_ONE_TEST {
            return Err(error).with_context(|| format!("in {test}"));
        }
        println!("xtask: in {test}: {error:#}");
        println!("xtask: another machine goes on with {test}");
        stood.push(test);
    }
}

/// The suite's command line.
fn command(only: Option<&str>, from: Option<&String>) -> String {
    let mut command = String::from("exec xen-testbed-agent suite --beat");
    let options = [("--only", only), ("--from", from.map(String::as_str))];
    for (option, word) in options {
        if let Some(word) = word {
            command.push_str(&format!(" {option} '{}'", word.replace('\'', r"'\''")));
        }
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
    use super::*;

    #[test]
    fn what_is_for_us_is_not_shown_however_it_is_cut() {
        let whole = b"running\n\x01begin a/b\ntest a/b ... ok (1.00 s)\n\x01beat\n\x01begin a/c\n1 passed, 0 failed\n";
        for cut in 0..whole.len() {
            let mut said = Said::default();
            let mut shown = said.take(&whole[..cut]);
            shown.extend(said.take(&whole[cut..]));
            assert_eq!(
                String::from_utf8(shown).unwrap(),
                "running\ntest a/b ... ok (1.00 s)\n1 passed, 0 failed\n"
            );
            assert!(!said.crawls());
            assert_eq!(said.over(), "a/c");
            let times: Vec<&str> = said.longest.iter().map(|(_, name)| name.as_str()).collect();
            assert_eq!(times.len(), 2);
            assert!(times.contains(&"a/b"));
            assert_eq!((said.ended().passed, said.ended().failed), (1, 0));
            assert_eq!(suite_count(&said.text).unwrap().passed, 1);
        }
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
        assert!(command(None, Some(&from)).ends_with(" --from 'a/b'"));
    }
}
