//! A region refuses everything outside its bounds and does what it says inside.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::thread;

use xen_gnttab::{MAX_RANGES, Region, RegionError};

/// Lengths around the interesting ones.
const LENS: [usize; 7] = [0, 1, 7, 4095, 4096, 4097, 3 * 4096];

#[test]
fn heap_is_zeroed_and_starts_at_a_page() {
    for len in LENS {
        let r = Region::heap(len);
        assert_eq!(r.len(), len);
        assert_eq!(r.is_empty(), len == 0);
        let mut bytes = vec![0xAA; len];
        r.copy_out(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&b| b == 0));
        if let Some(word) = r.atomic_u8(0) {
            assert_eq!(word.as_ptr().addr() % 4096, 0);
        }
    }
}

#[test]
fn copies_are_exact_at_every_edge() {
    for len in LENS {
        let r = Region::heap(len);
        let mut model = vec![0u8; len];
        for (offset, n) in [
            (0, len),
            (len / 2, len - len / 2),
            (len, 0),
            (0, len.min(1)),
        ] {
            let src: Vec<u8> = (0..n).map(|i| (offset + i) as u8 ^ 0x5A).collect();
            r.copy_in(offset, &src).unwrap();
            model[offset..offset + n].copy_from_slice(&src);
        }
        let mut all = vec![0; len];
        r.copy_out(0, &mut all).unwrap();
        assert_eq!(all, model);
    }
}

#[test]
fn what_is_partly_outside_is_refused_and_changes_nothing() {
    for len in LENS {
        let r = Region::heap(len);
        r.fill(0, len, 7).unwrap();
        for (offset, n) in [(len + 1, 0), (len, 1), (0, len + 1), (usize::MAX, 1)] {
            let refused = Err(RegionError::OutOfRange);
            let mut buf = vec![9u8; n];
            assert_eq!(r.copy_in(offset, &buf), refused, "{len} {offset} {n}");
            assert_eq!(r.copy_out(offset, &mut buf), refused);
            assert_eq!(r.fill(offset, n, 1), refused);
            assert_eq!(r.slice(offset, n).map(drop), refused);
            assert!(buf.iter().all(|&b| b == 9));
        }
        assert_eq!(
            r.slice(1, usize::MAX).map(drop),
            Err(RegionError::OutOfRange)
        );
        let mut all = vec![0; len];
        r.copy_out(0, &mut all).unwrap();
        assert!(all.iter().all(|&b| b == 7));
    }
}

#[test]
fn a_slice_is_a_region_with_its_own_bounds() {
    let r = Region::heap(64);
    let s = r.slice(16, 8).unwrap();
    s.copy_in(0, b"12345678").unwrap();
    assert_eq!(s.copy_in(1, b"12345678"), Err(RegionError::OutOfRange));
    let t = s.slice(4, 4).unwrap();
    drop((r, s));
    let mut out = [0; 4];
    t.copy_out(0, &mut out).unwrap();
    assert_eq!(&out, b"5678");
}

#[test]
fn words_are_checked_for_bounds_and_alignment() {
    let r = Region::heap(12);
    assert!(r.atomic_u32(8).is_some());
    assert!(r.atomic_u32(12).is_none());
    assert!(r.atomic_u32(9).is_none());
    assert!(r.atomic_u32(6).is_none());
    assert!(r.atomic_u16(10).is_some());
    assert!(r.atomic_u16(11).is_none());
    assert!(r.atomic_u8(11).is_some());
    assert!(r.atomic_u8(12).is_none());
    assert!(r.atomic_u32(usize::MAX - 3).is_none());
    assert_eq!(r.load_u32(6), Err(RegionError::Misaligned));
    assert_eq!(r.load_u32(12), Err(RegionError::OutOfRange));
    // A slice at an odd offset: alignment is that of the address, not of the offset.
    let odd = r.slice(1, 11).unwrap();
    assert_eq!(odd.load_u16(0), Err(RegionError::Misaligned));
    assert!(odd.load_u16(1).is_ok());
}

