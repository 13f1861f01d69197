//! QEMU as the stubdomain's init starts it, with a companion through which dom0 spoils it.
//!
//! ```text
//!   init's monitor ◀──own──────── companion ◀──own.behind───── QEMU
//!   init's proxy ──toolstack──▶   companion ──toolstack.behind──▶ QEMU
//! ```
//!
//! A test puts this program into the stubdomain's ramdisk as `mortal-qemu` and names it to the
//! init. The program obeys the order in the stubdomain's node `data/qemu/order` and repeats it in
//! `data/qemu/done`: `flood-log N` and `flood-monitors N` (N lines or events as fast as they are
//! taken), `break-out` (the first attempts of a QEMU under an attacker's control, all of which must
//! fail), or a signal's name.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::Pid;
use xen_store::Store;
use xen_sys::Xen;

const QEMU: &str = "/usr/libexec/xen-qemu-system-i386";

/// The name this program is called by.
pub(crate) const NAME: &str = "mortal-qemu";
/// Where dom0's word is found.
pub(crate) const ORDER: &str = "data/qemu/order";
/// The order to try what must not succeed; it is repeated only if nothing did.
pub(crate) const BREAK_OUT: &str = "break-out";
/// Where it is repeated.
pub(crate) const DONE: &str = "data/qemu/done";

/// Becomes QEMU, with the arguments of this process except for the monitors' sockets, which lead to
/// the companion.
pub(crate) fn run() -> Result<()> {
    let pid = std::process::id().to_string();
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut sockets = [String::new(), String::new()];
    for argument in &mut arguments {
        for (socket, id) in sockets
            .iter_mut()
            .zip(["id=stubdm-own,", "id=stubdm-toolstack,"])
        {
            let path = argument
                .contains(id)
                .then(|| argument.split("path=").nth(1)?.split(',').next())
                .flatten()
                .map(str::to_owned);
            if let Some(path) = path {
                *argument = argument.replace(&path, &behind(&path));
                *socket = path;
            }
        }
    }
    // Before QEMU connects to it.
    let [own, toolstack] = &sockets;
    let _ = std::fs::remove_file(behind(own));
    let listener = UnixListener::bind(behind(own)).context("in our own monitor's place")?;
    let listener: std::os::fd::OwnedFd = listener.into();
    Command::new("/proc/self/exe")
        .args(["role", "killer", &pid, own, toolstack])
        .stdin(listener)
        .stdout(Stdio::null())
        .spawn()
        .context("the companion")?;
    let error = Command::new(QEMU).args(arguments).exec();
    Err(error).context(QEMU)
}

/// The name of the socket that QEMU is given instead of `path`.
fn behind(path: &str) -> String {
    format!("{path}.behind")
}

/// The companion. Its standard input is the socket that QEMU connects to, its standard error
/// QEMU's.
#[derive(Args, Debug)]
pub(crate) struct Killer {
    pid: i32,
    own: PathBuf,
    toolstack: PathBuf,
}

/// Where the flood goes: every client that is connected, one whole line at a time.
type Clients = Arc<Mutex<Vec<Arc<Mutex<UnixStream>>>>>;

impl Killer {
    /// Obeys dom0 until QEMU is gone, and this process with it.
    pub(crate) fn run(&self) -> Result<()> {
        let clients = Clients::default();
        // The init counts on it when QEMU's greeting comes.
        let toolstack = UnixListener::bind(&self.toolstack)?;
        let listener = std::os::fd::AsFd::as_fd(&io::stdin()).try_clone_to_owned()?;
        let listener = UnixListener::from(listener);
        let own = self.own.clone();
        let known = Arc::clone(&clients);
        thread::spawn(move || {
            // QEMU connects once, and only then may the init see a client.
            if let Ok((qemu, _)) = listener.accept() {
                let _ = UnixStream::connect(own).map(|init| pass(init, qemu, &known));
            }
        });
        let theirs = behind(&self.toolstack.to_string_lossy());
        let known = Arc::clone(&clients);
        thread::spawn(move || {
            for client in toolstack.incoming().flatten() {
                let _ = UnixStream::connect(&theirs).map(|qemu| pass(client, qemu, &known));
            }
        });
        let store = Store::open(&Xen::open()?)?;
        let orders = store.watch(ORDER)?;
        let mut last = Vec::new();
        while Path::new(&format!("/proc/{}", self.pid)).exists() {
            orders.next(None)?;
            let order = store.read(ORDER).unwrap_or_default();
            if order != last && !order.is_empty() {
                self.obey(&String::from_utf8_lossy(&order), &clients)?;
                store.write(DONE, &order)?;
                last = order;
            }
        }
        Ok(())
    }

