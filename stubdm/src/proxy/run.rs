//! `vchan-socket-proxy`, from its command line to its end.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use tracing::{info, warn};
use xen_store::Store;
use xen_sys::{DomId, Xen};

use super::options::{Filtering, Mode, ProxyOptions, Sandboxing, Socket, is_store_path};
use crate::guest::server::{Backend, Server};
use crate::libxl::consoles;
use crate::libxl::lifetime::DomainWatch;
use crate::libxl::payload::Payload;
use crate::libxl::store;
use crate::proxy::broker::connect::VchanConnect;
use crate::proxy::broker::spawn::Broker;
use crate::proxy::clients::Clients;
use crate::proxy::counters::{self, CounterFile, Reporter};
use crate::proxy::filtered::Filter;
use crate::proxy::policy::HostPolicy;
use crate::proxy::{driver, sandbox};
use crate::rt::error::{Context, Failure, Result};
use crate::rt::event_loop::{self, Stop, Task};
use crate::rt::listener::{SocketFile, bind, bind_over};
use crate::rt::signals::Signals;
use crate::rt::stream::{Stream, set_nonblocking};
use crate::rt::vchan::Vchan;
use crate::rt::{fd, log, text};
use crate::service::claim::{self as service, Resume};
use crate::service::record::{Claim, Kind};

/// Runs the proxy until SIGHUP, SIGTERM or SIGINT, or until no client can connect any more.
///
/// # Errors
/// Fails if it cannot start, or has to stop for good. Trouble with one client, or with the vchan
/// while its domain lives, is logged and is no error.
pub fn run(options: &ProxyOptions) -> Result<()> {
    let folder = || Some(PathBuf::from(counters::FOLDER));
    let options = &ProxyOptions {
        counters: options.counters.clone().or_else(folder),
        ..options.clone()
    };
    run_on(options, store::open)
}

/// As [`run`], on the host and the store that `open` leads to.
///
/// # Errors
/// As [`run`], and those of `open`.
pub fn run_on(options: &ProxyOptions, open: impl FnOnce() -> Result<(Xen, Store)>) -> Result<()> {
    log::to_stderr(options.verbose);
    text::find();
    let domid = domain(options.domid)?;
    for path in [Some(&options.node), options.state_path.as_ref()]
        .into_iter()
        .flatten()
    {
        if !is_store_path(path) {
            return Err(Failure::usage(format_args!("{path:?} is no store path")));
        }
    }
    let policy = policy_for(options)?;
    if let Some(given) = options.worker {
        let stdio = || stdio().map(|local| Clients::Once(Some(local)));
        return sandbox::run::run(options, given, policy, stdio, seed());
    }
    log::follow();
    let signals = Signals::take(&[Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT])
        .context("taking over signals")?;
    // The socket is parsed first: with a wrong path nothing else is touched.
    let socket = Socket::parse(&options.socket);
    match options.mode {
        Mode::Client => {
            let path = match &socket {
                Socket::Path(path) => Some(path.clone()),
                _ => None,
            };
            let (mut target, mut claim, clients, file);
            match options.resume {
                None => {
                    (clients, file) = open_clients(socket)?;
                    target = Target::open(domid, open)?;
                    claim = take_record(&target, options)?;
                }
                Some(resume) => {
                    target = Target::open(domid, open)?;
                    // Of two that take one's place, only the one with the record may touch the
                    // socket.
                    claim = take_record(&target, options)?;
                    let taken = match socket {
                        Socket::Path(path) => take_over(&path, resume),
                        other => open_clients(other),
                    };
                    (clients, file) = match taken {
                        Ok(taken) => taken,
                        Err(failure) => {
                            claim.into_iter().for_each(Claim::leave);
                            return Err(failure);
                        }
                    };
                }
            }
            if let (Some(claim), Some(path), Clients::Socket(listener)) =
                (&mut claim, path, &clients)
            {
                claim.set_listener(path, listener.as_fd().as_raw_fd())?;
            }
            let result = serve_clients(&mut target, options, policy, clients, &signals);
            // Without the record this process is not started again.
            drop((file, claim));
            result
        }
        Mode::Server => {
            let backend = backend(socket)?;
            let target = Target::open(domid, open)?;
            serve_vchan(&target, options, backend, &signals)
        }
    }
}