#[test]
fn words_and_copies_see_the_same_bytes() {
    let r = Region::heap(16);
    r.atomic_u32(4)
        .unwrap()
        .store(0x0403_0201, Ordering::Relaxed);
    r.atomic_u16(8).unwrap().store(0x0605, Ordering::Relaxed);
    r.atomic_u8(10).unwrap().store(7, Ordering::Relaxed);
    let mut out = [0; 7];
    r.copy_out(4, &mut out).unwrap();
    if cfg!(target_endian = "little") {
        assert_eq!(out, [1, 2, 3, 4, 5, 6, 7]);
    }
    assert_eq!(r.load_u32(4), Ok(0x0403_0201));
    assert_eq!(r.load_u16(8), Ok(0x0605));
    assert_eq!(r.load_u8(10), Ok(7));
}

#[test]
fn ranges_go_to_and_from_a_descriptor_in_order() {
    let r = Region::heap(32);
    r.copy_in(24, b"hello, w").unwrap();
    r.copy_in(0, b"orld").unwrap();
    let (mut a, mut b) = UnixStream::pair().unwrap();
    assert_eq!(r.write_to_fd(&a, &[24..32, 0..4]).unwrap(), 12);
    let mut out = [0; 12];
    b.read_exact(&mut out).unwrap();
    assert_eq!(&out, b"hello, world");

    b.write_all(b"abcdef").unwrap();
    assert_eq!(r.read_from_fd(&a, &[30..32, 0..8]).unwrap(), 6);
    let (mut tail, mut head) = ([0; 2], [0; 5]);
    r.copy_out(30, &mut tail).unwrap();
    r.copy_out(0, &mut head).unwrap();
    assert_eq!((&tail, &head), (b"ab", b"cdef\0"));

    a.shutdown(std::net::Shutdown::Write).unwrap();
    a.flush().unwrap();
    assert_eq!(
        r.read_from_fd(&b, &[0..1, 1..2]).unwrap(),
        0,
        "the end of the stream"
    );
}

#[test]
fn bad_ranges_move_nothing() {
    let r = Region::heap(32);
    let (a, mut b) = UnixStream::pair().unwrap();
    b.set_nonblocking(true).unwrap();
    #[expect(clippy::reversed_empty_ranges, reason = "a bad range is the point")]
    let reversed = 8..4;
    let bad = [
        vec![0..4, 29..33],
        vec![reversed],
        vec![0..1; MAX_RANGES + 1],
    ];
    for ranges in bad {
        let e = r.write_to_fd(&a, &ranges).unwrap_err();
        assert_eq!(e.kind(), std::io::ErrorKind::InvalidInput, "{ranges:?}");
        let e = r.read_from_fd(&a, &ranges).unwrap_err();
        assert_eq!(e.kind(), std::io::ErrorKind::InvalidInput, "{ranges:?}");
    }
    let e = b.read(&mut [0; 8]).unwrap_err();
    assert_eq!(e.kind(), std::io::ErrorKind::WouldBlock);
}

/// The copy rule between threads: copies ordered by an atomic are not a race (miri and
/// ThreadSanitizer would say so if they were).
#[test]
fn an_atomic_orders_the_copies_of_two_threads() {
    let r = Region::heap(4096);
    let writer = r.clone();
    let t = thread::spawn(move || {
        writer.copy_in(64, &[42; 100]).unwrap();
        writer.atomic_u32(0).unwrap().store(1, Ordering::Release);
    });
    while r.atomic_u32(0).unwrap().load(Ordering::Acquire) == 0 {
        thread::yield_now();
    }
    let mut out = [0; 100];
    r.copy_out(64, &mut out).unwrap();
    assert_eq!(out, [42; 100]);
    t.join().unwrap();
}
