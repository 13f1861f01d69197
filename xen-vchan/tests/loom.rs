//! Every interleaving and every reordering the memory model allows, tried by loom.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p xen-vchan --release --test loom
//! ```
//!
//! A lost wake-up shows as a deadlock, bytes that are not ordered by the cursors as wrong bytes.
//! Each fence in `ring/` was removed in turn to see a model fail; which one fails for which fence
//! is in `docs/xen-vchan.md`.
#![cfg(loom)]
#![allow(clippy::unwrap_used)]

mod delivery;
mod page;

use loom::sync::atomic::{AtomicBool, Ordering, fence};
use loom::sync::{Arc, Notify};
use loom::thread;
use page::{CLI_NOTIFY, LEFT_CONS, LEFT_PROD, READ, SRV_NOTIFY, WRITE};
use xen_vchan::Geometry;
use xen_vchan::ring::{Consumer, ControlWords, Producer, Role};

fn geometry() -> Geometry {
    Geometry::new(10, 11).unwrap()
}

/// The ring from client to server, with both its cursors at 0, and its words.
fn left() -> (Producer, Consumer, ControlWords) {
    let [client, server] = page::pair(geometry(), 0, 0);
    let words = client.words().clone();
    let (tx, _) = client.attach(Role::Client).unwrap();
    let (_, rx) = server.attach(Role::Server).unwrap();
    (tx, rx, words)
}

/// The same, full of zeroes.
fn full() -> (Producer, Consumer, ControlWords) {
    let [client, server] = page::pair(geometry(), 0, 0);
    let words = client.words().clone();
    page::poke(&words, LEFT_PROD, 1024);
    let (tx, _) = client.attach(Role::Client).unwrap();
    let (_, rx) = server.attach(Role::Server).unwrap();
    (tx, rx, words)
}

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // Enough for every order of the few accesses each side makes; unbounded takes hours.
    builder.preemption_bound = Some(4);
    builder.check(test);
}

/// Reads one byte, asleep when there is none.
fn receive(rx: &mut Consumer, bell: &Notify) -> (u8, bool) {
    loop {
        if rx.known_ready() == 0 && rx.refresh().unwrap() == 0 {
            rx.request();
            if rx.refresh().unwrap() == 0 {
                bell.wait();
                continue;
            }
        }
        let mut byte = [0];
        assert_eq!(rx.take(&mut byte), 1);
        return (byte[0], rx.release());
    }
}

/// Writes one byte, asleep while there is no room; `on_room` runs before anything is published.
fn send_with(tx: &mut Producer, byte: u8, bell: &Notify, on_room: impl Fn()) -> bool {
    loop {
        if tx.stage(&[byte]).unwrap() == 1 {
            break;
        }
        tx.request();
        if tx.stage(&[byte]).unwrap() == 1 {
            break;
        }
        bell.wait();
    }
    on_room();
    tx.publish()
}

fn send(tx: &mut Producer, byte: u8, bell: &Notify) -> bool {
    send_with(tx, byte, bell, || ())
}

#[test]
fn a_sleeping_reader_is_woken_and_sees_the_bytes() {
    model(|| {
        let (mut tx, mut rx, _) = left();
        let bell = Arc::new(Notify::new());
        let reader = {
            let bell = bell.clone();
            thread::spawn(move || {
                assert_eq!(receive(&mut rx, &bell).0, 41);
                assert_eq!(receive(&mut rx, &bell).0, 42);
            })
        };
        for byte in [41, 42] {
            assert_eq!(tx.stage(&[byte]).unwrap(), 1);
            if tx.publish() {
                bell.notify();
            }
        }
        reader.join().unwrap();
    });
}

/// The canary is a plain (relaxed) flag that the reader sets between copying out and releasing: a
/// writer that found room must see it, or it could overwrite bytes still being read.
#[test]
fn a_sleeping_writer_is_woken_and_may_overwrite() {
    model(|| {
        let (mut tx, mut rx, _) = full();
        let bell = Arc::new(Notify::new());
        let canary = Arc::new(AtomicBool::new(false));
        let writer = {
            let (bell, canary) = (bell.clone(), canary.clone());
            thread::spawn(move || {
                send_with(&mut tx, 8, &bell, || {
                    assert!(
                        canary.load(Ordering::Relaxed),
                        "room before the copy was done"
                    );
                });
            })
        };
        assert_eq!(rx.refresh().unwrap(), 1024);
        let mut byte = [0];
        assert_eq!(rx.take(&mut byte), 1);
        assert_eq!(byte, [0]);
        canary.store(true, Ordering::Relaxed);
        if rx.release() {
            bell.notify();
        }
        writer.join().unwrap();
        rx.skip();
        let _ = rx.release();
        assert_eq!(rx.refresh().unwrap(), 1);
        assert_eq!(rx.take(&mut byte), 1);
        assert_eq!(byte, [8]);
    });
}

