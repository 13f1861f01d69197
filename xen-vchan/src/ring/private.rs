//! A private number of a half.

// Not those of `sync`: under loom each half has one thread. Miri tries several (`tests/model.rs`).
use std::sync::atomic::{AtomicU32, Ordering};

/// A private number: a plain one for a caller that holds the half exclusively, an atomic one for
/// callers that share it.
#[derive(Debug)]
pub(super) struct Private(AtomicU32);

impl Private {
    pub(super) const fn new(value: u32) -> Self {
        Self(AtomicU32::new(value))
    }

    #[inline]
    pub(super) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns a cursor of the peer. A later load of the shared cursor returns no older value,
    /// whichever thread [moved](Self::advance) it here, unless the peer moved it back.
    #[inline]
    pub(super) fn get_before_look(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    #[inline]
    pub(super) fn get_mut(&mut self) -> &mut u32 {
        self.0.get_mut()
    }

    #[inline]
    pub(super) fn set(&self, value: u32) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Moves a cursor forward to `value`, unless another thread has moved it further.
    pub(super) fn advance(&self, value: u32) {
        let ahead = |now: u32| (1..=u32::MAX / 2).contains(&value.wrapping_sub(now));
        // `Err`: it has been moved as far already.
        let _ = self
            .0
            .fetch_update(Ordering::Release, Ordering::Relaxed, |now| {
                ahead(now).then_some(value)
            });
    }
}
