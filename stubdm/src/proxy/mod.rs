//! QMP over vchan: the host's proxy.
//!
//! ```text
//!   dom0                                              stubdomain
//!   libxl ──unix──▶ client mode ══vchan══▶ server mode ──unix──▶ QEMU's monitor
//!          (filtered, passthrough)        (guest::session)
//! ```
//!
//! The sessions hold every decision and do no I/O; the drivers move bytes for them between sockets
//! and a [`Transport`](crate::rt::transport::Transport).
//!
//! | folder or module | holds |
//! |---|---|
//! | [`run`], [`options`], [`policy`] | the program: its command line, its policy, its loop |
//! | [`broker`] | the process with the host's powers: the vchan, the worker it starts, the saved file |
//! | [`ipc`] | the messages between the broker and the worker |
//! | [`sandbox`] | the worker: a process without powers, which reads what the stubdomain sends |
//! | [`filtered`] | QMP under a policy: all clients on one connection |
//! | [`passthrough`] | bytes as they are: a connection for each client |
//! | [`clients`], [`resync`], [`splice`] | shared by both |
//! | [`saves`] | the looks at libxl's file that the answer to a save waits for |
//! | [`counters`] | the counts that `stubdm-run status` shows |
//!
//! # Guarantees
//! * No byte of one session reaches another, in either direction (`docs/proxy.md`).
//! * The proxy never closes a client's socket first while the client is there and the vchan stands.
//! * Buffers are bounded: bytes that do not fit stay in the ring or in the socket.
//! * Nothing blocks forever: every wait also watches for the client's end.

pub mod broker;
pub mod clients;
pub mod counters;
pub mod filtered;
pub mod ipc;
pub mod options;
pub mod passthrough;
pub mod policy;
pub mod resync;
pub mod run;
pub mod sandbox;
pub mod saves;
pub mod splice;

use std::time::{Duration, Instant};

use crate::libxl::payload::Payload;
use crate::rt::backoff::Backoff;
use crate::rt::event_loop::Task;
use crate::rt::transport::Connect;
use clients::Clients;
use filtered::Filter;

/// The pauses before the vchan is connected again.
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

/// A session's request about its vchan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VchanAction {
    /// Leave it as it is.
    Keep,
    /// Close it if it is open; connect at the stated time, not before.
    Connect(Instant),
    /// The session is over: close the vchan and the client's socket.
    End,
}

/// The task that serves `clients`: under a policy, if there is a filter, and otherwise passing
/// `payload` as it is. `seed` distinguishes this process's ids from those of another before it.
pub fn driver<C: Connect + 'static>(
    clients: Clients,
    connect: C,
    payload: Payload,
    filter: Option<Filter>,
    seed: u64,
) -> Box<dyn Task> {
    match filter {
        Some(filter) => Box::new(filtered::driver::Driver::new(
            clients, connect, filter, seed,
        )),
        None => Box::new(passthrough::driver::Driver::new(
            clients, connect, payload, seed,
        )),
    }
}
