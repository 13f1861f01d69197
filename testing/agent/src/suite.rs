//! The runner of the tests on real Xen: one after the other, and nothing of any of them may stay.
//!
//! A test that cannot run fails: nothing is skipped. The last line is `N passed, N failed`.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::host::{Place, Privcmd, TestHost};
use crate::leftovers::{Snapshot, assert_none};
use crate::watch::Watch;

/// The domains that a test acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    Dom0,
    DomU(Privcmd),
    /// Two domUs that talk to each other; privcmd refuses in both.
    TwoDomUs,
    /// The HVM guest with a stubdomain.
    Guest,
    /// Our package in dom0; the test makes its guests, if it has any.
    Package,
}

impl Needs {
    /// Returns whether hosts of this architecture have what is needed: there are neither HVM guests
    /// nor stubdomains on Arm.
    pub(crate) fn is_there(self) -> bool {
        cfg!(target_arch = "x86_64") || !matches!(self, Self::Guest | Self::Package)
    }
}

type Body = Box<dyn Fn(&TestHost) -> Result<()>>;

/// One test.
pub(crate) struct Test {
    pub(crate) name: String,
    pub(crate) needs: Needs,
    body: Body,
    /// It opens privcmd in the domU on purpose.
    opens_privcmd: bool,
    /// It takes so long that it runs only if its name is given.
    on_request: bool,
}

impl std::fmt::Debug for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Test")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Test {
    pub(crate) fn new(
        name: impl Into<String>,
        needs: Needs,
        body: impl Fn(&TestHost) -> Result<()> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            needs,
            body: Box::new(body),
            opens_privcmd: false,
            on_request: false,
        }
    }

    pub(crate) fn opens_privcmd(self) -> Self {
        Self {
            opens_privcmd: true,
            ..self
        }
    }

    pub(crate) fn on_request(self) -> Self {
        Self {
            on_request: true,
            ..self
        }
    }
}

/// The tests that are run a second time.
///
/// An emulated processor's wrong fault can fail any test with an HVM guest, and is rare: what fails
/// twice is not the emulator's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Again {
    /// The most tests. If more fail, none is.
    pub(crate) most: usize,
    /// The tests that failed in another machine, before it hung.
    pub(crate) failed: Vec<String>,
}

/// Runs the tests whose names contain a word of `only` (all but those on request if there is none),
/// from the one called `from` on, then those that failed once more. With `beat`, prints lines for
/// the program that follows from outside. Returns how many failed.
pub(crate) fn run(
    tests: &[Test],
    only: &[String],
    from: Option<&str>,
    again: Again,
    beat: bool,
) -> Result<usize> {
    let (chosen, missing) = chosen(tests, only, from, Needs::is_there)?;
    let mut failed = again.failed;
    let count = chosen.len() + failed.len();
    let host = TestHost::new()?;
    let watch = Watch::start(beat);
    let began = Instant::now();
    println!("running {count} tests on real Xen");
    if !missing.is_empty() {
        println!(
            "{} tests NOT RUN: there are no HVM guests and no stubdomains on this architecture:\n    {}",
            missing.len(),
            groups(&missing)
        );
    }
    let attempt = |test: &Test, which: &str| {
        let start = watch.begin(&test.name);
        let result = run_one(&host, test);
        let seconds = start.elapsed().as_secs_f64();
        match &result {
            Ok(()) => println!("test {} ... ok{which} ({seconds:.2} s)", test.name),
            Err(error) => {
                println!("test {} ... FAILED{which} ({seconds:.2} s)", test.name);
                for line in format!("{error:?}").lines() {
                    println!("    {line}");
                }
            }
        }
        result.is_ok()
    };
    for test in chosen {
        if !attempt(test, "") {
            failed.push(test.name.clone());
        }
    }
    if failed.len() <= again.most {
        failed.retain(|name| {
            let test = tests.iter().find(|test| test.name == *name);
            !test.is_some_and(|test| attempt(test, SECOND))
        });
    }
    watch.begin("the end of the domUs");
    drop(host);
    if !failed.is_empty() {
        println!("\nfailed:");
        failed.iter().for_each(|name| println!("    {name}"));
    }
    println!("\nfinished in {:.1} s", began.elapsed().as_secs_f64());
    println!("{} passed, {} failed", count - failed.len(), failed.len());
    Ok(failed.len())
}

/// A second attempt, in the line of its outcome.
const SECOND: &str = " at the second attempt";

