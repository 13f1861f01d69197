//! One ring, one thread, every operation judged by what a queue would do.

use crate::page::ends;
use crate::stream::{LONGEST, piece};
use crate::{Progress, Random, seed, share};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Operations on one ring before the next is made.
const EPISODE: u64 = 1 << 17;

/// Near the wrap, mostly.
pub(crate) fn start(random: &mut Random) -> u32 {
    match random.below(4) {
        0 => random.next() as u32,
        1 => u32::MAX,
        _ => u32::MAX - random.below(1 << 18),
    }
}

pub(crate) fn order(random: &mut Random) -> u16 {
    [10, 10, 11, 12, 12, 13, 16, 20][random.below(8) as usize]
}

/// A queue, as places in the stream: `released <= read <= known <= published <= staged`.
#[derive(Debug, Default)]
struct Judge {
    released: u64,
    read: u64,
    known: u64,
    published: u64,
    staged: u64,
    wants_read: bool,
    wants_write: bool,
}

/// Runs `ops` operations; returns how often a cursor passed 2^32.
fn episode(seed: u64, ops: u64, buf: &mut [u8]) -> u64 {
    let mut random = Random::new(seed);
    let (order, start) = (order(&mut random), start(&mut random));
    // Which ring of the page it is, and so who writes, alternates.
    let (mut tx, mut rx) = ends(order, start, seed & 1 == 0);
    let size = 1u32 << order;
    let mut judge = Judge::default();
    for _ in 0..ops {
        let space = u64::from(size) - (judge.staged - judge.released);
        match random.below(32) {
            0..=7 => {
                let len = random.length(size);
                let did = tx.stage(piece(judge.staged, len)).unwrap();
                assert_eq!(did as u64, space.min(len as u64), "stage {len}");
                judge.staged += did as u64;
            }
            8..=13 => {
                let rings = tx.publish();
                let any = judge.staged != judge.published;
                assert_eq!(rings, any && judge.wants_write, "publish");
                judge.wants_write &= !any;
                judge.published = judge.staged;
            }
            14 => {
                tx.discard();
                judge.staged = judge.published;
            }
            15..=22 => {
                let len = random.length(size);
                let did = rx.take(&mut buf[..len]);
                assert_eq!(
                    did as u64,
                    (judge.known - judge.read).min(len as u64),
                    "take {len}"
                );
                assert!(buf[..did] == *piece(judge.read, did), "wrong bytes");
                judge.read += did as u64;
            }
            23..=26 => {
                let rings = rx.release();
                let any = judge.read != judge.released;
                assert_eq!(rings, any && judge.wants_read, "release");
                judge.wants_read &= !any;
                judge.released = judge.read;
            }
            27 => assert_eq!(
                u64::from(tx.refresh().unwrap()),
                space,
                "refresh for writing"
            ),
            28 | 29 => {
                let ready = rx.refresh().unwrap();
                assert_eq!(u64::from(ready), judge.published - judge.read, "refresh");
                judge.known = judge.published;
            }
            30 => {
                tx.request();
                judge.wants_read = true;
            }
            _ => {
                rx.request();
                judge.wants_write = true;
            }
        }
        assert_eq!(u64::from(tx.staged()), judge.staged - judge.published);
        assert_eq!(u64::from(rx.known_ready()), judge.known - judge.read);
        assert_eq!(u64::from(rx.unreleased()), judge.read - judge.released);
    }
    (u64::from(start) + judge.released) >> 32
}

#[test]
fn single_operations_on_one_ring() {
    let (ops, seed) = (share(80), seed());
    let mut progress = Progress::new("ring", ops);
    let mut buf = vec![0; LONGEST];
    let (mut done, mut wraps) = (0, 0);
    for number in 0.. {
        let count = EPISODE.min(ops - done);
        if count == 0 {
            break;
        }
        let seed = seed.wrapping_add(number);
        let run = || episode(seed, count, &mut buf);
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(passed) => wraps += passed,
            Err(panic) => {
                println!("repeat with VCHAN_SOAK_SEED={seed}");
                resume_unwind(panic);
            }
        }
        done += count;
        progress.at(done);
    }
    progress.print(done);
    println!("ring: passed 2^32 {wraps} times");
    assert!(wraps > 0, "no cursor came round");
}
