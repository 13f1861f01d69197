//! Two threads at once on shared memory, both directions, without a hypervisor.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use xen_vchan::Geometry;
use xen_vchan::ring::{Consumer, Producer, Rings, Role};

use crate::page;
use crate::ring::{order, start};
use crate::stream::{LONGEST, piece};
use crate::{Progress, Random, seed, share};

/// Operations of one side before both begin again with other rings.
const EPISODE: u64 = 1 << 22;

/// One side: what it has written and read, as places in the two streams.
struct Side {
    tx: Producer,
    rx: Consumer,
    random: Random,
    staged: u64,
    published: u64,
    read: u64,
}

impl Side {
    /// One operation that did something, or `false`.
    fn step(&mut self, buf: &mut [u8]) -> bool {
        match self.random.below(16) {
            0..=5 => {
                let len = self.random.length(self.tx.capacity());
                let did = self.tx.stage(piece(self.staged, len)).unwrap();
                self.staged += did as u64;
                if self.random.below(4) != 0 {
                    self.publish();
                }
                did != 0
            }
            6 => {
                self.tx.discard();
                self.staged = self.published;
                true
            }
            7 => {
                self.publish();
                true
            }
            8 => {
                self.tx.request();
                self.rx.request();
                true
            }
            _ => {
                let len = self.random.length(self.rx.capacity());
                if self.rx.known_ready() == 0 || self.random.below(4) == 0 {
                    self.rx.refresh().unwrap();
                }
                let did = self.take(&mut buf[..len]);
                if self.random.below(4) != 0 {
                    let _ = self.rx.release();
                }
                did != 0
            }
        }
    }

    fn publish(&mut self) {
        let _ = self.tx.publish();
        self.published = self.staged;
    }

    fn take(&mut self, buf: &mut [u8]) -> usize {
        let did = self.rx.take(buf);
        assert!(
            buf[..did] == *piece(self.read, did),
            "wrong bytes from {} on",
            self.read
        );
        self.read += did as u64;
        did
    }

    fn run(
        mut self,
        ops: u64,
        others: &AtomicBool,
        mine: &AtomicBool,
        broken: &AtomicBool,
    ) -> Self {
        let _flag = PanicFlag(broken);
        let mut buf = vec![0; LONGEST];
        let (mut done, mut idle) = (0, 0u32);
        while done < ops {
            if self.step(&mut buf) {
                (done, idle) = (done + 1, 0);
                continue;
            }
            // Full on one side, empty on the other: the peer's turn.
            idle += 1;
            if idle > 64 {
                self.publish();
                let _ = self.rx.release();
                assert!(!broken.load(Ordering::Acquire), "the other side failed");
                thread::yield_now();
            }
        }
        self.publish();
        mine.store(true, Ordering::Release);
        // The other's pending bytes have to fit.
        while !others.load(Ordering::Acquire) {
            assert!(!broken.load(Ordering::Acquire), "the other side failed");
            self.rx.refresh().unwrap();
            if self.take(&mut buf) == 0 {
                thread::yield_now();
            }
            let _ = self.rx.release();
        }
        while self.rx.refresh().unwrap() != 0 {
            self.take(&mut buf);
            let _ = self.rx.release();
        }
        self
    }
}

/// Set by a panic, for the other thread, so that it does not wait forever.
struct PanicFlag<'a>(&'a AtomicBool);

impl Drop for PanicFlag<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Release);
        }
    }
}

fn episode(seed: u64, ops: u64) {
    let mut random = Random::new(seed);
    let geometry = loop {
        if let Ok(geometry) = Geometry::new(order(&mut random), order(&mut random)) {
            break geometry;
        }
    };
    let [client, server] = page::pair(geometry, start(&mut random), start(&mut random));
    let mut side = |rings: Rings, role| {
        let (tx, rx) = rings.attach(role).unwrap();
        Side {
            tx,
            rx,
            random: Random::new(random.next()),
            staged: 0,
            published: 0,
            read: 0,
        }
    };
    let (client, server) = (side(client, Role::Client), side(server, Role::Server));
    let [one, two, broken] = [(); 3].map(|()| AtomicBool::new(false));
    thread::scope(|scope| {
        let client = scope.spawn(|| client.run(ops, &two, &one, &broken));
        let server = scope.spawn(|| server.run(ops, &one, &two, &broken));
        let (client, server) = (client.join(), server.join());
        let (Ok(client), Ok(server)) = (client, server) else {
            panic!("repeat with VCHAN_SOAK_SEED={seed}");
        };
        assert_eq!(client.published, server.read, "VCHAN_SOAK_SEED={seed}");
        assert_eq!(server.published, client.read, "VCHAN_SOAK_SEED={seed}");
    });
}

#[test]
fn two_threads_at_once() {
    let (ops, seed) = (share(19), seed());
    let mut progress = Progress::new("threads", ops);
    let mut done = 0;
    for number in 0.. {
        let each = EPISODE.min((ops - done) / 2);
        if each == 0 {
            break;
        }
        episode(seed.wrapping_add(number), each);
        done += 2 * each;
        progress.at(done);
    }
    progress.print(done);
}
