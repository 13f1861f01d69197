//! The process that makes a new QEMU's VNC server show the frame buffer: `stubdm-run
//! select-console`, which the launcher leaves in dom0 until the stubdomain's kernel runs.
//!
//! From 9.1 on, QEMU's VNC server shows the console that is there when QEMU starts, or "This VM has
//! no graphic display device" if there is none. A PV frame buffer becomes a console when its
//! frontend connects, which is later. No QMP command changes the server's console; a viewer's
//! Ctrl-Alt-1 does, for all viewers (`do_key_event` in QEMU's `ui/vnc.c`). So this process waits
//! for the frontend, joins the server by QMP's `add_client`, which needs no address and no
//! password, presses these keys, and ends. It ends with QEMU too, and when a time below has passed.
//!
//! QEMU releases the keys of a viewer that leaves (`vnc_disconnect_finish` in `ui/vnc.c`), so none
//! stays pressed if this process is killed between press and release.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use stubdm_qmp::client::{Client as Qmp, ClientEvent};
use stubdm_qmp::json::{Json, map};
use stubdm_screen::rfb::Client;
use xen_store::Store;
use xen_sys::DomId;

use crate::libxl::store::{StoreOptions, domid};
use crate::rt::error::{Context, Failure, Result};
use crate::rt::poll::{readable, sleep};
use crate::rt::stream::{Read, Stream};
use crate::viewer::{LARGEST, Viewer};

/// The command by which this program is the process.
const COMMAND: &str = "select-console";

/// Time for the frontend to connect. libxl stops waiting for a stubdomain after 30 s.
const CONNECTED_WITHIN: Duration = Duration::from_secs(300);
/// Time for QEMU's answers after that, and for each of the store's.
const PATIENCE: Duration = Duration::from_secs(30);

/// Scancodes of the left Control key, the left Alt key, and the digit 1.
const KEYS: [u8; 3] = [0x1d, 0x38, 0x02];

/// The command line.
#[derive(Args, Clone, Debug)]
pub struct SelectOptions {
    /// Return at once, and continue in the background
    #[arg(long)]
    pub background: bool,
    /// Its store
    #[command(flatten)]
    pub store: StoreOptions,
    /// The stubdomain. Standard input is a monitor of its QEMU in dom0
    #[arg(value_name = "DOMID", value_parser = domid)]
    pub domid: DomId,
}

/// Starts the process, with a monitor of the QEMU that is about to run, as nobody's child.
///
/// # Errors
/// It could not be started.
pub(super) fn start(domain: DomId, monitor: OwnedFd) -> Result<()> {
    let mut command = command(domain, monitor)?;
    let status = command.arg("--background").status().context(COMMAND)?;
    match status.success() {
        true => Ok(()),
        false => Err(Failure::new(format_args!("{COMMAND}: {status}"))),
    }
}

fn command(domain: DomId, monitor: OwnedFd) -> Result<Command> {
    // The launcher has other names, by which it would be the launcher again.
    let own = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(own);
    command.arg0("stubdm-run");
    command.arg(COMMAND).arg(domain.to_string()).stdin(monitor);
    Ok(command)
}

/// Does the process's work.
///
/// # Errors
/// The store or QEMU fails, or one of them is too slow.
pub fn run(options: &SelectOptions) -> Result<()> {
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    let monitor = stdin.context("standard input")?;
    if options.background {
        let mut command = command(options.domid, monitor)?;
        command.stdout(Stdio::null()).process_group(0);
        command.spawn().context(COMMAND)?;
        return Ok(());
    }
    let mut monitor = QemuMonitor::new(monitor)?;
    let store = options.store.open()?.with_timeout(Some(PATIENCE));
    let deadline = Instant::now() + CONNECTED_WITHIN;
    match wait_connected(&store, options.domid, &mut monitor, deadline)? {
        true => select(&mut monitor, Instant::now() + PATIENCE),
        // QEMU ended, as it does with a stubdomain that does not start.
        false => Ok(()),
    }
}

