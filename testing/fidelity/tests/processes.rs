//! The simulated host between processes: what is inherited, joined by a path, and killed.
//!
//! A test that needs another process starts this test binary again with one test's name and a
//! role in the environment; a test that finds the role plays it.
#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use xen_evtchn::EventChannels;
use xen_gnttab::{PageAccess, UnmapNotify, map, share};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, GrantRef, Port, Xen};

const ROLE: &str = "XEN_FIDELITY_ROLE";

/// The role this process was started for, if it was.
fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(30))
}

/// This test binary as another process, which prints its findings on stdout; killed when dropped.
struct Peer {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Peer {
    fn start(test: &str, role: &str) -> Self {
        Self::start_with(test, role, Stdio::piped())
    }

    fn start_with(test: &str, role: &str, stdin: Stdio) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The rest of the next line that starts with `>`; the test harness prints others.
    fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(
                self.lines.read_line(&mut line).unwrap(),
                0,
                "the peer ended"
            );
            if let Some((_, text)) = line.trim_end().split_once('>') {
                return text.to_owned();
            }
        }
    }

    fn send(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A peer's line to its parent.
fn print(line: impl std::fmt::Display) {
    println!(">{line}");
}

/// A parent's line to a peer.
fn read_line() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// Does nothing until killed, or the parent is gone.
fn hang() -> ! {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(0)
}

/// A folder for a socket, removed at the end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("xen-sim-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn socket(&self) -> String {
        self.0.join("host").to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Not recursive: a socket left behind fails the test.
        std::fs::remove_dir(&self.0).unwrap();
    }
}

/// The whole vocabulary between two processes, and then SIGKILL: the survivor is notified.
#[test]
fn a_killed_process_is_announced_and_gives_everything_back() {
    const TEST: &str = "a_killed_process_is_announced_and_gives_everything_back";
    let me = DomId::new(7);
    if let Some(path) = role() {
        let xen = Xen::join_path(path, me).unwrap();
        let channels = EventChannels::open(&xen).unwrap();
        let port: u32 = read_line().parse().unwrap();
        let port = channels
            .bind_interdomain(DomId::DOM0, Port::new(port))
            .unwrap();
        let gref: u32 = read_line().parse().unwrap();
        let mut theirs = map(
            &xen,
            DomId::DOM0,
            &[GrantRef::new(gref)],
            PageAccess::ReadWrite,
        )
        .unwrap();
        let mut text = [0; 5];
        theirs.region().copy_out(0, &mut text).unwrap();
        assert_eq!(&text, b"hello");
        theirs.region_mut().copy_in(100, &[1]).unwrap();
        let notify = UnmapNotify {
            clear_byte: Some(100),
            event: Some(port.port()),
        };
        theirs.set_unmap_notify(notify).unwrap();
        // And something of its own, for the broker to find.
        let mut own = share(&xen, DomId::DOM0, 4, PageAccess::ReadWrite).unwrap();
        own.region_mut().copy_in(0, b"mine").unwrap();
        print(own.refs()[0]);
        port.notify().unwrap();
        hang();
    }
    let folder = Folder::new("kill");
    let host = Simulation::start().unwrap();
    host.add_domain_as(me).unwrap();
    host.listen(folder.socket()).unwrap();
    let xen = host.xen(DomId::DOM0).unwrap();
    let channels = EventChannels::open(&xen).unwrap();
    for _ in 0..3 {
        let port = channels.bind_unbound(me).unwrap();
        let mut page = share(&xen, me, 1, PageAccess::ReadWrite).unwrap();
        page.region_mut().copy_in(0, b"hello").unwrap();

        let mut peer = Peer::start(TEST, &folder.socket());
        peer.send(&port.port().to_string());
        peer.send(&page.refs()[0].to_string());
        let theirs = GrantRef::new(peer.line().parse().unwrap());
        assert_eq!(channels.wait(soon()).unwrap(), Some(port.port()));
        port.unmask().unwrap();
        assert_eq!(page.region().load_u8(100), Ok(1));
        let m = map(&xen, me, &[theirs], PageAccess::ReadWrite).unwrap();

        peer.child.kill().unwrap();
        assert_eq!(
            channels.wait(soon()).unwrap(),
            Some(port.port()),
            "its death is an event"
        );
        assert_eq!(page.region().load_u8(100), Ok(0), "and the byte is cleared");
        let mut text = [0; 4];
        m.region().copy_out(0, &mut text).unwrap();
        assert_eq!(&text, b"mine", "what we mapped of it stays");
        drop((m, page, port));
        host.assert_clean();
    }
}

