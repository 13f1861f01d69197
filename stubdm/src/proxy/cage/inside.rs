//! The caged half: the proxy, once the walls are up.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Instant;

use nix::poll::PollFlags;

use super::remote::RemoteConnect;
use super::wire::{Order, Wire};
use super::{Given, user_of, walls};
use crate::error::{Context, Result};
use crate::event::sleep;
use crate::proxy::client::{Clients, Proxy, Turn};
use crate::proxy::local::hung_up;
use crate::proxy::options::ProxyOptions;
use crate::proxy::policy::HostPolicy;
use crate::proxy::{Payload, inherit};
use crate::stats::Teller;

/// Goes behind the walls and serves clients until no more can come, or the carrier ends.
///
/// # Errors
/// A wall could not be put up, or the system's, about a new client.
pub fn run(
    options: &ProxyOptions,
    given: Given,
    policy: Option<HostPolicy>,
    stdio: impl FnOnce() -> Result<Clients>,
    seed: u64,
) -> Result<()> {
    // Duplicates; the originals are closed with all else that is not kept.
    let wire = inherit::duplicate(given.wire).context("the wire")?;
    let (clients, output) = match given.listener {
        Some(number) => {
            let listener = inherit::duplicate(number).context("the listening socket")?;
            (Clients::Socket(UnixListener::from(listener).into()), 0)
        }
        None => (stdio()?, walls::OUTPUT),
    };
    let mut keep = clients.descriptors();
    keep.push(wire.as_fd());
    let user = options.user.unwrap_or_else(|| user_of(options.domid));
    walls::enter(&keep, user, output)?;
    let wire = Arc::new(Wire::new(wire));
    let gone = "the carrier";
    wire.send(&Order::Ready.encode()).context(gone)?;
    let payload = Payload::of_node(&options.node);
    let connect = RemoteConnect::new(wire.clone());
    let mut proxy = match policy {
        // The built-in one is read now that the carrier knows: clients that come meanwhile wait.
        Some(found) => {
            let wire = wire.clone();
            // A carrier that does not take it is gone, which is found out below.
            let tell = move |counters: &_| drop(wire.send(&Order::Counted(*counters).encode()));
            Proxy::under(clients, connect, found.into_policy()?, seed).telling(Teller::new(tell))
        }
        None => Proxy::new(clients, connect, payload, seed),
    };
    while !hung_up(wire.as_fd()) {
        let turn = proxy.turn(Instant::now()).context("accepting clients")?;
        let deadline = match turn {
            Turn::Sleep(deadline) => deadline,
            Turn::Again => Some(Instant::now()),
            Turn::Done => return Ok(()),
        };
        let mut interests = proxy.interests();
        interests.push((wire.as_fd(), PollFlags::empty()));
        sleep(&interests, deadline).context("waiting")?;
    }
    Ok(())
}
