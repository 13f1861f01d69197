//! The ring core beside other rings: one thread that writes and reads, and two that stream.
//!
//! `rtrb`, `ringbuf` and `crossbeam` trust both ends and need no wake-up, so each publish here pays
//! two things that theirs does not: a full barrier, and a look at the peer's requests.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::{black_box, spin_loop};
use std::thread;
use std::time::{Duration, Instant};

use benches::{check, pattern, ring};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use crossbeam::queue::ArrayQueue;
use ringbuf::traits::{Consumer as _, Producer as _, Split};

const RING: usize = 64 << 10;

/// One write and one read of the same message, all in one thread: the cost of an operation without
/// a waiter.
fn pair(c: &mut Criterion) {
    let mut group = c.benchmark_group("pair");
    for size in [16, 64, 1024, 4096] {
        group.throughput(Throughput::Bytes(size as u64));
        let bytes = pattern(size);
        let mut out = vec![0; size];

        let (mut tx, mut rx) = ring(RING);
        let mut vchan = |bytes: &[u8], out: &mut [u8]| {
            assert_eq!(tx.stage(bytes).unwrap(), bytes.len());
            let _ = black_box(tx.publish());
            rx.refresh().unwrap();
            assert_eq!(rx.take(out), out.len());
            let _ = black_box(rx.release());
        };
        check(size, 5000, &mut vchan);
        group.bench_function(BenchmarkId::new("vchan", size), |b| {
            b.iter(|| vchan(black_box(&bytes), black_box(&mut out)));
        });

        let (mut tx, mut rx) = rtrb::RingBuffer::<u8>::new(RING);
        let mut other = |bytes: &[u8], out: &mut [u8]| {
            assert!(tx.push_entire_slice(bytes).is_ok());
            assert!(rx.pop_entire_slice(out).is_ok());
        };
        check(size, 5000, &mut other);
        group.bench_function(BenchmarkId::new("rtrb", size), |b| {
            b.iter(|| other(black_box(&bytes), black_box(&mut out)));
        });

        let (mut tx, mut rx) = ringbuf::HeapRb::<u8>::new(RING).split();
        let mut other = |bytes: &[u8], out: &mut [u8]| {
            assert_eq!(tx.push_slice(bytes), bytes.len());
            assert_eq!(rx.pop_slice(out), out.len());
        };
        check(size, 5000, &mut other);
        group.bench_function(BenchmarkId::new("ringbuf", size), |b| {
            b.iter(|| other(black_box(&bytes), black_box(&mut out)));
        });

        group.bench_function(BenchmarkId::new("memcpy twice", size), |b| {
            let mut between = vec![0; size];
            b.iter(|| {
                between.copy_from_slice(black_box(&bytes));
                black_box(&mut between);
                out.copy_from_slice(&between);
                black_box(&mut out);
            });
        });
    }
    // A queue of messages, not of bytes: one size is enough to place it.
    group.throughput(Throughput::Bytes(64));
    group.bench_function(BenchmarkId::new("crossbeam ArrayQueue", 64), |b| {
        let queue = ArrayQueue::<[u8; 64]>::new(RING / 64);
        b.iter(|| {
            queue.push(black_box([7; 64])).unwrap();
            black_box(queue.pop()).unwrap();
        });
    });
    group.finish();
}

/// A stream between two threads that poll: the time for `total` bytes, the last of them checked.
fn stream(
    total: usize,
    mut write: impl FnMut(&[u8]) -> usize + Send,
    mut read: impl FnMut(&mut [u8]) -> usize + Send,
    message: usize,
) -> Duration {
    let bytes = pattern(message);
    let mut out = vec![0; 64 << 10];
    let begin = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut sent, mut at) = (0, 0);
            while sent < total {
                let did = write(&bytes[at..message.min(at + total - sent)]);
                if did == 0 {
                    spin_loop();
                }
                sent += did;
                at = (at + did) % message;
            }
        });
        let mut got = 0;
        while got < total {
            let did = read(&mut out);
            if did == 0 {
                spin_loop();
            } else {
                assert_eq!(out[0], bytes[got % message], "byte {got} is wrong");
            }
            got += did;
        }
        assert_eq!(got, total);
    });
    begin.elapsed()
}

fn streams(c: &mut Criterion) {
    let mut group = c.benchmark_group("stream");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(2));
    const TOTAL: usize = 8 << 20;
    for message in [64, 1024, 16384] {
        group.throughput(Throughput::Bytes(TOTAL as u64));
        group.bench_function(BenchmarkId::new("vchan", message), |b| {
            b.iter_custom(|rounds| {
                (0..rounds)
                    .map(|_| {
                        let (mut tx, mut rx) = ring(RING);
                        let write = move |bytes: &[u8]| {
                            let did = tx.stage(bytes).unwrap();
                            let _ = tx.publish();
                            did
                        };
                        let read = move |out: &mut [u8]| {
                            rx.refresh().unwrap();
                            let did = rx.take(out);
                            let _ = rx.release();
                            did
                        };
                        stream(TOTAL, write, read, message)
                    })
                    .sum()
            });
        });
        group.bench_function(BenchmarkId::new("rtrb", message), |b| {
            b.iter_custom(|rounds| {
                (0..rounds)
                    .map(|_| {
                        let (mut tx, mut rx) = rtrb::RingBuffer::<u8>::new(RING);
                        stream(
                            TOTAL,
                            move |bytes| tx.push_partial_slice(bytes).0.len(),
                            move |out| rx.pop_partial_slice(out).0.len(),
                            message,
                        )
                    })
                    .sum()
            });
        });
        group.bench_function(BenchmarkId::new("ringbuf", message), |b| {
            b.iter_custom(|rounds| {
                (0..rounds)
                    .map(|_| {
                        let (mut tx, mut rx) = ringbuf::HeapRb::<u8>::new(RING).split();
                        stream(
                            TOTAL,
                            move |bytes| tx.push_slice(bytes),
                            move |out| rx.pop_slice(out),
                            message,
                        )
                    })
                    .sum()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, pair, streams);
criterion_main!(benches);
