//! Random bytes both ways at every speed, and openings against a sender that never pauses: nothing
//! is lost or altered.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use xen_console::{Frontend, XenbusState};

use crate::host::{NODE, PATIENCE, TestHost, sleep};
use crate::stream::Stream;

/// How fast the receiving end reads.
#[derive(Clone, Copy, Debug)]
enum Speed {
    Full,
    /// A few bytes at a time.
    Slow,
    /// Nothing for a while, then everything.
    Bursty,
    /// Stops for good after so many bytes, until the other side has been seen stuck.
    Stalled,
}

/// The receiving end of one direction, which checks what it reads.
struct Receiver {
    stream: Stream,
    left: usize,
    speed: Speed,
    turns: usize,
    resume: Arc<AtomicBool>,
}

impl Receiver {
    fn new(seed: u64, left: usize, speed: Speed, resume: &Arc<AtomicBool>) -> Self {
        Self {
            stream: Stream(seed),
            left,
            speed,
            turns: 0,
            resume: Arc::clone(resume),
        }
    }

    /// Takes what it likes; returns whether it would look again without an event.
    fn take(&mut self, connection: &mut xen_console::Connection) -> bool {
        self.turns += 1;
        let mut buffer = [0; 4096];
        let most = match self.speed {
            Speed::Full => 4096,
            Speed::Slow => 251,
            Speed::Bursty if self.turns % 8 < 7 => return true,
            Speed::Bursty => 4096,
            Speed::Stalled if !self.resume.load(Ordering::Acquire) && self.left < 1 << 16 => {
                return true;
            }
            Speed::Stalled => 4096,
        };
        let got = connection.try_read(&mut buffer[..most]).unwrap();
        assert!(got <= self.left, "more came than was sent");
        let mut wanted = [0; 4096];
        self.stream.fill(&mut wanted[..got]);
        assert_eq!(buffer[..got], wanted[..got], "with {} to go", self.left);
        self.left -= got;
        got > 0
    }
}

struct Sender {
    stream: Stream,
    left: usize,
    pending: VecDeque<u8>,
}

impl Sender {
    fn new(seed: u64, left: usize) -> Self {
        Self {
            stream: Stream(seed),
            left,
            pending: VecDeque::new(),
        }
    }

    fn give(&mut self, connection: &mut xen_console::Connection) -> usize {
        if self.pending.is_empty() {
            let mut chunk = [0; 3000];
            let len = self.left.min(chunk.len());
            self.stream.fill(&mut chunk[..len]);
            self.left -= len;
            self.pending.extend(&chunk[..len]);
        }
        let took = connection
            .try_write(self.pending.make_contiguous())
            .unwrap();
        self.pending.drain(..took);
        took
    }

    fn done(&self) -> bool {
        self.left == 0 && self.pending.is_empty()
    }
}

/// `bytes` each way at once, the receivers at `speed`.
fn both_ways(bytes: usize, speed: Speed) {
    let host = TestHost::new();
    let resume = Arc::new(AtomicBool::new(false));
    let mut backend = host.backend();
    std::thread::scope(|scope| {
        let domu = scope.spawn(|| {
            let mut frontend = host.frontend();
            let mut sender = Sender::new(1, bytes);
            let mut receiver = Receiver::new(2, bytes, speed, &resume);
            while receiver.left > 0 || !sender.done() {
                frontend.turn().unwrap();
                let again =
                    receiver.take(frontend.connection()) | (sender.give(frontend.connection()) > 0);
                if !again {
                    sleep(
                        &frontend.poll_fds().unwrap(),
                        Some(Instant::now() + PATIENCE),
                    )
                    .unwrap();
                }
            }
            assert!(frontend.close(PATIENCE).unwrap(), "drained");
        });
        let mut sender = Sender::new(2, bytes);
        let mut receiver = Receiver::new(1, bytes, speed, &resume);
        let mut stuck = 0;
        loop {
            let state = backend.turn(Instant::now()).unwrap();
            let mut again = false;
            if let Some(connection) = backend.connection() {
                again = receiver.take(connection);
                let gave = sender.give(connection);
                again |= gave > 0;
                // Both receivers have stopped: the rings are full and nothing moves. Only they can
                // continue.
                stuck = if gave == 0 { stuck + 1 } else { 0 };
                if stuck == 1000 {
                    resume.store(true, Ordering::Release);
                }
            }
            if state == XenbusState::Closing {
                let connection = backend.connection().unwrap();
                while receiver.take(connection) {}
                assert!(backend.let_go().unwrap().is_empty());
                break;
            }
            if !again {
                sleep(&backend.poll_fds(), backend.deadline()).unwrap();
            }
        }
        assert_eq!(receiver.left, 0);
        assert!(sender.done());
        // The frontend's last word is answered by another turn.
        while backend.turn(Instant::now()).unwrap() != XenbusState::Closed || !domu.is_finished() {
            sleep(
                &backend.poll_fds(),
                Some(Instant::now() + Duration::from_millis(5)),
            )
            .unwrap();
        }
        domu.join().unwrap();
    });
    drop(backend);
    host.end();
}