/// Waits until the stubdomain's frame buffer is connected; returns false if QEMU ended.
fn wait_connected(
    store: &Store,
    domain: DomId,
    monitor: &mut QemuMonitor,
    deadline: Instant,
) -> Result<bool> {
    let node = format!("/local/domain/0/backend/vfb/{domain}/0/state");
    let watch = store.watch(&node).context(&node)?;
    loop {
        while watch.try_next().context(&node)?.is_some() {}
        match store.read(&node) {
            Ok(state) if state == b"4" => return Ok(true),
            Err(error) if !error.is_not_found() => return Err(error).context(&node),
            _ => {}
        }
        if !monitor.receive()? {
            return Ok(false);
        }
        if let Some(event) = monitor.poll_event() {
            return Err(unexpected(&event));
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(format_args!(
                "{node} is not 4 after {CONNECTED_WITHIN:?}"
            )));
        }
        let fd = watch.poll_fd().context(&node)?;
        let mut interests = monitor.stream.interest(true, false);
        interests.push(readable(fd));
        sleep(&interests, Some(deadline)).context(&node)?;
    }
}

/// Presses the keys on a VNC connection of its own.
fn select(monitor: &mut QemuMonitor, deadline: Instant) -> Result<()> {
    let (ours, theirs) = UnixStream::pair().context("a socket")?;
    let name = || Json::Text("stubdm-run".into());
    let names = map([("fdname", name())]);
    monitor.execute("getfd", names, Some(theirs.as_fd()), deadline)?;
    drop(theirs);
    let joins = map([
        ("protocol", Json::Text("vnc".into())),
        ("fdname", name()),
        ("skipauth", Json::Bool(true)),
    ]);
    monitor.execute("add_client", joins, None, deadline)?;
    let mut viewer = Viewer::new(ours.into(), Client::new(LARGEST))?;
    let wait = |viewer: &mut Viewer, what: &str, holds: &dyn Fn(&Viewer) -> bool| match viewer
        .run_until(deadline, holds)?
    {
        true => Ok(()),
        false => Err(Failure::new(format_args!("no {what} within {PATIENCE:?}"))),
    };
    wait(&mut viewer, "picture", &|viewer| {
        viewer.updates() > 0 && viewer.client.takes_scancodes()
    })?;
    let before = viewer.updates();
    for key in KEYS {
        viewer.client.key(true, key);
    }
    for key in KEYS.iter().rev() {
        viewer.client.key(false, *key);
    }
    // Another console is a whole picture for all viewers.
    wait(&mut viewer, "other console", &|viewer| {
        viewer.updates() > before
    })
}

/// A QMP monitor.
#[derive(Debug)]
struct QemuMonitor {
    stream: Stream,
    qmp: Qmp,
    /// Its greeting was received and answered.
    ready: bool,
}

impl QemuMonitor {
    fn new(fd: OwnedFd) -> Result<Self> {
        Ok(Self {
            stream: Stream::socket(fd).context("QEMU's monitor")?,
            qmp: Qmp::new(),
            ready: false,
        })
    }

    /// Reads once; returns false if QEMU ended.
    fn receive(&mut self) -> Result<bool> {
        let mut buffer = [0; 4096];
        let read = self.stream.read(&mut buffer).context("QEMU's monitor")?;
        if let Read::Bytes(count) = read {
            let bytes = buffer.get(..count).unwrap_or_default();
            self.qmp.handle_bytes(bytes);
        }
        Ok(read != Read::End)
    }

    /// Returns the next event other than QEMU's own, which are dropped.
    fn poll_event(&mut self) -> Option<ClientEvent> {
        let mut events = std::iter::from_fn(|| self.qmp.poll_event());
        events.find(|event| !matches!(event, ClientEvent::Event(_)))
    }

    /// Sends what there is to send, with `fd` if one is given.
    fn send(&mut self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        while !self.qmp.poll_transmit().is_empty() {
            let bytes = self.qmp.poll_transmit();
            let sent = match fd {
                Some(fd) => self.stream.write_with(bytes, fd),
                None => self.stream.write(bytes),
            };
            match sent.context("QEMU's monitor")? {
                0 => break,
                count => self.qmp.handle_transmitted(count),
            }
        }
        Ok(())
    }

