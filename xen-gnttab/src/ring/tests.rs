//! The ring against a model that is two queues, against ring.h's arithmetic, against a peer that
//! writes anything, and between two threads.
//!
//! # Safety
//!
//! This file is not safe code because both ends of a ring are made over one allocation, which
//! [`Region`] gives to one owner.

#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::thread::{self, Thread};

use proptest::prelude::*;

use super::*;
use crate::Words;

type Request = [u8; 12];
type Response = [u8; 8];
type Front = FrontRing<Request, Response>;
type Back = BackRing<Request, Response>;

const COUNT: u32 = 8;

/// Returns the same pages for another end.
fn twin(pages: &Region) -> Region {
    // SAFETY: all ends take the words out at one width. They access entries by turns, or, on two
    // threads, in the order of the indices' release stores and acquire loads, which is what Miri
    // checks here.
    unsafe { pages.alias() }
}

/// Both ends of a ring whose indices are at `start`, and its words.
fn ends(start: u32) -> (Front, Back, Words<AtomicU32>) {
    // Not a power of two: there is room that is not used.
    let pages = Region::heap(HEADER + 12 * 11);
    let words: Words<AtomicU32> = twin(&pages).take_words(4).unwrap();
    let second = twin(&pages);
    let mut front = Front::new(pages).unwrap();
    for word in words.iter() {
        word.store(
            word.load(Ordering::Relaxed).wrapping_add(start),
            Ordering::Relaxed,
        );
    }
    let half = &mut front.half;
    (half.prod, half.published, half.cons, half.seen) = (start, start, start, start);
    (front, Back::attach(second).unwrap(), words)
}

/// Returns the word `n`.
fn at(words: &Words<AtomicU32>, n: usize) -> u32 {
    words.get(n).unwrap().load(Ordering::Relaxed)
}

fn request(n: u64) -> Request {
    let mut bytes = [0x5a; 12];
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    bytes
}

#[test]
fn the_layout_is_that_of_the_header() {
    let pages = Region::heap(HEADER + 12 * 11);
    let raw = twin(&pages);
    let mut front = Front::new(pages).unwrap();
    assert_eq!(front.entries(), COUNT);
    for n in 0..3 {
        front.push_request(&request(n)).unwrap();
    }
    assert_eq!(raw.load_u32(0).unwrap(), 0, "nothing is published yet");
    assert!(front.publish().unwrap());
    let header = [0, 4, 8, 12].map(|offset| raw.load_u32(offset).unwrap());
    assert_eq!(header, [3, 1, 0, 1], "SHARED_RING_INIT");
    let mut entry = [0; 12];
    raw.copy_out(64 + 12 * 2, &mut entry).unwrap();
    assert_eq!(entry, request(2));
    assert_eq!(front.free(), COUNT - 3);
}

#[test]
fn entries_are_the_greatest_power_of_two_that_fits() {
    // blkif on x86-64: 112 bytes, 32 entries in a page; with 8 pages 256.
    for (len, count) in [(4096, 32), (8 * 4096, 256), (HEADER + 112, 1)] {
        let front = FrontRing::<[u64; 14], [u64; 2]>::new(Region::heap(len)).unwrap();
        assert_eq!(front.entries(), count);
    }
    let pages = RingError::Pages(RegionError::OutOfRange);
    for len in [0, 16, HEADER, HEADER + 111] {
        let error = FrontRing::<[u64; 14], [u64; 2]>::new(Region::heap(len)).unwrap_err();
        assert_eq!(error, pages);
        assert_eq!(
            Back::attach(Region::heap(len.min(HEADER))).unwrap_err(),
            pages
        );
    }
    assert_eq!(
        FrontRing::<(), ()>::new(Region::heap(4096)).unwrap_err(),
        pages
    );
}

