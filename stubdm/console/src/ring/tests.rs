//! The rings against a model that is a queue, and against a peer that writes what it likes.
//!
//! # Safety
//!
//! This file is not safe code because both ends of a console are made over one page of memory,
//! which [`Region`] gives to one owner. One thread uses them.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use xen_gnttab::{Region, Words};

use super::*;

const PAGE: usize = 4096;
/// Numbers of the peer's indices, if the backend is under test.
const IN_CONS: usize = 0;
const OUT_PROD: usize = 3;

/// The same page for another end.
fn twin(page: &Region) -> Region {
    // SAFETY: one thread uses all of them, so accesses do not overlap; each takes the words out at
    // the same widths.
    unsafe { page.alias() }
}

/// A page whose indices are as given, taken apart for the end under test, and its words for its
/// peer.
fn page(indices: [u32; 4]) -> (Page, Words<AtomicU32>) {
    let page = Page::new(Region::heap(PAGE)).unwrap();
    let words = page.indices.clone();
    for (word, index) in words.iter().zip(indices) {
        word.store(index, Ordering::Relaxed);
    }
    (page, words)
}

/// Both ends of both rings of a page whose indices are at `start`, and the page once more.
fn ends(start: u32) -> (Page, [(Producer, Consumer); 2]) {
    let whole = Region::heap(PAGE);
    let (second, third) = (twin(&whole), twin(&whole));
    let page = Page::new(whole).unwrap();
    for index in page.indices.iter() {
        index.store(start, Ordering::Relaxed);
    }
    let (out_consumer, in_producer) = backend(second).unwrap();
    let (input, output) = Page::new(third).unwrap().rings().unwrap();
    let in_consumer = Consumer {
        ring: input,
        cons: start,
    };
    let out_producer = Producer {
        ring: output,
        prod: start,
    };
    (
        page,
        [(in_producer, in_consumer), (out_producer, out_consumer)],
    )
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize),
    Read(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![0usize..20, 0usize..3000];
    let step = (any::<bool>(), 0usize..2, len).prop_map(|(write, ring, len)| {
        if write {
            Step::Write(ring, len)
        } else {
            Step::Read(ring, len)
        }
    });
    proptest::collection::vec(step, 1..200)
}

fn starts() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0),
        any::<u32>(),
        (0u32..5000).prop_map(|n| u32::MAX - n)
    ]
}

proptest! {
    /// Whatever is written is read in order, at both rings, wherever the indices began.
    #[test]
    fn it_is_a_queue(start in starts(), steps in steps()) {
        let (_page, mut rings) = ends(start);
        let sizes = [IN_SIZE, OUT_SIZE];
        let mut models = [VecDeque::new(), VecDeque::new()];
        let mut next = 0u8;
        for step in steps {
            match step {
                Step::Write(ring, len) => {
                    let bytes: Vec<u8> = (0..len).map(|_| { next = next.wrapping_mul(5).wrapping_add(1); next }).collect();
                    let took = rings[ring].0.write(&bytes).unwrap();
                    prop_assert_eq!(took, len.min(sizes[ring] - models[ring].len()));
                    models[ring].extend(&bytes[..took]);
                }
                Step::Read(ring, len) => {
                    let mut buffer = vec![0; len];
                    let got = rings[ring].1.read(&mut buffer).unwrap();
                    prop_assert_eq!(got, len.min(models[ring].len()));
                    let wanted: Vec<u8> = models[ring].drain(..got).collect();
                    prop_assert_eq!(&buffer[..got], &wanted[..]);
                }
            }
            for ring in 0..2 {
                let len = models[ring].len();
                prop_assert_eq!(rings[ring].1.available().unwrap(), len);
                prop_assert_eq!(rings[ring].0.unread().unwrap(), len);
                prop_assert_eq!(rings[ring].0.space().unwrap(), sizes[ring] - len);
            }
        }
    }

    /// A peer that writes any words at any time gets an error or nothing, and reaches no byte
    /// outside of the ring. Its writes to *our* index change nothing.
    #[test]
    fn a_hostile_peer_gets_an_error(
        start in starts(),
        words in proptest::collection::vec((0usize..4, prop_oneof![any::<u32>(), 0u32..5000], 0usize..3000), 1..60),
    ) {
        let (page, shared) = page([start; 4]);
        let (mut consumer, mut producer) = resume(page).unwrap();
        let (mut own_cons, mut own_prod) = (start, start);
        for (index, value, len) in words {
            shared[index].store(value, Ordering::Relaxed);
            let peer_prod = shared[OUT_PROD].load(Ordering::Relaxed);
            let peer_cons = shared[IN_CONS].load(Ordering::Relaxed);
            let mut buffer = vec![0; len];
            match consumer.read(&mut buffer) {
                Ok(got) => {
                    let there = peer_prod.wrapping_sub(own_cons) as usize;
                    prop_assert!(there <= OUT_SIZE);
                    prop_assert_eq!(got, there.min(len));
                    own_cons = own_cons.wrapping_add(got as u32);
                }
                Err(error) => {
                    prop_assert_eq!(error, Error::Indices { prod: peer_prod, cons: own_cons, size: OUT_SIZE });
                }
            }
            match producer.write(&buffer) {
                Ok(took) => {
                    let there = own_prod.wrapping_sub(peer_cons) as usize;
                    prop_assert!(there <= IN_SIZE);
                    prop_assert_eq!(took, (IN_SIZE - there).min(len));
                    own_prod = own_prod.wrapping_add(took as u32);
                }
                Err(error) => {
                    prop_assert_eq!(error, Error::Indices { prod: own_prod, cons: peer_cons, size: IN_SIZE });
                }
            }
        }
    }

    /// A page found in use is taken up where it is, or refused.
    #[test]
    fn a_page_in_use_is_checked(words in any::<[u32; 4]>(), near in any::<bool>()) {
        let [in_cons, in_prod, out_cons, out_prod] = if near {
            [words[0], words[0].wrapping_add(words[1] % 1100), words[2], words[2].wrapping_add(words[3] % 2200)]
        } else {
            words
        };
        let sound = in_prod.wrapping_sub(in_cons) as usize <= IN_SIZE
            && out_prod.wrapping_sub(out_cons) as usize <= OUT_SIZE;
        match resume(page([in_cons, in_prod, out_cons, out_prod]).0) {
            Ok((consumer, producer)) => {
                prop_assert!(sound);
                prop_assert_eq!(consumer.available().unwrap(), out_prod.wrapping_sub(out_cons) as usize);
                prop_assert_eq!(producer.unread().unwrap(), in_prod.wrapping_sub(in_cons) as usize);
            }
            Err(_) => prop_assert!(!sound),
        }
    }
}

