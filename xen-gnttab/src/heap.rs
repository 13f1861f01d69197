//! Memory of this process in place of shared pages: for tests, and for rings within a program.
//!
//! # Safety
//!
//! This file is not safe code because it asks the allocator for zeroed memory that is aligned to a
//! page and to which no reference is ever made, which a `Vec` cannot be.

#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use xen_sys::PAGE_SIZE;

/// Zeroed memory from the allocator, aligned to a page.
#[derive(Debug)]
pub(crate) struct Heap {
    pub(crate) base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: memory from the allocator belongs to no thread and may be freed by any.
unsafe impl Send for Heap {}
// SAFETY: `Heap` has no methods that access the memory.
unsafe impl Sync for Heap {}

impl Heap {
    pub(crate) fn new(len: usize) -> Self {
        let Ok(layout) = Layout::from_size_align(len.max(1), PAGE_SIZE) else {
            // As std's own collections do with a size no machine has.
            handle_alloc_error(Layout::new::<u8>());
        };
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else {
            handle_alloc_error(layout)
        };
        Self { base, layout }
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: `base` came from `alloc_zeroed` with this layout and is freed once, here;
        // every region that has the address keeps this value alive.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}
