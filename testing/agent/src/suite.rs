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

/// Runs the tests whose names contain a word of `only` (all if there is none), from the one called `from` on. With `beat`, prints
/// lines for the program that follows from outside. Returns how many failed.
pub(crate) fn run(
    tests: impl Iterator<Item = Test>,
    only: &[String],
    from: Option<&str>,
    beat: bool,
) -> Result<usize> {
    let tests: Vec<Test> = tests
        .skip_while(|test| from.is_some_and(|first| test.name != first))
        .filter(|test| only.is_empty() || only.iter().any(|part| test.name.contains(part)))
        .collect();
    if tests.is_empty() {
        bail!("no test has `{}` in its name", only.join("` or `"));
    }
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
