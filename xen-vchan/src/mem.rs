//! The memory under a ring: words and a block of bytes, taken out of a
//! [`Region`](xen_gnttab::Region), or loom's atomics.
//!
//! Ranges are checked once, when the memory is divided; using a part cannot fail.

#[cfg(loom)]
pub(crate) use model::{Bytes, Control, Word8, Word32};
#[cfg(loom)]
pub use model::{ControlWords, Memory};
#[cfg(not(loom))]
pub use shared::ControlWords;
#[cfg(not(loom))]
pub(crate) use shared::{Bytes, Control, Word8, Word32};
#[cfg(not(loom))]
#[doc(no_inline)]
pub use xen_gnttab::Region as Memory;

/// A cache line on most machines; harmless on others.
pub(crate) const LINE: u32 = 64;

#[cfg(not(loom))]
mod shared {
    use std::io;
    use std::num::NonZeroUsize;
    use std::os::fd::AsFd;

    use xen_gnttab::{Region, Word, Words};

    use super::LINE;
    use crate::layout::{CLI_LIVE, GRANTS, LEFT, LEFT_ORDER};
    use crate::sync::{AtomicU8, AtomicU32};

    /// A control page, divided into its words and the rest.
    #[derive(Debug)]
    pub(crate) struct Control {
        pub(crate) words: ControlWords,
        /// All bytes behind the live and notify bytes that are left.
        rest: Region,
    }

    impl Control {
        /// Returns `None` if `page` is too short, misaligned or read-only.
        pub(crate) fn new(mut page: Region) -> Option<Self> {
            const { assert!(LEFT == 0) };
            let cursors = page.take_words(LEFT_ORDER / size_of::<u32>()).ok()?;
            // The orders, which are never read again.
            page.split_to(CLI_LIVE - LEFT_ORDER).ok()?;
            let bytes = page.take_words(GRANTS - CLI_LIVE).ok()?;
            let words = ControlWords { cursors, bytes };
            Some(Self { words, rest: page })
        }

        /// Takes the last `len` bytes, which start at `offset` of the page; nothing is left behind
        /// them.
        pub(crate) fn take(&mut self, offset: usize, len: usize) -> Option<Region> {
            let mut taken = self.rest.split_off(offset.checked_sub(GRANTS)?).ok()?;
            taken.split_to(len).ok()
        }
    }

    /// The words of a control page: cursors, live and notify bytes. Clones are the same words.
    #[derive(Clone, Debug)]
    pub struct ControlWords {
        cursors: Words<AtomicU32>,
        bytes: Words<AtomicU8>,
    }

    impl ControlWords {
        /// Returns the cursor at `offset` of the page, in bytes.
        #[must_use]
        pub fn atomic_u32(&self, offset: usize) -> Option<&AtomicU32> {
            self.cursors.get(offset / 4).filter(|_| offset % 4 == 0)
        }

        /// Returns the live or notify byte at `offset` of the page.
        #[must_use]
        pub fn atomic_u8(&self, offset: usize) -> Option<&AtomicU8> {
            self.bytes.get(offset.checked_sub(CLI_LIVE)?)
        }
    }

    /// A cursor.
    #[derive(Clone, Debug)]
    pub(crate) struct Word32(Word<AtomicU32>);

    impl Word32 {
        pub(crate) fn new(words: &ControlWords, offset: usize) -> Option<Self> {
            words.cursors.word(offset / 4).map(Self)
        }

        #[inline]
        pub(crate) fn get(&self) -> &AtomicU32 {
            &self.0
        }
    }

    /// A notify or live byte.
    #[derive(Clone, Debug)]
    pub(crate) struct Word8(Word<AtomicU8>);

    impl Word8 {
        pub(crate) fn new(words: &ControlWords, offset: usize) -> Option<Self> {
            words.bytes.word(offset.checked_sub(CLI_LIVE)?).map(Self)
        }

        #[inline]
        pub(crate) fn get(&self) -> &AtomicU8 {
            &self.0
        }
    }

    /// The bytes of a ring.
    #[derive(Debug)]
    pub(crate) struct Bytes(Region);

    impl Bytes {
        /// The first `len` bytes of `region`.
        pub(crate) fn new(mut region: Region, len: usize) -> Option<Self> {
            Some(Self(region.split_to(len).ok()?))
        }

