//! A store daemon for one test: Debian's xenstored or oxenstored on a fake hypervisor, or ours.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xen_store::Store;
use xen_store_server::{Config, Server};
use xen_sys::{DomId, Port};

use crate::ring::Ring;

/// How long a daemon may take to be there.
const START: Duration = Duration::from_secs(60);
/// The domain that virtual interrupts come from, and the one about domains that end.
const VIRQ_DOM_EXC: [u32; 2] = [u32::MAX, 3];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    C,
    OCaml,
    Embedded,
}

enum Running {
    Process(Child),
    Server(Option<Server>),
}

/// A running daemon; drop removes it and its folder. Its log is printed if the test fails.
pub(crate) struct Daemon {
    pub(crate) kind: Kind,
    running: Running,
    dir: tempfile::TempDir,
}

/// The folder of a Xen whose programs run here: its unpacked packages (`tree`), and C programs (`c`).
pub(crate) fn c_root() -> PathBuf {
    let state = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/xen/4.17");
    std::env::var_os("XEN_C_ROOT").map_or(state, PathBuf::from)
}

/// The folder of its libraries.
pub(crate) fn libraries(root: &Path) -> PathBuf {
    root.join("tree/usr/lib/x86_64-linux-gnu")
}

fn tree() -> PathBuf {
    let tree = c_root().join("tree");
    assert!(
        tree.join("usr/lib/xen-4.17/bin/xenstored").exists(),
        "no xenstored under {}: boot a host once",
        tree.display()
    );
    tree
}

/// The preloaded library, which cargo has put next to this test's own program.
fn preload() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let path = here.parent().unwrap().join("libxen_stored_preload.so");
    assert!(path.exists(), "{} was not built", path.display());
    path
}

impl Daemon {
    pub(crate) fn start(kind: Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let running = match kind {
            Kind::Embedded => {
                // As the fake hypervisor: a domain exists if its file does.
                let folder = dir.path().to_owned();
                let exists = move |id: DomId| {
                    id == DomId::DOM0 || folder.join(format!("domain-{id}")).exists()
                };
                let server = Server::start(Config::new().domain_exists(exists)).unwrap();
                server.listen(dir.path().join("socket")).unwrap();
                Running::Server(Some(server))
            }
            Kind::C | Kind::OCaml => Running::Process(start_process(kind, dir.path())),
        };
        let mut daemon = Self { kind, running, dir };
        daemon.wait_ready();
        daemon
    }

    /// Where it listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.file("socket")
    }

    /// A file in its folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn store(&self) -> Store {
        Store::connect(self.socket()).unwrap()
    }

    /// A new domain and its connection to the store: of C's daemons through its ring.
    pub(crate) fn domain(&self, number: u16) -> Store {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.attach(number, theirs);
        Store::from_fd(OwnedFd::from(ours)).unwrap()
    }

    /// Makes a new domain, whose client is at the other end of `theirs`.
    pub(crate) fn attach(&self, number: u16, theirs: UnixStream) {
        let id = DomId::new(number);
        fs::write(self.file(&format!("domain-{number}")), "").unwrap();
        let introduce = || {
            self.store()
                .introduce(id, 1, Port::new(Ring::PORT))
                .unwrap()
        };
        if let Running::Server(Some(server)) = &self.running {
            introduce();
            server.add_connection(theirs.into(), id);
        } else {
            Ring::start(self.dir.path(), number, theirs);
            introduce();
        }
    }

    /// The hypervisor reports that a domain has ended.
    pub(crate) fn end_domain(&self, number: u16) {
        if let Running::Server(Some(server)) = &self.running {
            return server.release(DomId::new(number));
        }
        let folder = self.dir.path();
        fs::remove_file(folder.join(format!("domain-{number}"))).unwrap();
        let event = VIRQ_DOM_EXC.map(u32::to_ne_bytes).concat();
        let socket = UnixDatagram::unbound().unwrap();
        socket.send_to(&event, folder.join("events")).unwrap();
    }

    /// It is gone when this returns, however busy it was.
    pub(crate) fn kill(&mut self) {
        match &mut self.running {
            Running::Process(child) => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
            Running::Server(server) => drop(server.take()),
        }
    }

    /// Its process; `None` of the embedded one.
    #[allow(dead_code, reason = "the benchmark asks")]
    pub(crate) fn process(&self) -> Option<u32> {
        match &self.running {
            Running::Process(child) => Some(child.id()),
            Running::Server(_) => None,
        }
    }

    /// Stops it until the value is dropped: it accepts, and answers nothing.
    pub(crate) fn stop(&self) {
        if let Running::Process(child) = &self.running {
            kill(pid(child), Signal::SIGSTOP).unwrap();
        }
    }

    fn wait_ready(&mut self) {
        let limit = Instant::now() + START;
        while UnixStream::connect(self.socket()).is_err() {
            if let Running::Process(child) = &mut self.running {
                let ended = child.try_wait().unwrap();
                assert!(ended.is_none(), "it ended: {ended:?}");
            }
            assert!(Instant::now() < limit, "it does not listen");
            // A bound socket is no event that it listens.
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

/// Starts one of C's daemons, which keeps its files in `folder`.
pub(crate) fn start_process(kind: Kind, folder: &Path) -> Child {
    let file = |name: &str| folder.join(name);
    File::create(file("kva")).unwrap().set_len(4096).unwrap();
    fs::write(file("port"), "1").unwrap();
    // A daemon that was killed here left the socket of its events.
    let _ = fs::remove_file(file("events"));
    let tree = tree();
    let bin = tree.join("usr/lib/xen-4.17/bin");
    let mut command = match kind {
        Kind::OCaml => {
            let settings = format!(
                "pid-file = {0}/pid\npersistent = false\nxenstored-log-file = {0}/log\n\
                 access-log-file = /dev/null\nxenstored-kva = /proc/xen/xsd_kva\n\
                 xenstored-port = /proc/xen/xsd_port\n",
                folder.display()
            );
            fs::write(file("settings"), settings).unwrap();
            let mut command = Command::new(bin.join("oxenstored"));
            command
                .args(["--no-fork", "--config-file"])
                .arg(file("settings"));
            command
        }
        _ => {
            let mut command = Command::new(bin.join("xenstored"));
            command.args(["--no-fork", "--internal-db=on"]);
            command
        }
    };
    let said = File::create(file("said")).unwrap();
    command
        .env("LD_PRELOAD", preload())
        .env("LD_LIBRARY_PATH", libraries(&c_root()))
        .env("XEN_STORED_PRELOAD", folder)
        .env("XENSTORED_RUNDIR", folder)
        .stdin(Stdio::null())
        .stdout(said.try_clone().unwrap())
        .stderr(said)
        .spawn()
        .unwrap()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Running::Process(child) = &mut self.running {
            let _ = child.kill();
            let ended = child.wait();
            if thread::panicking() {
                eprintln!("{:?}: {ended:?}", self.kind);
                for name in ["said", "log"] {
                    let text = fs::read_to_string(self.dir.path().join(name));
                    eprint!("{}", text.unwrap_or_default());
                }
            }
        }
    }
}
