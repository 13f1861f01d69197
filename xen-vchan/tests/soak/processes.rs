//! Two processes, each with one end of a channel on a simulated host: every kind of call, both
//! directions, asleep when there is nothing to do.
//!
//! The second process is this test program, started again with `VCHAN_SOAK_CLIENT` set.

use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use xen_store::Store;
use xen_store_server::{Config, Server as StoreServer};
use xen_sys::sim::Simulation;
use xen_sys::{DomId, Xen};
use xen_vchan::{Channel, ClientBuilder, Error, ServerBuilder};

use crate::stream::{LONGEST, piece};
use crate::{Progress, Random, seed, share};

const CLIENT: &str = "VCHAN_SOAK_CLIENT";
const PATH: &str = "/local/domain/0/data/vchan-soak";
/// Bytes each way on one channel before the next is made.
const EPISODE: u64 = 32 << 20;
/// One channel of a long run carries so much that its cursors pass 2^32.
const BEYOND: u64 = (1 << 32) + (1 << 24);

/// One end and its places in the two streams.
struct End {
    channel: Channel,
    random: Random,
    total: u64,
    sent: u64,
    got: u64,
    /// Calls that moved something.
    moved: u64,
    buf: Vec<u8>,
    large: bool,
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(60))
}

impl End {
    /// Moves everything, then waits for the peer, which leaves when it has everything too.
    fn run(mut self) -> u64 {
        self.all();
        match self.channel.read_deadline(&mut [0; 1], soon()) {
            Err(Error::Closed) => self.moved,
            other => panic!("after the end: {other:?}"),
        }
    }

    fn all(&mut self) {
        while self.sent < self.total || self.got < self.total {
            let before = self.sent + self.got;
            if self.random.next() & 1 == 0 {
                self.write();
            } else {
                self.read();
            }
            if self.sent + self.got == before {
                // Perhaps it is the other direction's turn; this time without tricks.
                self.write_by(7);
                self.read_by(7);
            }
            if self.sent + self.got == before {
                assert!(self.channel.wait(soon()).unwrap(), "nothing for a minute");
            } else {
                self.moved += 1;
            }
        }
        self.channel.flush().unwrap();
    }

