//! The proxy's two processes: what the worker holds, and what the end of either means.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use serde_json::json;
use stubdm::proxy::counters::{self, Counters};
use stubdm::proxy::ipc::{IpcSocket, Request};
use stubdm::proxy::sandbox::{Inherited, user_of};
use stubdm::rt::fd;
use xen_sys::DomId;

use crate::client::Client;
use crate::host::Host;
use crate::proxy::{Process, monitor, path};

/// Is a worker that somebody took over as soon as it was ready. There are no walls: what it does
/// could be done behind them.
pub(crate) fn taken_over(given: Inherited, how: &str) -> ! {
    let number = given.ipc;
    let ipc = IpcSocket::new(fd::duplicate(number).unwrap());
    nix::unistd::close(number).unwrap();
    ipc.send(&Request::Ready.encode()).unwrap();
    match how {
        "closes its socket and lives" => drop(ipc),
        "ends as if all was done" => std::process::exit(0),
        "fills the log" => loop {
            eprintln!("{}", "\u{1b}[2J".repeat(100));
        },
        "says what nobody says" => ipc.send(b"?").unwrap(),
        "has states looked at" => loop {
            let _ = ipc.send(&Request::Stored.encode());
            while let Ok(stubdm::proxy::ipc::Received::Message(_)) = ipc.receive() {}
        },
        other => panic!("{other}"),
    }
    loop {
        std::thread::park();
    }
}

/// The children of a process, whatever they are.
fn children(parent: Pid) -> Vec<Pid> {
    let all = std::fs::read_dir("/proc").unwrap();
    let pids = all.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let pids = pids.map(Pid::from_raw);
    pids.filter(|pid| field(*pid, "PPid:") == Some(parent.to_string()))
        .collect()
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < deadline, "not {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Ends a proxy, which its worker must not delay.
fn hang_up_soon(proxy: Process, how: &str) {
    let asked = Instant::now();
    proxy.hang_up();
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(5), "{how}: {took:?}");
}

/// Whatever the worker does, the proxy stays, starts another, and ends at once on its signal;
/// neither process is left.
pub(crate) fn a_worker_that_was_taken_over_is_replaced_and_ends_with_the_proxy() {
    for how in [
        "closes its socket and lives",
        "ends as if all was done",
        "says what nobody says",
    ] {
        let host = Host::new();
        let (socket, stub, node) = (path(&host, "libxl"), host.stub.to_string(), host.node());
        let log = host.dir().join("log");
        let proxy = Process::start_taken_over(&host, how, &[&stub, &node, &socket], &log);
        let said = || std::fs::read_to_string(&log).unwrap();
        let gone = || said().matches("the worker is gone").count();
        until("replaced", || gone() >= 2);
        hang_up_soon(proxy, how);
        let said = said();
        let all = said.split("the worker: process ").skip(1);
        let left: Vec<_> = all
            .filter_map(|rest| rest.split(',').next())
            .filter(|pid| {
                // A number that was used again is another's.
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains(host.dir().to_str().unwrap())
            })
            .collect();
        assert!(left.is_empty(), "{how}: {left:?}");
    }
}

/// Its output passes within the budget, without what acts on a terminal, and the proxy ends on its
/// signal.
pub(crate) fn a_worker_that_fills_the_log_fills_little_of_it() {
    for how in ["fills the log", "has states looked at"] {
        let host = Host::new();
        let (socket, stub, node) = (path(&host, "libxl"), host.stub.to_string(), host.node());
        let log = host.dir().join("log");
        let proxy = Process::start_taken_over(&host, how, &[&stub, &node, &socket], &log);
        until("running", || !children(proxy.pid()).is_empty());
        std::thread::sleep(Duration::from_secs(5));
        hang_up_soon(proxy, how);
        let said = std::fs::read(&log).unwrap();
        println!("    {how}: {} bytes of log", said.len());
        assert!(said.len() < 2 << 20, "{how}: {} bytes", said.len());
        assert!(!said.contains(&0x1b), "{how}");
    }
}

/// The process whose parent is `parent` and that is not `other`.
pub(crate) fn child(parent: Pid, other: Option<Pid>) -> Pid {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let all = std::fs::read_dir("/proc").unwrap();
        let mut pids = all.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let found = pids.find(|pid: &i32| {
            let named = |name: &str| field(Pid::from_raw(*pid), name);
            named("PPid:") == Some(parent.to_string())
                && named("Seccomp:") == Some("2".to_owned())
                && Some(Pid::from_raw(*pid)) != other
        });
        if let Some(pid) = found {
            return Pid::from_raw(pid);
        }
        assert!(Instant::now() < deadline, "there is no worker");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn field(pid: Pid, name: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.to_owned())
}

fn asked(socket: &str) -> Client {
    let mut client = Client::connect(Path::new(socket));
    client.negotiate();
    assert_eq!(client.ask("echo", json!([1])), json!([1]));
    client
}

/// It has no powers, and its descriptors are the standard ones, the broker's and clients' sockets.
fn assert_sandboxed(pid: Pid, host: &Host) {
    for (name, value) in [
        ("CapPrm:", "0000000000000000"),
        ("CapEff:", "0000000000000000"),
        ("NoNewPrivs:", "1"),
    ] {
        // Another user than root keeps the little there was.
        if Uid::effective().is_root() || !name.starts_with("Cap") {
            assert_eq!(field(pid, name).unwrap(), value, "{name}");
        }
    }
    if !Uid::effective().is_root() {
        return;
    }
    let user = user_of(host.stub.as_u16()).to_string();
    assert_eq!(field(pid, "Uid:").unwrap(), user);
    let root = std::fs::read_link(format!("/proc/{pid}/root")).unwrap();
    assert!(root.to_str().unwrap().ends_with("(deleted)"), "{root:?}");
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open: Vec<_> = open
        .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap())
        .collect();
    let sockets = open
        .iter()
        .filter(|to| to.to_str().unwrap().starts_with("socket:"));
    assert_eq!((open.len(), sockets.count()), (5, 2), "{open:?}");
}

