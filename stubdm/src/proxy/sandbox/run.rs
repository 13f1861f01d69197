//! The worker, from its start: it confines itself, then serves clients.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use crate::libxl::payload::Payload;
use crate::proxy::clients::Clients;
use crate::proxy::counters::Reporter;
use crate::proxy::driver;
use crate::proxy::filtered::Filter;
use crate::proxy::ipc::{IpcSocket, Request};
use crate::proxy::options::ProxyOptions;
use crate::proxy::policy::HostPolicy;
use crate::proxy::sandbox::remote::RemoteConnect;
use crate::proxy::sandbox::{Inherited, enter, user_of};
use crate::rt::error::{Context, Result};
use crate::rt::event_loop::{self, HangUp};
use crate::rt::fd;

/// Confines this process and serves clients until no more can connect, or the broker ends.
///
/// # Errors
/// A restriction could not be applied, or accepting a client failed.
pub fn run(
    options: &ProxyOptions,
    given: Inherited,
    policy: Option<HostPolicy>,
    stdio: impl FnOnce() -> Result<Clients>,
    seed: u64,
) -> Result<()> {
    // Duplicates; the originals are closed with all else that is not kept.
    let ipc = fd::duplicate(given.ipc).context("the socket")?;
    let (clients, output) = match given.listener {
        Some(number) => {
            let listener = fd::duplicate(number).context("the listening socket")?;
            (Clients::Socket(UnixListener::from(listener).into()), 0)
        }
        None => (stdio()?, enter::OUTPUT),
    };
    let mut keep = clients.descriptors();
    keep.push(ipc.as_fd());
    let user = options.user.unwrap_or_else(|| user_of(options.domid));
    enter::enter(&keep, user, output)?;
    let ipc = Arc::new(IpcSocket::new(ipc));
    let gone = "the broker";
    ipc.send(&Request::Ready.encode()).context(gone)?;
    let payload = Payload::of_node(&options.node);
    let connect = RemoteConnect::new(ipc.clone());
    // The built-in one is read after the report to the broker: clients that connect meanwhile wait.
    let filter = match policy {
        Some(policy) => {
            let ipc = ipc.clone();
            // A broker that does not take it has ended, which ends the loop.
            let report = move |counters: &_| drop(ipc.send(&Request::Counted(*counters).encode()));
            Some(Filter {
                policy: policy.into_policy()?,
                reporter: Some(Reporter::new(report)),
                saves: Box::new(connect.saves()),
            })
        }
        None => None,
    };
    let mut task = driver(clients, connect, payload, filter, seed);
    event_loop::run(&mut *task, &mut [&mut HangUp(ipc.as_fd())]).context("serving clients")?;
    Ok(())
}
