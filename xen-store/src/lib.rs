//! A client of Xen's store: nodes, permissions, watches and transactions.
//!
//! The store is a small tree of values kept by a daemon in domain 0, through which domains find
//! each other. This crate implements its protocol (`docs/misc/xenstore.txt`) over the daemon's
//! socket or the kernel's device, with no C library and no `unsafe`.
//!
//! ```no_run
//! use xen_store::{Permissions, Store};
//! use xen_sys::{DomId, Xen};
//!
//! let store = Store::open(&Xen::open()?)?;
//! let peer = DomId::new(5);
//! store.write("data/offer", "1")?;
//! store.set_permissions("data/offer", &Permissions::owner_none(DomId::DOM0).grant_read(peer))?;
//!
//! let watch = store.watch("data/answer")?;
//! while let Some(event) = watch.next(None)? {
//!     println!("look at {}", event.path);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Layers
//!
//! ```text
//!   Store  Watch  Transaction      blocking, any number of threads      client watch txn
//!         driver                   who sleeps on the transport          driver tokio transport
//!           Mux                    who reads, writes, who is woken      mux ready_fd
//!        Connection                requests <-> replies, events         proto events
//!       Request  Plan              one operation; many together         request operations batch snapshot
//!   Header  Decoder  StorePath     bytes                                wire path perms error
//! ```
//!
//! [`proto`] and everything below does no I/O, reads no clock and cannot block.
//!
//! # Guarantees, whatever the daemon sends
//!
//! * No panic; memory bounded by the requests and watches the program holds.
//! * Every waiting request ends when the connection does, and returns the reason.
//! * A flood of watch events delays no reply, and loses no change that a reader would still see.
//! * Every request sent is one well-formed message: no field contains a NUL, no path a forbidden
//!   character, and nothing exceeds the length limits.

#![forbid(unsafe_code)]

mod batch;
mod cancel;
mod client;
mod condition;
mod deadline;
mod directory;
mod driver;
mod error;
mod events;
#[cfg(all(test, loom))]
mod models;
mod mux;
mod operations;
pub mod path;
mod perms;
#[cfg(feature = "unstable-plans")]
#[doc(hidden)]
pub mod plans;
pub mod proto;
mod ready_fd;
mod reconnect;
pub mod request;
mod snapshot;
mod spin;
mod sync;
#[cfg(feature = "tokio")]
pub mod tokio;
mod transport;
mod txn;
mod watch;
mod watch_set;
pub mod wire;
pub mod xenbus;

pub use batch::{Batch, MAX_IN_FLIGHT};
pub use cancel::Canceller;
pub use client::{LOOK_ONCE, Store};
pub use condition::TrackedReads;
pub use deadline::Deadline;
pub use error::{Error, Invalid, ProtocolError, Result, XsError};
pub use events::{MAX_DISTINCT_PATHS, WatchEvent};
pub use path::StorePath;
pub use perms::{Access, Perm, Permissions};
pub use reconnect::{Reconnect, Repeat};
pub use snapshot::{Change, MAX_TREE, Node, Snapshot};
pub use txn::{MAX_ATTEMPTS, MAX_PAUSE, Transaction};
pub use watch::Watch;
pub use watch_set::WatchSet;

// The programs in this page are compiled and run with the examples.
#[cfg(all(doctest, not(loom)))]
#[doc = include_str!("../../docs/watch-guest.md")]
struct WatchGuest;

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
