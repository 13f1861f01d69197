//! The half of the proxy that reads what the stubdomain sends, and holds no powers.
//!
//! ```text
//!            the process libxl knows                     the worker
//!   store, /dev/xen ── vchan ── relay ══socket pair══ driver ── libxl's socket
//!        root; moves bytes, parses none          no user, no files, no new descriptors
//! ```
//!
//! The broker starts the worker as this program again, so the worker holds nothing of the broker's
//! memory. The worker gets the listening socket and one end of a socket pair, and is served only
//! after it is confined ([`mod@enter`]). From then on [`relay`](super::broker::relay) joins the
//! socket pair to the vchan of this one stubdomain; in the worker the pair is a
//! [`Transport`](crate::rt::transport::Transport) like any other ([`remote`]).
//!
//! The worker ends with the broker, however that ends. If the worker ends in disorder, the broker
//! starts another ([`spawn`](super::broker::spawn)); libxl sees a connection that closes.

pub mod enter;
pub mod remote;
pub mod run;
pub mod seccomp;

use std::os::fd::RawFd;
use std::str::FromStr;

/// The first of the users the workers run as, each its stubdomain's: a range that
/// distributions leave alone, large enough for all domain ids.
const USERS: u32 = 0x7800_0000;

/// Returns the user of the proxy's worker for domain `domid`.
pub fn user_of(domid: u16) -> u32 {
    USERS + u32::from(domid)
}

/// The worker's descriptors, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// Its end of the socket pair.
    pub ipc: RawFd,
    /// The listening socket; without one the client is at stdin and stdout.
    pub listener: Option<RawFd>,
}

impl std::fmt::Display for Inherited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.listener {
            Some(listener) => write!(f, "{},{listener}", self.ipc),
            None => write!(f, "{}", self.ipc),
        }
    }
}

impl FromStr for Inherited {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (ipc, listener) = match text.split_once(',') {
            Some((ipc, listener)) => (ipc, Some(listener.parse()?)),
            None => (text, None),
        };
        Ok(Self {
            ipc: ipc.parse()?,
            listener,
        })
    }
}