const VOLUME: usize = 64 << 20;

/// Every speed at both ends, [`VOLUME`] each way.
macro_rules! paces {
    ($($name:ident: $speed:ident,)*) => {$(
        #[test]
        fn $name() {
            both_ways(VOLUME, Speed::$speed);
        }
    )*};
}

paces! {
    sixty_four_mebibytes_each_way_at_full_speed: Full,
    sixty_four_mebibytes_each_way_to_bursty_ends: Bursty,
    sixty_four_mebibytes_each_way_to_ends_that_stall: Stalled,
    slow_ends_lose_nothing: Slow,
}

/// A sender never pauses, before, during and after each opening. A frontend opens, reads a little,
/// and closes. Bytes it had not read when it closed arrive in its next ring.
#[test]
fn a_thousand_openings_against_a_sender_at_full_speed() {
    const OPENINGS: usize = 1000;
    let host = TestHost::new();
    let mut backend = host.backend();
    std::thread::scope(|scope| {
        let domu = scope.spawn(|| {
            let (xen, store) = host.domu();
            let mut stream = Stream(3);
            let mut lens = Stream(4);
            let mut total = 0;
            for _ in 0..OPENINGS {
                let mut frontend = Frontend::publish(&xen, &store, NODE, &[]).unwrap();
                let mut len = [0; 2];
                lens.fill(&mut len);
                let mut left = usize::from(u16::from_le_bytes(len)) % 5000 + 1;
                while left > 0 {
                    frontend.turn().unwrap();
                    let mut buffer = [0; 512];
                    let most = left.min(buffer.len());
                    let got = frontend.connection().try_read(&mut buffer[..most]).unwrap();
                    let mut wanted = [0; 512];
                    stream.fill(&mut wanted[..got]);
                    assert_eq!(buffer[..got], wanted[..got], "after {total} bytes");
                    left -= got;
                    total += got;
                    if got == 0 {
                        sleep(
                            &frontend.poll_fds().unwrap(),
                            Some(Instant::now() + PATIENCE),
                        )
                        .unwrap();
                    }
                }
                frontend.close(PATIENCE).unwrap();
            }
            total
        });
        let mut sender = Sender::new(3, usize::MAX);
        // A clock on which seconds pass between two turns: the backend rates its looks at the
        // nodes, and a thousand openings in a row would take a quarter of an hour.
        let mut clock = Instant::now();
        while !domu.is_finished() {
            clock += Duration::from_secs(3);
            let state = backend.turn(clock).unwrap();
            if state == XenbusState::Closing {
                for byte in backend.let_go().unwrap().into_iter().rev() {
                    sender.pending.push_front(byte);
                }
                continue;
            }
            if let Some(connection) = backend.connection() {
                if sender.give(connection) > 0 {
                    continue;
                }
            }
            let nap = Instant::now() + Duration::from_millis(20);
            sleep(&backend.poll_fds(), Some(nap)).unwrap();
        }
        assert!(domu.join().unwrap() > OPENINGS * 1000);
    });
    drop(backend);
    host.end();
}
