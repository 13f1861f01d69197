//! The rings of 40-byte events in the shared pages of PV frame buffers and keyboards.
//!
//! Each ring has an index for either end, which run freely and wrap at 2³². An end's own index
//! lives in private memory: it is stored to the page for the peer, and never read back. The peer's
//! index is loaded once for each call, and its distance from ours is checked against the ring's
//! length. An event is copied out before it is looked at.

use std::sync::atomic::{AtomicU32, Ordering};

use xen_gnttab::{Region, RegionError, Word};

/// Bytes of an event.
pub(crate) const EVENT: usize = 40;

/// One event.
pub(crate) type Event = [u8; EVENT];

/// Why a shared page is of no use, or no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The frontend's index is further from ours than the ring is long. All as used, the
    /// frontend's read once.
    #[error("the frontend broke its ring: prod {prod}, cons {cons}, of {length} events")]
    Indices {
        /// The producer's index.
        prod: u32,
        /// The consumer's index.
        cons: u32,
        /// Events in the ring.
        length: u32,
    },
    /// The page is too short or mapped for reading only.
    #[error("the shared page: {0}")]
    Page(#[from] RegionError),
}

/// A ring in a page, with the index of either end.
#[derive(Debug)]
struct Ring {
    data: Region,
    length: u32,
    cons: Word<AtomicU32>,
    prod: Word<AtomicU32>,
}

impl Ring {
    fn filled(&self, prod: u32, cons: u32) -> Result<u32, RingError> {
        let length = self.length;
        let filled = prod.wrapping_sub(cons);
        match filled <= length {
            true => Ok(filled),
            false => Err(RingError::Indices { prod, cons, length }),
        }
    }

    /// Returns where the event of an index is.
    ///
    /// No ring's length is a power of two, so the place jumps where the index wraps at 2³², and
    /// events may overwrite others there. The protocol has this from both ends' arithmetic; the
    /// wrap is 4 thousand million events away.
    fn place(&self, index: u32) -> usize {
        (index % self.length) as usize * EVENT
    }
}

/// The end that takes events out.
#[derive(Debug)]
pub(crate) struct Consumer {
    ring: Ring,
    cons: u32,
}

impl Consumer {
    /// Takes the backend's end of a ring, perhaps after another backend: its own index is read from
    /// the page, this once.
    pub(crate) fn attach(
        data: Region,
        cons: Word<AtomicU32>,
        prod: Word<AtomicU32>,
    ) -> Result<Self, RingError> {
        let length = u32::try_from(data.len() / EVENT).map_err(|_| RegionError::OutOfRange)?;
        let ring = Ring {
            data,
            length,
            cons,
            prod,
        };
        let cons = ring.cons.load(Ordering::Acquire);
        ring.filled(ring.prod.load(Ordering::Acquire), cons)?;
        Ok(Self { ring, cons })
    }

    /// Takes the next event out.
    pub(crate) fn poll_event(&mut self) -> Result<Option<Event>, RingError> {
        // Acquire: the event is not read before the index that publishes it.
        let prod = self.ring.prod.load(Ordering::Acquire);
        if self.ring.filled(prod, self.cons)? == 0 {
            return Ok(None);
        }
        let mut event = [0; EVENT];
        let place = self.ring.place(self.cons);
        self.ring.data.copy_out(place, &mut event)?;
        self.cons = self.cons.wrapping_add(1);
        // Release: the event has been read before its room is given back.
        self.ring.cons.store(self.cons, Ordering::Release);
        Ok(Some(event))
    }
}

/// The end that puts events in.
#[derive(Debug)]
pub(crate) struct Producer {
    ring: Ring,
    prod: u32,
}

impl Producer {
    /// As [`Consumer::attach`].
    pub(crate) fn attach(
        data: Region,
        cons: Word<AtomicU32>,
        prod: Word<AtomicU32>,
    ) -> Result<Self, RingError> {
        let Consumer { ring, .. } = Consumer::attach(data, cons, prod)?;
        let prod = ring.prod.load(Ordering::Acquire);
        ring.filled(prod, ring.cons.load(Ordering::Acquire))?;
        Ok(Self { ring, prod })
    }

    /// Returns how many events fit.
    pub(crate) fn space(&self) -> Result<u32, RingError> {
        // Acquire: the frontend's reads of the room it gives back are over.
        let cons = self.ring.cons.load(Ordering::Acquire);
        Ok(self.ring.length - self.ring.filled(self.prod, cons)?)
    }

    /// Puts an event in; returns whether there was room.
    pub(crate) fn push(&mut self, event: &Event) -> Result<bool, RingError> {
        if self.space()? == 0 {
            return Ok(false);
        }
        let place = self.ring.place(self.prod);
        self.ring.data.copy_in(place, event)?;
        self.prod = self.prod.wrapping_add(1);
        // Release: the event is in place before the index that publishes it.
        self.ring.prod.store(self.prod, Ordering::Release);
        Ok(true)
    }
}

/// Returns the little-endian number with a sign at an offset of an event.
pub(crate) fn int(event: &[u8], at: usize) -> i32 {
    i32::from_le_bytes(word(event, at).to_le_bytes())
}

/// Returns the little-endian number at an offset of an event.
pub(crate) fn word(event: &[u8], at: usize) -> u32 {
    let bytes = event.get(at..at + 4).and_then(|four| four.try_into().ok());
    u32::from_le_bytes(bytes.unwrap_or_default())
}
