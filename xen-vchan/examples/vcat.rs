//! netcat for vchan.
//!
//! ```text
//! vcat [--sim DIR] listen  DOMID [WHERE] [--rings LEFT RIGHT] [--keep] [--exec CMD ARG...]
//! vcat [--sim DIR] connect DOMID [WHERE] [--wait SECONDS] [--close SECONDS] [--exec CMD ARG...]
//! vcat sim-host DIR
//! vcat sim CMD ARG...
//! ```
//!
//! Bytes go between the vchan and stdin/stdout, or a command's. `--keep` serves one client after
//! another; `--close` ends when stdin has ended and nothing has come for so long (a vchan has no
//! half-close, so the other end cannot be told that stdin has ended). The other end may be any
//! vchan program: `vchan-node2` of Xen's tools, or `xencat` of OCaml's, say.
//!
//! WHERE is a path in the store; or a name without `/`, which stands for the place where OCaml's
//! library and Qubes publish the service of that name,
//! `/local/domain/SERVER/data/vchan/CLIENT/NAME`; without it the place is where `xencat` looks,
//! `/local/domain/SERVER/data/vchan`.
//!
//! Without Xen, in one command: `vcat sim CMD` serves CMD on a simulated host and connects to it.
//!
//! ```text
//! echo hello | cargo run -p xen-vchan --features sim --example vcat -- sim sed -u s/hello/goodbye/
//! ```
//!
//! Or by hand: `vcat sim-host /tmp/host` in one terminal, then with `--sim /tmp/host` both ends in two
//! others, each a process of domain 0.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, Client, Error, PeerState, Server, service_path};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: vcat [--sim DIR] listen|connect DOMID [WHERE] [OPTION...] | vcat sim-host DIR | \
    vcat sim CMD [ARG...]";

fn main() -> ExitCode {
    match Args::parse(std::env::args().skip(1)).and_then(|args| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vcat: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Args {
    sim: Option<PathBuf>,
    role: String,
    peer: Option<DomId>,
    path: String,
    rings: (usize, usize),
    keep: bool,
    /// Seconds of silence after the end of stdin.
    close: Option<f64>,
    wait: Option<u64>,
    exec: Vec<String>,
}

impl Args {
    fn parse(words: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut words = words;
        let mut next = |what: &str| words.next().ok_or(format!("{what} is missing; {USAGE}"));
        let role = next("a role")?;
        let mut args = Self {
            role,
            ..Self::default()
        };
        if args.role == "--sim" {
            args.sim = Some(next("the host's directory")?.into());
            args.role = next("a role")?;
        }
        if args.role == "sim-host" {
            args.path = next("the host's directory")?;
            return Ok(args);
        }
        if args.role == "sim" {
            args.exec.push(next("a command")?);
            args.exec.extend(words);
            return Ok(args);
        }
        if !matches!(args.role.as_str(), "listen" | "connect") {
            return Err(format!("{:?} is no role; {USAGE}", args.role).into());
        }
        args.peer = Some(next("the peer's domain id")?.parse()?);
        while let Ok(word) = next("") {
            match word.as_str() {
                _ if args.path.is_empty() && !word.starts_with("--") => args.path = word,
                "--keep" => args.keep = true,
                "--close" => args.close = Some(next("the seconds")?.parse()?),
                "--wait" => args.wait = Some(next("the seconds")?.parse()?),
                "--rings" => args.rings = (next("LEFT")?.parse()?, next("RIGHT")?.parse()?),
                "--exec" => {
                    while let Ok(word) = next("") {
                        args.exec.push(word);
                    }
                }
                _ => return Err(format!("{word:?} is no option; {USAGE}").into()),
            }
        }
        Ok(args)
    }
}

fn run(args: &Args) -> Outcome<()> {
    let Some(peer) = args.peer else {
        return match args.role.as_str() {
            "sim" => sim(&args.exec),
            _ => sim_host(&args.path),
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
    let mut channel = if args.role == "listen" {
        let builder = Server::builder(peer, &path).rings(args.rings.0, args.rings.1);
        builder.listen(&xen, &store)?
    } else {
        let mut builder = Client::builder(peer, &path);
        if let Some(seconds) = args.wait {
            builder = builder
                .wait_for_server(true)
                .timeout(Duration::from_secs(seconds));
        }
        builder.connect(&xen, &store)?
    };
    loop {
        // A command is started for a client, not before.
        match channel.wait_connected(None) {
            Ok(()) | Err(Error::Closed) => {}
            Err(error) => return Err(error.into()),
        }
        session(&mut channel, args)?;
        if !args.keep || channel.peer()? != PeerState::Gone {
            return Ok(());
        }
        channel.next_client()?;
    }
}

/// The path in the store that is meant.
fn place(args: &Args, peer: DomId, store: &Store) -> Outcome<String> {
    if args.path.contains('/') {
        return Ok(args.path.clone());
    }
    let me: DomId = store.read_str("domid")?.trim().parse()?;
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

/// Pumps until the peer is gone, or the source has ended and that is to end the session.
fn session(channel: &mut Channel, args: &Args) -> Outcome<()> {
    let Some((program, arguments)) = args.exec.split_first() else {
        return pump(
            channel,
            io::stdin().as_fd(),
            io::stdout().as_fd(),
            args.close.map(Duration::from_secs_f64),
        );
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    let (Some(sink), Some(source)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("the command has no pipes".into());
    };
    let (sink, source) = (OwnedFd::from(sink), OwnedFd::from(source));
    // What a command has said when it ends is all there will be.
    let at_once = Some(Duration::ZERO);
    let pumped = pump(channel, source.as_fd(), sink.as_fd(), at_once);
    drop((sink, source));
    end(&mut child)?;
    pumped
}

fn end(child: &mut Child) -> io::Result<()> {
    child.wait().map(drop)
}

fn pump(
    channel: &mut Channel,
    source: BorrowedFd<'_>,
    sink: BorrowedFd<'_>,
    close_after: Option<Duration>,
) -> Outcome<()> {
    let (mut ended, mut room, mut waiting) = (false, true, true);
    loop {
        let (rx, tx) = channel.halves();
        loop {
            match rx.try_write_to(sink) {
                Ok(_) => {}
                Err(Error::WouldBlock) => break,
                Err(Error::Closed) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        // Without a look at the source first this would block.
        if !ended && !waiting {
            match tx.try_read_from(source, usize::MAX) {
                Ok(0) if close_after == Some(Duration::ZERO) => return Ok(()),
                Ok(0) => ended = true,
                Ok(_) => {}
                Err(Error::WouldBlock) => room = false,
                Err(Error::Closed) => continue,
                Err(error) => return Err(error.into()),
            }
        }
        let mut fds = vec![PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        if !ended && room {
            fds.push(PollFd::new(source, PollFlags::POLLIN));
        }
        let patience = match close_after {
            Some(time) if ended => PollTimeout::try_from(time)?,
            _ => PollTimeout::NONE,
        };
        match poll(&mut fds, patience) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let event = ready(&fds[0]);
        waiting = !fds.get(1).is_some_and(ready);
        drop(fds);
        if event {
            channel.acknowledge_events()?;
            // Perhaps there is room now; the source is asked first.
            room = true;
        }
    }
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
    let stored = xen_store::sim::start(&host, xen_store::server::Config::new())?;
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
        close: Some(1.0),
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
