//! The rings against a model that is a queue, and against a peer that writes what it likes.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use xen_gnttab::Region;

use super::*;

const PAGE: usize = 4096;

/// A page whose rings have been in use for `start` bytes.
fn used(start: u32) -> Region {
    let page = Region::heap(PAGE);
    for offset in [IN.cons, IN.prod, OUT.cons, OUT.prod] {
        page.atomic_u32(offset)
            .unwrap()
            .store(start, Ordering::Relaxed);
    }
    page
}

/// Both ends of both rings of a page whose indices are at `start`.
fn ends(start: u32) -> (Region, [(Producer, Consumer); 2]) {
    let page = used(start);
    let (out_consumer, in_producer) = backend(&page).unwrap();
    let (in_consumer, out_producer) = (
        Consumer {
            page: page.clone(),
            half: IN,
            cons: start,
        },
        Producer {
            page: page.clone(),
            half: OUT,
            prod: start,
        },
    );
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
    /// Whatever is written comes out, in order, at both rings, wherever the indices began.
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

    /// A peer that writes any words at any time gets an error or nothing, and reaches no byte outside of
    /// the ring. What it writes to *our* index changes nothing.
    #[test]
    fn a_hostile_peer_gets_an_error(
        start in starts(),
        words in proptest::collection::vec((0usize..4, prop_oneof![any::<u32>(), 0u32..5000], 0usize..3000), 1..60),
    ) {
        let page = used(start);
        let (mut consumer, mut producer) = backend(&page).unwrap();
        let (mut own_cons, mut own_prod) = (start, start);
        for (index, value, len) in words {
            let offset = [IN.cons, IN.prod, OUT.cons, OUT.prod][index];
            page.atomic_u32(offset).unwrap().store(value, Ordering::Relaxed);
            let peer_prod = page.load_u32(OUT.prod).unwrap();
            let peer_cons = page.load_u32(IN.cons).unwrap();
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
        let page = Region::heap(PAGE);
        let [in_cons, in_prod, out_cons, out_prod] = if near {
            [words[0], words[0].wrapping_add(words[1] % 1100), words[2], words[2].wrapping_add(words[3] % 2200)]
        } else {
            words
        };
        for (offset, value) in [(IN.cons, in_cons), (IN.prod, in_prod), (OUT.cons, out_cons), (OUT.prod, out_prod)] {
            page.atomic_u32(offset).unwrap().store(value, Ordering::Relaxed);
        }
        let sound = in_prod.wrapping_sub(in_cons) as usize <= IN_SIZE
            && out_prod.wrapping_sub(out_cons) as usize <= OUT_SIZE;
        match backend(&page) {
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
    assert_eq!((IN.start, IN.size, IN.cons, IN.prod), (0, 1024, 3072, 3076));
    assert_eq!(
        (OUT.start, OUT.size, OUT.cons, OUT.prod),
        (1024, 2048, 3080, 3084)
    );
    assert_eq!(CONNECTION, 3088);
}

#[test]
fn every_byte_goes_to_the_place_its_index_says() {
    let (page, [_, (mut producer, _)]) = ends(u32::MAX - 2);
    producer.write(b"abcdef").unwrap();
    let mut wrapped = [0; 3];
    page.copy_out(OUT.start + OUT.size - 3, &mut wrapped)
        .unwrap();
    assert_eq!(&wrapped, b"abc");
    page.copy_out(OUT.start, &mut wrapped).unwrap();
    assert_eq!(&wrapped, b"def");
    assert_eq!(page.load_u32(OUT.prod).unwrap(), 3);
}

#[test]
fn the_frontend_says_that_nobody_serves_it_yet() {
    let page = Region::heap(PAGE);
    let _frontend = frontend(&page).unwrap();
    assert_eq!(page.load_u8(CONNECTION).unwrap(), 1);
    let _backend = backend(&page).unwrap();
    assert_eq!(page.load_u8(CONNECTION).unwrap(), 0);
}

#[test]
fn a_page_too_short_is_refused() {
    let page = Region::heap(3084);
    assert!(matches!(
        frontend(&page),
        Err(Error::Page(RegionError::OutOfRange))
    ));
    assert!(matches!(backend(&page), Err(Error::Page(_))));
}
