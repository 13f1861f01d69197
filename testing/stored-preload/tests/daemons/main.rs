//! The client against three daemons: Debian's xenstored and oxenstored, on a fake hypervisor, and
//! ours.
//!
//! Each test runs once for each of them. Tests of rare orders are repeated:
//!
//! | environment | |
//! |---|---|
//! | `STORE_ROUNDS` | how often; once unless given |
//! | `STORE_READS` | reads of each task in a round; 100 unless given |

// The lint exempts test functions, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod asynchronous;
mod batches;
mod conformance;
mod daemon;
mod deadlines;
mod directories;
mod domains;
mod endings;
mod offers;
mod reads;
mod ring;
mod rounds;
mod transactions;
mod wakes;

/// Makes a test of each function and each daemon.
macro_rules! with_each_daemon {
    ($($name:ident),* $(,)?) => {
        mod xenstored { $(#[test] fn $name() { super::$name(crate::daemon::Kind::C); })* }
        mod oxenstored { $(#[test] fn $name() { super::$name(crate::daemon::Kind::OCaml); })* }
        mod embedded { $(#[test] fn $name() { super::$name(crate::daemon::Kind::Embedded); })* }
    };
}
/// As [`with_each_daemon`], for tests that stop a daemon, which is not possible with a thread of
/// ours.
macro_rules! with_each_process {
    ($($name:ident),* $(,)?) => {
        mod xenstored_stopped { $(#[test] fn $name() { super::$name(crate::daemon::Kind::C); })* }
        mod oxenstored_stopped { $(#[test] fn $name() { super::$name(crate::daemon::Kind::OCaml); })* }
    };
}
use {with_each_daemon, with_each_process};
