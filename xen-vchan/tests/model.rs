//! A queue in the plainest form judges the ring: every operation, at every size, across the wrap of
//! the cursors.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

mod page;

use std::collections::VecDeque;

use proptest::prelude::*;
use xen_vchan::ring::{Producer, Role};
use xen_vchan::{Geometry, Violation};

/// Miri takes its time.
const SIZES: &[usize] = if cfg!(miri) {
    &[1 << 10]
} else {
    &[1 << 10, 1 << 11, 1 << 12, 1 << 16]
};

#[derive(Clone, Debug)]
enum Op {
    Stage(usize),
    Publish,
    Discard,
    Take(usize),
    Release,
    RefreshProducer,
    RefreshConsumer,
    RequestRead,
    RequestWrite,
}

fn lengths(size: usize) -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0..=64usize,
        2 => Just(size - 1),
        2 => Just(size),
        1 => Just(size + 1),
        2 => 0..=2 * size,
    ]
}

fn ops(size: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(
        prop_oneof![
            6 => lengths(size).prop_map(Op::Stage),
            6 => Just(Op::Publish),
            1 => Just(Op::Discard),
            6 => lengths(size).prop_map(Op::Take),
            6 => Just(Op::Release),
            2 => Just(Op::RefreshProducer),
            4 => Just(Op::RefreshConsumer),
            1 => Just(Op::RequestRead),
            1 => Just(Op::RequestWrite),
        ],
        1..if cfg!(miri) { 40 } else { 200 },
    )
}

/// A model of a ring without cursors.
#[derive(Default)]
struct Judge {
    staged: VecDeque<u8>,
    /// Visible to the reader.
    published: VecDeque<u8>,
    /// How much of `published` the reader has looked at.
    known: usize,
    /// Read, and the space not given back.
    held: usize,
    wants_read: bool,
    wants_write: bool,
}

impl Judge {
    fn space(&self, size: usize) -> usize {
        size - self.staged.len() - self.published.len() - self.held
    }
}

fn run(size: usize, start: u32, ops: Vec<Op>) {
    let order = u16::try_from(size.trailing_zeros()).unwrap();
    let (mut tx, mut rx) = page::ends(order, start, true);
    let mut judge = Judge::default();
    let mut next = 0u8;
    for op in ops {
        match op {
            Op::Stage(len) => {
                let bytes: Vec<u8> = (0..len).map(|i| next.wrapping_add(i as u8)).collect();
                let did = tx.stage(&bytes).unwrap();
                assert_eq!(did, len.min(judge.space(size)));
                judge.staged.extend(&bytes[..did]);
                next = next.wrapping_add(did as u8).wrapping_mul(3);
            }
            Op::Publish => {
                let rings = tx.publish();
                assert_eq!(rings, !judge.staged.is_empty() && judge.wants_write);
                judge.wants_write &= judge.staged.is_empty();
                judge.published.append(&mut judge.staged);
            }
            Op::Discard => {
                tx.discard();
                judge.staged.clear();
            }
            Op::Take(len) => {
                let mut buf = vec![0xAA; len];
                let did = rx.take(&mut buf);
                assert_eq!(did, len.min(judge.known));
                judge.known -= did;
                judge.held += did;
                let expected: Vec<u8> = judge.published.drain(..did).collect();
                assert_eq!(&buf[..did], &expected[..]);
                assert!(buf[did..].iter().all(|byte| *byte == 0xAA));
            }
            Op::Release => {
                let rings = rx.release();
                assert_eq!(rings, judge.held != 0 && judge.wants_read);
                judge.wants_read &= judge.held == 0;
                judge.held = 0;
            }
            Op::RefreshProducer => assert_eq!(tx.refresh().unwrap() as usize, judge.space(size)),
            Op::RefreshConsumer => {
                assert_eq!(rx.refresh().unwrap() as usize, judge.published.len());
                judge.known = judge.published.len();
            }
            Op::RequestRead => {
                tx.request();
                judge.wants_read = true;
            }
            Op::RequestWrite => {
                rx.request();
                judge.wants_write = true;
            }
        }
        assert_eq!(tx.staged() as usize, judge.staged.len());
        assert_eq!(rx.known_ready() as usize, judge.known);
        assert_eq!(rx.unreleased() as usize, judge.held);
        assert!(tx.known_space() as usize <= judge.space(size));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 2 } else { 400 }, ..ProptestConfig::default() })]

    #[test]
    fn the_ring_does_what_a_queue_does(
        (size, ops) in prop::sample::select(SIZES).prop_flat_map(|size| (Just(size), ops(size))),
        start in prop_oneof![Just(0u32), Just(u32::MAX - 700), Just(u32::MAX), any::<u32>()],
    ) {
        run(size, start, ops);
    }
}

