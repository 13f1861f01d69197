//! netcat for vchan.
//!
//! ```text
//! vcat [--sim DIR] listen  DOMID PATH [--rings LEFT RIGHT] [--keep] [--exec CMD ARG...]
//! vcat [--sim DIR] connect DOMID PATH [--wait SECONDS] [--close] [--exec CMD ARG...]
//! vcat sim-host DIR
//! ```
//!
//! Bytes go between the vchan and stdin/stdout, or a command's. `--keep` serves one client after
//! another; `--close` ends when stdin does (a vchan has no half-close). The other end may be any
//! vchan program: `vchan-node2` of Xen's tools, say.
//!
//! Without Xen: `vcat sim-host /tmp/host` in one terminal, then with `--sim /tmp/host` both ends in
//! two others, each a process of domain 0 (`cargo run -p xen-vchan --features sim --example vcat --
//! …`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, Client, Error, PeerState, Server};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const USAGE: &str =
    "usage: vcat [--sim DIR] listen|connect DOMID PATH [OPTION...] | vcat sim-host DIR";

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
    close: bool,
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
        if !matches!(args.role.as_str(), "listen" | "connect") {
            return Err(format!("{:?} is no role; {USAGE}", args.role).into());
        }
        args.peer = Some(next("the peer's domain id")?.parse()?);
        args.path = next("the store path")?;
        while let Ok(word) = next("") {
            match word.as_str() {
                "--keep" => args.keep = true,
                "--close" => args.close = true,
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
        return sim_host(&args.path);
    };
    let (xen, store) = match &args.sim {
        None => {
            let xen = Xen::open()?;
            let store = Store::open(&xen)?;
            (xen, store)
        }
        Some(dir) => join(dir)?,
    };
    let mut channel = if args.role == "listen" {
        let builder = Server::builder(peer, &args.path).rings(args.rings.0, args.rings.1);
        builder.listen(&xen, &store)?
    } else {
        let mut builder = Client::builder(peer, &args.path);
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

/// Pumps until the peer is gone, or the source has ended and that is to end the session.
fn session(channel: &mut Channel, args: &Args) -> Outcome<()> {
    let Some((program, arguments)) = args.exec.split_first() else {
        return pump(
            channel,
            io::stdin().as_fd(),
            io::stdout().as_fd(),
            args.close,
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
    let pumped = pump(channel, source.as_fd(), sink.as_fd(), true);
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
    close_at_end: bool,
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
                Ok(0) if close_at_end => return Ok(()),
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
        match poll(&mut fds, PollTimeout::NONE) {
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

#[cfg(feature = "sim")]
fn sim_host(dir: &str) -> Outcome<()> {
    let dir = std::path::Path::new(dir);
    std::fs::create_dir_all(dir)?;
    let host = xen_sys::sim::Simulation::start()?;
    let stored = xen_store::server::Server::start(xen_store::server::Config::new())?;
    stored.connect(DomId::DOM0)?.write("domid", "0")?;
    host.listen(dir.join("xen"))?;
    stored.listen(dir.join("store"))?;
    println!(
        "a simulated host is at {}; end it with the end of its input",
        dir.display()
    );
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

#[cfg(not(feature = "sim"))]
fn join(_: &std::path::Path) -> Outcome<(Xen, Store)> {
    Err("this was built without the feature `sim`".into())
}

#[cfg(not(feature = "sim"))]
fn sim_host(_: &str) -> Outcome<()> {
    Err("this was built without the feature `sim`".into())
}
