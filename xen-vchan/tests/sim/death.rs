//! One side is killed: the other notices, and nothing of the dead one stays.
//!
//! The victim is this test program, started again with `VCHAN_ROLE` set: a process of domain 0.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, ClientBuilder, Error, PeerState, ServerBuilder};

use crate::host::{TestHost, byte, soon, wait_gone};

const ROLE: &str = "VCHAN_ROLE";
const SOCKETS: &str = "VCHAN_SOCKETS";
/// The victim's domain.
const DOMAIN: &str = "VCHAN_DOMAIN";
/// The other end's.
const PEER: &str = "VCHAN_PEER";
/// On an idle machine it is a millisecond; the tests on Xen hold it to a second.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Where a domain serves.
pub(crate) fn path_of(domain: DomId) -> String {
    format!("/local/domain/{domain}/data/vchan-test")
}

/// The process that is killed.
#[test]
#[ignore = "the process that the other tests start and kill"]
fn victim() {
    let role = std::env::var(ROLE).unwrap();
    let sockets = std::env::var(SOCKETS).unwrap();
    let domain = |name| -> DomId { std::env::var(name).unwrap().parse().unwrap() };
    let (me, peer) = (domain(DOMAIN), domain(PEER));
    let xen = Xen::join_path(Path::new(&sockets).join("xen"), me).unwrap();
    let store = Store::open(&xen).unwrap();
    let mut channel = if role == "server" {
        let builder = ServerBuilder::new(peer, path_of(me)).rings(1 << 16, 1 << 16);
        builder.publish(&xen, &store).unwrap()
    } else {
        let builder = ClientBuilder::new(peer, path_of(peer)).wait_for_server(true);
        builder
            .timeout(Duration::from_secs(20))
            .connect(&xen, &store)
            .unwrap()
    };
    println!("\nup");
    channel.wait_connected(soon()).unwrap();
    // Writes forever, and reads whatever comes.
    let (mut sent, mut buf) = (0usize, vec![0; 10_000]);
    loop {
        let part: Vec<u8> = (sent..sent + 777).map(byte).collect();
        sent += channel.write_deadline(&part, None).unwrap();
        let _ = channel.try_read(&mut buf);
    }
}

struct Victim {
    process: Child,
    sockets: tempfile::TempDir,
}

impl Victim {
    /// A process of domain 0.
    fn start(host: &TestHost, role: &str) -> Self {
        Self::start_in(host, role, DomId::DOM0, host.guest)
    }

    fn start_in(host: &TestHost, role: &str, domain: DomId, peer: DomId) -> Self {
        let sockets = tempfile::tempdir().unwrap();
        host.sim.listen(sockets.path().join("xen")).unwrap();
        let process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--ignored",
                "--exact",
                "death::victim",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ROLE, role)
            .env(SOCKETS, sockets.path())
            .env(DOMAIN, domain.to_string())
            .env(PEER, peer.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self { process, sockets }
    }

    fn wait_up(&mut self) {
        let out = self.process.stdout.as_mut().unwrap();
        for line in BufReader::new(out).lines() {
            if line.unwrap() == "up" {
                return;
            }
        }
        panic!("the victim did not come up");
    }

    /// SIGKILL. Returns when it was sent.
    fn kill(&mut self) -> Instant {
        let now = Instant::now();
        self.process.kill().unwrap();
        now
    }

    /// Its processors stand still, and it reports nothing.
    fn freeze(&self) -> Instant {
        let pid = Pid::from_raw(self.process.id().try_into().unwrap());
        let now = Instant::now();
        kill(pid, Signal::SIGSTOP).unwrap();
        now
    }

    fn bury(mut self) {
        self.process.wait().unwrap();
        drop(self.sockets);
    }
}

