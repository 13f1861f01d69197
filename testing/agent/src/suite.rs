//! The runner of the tests on real Xen: one after the other, and nothing of any of them may stay.
//!
//! A test that cannot run fails: nothing is skipped. The last line is `N passed, N failed`.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::leftovers::{Snapshot, assert_none};
use crate::watch::Watch;
use crate::world::{Place, Privcmd, World};

/// The domains that a test acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    Dom0,
    DomU(Privcmd),
    /// Two domUs that talk to each other; privcmd refuses in both.
    TwoDomUs,
    /// The HVM guest with a stubdomain.
    Guest,
}

type Body = Box<dyn Fn(&World) -> Result<()>>;

/// One test.
pub(crate) struct Test {
    pub(crate) name: String,
    pub(crate) needs: Needs,
    body: Body,
    /// It opens privcmd in the domU on purpose.
    opens_privcmd: bool,
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
        body: impl Fn(&World) -> Result<()> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            needs,
            body: Box::new(body),
            opens_privcmd: false,
        }
    }

    pub(crate) fn opens_privcmd(self) -> Self {
        Self {
            opens_privcmd: true,
            ..self
        }
    }
}

/// Runs the tests whose names contain a word of `only` (all if there is none), from the one called
/// `from` on. With `beat`, prints lines for the program that follows from outside. Returns how many
/// failed.
pub(crate) fn run(
    tests: impl Iterator<Item = Test>,
    only: &[String],
    from: Option<&str>,
    beat: bool,
) -> Result<usize> {
    let tests = chosen(tests, only, from)?;
    let world = World::new()?;
    let watch = Watch::start(beat);
    let began = Instant::now();
    println!("running {} tests on real Xen", tests.len());
    let mut failed = Vec::new();
    for test in &tests {
        let start = watch.begin(&test.name);
        let result = run_one(&world, test);
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("test {} ... ok ({seconds:.2} s)", test.name),
            Err(error) => {
                println!("test {} ... FAILED ({seconds:.2} s)", test.name);
                for line in format!("{error:?}").lines() {
                    println!("    {line}");
                }
                failed.push(test.name.as_str());
            }
        }
    }
    watch.begin("the end of the domUs");
    drop(world);
    if !failed.is_empty() {
        println!("\nfailed:");
        failed.iter().for_each(|name| println!("    {name}"));
    }
    println!("\nfinished in {:.1} s", began.elapsed().as_secs_f64());
    println!(
        "{} passed, {} failed",
        tests.len() - failed.len(),
        failed.len()
    );
    Ok(failed.len())
}

/// The tests to be run. A word of `only` that is in no test's name is an error.
fn chosen(
    tests: impl Iterator<Item = Test>,
    only: &[String],
    from: Option<&str>,
) -> Result<Vec<Test>> {
    let tests: Vec<Test> = tests.collect();
    for word in only {
        if !tests.iter().any(|test| test.name.contains(word)) {
            bail!("no test has `{word}` in its name");
        }
    }
    let chosen: Vec<Test> = tests
        .into_iter()
        .skip_while(|test| from.is_some_and(|first| test.name != first))
        .filter(|test| only.is_empty() || only.iter().any(|word| test.name.contains(word)))
        .collect();
    if chosen.is_empty() {
        bail!("no test is called `{}`", from.unwrap_or_default());
    }
    Ok(chosen)
}

fn run_one(world: &World, test: &Test) -> Result<()> {
    world.provide(test.needs)?;
    let before = Snapshot::take(&world.store)?;
    let opens = world.privcmd_opens()?;
    let result = (test.body)(world);
    let clean = assert_none(&world.store, &before);
    if result.is_err() {
        tidy(world);
    }
    match (result, clean) {
        (Ok(()), clean) => clean?,
        (Err(error), Ok(())) => return Err(error),
        (Err(error), Err(left)) => return Err(error.context(format!("and {left}"))),
    }
    // None, if the test has ended the domU.
    let opened = world.privcmd_opens()?.saturating_sub(opens);
    if test.opens_privcmd != (opened > 0) {
        bail!("privcmd was opened {opened} times in the domU");
    }
    Ok(())
}

/// After a failure: takes away what the tests make, so that the next one has a fair start.
fn tidy(world: &World) {
    for place in [Place::Dom0, Place::DomU, Place::Second] {
        if let Ok(folder) = world.folder(place) {
            let _ = world.store.rm(&folder);
        }
    }
    if !world.has_guest() {
        crate::guest::destroy_leftover();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_in_no_tests_name_is_refused() {
        let all = || ["a/one", "a/two", "b/one"].map(|n| Test::new(n, Needs::Dom0, |_| Ok(())));
        let names = |only: &[&str], from| -> Result<Vec<String>> {
            let only: Vec<_> = only.iter().map(|&word| word.to_owned()).collect();
            let chosen = chosen(all().into_iter(), &only, from)?;
            Ok(chosen.into_iter().map(|test| test.name).collect())
        };
        assert_eq!(names(&[], None).unwrap().len(), 3);
        assert_eq!(names(&["two", "b/"], None).unwrap(), ["a/two", "b/one"]);
        assert_eq!(names(&["a/"], Some("a/two")).unwrap(), ["a/two"]);
        // Tests that another machine has run already count.
        assert_eq!(names(&["a/", "b/"], Some("b/one")).unwrap(), ["b/one"]);
        assert!(names(&["a/", "three"], None).is_err());
        assert!(names(&[], Some("three")).is_err());
    }
}
