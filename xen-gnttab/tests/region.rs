//! A region refuses everything outside its bounds, each byte has one owner, and whatever safe code
//! does with the parts at the same time is no race: `cargo miri test -p xen-gnttab --test region`
//! checks it.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};
use std::thread;

use xen_gnttab::{MAX_RANGES, PageAccess, Region, RegionError};

/// Lengths around the interesting ones.
const LENS: [usize; 7] = [0, 1, 7, 4095, 4096, 4097, 3 * 4096];

fn bytes(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0xAA; region.len()];
    region.copy_out(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn heap_is_zeroed_and_starts_at_a_page() {
    for len in LENS {
        let r = Region::heap(len);
        assert_eq!(r.len(), len);
        assert_eq!(r.is_empty(), len == 0);
        assert!(bytes(&r).iter().all(|&b| b == 0));
        assert_eq!(r.as_ptr().addr() % 4096, 0);
    }
}

#[test]
fn copies_are_exact_at_every_edge() {
    for len in LENS {
        let mut r = Region::heap(len);
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
        assert_eq!(bytes(&r), model);
    }
}

#[test]
fn an_access_partly_outside_is_refused_and_changes_nothing() {
    for len in LENS {
        let mut r = Region::heap(len);
        r.fill(0, len, 7).unwrap();
        for (offset, n) in [(len + 1, 0), (len, 1), (0, len + 1), (usize::MAX, 1)] {
            let refused = Err(RegionError::OutOfRange);
            let mut buf = vec![9u8; n];
            assert_eq!(r.copy_in(offset, &buf), refused, "{len} {offset} {n}");
            assert_eq!(r.copy_out(offset, &mut buf), refused);
            assert_eq!(r.fill(offset, n, 1), refused);
            assert!(buf.iter().all(|&b| b == 9));
        }
        for at in [len + 1, usize::MAX] {
            assert_eq!(r.split_to(at).err(), Some(RegionError::OutOfRange));
            assert_eq!(r.split_off(at).err(), Some(RegionError::OutOfRange));
            let words = r.take_words::<AtomicU8>(at);
            assert_eq!(words.err(), Some(RegionError::OutOfRange));
        }
        assert_eq!(bytes(&r), vec![7; len]);
    }
}

#[test]
fn the_parts_are_the_whole_each_with_its_own_bounds() {
    let mut whole = Region::heap(64);
    whole.copy_in(0, &(0..64).collect::<Vec<u8>>()).unwrap();
    let head = whole.split_to(16).unwrap();
    let tail = whole.split_off(8).unwrap();
    assert_eq!(bytes(&head), (0..16).collect::<Vec<u8>>());
    assert_eq!(bytes(&whole), (16..24).collect::<Vec<u8>>());
    assert_eq!(bytes(&tail), (24..64).collect::<Vec<u8>>());
    assert_eq!(whole.copy_in(1, &[0; 8]), Err(RegionError::OutOfRange));
    let mut part = whole.take();
    assert!(whole.is_empty());
    assert_eq!(whole.fill(0, 1, 0), Err(RegionError::OutOfRange));
    let rest = part.split_off(4).unwrap();
    drop((whole, head, tail, part));
    assert_eq!(bytes(&rest), [20, 21, 22, 23], "a part keeps the memory");
}

#[test]
fn words_are_checked_for_bounds_and_alignment() {
    let mut r = Region::heap(12);
    for count in [4, usize::MAX / 4, usize::MAX] {
        let refused = r.take_words::<AtomicU32>(count).err();
        assert_eq!(refused, Some(RegionError::OutOfRange), "{count}");
    }
    assert_eq!(r.len(), 12, "nothing is lost on error");
    assert_eq!(r.load_u32(6), Err(RegionError::Misaligned));
    assert_eq!(r.load_u32(12), Err(RegionError::OutOfRange));
    assert_eq!(r.load_u32(usize::MAX - 3), Err(RegionError::OutOfRange));
    let words = r.take_words::<AtomicU32>(1).unwrap();
    assert_eq!((words.len(), r.len()), (1, 8));
    assert!(words.word(0).is_some() && words.word(1).is_none());
    // At an odd address: alignment is that of the address, not of the offset.
    let byte = r.take_words::<AtomicU8>(1).unwrap();
    let refused = r.take_words::<AtomicU16>(1).err();
    assert_eq!(refused, Some(RegionError::Misaligned));
    assert_eq!(r.load_u16(0), Err(RegionError::Misaligned));
    assert_eq!(r.load_u16(1), Ok(0));
    assert_eq!(r.len(), 7);
    drop((r, words));
    byte[0].store(1, Ordering::Relaxed);
}

/// The bytes that are words of one width are neither payload nor words of another.
#[test]
fn a_byte_is_lent_at_one_width_only() {
    let mut r = Region::heap(16);
    let base = r.as_ptr().addr();
    let wide = r.take_words::<AtomicU32>(1).unwrap();
    let narrow = r.take_words::<AtomicU8>(4).unwrap();
    let at = |first: usize, count: usize| first - base..first - base + count;
    let wide_at = at(wide.as_ptr().addr(), 4 * wide.len());
    let narrow_at = at(narrow.as_ptr().addr(), narrow.len());
    let payload_at = at(r.as_ptr().addr(), r.len());
    assert_eq!([wide_at, narrow_at, payload_at], [0..4, 4..8, 8..16]);

    // All at once.
    thread::scope(|scope| {
        scope.spawn(|| narrow.iter().for_each(|b| b.store(1, Ordering::Relaxed)));
        scope.spawn(|| narrow[3].fetch_add(1, Ordering::Relaxed));
        scope.spawn(|| wide[0].store(2, Ordering::Relaxed));
        let word = wide.word(0).unwrap();
        scope.spawn(move || word.load(Ordering::Relaxed));
        scope.spawn(|| r.fill(0, 8, 3).unwrap());
    });
    assert_eq!(wide[0].load(Ordering::Relaxed), 2);
    assert_eq!(bytes(&r), [3; 8]);
}

#[test]
fn parts_are_written_by_threads_at_the_same_time() {
    let mut one = Region::heap(4096);
    let mut two = one.split_off(100).unwrap();
    let three = two.split_off(3000).unwrap();
    let other = thread::spawn(move || {
        one.copy_in(0, &[1; 100]).unwrap();
        one
    });
    two.fill(0, 3000, 2).unwrap();
    two.touch(1, 2999, 64.try_into().unwrap(), 2).unwrap();
    let one = other.join().unwrap();
    assert_eq!(bytes(&one), [1; 100]);
    assert_eq!(bytes(&two), [2; 3000]);
    assert_eq!(bytes(&three), [0; 996]);
}

#[test]
fn readers_of_every_width_share_a_region() {
    let mut r = Region::heap(64);
    r.copy_in(0, &0x0403_0201_u32.to_le_bytes()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(r.load_u32(0).map(u32::from_le), Ok(0x0403_0201)));
        scope.spawn(|| assert_eq!(r.load_u16(2).map(u16::from_le), Ok(0x0403)));
        scope.spawn(|| assert_eq!(r.load_u8(3), Ok(4)));
        assert_eq!(&bytes(&r)[..4], [1, 2, 3, 4]);
    });
}