#[test]
fn a_full_ring_takes_no_request_and_no_response_comes_without_one() {
    let (mut front, mut back, _) = ends(u32::MAX - 3);
    for n in 0..u64::from(COUNT) {
        front.push_request(&request(n)).unwrap();
    }
    assert_eq!(front.push_request(&request(9)), Err(RingError::Full));
    assert_eq!(back.push_response(&[0; 8]), Err(RingError::Full));
    assert_eq!(back.poll_request(), Ok(None), "nothing is published");
    front.publish().unwrap();
    assert_eq!(back.poll_request(), Ok(Some(request(0))));
    back.push_response(&[7; 8]).unwrap();
    assert_eq!(back.push_response(&[0; 8]), Err(RingError::Full));
    assert_eq!(front.poll_response(), Ok(None));
    assert!(back.publish().unwrap());
    assert!(!back.publish().unwrap(), "nothing is new");
    assert_eq!(front.poll_response(), Ok(Some([7; 8])));
    assert_eq!(front.free(), 1);
}

#[test]
fn a_second_backend_takes_what_the_first_left_without_a_response() {
    let pages = Region::heap(HEADER + 12 * 11);
    let (first, second) = (twin(&pages), twin(&pages));
    let mut front = Front::new(pages).unwrap();
    let mut back = Back::attach(first).unwrap();
    for n in 0..4 {
        front.push_request(&request(n)).unwrap();
    }
    front.publish().unwrap();
    for _ in 0..3 {
        back.poll_request().unwrap().unwrap();
    }
    back.push_response(&[0; 8]).unwrap();
    back.publish().unwrap();
    let mut back = Back::attach(second).unwrap();
    for n in 1..4 {
        assert_eq!(back.poll_request(), Ok(Some(request(n))));
    }
    assert_eq!(back.poll_request(), Ok(None));
    back.push_response(&[1; 8]).unwrap();
    back.publish().unwrap();
    let responses = std::iter::from_fn(|| front.poll_response().unwrap());
    assert_eq!(responses.collect::<Vec<_>>(), [[0; 8], [1; 8]]);
}

#[test]
fn a_second_backend_is_not_given_more_requests_than_the_ring_holds() {
    let pages = Region::heap(HEADER + 12 * 11);
    let words: Words<AtomicU32> = twin(&pages).take_words(4).unwrap();
    words[RSP_PROD].store(7, Ordering::Relaxed);
    words[REQ_PROD].store(8 + COUNT, Ordering::Relaxed);
    let error = RingError::Index {
        theirs: 8 + COUNT,
        ours: 7,
        at_most: COUNT,
    };
    assert_eq!(Back::attach(pages).unwrap_err(), error);
}

#[test]
fn an_index_that_cannot_be_is_an_error_with_its_numbers_forever() {
    let (mut front, mut back, words) = ends(100);
    front.push_request(&request(0)).unwrap();
    front.publish().unwrap();
    // A response to a request that was written and never published.
    front.push_request(&request(1)).unwrap();
    words[RSP_PROD].store(102, Ordering::Relaxed);
    let error = RingError::Index {
        theirs: 102,
        ours: 100,
        at_most: 1,
    };
    assert_eq!(front.poll_response(), Err(error));
    words[RSP_PROD].store(101, Ordering::Relaxed);
    assert_eq!(front.poll_response(), Err(error));
    assert_eq!(front.arm(1), Err(error));
    assert_eq!(front.publish(), Err(error));
    assert_eq!(front.push_request(&request(1)), Err(error));

    // One more than the ring holds; then one that goes back behind what was seen.
    words[REQ_PROD].store(100 + COUNT, Ordering::Relaxed);
    assert!(back.poll_request().unwrap().is_some());
    words[REQ_PROD].store(102, Ordering::Relaxed);
    assert!(matches!(
        back.arm(1),
        Err(RingError::Index { theirs: 102, .. })
    ));
    let (_, mut back, words) = ends(100);
    words[REQ_PROD].store(101 + COUNT, Ordering::Relaxed);
    assert!(matches!(back.poll_request(), Err(RingError::Index { .. })));
}