    fn obey(&self, order: &str, clients: &Clients) -> Result<()> {
        match order.split_once(' ') {
            Some(("flood-log", count)) => {
                let line = format!("{}\n", "QEMU cannot stop talking. ".repeat(4));
                let mut log = io::stderr().lock();
                for _ in 0..count.parse::<usize>()? {
                    log.write_all(line.as_bytes())?;
                }
            }
            Some(("flood-monitors", count)) => {
                let event = b"{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"FLOOD\"}\r\n";
                for _ in 0..count.parse::<usize>()? {
                    let all = clients
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .clone();
                    for client in all {
                        let mut client = client.lock().unwrap_or_else(PoisonError::into_inner);
                        let _ = client.write_all(event);
                    }
                }
            }
            None if order == BREAK_OUT => break_out()?,
            None => kill(Pid::from_raw(self.pid), order.parse::<Signal>()?)?,
            Some(_) => bail!("`{order}` is no order"),
        }
        Ok(())
    }
}

/// Tries to gain capabilities, as an attacker who took over QEMU would: this process is its child.
fn break_out() -> Result<()> {
    let refused = |what: &str, result: nix::Result<()>| match result {
        Err(Errno::EPERM) => Ok(()),
        other => bail!("{what}: {other:?}"),
    };
    for flags in [
        CloneFlags::CLONE_NEWUSER,
        CloneFlags::CLONE_NEWNS,
        CloneFlags::CLONE_NEWNET,
    ] {
        refused(&format!("{flags:?}"), unshare(flags))?;
    }
    let family = AddressFamily::Packet;
    let packet = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
    refused("a packet socket", packet.map(drop))?;
    // Where no filter stands either: the domain has no namespace left to give.
    for kind in ["user", "mnt", "net", "pid"] {
        let limit = format!("/proc/sys/user/max_{kind}_namespaces");
        let limit = std::fs::read_to_string(&limit).context(limit)?;
        ensure!(limit.trim() == "0", "{kind} namespaces: {limit}");
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    for line in [
        "CapPrm:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        ensure!(status.contains(line), "no `{line}` in {status}");
    }
    Ok(())
}

/// Passes everything on between a client and QEMU, and makes the client known to the flood.
fn pass(client: UnixStream, qemu: UnixStream, clients: &Clients) -> Option<()> {
    let words = client.try_clone().ok()?;
    let answers = qemu.try_clone().ok()?;
    let out = Arc::new(Mutex::new(client));
    clients.lock().ok()?.push(Arc::clone(&out));
    let known = Arc::clone(clients);
    thread::spawn(move || {
        let (mut words, mut qemu) = (words, qemu);
        let _ = io::copy(&mut words, &mut qemu);
        let _ = qemu.shutdown(std::net::Shutdown::Both);
    });
    thread::spawn(move || {
        let mut answers = BufReader::new(answers);
        let mut line = Vec::new();
        while matches!(answers.read_until(b'\n', &mut line), Ok(1..)) {
            let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
            if out.write_all(&line).is_err() {
                break;
            }
            line.clear();
        }
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|other| !Arc::ptr_eq(other, &out));
        let out = out.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = out.shutdown(std::net::Shutdown::Both);
    });
    Some(())
}
