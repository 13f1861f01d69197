//! Streams in which the byte at every position is determined by a key, as testing/c/c-vchan-peer.c
//! computes them.

use std::io::{self, Read, Write};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use xen_vchan::{Channel, Error};

/// How much is moved at a time; a multiple of eight.
const PIECE: usize = 1 << 16;

/// Eight bytes of a stream.
fn word(key: u64, index: u64) -> [u8; 8] {
    let step = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut z = key.wrapping_add(step);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

/// Bytes from a position that is a multiple of eight on.
fn fill(key: u64, position: u64, out: &mut [u8]) {
    for (i, chunk) in out.chunks_mut(8).enumerate() {
        chunk.copy_from_slice(&word(key, position / 8 + i as u64)[..chunk.len()]);
    }
}

/// The first bytes of a stream.
pub(crate) fn stream(key: u64, len: u64) -> Vec<u8> {
    let mut out = vec![0; usize::try_from(len).unwrap()];
    fill(key, 0, &mut out);
    out
}

pub(crate) fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(120))
}

/// Writes the first bytes of a stream.
pub(crate) fn send(mut out: impl Write, key: u64, bytes: u64) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    for position in (0..bytes).step_by(PIECE) {
        let len = (bytes - position).min(PIECE as u64) as usize;
        fill(key, position, &mut piece[..len]);
        out.write_all(&piece[..len])?;
    }
    out.flush()
}

/// Reads a stream, of which the bytes before `part` are known already, to the end of `part` or its
/// own, and returns where that was. Each byte is judged.
pub(crate) fn receive(mut from: impl Read, key: u64, part: Range<u64>) -> io::Result<u64> {
    let (mut seen, mut want) = (vec![0; PIECE], vec![0; PIECE + 8]);
    let mut position = part.start;
    while position < part.end {
        let most = (part.end - position).min(PIECE as u64) as usize;
        let len = from.read(&mut seen[..most])?;
        if len == 0 {
            break;
        }
        let ahead = (position % 8) as usize;
        fill(key, position - ahead as u64, &mut want[..ahead + len]);
        assert!(
            seen[..len] == want[ahead..ahead + len],
            "bytes differ in {position}..+{len}"
        );
        position += len as u64;
    }
    Ok(position)
}

/// Sends `bytes` with one key and checks as many with the other, both at once.
pub(crate) fn stream_both_ways(channel: &mut Channel, bytes: u64, send_key: u64, recv_key: u64) {
    let limit = Some(Duration::from_secs(120));
    channel.set_read_timeout(limit);
    channel.set_write_timeout(limit);
    let (rx, tx) = channel.halves();
    thread::scope(|s| {
        s.spawn(|| send(tx, send_key, bytes).unwrap());
        assert_eq!(receive(rx, recv_key, 0..bytes).unwrap(), bytes);
    });
}

/// Whether a read finds the peer gone.
pub(crate) fn assert_closed(channel: &mut Channel) {
    let gone = channel.read_deadline(&mut [0; 8], soon());
    assert!(matches!(gone, Err(Error::Closed)), "{gone:?}");
}