/// Returns how many tests each group has, as in `save 5, screen 2`.
fn groups(tests: &[&Test]) -> String {
    let mut counts = BTreeMap::new();
    for test in tests {
        let group = test.name.split('/').next().unwrap_or_default();
        *counts.entry(group).or_insert(0) += 1;
    }
    let counts: Vec<String> = counts
        .iter()
        .map(|(name, n)| format!("{name} {n}"))
        .collect();
    counts.join(", ")
}

/// Tests in the order in which they run.
type Tests<'a> = Vec<&'a Test>;

/// The tests to be run, and those whose needs hosts of this architecture never meet. A word of
/// `only` that is in no test's name is an error.
fn chosen<'a>(
    tests: &'a [Test],
    only: &[String],
    from: Option<&str>,
    is_there: fn(Needs) -> bool,
) -> Result<(Tests<'a>, Tests<'a>)> {
    for word in only {
        if !tests.iter().any(|test| test.name.contains(word)) {
            bail!("no test has `{word}` in its name");
        }
    }
    let (chosen, missing): (Tests<'_>, Tests<'_>) = tests
        .iter()
        .skip_while(|test| from.is_some_and(|first| test.name != first))
        .filter(|test| match only {
            [] => !test.on_request,
            words => words.iter().any(|word| test.name.contains(word)),
        })
        .partition(|test| is_there(test.needs));
    if chosen.is_empty() && !missing.is_empty() {
        bail!(
            "none of these tests can run on this architecture: {}",
            groups(&missing)
        );
    }
    if chosen.is_empty() {
        bail!("no test is called `{}`", from.unwrap_or_default());
    }
    Ok((chosen, missing))
}

fn run_one(host: &TestHost, test: &Test) -> Result<()> {
    host.provide(test.needs)?;
    let before = Snapshot::take(&host.store)?;
    let opens = host.privcmd_opens()?;
    let result = (test.body)(host);
    let clean = assert_none(&host.store, &before);
    if result.is_err() {
        tidy(host);
    }
    match (result, clean) {
        (Ok(()), clean) => clean?,
        (Err(error), Ok(())) => return Err(error),
        (Err(error), Err(left)) => return Err(error.context(format!("and {left}"))),
    }
    // None, if the test has ended the domU.
    let opened = host.privcmd_opens()?.saturating_sub(opens);
    if test.opens_privcmd != (opened > 0) {
        bail!("privcmd was opened {opened} times in the domU");
    }
    Ok(())
}

/// After a failure: takes away what the tests make, so that the next one has a fair start.
fn tidy(host: &TestHost) {
    for place in [Place::Dom0, Place::DomU, Place::Second] {
        if let Ok(folder) = host.folder(place) {
            let _ = host.store.rm(&folder);
        }
    }
    if !host.has_guest() {
        crate::guest::destroy_leftover();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_in_no_tests_name_is_refused() {
        let test = |name| Test::new(name, Needs::Dom0, |_| Ok(()));
        let [a1, a2, b1, c] = ["a/one", "a/two", "b/one", "c/long"].map(test);
        let all = [a1, a2, b1, c.on_request()];
        let names = |only: &[&str], from| -> Result<Vec<String>> {
            let only: Vec<_> = only.iter().map(|&word| word.to_owned()).collect();
            let (chosen, missing) = chosen(&all, &only, from, |_| true)?;
            assert!(missing.is_empty());
            Ok(chosen.into_iter().map(|test| test.name.clone()).collect())
        };
        assert_eq!(names(&[], None).unwrap().len(), 3);
        assert_eq!(names(&["two", "b/"], None).unwrap(), ["a/two", "b/one"]);
        assert_eq!(names(&["b/", "long"], None).unwrap(), ["b/one", "c/long"]);
        assert_eq!(names(&["a/"], Some("a/two")).unwrap(), ["a/two"]);
        // Tests that another machine has run already count.
        assert_eq!(names(&["a/", "b/"], Some("b/one")).unwrap(), ["b/one"]);
        assert!(names(&["a/", "three"], None).is_err());
        assert!(names(&[], Some("three")).is_err());
    }

    #[test]
    fn tests_that_cannot_run_here_are_named_and_not_run() {
        let all = [
            ("a/one", Needs::Dom0),
            ("a/two", Needs::Guest),
            ("b/one", Needs::Package),
            ("b/two", Needs::Package),
        ]
        .map(|(name, needs)| Test::new(name, needs, |_| Ok(())));
        let only = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
            chosen(&all, &words, None, |needs| needs == Needs::Dom0)
        };
        let (chosen, missing) = only(&[]).unwrap();
        assert_eq!(chosen.len(), 1);
        assert_eq!(groups(&missing), "a 1, b 2");
        let error = only(&["b/"]).unwrap_err().to_string();
        assert!(error.ends_with("on this architecture: b 2"), "{error}");
    }
}
