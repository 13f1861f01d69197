//! The client against a scripted daemon at the other end of a socketpair.

// The lint exempts test functions, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod batches;
mod deadlines;
mod directory;
mod endings;
mod fake_daemon;
mod reconnect;
mod requests;
#[path = "../restarts/mod.rs"]
mod restarts;
mod sharing;
mod threads;
mod transactions;
mod waits;
mod watches;
