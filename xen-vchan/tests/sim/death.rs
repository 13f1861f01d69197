//! One side is killed: the other notices, and nothing of the dead one stays.
//!
//! The victim is this test program, started again with `VCHAN_ROLE` set: a process of domain 0.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use xen_store::Store;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, Client, Error, PeerState, Server};

use crate::world::{World, byte, poll_one, soon, wait_gone};

const ROLE: &str = "VCHAN_ROLE";
const SOCKETS: &str = "VCHAN_SOCKETS";
const GUEST: &str = "VCHAN_GUEST";
/// On an idle machine it is a millisecond; the tests on Xen hold it to a second.
const AT_ONCE: Duration = Duration::from_secs(5);

/// The guest serves here when the victim is the client.
fn guest_path(guest: DomId) -> String {
    format!("/local/domain/{guest}/data/vchan-test")
}

/// Not a test of its own: what the victim does.
#[test]
fn victim() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let sockets = std::env::var(SOCKETS).unwrap();
    let guest: DomId = std::env::var(GUEST).unwrap().parse().unwrap();
    let xen = Xen::join_path(Path::new(&sockets).join("xen"), DomId::DOM0).unwrap();
    let store = Store::connect(Path::new(&sockets).join("store")).unwrap();
    let mut channel = if role == "server" {
        let builder = Server::builder(guest, crate::world::PATH).rings(1 << 16, 1 << 16);
        builder.listen(&xen, &store).unwrap()
    } else {
        let builder = Client::builder(guest, guest_path(guest)).wait_for_server(true);
        builder
            .timeout(Duration::from_secs(20))
            .connect(&xen, &store)
            .unwrap()
    };
    println!("\nup");
    channel.wait_connected(soon()).unwrap();
    // Writes for ever, and reads whatever comes.
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
    fn start(world: &World, role: &str) -> Self {
        let sockets = tempfile::tempdir().unwrap();
        world.host.listen(sockets.path().join("xen")).unwrap();
        world.stored.listen(sockets.path().join("store")).unwrap();
        let process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "death::victim",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(ROLE, role)
            .env(SOCKETS, sockets.path())
            .env(GUEST, world.guest.to_string())
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

    fn bury(mut self) {
        self.process.wait().unwrap();
        drop(self.sockets);
    }
}

/// Reads what the victim sends until it is dead; says when the end was seen.
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
    let world = World::new();
    let mut victim = Victim::start(&world, "server");
    victim.wait_up();
    let mut client = world.connect();
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
    drop(world.listen(0, 0));
    world.end();
}

#[test]
fn a_client_killed_in_the_middle_of_a_transfer_is_noticed_and_another_can_come() {
    let world = World::new();
    let path = guest_path(world.guest);
    let (xen, store) = world.domu();
    let builder = Server::builder(DomId::DOM0, &path).rings(1 << 16, 1 << 16);
    let mut server = builder.listen(&xen, &store).unwrap();
    for _ in 0..3 {
        let mut victim = Victim::start(&world, "client");
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
    world.end();
}

#[test]
fn a_sleeping_server_is_woken_by_its_clients_death() {
    let world = World::new();
    let path = guest_path(world.guest);
    let (xen, store) = world.domu();
    // The victim fills this ring and then sleeps for space.
    let mut server = Server::builder(DomId::DOM0, &path)
        .listen(&xen, &store)
        .unwrap();
    let mut victim = Victim::start(&world, "client");
    victim.wait_up();
    server.wait_connected(soon()).unwrap();
    let killed = victim.kill();
    wait_gone(&mut server);
    let (_, seen) = read_to_the_end(&mut server, 0);
    assert!(seen - killed < AT_ONCE);
    victim.bury();
    drop(server);
    world.end();
}

/// `VCHAN_KILLS=500` for a long run; the moments are the same in each.
#[test]
fn killed_at_any_moment_either_side_leaves_a_true_prefix_and_nothing_else() {
    let kills = std::env::var("VCHAN_KILLS").map_or(6, |n| n.parse().unwrap());
    let mut moment = 1u32;
    for round in 0..kills {
        moment = moment.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // From before the first byte to some way into the stream; most often early.
        let after = ((moment >> 8) as usize % 600_000) >> (moment % 11);
        let world = World::new();
        let path = guest_path(world.guest);
        let (xen, store) = world.domu();
        let (mut victim, mut channel) = if round % 2 == 0 {
            let server = Server::builder(DomId::DOM0, &path)
                .listen(&xen, &store)
                .unwrap();
            (Victim::start(&world, "client"), server)
        } else {
            let victim = Victim::start(&world, "server");
            let builder = Client::builder(DomId::DOM0, crate::world::PATH).wait_for_server(true);
            (
                victim,
                builder
                    .timeout(Duration::from_secs(20))
                    .connect(&xen, &store)
                    .unwrap(),
            )
        };
        let mut first = vec![0; after];
        channel.read_exact(&mut first).unwrap();
        assert!(
            first
                .iter()
                .enumerate()
                .all(|(at, value)| *value == byte(at))
        );
        if after == 0 {
            victim.wait_up();
        }
        let killed = victim.kill();
        let (_, seen) = read_to_the_end(&mut channel, after);
        assert!(seen - killed < AT_ONCE);
        drop(channel);
        victim.bury();
        // The nodes of a killed server go with the next one.
        drop(world.listen(0, 0));
        world.end();
    }
}

/// Only the store knows of it: the live byte stays as it is, and no event comes.
#[test]
fn the_end_of_the_peers_domain_is_noticed_by_who_asked_for_it() {
    let world = World::new();
    let (xen, store) = world.dom0();
    let builder = Server::builder(world.guest, crate::world::PATH).notice_domain_end(true);
    let mut server = builder.listen(&xen, &store).unwrap();
    let mut client = world.connect();
    server.wait_connected(soon()).unwrap();
    client.wait_connected(soon()).unwrap();
    client.write_all(b"last").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = [0; 4];
            server.read_exact(&mut last).unwrap();
            assert_eq!(&last, b"last");
            let ended = server.read_deadline(&mut last, soon());
            assert!(matches!(ended, Err(Error::Closed)), "{ended:?}");
        });
        world.stored.release(world.guest);
    });
    assert_eq!(server.peer().unwrap(), PeerState::Gone);
    drop((server, client));
    world.end();
}

#[test]
fn the_end_of_the_servers_domain_wakes_an_event_loop() {
    let world = World::new();
    let path = guest_path(world.guest);
    let (xen, store) = world.domu();
    let mut server = Server::builder(DomId::DOM0, &path)
        .listen(&xen, &store)
        .unwrap();
    let (xen, store) = world.dom0();
    let builder = Client::builder(world.guest, &path).notice_domain_end(true);
    let mut client = builder.connect(&xen, &store).unwrap();
    server.wait_connected(soon()).unwrap();
    client.wait_connected(soon()).unwrap();
    // The end of another domain is not the end.
    let other = DomId::new(77);
    world.stored.add_domain(other);
    world.stored.introduce(other);
    for (ended, expected) in [
        (other, PeerState::Connected),
        (world.guest, PeerState::Gone),
    ] {
        while client.try_read(&mut [0; 10]).is_ok() {}
        world.stored.release(ended);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            assert!(
                Instant::now() < deadline && poll_one(&client, 20_000),
                "no word of {ended}"
            );
            client.acknowledge_events().unwrap();
            if client.peer().unwrap() == expected {
                break;
            }
        }
    }
    assert!(matches!(client.try_read(&mut [0; 10]), Err(Error::Closed)));
    drop((client, server));
    world.host.assert_clean();
}
