//! The proxy in two processes: one that holds the host's powers and reads nothing, one that reads
//! what a stubdomain says and holds nothing.
//!
//! ```text
//!            the process libxl knows                     the caged half
//!   store, /dev/xen ── vchan ── carrier ══socket pair══ proxy ── libxl's socket
//!        root; moves bytes, parses none          no user, no files, no new descriptors
//! ```
//!
//! The carrier starts the caged half as this program again, so nothing of the carrier's memory is
//! in it, gives it the listening socket and one end of a socket pair, and says nothing of itself
//! until the other is behind its [`walls`]. From then on it joins the socket pair to the vchan of
//! this one stubdomain ([`carrier`]). In the cage the pair is a
//! [`Transport`](crate::transport::Transport) like any other ([`remote`]).
//!
//! When the carrier ends, however it does, the caged half ends. When the caged half ends in
//! disorder, the carrier starts another ([`keeper`]); libxl sees a connection that closes.

pub mod calls;
pub mod carrier;
pub mod inside;
pub mod keeper;
pub mod rates;
pub mod relay;
pub mod remote;
pub mod walls;
pub mod wire;

use std::os::fd::RawFd;
use std::str::FromStr;

/// The first of the users the caged halves run as, each its stubdomain's: a range that
/// distributions leave alone, large enough for all domain ids.
const USERS: u32 = 0x7800_0000;

/// Who the caged half of the proxy for domain `domid` runs as.
pub fn user_of(domid: u16) -> u32 {
    USERS + u32::from(domid)
}

/// What the caged half was given, as numbers of open descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Its end of the socket pair.
    pub wire: RawFd,
    /// The listening socket; without one the client is at stdin and stdout.
    pub listener: Option<RawFd>,
}

impl std::fmt::Display for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.listener {
            Some(listener) => write!(f, "{},{listener}", self.wire),
            None => write!(f, "{}", self.wire),
        }
    }
}

impl FromStr for Given {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (wire, listener) = match text.split_once(',') {
            Some((wire, listener)) => (wire, Some(listener.parse()?)),
            None => (text, None),
        };
        Ok(Self {
            wire: wire.parse()?,
            listener,
        })
    }
}

#[cfg(test)]
mod tests;
