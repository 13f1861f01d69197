//! A hostile peer as a program in bytes: entry functions for a fuzzer and for
//! `tests/fuzz.rs`.
//!
//! Every input is a valid program. A finding is a panic here or in the library.
#![allow(dead_code, unused_imports, clippy::unwrap_used)]

mod channel;
mod ring;
mod sessions;

pub(crate) use channel::run as channel;
pub(crate) use ring::run as ring;
pub(crate) use sessions::run as sessions;

/// The rest of an input.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn ended(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte; zeroes after the end.
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes([(); 4].map(|()| self.byte()))
    }

    /// A length: small, or around what fits in a ring of `size`.
    fn length(&mut self, size: usize) -> usize {
        let byte = usize::from(self.byte());
        match byte {
            0..200 => byte,
            200..230 => size - 15 + (byte - 200),
            _ => (byte - 230) * size / 8,
        }
    }

    /// A plausible cursor: near one of `truths`, or anything.
    fn cursor(&mut self, truths: &[u32], size: u32) -> u32 {
        let byte = self.byte();
        let truth = truths[usize::from(byte >> 4) % truths.len()];
        match byte & 15 {
            0..=5 => truth.wrapping_add(u32::from(self.byte())),
            6 => truth.wrapping_sub(1),
            7 => truth,
            8 => truth.wrapping_add(size),
            9 => truth.wrapping_add(size + 1),
            10 => truth.wrapping_add(1 << 31),
            11 => truth.wrapping_sub(size),
            12 => u32::MAX,
            13 => 0,
            _ => self.word(),
        }
    }
}

/// Fails if a call wrote beyond the bytes it was given; checks the first ones.
fn untouched(buffer: &[u8], len: usize) {
    let end = buffer.len().min(len + 64);
    assert!(
        buffer[len..end].iter().all(|byte| *byte == 0xaa),
        "beyond the buffer"
    );
}