#[test]
fn own_indices_rewritten_by_the_peer_change_nothing() {
    let (mut front, mut back, words) = ends(0);
    front.push_request(&request(1)).unwrap();
    front.publish().unwrap();
    assert_eq!(back.poll_request(), Ok(Some(request(1))));
    words[REQ_PROD].store(77, Ordering::Relaxed);
    words[RSP_PROD].store(0, Ordering::Relaxed);
    front.push_request(&request(2)).unwrap();
    front.publish().unwrap();
    assert_eq!(at(&words, REQ_PROD), 2);
    assert_eq!(back.poll_request(), Ok(Some(request(2))));
    for _ in 0..2 {
        back.push_response(&[3; 8]).unwrap();
    }
    back.publish().unwrap();
    assert_eq!(at(&words, RSP_PROD), 2);
}

#[derive(Clone, Debug)]
enum Step {
    Push(u8),
    PublishRequests,
    Take(u8),
    Respond(u8),
    PublishResponses,
    Collect(u8),
    ArmFront(u32),
    ArmBack(u32),
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..10).prop_map(Step::Push),
        Just(Step::PublishRequests),
        (0u8..10).prop_map(Step::Take),
        (0u8..10).prop_map(Step::Respond),
        Just(Step::PublishResponses),
        (0u8..10).prop_map(Step::Collect),
        (0u32..12).prop_map(Step::ArmFront),
        (0u32..12).prop_map(Step::ArmBack),
    ]
}

/// `RING_PUSH_*_AND_CHECK_NOTIFY`, on the page.
fn notifies(old: u32, new: u32, event: u32) -> bool {
    new.wrapping_sub(event) < new.wrapping_sub(old)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 3 } else { 512 }))]

    #[test]
    fn both_directions_are_queues_and_events_come_as_the_header_has_it(
        start in prop_oneof![Just(0u32), Just(u32::MAX - 5), any::<u32>()],
        steps in proptest::collection::vec(steps(), 0..120),
    ) {
        let (mut front, mut back, words) = ends(start);
        let (mut next, mut answered) = (0u64, 0u64);
        let (mut written, mut requests) = (VecDeque::new(), VecDeque::new());
        let mut taken = VecDeque::new();
        let (mut given, mut responses) = (VecDeque::new(), VecDeque::new());
        let mut outstanding = 0;
        for step in steps {
            match step {
                Step::Push(n) => for _ in 0..n {
                    let room = outstanding < COUNT;
                    prop_assert_eq!(front.free(), COUNT - outstanding);
                    prop_assert_eq!(front.push_request(&request(next)).is_ok(), room);
                    if room {
                        written.push_back(next);
                        (next, outstanding) = (next + 1, outstanding + 1);
                    }
                },
                Step::PublishRequests => {
                    let (old, event) = (at(&words, REQ_PROD), at(&words, REQ_EVENT));
                    let notify = front.publish().unwrap();
                    prop_assert_eq!(notify, notifies(old, at(&words, REQ_PROD), event));
                    requests.append(&mut written);
                }
                Step::Take(n) => for _ in 0..n {
                    let expected = requests.pop_front();
                    prop_assert_eq!(back.poll_request().unwrap(), expected.map(request));
                    taken.extend(expected);
                },
                Step::Respond(n) => for _ in 0..n {
                    prop_assert_eq!(back.unanswered() as usize, taken.len());
                    // In another order than they arrived.
                    let id = taken.pop_back().inspect(|_| answered += 1);
                    let done = back.push_response(&id.unwrap_or_default().to_le_bytes());
                    prop_assert_eq!(done.is_ok(), id.is_some());
                    given.extend(id);
                },
                Step::PublishResponses => {
                    let (old, event) = (at(&words, RSP_PROD), at(&words, RSP_EVENT));
                    let notify = back.publish().unwrap();
                    prop_assert_eq!(notify, notifies(old, at(&words, RSP_PROD), event));
                    responses.append(&mut given);
                }
                Step::Collect(n) => for _ in 0..n {
                    let expected = responses.pop_front();
                    let got = front.poll_response().unwrap().map(u64::from_le_bytes);
                    prop_assert_eq!(got, expected);
                    outstanding -= u32::from(expected.is_some());
                },
                Step::ArmFront(nth) => {
                    prop_assert_eq!(front.arm(nth).unwrap(), !responses.is_empty());
                }
                Step::ArmBack(nth) => {
                    prop_assert_eq!(back.arm(nth).unwrap(), !requests.is_empty());
                }
            }
        }
        prop_assert!(answered <= next);
    }

    #[test]
    fn an_event_comes_at_the_entry_that_was_asked_for(nth in 0..=2 * COUNT, start: u32) {
        let (mut front, mut back, _) = ends(start);
        prop_assert!(!back.arm(nth).unwrap());
        prop_assert!(!front.arm(nth).unwrap());
        // Never at none: an end would sleep forever.
        let nth = nth.clamp(1, COUNT);
        for n in 1..=COUNT {
            front.push_request(&request(0)).unwrap();
            prop_assert_eq!(front.publish().unwrap(), n == nth);
        }
        while back.poll_request().unwrap().is_some() {}
        for n in 1..=COUNT {
            back.push_response(&[0; 8]).unwrap();
            prop_assert_eq!(back.publish().unwrap(), n == nth);
        }
    }

    #[test]
    fn a_peer_that_writes_what_it_likes_gets_no_entry_twice_and_no_panic(
        start: u32,
        steps in proptest::collection::vec((0usize..4, 0u32..20, any::<u32>(), any::<bool>()), 0..80),
    ) {
        let (mut front, _, front_words) = ends(start);
        let (_, mut back, back_words) = ends(start);
        let (mut sent, mut got) = (0u32, 0u32);
        let (mut taken, mut answered) = (0u32, 0u32);
        for (word, near, any, is_near) in steps {
            let value = if is_near { start.wrapping_add(near) } else { any };
            front_words[word].store(value, Ordering::Relaxed);
            back_words[word].store(value, Ordering::Relaxed);
            if front.push_request(&request(0)).is_ok() && front.publish().is_ok() {
                sent += 1;
            }
            for _ in 0..=COUNT {
                got += u32::from(matches!(front.poll_response(), Ok(Some(_))));
                taken += u32::from(matches!(back.poll_request(), Ok(Some(_))));
            }
            prop_assert!(got <= sent && sent - got <= COUNT);
            prop_assert!(taken - answered <= COUNT);
            if back.push_response(&[0; 8]).is_ok() {
                answered += 1;
            }
            let _ = (back.publish(), back.arm(near), front.arm(near));
        }
    }
}

