//! An embedded store daemon: the whole protocol, over sockets, in this process.
//!
//! For tests, simulations and tools that need a store where there is none. Clients see the
//! behaviour of xenstored of Xen 4.17: results, errors and their precedence, conflicts, quotas, the
//! order of events.
//!
//! ```text
//!   Server    thread, descriptors         server event_loop
//!   Daemon    bytes in -> bytes out       request admin conn watch
//!     View    one request's store         nodes view txn access quota domain
//!     Tree    nodes by path               tree
//! ```
//!
//! [`Daemon`] does no I/O and reads no clock; [`Server`] is a thin driver around it.
//!
//! # Differences from xenstored
//!
//! * There is no hypervisor to ask: any id below 0x7FF0 counts as a living domain, unless
//!   [`Config::domain_exists`] decides otherwise.
//! * A domain may have several connections, where it has one ring in Xen. Its quotas cover all of
//!   them together; transactions and watches belong to the connection that made them.
//! * No domain is slowed down for writing a lot.
//! * Events that a client is slow to read are merged (see [`MAX_EVENTS_PER_WATCH`]), where
//!   xenstored drops them when the domain's memory quota is used up.
//! * Memory is counted for nodes and watches, not for what is in flight.
//! * A malformed request is `EINVAL`, where xenstored 4.17 leaves the error of an earlier request
//!   in some cases.
//! * SET_PERMS on an `@name` that is unknown or not the caller's, and INTRODUCE of a domain that
//!   does not exist, fail with an error of their own. xenstored 4.17 leaves that of an earlier
//!   request, or does not answer.
//! * A released domain is removed even if it is another domain's target. xenstored keeps it until
//!   that domain has ended.
//! * CONTROL implements `check`, `help`, `log`, `print` and `quota`.
//!
//! # Guarantees, whatever clients send
//!
//! No panic, no request that waits for a client, memory bounded by the quotas and the number of
//! connections. Domain 0 is trusted with its own quotas, as in Xen.

#![forbid(unsafe_code)]

mod access;
mod admin;
mod conn;
mod daemon;
mod domain;
mod event_loop;
mod lifecycle;
mod nodes;
mod quota;
mod request;
mod server;
#[cfg(feature = "sim")]
pub mod sim;
mod tree;
mod txn;
mod view;
mod watch;

pub use conn::MAX_EVENTS_PER_WATCH;
pub use daemon::{Config, ConnId, Daemon, Stats};
pub use quota::Quota;
pub use server::Server;

// The programs in this page are compiled and run with the examples.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/xen-store-server.md")]
struct Page;

/// The examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
