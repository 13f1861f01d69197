//! The page of a PV console: two byte rings, of which each end fills one and empties the other.
//!
//! ```text
//!   byte     0             1024                     3072      3076      3080       3084       3088
//!            ├─ in, 1 KiB ─┼─ out, 2 KiB ───────────┤ in_cons │ in_prod │ out_cons │ out_prod │ connection
//!   filled   by the backend  by the frontend
//! ```
//!
//! The four indices run freely and wrap at 2³²; a byte's place is its index modulo the ring's size.
//! An end writes one index of each ring and reads the other:
//!
//! | | `in` | `out` |
//! |---|---|---|
//! | frontend | [`Consumer`] | [`Producer`] |
//! | backend | [`Producer`] | [`Consumer`] |
//!
//! # Guarantees
//!
//! The end's own index lives in private memory; it is written to the page for the peer and never
//! read back. The peer's index is loaded once for each call, its distance from ours is checked
//! against the size of the ring, and only the copy is used: whatever the page holds, no call reads
//! or writes outside of it, and an impossible distance is an [`Error::Indices`]. The bytes are the
//! peer's choice.
//!
//! The index that publishes bytes (or room) is stored with release and loaded with acquire. No
//! field of this protocol states whether the peer needs a notification: notify after every call
//! that moved something.
//!
//! Layout: `struct xencons_interface` of Xen's public/io/console.h.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use xen_gnttab::{Region, RegionError, Word, Words};

/// Bytes in the ring from the backend to the frontend.
pub const IN_SIZE: usize = 1024;
/// Bytes in the ring from the frontend to the backend.
pub const OUT_SIZE: usize = 2048;

/// The page, taken apart.
#[derive(Debug)]
struct Page {
    input: Region,
    output: Region,
    /// `in_cons`, `in_prod`, `out_cons`, `out_prod`.
    indices: Words<AtomicU32>,
    connection: Word<AtomicU8>,
}

impl Page {
    fn new(mut page: Region) -> Result<Self, Error> {
        Ok(Self {
            input: page.split_to(IN_SIZE)?,
            output: page.split_to(OUT_SIZE)?,
            indices: page.take_words(4)?,
            connection: page.take_words(1)?.word(0).ok_or(RegionError::OutOfRange)?,
        })
    }

    /// The two rings, each with its indices as they stand.
    fn rings(self) -> Result<(Ring, Ring), Error> {
        let ring = |data, cons, prod| {
            Ok::<_, RegionError>(Ring {
                data,
                cons: self.indices.word(cons).ok_or(RegionError::OutOfRange)?,
                prod: self.indices.word(prod).ok_or(RegionError::OutOfRange)?,
            })
        };
        Ok((ring(self.input, 0, 1)?, ring(self.output, 2, 3)?))
    }
}

/// One of the two rings.
#[derive(Debug)]
struct Ring {
    data: Region,
    cons: Word<AtomicU32>,
    prod: Word<AtomicU32>,
}

impl Ring {
    /// Returns how far `prod` is ahead of `cons`, if that can be.
    fn filled(&self, prod: u32, cons: u32) -> Result<usize, Error> {
        let size = self.data.len();
        // Without loss: usize has at least 32 bits wherever Xen runs.
        let filled = prod.wrapping_sub(cons) as usize;
        if filled > size {
            return Err(Error::Indices { prod, cons, size });
        }
        Ok(filled)
    }

    /// The runs of the ring that `len` bytes from `index` lie in: the second is empty unless it
    /// wraps.
    fn runs(&self, index: u32, len: usize) -> [(usize, usize); 2] {
        let at = index as usize % self.data.len();
        let first = len.min(self.data.len() - at);
        [(at, first), (0, len - first)]
    }
}

/// Why a ring is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer's index is further from ours than the ring is long. All as used, the peer's read
    /// once.
    #[error("the console's peer broke its ring: prod {prod}, cons {cons}, of {size} bytes")]
    Indices {
        /// The producer's index.
        prod: u32,
        /// The consumer's index.
        cons: u32,
        /// The ring's size in bytes.
        size: usize,
    },
    /// The page is too short or mapped for reading only.
    #[error("the console's page: {0}")]
    Page(#[from] RegionError),
}

/// The end of a ring that fills it.
#[derive(Debug)]
pub struct Producer {
    ring: Ring,
    prod: u32,
}

impl Producer {
    /// Returns how many bytes fit, as of now: `0..=` the ring's size.
    ///
    /// # Errors
    /// [`Error`]; the ring is of no more use.
    pub fn space(&self) -> Result<usize, Error> {
        Ok(self.ring.data.len() - self.unread()?)
    }

    /// Returns how many bytes the peer has not taken yet, as of now: `0..=` the ring's size.
    ///
    /// # Errors
    /// [`Error`]; the ring is of no more use.
    pub fn unread(&self) -> Result<usize, Error> {
        // Acquire: the peer's reads of the room it gives back are over.
        let cons = self.ring.cons.load(Ordering::Acquire);
        self.ring.filled(self.prod, cons)
    }