/// Reads what the victim sends until it is dead; returns when the end was seen.
fn read_to_the_end(channel: &mut Channel, mut got: usize) -> (usize, Instant) {
    let mut buf = vec![0; 5000];
    loop {
        match channel.read_deadline(&mut buf, soon()) {
            Ok(len) => {
                for value in &buf[..len] {
                    assert_eq!(*value, byte(got), "byte {got}");
                    got += 1;
                }
            }
            Err(Error::Closed) => return (got, Instant::now()),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_server_killed_in_the_middle_of_a_transfer_is_noticed() {
    let host = TestHost::new();
    let mut victim = Victim::start(&host, "server");
    victim.wait_up();
    let mut client = host.connect();
    let mut first = vec![0; 200_000];
    client.read_exact(&mut first).unwrap();
    let killed = victim.kill();
    let (got, seen) = read_to_the_end(&mut client, {
        assert!(
            first
                .iter()
                .enumerate()
                .all(|(at, value)| *value == byte(at))
        );
        first.len()
    });
    assert!(
        seen - killed < AT_ONCE,
        "{:?} and {got} bytes later",
        seen - killed
    );
    assert_eq!(client.peer().unwrap(), PeerState::Gone);
    assert!(matches!(client.try_write(b"x"), Err(Error::Closed)));
    drop(client);
    victim.bury();
    // A killed process cannot remove its nodes; the next server at this place does.
    drop(host.listen(0, 0));
    host.end();
}

#[test]
fn a_client_killed_in_the_middle_of_a_transfer_is_noticed_and_another_can_come() {
    let host = TestHost::new();
    let path = path_of(host.guest);
    let (xen, store) = host.domu();
    let builder = ServerBuilder::new(DomId::DOM0, &path).rings(1 << 16, 1 << 16);
    let mut server = builder.publish(&xen, &store).unwrap();
    for _ in 0..3 {
        let mut victim = Victim::start(&host, "client");
        victim.wait_up();
        let mut first = vec![0; 200_000];
        server.read_exact(&mut first).unwrap();
        let killed = victim.kill();
        let (got, seen) = read_to_the_end(&mut server, first.len());
        assert!(seen - killed < AT_ONCE, "{:?}, {got} bytes", seen - killed);
        victim.bury();
        server.next_client().unwrap();
    }
    drop(server);
    assert!(!store.exists(&path).unwrap());
    host.end();
}

#[test]
fn a_sleeping_server_is_woken_by_its_clients_death() {
    let host = TestHost::new();
    let path = path_of(host.guest);
    let (xen, store) = host.domu();
    // The victim fills this ring and then sleeps for space.
    let mut server = ServerBuilder::new(DomId::DOM0, &path)
        .publish(&xen, &store)
        .unwrap();
    let mut victim = Victim::start(&host, "client");
    victim.wait_up();
    server.wait_connected(soon()).unwrap();
    let killed = victim.kill();
    wait_gone(&mut server);
    let (_, seen) = read_to_the_end(&mut server, 0);
    assert!(seen - killed < AT_ONCE);
    victim.bury();
    drop(server);
    host.end();
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    /// SIGKILL: its kernel reports it.
    Killed,
    /// Its domain is destroyed: the store reports it.
    Destroyed,
    /// Its kernel panics: nothing reports it until the toolstack destroys the domain.
    Panicked,
}

/// The victim's side ends at some moment of a transfer in both directions; what was read until then
/// is a true beginning of what it sent.
fn ends(ending: Ending, victim_serves: bool, after: usize, pause: Duration) {
    let host = TestHost::new();
    let (xen, store) = host.dom0();
    // The victim is in the guest; domain 0 may ask the store about its end.
    let (mut victim, mut channel) = if victim_serves {
        let victim = Victim::start_in(&host, "server", host.guest, DomId::DOM0);
        let builder = ClientBuilder::new(host.guest, path_of(host.guest))
            .wait_for_server(true)
            .watch_peer_domain(true)
            .timeout(Duration::from_secs(20));
        (victim, builder.connect(&xen, &store).unwrap())
    } else {
        let server = ServerBuilder::new(host.guest, path_of(DomId::DOM0))
            .watch_peer_domain(true)
            .publish(&xen, &store)
            .unwrap();
        let victim = Victim::start_in(&host, "client", host.guest, DomId::DOM0);
        (victim, server)
    };
    let (mut got, mut buf) = (0, vec![0; 5000]);
    while got < after {
        let len = channel.read_deadline(&mut buf, soon()).unwrap();
        assert!(
            buf[..len]
                .iter()
                .enumerate()
                .all(|(at, value)| *value == byte(got + at))
        );
        got += len;
        // The other direction is busy too.
        let _ = channel.try_write(&buf[..len]);
    }
    if after == 0 {
        victim.wait_up();
    }
    // A busy loop, because the kernel's sleeps are coarse.
    let begin = Instant::now();
    while begin.elapsed() < pause {
        std::hint::spin_loop();
    }
    let ended = match ending {
        Ending::Killed => victim.kill(),
        Ending::Destroyed => {
            let now = victim.freeze();
            host.sim.destroy_domain(host.guest).unwrap();
            now
        }
        Ending::Panicked => {
            victim.freeze();
            // Whatever it had sent, and then silence.
            loop {
                let deadline = Instant::now() + Duration::from_millis(5);
                match channel.read_deadline(&mut buf, Some(deadline)) {
                    Ok(len) => {
                        let part = buf[..len].iter().enumerate();
                        assert!(part.clone().all(|(at, value)| *value == byte(got + at)));
                        got += len;
                    }
                    Err(Error::TimedOut) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            let now = Instant::now();
            host.sim.destroy_domain(host.guest).unwrap();
            now
        }
    };
    let (_, seen) = read_to_the_end(&mut channel, got);
    assert!(seen - ended < AT_ONCE, "{ending:?}: {:?}", seen - ended);
    assert_eq!(channel.peer().unwrap(), PeerState::Gone);
    assert!(matches!(channel.try_write(b"x"), Err(Error::Closed)));
    drop((channel, xen));
    victim.kill();
    victim.bury();
    // As with xl, a domain's nodes go with it.
    let home = format!("/local/domain/{}", host.guest);
    assert!(!matches!(store.rm(&home), Err(error) if !error.is_not_found()));
    host.end();
}

/// `VCHAN_KILLS=500` for a long run; the moments are the same in each.
#[test]
fn ended_at_any_moment_either_side_leaves_a_true_prefix_and_nothing_else() {
    let rounds = std::env::var("VCHAN_KILLS").map_or(12, |n| n.parse().unwrap());
    let mut moment = 1u32;
    let mut random = || {
        moment = moment.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        moment >> 8
    };
    let begin = Instant::now();
    for round in 0..rounds {
        let endings = [Ending::Killed, Ending::Destroyed, Ending::Panicked];
        // From before the first byte to some way into the stream; most often early.
        let after = (random() as usize % 600_000) >> (random() % 11);
        let pause = Duration::from_micros(u64::from(random() % 2000));
        ends(endings[round % 3], (round / 3) % 2 == 0, after, pause);
        if round % 100 == 99 {
            println!(
                "{} endings in {:.0} s",
                round + 1,
                begin.elapsed().as_secs_f64()
            );
        }
    }
}