#[test]
fn the_layout_is_xens() {
    // offsetof of struct xencons_interface.
    let whole = Region::heap(PAGE);
    let base = whole.as_ptr().addr();
    let page = Page::new(whole).unwrap();
    assert_eq!(
        (page.input.as_ptr().addr() - base, page.input.len()),
        (0, 1024)
    );
    assert_eq!(
        (page.output.as_ptr().addr() - base, page.output.len()),
        (1024, 2048)
    );
    let offsets: Vec<usize> = page
        .indices
        .iter()
        .map(|w| w.as_ptr().addr() - base)
        .collect();
    assert_eq!(offsets, [3072, 3076, 3080, 3084]);
    assert_eq!(page.connection.as_ptr().addr() - base, 3088);
    // The producer of a ring moves `prod`, its consumer `cons`.
    let (page, words) = self::page([0; 4]);
    let (_, mut producer) = resume(page).unwrap();
    producer.write(b"x").unwrap();
    assert_eq!(words[1].load(Ordering::Relaxed), 1);
    let (page, words) = self::page([0, 0, 0, 1]);
    let (mut consumer, _) = resume(page).unwrap();
    assert_eq!(consumer.read(&mut [0; 9]).unwrap(), 1);
    assert_eq!(words[2].load(Ordering::Relaxed), 1);
}

#[test]
fn every_byte_goes_to_the_place_of_its_index() {
    let (page, [_, (mut producer, _)]) = ends(u32::MAX - 2);
    producer.write(b"abcdef").unwrap();
    let mut wrapped = [0; 3];
    page.output.copy_out(OUT_SIZE - 3, &mut wrapped).unwrap();
    assert_eq!(&wrapped, b"abc");
    page.output.copy_out(0, &mut wrapped).unwrap();
    assert_eq!(&wrapped, b"def");
    assert_eq!(page.indices[OUT_PROD].load(Ordering::Relaxed), 3);
}

#[test]
fn the_frontend_publishes_that_nobody_serves_it_yet() {
    let whole = Region::heap(PAGE);
    let (second, third) = (twin(&whole), twin(&whole));
    let page = Page::new(whole).unwrap();
    let _frontend = frontend(second).unwrap();
    assert_eq!(page.connection.load(Ordering::Relaxed), 1);
    let _backend = backend(third).unwrap();
    assert_eq!(page.connection.load(Ordering::Relaxed), 0);
}

#[test]
fn a_page_too_short_is_refused() {
    for len in [0, 1024, 3072, 3084, 3088] {
        let short = || Region::heap(len);
        let refused = Error::Page(RegionError::OutOfRange);
        assert_eq!(frontend(short()).err(), Some(refused), "{len}");
        assert_eq!(backend(short()).err(), Some(refused), "{len}");
    }
}
