//! A simulated host whose processes are killed.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use stubdm::service::record::{self, Kind, Liveness};
use stubdm::sim::fake_qemu;
use stubdm::sim::host::Host;
use xen_console::Frontend;
use xen_store::{Permissions, Store};
use xen_sys::{DomId, Xen};

/// How long anything may take that is sure to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The host, with the processes that were started on it.
pub(crate) struct Killed {
    pub(crate) host: Host,
    pub(crate) dir: tempfile::TempDir,
    children: Vec<Child>,
}

impl Killed {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::start(dir.path()).unwrap();
        host.describe(&["-name".into(), "x".into()]).unwrap();
        Self {
            host,
            dir,
            children: Vec::new(),
        }
    }

    /// The folder of the records.
    pub(crate) fn folder(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn command(&self, role: &str, me: DomId) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
        command.args(["sim-role", role, "--me", &me.to_string(), "--broker"]);
        command.arg(self.host.broker()).stdin(Stdio::null());
        let log = File::options()
            // Not for appending: whoever starts a process may have it so.
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.dir.path().join(format!("{role}.log")));
        let log = log.unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        command
    }

    pub(crate) fn start(&mut self, role: &str, me: DomId, args: &[&str]) -> u32 {
        let child = self.command(role, me).args(args).spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        pid
    }

    pub(crate) fn supervise(&mut self, more: &[&str]) -> u32 {
        let folder = self.path("run");
        let args = [&["--folder", &folder, "--pause", "20"], more].concat();
        self.start("supervise", DomId::DOM0, &args)
    }

    pub(crate) fn restart(&self, args: &[&str]) -> std::process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stubdm-run"));
        command.arg("restart").args(args).arg("--folder");
        command.arg(self.folder()).output().unwrap()
    }

    /// The socket at which libxl asks.
    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("qmp-libxl")
    }

    /// Starts the stubdomain and the proxy, as far as libxl waits for them.
    pub(crate) fn stubdomain_and_proxy(&mut self) {
        let qemu = self.dir.path().join(fake_qemu::NAME);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_stubdm-run"), &qemu).unwrap();
        let stub = self.host.stub;
        let pid = format!("/local/domain/{stub}/image/qmp-proxy-pid");
        let (run, qemu) = (self.path("stub"), self.path(fake_qemu::NAME));
        self.start("stubdomain", stub, &["--run", &run, "--qemu", &qemu]);
        let proxy = self.proxy(&[]);
        self.host.store().write(&pid, proxy.to_string()).unwrap();
        self.wait_for_node(&self.host.proxy_node(), "running");
        self.wait_for_node(&self.host.phase_node(), "running");
    }

    /// Starts a proxy as libxl does, with `more` options.
    pub(crate) fn proxy(&mut self, more: &[&str]) -> u32 {
        let state = format!("--state-path={}", self.host.proxy_node());
        let (number, node) = (self.host.stub.to_string(), self.host.vchan_node());
        let (folder, socket) = (self.path("run"), self.path("qmp-libxl"));
        let args = ["--counters", &folder, &state, &number, &node, &socket];
        self.start("vchan-socket-proxy", DomId::DOM0, &[more, &args].concat())
    }

    /// Waits for the end of a process that was started last.
    pub(crate) fn wait(&mut self, pid: u32) -> ExitStatus {
        let mut child = self.children.pop().unwrap();
        assert_eq!(child.id(), pid);
        child.wait().unwrap()
    }

    pub(crate) fn wait_for_node(&self, node: &str, value: &str) {
        let check = |now: Option<&[u8]>| (now == Some(value.as_bytes())).then_some(());
        let deadline = Some(Instant::now() + PATIENCE);
        let found = self.host.store().wait_for(node, deadline, check).unwrap();
        found.unwrap_or_else(|| panic!("{node} is not {value}: {}", self.logs()));
    }

    /// The living process of a kind; one other than `last`.
    pub(crate) fn process(&self, kind: Kind, last: u32) -> u32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (_, record, life) in record::all(&self.folder()) {
                let lives = matches!(life, Liveness::Alive);
                if lives && record.kind == kind && record.pid != last {
                    return record.pid;
                }
            }
            assert!(Instant::now() < deadline, "no {kind:?}: {}", self.logs());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Returns the logs of all programs, one after another.
    pub(crate) fn logs(&self) -> String {
        let roles = ["supervise", "vchan-socket-proxy", "consoled", "stubdomain"];
        let log = |role: &&str| {
            let path = self.dir.path().join(format!("{role}.log"));
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let from = text.len().saturating_sub(3000);
            format!("\n{role}: {}", text.get(from..).unwrap_or_default())
        };
        roles.iter().map(log).collect()
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // The supervisor first: it would start the others again.
        let pid = std::fs::read_to_string(self.folder().join("supervise.pid"));
        let active = pid.ok().and_then(|text| text.trim().parse().ok());
        if let Some(pid) = active.filter(|pid| is_ours(*pid, self.dir.path())) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            let deadline = Instant::now() + PATIENCE;
            while self.folder().join("supervise.pid").exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        for (_, record, life) in record::all(&self.folder()) {
            if matches!(life, Liveness::Alive) {
                murder(record.pid);
            }
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Returns whether a process is one of this test's.
fn is_ours(pid: i32, dir: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).contains(dir.to_str().unwrap())
}

pub(crate) fn murder(pid: u32) {
    let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
}

/// Ends a process as libxl does.
pub(crate) fn hang_up(pid: u32) {
    kill(Pid::from_raw(pid as i32), Signal::SIGHUP).unwrap();
}

/// One connection with one command, as libxl does. An error is a text.
pub(crate) fn ask(socket: &Path, command: &str) -> Result<Value, String> {
    let stream = UnixStream::connect(socket).map_err(|error| format!("connecting: {error}"))?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = BufReader::new(stream);
    line(&mut stream)?;
    send(
        &mut stream,
        &json!({"execute": "qmp_capabilities", "id": 1}),
    )?;
    line(&mut stream)?;
    send(&mut stream, &json!({"execute": command, "id": 2}))?;
    let answer = line(&mut stream)?;
    match (answer.get("return"), answer.get("id")) {
        (Some(value), Some(id)) if id == 2 => Ok(value.clone()),
        _ => Err(answer.to_string()),
    }
}

fn send(stream: &mut BufReader<UnixStream>, what: &Value) -> Result<(), String> {
    let text = format!("{what}\r\n");
    let written = stream.get_mut().write_all(text.as_bytes());
    written.map_err(|error| format!("asking: {error}"))
}

fn line(stream: &mut BufReader<UnixStream>) -> Result<Value, String> {
    let mut line = String::new();
    match stream.read_line(&mut line) {
        Ok(0) => Err("it was closed".to_owned()),
        Ok(_) => serde_json::from_str(&line).map_err(|error| error.to_string()),
        Err(error) => Err(format!("reading: {error}")),
    }
}

/// A console of the stubdomain's, as libxl writes it.
pub(crate) fn console(store: &Store, stub: DomId, number: u32, output: &str) {
    let path = format!("/local/domain/0/backend/console/{stub}/{number}");
    let frontend = format!("/local/domain/{stub}/device/console/{number}");
    let theirs = Permissions::owner_none(stub).grant_read(DomId::DOM0);
    let ours = Permissions::owner_none(DomId::DOM0).grant_read(stub);
    let set = |node: &str, value: &str, perms: &Permissions| {
        store.write(node, value).unwrap();
        store.set_permissions(node, perms).unwrap();
    };
    set(&frontend, "", &theirs);
    set(&path, "", &ours);
    set(&format!("{frontend}/backend"), &path, &theirs);
    set(&format!("{frontend}/backend-id"), "0", &theirs);
    set(&format!("{frontend}/state"), "1", &theirs);
    set(&format!("{frontend}/type"), "ioemu", &ours);
    set(&format!("{frontend}/output"), output, &ours);
    set(&format!("{path}/frontend"), &frontend, &ours);
    set(&format!("{path}/frontend-id"), &stub.to_string(), &ours);
    set(&format!("{path}/state"), "1", &ours);
}

/// The other end of a console.
pub(crate) fn frontend(killed: &Killed, number: u32) -> Frontend {
    let stub = killed.host.stub;
    let xen = Xen::join_path(killed.host.broker(), stub).unwrap();
    let store = Store::open(&xen).unwrap();
    let node = format!("device/console/{number}");
    Frontend::publish(&xen, &store, &node, &[]).unwrap()
}
