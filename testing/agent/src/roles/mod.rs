//! Roles: one run of this program each, in dom0 or in a domU, on behalf of a test.
//!
//! A role prints what the test waits for, one line each, and ends with exit status 0 when all it
//! saw was right.

mod bench_end;
mod evtchn;
mod gnttab;
mod hostile;
mod isolated;
mod monitor;
pub(crate) mod mortal;
mod privcmd;
mod qmp;
mod rules;
pub(crate) mod store;
mod vchan;

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Subcommand;

/// How long a role waits for the other side before it fails.
const PATIENCE: Duration = Duration::from_secs(100);

fn patience() -> Instant {
    Instant::now() + PATIENCE
}

#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// Opens a port for another domain and answers every event with an event.
    EvtchnEcho(evtchn::Echo),
    /// Binds to another domain's port, sends events and waits for the answer to each.
    EvtchnDrive(evtchn::Drive),
    /// Both ends of a channel in one domain.
    EvtchnLoopback(evtchn::Loopback),
    /// Shares pages, sees what the mapper wrote, and notices its end.
    GnttabShare(gnttab::Share),
    /// Maps pages, checks and writes them, and leaves or waits for the sharer's end.
    GnttabMap(gnttab::Map),
    /// Tries to map pages in a way that has to be refused.
    GnttabMapRefused(gnttab::MapRefused),
    /// Every operation of the store, below a folder.
    StoreBasics(store::Basics),
    /// A folder whose listing does not fit one message.
    StoreLarge(store::Large),
    /// Several threads on one connection.
    StoreThreads(store::Threads),
    /// Reads one node.
    StoreRead(store::Read),
    /// Writes one node.
    StoreWrite(store::Write),
    /// Lets another domain write in a folder.
    StoreSurrender(store::Surrender),
    /// Waits until a node has a value.
    StoreAwait(store::Await),
    /// One end of a vchan, as c-vchan-peer.c.
    Vchan(vchan::Peer),
    /// One end of a vchan on which a counter goes to and fro.
    VchanPingpong(vchan::Pingpong),
    /// One end of a comparison of ours with libxenvchan.
    BenchEnd(bench_end::BenchEnd),
    /// An operation of the hypervisor's, many times, on these crates.
    BenchCalls(bench_end::BenchCalls),
    /// A QMP client that waits to be killed.
    QmpClient(qmp::Client),
    /// The other end of the rules.
    RulesServe(rules::Serve),
    /// A hostile stubdomain's QMP server.
    Hostile(hostile::Hostile),
    /// Runs a program and prints how much memory it needed.
    Measured(hostile::Measured),
    /// Kills a process when dom0 requests it.
    Killer(mortal::Killer),
    /// Ends this domain: its kernel panics.
    Panic,
    /// Asks the hypervisor for its version.
    Version,
    /// Makes a few typed hypercalls.
    Hypercalls,
    /// Prints a line for each time that privcmd is opened.
    WatchPrivcmd,
    /// Is a guest's monitor that answers nothing, and waits to be killed.
    MonitorSilent(monitor::Silent),
    /// Runs a program where there is no /dev/xen.
    WithoutDevXen(isolated::WithoutDevXen),
    /// Makes hypercalls where there is no /dev/xen/hypercall.
    WithoutHypercallDevice,
}

impl Role {
    pub(crate) fn run(&self) -> Result<()> {
        match self {
            Self::EvtchnEcho(role) => role.run(),
            Self::EvtchnDrive(role) => role.run(),
            Self::EvtchnLoopback(role) => role.run(),
            Self::GnttabShare(role) => role.run(),
            Self::GnttabMap(role) => role.run(),
            Self::GnttabMapRefused(role) => role.run(),
            Self::StoreBasics(role) => role.run(),
            Self::StoreLarge(role) => role.run(),
            Self::StoreThreads(role) => role.run(),
            Self::StoreRead(role) => role.run(),
            Self::StoreWrite(role) => role.run(),
            Self::StoreSurrender(role) => role.run(),
            Self::StoreAwait(role) => role.run(),
            Self::Vchan(role) => role.run(),
            Self::VchanPingpong(role) => role.run(),
            Self::BenchEnd(role) => role.run(),
            Self::BenchCalls(role) => role.run(),
            Self::QmpClient(role) => role.run(),
            Self::RulesServe(role) => role.run(),
            Self::Hostile(role) => role.run(),
            Self::Measured(role) => role.run(),
            Self::Killer(role) => role.run(),
            Self::Panic => Ok(std::fs::write("/proc/sysrq-trigger", "c")?),
            Self::Version => privcmd::version(),
            Self::Hypercalls => privcmd::hypercalls(),
            Self::WatchPrivcmd => privcmd::watch(),
            Self::MonitorSilent(role) => role.run(),
            Self::WithoutDevXen(role) => role.run(),
            Self::WithoutHypercallDevice => isolated::without_hypercall_device(),
        }
    }
}
