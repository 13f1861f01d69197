//! `cargo xtask soak`: the tests that can run for as long as one likes, in release, with progress.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, Result};

use crate::command::cargo;
use crate::workspace::Workspace;
use crate::{fuzz, host};

/// The run and its length.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Soak {
    /// vchan: random operations, kills, hostile inputs
    ///
    /// Each part says a seed when it fails; VCHAN_SOAK_SEED or VCHAN_FUZZ_SEED repeats it.
    Vchan {
        /// Random operations against the model, such as 1e10
        #[arg(long, value_name = "COUNT")]
        ops: Option<f64>,
        /// Processes and domains that end at random moments
        #[arg(long, value_name = "COUNT")]
        kills: Option<u32>,
        /// Seconds of hostile inputs, for each target
        #[arg(long, value_name = "SECONDS")]
        fuzz: Option<u32>,
    },
    /// xenstore: daemons that are killed and started again under 64 threads and 1,000 tasks
    ///
    /// xenstored, oxenstored and the embedded daemon. Unpacks Debian's if they are not there.
    Store {
        /// Kills of each daemon under the threads, and as many under the tasks
        #[arg(long, value_name = "COUNT")]
        restarts: u32,
        /// Only the daemons whose names (xenstored, oxenstored, embedded) begin with this
        #[arg(
            long,
            default_value = "",
            hide_default_value = true,
            value_name = "PART"
        )]
        daemon: String,
        /// Take Debian's packages from this mirror, not from this machine's own apt sources
        #[arg(long, value_name = "URL")]
        mirror: Option<String>,
    },
    /// xenstore: the client beside libxenstore, and the embedded daemon beside xenstored, by scripts
    ///
    /// Unpacks Debian's daemons and builds the C program, if they are not there.
    StoreConformance {
        /// Answers to compare in each of the four parts
        #[arg(long, default_value_t = 100_000, value_name = "COUNT")]
        answers: u64,
        /// The first script's seed; the time of day unless given
        #[arg(long, value_name = "SEED")]
        seed: Option<u64>,
        /// Take Debian's packages from this mirror, not from this machine's own apt sources
        #[arg(long, value_name = "URL")]
        mirror: Option<String>,
    },
    /// Hostile inputs that cargo-fuzz steers by coverage, for every fuzz target
    ///
    /// Findings stay in target/fuzz/corpus, and the next run begins with them.
    Fuzz {
        /// How long each target runs
        #[arg(long, value_name = "SECONDS")]
        seconds: u32,
        /// Only the targets whose names (CRATE-TARGET) contain this
        #[arg(long, value_name = "PART")]
        target: Option<String>,
    },
}

/// Runs the parts that were asked for, one after the other.
pub(crate) fn run(workspace: &Workspace, soak: Soak) -> Result<ExitCode> {
    let (ops, kills, fuzz) = match soak {
        Soak::Vchan { ops, kills, fuzz } => (ops, kills, fuzz),
        Soak::Fuzz { seconds, target } => {
            return fuzz::run(workspace, seconds, target.as_deref());
        }
        Soak::Store {
            restarts,
            daemon,
            mirror,
        } => {
            host::unpack_default(workspace, mirror.as_deref())?;
            let amount = restarts.to_string();
            let environment = [
                ("STORE_RESTARTS", amount.as_str()),
                ("STORE_DAEMON", daemon.as_str()),
            ];
            let passed = test(workspace, "xen-stored-preload", "storm", &environment, "")?;
            return Ok(exit_code(passed));
        }
        Soak::StoreConformance {
            answers,
            seed,
            mirror,
        } => {
            host::unpack_default(workspace, mirror.as_deref())?;
            let time = || SystemTime::UNIX_EPOCH.elapsed().map(|time| time.as_secs());
            let seed = seed.map_or_else(time, Ok)?.to_string();
            let environment = [
                ("STORE_CONFORMANCE", answers.to_string()),
                ("STORE_CONFORMANCE_SEED", seed),
            ];
            let environment = environment
                .each_ref()
                .map(|(name, value)| (*name, value.as_str()));
            let (package, filter) = ("xen-stored-preload", "conformance::");
            let passed = test(workspace, package, "daemons", &environment, filter)?;
            return Ok(exit_code(passed));
        }
    };
    let parts = [
        ("VCHAN_SOAK_OPS", ops.map(|n| n.to_string()), "soak", ""),
        (
            "VCHAN_KILLS",
            kills.map(|n| n.to_string()),
            "sim",
            "death::",
        ),
        (
            "VCHAN_FUZZ_SECONDS",
            fuzz.map(|n| n.to_string()),
            "fuzz",
            "",
        ),
    ];
    if parts.iter().all(|(_, amount, ..)| amount.is_none()) {
        anyhow::bail!("say how much: --ops, --kills or --fuzz");
    }
    for (variable, amount, target, filter) in parts {
        let Some(amount) = amount else { continue };
        if !test(
            workspace,
            "xen-vchan",
            target,
            &[(variable, &amount)],
            filter,
        )? {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs one test program with amounts in the environment. Returns whether it passed.
fn test(
    workspace: &Workspace,
    package: &str,
    target: &str,
    environment: &[(&str, &str)],
    filter: &str,
) -> Result<bool> {
    println!("\n== {target}: {environment:?}");
    let status = cargo()
        .args(["test", "--release", "-p", package, "--all-features"])
        .args(["--test", target, "--"])
        .args(["--nocapture", "--test-threads=1", filter])
        .envs(environment.iter().copied())
        .current_dir(workspace.root())
        .status()
        .context("starting cargo")?;
    Ok(status.success())
}

fn exit_code(passed: bool) -> ExitCode {
    if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