/// Publishes, and wakes the peer if it requested an event.
fn wake(peer: &Thread, published: Result<bool, RingError>) {
    if published.unwrap() {
        peer.unpark();
    }
}

/// Both ends sleep whenever there is nothing to do, so a test with a lost event never ends.
#[test]
fn two_threads_lose_no_event_and_no_byte() {
    let total = if cfg!(miri) { 40 } else { 20_000 };
    let (mut front, mut back, _) = ends(u32::MAX - 20);
    let frontend = thread::current();
    let backend = thread::spawn(move || {
        let mut served = 0;
        while served < total {
            while let Some(request) = back.poll_request().unwrap() {
                let mut response = [0; 8];
                response.copy_from_slice(&request[..8]);
                back.push_response(&response).unwrap();
                wake(&frontend, back.publish());
                served += 1;
            }
            if served < total && !back.arm(1).unwrap() {
                thread::park();
            }
        }
    });
    let (mut sent, mut received) = (0, 0);
    while received < total {
        while sent < total && front.push_request(&request(sent)).is_ok() {
            sent += 1;
        }
        wake(backend.thread(), front.publish());
        while let Some(response) = front.poll_response().unwrap() {
            assert_eq!(u64::from_le_bytes(response), received);
            received += 1;
        }
        let idle = front.free() == 0 || sent == total;
        if idle && received < total && !front.arm(1).unwrap() {
            thread::park();
        }
    }
    backend.join().unwrap();
}
