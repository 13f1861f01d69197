//! The memory under a ring: typed cells and a block of bytes, over a [`Region`](xen_gnttab::Region)
//! or over loom's atomics.
//!
//! Ranges are checked when a cell is made, once; using it cannot fail.

#[cfg(loom)]
pub use model::Memory;
#[cfg(loom)]
pub(crate) use model::{Bytes, Word8, Word32};
#[cfg(not(loom))]
pub(crate) use shared::{Bytes, Word8, Word32};
#[cfg(not(loom))]
#[doc(no_inline)]
pub use xen_gnttab::Region as Memory;

/// A cache line, on most machines; no harm is done on others.
pub(crate) const LINE: u32 = 64;

#[cfg(not(loom))]
mod shared {
    use std::io;
    use std::num::NonZeroUsize;
    use std::os::fd::AsFd;

    use xen_gnttab::{Region, Word};

    use super::LINE;
    use crate::sync::{AtomicU8, AtomicU32};

    macro_rules! word {
        ($(#[$doc:meta])* $name:ident, $atomic:ident, $hold:ident) => {
            $(#[$doc])*
            #[derive(Clone, Debug)]
            pub(crate) struct $name(Word<$atomic>);

            impl $name {
                /// `None` if there is no such word, aligned and writable, in `region`.
                pub(crate) fn new(region: &Region, offset: usize) -> Option<Self> {
                    region.$hold(offset).map(Self)
                }

                #[inline]
                pub(crate) fn get(&self) -> &$atomic {
                    &self.0
                }
            }
        };
    }

    word!(
        /// A cursor.
        Word32, AtomicU32, hold_u32
    );
    word!(
        /// A notify or live byte.
        Word8, AtomicU8, hold_u8
    );

    /// The bytes of a ring.
    #[derive(Clone, Debug)]
    pub(crate) struct Bytes(Region);

    impl Bytes {
        pub(crate) fn new(region: &Region, offset: usize, len: usize) -> Option<Self> {
            Some(Self(region.slice(offset, len).ok()?))
        }

        /// Copies into the ring. The caller keeps within it; the ring of the other direction may be
        /// mapped for reading only and is never written to.
        #[inline]
        pub(crate) fn copy_in(&self, at: usize, from: &[u8]) {
            let copied = self.0.copy_in(at, from);
            debug_assert_eq!(copied, Ok(()));
        }

        /// Writes a byte that means nothing to each cache line of a part of the ring that means
        /// nothing.
        #[inline]
        pub(crate) fn touch(&self, at: usize, len: usize) {
            const STEP: NonZeroUsize = NonZeroUsize::new(LINE as usize).unwrap();
            let touched = self.0.touch(at, len, STEP, 0);
            debug_assert_eq!(touched, Ok(()));
        }

        /// Copies out of the ring. The caller keeps within it.
        #[inline]
        pub(crate) fn copy_out(&self, at: usize, to: &mut [u8]) {
            let copied = self.0.copy_out(at, to);
            debug_assert_eq!(copied, Ok(()));
        }

        /// Reads from a descriptor into the ring: `first` bytes at `at`, then `second` at its
        /// start.
        pub(crate) fn fill_from(
            &self,
            fd: impl AsFd,
            (at, first, second): (usize, usize, usize),
        ) -> io::Result<usize> {
            self.0.read_from_fd(fd, &[at..at + first, 0..second])
        }

        /// Writes to a descriptor from the ring: `first` bytes at `at`, then `second` from its
        /// start.
        pub(crate) fn drain_to(
            &self,
            fd: impl AsFd,
            (at, first, second): (usize, usize, usize),
        ) -> io::Result<usize> {
            self.0.write_to_fd(fd, &[at..at + first, 0..second])
        }
    }
}

/// The few cells that a model needs, so that loom can try every order of their accesses.
///
/// Payload bytes are relaxed atomics here: if the cursors did not order them, loom would let a
/// reader see the old ones.
#[cfg(loom)]
mod model {
    use std::sync::Arc;

    use crate::sync::{AtomicU8, AtomicU32, Ordering};

    /// Payload cells; a ring's offsets are taken modulo this.
    const DATA: usize = 4;

    /// A control page under loom, with a handful of payload bytes for both rings.
    #[derive(Clone, Debug)]
    pub struct Memory(Arc<Cells>);

    #[derive(Debug)]
    struct Cells {
        words: Vec<AtomicU32>,
        flags: Vec<AtomicU8>,
        data: Vec<AtomicU8>,
    }

    impl Memory {
        /// A zeroed page; the length is not looked at.
        #[must_use]
        pub fn heap(_len: usize) -> Self {
            Self(Arc::new(Cells {
                words: (0..4).map(|_| AtomicU32::new(0)).collect(),
                flags: (0..4).map(|_| AtomicU8::new(0)).collect(),
                data: (0..DATA).map(|_| AtomicU8::new(0)).collect(),
            }))
        }

        /// A cursor.
        #[must_use]
        pub fn atomic_u32(&self, offset: usize) -> Option<&AtomicU32> {
            self.0.words.get(offset / 4)
        }

        /// A live or notify byte.
        #[must_use]
        pub fn atomic_u8(&self, offset: usize) -> Option<&AtomicU8> {
            self.0.flags.get(offset.checked_sub(20)?)
        }
    }

    macro_rules! word {
        ($name:ident, $atomic:ident, $lend:ident) => {
            #[derive(Clone, Debug)]
            pub(crate) struct $name(Memory, usize);

            impl $name {
                pub(crate) fn new(memory: &Memory, offset: usize) -> Option<Self> {
                    memory.$lend(offset)?;
                    Some(Self(memory.clone(), offset))
                }

                pub(crate) fn get(&self) -> &$atomic {
                    match self.0.$lend(self.1) {
                        Some(word) => word,
                        None => unreachable!("checked in `new`"),
                    }
                }
            }
        };
    }
    word!(Word32, AtomicU32, atomic_u32);
    word!(Word8, AtomicU8, atomic_u8);

    #[derive(Clone, Debug)]
    pub(crate) struct Bytes(Memory);

    impl Bytes {
        pub(crate) fn new(memory: &Memory, _offset: usize, _len: usize) -> Option<Self> {
            Some(Self(memory.clone()))
        }

        pub(crate) fn copy_in(&self, at: usize, from: &[u8]) {
            for (index, byte) in from.iter().enumerate() {
                self.0.0.data[(at + index) % DATA].store(*byte, Ordering::Relaxed);
            }
        }

        /// No cache lines here.
        pub(crate) fn touch(&self, _at: usize, _len: usize) {}

        pub(crate) fn copy_out(&self, at: usize, to: &mut [u8]) {
            for (index, byte) in to.iter_mut().enumerate() {
                *byte = self.0.0.data[(at + index) % DATA].load(Ordering::Relaxed);
            }
        }
    }
}