    /// Puts in as much of `bytes` as fits and returns how much; 0 if the ring is full. Notify
    /// the peer if it was anything.
    ///
    /// # Errors
    /// [`Error`]; nothing was put in and the ring is of no more use.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let len = self.space()?.min(bytes.len());
        if len == 0 {
            return Ok(0);
        }
        let [first, second] = self.ring.runs(self.prod, len);
        let (head, tail) = bytes.split_at(first.1);
        self.ring.data.copy_in(first.0, head)?;
        self.ring
            .data
            .copy_in(second.0, tail.get(..second.1).unwrap_or_default())?;
        self.prod = self.prod.wrapping_add(len as u32);
        // Release: the bytes are in place before the index counts them.
        self.ring.prod.store(self.prod, Ordering::Release);
        Ok(len)
    }

    /// Returns the bytes that the peer has not taken out, once its state shows that it will not.
    /// They are read from the page, where the peer may have changed them.
    ///
    /// # Errors
    /// [`Error`].
    pub fn take_back(self) -> Result<Vec<u8>, Error> {
        let len = self.unread()?;
        let mut bytes = vec![0; len];
        let [first, second] = self.ring.runs(self.prod.wrapping_sub(len as u32), len);
        let (head, tail) = bytes.split_at_mut(first.1);
        self.ring.data.copy_out(first.0, head)?;
        self.ring
            .data
            .copy_out(second.0, tail.get_mut(..second.1).unwrap_or_default())?;
        Ok(bytes)
    }
}

/// The end of a ring that empties it.
#[derive(Debug)]
pub struct Consumer {
    ring: Ring,
    cons: u32,
}

impl Consumer {
    /// Returns how many bytes there are, as of now: `0..=` the ring's size.
    ///
    /// # Errors
    /// [`Error`]; the ring is of no more use.
    pub fn available(&self) -> Result<usize, Error> {
        // Acquire: the bytes are not read before the index that counts them.
        let prod = self.ring.prod.load(Ordering::Acquire);
        self.ring.filled(prod, self.cons)
    }

    /// Takes out as much as there is and `buffer` holds, and returns how much that was. Notify the
    /// peer if it was anything: it may wait for room.
    ///
    /// # Errors
    /// [`Error`]; nothing was taken and the ring is of no more use.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let len = self.peek(buffer)?;
        self.consume(len)?;
        Ok(len)
    }

    /// Copies as much as there is and `buffer` holds, and returns the count. The bytes stay in the
    /// ring, where the peer can change them: use the copy, then [`consume`](Self::consume).
    ///
    /// # Errors
    /// [`Error`]; the ring is of no more use.
    pub fn peek(&self, buffer: &mut [u8]) -> Result<usize, Error> {
        let len = self.available()?.min(buffer.len());
        if len == 0 {
            return Ok(0);
        }
        let [first, second] = self.ring.runs(self.cons, len);
        let (head, tail) = buffer.split_at_mut(first.1);
        self.ring.data.copy_out(first.0, head)?;
        self.ring
            .data
            .copy_out(second.0, tail.get_mut(..second.1).unwrap_or_default())?;
        Ok(len)
    }

    /// Gives the room of `len` bytes back, at most of those there are; returns the count. Notify
    /// the peer if it was anything.
    ///
    /// # Errors
    /// [`Error`]; the ring is of no more use.
    pub fn consume(&mut self, len: usize) -> Result<usize, Error> {
        let len = self.available()?.min(len);
        if len > 0 {
            self.cons = self.cons.wrapping_add(len as u32);
            // Release: the bytes have been read before the room is given back.
            self.ring.cons.store(self.cons, Ordering::Release);
        }
        Ok(len)
    }

    /// Returns the index of the next byte: it runs freely and wraps at 2³².
    pub fn position(&self) -> u32 {
        self.cons
    }
}

/// The frontend's ends of a fresh page, which is all zeroes but for `connection`.
///
/// # Errors
/// [`Error::Page`].
pub fn frontend(page: Region) -> Result<(Consumer, Producer), Error> {
    let page = Page::new(page)?;
    for index in page.indices.iter() {
        index.store(0, Ordering::Relaxed);
    }
    page.connection.store(1, Ordering::Release);
    let (input, output) = page.rings()?;
    Ok((
        Consumer {
            ring: input,
            cons: 0,
        },
        Producer {
            ring: output,
            prod: 0,
        },
    ))
}

/// Returns the backend's ends of a page that a frontend has published. Another backend may have
/// used the page before; this one continues where that one stopped. So the backend's own indices
/// are read from the page, this once, and checked as the frontend's are.
///
/// # Errors
/// [`Error`]: the page is unfit, or its indices cannot be.
pub fn backend(page: Region) -> Result<(Consumer, Producer), Error> {
    resume(Page::new(page)?)
}

fn resume(page: Page) -> Result<(Consumer, Producer), Error> {
    let connection = page.connection.clone();
    let (input, output) = page.rings()?;
    let load = |ring: &Ring| {
        let prod = ring.prod.load(Ordering::Acquire);
        let cons = ring.cons.load(Ordering::Acquire);
        ring.filled(prod, cons)?;
        Ok::<_, Error>((prod, cons))
    };
    let ((prod, _), (_, cons)) = (load(&input)?, load(&output)?);
    connection.store(0, Ordering::Release);
    Ok((
        Consumer { ring: output, cons },
        Producer { ring: input, prod },
    ))
}

#[cfg(test)]
mod tests;
