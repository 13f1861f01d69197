//! The buffered requests: a ring of 511 slots, with requests of 64 bits of data in two of them.
//!
//! Xen keeps both pointers small: when the read pointer has passed the last slot, it takes the same
//! multiple of 511 from both, in one step. So this side adds to the read pointer instead of storing
//! it, and knows by itself only the slot.

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
        ring.slot = ring.load(READ) % SLOTS;
        ring
    }

    /// One word, loaded once.
    fn load(&self, word: usize) -> u32 {
        let word = self.words.get(word);
        word.map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// The next request.
    pub(super) fn poll(&mut self) -> Result<Option<Request>, IoreqError> {
        if self.failed {
            return Ok(None);
        }
        let request = self.take();
        self.failed = request.is_err();
        request
    }

    fn take(&mut self) -> Result<Option<Request>, IoreqError> {
        let (read, write) = pointers(|word| self.load(word));
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
        let head = BufferedHead(self.load(at(self.slot)));
        let mut data = u64::from(self.load(at(self.slot) + 1));
        let size = head.size();
        let slots = if size == 8 { 2 } else { 1 };
        if slots > there {
            return Err(impossible);
        }
        if slots == 2 {
            let second = at((self.slot + 1) % SLOTS);
            data |= u64::from(self.load(second + 1)) << 32;
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

/// Both pointers of one moment.
fn pointers(mut load: impl FnMut(usize) -> u32) -> (u32, u32) {
    let (read, write) = (load(READ), load(WRITE));
    // Nobody but Xen makes the read pointer smaller, and not twice before more was read.
    match load(READ) {
        again if again == read => (read, write),
        again => (again, load(WRITE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