/// Records the proxy that libxl started for a guest: it waits for no other's state.
fn take_record(target: &Target, options: &ProxyOptions) -> Result<Option<Claim>> {
    let libxls = options.state_path.is_some() && Payload::of_node(&options.node) == Payload::Qmp;
    if !libxls || !matches!(Socket::parse(&options.socket), Socket::Path(_)) {
        return Ok(None);
    }
    let folder = options.counters.as_deref();
    let resume = options.resume.is_some();
    service::claim(&target.store, folder, Kind::Proxy, target.domid, resume)
}

/// The policy, if there is to be one.
fn policy_for(options: &ProxyOptions) -> Result<Option<HostPolicy>> {
    let carries_qmp = Payload::of_node(&options.node) == Payload::Qmp;
    match (options.filter, &options.policy) {
        (Filtering::Off, None) => return Ok(None),
        (Filtering::Off, Some(_)) => {
            return Err(Failure::usage("--policy does not go with --filter=off"));
        }
        (Filtering::Auto, None) if options.mode == Mode::Server || !carries_qmp => {
            return Ok(None);
        }
        (Filtering::On | Filtering::Auto, _) => {}
    }
    if options.mode == Mode::Server {
        return Err(Failure::usage(
            "a filter goes with client mode: the server is the one that is not trusted",
        ));
    }
    if !carries_qmp {
        return Err(Failure::usage(format_args!(
            "no filter for {}: only nodes named qmp-vchan carry QMP",
            options.node
        )));
    }
    HostPolicy::find(options.policy.as_deref()).map(Some)
}

/// A domain id that a domain can have.
fn domain(id: u16) -> Result<DomId> {
    let domid = DomId::new(id);
    if domid.is_reserved() {
        return Err(Failure::usage(format_args!(
            "{id} is no domain id: the largest is 32751"
        )));
    }
    Ok(domid)
}

/// The hypervisor, the store, and the domain at the other end.
struct Target {
    xen: Xen,
    store: Store,
    domid: DomId,
    lifetime: DomainWatch,
}

impl Target {
    fn open(domid: DomId, open: impl FnOnce() -> Result<(Xen, Store)>) -> Result<Self> {
        let (xen, store) = open()?;
        let lifetime = DomainWatch::of(&store, domid)?;
        Ok(Self {
            xen,
            store,
            domid,
            lifetime,
        })
    }

    fn announce(&self, state_path: Option<&String>, resume: bool) -> Result<()> {
        let Some(path) = state_path else {
            return Ok(());
        };
        service::announce(&self.store, path, "running", resume)
            .context(format_args!("writing {path}"))
    }
}

fn serve_clients(
    target: &mut Target,
    options: &ProxyOptions,
    policy: Option<HostPolicy>,
    clients: Clients,
    signals: &Signals,
) -> Result<()> {
    let node = options.node.clone();
    let connect = VchanConnect::new(target.xen.clone(), target.store.clone(), target.domid, node)
        .with_marker(options.reconnect_marker);
    let payload = Payload::of_node(&options.node);
    let passes = match &policy {
        Some(found) => format!("what the policy allows passes: {found}"),
        None => "all bytes pass unread both ways".to_owned(),
    };
    let folder = options.counters.as_ref().filter(|_| policy.is_some());
    let counter_file = folder.and_then(|folder| {
        match CounterFile::open(folder, options.domid, options.resume.is_some()) {
            Ok(counter_file) => Some(counter_file),
            Err(error) => {
                info!(
                    "stubdm-run status will not know: {}: {error}",
                    folder.display()
                );
                None
            }
        }
    });
    if payload == Payload::Qmp {
        consoles::complete(&target.store, target.domid);
    }
    let saves = Box::new(connect.saves());
    let mut task: Box<dyn Task> = match options.sandbox {
        Sandboxing::On => {
            let arguments = std::env::args_os()
                .filter(|word| !service::is_option(word))
                .collect();
            Box::new(Broker::start(
                connect,
                saves,
                clients,
                arguments,
                counter_file,
            )?)
        }
        Sandboxing::Off => {
            warn!(
                "--sandbox=off: what the domain says is parsed with all the powers of this process"
            );
            let policy = policy.map(HostPolicy::into_policy).transpose()?;
            let reporter =
                counter_file.map(|mut file| Reporter::new(move |counters| file.update(counters)));
            let filter = policy.map(|policy| Filter {
                policy,
                reporter,
                saves,
            });
            driver(clients, connect, payload, filter, seed())
        }
    };
    target.announce(options.state_path.as_ref(), options.resume.is_some())?;
    info!(
        "serving {} of domain {}: {passes}",
        options.node, target.domid
    );
    let stops: &mut [&mut dyn Stop] = &mut [&mut &*signals, &mut target.lifetime];
    let ended = event_loop::run(&mut *task, stops).context("serving clients")?;
    if let Some(reason) = ended {
        info!("{reason}: the proxy ends");
    }
    Ok(())
}