#[test]
fn both_directions_share_the_notify_bytes_without_losing_a_request() {
    model(|| {
        let [client, server] = page::pair(geometry(), 0, 0);
        let (mut client_tx, mut client_rx) = client.attach(Role::Client).unwrap();
        let (mut server_tx, mut server_rx) = server.attach(Role::Server).unwrap();
        let (to_server, to_client) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let server = {
            let (to_server, to_client) = (to_server.clone(), to_client.clone());
            thread::spawn(move || {
                let (byte, wake) = receive(&mut server_rx, &to_server);
                if wake {
                    to_client.notify();
                }
                if send(&mut server_tx, byte + 1, &to_server) {
                    to_client.notify();
                }
            })
        };
        if send(&mut client_tx, 1, &to_client) {
            to_server.notify();
        }
        let (byte, wake) = receive(&mut client_rx, &to_client);
        assert_eq!(byte, 2);
        if wake {
            to_server.notify();
        }
        server.join().unwrap();
    });
}

/// A last byte before death: the live byte read as «gone» comes after everything written.
#[test]
fn what_was_written_before_death_is_found_after_it() {
    model(|| {
        let (mut tx, mut rx, _) = left();
        let live = Arc::new(AtomicBool::new(true));
        let writer = {
            let live = live.clone();
            thread::spawn(move || {
                assert_eq!(tx.stage(&[9]).unwrap(), 1);
                let _ = tx.publish();
                live.store(false, Ordering::Release);
            })
        };
        // As `ReadHalf::look`: cursor, live byte, and the cursor again if the byte reads gone.
        let before = rx.refresh().unwrap();
        if !live.load(Ordering::Acquire) {
            assert_eq!(rx.refresh().unwrap(), 1);
        } else {
            assert!(before <= 1);
        }
        writer.join().unwrap();
    });
}

/// libxenvchan's writer: barrier, then an unconditional atomic AND on the notify byte.
#[test]
fn a_c_writer_wakes_our_reader() {
    model(|| {
        let (_, mut rx, page) = left();
        let bell = Arc::new(Notify::new());
        let reader = {
            let bell = bell.clone();
            thread::spawn(move || assert_eq!(receive(&mut rx, &bell).0, 0))
        };
        // Payload and barrier before the cursor are not modelled: x86 keeps stores in order.
        page.atomic_u32(LEFT_PROD)
            .unwrap()
            .store(1, Ordering::Release);
        fence(Ordering::SeqCst);
        let asked = page
            .atomic_u8(CLI_NOTIFY)
            .unwrap()
            .fetch_and(!WRITE, Ordering::SeqCst);
        if asked & WRITE != 0 {
            bell.notify();
        }
        reader.join().unwrap();
    });
}

/// libxenvchan's reader: atomic OR, barrier, look again; woken by our publish.
#[test]
fn our_writer_wakes_a_c_reader() {
    model(|| {
        let (mut tx, _, page) = left();
        let bell = Arc::new(Notify::new());
        let reader = {
            let (page, bell) = (page.clone(), bell.clone());
            thread::spawn(move || {
                let prod = || page.atomic_u32(LEFT_PROD).unwrap().load(Ordering::Relaxed);
                loop {
                    page.atomic_u8(CLI_NOTIFY)
                        .unwrap()
                        .fetch_or(WRITE, Ordering::SeqCst);
                    fence(Ordering::SeqCst);
                    if prod() == 1 {
                        break;
                    }
                    bell.wait();
                }
            })
        };
        assert_eq!(tx.stage(&[1]).unwrap(), 1);
        if tx.publish() {
            bell.notify();
        }
        reader.join().unwrap();
    });
}

/// libxenvchan's writer on a full ring, woken by our release.
#[test]
fn our_reader_wakes_a_c_writer() {
    model(|| {
        let (_, mut rx, page) = full();
        let bell = Arc::new(Notify::new());
        let writer = {
            let (page, bell) = (page.clone(), bell.clone());
            thread::spawn(move || {
                let cons = || page.atomic_u32(LEFT_CONS).unwrap().load(Ordering::Relaxed);
                loop {
                    page.atomic_u8(SRV_NOTIFY)
                        .unwrap()
                        .fetch_or(READ, Ordering::SeqCst);
                    fence(Ordering::SeqCst);
                    if cons() != 0 {
                        break;
                    }
                    bell.wait();
                }
            })
        };
        assert_eq!(rx.refresh().unwrap(), 1024);
        assert_eq!(rx.take(&mut [0]), 1);
        if rx.release() {
            bell.notify();
        }
        writer.join().unwrap();
    });
}

/// libxenvchan's reader frees space; our writer sleeps for it.
#[test]
fn a_c_reader_wakes_our_writer() {
    model(|| {
        let (mut tx, _, page) = full();
        let bell = Arc::new(Notify::new());
        let writer = {
            let bell = bell.clone();
            thread::spawn(move || {
                send(&mut tx, 2, &bell);
            })
        };
        page.atomic_u32(LEFT_CONS)
            .unwrap()
            .store(1, Ordering::Release);
        fence(Ordering::SeqCst);
        let asked = page
            .atomic_u8(SRV_NOTIFY)
            .unwrap()
            .fetch_and(!READ, Ordering::SeqCst);
        if asked & READ != 0 {
            bell.notify();
        }
        writer.join().unwrap();
    });
}
