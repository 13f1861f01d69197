//! The control words of shared memory: atomics of one width, taken out of a region.
//!
//! # Safety
//!
//! This file is not safe code because atomics are made from an address. It rests on the premises of
//! [`region`](super), of which it is a part: a region spans readable memory, and writable memory if
//! it is marked so, while `backing` lives, and no other value has those bytes.

#![allow(unsafe_code)]

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};

use super::{Backing, Region};
use crate::error::RegionError;

mod sealed {
    pub trait Sealed {}
}

/// The atomics of which [`Words`] can be made: those of one, two and four bytes.
pub trait Atomic: sealed::Sealed + Send + Sync + 'static {}

macro_rules! atomic {
    ($($atomic:ident),*) => { $(
        impl sealed::Sealed for $atomic {}
        impl Atomic for $atomic {}
    )* };
}
atomic!(AtomicU8, AtomicU16, AtomicU32);

/// Words of shared memory, of one width: a slice of atomics that keeps the memory.
///
/// Clones are the same words. The peer may change a word at any time: load once, use the copy.
pub struct Words<A> {
    at: NonNull<A>,
    count: usize,
    backing: Arc<Backing>,
}

// SAFETY: as for `Region`: an address and the owner of the memory, neither of which belongs to a
// thread. Access is by shared references to `A` only.
unsafe impl<A: Sync> Send for Words<A> {}
// SAFETY: as for `Send`.
unsafe impl<A: Sync> Sync for Words<A> {}

impl<A> Words<A> {
    /// Returns the word with this number. For code that uses only one word: that word needs no
    /// range check later.
    #[must_use]
    pub fn word(&self, index: usize) -> Option<Word<A>> {
        let at = NonNull::from(self.get(index)?);
        let backing = Arc::clone(&self.backing);
        Some(Word { at, backing })
    }
}

impl<A> Deref for Words<A> {
    type Target = [A];

    #[inline]
    fn deref(&self) -> &[A] {
        // SAFETY: `take_words` checked that `at` is aligned and begins `count` words of a writable
        // region, which `backing` keeps (premise 1) until the result's borrow of `self` is over. An
        // `A` is an atomic: any bytes are one, and a shared reference allows others to write. The
        // bytes left the region then, so within this process everybody has them as `A` (premise 3).
        unsafe { slice::from_raw_parts(self.at.as_ptr(), self.count) }
    }
}

impl<A> Clone for Words<A> {
    fn clone(&self) -> Self {
        Self {
            at: self.at,
            count: self.count,
            backing: Arc::clone(&self.backing),
        }
    }
}

impl<A: fmt::Debug> fmt::Debug for Words<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Words").field(&&**self).finish()
    }
}

/// One of the [`Words`]: an atomic that keeps the memory. Clones are the same word.
pub struct Word<A> {
    at: NonNull<A>,
    backing: Arc<Backing>,
}

// SAFETY: as for `Words`.
unsafe impl<A: Sync> Send for Word<A> {}
// SAFETY: as for `Words`.
unsafe impl<A: Sync> Sync for Word<A> {}

impl<A> Deref for Word<A> {
    type Target = A;

    #[inline]
    fn deref(&self) -> &A {
        // SAFETY: `at` is one of the atomics of `Words`, whose memory `backing` keeps, so it is
        // aligned and valid for reads and writes until the result's borrow of `self` is over;
        // within this process everybody has these bytes as the same `A` (premise 3).
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

impl Region {
    /// Takes the first `count` words out, as atomics; the region keeps the bytes behind them.
    ///
    /// # Errors
    ///
    /// [`RegionError::OutOfRange`], [`RegionError::Misaligned`] for the first word's address,
    /// [`RegionError::ReadOnly`]: an atomic can always be stored to. Nothing was taken.
    pub fn take_words<A: Atomic>(&mut self, count: usize) -> Result<Words<A>, RegionError> {
        let len = count.checked_mul(size_of::<A>());
        let at = self
            .at_mut(0, len.ok_or(RegionError::OutOfRange)?)?
            .cast::<A>();
        if !at.is_aligned() {
            return Err(RegionError::Misaligned);
        }
        // Premise 3: the bytes leave the region.
        let taken = self.split_to(count * size_of::<A>())?;
        Ok(Words {
            at,
            count,
            backing: taken.backing,
        })
    }

    /// Returns the address of a `T` at `offset`, checked for range and alignment.
    #[inline]
    fn word<T>(&self, offset: usize) -> Result<NonNull<T>, RegionError> {
        let at = self.at(offset, size_of::<T>())?.cast::<T>();
        if at.is_aligned() {
            Ok(at)
        } else {
            Err(RegionError::Misaligned)
        }
    }
}

/// Defines one load of each size.
macro_rules! load {
    ($($atomic:ident, $int:ty, $load:ident, $bytes:literal;)*) => { impl Region { $(
        #[doc = concat!("Loads ", $bytes, " at `offset` in one access without ordering (`Relaxed`). The peer may")]
        /// write there at any time: use the copy. Also of a region for reading only.
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
            // "Atomic accesses to read-only memory"). Nobody in this process writes the bytes
            // meanwhile (premise 3, `&self`), and reads of other widths are no race.
            let atomic = unsafe { $atomic::from_ptr(word.as_ptr()) };
            Ok(atomic.load(Ordering::Relaxed))
        }
    )* } };
}

load! {
    AtomicU8, u8, load_u8, "the byte";
    AtomicU16, u16, load_u16, "the two bytes";
    AtomicU32, u32, load_u32, "the four bytes";
}