fn serve_vchan(
    target: &Target,
    options: &ProxyOptions,
    backend: Backend,
    signals: &Signals,
) -> Result<()> {
    let channel = xen_vchan::ServerBuilder::new(target.domid, options.node.as_str())
        // Dom0's clients can write into this domain's memory anyway, and reconnect quickly.
        .reuse_memory(target.domid == DomId::DOM0)
        .publish(&target.xen, &target.store)
        .context(format_args!("offering a vchan at {}", options.node))?;
    let mut server = Server::new(
        Vchan::new(channel),
        backend,
        Payload::of_node(&options.node),
    )
    .with_marker(options.reconnect_marker);
    target.announce(options.state_path.as_ref(), options.resume.is_some())?;
    info!("offering {} to domain {}", options.node, target.domid);
    let ended = event_loop::run(&mut server, &mut [&mut &*signals]).context("the vchan")?;
    if let Some(reason) = ended {
        info!("{reason}: the proxy ends");
    }
    Ok(())
}

fn open_clients(socket: Socket) -> Result<(Clients, Option<SocketFile>)> {
    match socket {
        Socket::Path(path) => {
            let (listener, file) = bind(&path)?;
            Ok((Clients::Socket(listener.into()), Some(file)))
        }
        Socket::Descriptor(number) => {
            let what = format!("descriptor {number}");
            let listener = fd::duplicate(number).context(&what)?;
            let listens =
                nix::sys::socket::getsockopt(&listener, nix::sys::socket::sockopt::AcceptConn);
            if !listens.context(&what)? {
                return Err(Failure::new(format_args!("{what} is no listening socket")));
            }
            set_nonblocking(listener.as_fd()).context(&what)?;
            Ok((Clients::Socket(UnixListener::from(listener).into()), None))
        }
        Socket::Stdio => Ok((Clients::Once(Some(stdio()?)), None)),
    }
}

/// The socket of a proxy that was killed: the one that was kept, or a new one in its place.
fn take_over(path: &Path, resume: Resume) -> Result<(Clients, Option<SocketFile>)> {
    if let Some(number) = resume.listener {
        let listener = fd::duplicate(number).context(format_args!("descriptor {number}"))?;
        if let Some(file) = SocketFile::of(&listener, path) {
            let listener = UnixListener::from(listener);
            return Ok((Clients::Socket(listener.into()), Some(file)));
        }
    }
    // The killed proxy's worker, which ends with it, may still listen there.
    let (listener, file) = bind_over(path)?;
    Ok((Clients::Socket(listener.into()), Some(file)))
}

fn backend(socket: Socket) -> Result<Backend> {
    Ok(match socket {
        Socket::Path(path) => Backend::Socket(existing_directory(path)?),
        Socket::Descriptor(number) => {
            let fd = fd::duplicate(number).context(format_args!("descriptor {number}"))?;
            Backend::Once(Some(
                Stream::socket(fd).context(format_args!("descriptor {number}"))?,
            ))
        }
        Socket::Stdio => Backend::Once(Some(stdio()?)),
    })
}

/// Checks that the directory of `path` exists; the socket may be made later.
fn existing_directory(path: PathBuf) -> Result<PathBuf> {
    let directory = path.parent().filter(|p| p.as_os_str() != OsStr::new(""));
    if let Some(directory) = directory {
        std::fs::metadata(directory).context(format_args!("{}", directory.display()))?;
    }
    Ok(path)
}

fn stdio() -> Result<Stream> {
    let clone = |fd: std::os::fd::BorrowedFd<'_>| -> Result<OwnedFd> {
        fd.try_clone_to_owned().context("stdin or stdout")
    };
    let (input, output) = (clone(io::stdin().as_fd())?, clone(io::stdout().as_fd())?);
    Stream::pair(input, output).context("stdin or stdout")
}

/// Something another proxy for the same stubdomain, before or after this one, does not have.
fn seed() -> u64 {
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (time.as_nanos() as u64) ^ (u64::from(std::process::id()) << 40)
}

#[cfg(test)]
mod tests;
