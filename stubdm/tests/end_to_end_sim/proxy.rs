//! The proxy as a process of its own, with upstream's command line, on the simulated host.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use stubdm::rt::error::Context as _;
use stubdm::rt::{fd, log};
use stubdm::{cli, proxy};
use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::PeerState;

use crate::client::Client;
use crate::host::Host;
use crate::qemu;

/// The first argument that makes this program the proxy.
pub(crate) const ROLE: &str = "play-proxy";

/// The variable that selects how the worker behaves once it is taken over.
pub(crate) const TAKEN_OVER: &str = "STUBDM_TEST_TAKEN_OVER";

/// Is the proxy: `ROLE DIRECTORY DOMAIN STORE-DESCRIPTOR ARGS…`.
pub(crate) fn play(args: &[OsString]) -> ExitCode {
    let [_, _, directory, me, store, rest @ ..] = args else {
        return ExitCode::from(9);
    };
    let given = rest
        .iter()
        .find_map(|arg| arg.to_str()?.strip_prefix("--worker="));
    if let (Some(given), Ok(how)) = (given, std::env::var(TAKEN_OVER)) {
        crate::sandbox::taken_over(given.parse().unwrap(), &how);
    }
    let store = store.to_str().unwrap().parse().unwrap();
    let me = DomId::new(me.to_str().unwrap().parse().unwrap());
    let line = [OsString::from("vchan-socket-proxy")]
        .iter()
        .chain(rest)
        .cloned()
        .collect();
    let run = || {
        let options = cli::proxy_options(line)?.unwrap();
        proxy::run::run_on(&options, || {
            let xen = Xen::join_path(Path::new(directory).join("broker"), me).context("broker")?;
            let store = fd::duplicate(store).context("store")?;
            Ok((xen, Store::from_fd(store).context("store")?))
        })
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            log::complain(&failure);
            ExitCode::from(failure.status())
        }
    }
}

/// The proxy, running.
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // If it has ended it is waited for already, or waits for this.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    pub(crate) fn start(host: &Host, me: DomId, args: &[&str], stdio: bool) -> Self {
        let command = Command::new(std::env::current_exe().unwrap());
        Self::start_by(command, host, me, args, stdio)
    }

    /// By a command that ends in this program's name.
    pub(crate) fn start_by(
        mut command: Command,
        host: &Host,
        me: DomId,
        args: &[&str],
        stdio: bool,
    ) -> Self {
        let store = inheritable(host.store_connection(me));
        command.arg(ROLE).arg(host.dir()).arg(me.to_string());
        command.arg(store.as_raw_fd().to_string()).args(args);
        if stdio {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        }
        if std::env::var_os("STUBDM_TEST_LOG").is_none() {
            command.stderr(Stdio::piped());
        }
        Self(command.spawn().unwrap())
    }

    /// With a worker that is another's, and a file for the log.
    pub(crate) fn start_taken_over(host: &Host, how: &str, args: &[&str], log: &Path) -> Self {
        let store = inheritable(host.store_connection(DomId::DOM0));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .arg(ROLE)
            .arg(host.dir())
            .arg("0")
            .env(TAKEN_OVER, how);
        command.arg(store.as_raw_fd().to_string()).args(args);
        command.stderr(std::fs::File::create(log).unwrap());
        Self(command.spawn().unwrap())
    }

    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            stderr.read_to_string(&mut text).unwrap();
        }
        (self.0.wait().unwrap().code(), text)
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    /// Ends it as libxl does; returns its output.
    pub(crate) fn hang_up(self) -> String {
        kill(self.pid(), Signal::SIGHUP).unwrap();
        let (status, text) = self.end();
        assert_eq!(status, Some(0), "{text}");
        text
    }
}

/// A monitor in this process, for servers to connect to.
pub(crate) fn monitor(path: PathBuf) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(|| qemu::monitor(stream, |_| None));
        }
    });
}

pub(crate) fn path(host: &Host, name: &str) -> String {
    host.dir().join(name).to_str().unwrap().to_owned()
}

pub(crate) fn both_modes_with_paths() {
    let host = Host::new();
    monitor(host.dir().join("monitor"));
    let (state, node) = (host.proxy_state(), host.node());
    let (socket, monitor) = (path(&host, "libxl"), path(&host, "monitor"));
    let (stub, relative) = (
        host.stub.to_string(),
        format!("device-model/{}/qmp-vchan", host.guest),
    );
    // A stale socket, as a killed proxy leaves it.
    drop(UnixListener::bind(&socket).unwrap());
    let state_path = format!("--state-path={state}");
    let client = Process::start(
        &host,
        DomId::DOM0,
        &["--filter=off", &state_path, &stub, &node, &socket],
        false,
    );
    // libxl waits for this word, and the proxy may not wait for the server.
    host.wait_for(&state, |value| value == "running");
    let mut early = Client::connect(Path::new(&socket));
    let server = ["--mode=server", "0", &relative, &monitor];
    let server = Process::start(&host, host.stub, &server, false);
    early.negotiate();
    assert_eq!(early.ask("echo", json!([1])), json!([1]));
    drop(early);
    for n in 0..20 {
        let mut client = Client::connect(Path::new(&socket));
        client.negotiate();
        assert_eq!(client.ask("echo", json!(n)), json!(n));
    }
    client.hang_up();
    assert!(
        !Path::new(&socket).exists(),
        "the socket goes with the proxy"
    );
    server.hang_up();
    host.remove(&state);
    host.assert_clean_of("qmp-vchan");
}