/// A region is passed to another thread through an atomic of its own memory: copies that the order
/// of the atomic separates are not a race.
#[test]
fn an_atomic_orders_the_copies_of_two_threads() {
    let mut r = Region::heap(4096);
    let flag = r.take_words::<AtomicU32>(1).unwrap().word(0).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let theirs = flag.clone();
    let t = thread::spawn(move || {
        r.copy_in(64, &[42; 100]).unwrap();
        sender.send(r).unwrap();
        theirs.store(1, Ordering::Release);
    });
    while flag.load(Ordering::Acquire) == 0 {
        thread::yield_now();
    }
    let mut out = [0; 100];
    receiver.recv().unwrap().copy_out(64, &mut out).unwrap();
    assert_eq!(out, [42; 100]);
    t.join().unwrap();
}

#[test]
#[cfg_attr(miri, ignore = "descriptors")]
fn ranges_go_to_and_from_a_descriptor_in_order() {
    let mut r = Region::heap(32);
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
#[cfg_attr(miri, ignore = "descriptors")]
fn bad_ranges_move_nothing() {
    let mut r = Region::heap(32);
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

#[test]
#[cfg_attr(miri, ignore = "a mapping")]
fn a_file_is_mapped_and_others_see_what_is_written() {
    let path = std::env::temp_dir().join(format!("xen-gnttab-region-{}", std::process::id()));
    std::fs::write(&path, [7; 8192]).unwrap();
    let open = |write| {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(write).open(&path).unwrap()
    };
    let mut region = Region::map_file(open(true), 8192, PageAccess::ReadWrite).unwrap();
    let view = Region::map_file(open(false), 8192, PageAccess::ReadOnly).unwrap();
    region.copy_in(4095, b"ab").unwrap();
    let mut seen = [0; 4];
    view.copy_out(4094, &mut seen).unwrap();
    let longer = Region::map_file(open(true), 8193, PageAccess::ReadOnly).unwrap_err();
    assert_eq!(longer.kind(), std::io::ErrorKind::InvalidInput);
    let file = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(
        (&seen, &file[4094..4098]),
        (b"\x07ab\x07", &b"\x07ab\x07"[..])
    );
    assert!(!view.is_writable() && region.copy_in(8191, b"ab").is_err());
    let null = std::fs::File::open("/dev/null").unwrap();
    Region::map_file(null, 4096, PageAccess::ReadOnly).unwrap_err();
}
