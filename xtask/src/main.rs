//! The project's tasks: a real Xen host in QEMU, the demo, the tests, the gate.
//!
//! ```text
//!   release ─▶ apt, sources ─▶ store ─▶ a tree of unpacked packages
//!                                         │ cparts, dist, guest, and stubdm_image
//!                                         ▼
//!                                   images (cpio): dom0, stubdomain, PV guest
//!                                         │
//!                                         ▼
//!            xen, demo, test  ◀── host ◀── qemu, console
//! ```

mod api;
mod apt;
mod bench;
mod bench_calls;
mod bench_dom0;
mod bench_qmp;
mod bench_screen;
mod bench_start;
mod bench_store;
mod checklist;
mod ci;
mod command;
mod console;
mod cparts;
mod deb;
mod debian;
mod demo;
mod dist;
mod fuzz;
mod guest;
mod host;
mod images;
mod links;
mod miri;
mod nightly;
mod pages;
mod picture;
mod progress;
mod publish;
mod qemu;
mod release;
mod reproducible;
mod rules;
mod shell;
mod soak;
mod sources;
mod store;
mod suite;
mod tests_cmd;
mod tidy;
mod workspace;
mod xen_cmd;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};

use crate::workspace::Workspace;

/// The project's tasks: a real Xen host in QEMU, the demo, the tests, the gate.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// A shell, or one command, in dom0 of a fresh Xen host with our binaries on PATH
    ///
    /// The command's exit status is passed on. A single word is taken as a shell script, several as
    /// a command and its arguments; without a command and without a terminal, the standard input is
    /// the script. In dom0: /etc/xen/hvm.cfg is an HVM guest with a Linux stubdomain,
    /// /etc/xen/pv.cfg a small PV guest.
    Xen {
        #[command(flatten)]
        host: HostArgs,
        /// Give a shell after the command, and leave the host running meanwhile
        #[arg(long)]
        keep: bool,
        /// An IOMMU and two devices to pass through: e1000e at 0000:00:08.0, nvme at 0000:00:09.0
        #[arg(long)]
        pci: bool,
        /// The architecture of the host; on arm64, /etc/xen/pvh.cfg is a small guest
        #[arg(long, value_enum, default_value_t, conflicts_with = "pci")]
        arch: release::Arch,
        /// Kill the host when the command takes longer, in seconds
        #[arg(long, default_value_t = 600, value_name = "SECONDS")]
        timeout: u64,
        /// The command; without one, a shell (exit or Ctrl-] ends it)
        #[arg(last = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Watch unmodified Xen and xl start a guest whose QEMU runs in our stubdomain
    ///
    /// Shows the Xen version, guest and stubdomain in xl list, the guest's own console line, QMP
    /// answers over vchan through our proxy, a save and a restore, and a destroy that leaves
    /// nothing. Fails if one of them was not seen.
    Demo {
        #[command(flatten)]
        host: HostArgs,
        /// Kill the host when it takes longer, in seconds
        #[arg(long, default_value_t = 600, value_name = "SECONDS")]
        timeout: u64,
    },
    /// Boot a Xen host, start a guest with a screen, and write a picture of it
    Picture {
        #[command(flatten)]
        host: HostArgs,
        /// The file, relative to the workspace
        #[arg(long, default_value = "docs/screen.png", value_name = "FILE")]
        out: PathBuf,
        /// Kill the host when it takes longer, in seconds
        #[arg(long, default_value_t = 300, value_name = "SECONDS")]
        timeout: u64,
    },
    /// Run the tests: the workspace's own, then the suite on real Xen
    Test {
        #[command(flatten)]
        host: HostArgs,
        /// The architecture of the host; on arm64 only the suite on real Xen runs, without the tests
        /// of HVM guests and stubdomains, which Arm does not have
        #[arg(long, value_enum, default_value_t)]
        arch: release::Arch,
        /// Only the tests whose names contain this; may be repeated
        #[arg(long, value_name = "PART")]
        only: Vec<String>,
        /// Leave the suite on real Xen out, and say so
        #[arg(long)]
        no_xen: bool,
        /// Leave the workspace's own tests out, and say so
        #[arg(long, conflicts_with = "no_xen")]
        no_cargo: bool,
        /// Kill the host when the suite takes longer, in seconds
        #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
        timeout: u64,
    },
    /// Run the gate: formatting, clippy, documentation, fuzz targets, static binaries, demo, tests
    Ci {
        #[command(flatten)]
        host: HostArgs,
        /// Leave the tests out, and say so
        #[arg(long)]
        skip_tests: bool,
    },
    /// Run a test for as long as you like: random operations, kills, hostile inputs
    Soak {
        #[command(subcommand)]
        what: soak::Soak,
    },
    /// Compare ours with Xen's C libraries and tools; needs a quiet machine with two CPUs
    #[command(subcommand)]
    Bench(Bench),
    /// Build the static binaries, check that they are static, and write manual pages and
    /// completions beside them
    Dist,
    /// Write the manual pages and the shells' completions to target/dist
    Man,
    /// Write each library's public API to docs/api, with the nightly rustdoc
    Api {
        /// Compare only, and fail if something differs
        #[arg(long)]
        check: bool,
    },
    /// Package the libraries, and test a user's crate that depends on the packaged files alone
    Packages,
    /// Build the Debian packages: stubdm (the static binary, manual pages, completions, a unit,
    /// documents) and xen-rust-tools (xstore, and examples of the libraries)
    Deb {
        /// Only this one
        #[arg(value_parser = [deb::NAME, deb::tools::NAME])]
        package: Option<String>,
        /// The architecture; for arm64 there is xen-rust-tools alone
        #[arg(long, value_enum, default_value_t)]
        arch: release::Arch,
    },
    /// Carry out the checklist of a release: a line for each step, and the next step if it fails
    Release {
        /// Only the steps whose names contain this; may be repeated
        #[arg(long, value_name = "PART")]
        only: Vec<String>,
    },
    /// Build the static binary, its package and a ramdisk on two checkouts of the last commit, and
    /// fail unless they are the same bytes
    Reproducible,
    /// Download and verify every package; nothing is unpacked or booted
    Fetch {
        #[command(flatten)]
        host: HostArgs,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Throughput, round trips and their cost, of both ends ours, both ends C, and mixed
    Vchan {
        #[command(flatten)]
        host: HostArgs,
        /// A glance: fewer cells, shorter runs, in less than a minute
        #[arg(long)]
        quick: bool,
        /// Instructions of a write and a read, by valgrind, instead of times
        #[arg(long, conflicts_with_all = ["quick", "only", "xen"])]
        instructions: bool,
        /// Only streams with this ring and write size in bytes, or `pair`, `pingpong`, `packets`
        #[arg(long, value_name = "RING[,WRITE]")]
        only: Option<String>,
        /// The folder for vchan.md, vchan.svg and vchan.json, or vchan-instructions.md
        #[arg(long, default_value = "docs/benchmarks", value_name = "DIR")]
        out: PathBuf,
        /// On real Xen between dom0 and a PV domain too
        #[arg(long)]
        xen: bool,
        /// Kill the host when that takes longer, in seconds
        #[arg(long, default_value_t = 900, value_name = "SECONDS")]
        timeout: u64,
    },
    /// Hypercalls, foreign memory, grants and events beside the C libraries, on real Xen
    Calls {
        #[command(flatten)]
        host: HostArgs,
        /// The folder for calls.md
        #[arg(long, default_value = "docs/benchmarks", value_name = "DIR")]
        out: PathBuf,
        /// Kill the host when it takes longer, in seconds
        #[arg(long, default_value_t = 900, value_name = "SECONDS")]
        timeout: u64,
    },
    /// The store's client beside libxenstore, on Debian's xenstored without Xen, or on Xen
    Store {
        #[command(flatten)]
        host: HostArgs,
        /// Only the lines whose names contain this; nothing is written
        #[arg(long, value_name = "PART", conflicts_with = "xen")]
        only: Option<String>,
        /// Interleaved runs of a line, without Xen
        #[arg(
            long,
            default_value_t = 11,
            value_name = "COUNT",
            conflicts_with = "xen"
        )]
        rounds: usize,
        /// On real Xen, in dom0
        #[arg(long)]
        xen: bool,
        /// The folder for store.md, or store-xen.md
        #[arg(long, default_value = "docs/benchmarks", value_name = "DIR")]
        out: PathBuf,
        /// Kill the host when the comparison takes longer, in seconds
        #[arg(long, default_value_t = 1800, value_name = "SECONDS")]
        timeout: u64,
    },
    /// The memory, wake-ups and processor time of a guest's processes in dom0, without Xen
    Dom0 {
        /// Guests at once
        #[arg(long, default_value_t = 50, value_name = "COUNT")]
        guests: u32,
        /// The folder for dom0.md
        #[arg(long, default_value = "docs/benchmarks", value_name = "DIR")]
        out: PathBuf,
    },
    /// A guest's start by steps and its stubdomain's memory by items, on real Xen
    Start {
        #[command(flatten)]
        host: HostArgs,
        /// The folder for start.md and memory.md
        #[arg(long, default_value = "docs/benchmarks", value_name = "DIR")]
        out: PathBuf,
        /// Kill the host when it takes longer, in seconds
        #[arg(long, default_value_t = 1800, value_name = "SECONDS")]
        timeout: u64,
    },
    /// A guest's screen as consoled and as QEMU serve it: latency, bytes, wake-ups, memory, on real
    /// Xen
    Screen {
        #[command(flatten)]
        host: HostArgs,
        /// How often the guests start
        #[arg(long, default_value_t = 5)]
        starts: u32,
        /// The folder for screen.md
        #[arg(long, default_value = "docs/benchmarks", value_name = "DIR")]
        out: PathBuf,
        /// Kill the host when it takes longer, in seconds
        #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
        timeout: u64,
    },
    /// The host's QMP proxy and the distribution's vchan-socket-proxy, on one guest on real Xen
    Qmp {
        #[command(flatten)]
        host: HostArgs,
        /// The folder for qmp.md
        #[arg(long, default_value = "docs/benchmarks", value_name = "DIR")]
        out: PathBuf,
        /// Kill the host when it takes longer, in seconds
        #[arg(long, default_value_t = 900, value_name = "SECONDS")]
        timeout: u64,
    },
}

