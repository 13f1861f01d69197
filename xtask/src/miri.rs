//! The gate's stage "Miri": the in-memory parts of all crates under the interpreter that checks the
//! language's rules, so that a data race, an access outside of an allocation or a wrong reference
//! is a certain failure.
//!
//! It runs code that makes no system call beyond clocks and files: rings on heap memory, protocol
//! cores, parsers. Random tests run a few cases only, set by `PROPTEST_CASES` and `cfg(miri)`.

use anyhow::{Context as _, Result, ensure};

use crate::nightly;
use crate::workspace::Workspace;

/// Tests of one package.
struct Part {
    package: &'static str,
    /// Its test targets, and the tests in them.
    arguments: &'static [&'static str],
    /// Schedules to be tried; 1 except for tests with threads.
    seeds: u32,
}

const PARTS: &[Part] = &[
    // Two threads over one page: the cursors order every copy, under each schedule.
    Part {
        package: "xen-vchan",
        arguments: &["--test", "model", "--", "two_threads"],
        seeds: 8,
    },
    Part {
        package: "xen-vchan",
        arguments: &["--test", "model", "--", "reaching", "a_run_ends"],
        seeds: 1,
    },
    // Not the requests of guests: that core is safe code, and takes minutes here.
    Part {
        package: "xen-gnttab",
        arguments: &["--lib", "--test", "region", "--", "--skip", "ioreq::"],
        seeds: 1,
    },
    // Two threads over one ring of requests, which sleep whenever there is nothing to do.
    Part {
        package: "xen-gnttab",
        arguments: &["--lib", "--", "two_threads"],
        seeds: 8,
    },
    Part {
        package: "xen-interface",
        arguments: &[
            "--lib",
            "--",
            "ids::",
            "error::",
            "monitor::",
            "privcmd::version::",
            "privcmd::domain::",
        ],
        seeds: 1,
    },
    Part {
        package: "xen-store",
        arguments: &["--lib", "--", "path::", "events::", "perms::"],
        seeds: 1,
    },
    Part {
        package: "xen-console",
        arguments: &["--lib", "--", "ring::"],
        seeds: 1,
    },
    Part {
        package: "stubdm-image",
        arguments: &["--lib", "--", "cpio::"],
        seeds: 1,
    },
    Part {
        package: "stubdm-qmp",
        arguments: &[
            "--lib",
            "--",
            "message::",
            "json::tests::a_literal",
            "lines::tests::an_unfinished",
        ],
        seeds: 1,
    },
];

/// Runs everything; the first fault ends it.
///
/// Without Miri the stage passes, except where `CI` is set: see [`nightly::has`].
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let install = "rustup component add miri rust-src --toolchain nightly";
    if !nightly::has("miri", "Miri was", install)? {
        return Ok(());
    }
    for part in PARTS {
        run(workspace, part)?;
    }
    Ok(())
}

fn run(workspace: &Workspace, part: &Part) -> Result<()> {
    // The clock and the environment are the machine's; proptest asks for both.
    let mut flags = String::from("-Zmiri-disable-isolation");
    if part.seeds > 1 {
        flags += &format!(" -Zmiri-many-seeds=0..{}", part.seeds);
    }
    println!("{} {}", part.package, part.arguments.join(" "));
    let status = nightly::cargo(&["miri", "test", "--quiet", "--locked", "-p", part.package])
        .args(part.arguments)
        .env("MIRIFLAGS", flags)
        .env("PROPTEST_CASES", "4")
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true")
        .env("CARGO_TARGET_DIR", workspace.root().join("target/miri"))
        .current_dir(workspace.root())
        .status()
        .context("starting cargo miri")?;
    ensure!(status.success(), "Miri: {} failed", part.package);
    Ok(())
}
