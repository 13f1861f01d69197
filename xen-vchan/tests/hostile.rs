//! The other domain writes what it likes into the shared page, at any time.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

mod page;

use std::sync::atomic::{AtomicBool, Ordering};

use page::{LEFT_CONS, LEFT_PROD, RIGHT_CONS, RIGHT_PROD, peek, poke};
use proptest::prelude::*;
use xen_vchan::ring::{Consumer, ControlWords, Producer, Role};
use xen_vchan::{Geometry, Violation};

/// Size of the ring the server reads: order 10.
const LEFT: u32 = 1024;
/// Size of the ring the server writes: order 11.
const RIGHT: u32 = 2048;

/// A server's halves and the page its client can scribble on.
fn server() -> (Producer, Consumer, ControlWords) {
    let (rings, control) = page::rings(Geometry::new(10, 11).unwrap());
    let (tx, rx) = rings.attach(Role::Server).unwrap();
    (tx, rx, control)
}

#[test]
fn a_producer_beyond_the_ring_is_reported_with_its_numbers_for_ever() {
    let (_, mut rx, control) = server();
    poke(&control, LEFT_PROD, LEFT + 1);
    let expected = Violation::Producer {
        prod: LEFT + 1,
        last: 0,
        cons: 0,
        size: LEFT,
    };
    assert_eq!(rx.refresh(), Err(expected));
    poke(&control, LEFT_PROD, 10);
    assert_eq!(rx.refresh(), Err(expected), "a violation is sticky");
    assert_eq!(rx.take(&mut [0; 64]), 0);
}

#[test]
fn a_producer_that_takes_bytes_back_is_reported() {
    let (_, mut rx, control) = server();
    poke(&control, LEFT_PROD, 100);
    assert_eq!(rx.refresh(), Ok(100));
    poke(&control, LEFT_PROD, 99);
    assert_eq!(
        rx.refresh(),
        Err(Violation::Producer {
            prod: 99,
            last: 100,
            cons: 0,
            size: LEFT
        })
    );
}

#[test]
fn a_consumer_that_read_what_was_not_written_is_reported() {
    let (mut tx, _, control) = server();
    assert_eq!(tx.stage(&[7; 100]), Ok(100));
    let _ = tx.publish();
    poke(&control, RIGHT_CONS, 101);
    let expected = Violation::Consumer {
        cons: 101,
        last: 0,
        prod: 100,
        size: RIGHT,
    };
    assert_eq!(tx.refresh(), Err(expected));
    poke(&control, RIGHT_CONS, 0);
    assert_eq!(tx.stage(&[7; 1]), Err(expected), "a violation is sticky");
}

#[test]
fn a_consumer_that_goes_back_is_reported() {
    let (mut tx, _, control) = server();
    assert_eq!(tx.stage(&[7; 100]), Ok(100));
    let _ = tx.publish();
    poke(&control, RIGHT_CONS, 60);
    assert_eq!(tx.refresh(), Ok(RIGHT - 40));
    poke(&control, RIGHT_CONS, 59);
    assert_eq!(
        tx.refresh(),
        Err(Violation::Consumer {
            cons: 59,
            last: 60,
            prod: 100,
            size: RIGHT
        })
    );
}

#[test]
fn staged_bytes_cannot_be_consumed() {
    let (mut tx, _, control) = server();
    assert_eq!(tx.stage(&[7; 100]), Ok(100));
    poke(&control, RIGHT_CONS, 1);
    assert!(matches!(
        tx.refresh(),
        Err(Violation::Consumer {
            cons: 1,
            prod: 0,
            ..
        })
    ));
}

#[test]
fn own_cursors_rewritten_by_the_peer_change_nothing() {
    let (mut tx, mut rx, control) = server();
    assert_eq!(tx.stage(b"first"), Ok(5));
    let _ = tx.publish();
    poke(&control, RIGHT_PROD, 0xdead_beef);
    assert_eq!(tx.stage(b"second"), Ok(6));
    let _ = tx.publish();
    assert_eq!(peek(&control, RIGHT_PROD), 11);

    poke(&control, LEFT_PROD, 8);
    assert_eq!(rx.refresh(), Ok(8));
    poke(&control, LEFT_CONS, 0xdead_beef);
    assert_eq!(rx.take(&mut [0; 4]), 4);
    let _ = rx.release();
    assert_eq!(peek(&control, LEFT_CONS), 4);
}

#[test]
fn cursors_too_far_apart_are_refused_at_connection() {
    let attach = |prod| {
        let (rings, control) = page::rings(Geometry::new(10, 11).unwrap());
        poke(&control, LEFT_CONS, 5);
        poke(&control, LEFT_PROD, prod);
        let (tx, _) = rings.attach(Role::Client)?;
        Ok(tx.known_space())
    };
    assert_eq!(
        attach(5 + LEFT + 1),
        Err(Violation::Attach {
            prod: 5 + LEFT + 1,
            cons: 5,
            size: LEFT
        })
    );
    assert_eq!(attach(5 + LEFT), Ok(0));
}

proptest! {
    /// Any values in any of the shared words between any two calls: no panic, and never a byte more
    /// than can be there.
    #[test]
    fn any_scribbling_is_survived(
        steps in prop::collection::vec((0usize..20, any::<u32>(), 0usize..5000, 0u8..6), 1..100),
    ) {
        let (mut tx, mut rx, control) = server();
        let mut buf = vec![0; 5000];
        for (at, value, len, call) in steps {
            if at < 16 {
                // Near misses are more interesting than noise.
                let value = if value % 3 == 0 { value % 4096 } else { value };
                poke(&control, at & !3, value);
            } else {
                control.atomic_u8(at + 4).unwrap().store(value as u8, Ordering::Relaxed);
            }
            match call {
                0 => if let Ok(did) = tx.stage(&buf[..len]) { prop_assert!(did <= RIGHT as usize) },
                1 => { let _ = tx.publish(); }
                2 => if let Ok(ready) = rx.refresh() { prop_assert!(ready <= LEFT) },
                3 => prop_assert!(rx.take(&mut buf[..len]) <= LEFT as usize),
                4 => { let _ = rx.release(); }
                _ => { tx.request(); rx.request(); }
            }
        }
    }
}

#[test]
fn a_peer_scribbling_all_the_while_is_survived() {
    let (mut tx, mut rx, control) = server();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut noise = 1u32;
            while !stop.load(Ordering::Relaxed) {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (noise >> 28) as usize;
                poke(&control, at & !3, noise >> (noise % 23));
                control
                    .atomic_u8(20 + (at & 3))
                    .unwrap()
                    .store(noise as u8, Ordering::Relaxed);
            }
        });
        let mut buf = [0; 3000];
        let mut ended = (false, false);
        for round in 0..200_000 {
            match tx.stage(&buf[..round % 3000]) {
                Ok(_) => assert!(!ended.0, "a violation is sticky"),
                Err(_) => ended.0 = true,
            }
            let _ = tx.publish();
            match rx.refresh() {
                Ok(ready) => assert!(ready <= LEFT && !ended.1),
                Err(_) => ended.1 = true,
            }
            assert!(rx.take(&mut buf) <= LEFT as usize);
            let _ = rx.release();
        }
        stop.store(true, Ordering::Relaxed);
    });
}
