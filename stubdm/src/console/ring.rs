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
//! read back. The peer's index is loaded once for each call, its distance from ours is checked against
//! the size of the ring, and only the copy is used: whatever the page holds, no call reads or writes
//! outside of it, and a distance that cannot be is an [`Error::Indices`]. What the bytes are is
//! the peer's affair.
//!
//! The index that publishes bytes (or room) is stored with release and loaded with acquire. This
//! protocol has no word that says whether the peer wants to be notified: notify after every
//! call that moved something.
//!
//! Layout: `struct xencons_interface` of Xen's public/io/console.h.

use std::sync::atomic::{AtomicU32, Ordering};

use xen_gnttab::{Region, RegionError};

/// Bytes in the ring from the backend to the frontend.
pub const IN_SIZE: usize = 1024;
/// Bytes in the ring from the frontend to the backend.
pub const OUT_SIZE: usize = 2048;
/// Where the byte `connection` is: 1 until the backend has connected, if it knows of it.
pub const CONNECTION: usize = 3088;

/// One of the two rings: where it is in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Half {
    start: usize,
    size: usize,
    cons: usize,
    prod: usize,
}

const IN: Half = Half {
    start: 0,
    size: IN_SIZE,
    cons: 3072,
    prod: 3076,
};
const OUT: Half = Half {
    start: IN_SIZE,
    size: OUT_SIZE,
    cons: 3080,
    prod: 3084,
};

/// Why a ring is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer's index is further from ours than the ring is long. All as used, the peer's read once.
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

/// How far `prod` is ahead of `cons`, if that can be.
fn filled(prod: u32, cons: u32, half: Half) -> Result<usize, Error> {
    let size = half.size;
    // Without loss: usize has at least 32 bits wherever Xen runs.
    let filled = prod.wrapping_sub(cons) as usize;
    if filled > size {
        return Err(Error::Indices { prod, cons, size });
    }
    Ok(filled)
}

/// A word of the page, as an atomic.
fn word(page: &Region, offset: usize) -> Result<&AtomicU32, Error> {
    page.atomic_u32(offset)
        .ok_or(Error::Page(if page.is_writable() {
            RegionError::OutOfRange
        } else {
            RegionError::ReadOnly
        }))
}

/// The runs of the ring that `len` bytes from `index` lie in: the second is empty unless it wraps.
fn runs(half: Half, index: u32, len: usize) -> [(usize, usize); 2] {
    let at = index as usize % half.size;
    let first = len.min(half.size - at);
    [(half.start + at, first), (half.start, len - first)]
}

/// The end of a ring that fills it.
#[derive(Debug)]
pub struct Producer {
    page: Region,
    half: Half,
    prod: u32,
}

impl Producer {
    /// How many bytes fit, as of now: `0..=` the ring's size.
    ///
    /// # Errors
    /// [`Error`]; the ring is of no more use.
    pub fn space(&self) -> Result<usize, Error> {
        Ok(self.half.size - self.unread()?)
    }

    /// How many bytes the peer has not taken yet, as of now: `0..=` the ring's size.
    ///
    /// # Errors
    /// [`Error`]; the ring is of no more use.
    pub fn unread(&self) -> Result<usize, Error> {
        // Acquire: the peer's reads of the room it gives back are over.
        let cons = word(&self.page, self.half.cons)?.load(Ordering::Acquire);
        filled(self.prod, cons, self.half)
    }

