//! The bytes of the rings: known by their place, without being computed.

use std::sync::OnceLock;

use crate::Random;

/// Prime, so that no ring's size divides it: a byte that is a ring, or a page, too early or too
/// late is another byte.
const PERIOD: usize = 1_300_021;
/// The longest piece that is asked for.
pub(crate) const LONGEST: usize = 2 << 20;

/// `len` bytes of the stream from `position` on.
pub(crate) fn piece(position: u64, len: usize) -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut random = Random::new(7);
        let period: Vec<u8> = (0..PERIOD).map(|_| random.next() as u8).collect();
        period
            .iter()
            .copied()
            .cycle()
            .take(PERIOD + LONGEST)
            .collect()
    });
    let at = (position % PERIOD as u64) as usize;
    &table[at..at + len]
}
