//! The control words of a region, as atomics: lent for a moment, or held.
//!
//! # Safety
//!
//! This file is not safe code because an atomic is made from an address. It rests on the premises of
//! [`region`](super), of which it is a part: what a region spans is readable memory, and writable if
//! the region says so, as long as `backing` lives; nothing but atomics refers to it.

#![allow(unsafe_code)]

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};

use super::{Backing, Region};
use crate::refused::RegionError;

/// A word of shared memory that keeps the memory: a [`Region`] of one word, whose place was checked
/// when it was made. The peer may change it at any time: load once, use the copy.
pub struct Word<A> {
    at: NonNull<A>,
    backing: Arc<Backing>,
}

// SAFETY: as for `Region`: an address and what keeps it, of which neither belongs to a thread. Through it
// there is nothing to be had but a shared reference to `A`.
unsafe impl<A: Sync> Send for Word<A> {}
// SAFETY: as for `Send`.
unsafe impl<A: Sync> Sync for Word<A> {}

impl<A> Deref for Word<A> {
    type Target = A;

    #[inline]
    fn deref(&self) -> &A {
        // SAFETY: `at` is where an atomic was lent by the region that `backing` keeps, so it is aligned and
        // valid for reads and writes (premise 1) until the result's borrow of `self` is over; other
        // references to it are shared ones of the same kind (premise 2).
        unsafe { self.at.as_ref() }
    }
}

impl<A> Clone for Word<A> {
    fn clone(&self) -> Self {
        Self {
            at: self.at,
            backing: Arc::clone(&self.backing),
        }
    }
}

impl<A: fmt::Debug> fmt::Debug for Word<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Word").field(&**self).finish()
    }
}

/// The access to one size of word.
macro_rules! words {
    ($($atomic:ident, $int:ty, $lend:ident, $load:ident, $hold:ident, $bytes:literal;)*) => { impl Region { $(
        #[doc = concat!("The word of ", $bytes, " at `offset`, as an atomic.")]
        ///
        /// `None` if it is not within the region, not aligned to its size, or the region is for
        /// reading only. The peer may change it at any time: load once, use the copy.
        #[inline]
        #[must_use]
        pub fn $lend(&self, offset: usize) -> Option<&$atomic> {
            if !self.writable {
                return None;
            }
            let word = self.word::<$int>(offset).ok()?;
            // SAFETY:
            // - `word` is aligned and valid for reads and writes: `word` checked range and
            //   alignment, and the region is writable (premise 1);
            // - it stays so for the lifetime of the result, which borrows `self` and so keeps
            //   `backing`;
            // - all access through it is atomic; a copy of this process over the same bytes is
            //   for the caller to order (the copy rule), one of the peer is outside the model.
            Some(unsafe { $atomic::from_ptr(word.as_ptr()) })
        }

        #[doc = concat!("The word of ", $bytes, " at `offset`, as an atomic that keeps the region: for")]
        /// words that are used often, since nothing is left to be checked then.
        ///
        #[doc = concat!("`None` as for [`", stringify!($lend), "`](Self::", stringify!($lend), ").")]
        #[must_use]
        pub fn $hold(&self, offset: usize) -> Option<Word<$atomic>> {
            let at = NonNull::from(self.$lend(offset)?);
            Some(Word { at, backing: Arc::clone(&self.backing) })
        }

        #[doc = concat!("The word of ", $bytes, " at `offset`, loaded once and with no ordering")]
        /// (`Relaxed`). Also of a region for reading only.
        ///
        /// # Errors
        ///
        /// [`RegionError::OutOfRange`], [`RegionError::Misaligned`].
        #[inline]
        pub fn $load(&self, offset: usize) -> Result<$int, RegionError> {
            let word = self.word::<$int>(offset)?;
            // SAFETY: `word` is aligned and valid for reads (checked by `word`, premise 1), and
            // the atomic does not outlive this statement. A relaxed load of at most four bytes
            // is allowed on memory that is mapped for reading only (std::sync::atomic,
            // "Atomic accesses to read-only memory").
            let atomic = unsafe { $atomic::from_ptr(word.as_ptr()) };
            Ok(atomic.load(Ordering::Relaxed))
        }
    )* } };
}

words! {
    AtomicU8, u8, atomic_u8, load_u8, hold_u8, "one byte";
    AtomicU16, u16, atomic_u16, load_u16, hold_u16, "two bytes";
    AtomicU32, u32, atomic_u32, load_u32, hold_u32, "four bytes";
}