/// Both ends are over one allocation: Miri, under many schedules, reports any two copies that the
/// cursors do not order.
#[test]
fn two_threads_move_every_byte_across_the_wrap() {
    let runs: &[(u16, usize)] = if cfg!(miri) {
        &[(10, 3_000)]
    } else {
        &[(10, 400_000), (12, 1_000_000), (16, 4_000_000)]
    };
    for &(order, total) in runs {
        let (mut tx, mut rx) = page::ends(order, u32::MAX - (total / 8) as u32, true);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut sent = 0usize;
                let mut size = 1usize;
                while sent < total {
                    size = size * 7 % 3001 + 1;
                    let bytes: Vec<u8> = (sent..(sent + size).min(total))
                        .map(|i| ((i * 31) >> 3) as u8)
                        .collect();
                    let did = tx.stage(&bytes).unwrap();
                    let _ = tx.publish();
                    sent += did;
                    if did == 0 {
                        std::thread::yield_now();
                    }
                }
            });
            scope.spawn(move || {
                let mut got = 0usize;
                let mut size = 1usize;
                let mut buf = [0; 4096];
                while got < total {
                    size = size * 5 % 4093 + 1;
                    if rx.refresh().unwrap() == 0 {
                        std::thread::yield_now();
                    }
                    let did = rx.take(&mut buf[..size]);
                    let _ = rx.release();
                    for byte in &buf[..did] {
                        assert_eq!(*byte, ((got * 31) >> 3) as u8, "byte {got}");
                        got += 1;
                    }
                }
                assert_eq!(got, total);
            });
        });
    }
}

/// The peer is honest, so a violation or a number that shrinks is the fault of the other thread.
#[test]
fn two_threads_that_look_at_once_believe_each_cursor_and_see_no_older_one() {
    let (orders, bytes) = if cfg!(miri) {
        ((10, 11), 30u32)
    } else {
        ((20, 20), 500_000)
    };
    let geometry = Geometry::new(orders.0, orders.1).unwrap();
    let (rings, words) = page::rings(geometry);
    let (mut tx, rx) = rings.attach(Role::Server).unwrap();
    assert_eq!(tx.stage(&vec![1; bytes as usize]), Ok(bytes as usize));
    let (tx, space) = (&tx, tx.known_space());
    std::thread::scope(|scope| {
        let look = || {
            let (mut before, mut room) = (0, space);
            while before < bytes || room < space + bytes {
                let ready = rx.adopt_shared(rx.fetch().unwrap());
                assert!(ready >= before, "{ready} after {before}");
                before = ready;
                let free = tx.refresh_shared().unwrap();
                assert!(free >= room, "{free} after {room}");
                room = free;
                // Nor do the known values, whichever thread has looked since.
                assert!(rx.known_ready() >= before && tx.known_space() >= room);
            }
        };
        scope.spawn(look);
        scope.spawn(look);
        // While they look, two threads publish the same.
        scope.spawn(|| tx.publish());
        let _ = tx.publish();
        while page::peek(&words, page::RIGHT_PROD) != bytes {
            std::thread::yield_now();
        }
        for n in 1..=bytes {
            page::poke(&words, page::LEFT_PROD, n);
            page::poke(&words, page::RIGHT_CONS, n);
        }
    });
}

/// Every fill level, with messages of every size about that of a cache line: a writer that reached
/// for lines which hold unread bytes would destroy one.
#[test]
fn reaching_ahead_stops_at_what_is_not_read() {
    let rounds = if cfg!(miri) { 140 } else { 5000 };
    let (mut tx, mut rx) = page::ends(12, 0, true);
    let (mut sent, mut received) = (0u32, 0u32);
    let byte = |position: u32| (position % 251) as u8 + 1;
    for round in 0..rounds {
        let message: Vec<u8> = (sent..sent + 1 + round % 130).map(byte).collect();
        sent += u32::try_from(tx.stage(&message).unwrap()).unwrap();
        let _ = tx.publish();
        // Now the ring is filled, now it is emptied, always by odd steps.
        let take = if round / 100 % 2 == 0 { 1 } else { 190 };
        let mut out = vec![0; take];
        rx.refresh().unwrap();
        let count = rx.take(&mut out);
        let _ = rx.release();
        for got in &out[..count] {
            assert_eq!(*got, byte(received), "at {received}");
            received += 1;
        }
    }
    assert!(received > 20 * rounds);
}

/// Bytes taken back across the ring's end, and a broken half: an earlier count of bytes that may be
/// staged without a question ends with both.
#[test]
fn a_run_ends_with_what_it_was_counted_for() {
    for len in (97..600).step_by(if cfg!(miri) { 400 } else { 1 }) {
        let (mut tx, mut rx) = page::ends(12, 0, true);
        let mut pass = |tx: &mut Producer, bytes: &[u8]| {
            assert_eq!(tx.stage(bytes), Ok(bytes.len()));
            let _ = tx.publish();
            let mut out = vec![0; bytes.len()];
            rx.refresh().unwrap();
            assert_eq!(rx.take(&mut out), bytes.len());
            let _ = rx.release();
            assert_eq!(out, bytes);
        };
        pass(&mut tx, &[1; 4000]);
        tx.refresh().unwrap();
        assert_eq!(tx.stage(&vec![2; len]), Ok(len), "across the end");
        assert_eq!(tx.stage(&[2; 64]), Ok(64));
        tx.discard();
        pass(&mut tx, &[3; 97]);
        pass(&mut tx, &[4]);
        tx.poison(Violation::Live { value: 9 });
        assert!(tx.stage(&[5]).is_err());
    }
}
