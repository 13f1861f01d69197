//! Hypercall buffers, kept for the next call.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use crate::mmap::HypercallBuffer;
use crate::{DevRoot, PAGE_SIZE, Result};

/// Buffers kept: as many as most programs have calls at the same time.
const KEPT: usize = 8;
/// The largest buffer kept, in bytes.
const KEPT_LEN: usize = 16 * PAGE_SIZE;

/// Buffers that are not in use.
///
/// Making one costs an open, a map and a close; taking one costs a lock.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<HypercallBuffer>>);

impl Pool {
    /// The smallest buffer with `len` bytes; a new one if there is none.
    pub(super) fn take(&self, root: &DevRoot, len: usize) -> Result<Buffer<'_>> {
        let kept = {
            // A panic elsewhere leaves buffers that are still buffers.
            let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let fits = free.iter().enumerate().filter(|(_, b)| b.len() >= len);
            let best = fits.min_by_key(|(_, b)| b.len()).map(|(i, _)| i);
            best.map(|i| free.swap_remove(i))
        };
        let buffer = match kept {
            Some(buffer) => buffer,
            None => HypercallBuffer::new(root, len)?,
        };
        Ok(Buffer {
            pool: self,
            buffer: Some(buffer),
        })
    }

    fn give_back(&self, buffer: HypercallBuffer) {
        if buffer.len() > KEPT_LEN {
            return;
        }
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT {
            free.push(buffer);
        }
    }
}

/// Memory that Xen can reach, lent by a [`Privcmd`](super::Privcmd) until it is dropped.
///
/// It stays mapped when the value is dropped or forgotten: its address is never that of other
/// memory while a call with it lasts, whatever happens to the caller.
#[doc(alias = "xencall_alloc_buffer")]
#[doc(alias = "xencall_alloc_buffer_pages")]
#[doc(alias = "xencall_free_buffer")]
#[doc(alias = "xencall_free_buffer_pages")]
#[derive(Debug)]
pub struct Buffer<'p> {
    pool: &'p Pool,
    /// `None` only while it is dropped.
    buffer: Option<HypercallBuffer>,
}

impl Deref for Buffer<'_> {
    type Target = HypercallBuffer;

    #[allow(clippy::expect_used, reason = "taken by `drop` only")]
    fn deref(&self) -> &HypercallBuffer {
        self.buffer.as_ref().expect("a buffer that is not dropped")
    }
}

impl DerefMut for Buffer<'_> {
    #[allow(clippy::expect_used, reason = "taken by `drop` only")]
    fn deref_mut(&mut self) -> &mut HypercallBuffer {
        self.buffer.as_mut().expect("a buffer that is not dropped")
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.pool.give_back(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> (Pool, DevRoot) {
        (Pool::default(), DevRoot::at("/nonexistent"))
    }

    #[test]
    fn a_buffer_is_used_again_and_two_at_once_are_two() {
        let (pool, root) = pool();
        let mut first = pool.take(&root, 1).unwrap();
        let address = first.as_ptr();
        let mut second = pool.take(&root, 1).unwrap();
        assert_ne!(second.as_ptr(), address);
        drop(first);
        assert_eq!(pool.take(&root, PAGE_SIZE).unwrap().as_ptr(), address);
    }

    #[test]
    fn a_caller_that_panics_gives_its_buffer_back_mapped() {
        let (pool, root) = pool();
        let mut address = None;
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut buffer = pool.take(&root, 1).unwrap();
            address = Some(buffer.as_ptr());
            panic!("in the middle of a call");
        }));
        assert!(panicked.is_err());
        let mut again = pool.take(&root, 1).unwrap();
        assert_eq!(Some(again.as_ptr()), address);
        again.bytes_mut()[0] = 1;
    }

    #[test]
    fn a_larger_buffer_is_not_spent_on_a_small_call_and_the_pool_is_bounded() {
        let (pool, root) = pool();
        let large = pool.take(&root, 4 * PAGE_SIZE).unwrap();
        let small = pool.take(&root, 1).unwrap();
        drop((large, small));
        assert_eq!(pool.take(&root, 1).unwrap().len(), PAGE_SIZE);
        let many: Vec<_> = (0..2 * KEPT).map(|_| pool.take(&root, 1)).collect();
        drop(many);
        drop(pool.take(&root, KEPT_LEN + 1).unwrap());
        let kept = pool.0.into_inner().unwrap();
        assert_eq!(kept.len(), KEPT);
        assert!(kept.iter().all(|b| b.len() <= KEPT_LEN));
    }
}
