//! One end of a ring, with its expected state beside it; the peer writes anywhere.

use std::fmt::Debug;
use std::sync::atomic::AtomicU32;

use xen_gnttab::ring::{BackRing, FrontRing, HEADER, RingError};
use xen_gnttab::{Region, Words};

use super::{Input, load, peer, store};

type Request = [u8; 12];
type Response = [u8; 20];

/// The words of the header.
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 2;

/// Remembers the error that broke the ring and holds the ring to it.
#[derive(Default)]
struct Broken(Option<RingError>);

impl Broken {
    /// A result that `Full` is none of.
    fn check<T: Debug>(&mut self, result: Result<T, RingError>) -> Option<T> {
        if let Some(first) = self.0 {
            assert_eq!(result.unwrap_err(), first, "after the error that broke it");
            return None;
        }
        match result {
            Ok(value) => Some(value),
            Err(
                error @ RingError::Index {
                    theirs,
                    ours,
                    at_most,
                },
            ) => {
                assert_ne!(theirs.wrapping_sub(ours), at_most, "a possible index");
                self.0 = Some(error);
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Checks the result of a push; returns whether it succeeded. `free`: whether there is room.
    fn pushed(&mut self, result: Result<(), RingError>, free: bool) -> bool {
        match (self.0, free) {
            (None, false) => {
                assert_eq!(result, Err(RingError::Full));
                false
            }
            _ => self.check(result).is_some(),
        }
    }
}

/// Runs an input.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let (kind, entries) = (input.byte(), usize::from(input.byte() % 70));
    let pages = Region::heap(HEADER + entries * 20);
    let (words, bytes) = peer(&pages, HEADER / 4);
    let peer = Peer { words, bytes };
    if kind & 1 == 0 {
        front(input, pages, peer);
    } else {
        back(input, pages, peer);
    }
}

/// The other end: all of the pages.
struct Peer {
    words: Words<AtomicU32>,
    bytes: Region,
}

impl Peer {
    /// Writes: its index near `truth`, any word of the header, or bytes of an entry.
    fn write(&mut self, input: &mut Input<'_>, index: usize, truth: u32, count: u32) {
        match input.byte() % 4 {
            0 | 1 => store(&self.words, index, input.near(truth, count)),
            2 => {
                let at = usize::from(input.byte()) % self.words.len();
                store(&self.words, at, input.word());
            }
            _ => {
                let at = usize::from(input.byte()) * 4;
                // Behind the last entry there is nothing to write to.
                let _ = self.bytes.copy_in(at, &input.word().to_ne_bytes());
            }
        }
    }
}

fn front(mut input: Input<'_>, pages: Region, mut peer: Peer) {
    let Ok(mut front) = FrontRing::<Request, Response>::new(pages) else {
        return;
    };
    let count = front.entries();
    assert!(count.is_power_of_two());
    let mut broken = Broken::default();
    let (mut written, mut published, mut taken) = (0u32, 0u32, 0u32);
    while !input.ended() {
        match input.byte() % 6 {
            0 => {
                let free = front.free();
                assert_eq!(free, count - (written - taken));
                if broken.pushed(front.push_request(&[0x55; 12]), free > 0) {
                    written += 1;
                }
            }
            1 => {
                let any = written != published;
                if let Some(notify) = broken.check(front.publish()) {
                    published = written;
                    assert!(any || !notify, "an event for nothing");
                    assert!(!any || load(&peer.words, REQ_PROD) == published);
                }
            }
            2 => {
                // As many as there can be, and no more.
                while let Some(Some(_)) = broken.check(front.poll_response()) {
                    taken += 1;
                    assert!(taken <= published, "a response without a request");
                }
            }
            3 => {
                if let Some(true) = broken.check(front.arm(u32::from(input.byte()))) {
                    assert!(taken < published, "a response without a request");
                }
            }
            _ => peer.write(&mut input, RSP_PROD, taken, published - taken),
        }
    }
}

fn back(mut input: Input<'_>, pages: Region, mut peer: Peer) {
    let start = input.word();
    store(&peer.words, RSP_PROD, start);
    store(&peer.words, REQ_PROD, input.near(start, 8));
    let mut back = match BackRing::<Request, Response>::attach(pages) {
        Ok(back) => back,
        Err(RingError::Index { .. } | RingError::Pages { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    let count = back.entries();
    let mut broken = Broken::default();
    // All since `start`.
    let (mut taken, mut written, mut published) = (0u32, 0u32, 0u32);
    while !input.ended() {
        match input.byte() % 6 {
            0 => {
                let open = back.unanswered();
                assert_eq!(open, taken - written);
                if broken.pushed(back.push_response(&[0x55; 20]), open > 0) {
                    written += 1;
                }
            }
            1 => {
                let any = written != published;
                if let Some(notify) = broken.check(back.publish()) {
                    published = written;
                    assert!(any || !notify, "an event for nothing");
                    let index = start.wrapping_add(published);
                    assert!(!any || load(&peer.words, RSP_PROD) == index);
                }
            }
            2 => {
                while let Some(Some(_)) = broken.check(back.poll_request()) {
                    taken += 1;
                    assert!(taken - published <= count, "more than the ring holds");
                }
            }
            3 => {
                if let Some(true) = broken.check(back.arm(u32::from(input.byte()))) {
                    assert!(taken - published < count, "more than the ring holds");
                }
            }
            _ => peer.write(&mut input, REQ_PROD, start.wrapping_add(taken), count),
        }
    }
}