    /// Waits for the next event other than QEMU's own.
    fn event(&mut self, deadline: Instant) -> Result<ClientEvent> {
        loop {
            if let Some(event) = self.poll_event() {
                return Ok(event);
            }
            self.send(None)?;
            if Instant::now() >= deadline {
                return Err(Failure::new("QEMU's monitor gives no answer"));
            }
            let unsent = !self.qmp.poll_transmit().is_empty();
            let interests = self.stream.interest(true, unsent);
            sleep(&interests, Some(deadline)).context("QEMU's monitor")?;
            if !self.receive()? {
                return Err(Failure::new("QEMU's monitor was closed"));
            }
        }
    }

    /// Executes a command, and sends `fd` with it if one is given.
    fn execute(
        &mut self,
        command: &str,
        arguments: Json,
        fd: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> Result<()> {
        while !self.ready {
            match self.event(deadline)? {
                ClientEvent::Ready => self.ready = true,
                other => return Err(unexpected(&other)),
            }
        }
        self.qmp.execute(command, Some(arguments));
        self.send(fd)?;
        match self.event(deadline)? {
            ClientEvent::Answer(answer) => answer.context(command).map(drop),
            other => Err(unexpected(&other)),
        }
    }
}

fn unexpected(event: &ClientEvent) -> Failure {
    match event {
        ClientEvent::Broken(why) => Failure::new(format_args!("QEMU's monitor: {why}")),
        other => Failure::new(format_args!("QEMU's monitor: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::viewer::fake::{Fake, Message};
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::io::{BufRead, BufReader, IoSliceMut, Write};
    use std::os::fd::{AsRawFd, RawFd};
    use xen_store_server::{Config, Server};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// A monitor, and QEMU's end of it.
    fn joined() -> (QemuMonitor, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (QemuMonitor::new(ours.into()).unwrap(), theirs)
    }

    /// Negotiates as QEMU; returns the descriptor sent with `getfd`.
    fn take_socket(qemu: &mut UnixStream) -> UnixStream {
        qemu.write_all(b"{\"QMP\": {\"version\": {}}}\r\n").unwrap();
        let mut line = String::new();
        let reader = qemu.try_clone().unwrap();
        BufReader::with_capacity(1, reader)
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("qmp_capabilities"), "{line}");
        qemu.write_all(b"{\"return\": {}, \"id\": 0}\r\n").unwrap();
        let mut bytes = [0; 512];
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message =
            recvmsg::<()>(qemu.as_raw_fd(), &mut slices, Some(&mut space), flags).unwrap();
        let mut parts = message.cmsgs().unwrap();
        let Some(ControlMessageOwned::ScmRights(fds)) = parts.next() else {
            panic!("no descriptor");
        };
        let socket = crate::rt::fd::duplicate(fds[0]).unwrap();
        nix::unistd::close(fds[0]).unwrap();
        let line = String::from_utf8_lossy(&bytes).into_owned();
        assert!(
            line.contains("getfd") && line.contains("stubdm-run"),
            "{line}"
        );
        qemu.write_all(b"{\"return\": {}, \"id\": 1}\r\n").unwrap();
        UnixStream::from(socket)
    }

    fn add_client(qemu: &mut UnixStream) {
        let mut line = String::new();
        let reader = qemu.try_clone().unwrap();
        BufReader::new(reader).read_line(&mut line).unwrap();
        for word in ["add_client", "\"vnc\"", "stubdm-run", "\"skipauth\":true"] {
            assert!(line.contains(word), "no {word} in {line}");
        }
        qemu.write_all(b"{\"return\": {}, \"id\": 2}\r\n").unwrap();
    }

    /// Takes the viewer as QEMU, and shows it a picture.
    fn show(qemu: &mut UnixStream) -> Fake<UnixStream> {
        let stream = take_socket(qemu);
        add_client(qemu);
        let mut server = Fake {
            stream,
            width: 4,
            height: 2,
        };
        assert_eq!(server.security(&[1]).unwrap(), 1);
        server.accept().unwrap();
        while server.message().unwrap() != (Message::Request { incremental: false }) {}
        server.announce().unwrap();
        server.picture(|_, _| 0).unwrap();
        server
    }

    #[test]
    fn the_keys_select_the_first_console() {
        let (mut monitor, mut qemu) = joined();
        let serving = std::thread::spawn(move || {
            let mut server = show(&mut qemu);
            let mut keys = Vec::new();
            while keys.len() < 6 {
                if let Message::Key { down, scancode } = server.message().unwrap() {
                    keys.push((down, scancode));
                }
            }
            let expected = [
                (true, 0x1d),
                (true, 0x38),
                (true, 2),
                (false, 2),
                (false, 0x38),
                (false, 0x1d),
            ];
            assert_eq!(keys, expected);
            (server.width, server.height) = (8, 4);
            server.picture(|_, _| 0).unwrap();
            while server.message().is_ok() {}
        });
        select(&mut monitor, soon()).unwrap();
        serving.join().unwrap();
    }

    #[test]
    fn a_qemu_without_another_console_is_reported() {
        let (mut monitor, mut qemu) = joined();
        let serving = std::thread::spawn(move || {
            let mut server = show(&mut qemu);
            while server.message().is_ok() {}
        });
        let deadline = Instant::now() + Duration::from_secs(2);
        let failure = select(&mut monitor, deadline).unwrap_err().to_string();
        assert!(failure.contains("no other console"), "{failure}");
        serving.join().unwrap();
    }

    #[test]
    fn a_refusal_of_qemus_is_reported() {
        let (mut monitor, mut qemu) = joined();
        let serving = std::thread::spawn(move || {
            drop(take_socket(&mut qemu));
            let mut line = String::new();
            BufReader::new(&qemu).read_line(&mut line).unwrap();
            let error =
                b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no vnc\"}, \"id\": 2}\n";
            qemu.write_all(error).unwrap();
            qemu
        });
        let failure = select(&mut monitor, soon()).unwrap_err().to_string();
        assert_eq!(failure, "add_client: GenericError: no vnc");
        serving.join().unwrap();
    }

    #[test]
    fn the_frontend_is_waited_for_until_qemu_ends() {
        let server = Server::start(Config::new()).unwrap();
        let store = server.connect(DomId::DOM0).unwrap();
        let domain = DomId::new(7);
        let node = "/local/domain/0/backend/vfb/7/0/state";
        let (mut monitor, mut qemu) = joined();
        store.write(node, "2").unwrap();
        let writer = server.connect(DomId::DOM0).unwrap();
        let connecting = std::thread::spawn(move || {
            qemu.write_all(b"{\"QMP\": {\"version\": {}}}\r\n").unwrap();
            writer.write(node, "3").unwrap();
            writer.write(node, "4").unwrap();
            qemu
        });
        assert!(wait_connected(&store, domain, &mut monitor, soon()).unwrap());
        let qemu = connecting.join().unwrap();
        for other in ["", "3", "5", "44"] {
            store.write(node, other).unwrap();
            let past = Instant::now();
            let failure = wait_connected(&store, domain, &mut monitor, past).unwrap_err();
            assert!(failure.to_string().contains("is not 4"), "{failure}");
        }
        drop(qemu);
        assert!(!wait_connected(&store, domain, &mut monitor, soon()).unwrap());
    }

    #[test]
    fn a_qemu_that_floods_its_monitor_costs_the_deadline_and_no_memory() {
        let server = Server::start(Config::new()).unwrap();
        let store = server.connect(DomId::DOM0).unwrap();
        let (mut monitor, mut qemu) = joined();
        let flooding = std::thread::spawn(move || {
            let events = b"{\"event\": \"STOP\"}\r\n".repeat(1000);
            let end = soon();
            while Instant::now() < end && qemu.write_all(&events).is_ok() {}
        });
        let deadline = Instant::now() + Duration::from_millis(200);
        let waited = wait_connected(&store, DomId::new(7), &mut monitor, deadline);
        assert!(waited.unwrap_err().to_string().contains("is not 4"));
        assert_eq!(monitor.qmp.poll_event(), None);
        let deadline = Instant::now() + Duration::from_millis(200);
        let failure = select(&mut monitor, deadline).unwrap_err();
        assert!(failure.to_string().contains("no answer"), "{failure}");
        assert!(deadline.elapsed() < Duration::from_secs(10));
        drop(monitor);
        flooding.join().unwrap();
    }
}