    /// Puts in as much of `bytes` as fits and says how much that was; 0 if the ring is full. Notify
    /// the peer if it was anything.
    ///
    /// # Errors
    /// [`Error`]; nothing was put in and the ring is of no more use.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let len = self.space()?.min(bytes.len());
        if len == 0 {
            return Ok(0);
        }
        let [first, second] = runs(self.half, self.prod, len);
        let (head, tail) = bytes.split_at(first.1);
        self.page.copy_in(first.0, head)?;
        self.page
            .copy_in(second.0, tail.get(..second.1).unwrap_or_default())?;
        self.prod = self.prod.wrapping_add(len as u32);
        // Release: the bytes are in place before the index says so.
        word(&self.page, self.half.prod)?.store(self.prod, Ordering::Release);
        Ok(len)
    }

    /// What the peer has not taken out, for another peer or another time: once it has said that it will
    /// not. The bytes are read from the page, where the peer may have changed them.
    ///
    /// # Errors
    /// [`Error`].
    pub fn take_back(self) -> Result<Vec<u8>, Error> {
        let len = self.unread()?;
        let mut bytes = vec![0; len];
        let [first, second] = runs(self.half, self.prod.wrapping_sub(len as u32), len);
        let (head, tail) = bytes.split_at_mut(first.1);
        self.page.copy_out(first.0, head)?;
        self.page
            .copy_out(second.0, tail.get_mut(..second.1).unwrap_or_default())?;
        Ok(bytes)
    }
}

/// The end of a ring that empties it.
#[derive(Debug)]
pub struct Consumer {
    page: Region,
    half: Half,
    cons: u32,
}

impl Consumer {
    /// How many bytes there are, as of now: `0..=` the ring's size.
    ///
    /// # Errors
    /// [`Error`]; the ring is of no more use.
    pub fn available(&self) -> Result<usize, Error> {
        // Acquire: the bytes are not read before the index that says that they are there.
        let prod = word(&self.page, self.half.prod)?.load(Ordering::Acquire);
        filled(prod, self.cons, self.half)
    }

    /// Takes out as much as there is and `buffer` holds, and says how much that was. Notify the
    /// peer if it was anything: it may wait for room.
    ///
    /// # Errors
    /// [`Error`]; nothing was taken and the ring is of no more use.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let len = self.available()?.min(buffer.len());
        if len == 0 {
            return Ok(0);
        }
        let [first, second] = runs(self.half, self.cons, len);
        let (head, tail) = buffer.split_at_mut(first.1);
        self.page.copy_out(first.0, head)?;
        self.page
            .copy_out(second.0, tail.get_mut(..second.1).unwrap_or_default())?;
        self.cons = self.cons.wrapping_add(len as u32);
        // Release: the bytes have been read before the room is given back.
        word(&self.page, self.half.cons)?.store(self.cons, Ordering::Release);
        Ok(len)
    }
}

/// The frontend's ends of a fresh page, which is all zeroes but for `connection`.
///
/// # Errors
/// [`Error::Page`].
pub fn frontend(page: &Region) -> Result<(Consumer, Producer), Error> {
    for half in [IN, OUT] {
        for index in [half.cons, half.prod] {
            word(page, index)?.store(0, Ordering::Relaxed);
        }
    }
    if let Some(connection) = page.atomic_u8(CONNECTION) {
        connection.store(1, Ordering::Release);
    }
    let consumer = Consumer {
        page: page.clone(),
        half: IN,
        cons: 0,
    };
    let producer = Producer {
        page: page.clone(),
        half: OUT,
        prod: 0,
    };
    Ok((consumer, producer))
}

/// The backend's ends of a page that a frontend has published, perhaps used with another backend
/// before: it goes on where that one stopped. So the backend's own indices are read from the page,
/// this once, and checked as the frontend's are.
///
/// # Errors
/// [`Error`]: what the page says cannot be.
pub fn backend(page: &Region) -> Result<(Consumer, Producer), Error> {
    let load = |offset| word(page, offset).map(|word| word.load(Ordering::Acquire));
    let (in_prod, in_cons) = (load(IN.prod)?, load(IN.cons)?);
    let (out_prod, out_cons) = (load(OUT.prod)?, load(OUT.cons)?);
    filled(in_prod, in_cons, IN)?;
    filled(out_prod, out_cons, OUT)?;
    if let Some(connection) = page.atomic_u8(CONNECTION) {
        connection.store(0, Ordering::Release);
    }
    let consumer = Consumer {
        page: page.clone(),
        half: OUT,
        cons: out_cons,
    };
    let producer = Producer {
        page: page.clone(),
        half: IN,
        prod: in_prod,
    };
    Ok((consumer, producer))
}

#[cfg(test)]
mod tests;