#[test]
fn a_child_joins_by_the_descriptor_it_inherited() {
    const TEST: &str = "a_child_joins_by_the_descriptor_it_inherited";
    if role().is_some() {
        let fd = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        let xen = Xen::join(fd).unwrap();
        print(xen.simulated().unwrap().domain());
        let port = EventChannels::open(&xen)
            .unwrap()
            .bind_unbound(DomId::DOM0)
            .unwrap();
        print(port.port());
        // Killed by the parent.
        loop {
            std::thread::park();
        }
    }
    let host = Simulation::start().unwrap();
    let id = host.add_domain().unwrap();
    let mut child = Peer::start_with(TEST, "join", Stdio::from(host.invite(id).unwrap()));
    assert_eq!(child.line(), id.to_string());
    let port = Port::new(child.line().parse().unwrap());
    let channels = EventChannels::open(&host.xen(DomId::DOM0).unwrap()).unwrap();
    channels.bind_interdomain(id, port).unwrap();
    drop(child);
    host.assert_clean();
}

#[test]
fn an_invitation_is_close_on_exec_and_no_other_socket_will_do() {
    let host = Simulation::start().unwrap();
    let fd = host.invite(DomId::DOM0).unwrap();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
    let flags = info
        .lines()
        .find_map(|l| l.strip_prefix("flags:"))
        .unwrap()
        .trim();
    assert_ne!(i32::from_str_radix(flags, 8).unwrap() & libc::O_CLOEXEC, 0);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(theirs);
    assert!(Xen::join(ours.into()).is_err());
    assert!(Xen::join(std::fs::File::open("/dev/null").unwrap().into()).is_err());
}

#[test]
fn joining_by_path_names_what_is_wrong() {
    let folder = Folder::new("join");
    let gone = Xen::join_path(folder.socket(), DomId::DOM0).unwrap_err();
    assert!(gone.to_string().contains(&folder.socket()), "{gone}");
    let host = Simulation::start().unwrap();
    host.listen(folder.socket()).unwrap();
    let e = Xen::join_path(folder.socket(), DomId::new(9)).unwrap_err();
    assert_eq!(e.errno(), Some(libc::ESRCH), "{e}");
    assert_eq!(
        host.listen(folder.socket()).unwrap_err().errno(),
        Some(libc::EADDRINUSE)
    );
    Xen::join_path(folder.socket(), DomId::DOM0).unwrap();
}

#[test]
fn a_socket_left_by_a_killed_broker_is_replaced() {
    const TEST: &str = "a_socket_left_by_a_killed_broker_is_replaced";
    if let Some(path) = role() {
        let host = Simulation::start().unwrap();
        host.listen(path).unwrap();
        print("listening");
        hang();
    }
    let folder = Folder::new("stale");
    let mut broker = Peer::start(TEST, &folder.socket());
    assert_eq!(broker.line(), "listening");
    let xen = Xen::join_path(folder.socket(), DomId::DOM0).unwrap();
    let channels = EventChannels::open(&xen).unwrap();
    let port = channels.bind_unbound(DomId::DOM0).unwrap();
    drop(broker);
    // The host has ended: nothing hangs, and every call reports it.
    let e = channels.bind_unbound(DomId::DOM0).unwrap_err();
    assert!(
        matches!(e.errno(), Some(libc::EPIPE | libc::ECONNRESET)),
        "{e}"
    );
    assert!(share(&xen, DomId::DOM0, 1, PageAccess::ReadWrite).is_err());
    drop(port);
    let host = Simulation::start().unwrap();
    host.listen(folder.socket()).unwrap();
    Xen::join_path(folder.socket(), DomId::DOM0).unwrap();
}
