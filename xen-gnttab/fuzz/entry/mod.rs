//! A hostile peer as a program in bytes: entry functions for a fuzzer and for `tests/fuzz.rs`.
//!
//! Every input is a valid program. A finding is a panic here or in the library.
//!
//! # Safety
//!
//! This file is not safe code because the peer has the same allocation as the end under test, which
//! [`Region`] gives to one owner.
#![allow(unsafe_code)]
#![allow(dead_code, unused_imports, clippy::unwrap_used)]

mod ioreq;
mod ring;

use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) use ioreq::run as ioreq;
pub(crate) use ring::run as ring;
use xen_gnttab::{Region, Words};

/// The rest of an input; zeroes after its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn ended(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes([(); 4].map(|()| self.byte()))
    }

    /// A plausible number: near `truth`, up to `span` from it, or anything.
    fn near(&mut self, truth: u32, span: u32) -> u32 {
        match self.byte() % 12 {
            0..=3 => truth.wrapping_add(u32::from(self.byte() % 16)),
            4 => truth.wrapping_sub(1),
            5 => truth,
            6 => truth.wrapping_add(span),
            7 => truth.wrapping_add(span + 1),
            8 => truth.wrapping_sub(span),
            9 => truth.wrapping_add(1 << 31),
            10 => u32::MAX,
            _ => self.word(),
        }
    }
}

/// The peer's view of the first `words` words of `pages`, and of the bytes behind them.
fn peer(pages: &Region, words: usize) -> (Words<AtomicU32>, Region) {
    // SAFETY: one thread has both, so no two accesses are at the same time. The words are taken out
    // at one width by both ends; bytes behind them are copied only.
    let mut bytes = unsafe { pages.alias() };
    let words = bytes.take_words(words).unwrap();
    (words, bytes)
}

fn load(words: &[AtomicU32], at: usize) -> u32 {
    words[at].load(Ordering::Relaxed)
}

fn store(words: &[AtomicU32], at: usize, value: u32) {
    words[at].store(value, Ordering::Relaxed);
}
