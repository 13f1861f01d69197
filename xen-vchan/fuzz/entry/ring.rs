//! One end of both rings, with its expected state beside it; the peer writes anywhere.

use std::sync::atomic::Ordering;

use xen_vchan::ring::{Rings, Role};
use xen_vchan::{Geometry, Memory, Violation};

use super::{Input, untouched};

/// The words that the peer moves and those that are ours: (theirs, ours) of what we write, then of
/// what we read.
const SERVER: [usize; 4] = [8, 12, 4, 0];
const CLIENT: [usize; 4] = [0, 4, 12, 8];

/// Remembers the first violation of a half and holds it to it.
#[derive(Default)]
struct Sticky(Option<Violation>);

impl Sticky {
    fn check<T>(&mut self, result: Result<T, Violation>) -> Option<T> {
        match (result, self.0) {
            (Ok(value), None) => Some(value),
            (Ok(_), Some(first)) => panic!("a success after {first}"),
            (Err(now), None) => {
                self.0 = Some(now);
                None
            }
            (Err(now), Some(first)) => {
                assert_eq!(now, first, "another violation");
                None
            }
        }
    }
}

/// Runs an input.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let order = |byte: u8| 10 + u16::from(byte % 5);
    let (left, right) = (order(input.byte()), order(input.byte()));
    let Ok(geometry) = Geometry::new(left, right) else {
        return;
    };
    let pages = |bytes| Some(Memory::heap(bytes as usize));
    let (left, right) = (pages(geometry.left_bytes()), pages(geometry.right_bytes()));
    let rings = Rings::new(Memory::heap(4096), geometry, left, right).unwrap();
    let control = rings.words().clone();
    let (role, words) = if input.byte() & 1 == 0 {
        (Role::Server, SERVER)
    } else {
        (Role::Client, CLIENT)
    };
    let word = |at: usize| control.atomic_u32(at).unwrap();
    let start = input.word();
    for at in words {
        word(at).store(start, Ordering::Relaxed);
    }
    // Cursors left by an earlier client or a liar: any distance.
    if input.byte() & 3 == 0 {
        word(words[0]).store(input.word(), Ordering::Relaxed);
        word(words[2]).store(input.word(), Ordering::Relaxed);
    }
    let Ok((mut tx, mut rx)) = rings.attach(role) else {
        return;
    };
    let (out, into) = (tx.capacity(), rx.capacity());
    let (mut wrote, mut read) = (Sticky::default(), Sticky::default());
    // The values that our own cursors must have, whatever is written over them.
    let mut published = word(words[1]).load(Ordering::Relaxed);
    let mut released = word(words[3]).load(Ordering::Relaxed);
    let source = vec![0x55; 2 * out as usize + 16];
    let mut target = vec![0xaa; 2 * into as usize + 16];
    while !input.ended() {
        match input.byte() % 12 {
            0 => {
                let len = input.length(out as usize).min(source.len());
                let before = tx.staged();
                if let Some(did) = wrote.check(tx.stage(&source[..len])) {
                    assert!(did <= len);
                    assert_eq!(tx.staged(), before + did as u32);
                }
            }
            1 => {
                published = published.wrapping_add(tx.staged());
                let any = tx.staged() != 0;
                let _ = tx.publish();
                if any {
                    assert_eq!(word(words[1]).load(Ordering::Relaxed), published);
                }
            }
            2 => tx.discard(),
            3 => {
                if let Some(space) = wrote.check(tx.refresh()) {
                    assert_eq!(space, tx.known_space());
                }
            }
            4 => {
                let len = input.length(into as usize).min(target.len());
                let known = rx.known_ready() as usize;
                let did = rx.take(&mut target[..len]);
                assert_eq!(did, len.min(known));
                untouched(&target, len);
                target[..len].fill(0xaa);
            }
            5 => {
                released = released.wrapping_add(rx.unreleased());
                let any = rx.unreleased() != 0;
                let _ = rx.release();
                if any {
                    assert_eq!(word(words[3]).load(Ordering::Relaxed), released);
                }
            }
            6 => {
                if let Some(ready) = read.check(rx.refresh()) {
                    assert_eq!(ready, rx.known_ready());
                }
            }
            7 => rx.skip(),
            8 => {
                tx.request();
                rx.request();
            }
            9 => {
                let value = input.cursor(&[published, published.wrapping_sub(out)], out);
                word(words[0]).store(value, Ordering::Relaxed);
            }
            10 => {
                let value = input.cursor(&[released, released.wrapping_add(into)], into);
                word(words[2]).store(value, Ordering::Relaxed);
            }
            _ => {
                // Our own words, live and notify bytes. The rest is not looked at any more.
                let (at, value) = (usize::from(input.byte()), input.byte());
                if let Some(byte) = control.atomic_u8(at) {
                    byte.store(value, Ordering::Relaxed);
                } else if let Some(word) = control.atomic_u32(at & !3) {
                    let shift = 8 * (at & 3);
                    let old = word.load(Ordering::Relaxed) & !(0xff << shift);
                    word.store(old | u32::from(value) << shift, Ordering::Relaxed);
                }
            }
        }
        assert!(tx.known_space() <= out && tx.staged() <= out && tx.known_unread() <= out);
        assert!(rx.known_ready() <= into && rx.unreleased() <= into);
        assert!(rx.known_ready() + rx.unreleased() <= into);
    }
}
