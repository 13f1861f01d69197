//! The host's proxy: where its clients come from, and which of the two loops serves them.
//!
//! | loop | for |
//! |---|---|
//! | [`Pump`] | bytes passed as they are |
//! | [`Hub`] | QMP under a policy |

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;
use std::{fmt, io};

use stubdm_qmp::policy::Policy;

use super::Payload;
use super::hub::Hub;
use super::listen::Door;
use super::local::Local;
use super::pump::Pump;
use crate::event::Interest;
use crate::stats::Teller;
use crate::transport::Connect;

/// Where clients come from.
#[derive(Debug)]
pub enum Clients {
    /// A listening socket.
    Socket(Door),
    /// The one client that is there from the start, e.g. stdin and stdout. `None` once served.
    Once(Option<Local>),
}

impl Clients {
    /// The descriptors they come through.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Socket(fd) => vec![fd.as_fd()],
            Self::Once(local) => local.iter().flat_map(Local::descriptors).collect(),
        }
    }

    /// The next client, if one is there.
    ///
    /// # Errors
    /// The system's, about the client.
    pub fn accept(&mut self, now: Instant) -> io::Result<Option<Local>> {
        match self {
            Self::Once(local) => Ok(local.take()),
            Self::Socket(door) => door.accept(now).map(Local::socket).transpose(),
        }
    }

    /// What to wait for, if another may come.
    pub fn interest(&self) -> Option<Interest<'_>> {
        match self {
            Self::Once(_) => None,
            Self::Socket(door) => door.interest(),
        }
    }

    /// When to look for one without an event.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Once(_) => None,
            Self::Socket(door) => door.deadline(),
        }
    }
}

/// What came of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Sleep until one of the interests, or this deadline.
    Sleep(Option<Instant>),
    /// There is more to do at once.
    Again,
    /// No client can come, or no server: the proxy's work is done.
    Done,
}

/// How many rounds a turn takes before others get theirs.
pub(super) const ROUNDS: usize = 64;

/// The proxy.
pub enum Proxy<C: Connect> {
    /// Bytes pass as they are.
    Plain(Box<Pump<C>>),
    /// QMP passes under a policy.
    Filtered(Box<Hub<C>>),
}

impl<C: Connect> fmt::Debug for Proxy<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Filtered(_) => "Filtered",
        })
    }
}

impl<C: Connect> Proxy<C> {
    /// A proxy that passes bytes as they are. `seed` distinguishes this process's ids from those of
    /// another before it.
    pub fn new(clients: Clients, connect: C, payload: Payload, seed: u64) -> Self {
        Self::Plain(Box::new(Pump::new(clients, connect, payload, seed)))
    }

    /// A proxy that lets only pass what this policy allows. For QMP.
    pub fn under(clients: Clients, connect: C, policy: Policy, seed: u64) -> Self {
        Self::Filtered(Box::new(Hub::new(clients, connect, policy, seed)))
    }

    /// Tells of what it counts; one that passes bytes as they are counts nothing.
    pub fn telling(self, teller: Teller) -> Self {
        match self {
            Self::Plain(pump) => Self::Plain(pump),
            Self::Filtered(hub) => Self::Filtered(Box::new(hub.telling(teller))),
        }
    }

    /// What to wait for.
    pub fn interests(&self) -> Vec<Interest<'_>> {
        match self {
            Self::Plain(pump) => pump.interests(),
            Self::Filtered(hub) => hub.interests(),
        }
    }

    /// Does all that can be done without waiting.
    ///
    /// # Errors
    /// The system's, about the client. Trouble with one client or one connection is
    /// logged and ends that one only.
    pub fn turn(&mut self, now: Instant) -> io::Result<Turn> {
        match self {
            Self::Plain(pump) => pump.turn(now),
            Self::Filtered(hub) => hub.turn(now),
        }
    }
}
