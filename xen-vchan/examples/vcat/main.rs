//! netcat for vchan.
//!
//! ```text
//! vcat [--sim DIR] listen  DOMID [WHERE] [--rings LEFT RIGHT] [--keep] [--exec CMD ARG...]
//! vcat [--sim DIR] connect DOMID [WHERE] [--wait SECONDS] [--close SECONDS] [--exec CMD ARG...]
//! vcat sim-host DIR
//! vcat sim CMD ARG...
//! ```
//!
//! Bytes are passed between the vchan and stdin/stdout, or a command's. `--keep` serves one client
//! after another, each with its own command; `--close` ends when stdin has ended and nothing has
//! arrived for a while (a vchan has no half-close, so the end of stdin cannot be signalled to the
//! other end). With a command the session ends when the command does, or the other end. The other
//! end may be any vchan program, such as `vchan-node2` of Xen's tools or OCaml's `xencat`.
//!
//! WHERE is a path in the store; or a name without `/`, which is what `xencat` calls a port and
//! stands for the place where OCaml's library and Qubes publish the service of that name,
//! `/local/domain/SERVER/data/vchan/CLIENT/NAME`. Without it the place is
//! `/local/domain/SERVER/data/vchan`.
//!
//! The exit status is 0 when the session has ended, 1 when something failed, the command too (one
//! that `--keep` started is only reported), and 2 for a command line that means nothing.
//!
//! Without Xen, in one command: `vcat sim CMD` serves CMD on a simulated host and connects to it.
//!
//! ```text
//! echo hello | cargo run -p xen-vchan --features sim --example vcat -- sim sed -u s/hello/goodbye/
//! ```
//!
//! Or by hand: `vcat sim-host /tmp/host` in one terminal, then with `--sim /tmp/host` both ends in
//! two others, each a process of domain 0.

mod args;
mod splice;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;
use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, ClientBuilder, Error, Listener, ServerBuilder, service_path};

use crate::args::{Args, USAGE};
use crate::splice::{End, splice};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("vcat: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vcat: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Outcome<()> {
    let Some(peer) = args.peer else {
        return match args.role.as_str() {
            "sim" => sim(&args.exec),
            "sim-host" => sim_host(&args.path),
            _ => {
                println!("{USAGE}");
                Ok(())
            }
        };
    };
    let (xen, store) = match &args.sim {
        None => {
            let xen = Xen::open()?;
            let store = Store::open(&xen)?;
            (xen, store)
        }
        Some(dir) => join(dir)?,
    };
    let path = place(args, peer, &store)?;
    if args.role == "connect" {
        let mut builder = ClientBuilder::new(peer, &path);
        if let Some(seconds) = args.wait {
            builder = builder
                .wait_for_server(true)
                .timeout(Duration::from_secs(seconds));
        }
        return session(&mut builder.connect(&xen, &store)?, args);
    }
    let (left, right) = args.rings;
    if !args.keep {
        let builder = ServerBuilder::new(peer, &path).rings(left, right);
        return session(&mut builder.publish(&xen, &store)?, args);
    }
    // A ring for each, so that no byte of one is seen by the next, whatever library it uses.
    let builder = Listener::builder().rings(left, right);
    let mut listener = builder.clients_per_domain(1).listen(&xen, &store)?;
    listener.bind(peer, path)?;
    loop {
        match session(&mut listener.accept(None)?, args) {
            // One client's command, or one client's fault.
            Err(error) if !args.exec.is_empty() => eprintln!("vcat: {error}"),
            other => other?,
        }
    }
}

/// The path in the store that is meant.
fn place(args: &Args, peer: DomId, store: &Store) -> Outcome<String> {
    if args.path.contains('/') {
        return Ok(args.path.clone());
    }
    let me = store.own_domain()?;
    let (server, client) = if args.role == "listen" {
        (me, peer)
    } else {
        (peer, me)
    };
    if args.path.is_empty() {
        return Ok(format!("/local/domain/{server}/data/vchan"));
    }
    Ok(service_path(server, client, &args.path)?)
}

/// Runs one session: from the peer's arrival until it is gone or we are done.
fn session(channel: &mut Channel, args: &Args) -> Outcome<()> {
    // A command is started for a client, not before.
    match channel.wait_connected(None) {
        Ok(()) | Err(Error::Closed) => {}
        Err(error) => return Err(error.into()),
    }
    let Some((program, arguments)) = args.exec.split_first() else {
        let end = End::Silence(args.close);
        return splice(channel, io::stdin().as_fd(), io::stdout().as_fd(), end);
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    let spliced = splice_command(channel, &mut child);
    let status = child.wait()?;
    spliced?;
    // It may be in the middle of a write when the other end leaves.
    let cut_off = status.signal() == Some(Signal::SIGPIPE as i32);
    if status.success() || cut_off {
        Ok(())
    } else {
        Err(format!("{program}: {status}").into())
    }
}

fn splice_command(channel: &mut Channel, child: &mut Child) -> Outcome<()> {
    let (Some(sink), Some(source)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("the command has no pipes".into());
    };
    let (sink, source) = (OwnedFd::from(sink), OwnedFd::from(source));
    // A command that waits for its output to be read must not be waited for with its input.
    fcntl(&sink, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    splice(channel, source.as_fd(), sink.as_fd(), End::Command)
}

#[cfg(feature = "sim")]
fn join(dir: &std::path::Path) -> Outcome<(Xen, Store)> {
    Ok((
        Xen::join_path(dir.join("xen"), DomId::DOM0)?,
        Store::connect(dir.join("store"))?,
    ))
}

/// A host with a store, which others can join at `dir`.
#[cfg(feature = "sim")]
fn host(dir: &std::path::Path) -> Outcome<impl Sized + use<>> {
    let host = xen_sys::sim::Simulation::start()?;
    let stored = xen_store_server::sim::start(&host, xen_store_server::Config::new())?;
    host.listen(dir.join("xen"))?;
    stored.listen(dir.join("store"))?;
    Ok((host, stored))
}

#[cfg(feature = "sim")]
fn sim_host(dir: &str) -> Outcome<()> {
    let dir = std::path::Path::new(dir);
    std::fs::create_dir_all(dir)?;
    let _host = host(dir)?;
    println!(
        "a simulated host is at {}; end it with the end of its input",
        dir.display()
    );
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// Both ends: a process that serves a command, and this one, which connects to it.
#[cfg(feature = "sim")]
fn sim(command: &[String]) -> Outcome<()> {
    let dir = tempfile::tempdir()?;
    let _host = host(dir.path())?;
    let mut server = Command::new(std::env::current_exe()?)
        .arg("--sim")
        .arg(dir.path())
        .args(["listen", "0", "demo", "--exec"])
        .args(command)
        .spawn()?;
    let connected = run(&Args {
        sim: Some(dir.path().into()),
        role: "connect".to_owned(),
        peer: Some(DomId::DOM0),
        path: "demo".to_owned(),
        wait: Some(10),
        close: Some(Duration::from_secs(1)),
        ..Args::default()
    });
    if connected.is_err() {
        server.kill()?;
    }
    let status = server.wait()?;
    connected?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("the server: {status}").into())
    }
}

#[cfg(not(feature = "sim"))]
fn join(_: &std::path::Path) -> Outcome<(Xen, Store)> {
    Err("this was built without the feature `sim`".into())
}

#[cfg(not(feature = "sim"))]
fn sim_host(_: &str) -> Outcome<()> {
    Err("this was built without the feature `sim`".into())
}

#[cfg(not(feature = "sim"))]
fn sim(_: &[String]) -> Outcome<()> {
    Err("this was built without the feature `sim`".into())
}
