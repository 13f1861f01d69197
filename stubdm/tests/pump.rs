//! The loops over sockets and a stand-in vchan, stepped by hand: no thread, no clock, no sleep.
//!
//! A part is called only if `poll` would have woken it or its deadline has come, so a notification
//! that nobody asked for is a hang here, and fails the test.

#![allow(clippy::unwrap_used)]

mod fake;

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fake::client::Client;
use fake::qemu::Qemu;
use fake::upstream::Upstream;
use fake::{Connector, ServerLink, Shared, is_woken};
use serde_json::{Value, json};
use stubdm::policy::Policy;
use stubdm::proxy::Payload;
use stubdm::proxy::client::{Clients, Proxy, Turn};
use stubdm::proxy::listen::{SocketFile, bind};
use stubdm::proxy::server::{self, Backend, Server};

enum Far {
    Ours(Server<ServerLink>),
    Upstream(Upstream),
}

struct Bench {
    _dir: tempfile::TempDir,
    _file: SocketFile,
    socket: PathBuf,
    proxy: Proxy<Connector>,
    proxy_deadline: Option<Instant>,
    far: Far,
    /// `false`: the far side's processor is busy with something else.
    far_runs: bool,
    first: bool,
    qemu: Qemu,
    page: Shared,
    now: Instant,
}

impl Bench {
    fn new(ours: bool) -> Self {
        Self::with_policy(ours, None)
    }

    /// Under a policy that allows the fake monitor's commands of these names.
    fn filtered(ours: bool, names: &[&str]) -> Self {
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
            Far::Ours(Server::new(ServerLink::new(&page), backend, Payload::Qmp))
        } else {
            Far::Upstream(Upstream::new(&page, monitor))
        };
        let (listener, file) = bind(&socket).unwrap();
        let connector = Connector(page.clone());
        let clients = Clients::Socket(listener);
        let proxy = match policy {
            Some(policy) => Proxy::under(clients, connector, policy, 7),
            None => Proxy::new(clients, connector, Payload::Qmp, 7),
        };
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

    fn ours() -> Self {
        Self::new(true)
    }