/// The parts of the host.
#[derive(Args, Debug)]
struct HostArgs {
    /// The Xen release; 4.17 unless given, and `test` then runs a part of its suite on 4.20 too
    #[arg(long, value_name = "X.Y")]
    release: Option<String>,
    /// Take Debian's packages from this mirror, not from this machine's own apt sources
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Use the static binaries as they were last built, if they were
    #[arg(long)]
    no_build: bool,
    /// Put a shell script in our init's place in the stubdomain
    #[arg(long, hide = true)]
    shell_init: bool,
}

impl HostArgs {
    fn options(&self) -> Result<host::Options> {
        self.options_on(release::Arch::Amd64)
    }

    fn options_on(&self, arch: release::Arch) -> Result<host::Options> {
        Ok(host::Options {
            release: release::on(arch, self.release.as_deref())?,
            mirror: self.mirror.clone(),
            no_build: self.no_build,
            shell_init: self.shell_init,
            pci: false,
        })
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == qemu::GUARD) {
        return report(guard(arguments).map(|()| ExitCode::SUCCESS));
    }
    report(run(Cli::parse().task))
}

fn report(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

fn guard(mut arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let parent = arguments.next().context("no parent")?;
    let parent = parent
        .to_str()
        .context("a parent that is no number")?
        .parse()?;
    qemu::guarded(parent, &arguments.collect::<Vec<_>>())
}

fn run(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    match task {
        Task::Xen {
            host,
            keep,
            pci,
            arch,
            timeout,
            command,
        } => {
            let options = host.options_on(arch)?;
            let request = xen_cmd::Request {
                options: host::Options { pci, ..options },
                keep,
                timeout: Duration::from_secs(timeout),
                command,
            };
            xen_cmd::run(&workspace, &request)
        }
        Task::Demo { host, timeout } => {
            demo::run(&workspace, &host.options()?, Duration::from_secs(timeout))
        }
        Task::Picture { host, out, timeout } => {
            let timeout = Duration::from_secs(timeout);
            picture::run(&workspace, &host.options()?, &out, timeout)
        }
        Task::Test {
            host,
            arch,
            only,
            no_xen,
            no_cargo,
            timeout,
        } => {
            let request = tests_cmd::Request {
                options: host.options_on(arch)?,
                other_release: arch == release::Arch::Amd64
                    && host.release.is_none()
                    && only.is_empty(),
                only,
                no_xen,
                no_cargo: no_cargo || arch != release::Arch::Amd64,
                timeout: Duration::from_secs(timeout),
            };
            tests_cmd::run(&workspace, &request)
        }
        Task::Ci { host, skip_tests } => ci::run(&workspace, &host.options()?, skip_tests),
        Task::Soak { what } => soak::run(&workspace, what),
        Task::Bench(Bench::Vchan {
            host,
            quick,
            instructions,
            only,
            out,
            xen,
            timeout,
        }) => {
            let request = bench::Request {
                options: host.options()?,
                quick,
                instructions,
                only,
                out,
                xen,
                timeout: Duration::from_secs(timeout),
            };
            bench::run(&workspace, &request)
        }
        Task::Bench(Bench::Store {
            host,
            only,
            rounds,
            xen,
            out,
            timeout,
        }) => {
            let options = host.options()?;
            if xen {
                let timeout = Duration::from_secs(timeout);
                bench_store::run_on_xen(&workspace, &options, &out, timeout)
            } else {
                bench_store::run(&workspace, &options, only.as_deref(), rounds, &out)
            }
        }
        Task::Bench(Bench::Calls { host, out, timeout }) => bench_calls::run(
            &workspace,
            &host.options()?,
            &out,
            Duration::from_secs(timeout),
        ),
        Task::Bench(Bench::Dom0 { guests, out }) => bench_dom0::run(&workspace, guests, &out),
        Task::Bench(Bench::Start { host, out, timeout }) => bench_start::run(
            &workspace,
            &host.options()?,
            &out,
            Duration::from_secs(timeout),
        ),
        Task::Bench(Bench::Screen {
            host,
            starts,
            out,
            timeout,
        }) => bench_screen::run(
            &workspace,
            &host.options()?,
            starts,
            &out,
            Duration::from_secs(timeout),
        ),
        Task::Bench(Bench::Qmp { host, out, timeout }) => bench_qmp::run(
            &workspace,
            &host.options()?,
            &out,
            Duration::from_secs(timeout),
        ),
        Task::Dist => {
            dist::build(&workspace)?;
            dist::report(&workspace)?;
            pages::write(&workspace)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Man => {
            pages::write(&workspace)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Api { check } => {
            let task = if check { api::check } else { api::write };
            task(&workspace)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Packages => {
            publish::check(&workspace)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Release { only } => checklist::run(&workspace, &only),
        Task::Reproducible => {
            reproducible::check(&workspace)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Deb { package, arch } => {
            let wanted = |name| package.as_ref().is_none_or(|package| package == name);
            let has_stubdomains = arch == release::Arch::Amd64;
            ensure!(
                has_stubdomains || package.as_deref() != Some(deb::NAME),
                "there are no stubdomains on {}",
                arch.debian()
            );
            if has_stubdomains && wanted(deb::NAME) {
                dist::build_shipped(&workspace)?;
                println!("{}", Workspace::show(&deb::build(&workspace)?));
            }
            if wanted(deb::tools::NAME) {
                println!("{}", Workspace::show(&deb::tools::build(&workspace, arch)?));
            }
            Ok(ExitCode::SUCCESS)
        }
        Task::Fetch { host } => {
            host::fetch(&workspace, &host.options()?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
