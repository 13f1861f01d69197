//! QMP over vchan: the host's proxy and its other end inside the stubdomain.
//!
//! ```text
//!   dom0                                              stubdomain
//!   libxl ──unix──▶ client mode ══vchan══▶ server mode ──unix──▶ QEMU's monitor
//!          (exchange::Exchange,           (guest::GuestSession)
//!           host::HostSession)
//! ```
//!
//! The sessions hold every decision and do no I/O; the loops move bytes for them between sockets and
//! a [`crate::transport::Transport`].
//!
//! | | decisions | loop |
//! |---|---|---|
//! | the host, QMP under a policy: all clients on one connection | [`exchange`], [`trunk`] | [`hub`] |
//! | the host, bytes as they are: a connection for each client | [`host`] | [`pump`] |
//! | the stubdomain | [`guest`] | [`server`] |
//!
//! # What holds
//! * No byte of one session reaches another, in either direction (how: `docs/proxy.md`).
//! * The socket's side is never closed first while its client is there and the vchan stands.
//! * Buffers are bounded: what does not fit stays in the ring or in the socket.
//! * Nothing blocks for ever: every wait also watches for the client's leaving.

pub mod buffer;
pub mod cage;
pub mod client;
pub mod consoles;
pub mod exchange;
pub mod guest;
pub mod host;
pub mod hub;
pub mod inherit;
pub mod listen;
pub mod local;
pub mod meter;
pub mod options;
pub mod policy;
pub mod pump;
pub mod run;
pub mod server;
pub mod sides;
pub mod sync;
pub mod trunk;
pub mod vchan;

/// What the bytes are, which decides how a session boundary can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// QMP: lines of JSON, a greeting first; a probe finds the boundary.
    Qmp,
    /// Anything: bytes are passed on as they are.
    Opaque,
}

impl Payload {
    /// libxl names the QMP node `qmp-vchan`; any other node carries what it likes.
    pub fn of_node(path: &str) -> Self {
        match path.rsplit('/').next() {
            Some("qmp-vchan") => Self::Qmp,
            _ => Self::Opaque,
        }
    }
}
