//! A simulated host with a guest, its stubdomain, a store as libxl would have filled it, and the
//! proxy libxl would have started.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use stubdm::libxl::payload::Payload;
use stubdm::proxy::broker::connect::VchanConnect;
use stubdm::proxy::clients::Clients;
use stubdm::proxy::driver;
use stubdm::rt::event_loop::Progress;
use stubdm::rt::listener::bind;
use stubdm::rt::poll::sleep;
use xen_store::{Permissions, Store};
use xen_store_server::{Config, Server};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, Xen};

use crate::client::Client;

const VM: &str = "/vm/8d8e2f2c-0000-0000-0000-000000000001";

pub(crate) struct Host {
    dir: tempfile::TempDir,
    simulation: Simulation,
    server: Server,
    store: Store,
    pub(crate) guest: DomId,
    pub(crate) stub: DomId,
}

impl Host {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let simulation = Simulation::start().unwrap();
        let server = Server::start(Config::new()).unwrap();
        server.listen(dir.path().join("store")).unwrap();
        simulation.listen(dir.path().join("broker")).unwrap();
        let store = server.connect(DomId::DOM0).unwrap();
        let guest = simulation.add_domain().unwrap();
        let stub = simulation.add_domain().unwrap();
        for domain in [guest, stub] {
            server.add_domain(domain);
            server.introduce(domain);
        }
        let host = Self {
            dir,
            simulation,
            server,
            store,
            guest,
            stub,
        };
        let stub_home = format!("/local/domain/{stub}");
        let read_by = |domain| Permissions::owner_none(DomId::DOM0).grant_read(domain);
        let set = |path: &str, value: &str, perms: &Permissions| {
            host.store.write(path, value).unwrap();
            host.store.set_permissions(path, perms).unwrap();
        };
        set(&format!("/local/domain/{guest}"), "", &read_by(guest));
        set(&format!("/local/domain/{guest}/vm"), VM, &read_by(guest));
        set(VM, "", &read_by(guest));
        set(&format!("{VM}/image"), "", &read_by(guest));
        set(&stub_home, "", &read_by(stub));
        set(
            &format!("{stub_home}/target"),
            &guest.to_string(),
            &read_by(stub),
        );
        set(
            &format!("{stub_home}/domid"),
            &stub.to_string(),
            &read_by(stub),
        );
        let own = Permissions::owner_none(stub).grant_read(guest);
        set(&format!("{stub_home}/data"), "", &own);
        set(&format!("{stub_home}/device-model/{guest}"), "", &own);
        host.server.set_target(stub, guest);
        host
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn store_socket(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn stub_store(&self) -> Store {
        self.server.connect(self.stub).unwrap()
    }

    /// A store connection of `domain`, to be handed to a process.
    pub(crate) fn store_connection(&self, domain: DomId) -> OwnedFd {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.server.add_connection(ours.into(), domain);
        theirs.into()
    }

    pub(crate) fn stub_xen(&self) -> Xen {
        self.simulation.xen(self.stub).unwrap()
    }

    pub(crate) fn write(&self, path: &str, value: &[u8]) {
        self.store.write(path, value).unwrap();
    }

    pub(crate) fn remove(&self, path: &str) {
        self.store.rm(path).unwrap();
    }

    /// As libxl writes it.
    pub(crate) fn set_dm_argv(&self, args: &[Vec<u8>]) {
        let directory = format!("{VM}/image/dm-argv");
        self.store.write(&directory, "").unwrap();
        let perms = Permissions::owner_none(DomId::DOM0).grant_read(self.stub);
        self.store.set_permissions(&directory, &perms).unwrap();
        for (n, arg) in args.iter().enumerate() {
            self.store
                .write(&format!("{directory}/{:03}", n + 1), arg)
                .unwrap();
        }
    }

    fn state_path(&self) -> String {
        format!(
            "/local/domain/{}/device-model/{}/state",
            self.stub, self.guest
        )
    }

    pub(crate) fn state(&self) -> Option<String> {
        self.store.read_str(&self.state_path()).ok()
    }

    /// Returns where the in-guest server publishes its vchan.
    pub(crate) fn node(&self) -> String {
        format!(
            "/local/domain/{}/device-model/{}/qmp-vchan",
            self.stub, self.guest
        )
    }

    /// Returns where libxl waits for the proxy.
    pub(crate) fn proxy_state(&self) -> String {
        format!("/local/domain/0/device-model/{}/qmp-proxy-state", self.stub)
    }

    /// Waits for the device model's state, as libxl does.
    pub(crate) fn wait_for_state(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.wait_for(&self.state_path(), wanted)
    }

    pub(crate) fn wait_for(&self, path: &str, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        let check = |value: Option<&[u8]>| {
            let text = String::from_utf8_lossy(value?).into_owned();
            wanted(&text).then_some(text)
        };
        self.store
            .wait_for(path, Some(deadline), check)
            .unwrap()
            .unwrap()
    }

    /// Starts the proxy.
    pub(crate) fn proxy(&self) -> RunningProxy {
        let path = self.dir.path().join("qmp-libxl");
        let (listener, file) = bind(&path).unwrap();
        let node = format!(
            "/local/domain/{}/device-model/{}/qmp-vchan",
            self.stub, self.guest
        );
        let payload = Payload::of_node(&node);
        let xen = self.simulation.xen(DomId::DOM0).unwrap();
        let store = self.server.connect(DomId::DOM0).unwrap();
        let connect = VchanConnect::new(xen, store, self.stub, node);
        let end = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            let _file = file;
            let clients = Clients::Socket(listener.into());
            let mut proxy = driver(clients, connect, payload, None, 1);
            loop {
                let now = Instant::now();
                let deadline = match proxy.turn(now).unwrap() {
                    Progress::Sleep(deadline) => deadline,
                    Progress::Again => Some(now),
                    Progress::Done => return,
                };
                // After the turn: it may have taken the connection that was to wake this thread.
                if told.load(Ordering::Acquire) {
                    return;
                }
                sleep(&proxy.interests(), deadline).unwrap();
            }
        });
        RunningProxy { path, end, thread }
    }

    /// As [`Host::assert_clean`], where there was no QEMU to write a state.
    pub(crate) fn assert_clean_of(&self, child: &str) {
        self.simulation.assert_clean();
        let home = format!("/local/domain/{}/device-model/{}", self.stub, self.guest);
        assert!(
            !self
                .store
                .directory(&home)
                .unwrap()
                .iter()
                .any(|name| name == child)
        );
    }

    /// Nothing of Xen's is left bound, shared or mapped, and nothing of ours in the store.
    pub(crate) fn assert_clean(&self) {
        self.simulation.assert_clean();
        let home = format!("/local/domain/{}/device-model/{}", self.stub, self.guest);
        assert_eq!(self.store.directory(&home).unwrap(), ["state"]);
    }
}

pub(crate) struct RunningProxy {
    path: PathBuf,
    end: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl RunningProxy {
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.path)
    }

    pub(crate) fn stop(self) {
        self.end.store(true, Ordering::Release);
        // Wakes it; it then looks at the flag.
        drop(UnixStream::connect(&self.path));
        self.thread.join().unwrap();
        assert!(!self.path.exists());
    }
}
