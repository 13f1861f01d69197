//! The ring's page, as words.
//!
//! # Safety
//!
//! This file is not safe code because atomics are made from an address. The page is a mapping that
//! belongs to the value, whole, readable, writable and aligned to a page; every access in this
//! process is by these atomics, through which Xen and a domain may change the words at any time.

#![allow(unsafe_code)]

#[cfg(test)]
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use crate::PAGE_SIZE;
use crate::privcmd::ForeignPages;

/// Words in a page.
pub(super) const WORDS: usize = PAGE_SIZE / 4;

/// The words of a page.
pub(super) type Words = [AtomicU32; WORDS];

/// One page that Xen writes to.
#[derive(Debug)]
pub(super) enum RingPage {
    /// Mapped from the guest.
    Foreign(ForeignPages),
    /// Memory of this process, shared with a test.
    #[cfg(test)]
    Private(Arc<Words>),
}

impl RingPage {
    /// Takes a mapping; `None` unless it is one page that was mapped.
    pub(super) fn foreign(mapped: ForeignPages) -> Option<Self> {
        let whole = mapped.pages.len() >= PAGE_SIZE && mapped.errors == [0];
        whole.then_some(Self::Foreign(mapped))
    }

    pub(super) fn words(&self) -> &Words {
        match self {
            // SAFETY: `foreign` saw that the mapping is a page long and that the page is mapped;
            // `Guest::map_frames` is asked for `ReadWrite`; `mmap` aligns to a page. The mapping
            // lives while `self` is borrowed. Any bytes are an atomic, a shared reference to which
            // allows others to write, and nobody in this process has the bytes as anything else:
            // the `Pages` are private to this value.
            Self::Foreign(mapped) => unsafe { mapped.pages.as_ptr().cast::<Words>().as_ref() },
            #[cfg(test)]
            Self::Private(words) => words,
        }
    }
}