    fn length(&mut self, size: usize, left: u64) -> usize {
        let len = if self.large {
            size
        } else {
            self.random.length(size as u32)
        };
        len.min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    fn write(&mut self) {
        let kind = self.random.below(8);
        self.write_by(kind);
    }

    fn write_by(&mut self, kind: u32) {
        let left = self.total - self.sent;
        if left == 0 {
            return;
        }
        let size = self.channel.halves().1.capacity();
        let len = self.length(size, left).max(usize::from(kind == 7));
        let bytes = piece(self.sent, len);
        let (_, tx) = self.channel.halves();
        let done = match kind {
            // A packet, if it fits.
            0 if len <= size => match tx.try_send(bytes) {
                Ok(()) => len,
                Err(Error::WouldBlock) => 0,
                Err(error) => panic!("{error}"),
            },
            // A loan, filled in two steps, now and then forgotten.
            1 => {
                if tx.space().unwrap() == 0 {
                    return;
                }
                let mut loan = tx.write_chunk(1, soon()).unwrap();
                let first = loan.put(&bytes[..len / 2]);
                let second = if first == len / 2 {
                    loan.put(&bytes[first..])
                } else {
                    0
                };
                if self.random.below(8) == 0 {
                    return;
                }
                loan.commit();
                first + second
            }
            2 => {
                if len == 0 || tx.space().unwrap() == 0 {
                    return;
                }
                let (a, b) = bytes.split_at(len / 3);
                tx.write_vectored(&[IoSlice::new(a), IoSlice::new(b)])
                    .unwrap()
            }
            3 => {
                tx.set_cork(self.random.next() & 1 == 0);
                return;
            }
            _ => match tx.try_write(bytes) {
                Ok(len) => len,
                Err(Error::WouldBlock) => 0,
                Err(error) => panic!("{error}"),
            },
        };
        self.sent += done as u64;
    }

    fn read(&mut self) {
        let kind = self.random.below(8);
        self.read_by(kind);
    }

    fn read_by(&mut self, kind: u32) {
        let left = self.total - self.got;
        if left == 0 {
            return;
        }
        let size = self.channel.halves().0.capacity();
        let len = self.length(size, left).max(usize::from(kind == 7));
        let buf = &mut self.buf[..len];
        let (rx, _) = self.channel.halves();
        let done = match kind {
            0 if len <= size => match rx.try_recv(buf) {
                Ok(()) => len,
                Err(Error::WouldBlock) => 0,
                Err(error) => panic!("{error}"),
            },
            1 => {
                if rx.bytes_readable().unwrap() == 0 {
                    return;
                }
                let mut loan = rx.read_chunk(soon()).unwrap();
                let first = loan.get(&mut buf[..len / 2]);
                let rest = &mut buf[first..];
                first + if loan.get_exact(rest) { rest.len() } else { 0 }
            }
            2 => {
                if len == 0 || rx.bytes_readable().unwrap() == 0 {
                    return;
                }
                let (a, b) = buf.split_at_mut(len / 3);
                let mut both = [IoSliceMut::new(a), IoSliceMut::new(b)];
                rx.read_vectored(&mut both).unwrap()
            }
            _ => match rx.try_read(buf) {
                Ok(len) => len,
                Err(Error::WouldBlock) => 0,
                Err(error) => panic!("{error}"),
            },
        };
        assert!(
            buf[..done] == *piece(self.got, done),
            "wrong bytes from {} on",
            self.got
        );
        self.got += done as u64;
    }
}

/// The second process.
#[test]
#[ignore = "the process that the soak starts"]
fn client() {
    let words = std::env::var(CLIENT).unwrap();
    let words: Vec<&str> = words.split(' ').collect();
    let [dir, seed, total, large] = words[..] else {
        panic!("four words");
    };
    let dir = Path::new(dir);
    let xen = Xen::join_path(dir.join("xen"), DomId::DOM0).unwrap();
    let store = Store::connect(dir.join("store")).unwrap();
    let mut channel = ClientBuilder::new(DomId::DOM0, PATH)
        .connect(&xen, &store)
        .unwrap();
    channel.wait_connected(soon()).unwrap();
    let mut end = End {
        channel,
        random: Random::new(seed.parse().unwrap()),
        total: total.parse().unwrap(),
        sent: 0,
        got: 0,
        moved: 0,
        buf: vec![0; LONGEST],
        large: large == "true",
    };
    end.all();
    println!("\nmoved {}", end.moved);
}

/// A host, and its sockets for the second process.
struct TestHost {
    sim: Simulation,
    stored: StoreServer,
    dir: tempfile::TempDir,
}

fn episode(host: &TestHost, seed: u64, total: u64, large: bool) -> u64 {
    let xen = host.sim.xen(DomId::DOM0).unwrap();
    let store = host.stored.connect(DomId::DOM0).unwrap();
    let mut random = Random::new(seed);
    let mut size = || match random.below(6) {
        0 => 0,
        1 => 1024,
        2 => 4096,
        3 => 20_000,
        4 => 1 << 16,
        _ => 1 << 20,
    };
    let rings = if large {
        (1 << 16, 1 << 16)
    } else {
        (size(), size())
    };
    let mut channel = ServerBuilder::new(DomId::DOM0, PATH)
        .rings(rings.0, rings.1)
        .publish(&xen, &store)
        .unwrap();
    let dir = host.dir.path().display();
    let child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--ignored",
            "--exact",
            "processes::client",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(CLIENT, format!("{dir} {} {total} {large}", seed ^ 0xff))
        .stdout(Stdio::piped())
        .spawn();
    let mut child = KillOnDrop(child.unwrap());
    channel.wait_connected(soon()).unwrap();
    let ours = End {
        channel,
        random,
        total,
        sent: 0,
        got: 0,
        moved: 0,
        buf: vec![0; LONGEST],
        large,
    }
    .run();
    let out = BufReader::new(child.0.stdout.take().unwrap());
    // To the end, or its last words would break its pipe.
    let lines: Vec<String> = out.lines().map(Result::unwrap).collect();
    let theirs = lines
        .iter()
        .find_map(|line| line.strip_prefix("moved ")?.parse::<u64>().ok());
    assert!(child.0.wait().unwrap().success());
    ours + theirs.expect("the other process counts")
}

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn two_processes_through_channels() {
    let (ops, seed) = (share(1), seed());
    let host = TestHost {
        sim: Simulation::start().unwrap(),
        stored: StoreServer::start(Config::new()).unwrap(),
        dir: tempfile::tempdir().unwrap(),
    };
    let store = host.stored.connect(DomId::DOM0).unwrap();
    store.write("domid", "0").unwrap();
    host.sim.listen(host.dir.path().join("xen")).unwrap();
    host.stored.listen(host.dir.path().join("store")).unwrap();
    let mut progress = Progress::new("processes", ops);
    let long = ops >= 1_000_000;
    let mut done = 0;
    for number in 0.. {
        if done >= ops {
            break;
        }
        let seed = seed.wrapping_add(number);
        println!("processes: VCHAN_SOAK_SEED={seed}");
        let total = if long { EPISODE } else { 1 << 20 };
        done += episode(&host, seed, total, false);
        progress.at(done);
    }
    if long {
        done += episode(&host, seed, BEYOND, true);
        println!("processes: {BEYOND} bytes each way, beyond 2^32");
    }
    progress.print(done);
    drop(store);
    host.sim.assert_clean();
}