    /// Lets everything run once that is woken; says whether anything was.
    fn step(&mut self) -> bool {
        let mut busy = false;
        let late = self.proxy_deadline.is_some_and(|at| at <= self.now);
        if self.first || late || is_woken(&self.proxy.interests()) {
            self.proxy_deadline = match self.proxy.turn(self.now).unwrap() {
                Turn::Sleep(deadline) => deadline,
                Turn::Again => Some(self.now),
                Turn::Done => panic!("the proxy gave up"),
            };
            busy = true;
        }
        if self.far_runs {
            busy |= match &mut self.far {
                Far::Ours(server) => {
                    let woken = self.first || is_woken(&server.interests());
                    woken && {
                        while server.turn(self.now).unwrap() == server::Turn::Again {}
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
    fn run(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
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

    fn settle(&mut self) {
        self.run(Duration::from_secs(5), |_| false);
    }

    fn client(&self) -> Client {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_nonblocking(true).unwrap();
        Client {
            stream,
            input: Vec::new(),
            ended: false,
        }
    }

    /// The next message for the client.
    fn hear(&mut self, client: &mut Client) -> Value {
        let mut heard = None;
        let ok = self.run(Duration::from_secs(9), |_| {
            heard = client.message();
            heard.is_some()
        });
        assert!(
            ok,
            "nothing came; the client has {:?}",
            String::from_utf8_lossy(&client.input)
        );
        heard.unwrap()
    }

    /// A whole conversation as libxl has it, with the ids libxl always uses.
    fn converse(&mut self, command: &str) {
        let mut client = self.client();
        let greeting = self.hear(&mut client);
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        client.say(&json!({"execute": "qmp_capabilities", "id": 2_020_371_713}));
        let answer = self.hear(&mut client);
        assert_eq!(answer, json!({"return": {}, "id": 2_020_371_713}));
        client.say(&json!({"execute": command, "id": 2_020_371_712}));
        let answer = self.hear(&mut client);
        assert_eq!(answer["id"], 2_020_371_712);
        assert_eq!(answer["return"]["asked"], command, "{answer}");
        assert!(client.input.is_empty() && !client.ended);
    }
}

#[test]
fn two_hundred_clients_in_turn() {
    for ours in [true, false] {
        let mut bench = Bench::new(ours);
        for n in 0..200 {
            bench.converse(&format!("command-{n}"));
        }
        bench.settle();
        assert_eq!(bench.qemu.accepted, 200, "one monitor session each");
        assert!(bench.qemu.connections.is_empty(), "none is left open");
    }
}

#[test]
fn a_client_that_leaves_at_any_moment_leaves_nothing_to_the_next() {
    for ours in [true, false] {
        for moment in 0..60 {
            let mut bench = Bench::new(ours);
            bench.converse("first");
            let mut client = bench.client();
            client.say(&json!({"execute": "qmp_capabilities", "id": 2_020_371_713}));
            client.say(&json!({"execute": "big", "id": 2_020_371_712}));
            client.stream.write_all(b"{\"execute\": \"half").unwrap();
            for _ in 0..moment {
                bench.step();
            }
            drop(client);
            bench.converse("second");
            bench.converse("third");
        }
    }
}

#[test]
fn a_far_side_that_sleeps_through_the_change_of_clients_is_found_out() {
    for ours in [true, false] {
        for moment in 0..40 {
            let mut bench = Bench::new(ours);
            bench.converse("first");
            let mut client = bench.client();
            bench.hear(&mut client);
            client.say(&json!({"execute": "qmp_capabilities", "id": 2_020_371_713}));
            client.say(&json!({"execute": "big", "id": 2_020_371_712}));
            for _ in 0..moment {
                bench.step();
            }
            let connections = bench.page.borrow().connections;
            bench.far_runs = false;
            client.stream.write_all(b"{\"execute\": \"half").unwrap();
            drop(client);
            let client = bench.client();
            // The far side runs again only when the next client's vchan is up.
            assert!(
                bench.run(Duration::from_secs(5), |b| b.page.borrow().connections
                    > connections)
            );
            bench.far_runs = true;
            drop(client);
            bench.converse("second");
        }
    }
}

#[test]
fn a_client_waits_for_a_server_that_is_not_there_yet() {
    let mut bench = Bench::ours();
    bench.page.borrow_mut().server_live = false;
    let mut client = bench.client();
    bench.run(Duration::from_secs(30), |_| false);
    assert_eq!(client.message(), None);
    assert!(!client.ended, "never closed first");
    bench.page.borrow_mut().server_live = true;
    assert!(bench.hear(&mut client).get("QMP").is_some());
}

#[test]
fn a_client_that_gives_up_on_a_missing_server_does_not_hold_up_the_next() {
    let mut bench = Bench::ours();
    bench.page.borrow_mut().server_live = false;
    for _ in 0..50 {
        let client = bench.client();
        bench.settle();
        drop(client);
    }
    bench.page.borrow_mut().server_live = true;
    bench.converse("after all");
}

#[test]
fn a_lost_server_ends_the_session_and_the_next_finds_the_new_one() {
    let mut bench = Bench::ours();
    let mut client = bench.client();
    bench.hear(&mut client);
    {
        let page = &mut *bench.page.borrow_mut();
        page.server_live = false;
        let wake = &mut page.client_bell;
        fake::ring(wake);
    }
    assert!(
        bench.run(Duration::from_secs(5), |_| client.message().is_none()
            && client.ended)
    );
    bench.page.borrow_mut().server_live = true;
    bench.converse("again");
}

#[test]
fn a_domain_that_is_gone_ends_the_proxy() {
    let mut bench = Bench::ours();
    {
        let page = &mut *bench.page.borrow_mut();
        page.server_live = false;
        page.domain_lives = false;
    }
    let _client = bench.client();
    assert!(is_woken(&bench.proxy.interests()));
    assert_eq!(bench.proxy.turn(bench.now).unwrap(), Turn::Done);
}

#[test]
fn a_monitor_that_closes_never_greets_the_same_client_twice() {
    let mut bench = Bench::ours();
    let mut client = bench.client();
    bench.hear(&mut client);
    client.say(&json!({"execute": "qmp_capabilities", "id": 1}));
    bench.hear(&mut client);
    bench.qemu.connections.clear();
    client.say(&json!({"execute": "stop", "id": 2}));
    bench.settle();
    assert_eq!(client.message(), None);
    assert!(!client.ended);
    drop(client);
    bench.converse("next");
}

#[test]
fn a_large_answer_to_a_slow_reader_arrives_whole() {
    let mut bench = Bench::ours();
    let mut client = bench.client();
    bench.hear(&mut client);
    client.say(&json!({"execute": "qmp_capabilities", "id": 1}));
    bench.hear(&mut client);
    client.say(&json!({"execute": "big", "id": 2}));
    // It does not read: everything comes to rest without a busy loop.
    bench.settle();
    let answer = bench.hear(&mut client);
    assert_eq!(answer["return"].as_str().unwrap().len(), 300_000);
}

#[test]
fn many_clients_at_once_are_served_one_after_another() {
    let mut bench = Bench::ours();
    let mut clients: Vec<Client> = (0..20).map(|_| bench.client()).collect();
    // Some have already gone when their turn comes.
    clients.retain_mut({
        let mut n = 0;
        move |_| {
            n += 1;
            n % 3 != 0
        }
    });
    for mut client in clients {
        assert!(bench.hear(&mut client).get("QMP").is_some());
    }
    bench.converse("last");
}

#[test]
fn stdin_and_stdout_are_one_client() {
    let page = fake::page(true);
    let (near, mut far) = UnixStream::pair().unwrap();
    let local = stubdm::proxy::local::Local::socket(near.into()).unwrap();
    let clients = Clients::Once(Some(local));
    let mut proxy = Proxy::new(clients, Connector(page.clone()), Payload::Opaque, 7);
    let mut link = ServerLink::new(&page);
    let now = Instant::now();
    far.write_all(b"\x00anything\xff").unwrap();
    let mut got = Vec::new();
    let mut buffer = [0; 64];
    for _ in 0..20 {
        assert_ne!(proxy.turn(now).unwrap(), Turn::Done);
        use stubdm::transport::Transport as _;
        if let Ok(count) = link.try_read(&mut buffer) {
            got.extend_from_slice(&buffer[..count]);
        }
    }
    assert_eq!(got, b"\x00anything\xff");
    far.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(
        (0..20).any(|_| proxy.turn(now).unwrap() == Turn::Done),
        "ends at the end of input"
    );
    assert!(far.as_fd().try_clone_to_owned().is_ok());
}

#[test]
fn under_a_policy_two_hundred_clients_in_turn() {
    for ours in [true, false] {
        let mut bench = Bench::filtered(ours, &["allowed"]);
        for _ in 0..200 {
            bench.converse("allowed");
        }
        bench.settle();
        assert_eq!(bench.qemu.accepted, 1, "one monitor session for all");
    }
}

#[test]
fn under_a_policy_a_denied_command_is_answered_and_qemu_does_not_hear_it() {
    let mut bench = Bench::filtered(true, &["allowed"]);
    let mut client = bench.client();
    let greeting = bench.hear(&mut client);
    let numbers = json!({"micro": 22, "minor": 2, "major": 7});
    let version = json!({"qemu": numbers, "package": ""});
    assert_eq!(
        greeting,
        json!({"QMP": {"version": version, "capabilities": []}}),
        "nothing of QEMU's but the numbers"
    );
    client.say(&json!({"execute": "qmp_capabilities", "id": 1}));
    assert_eq!(bench.hear(&mut client), json!({"return": {}, "id": 1}));
    client.say(&json!({"execute": "quit", "id": 2}));
    let answer = bench.hear(&mut client);
    assert_eq!(answer["error"]["class"], "CommandNotFound");
    assert_eq!(answer["id"], 2);
    assert!(
        answer["error"]["desc"]
            .as_str()
            .unwrap()
            .starts_with("stubdm-run: "),
        "said by the proxy, not by QEMU: {answer}"
    );
    client.say(&json!({"execute": "allowed", "id": 3}));
    assert_eq!(
        bench.hear(&mut client),
        json!({"return": {"asked": "allowed"}, "id": 3}),
        "without what the row does not name"
    );
    assert!(!client.ended);
}

#[test]
fn under_a_policy_an_answer_beyond_its_limits_is_an_error_and_the_session_goes_on() {
    let mut bench = Bench::filtered(true, &["big", "allowed"]);
    let mut client = bench.client();
    bench.hear(&mut client);
    client.say(&json!({"execute": "qmp_capabilities", "id": 1}));
    bench.hear(&mut client);
    client.say(&json!({"execute": "big", "id": 2}));
    let answer = bench.hear(&mut client);
    assert!(
        answer["error"]["desc"]
            .as_str()
            .unwrap()
            .contains("too long"),
        "{answer}"
    );
    assert_eq!(answer["id"], 2);
    client.say(&json!({"execute": "allowed", "id": 3}));
    assert_eq!(bench.hear(&mut client)["return"]["asked"], "allowed");
}

#[test]
fn under_a_policy_a_client_that_leaves_at_any_moment_leaves_nothing_to_the_next() {
    for ours in [true, false] {
        for moment in 0..40 {
            let mut bench = Bench::filtered(ours, &["first", "big", "second"]);
            bench.converse("first");
            let mut client = bench.client();
            client.say(&json!({"execute": "qmp_capabilities", "id": 2_020_371_713}));
            client.say(&json!({"execute": "big", "id": 2_020_371_712}));
            client.stream.write_all(b"{\"execute\": \"half").unwrap();
            for _ in 0..moment {
                bench.step();
            }
            drop(client);
            bench.converse("second");
        }
    }
}

#[test]
fn under_a_policy_a_lost_server_answers_what_was_asked_before_the_end() {
    let mut bench = Bench::filtered(true, &["allowed"]);
    let mut client = bench.client();
    bench.hear(&mut client);
    client.say(&json!({"execute": "qmp_capabilities", "id": 1}));
    bench.hear(&mut client);
    bench.far_runs = false;
    client.say(&json!({"execute": "allowed", "id": 2}));
    bench.settle();
    {
        let page = &mut *bench.page.borrow_mut();
        page.server_live = false;
        fake::ring(&mut page.client_bell);
    }
    let answer = bench.hear(&mut client);
    assert_eq!(answer["id"], 2);
    assert!(
        answer["error"]["desc"]
            .as_str()
            .unwrap()
            .contains("went away"),
        "{answer}"
    );
}
