//! The proxy, a far side and a monitor, stepped by hand: each is called only if `poll` would have
//! woken it or its deadline has passed.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stubdm::guest::server::{Backend, Server};
use stubdm::libxl::payload::Payload;
use stubdm::proxy::clients::Clients;
use stubdm::proxy::driver;
use stubdm::rt::event_loop::{Progress, Task};
use stubdm::rt::listener::{SocketFile, bind};
use stubdm_qmp::policy::Policy;

use crate::fake::client::Client;
use crate::fake::qemu::Qemu;
use crate::fake::upstream::Upstream;
use crate::fake::{self, Connector, ServerEnd, Shared, is_woken};

enum Far {
    Ours(Server<ServerEnd>),
    Upstream(Upstream),
}

pub(crate) struct Bench {
    _dir: tempfile::TempDir,
    _file: SocketFile,
    socket: PathBuf,
    pub(crate) proxy: Box<dyn Task>,
    proxy_deadline: Option<Instant>,
    far: Far,
    /// `false`: the far side's processor is busy with something else.
    pub(crate) far_runs: bool,
    first: bool,
    pub(crate) qemu: Qemu,
    pub(crate) page: Shared,
    pub(crate) now: Instant,
}

impl Bench {
    pub(crate) fn new(ours: bool) -> Self {
        Self::with_policy(ours, None)
    }

    /// Under a policy that allows the fake monitor's commands of these names.
    pub(crate) fn filtered(ours: bool, names: &[&str]) -> Self {
        let mut text = "version = 1\n".to_owned();
        for name in names {
            text +=
                &format!("[[row]]\ncommand = \"{name}\"\nanswer.object.asked = {{ name = 64 }}\n");
        }
        Self::with_policy(ours, Some(Policy::from_toml(&text, "test").unwrap()))
    }

    fn with_policy(ours: bool, policy: Option<Policy>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("libxl");
        let monitor = dir.path().join("monitor");
        let qemu = Qemu::new(&monitor);
        let page = fake::page(ours);
        let far = if ours {
            let backend = Backend::Socket(monitor);
            Far::Ours(Server::new(ServerEnd::new(&page), backend, Payload::Qmp))
        } else {
            Far::Upstream(Upstream::new(&page, monitor))
        };
        let (listener, file) = bind(&socket).unwrap();
        let connector = Connector(page.clone());
        let clients = Clients::Socket(listener.into());
        let proxy = driver(
            clients,
            connector,
            Payload::Qmp,
            policy.map(fake::filter),
            7,
        );
        Self {
            _dir: dir,
            _file: file,
            socket,
            proxy,
            proxy_deadline: None,
            far,
            far_runs: true,
            first: true,
            qemu,
            page,
            now: Instant::now(),
        }
    }

    pub(crate) fn ours() -> Self {
        Self::new(true)
    }

    /// Lets everything run once that is woken; returns whether anything was.
    pub(crate) fn step(&mut self) -> bool {
        let mut busy = false;
        let late = self.proxy_deadline.is_some_and(|at| at <= self.now);
        if self.first || late || is_woken(&self.proxy.interests()) {
            self.proxy_deadline = match self.proxy.turn(self.now).unwrap() {
                Progress::Sleep(deadline) => deadline,
                Progress::Again => Some(self.now),
                Progress::Done => panic!("the proxy gave up"),
            };
            busy = true;
        }
        if self.far_runs {
            busy |= match &mut self.far {
                Far::Ours(server) => {
                    let woken = self.first || is_woken(&server.interests());
                    woken && {
                        while server.turn(self.now).unwrap() == Progress::Again {}
                        true
                    }
                }
                Far::Upstream(upstream) => upstream.step(),
            };
        }
        self.first = false;
        busy | self.qemu.step()
    }

    /// Runs until nothing moves, then lets time pass to the next deadline, at most `limit` of it.
    pub(crate) fn run(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + limit;
        let mut steps = 0;
        loop {
            if done(self) {
                return true;
            }
            steps += 1;
            assert!(steps < 100_000, "a busy loop");
            if self.step() {
                continue;
            }
            match self.proxy_deadline {
                Some(at) if at <= end => self.now = self.now.max(at),
                _ => return done(self),
            }
        }
    }

    pub(crate) fn settle(&mut self) {
        self.run(Duration::from_secs(5), |_| false);
    }

    pub(crate) fn client(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_nonblocking(true).unwrap();
        Client {
            stream,
            input: Vec::new(),
            ended: false,
        }
    }

    /// The next message for the client.
    pub(crate) fn receive(&mut self, client: &mut Client) -> Value {
        let mut message = None;
        let ok = self.run(Duration::from_secs(9), |_| {
            message = client.message();
            message.is_some()
        });
        assert!(
            ok,
            "nothing came; the client has {:?}",
            String::from_utf8_lossy(&client.input)
        );
        message.unwrap()
    }

    /// A whole conversation as libxl has it, with the ids libxl always uses.
    pub(crate) fn converse(&mut self, command: &str) {
        let mut client = self.client();
        let greeting = self.receive(&mut client);
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        client.send(&json!({"execute": "qmp_capabilities", "id": 2_020_371_713}));
        let answer = self.receive(&mut client);
        assert_eq!(answer, json!({"return": {}, "id": 2_020_371_713}));
        client.send(&json!({"execute": command, "id": 2_020_371_712}));
        let answer = self.receive(&mut client);
        assert_eq!(answer["id"], 2_020_371_712);
        assert_eq!(answer["return"]["asked"], command, "{answer}");
        assert!(client.input.is_empty() && !client.ended);
    }

    /// Plays a client that asks for much, begins to send something else, and leaves after `steps`
    /// steps of the others.
    pub(crate) fn leave_after(&mut self, steps: usize) {
        let mut client = self.client();
        client.send(&json!({"execute": "qmp_capabilities", "id": 2_020_371_713}));
        client.send(&json!({"execute": "big", "id": 2_020_371_712}));
        client.stream.write_all(b"{\"execute\": \"half").unwrap();
        for _ in 0..steps {
            self.step();
        }
    }
}
