//! A keyed stream: every position holds a byte that can be computed from the key.
//!
//! ```text
//! word(i) = splitmix64's output for state key + (i + 1) * golden        bytes 8i .. 8i + 8, little endian
//! ```
//!
//! `c-vchan-peer.c` computes the same bytes, so either end can check what the other end sent, at
//! any position.

/// The bytes a key stands for, as far as they were produced or checked.
#[derive(Debug)]
pub(crate) struct Stream {
    key: u64,
    position: u64,
}

/// A byte that is not the key's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) position: u64,
    pub(crate) found: u8,
    pub(crate) expected: u8,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            position,
            found,
            expected,
        } = self;
        write!(
            f,
            "byte {position} is {found:02x} instead of {expected:02x}"
        )
    }
}

impl Stream {
    pub(crate) fn new(key: u64) -> Self {
        Self { key, position: 0 }
    }

    /// How many bytes were passed by [`advance`](Self::advance) or [`check`](Self::check).
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Writes the next bytes to `out` without passing them.
    pub(crate) fn peek(&self, out: &mut [u8]) {
        let offset = (self.position % 8) as usize;
        let mut index = self.position / 8;
        let (head, words) = out.split_at_mut(if offset == 0 {
            0
        } else {
            (8 - offset).min(out.len())
        });
        if !head.is_empty() {
            let word = word(self.key, index).to_le_bytes();
            head.copy_from_slice(&word[offset..offset + head.len()]);
            index += 1;
        }
        let mut words = words.chunks_exact_mut(8);
        for bytes in &mut words {
            bytes.copy_from_slice(&word(self.key, index).to_le_bytes());
            index += 1;
        }
        let tail = words.into_remainder();
        tail.copy_from_slice(&word(self.key, index).to_le_bytes()[..tail.len()]);
    }

    /// Passes `count` bytes.
    pub(crate) fn advance(&mut self, count: usize) {
        self.position += count as u64;
    }

    /// Compares `bytes` with the next ones and passes them.
    pub(crate) fn check(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        let mut expected = vec![0; bytes.len()];
        self.peek(&mut expected);
        if bytes != expected {
            let at = bytes
                .iter()
                .zip(&expected)
                .take_while(|(a, b)| a == b)
                .count();
            return Err(Mismatch {
                position: self.position + at as u64,
                found: bytes[at],
                expected: expected[at],
            });
        }
        self.advance(bytes.len());
        Ok(())
    }
}

fn word(key: u64, index: u64) -> u64 {
    let mut z = key.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_is_splitmix64s() {
        // The published first output of splitmix64 for seed 0.
        let mut bytes = [0; 8];
        Stream::new(0).peek(&mut bytes);
        assert_eq!(u64::from_le_bytes(bytes), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn pieces_of_any_size_are_the_same_stream() {
        let mut whole = vec![0; 1000];
        Stream::new(7).peek(&mut whole);
        for size in 1..40 {
            let mut stream = Stream::new(7);
            let mut pieces = Vec::new();
            while pieces.len() < whole.len() {
                let mut piece = vec![0; size.min(whole.len() - pieces.len())];
                stream.peek(&mut piece);
                stream.advance(piece.len());
                pieces.extend(piece);
            }
            assert_eq!(pieces, whole, "pieces of {size}");
        }
    }

    #[test]
    fn a_wrong_byte_is_found_where_it_is() {
        let mut bytes = vec![0; 100];
        Stream::new(3).peek(&mut bytes);
        let mut stream = Stream::new(3);
        stream.check(&bytes[..41]).unwrap();
        let right = bytes[77];
        bytes[77] ^= 1;
        assert_eq!(
            stream.check(&bytes[41..]),
            Err(Mismatch {
                position: 77,
                found: right ^ 1,
                expected: right
            })
        );
    }
}