pub(crate) fn the_halves_of_the_proxy_end_as_they_should() {
    let host = Host::new();
    monitor(host.dir().join("monitor"));
    let (socket, monitor) = (path(&host, "libxl"), path(&host, "monitor"));
    let relative = format!("device-model/{}/qmp-vchan", host.guest);
    let server = Process::start(
        &host,
        host.stub,
        &["-mserver", "0", &relative, &monitor],
        false,
    );
    let (stub, node) = (host.stub.to_string(), host.node());
    let start = || {
        Process::start(
            &host,
            DomId::DOM0,
            &["--filter=off", &stub, &node, &socket],
            false,
        )
    };
    let proxy = start();
    let worker = child(proxy.pid(), None);
    assert_sandboxed(worker, &host);

    // Killed: its client gets no more, and the next client finds another in its place.
    let mut client = asked(&socket);
    kill(worker, Signal::SIGKILL).unwrap();
    client.closed();
    let next = child(proxy.pid(), Some(worker));
    drop(asked(&socket));
    // Clients that connected while there was none have only waited.
    kill(next, Signal::SIGKILL).unwrap();
    drop(asked(&socket));
    proxy.hang_up();

    // The other one killed: both end.
    let proxy = start();
    child(proxy.pid(), None);
    let mut client = asked(&socket);
    kill(proxy.pid(), Signal::SIGKILL).unwrap();
    client.closed();
    proxy.end();
    server.hang_up();
    host.assert_clean_of("qmp-vchan");
}

/// It has announced itself by then; a client that connects is closed at once.
pub(crate) fn a_sandbox_that_cannot_be_made_ends_the_proxy() {
    if !Uid::effective().is_root() {
        println!("not root: walls that only root puts up are not seen to fail");
        return;
    }
    let host = Host::new();
    let socket = path(&host, "libxl");
    let (stub, node) = (host.stub.to_string(), host.node());
    let mut without = Command::new("setpriv");
    without.args(["--bounding-set=-sys_chroot", "--inh-caps=-sys_chroot"]);
    without.arg(std::env::current_exe().unwrap());
    let options = [stub.as_str(), &node, &socket];
    let proxy = Process::start_by(without, &host, DomId::DOM0, &options, false);
    let (status, said) = proxy.end();
    assert_eq!(status, Some(1), "{said}");
    let lines: Vec<_> = said.lines().collect();
    let [.., why, end] = lines[..] else {
        panic!("{said}");
    };
    assert!(why.contains("an empty root directory: chroot:"), "{said}");
    assert!(end.contains("the worker does not start"), "{said}");
    assert!(!Path::new(&socket).exists());
}

/// Waits until the proxy to the host's stubdomain has written counters that fit.
fn wait_counters(folder: &Path, host: &Host, fit: impl Fn(&Counters) -> bool) -> Counters {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let page = counters::read(folder, host.stub.as_u16());
        match page.map(|page| page.counters).filter(&fit) {
            Some(counters) => return counters,
            None => assert!(Instant::now() < deadline, "{page:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The broker writes the counters, also after the worker was replaced; the file is removed with the
/// proxy.
pub(crate) fn what_the_worker_counts_can_be_read() {
    let host = Host::new();
    monitor(host.dir().join("monitor"));
    let (socket, monitor) = (path(&host, "libxl"), path(&host, "monitor"));
    let relative = format!("device-model/{}/qmp-vchan", host.guest);
    let server = ["-mserver", "0", &relative, &monitor];
    let server = Process::start(&host, host.stub, &server, false);
    let folder = host.dir().join("counters");
    let option = format!("--counters={}", folder.display());
    let (stub, node) = (host.stub.to_string(), host.node());
    let proxy = [option.as_str(), &stub, &node, &socket];
    let proxy = Process::start(&host, DomId::DOM0, &proxy, false);
    let worker = child(proxy.pid(), None);
    let first = counters::read(&folder, host.stub.as_u16()).unwrap();
    assert_eq!(first.pid.to_string(), proxy.pid().to_string());
    assert_eq!(first.counters, Counters::default());

    let mut client = Client::connect(Path::new(&socket));
    client.negotiate();
    client.ask("xen-set-global-dirty-log", json!({"enable": true}));
    client.ask("quit", json!({}));
    // This QEMU answers it as no real QEMU does.
    client.ask("query-status", json!({}));
    let counters = wait_counters(&folder, &host, |counters| counters.refused > 0);
    let seen = (counters.sessions, counters.answered, counters.denied);
    assert_eq!((seen, counters.refused), ((1, 1, 1), 1), "{counters:?}");
    assert!(counters.longest_us >= counters.latency_us, "{counters:?}");

    kill(worker, Signal::SIGKILL).unwrap();
    client.closed();
    let mut client = Client::connect(Path::new(&socket));
    client.negotiate();
    client.ask("xen-set-global-dirty-log", json!({"enable": true}));
    let after = wait_counters(&folder, &host, |counters| counters.answered > 1);
    assert_eq!((after.sessions, after.answered, after.denied), (2, 2, 1));
    proxy.hang_up();
    assert_eq!(counters::read(&folder, host.stub.as_u16()), None);
    server.hang_up();
}