        /// Copies into the ring. The caller stays within its bounds; the ring of the other
        /// direction may be mapped read-only and is never written to.
        #[inline]
        pub(crate) fn copy_in(&mut self, at: usize, from: &[u8]) {
            let copied = self.0.copy_in(at, from);
            debug_assert_eq!(copied, Ok(()));
        }

        /// Writes an arbitrary byte to each cache line of an unused part of the ring.
        #[inline]
        pub(crate) fn touch(&mut self, at: usize, len: usize) {
            const STEP: NonZeroUsize = NonZeroUsize::new(LINE as usize).unwrap();
            let touched = self.0.touch(at, len, STEP, 0);
            debug_assert_eq!(touched, Ok(()));
        }

        /// Copies out of the ring. The caller stays within its bounds.
        #[inline]
        pub(crate) fn copy_out(&self, at: usize, to: &mut [u8]) {
            let copied = self.0.copy_out(at, to);
            debug_assert_eq!(copied, Ok(()));
        }

        /// Reads from a descriptor into the ring: `first` bytes at `at`, then `second` at its
        /// start.
        pub(crate) fn fill_from(
            &mut self,
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
    #[derive(Debug)]
    pub struct Memory(Arc<Cells>);

    #[derive(Debug)]
    struct Cells {
        words: Vec<AtomicU32>,
        flags: Vec<AtomicU8>,
        data: Vec<AtomicU8>,
    }

    impl Memory {
        /// Creates a zeroed page; ignores the length.
        #[must_use]
        pub fn heap(_len: usize) -> Self {
            Self(Arc::new(Cells {
                words: (0..4).map(|_| AtomicU32::new(0)).collect(),
                flags: (0..4).map(|_| AtomicU8::new(0)).collect(),
                data: (0..DATA).map(|_| AtomicU8::new(0)).collect(),
            }))
        }

        /// Returns the same page for the other end: all cells are atomics.
        #[must_use]
        pub fn alias(&self) -> Self {
            Self(Arc::clone(&self.0))
        }
    }

    #[derive(Debug)]
    pub(crate) struct Control {
        pub(crate) words: ControlWords,
        page: Memory,
    }

    impl Control {
        pub(crate) fn new(page: Memory) -> Option<Self> {
            let words = ControlWords(Arc::clone(&page.0));
            Some(Self { words, page })
        }

        pub(crate) fn take(&mut self, _offset: usize, _len: usize) -> Option<Memory> {
            Some(self.page.alias())
        }
    }

    /// The words of a control page.
    #[derive(Clone, Debug)]
    pub struct ControlWords(Arc<Cells>);

    impl ControlWords {
        /// Returns a cursor.
        #[must_use]
        pub fn atomic_u32(&self, offset: usize) -> Option<&AtomicU32> {
            self.0.words.get(offset / 4)
        }

        /// Returns a live or notify byte.
        #[must_use]
        pub fn atomic_u8(&self, offset: usize) -> Option<&AtomicU8> {
            self.0.flags.get(offset.checked_sub(20)?)
        }
    }

    macro_rules! word {
        ($name:ident, $atomic:ident, $lend:ident) => {
            #[derive(Clone, Debug)]
            pub(crate) struct $name(ControlWords, usize);

            impl $name {
                pub(crate) fn new(words: &ControlWords, offset: usize) -> Option<Self> {
                    words.$lend(offset)?;
                    Some(Self(words.clone(), offset))
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

    #[derive(Debug)]
    pub(crate) struct Bytes(Memory);

    impl Bytes {
        pub(crate) fn new(memory: Memory, _len: usize) -> Option<Self> {
            Some(Self(memory))
        }

        pub(crate) fn copy_in(&mut self, at: usize, from: &[u8]) {
            for (index, byte) in from.iter().enumerate() {
                self.0.0.data[(at + index) % DATA].store(*byte, Ordering::Relaxed);
            }
        }

        /// No cache lines here.
        pub(crate) fn touch(&mut self, _at: usize, _len: usize) {}

        pub(crate) fn copy_out(&self, at: usize, to: &mut [u8]) {
            for (index, byte) in to.iter_mut().enumerate() {
                *byte = self.0.0.data[(at + index) % DATA].load(Ordering::Relaxed);
            }
        }
    }
}
