//! The embedded daemon, through our client and as bytes on the wire.
//!
//! A test that defends a sentence of `docs/misc/xenstore.txt` names it; the rest is what xenstored
//! 4.17 does.

// The lint exempts test functions, but not the helpers beside them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod domains;
mod hostile;
mod nodes;
mod perms;
mod quotas;
mod raw;
mod serial;
mod transactions;
mod watches;
