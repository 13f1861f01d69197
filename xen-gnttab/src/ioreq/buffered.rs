//! The buffered requests: a ring of 511 slots, with requests of 64 bits of data in two of them.
//!
//! Xen keeps both pointers small: when the read pointer has passed the last slot, Xen subtracts the
//! same multiple of 511 from both, in one step. So this side adds to the read pointer instead of
//! storing it, and keeps only the slot in private memory.

use std::sync::atomic::{AtomicU32, Ordering};

use xen_sys::abi::ioreq::{self as abi, BufferedHead};

use super::{Access, Data, IoreqError, Request, Space};
use crate::Words;

const SLOTS: u32 = abi::IOREQ_BUFFER_SLOT_NUM as u32;
const READ: usize = 0;
const WRITE: usize = 1;
const FIRST: usize = 2;

#[derive(Debug)]
pub(super) struct Ring {
    words: Words<AtomicU32>,
    /// The slot that is read next.
    slot: u32,
    failed: bool,
}

impl Ring {
    pub(super) fn new(words: Words<AtomicU32>) -> Self {
        let mut ring = Self {
            words,
            slot: 0,
            failed: false,
        };
        ring.slot = load(&ring.words, READ) % SLOTS;
        ring
    }

    /// Returns the next request.
    pub(super) fn poll(&mut self) -> Result<Option<Request>, IoreqError> {
        if self.failed {
            return Ok(None);
        }
        let request = self.take(load);
        self.failed = request.is_err();
        request
    }

    /// Takes the next request; `load` loads each word, once.
    fn take(
        &mut self,
        mut load: impl FnMut(&[AtomicU32], usize) -> u32,
    ) -> Result<Option<Request>, IoreqError> {
        let mut load = |word| load(&self.words, word);
        let (read, write) = pointers(&mut load);
        let impossible = IoreqError::Pointers {
            slot: self.slot,
            read,
            write,
        };
        let there = write.wrapping_sub(read);
        if there > SLOTS || read % SLOTS != self.slot {
            return Err(impossible);
        }
        if there == 0 {
            return Ok(None);
        }
        let at = |slot: u32| FIRST + 2 * slot as usize;
        let head = BufferedHead(load(at(self.slot)));
        let mut data = u64::from(load(at(self.slot) + 1));
        let size = head.size();
        let slots = if size == 8 { 2 } else { 1 };
        if slots > there {
            return Err(impossible);
        }
        if slots == 2 {
            let second = at((self.slot + 1) % SLOTS);
            data |= u64::from(load(second + 1)) << 32;
        }
        let kind = head.kind();
        let space = Space::of(kind).ok_or(IoreqError::Kind { vcpu: None, kind })?;
        if let Some(pointer) = self.words.get(READ) {
            pointer.fetch_add(slots, Ordering::AcqRel);
        }
        self.slot = (self.slot + slots) % SLOTS;
        Ok(Some(Request {
            vcpu: None,
            space,
            access: match head.is_read() {
                true => Access::Read,
                false => Access::Write,
            },
            address: u64::from(head.address()),
            size,
            count: 1,
            descending: false,
            data: Data::Value(super::cut(data, size)),
        }))
    }
}

/// Loads one word, once.
fn load(words: &[AtomicU32], word: usize) -> u32 {
    let word = words.get(word);
    word.map_or(0, |word| word.load(Ordering::Acquire))
}

/// Returns both pointers as of one moment.
fn pointers(mut load: impl FnMut(usize) -> u32) -> (u32, u32) {
    let (read, write) = (load(READ), load(WRITE));
    // Only Xen makes the read pointer smaller, and not twice before more was read.
    match load(READ) {
        again if again == read => (read, write),
        again => (again, load(WRITE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Region;

    #[test]
    fn the_read_pointer_that_xen_reduces_while_a_request_is_read_stays_small() {
        // A request of two slots, at each load of which Xen may reduce both pointers.
        for reduced_at in 0..6 {
            let mut page = Region::heap(xen_sys::PAGE_SIZE);
            let words = page.take_words::<AtomicU32>(xen_sys::PAGE_SIZE / 4);
            let words = words.unwrap();
            words[READ].store(SLOTS + 3, Ordering::Relaxed);
            words[WRITE].store(SLOTS + 10, Ordering::Relaxed);
            let head = u32::from(abi::IOREQ_TYPE_COPY) | 3 << 10;
            words[FIRST + 2 * 3].store(head, Ordering::Relaxed);
            let mut ring = Ring::new(words);
            let mut loads = 0;
            let request = ring.take(|words, word| {
                if loads == reduced_at {
                    words[READ].fetch_sub(SLOTS, Ordering::Relaxed);
                    words[WRITE].fetch_sub(SLOTS, Ordering::Relaxed);
                }
                loads += 1;
                load(words, word)
            });
            assert!(matches!(request, Ok(Some(_))), "{reduced_at}: {request:?}");
            assert!(loads > reduced_at, "{loads} loads");
            let pointers = (load(&ring.words, READ), load(&ring.words, WRITE));
            assert_eq!(pointers, (5, 10), "{reduced_at}");
        }
    }

    #[test]
    fn pointers_that_xen_reduces_meanwhile_are_of_one_moment() {
        // Before, between the two, and after: each word as it is at the n-th load.
        for reduced_before in 0..4 {
            let mut loads = 0;
            let seen = pointers(|word| {
                let offset = if loads >= reduced_before { 0 } else { SLOTS };
                loads += 1;
                offset + if word == READ { 3 } else { 10 }
            });
            assert_eq!(seen.1 - seen.0, 7, "{reduced_before}: {seen:?}");
            assert_eq!(seen.0 % SLOTS, 3);
        }
    }
}
