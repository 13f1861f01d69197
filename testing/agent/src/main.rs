//! The test program of the testbed: it runs in dom0 and in domUs and carries out the tests on real
//! Xen.
//!
//! ```text
//! xen-testbed-agent suite [--only PART] [--list]     in dom0: runs the tests
//! xen-testbed-agent role ROLE ...                    anywhere: one process of a test
//! as process 1                                       in a domU: runs roles for dom0
//! as process 1, with `boot` or `userland`            the Linux guest's two inits
//! ```
#![deny(unsafe_code)]

mod bench;
mod bench_calls;
mod bench_qmp;
mod bench_screen;
mod bench_start;
mod bench_store;
mod domu;
mod guest;
mod host;
mod job;
mod leftovers;
mod linux;
mod medium;
mod net;
mod programs;
mod qmp;
mod roles;
mod rpc;
mod serve;
mod stream;
mod suite;
mod tests;
mod vnc;
mod watch;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(about = "Carries out the tests on real Xen", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the tests: in dom0.
    Suite {
        /// Only the tests whose names contain this, or another such word.
        #[arg(long)]
        only: Vec<String>,
        /// How often all of them are run.
        #[arg(long, default_value_t = 1)]
        times: usize,
        /// Begins with this test.
        #[arg(long)]
        from: Option<String>,
        /// Runs failed tests once more at the end, if they are no more than this.
        #[arg(long, default_value_t = 0)]
        again: usize,
        /// Runs this test at the end, as one that failed in another machine.
        #[arg(long)]
        failed: Vec<String>,
        /// Says on lines of its own which test begins, and every few seconds that time passes.
        #[arg(long)]
        beat: bool,
        /// The tests of PCI passthrough, for a machine with an IOMMU, in place of the others.
        #[arg(long)]
        pci: bool,
        /// Says which tests there are and runs none.
        #[arg(long)]
        list: bool,
    },
    /// Compares ours with libxenvchan, between dom0 and a domU: in dom0.
    Bench {
        /// Only streams with this ring and write size in bytes (RING or RING,WRITE), or `pingpong`,
        /// `packets`
        #[arg(long)]
        only: Vec<String>,
    },
    /// Compares our proxy with upstream's on one guest: in dom0.
    BenchQmp,
    /// Compares these crates and the C libraries, call by call: in dom0.
    BenchCalls,
    /// Compares a guest's screen as consoled, dom0's QEMU and a QEMU without stubdomain serve it: in
    /// dom0.
    BenchScreen {
        /// How often the guests start.
        #[arg(long, default_value_t = 5)]
        starts: usize,
        /// Keys and pictures of each guest in each start.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// Measures a guest's start by steps: in dom0.
    BenchStart {
        /// The ramdisk with a shell as its init.
        shell: String,
        /// How often it starts in each way.
        #[arg(long, default_value_t = 5)]
        times: usize,
    },
    /// Compares xen-store with libxenstore, on this dom0's xenstored.
    BenchStore,
    /// Prints what libxl makes of each hostile stubdomain through one proxy: in dom0.
    HostileTable {
        /// `ours`, or the path of another.
        proxy: String,
        /// The stubdomain to begin with.
        #[arg(long)]
        from: Option<String>,
    },
    /// Does one thing in a process of its own, for a test.
    #[command(subcommand)]
    Role(roles::Role),
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        // The last argument names the part: the Linux guest's kernel passes it, and then its boot.
        // A PV domU's kernel passes on only words that are unknown to it.
        match std::env::args().skip(1).last() {
            Some(part) if linux::PARTS.contains(&part.as_str()) => linux::run(&part),
            _ => domu::run(),
        }
    }
    let name = std::env::args_os().next();
    if let Some(example) = name.as_deref().and_then(programs::named) {
        return example();
    }
    if name.is_some_and(|name| Path::new(&name).ends_with(roles::mortal::NAME)) {
        return end(roles::mortal::run().map(|()| 0));
    }
    end(match Cli::parse().command {
        Command::Suite {
            list: true, pci, ..
        } => {
            let tests = tests::of(pci);
            tests.iter().for_each(|test| println!("{}", test.name));
            Ok(0)
        }
        Command::Suite {
            only,
            times,
            from,
            again,
            failed,
            beat,
            pci,
            ..
        } => {
            let tests: Vec<_> = (0..times).flat_map(|_| tests::of(pci)).collect();
            let again = suite::Again {
                most: again,
                failed,
            };
            suite::run(&tests, &only, from.as_deref(), again, beat)
        }
        Command::Bench { only } => bench::run(&only).map(|()| 0),
        Command::BenchQmp => bench_qmp::run().map(|()| 0),
        Command::BenchCalls => bench_calls::run().map(|()| 0),
        Command::BenchScreen { starts, rounds } => bench_screen::run(starts, rounds).map(|()| 0),
        Command::BenchStart { shell, times } => bench_start::run(&shell, times).map(|()| 0),
        Command::BenchStore => bench_store::run().map(|()| 0),
        Command::HostileTable { proxy, from } => {
            let proxy = Some(proxy.as_str()).filter(|proxy| *proxy != "ours");
            tests::hostile::table(proxy, from.as_deref()).map(|()| 0)
        }
        Command::Role(role) => role.run().map(|()| 0),
    })
}

fn end(result: anyhow::Result<usize>) -> ExitCode {
    match result {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}