/// QubesOS's server detects a client that connects quickly after the last one by this byte alone.
pub(crate) fn each_vchan_connection_begins_with_the_marker() {
    for (more, first) in [
        (&["--filter=off", "--reconnect-marker=1"][..], 1),
        (&["--reconnect-marker=1"], 1),
        (&["--sandbox=off", "-r", "7"], 7),
        (&["--filter=off"], 0xff),
    ] {
        let host = Host::new();
        let (node, stub) = (host.node(), host.stub.to_string());
        let relative = format!("device-model/{}/qmp-vchan", host.guest);
        let channel = xen_vchan::ServerBuilder::new(DomId::DOM0, relative);
        let mut channel = channel
            .publish(&host.stub_xen(), &host.stub_store())
            .unwrap();
        let socket = path(&host, "libxl");
        let state = host.proxy_state();
        let state_path = format!("--state-path={state}");
        let mut args = vec![state_path.as_str()];
        args.extend_from_slice(more);
        args.extend([stub.as_str(), &node, &socket]);
        let proxy = Process::start(&host, DomId::DOM0, &args, false);
        host.wait_for(&state, |value| value == "running");
        // Under a filter the connection is kept when its client leaves.
        let sessions = if more.contains(&"--filter=off") { 2 } else { 1 };
        let patience = || Some(Instant::now() + Duration::from_secs(60));
        for _ in 0..sessions {
            let client = UnixStream::connect(&socket).unwrap();
            channel.wait_connected(patience()).unwrap();
            let mut byte = [0];
            assert_eq!(channel.read_deadline(&mut byte, patience()).unwrap(), 1);
            assert_eq!(byte[0], first, "{more:?}");
            if sessions > 1 {
                drop(client);
                while !matches!(channel.peer().unwrap(), PeerState::Gone) {
                    channel.wait(patience()).unwrap();
                }
                channel.next_client().unwrap();
            }
        }
        proxy.hang_up();
        drop(channel);
        host.remove(&state);
        host.assert_clean_of("qmp-vchan");
    }
}

pub(crate) fn stdin_stdout_and_descriptors() {
    let host = Host::new();
    let (node, stub) = (host.node(), host.stub.to_string());
    let relative = format!("device-model/{}/qmp-vchan", host.guest);
    // Server mode on a connected descriptor, client mode on stdin and stdout.
    let (near, far) = UnixStream::pair().unwrap();
    let number = inheritable(far.into());
    let text = number.as_raw_fd().to_string();
    let server = Process::start(
        &host,
        host.stub,
        &["-m", "server", "0", &relative, &text],
        false,
    );
    drop(number);
    std::thread::spawn(|| qemu::monitor(near, |_| None));
    let mut client = Process::start(&host, DomId::DOM0, &["-v", &stub, &node, "-"], true);
    let mut input = client.0.stdin.take().unwrap();
    let mut output = BufReader::new(client.0.stdout.take().unwrap());
    let mut read_message = || -> Value {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    };
    assert!(read_message().get("QMP").is_some());
    input
        .write_all(b"{\"execute\": \"qmp_capabilities\", \"id\": 1}\n")
        .unwrap();
    assert_eq!(read_message(), json!({"return": {}, "id": 1}));
    drop(input);
    let (status, said) = client.end();
    assert_eq!(status, Some(0), "{said}");
    // Its only connection is used up.
    let (status, said) = server.end();
    assert_eq!(status, Some(0), "{said}");
    host.assert_clean_of("qmp-vchan");

    // Client mode on a listening descriptor.
    monitor(host.dir().join("monitor"));
    let monitor = path(&host, "monitor");
    let server = Process::start(
        &host,
        host.stub,
        &["-mserver", "0", &relative, &monitor],
        false,
    );
    let socket = host.dir().join("listening");
    let listener = inheritable(UnixListener::bind(&socket).unwrap().into());
    let text = listener.as_raw_fd().to_string();
    let client = Process::start(&host, DomId::DOM0, &[&stub, &node, &text], false);
    drop(listener);
    for _ in 0..3 {
        Client::connect(&socket).negotiate();
    }
    client.hang_up();
    assert!(socket.exists(), "whose socket it is decides when it goes");
    server.hang_up();
    host.assert_clean_of("qmp-vchan");
}

/// Lets the next child have this descriptor.
fn inheritable(fd: OwnedFd) -> OwnedFd {
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    fd
}

pub(crate) fn what_is_not_there_is_named() {
    let host = Host::new();
    let socket = path(&host, "libxl");
    let proxy = Process::start(&host, DomId::DOM0, &["99", &host.node(), &socket], false);
    let (status, said) = proxy.end();
    assert_eq!(status, Some(1));
    assert_eq!(said, "stubdm-run: there is no domain 99\n");
    assert!(!Path::new(&socket).exists());
    // A path that another domain owns.
    let server = ["-mserver", "0", "/local/domain/0/not-mine", &socket];
    let (status, said) = Process::start(&host, host.stub, &server, false).end();
    assert_eq!(status, Some(1));
    assert!(
        said.contains("/local/domain/0/not-mine") && said.lines().count() == 1,
        "{said}"
    );
}
