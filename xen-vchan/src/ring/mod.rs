//! The ring: cursors, copies and the notification handshake, on memory alone.
//!
//! This module has no hypervisor, descriptor or clock, and nothing here can block. The same code
//! runs on granted pages, on a private block of memory, and under loom.
//!
//! ```text
//!              Producer                                Consumer
//!   stage      copy bytes behind `next`     fetch      load prod, judge it
//!   publish    store prod; FENCE;           take       copy bytes out
//!              load WRITE request           release    store cons; FENCE; load READ request
//!   request    set READ; FENCE; refresh     request    set WRITE; FENCE; refresh
//! ```
//!
//! # Guarantees, whatever the peer writes
//!
//! * Each half keeps its own cursor privately and never reads it back from shared memory. Moving
//!   bytes takes `&mut`; looking and publishing take `&self`, by any number of threads.
//! * A cursor of the peer is loaded once and judged against private values: it moves forward only,
//!   and never further than the ring allows. Anything else is a [`Violation`],
//!   returned by that call and every later one.
//! * No reference into shared memory is returned: bytes are copied into and out of the caller's
//!   memory.
//! * Work per call is bounded by the caller's buffer and the ring's size.

mod consumer;
mod private;
mod producer;

pub use consumer::{Consumer, Fetched};
pub use producer::Producer;

pub use crate::mem::ControlWords;

use crate::Violation;
use crate::layout::{CLI_NOTIFY, Geometry, LEFT, PROD, Place, RIGHT, SRV_NOTIFY};
use crate::mem::{Bytes, Control, Memory, Word8, Word32};
use crate::sync::Ordering;

/// Bit of a notify byte: a request to notify after a write.
pub(crate) const WRITE: u8 = 1;
/// Bit of a notify byte: a request to notify after a read.
pub(crate) const READ: u8 = 2;

/// The end of the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Owns the memory; reads `left`, writes `right`.
    Server,
    /// Maps the server's memory; reads `right`, writes `left`.
    Client,
}

/// One ring: its words, its bytes, its size.
#[derive(Debug)]
pub(crate) struct Ring {
    cons: Word32,
    prod: Word32,
    /// Where the reader leaves WRITE requests for the writer.
    writer_told: Word8,
    /// Where the writer leaves READ requests for the reader.
    reader_told: Word8,
    data: Bytes,
    size: u32,
}

/// The memory of a channel, divided for one of its ends, before any cursor was read.
#[derive(Debug)]
pub struct Rings {
    words: ControlWords,
    left: Ring,
    right: Ring,
}

impl Rings {
    /// Divides `control` as a control page whose rings have the given `geometry`. `left` and
    /// `right` are the granted pages of the rings that have any.
    ///
    /// Returns `None` if memory is missing, too small or misaligned, or the control page is
    /// read-only. That is the caller's error: the peer cannot cause it.
    #[must_use]
    pub fn new(
        control: Memory,
        geometry: Geometry,
        left: Option<Memory>,
        right: Option<Memory>,
    ) -> Option<Self> {
        let mut control = Control::new(control)?;
        let words = control.words.clone();
        let mut bytes = |place: Place, pages: Option<Memory>, size: u32| {
            let memory = match place {
                Place::InPage { offset } => control.take(offset, size as usize)?,
                Place::Pages { .. } => pages?,
            };
            Bytes::new(memory, size as usize)
        };
        // Of two rings in the page, the larger one is behind the other.
        let (left, right) = if geometry.left_bytes() < geometry.right_bytes() {
            let right = bytes(geometry.right_place(), right, geometry.right_bytes())?;
            let left = bytes(geometry.left_place(), left, geometry.left_bytes())?;
            (left, right)
        } else {
            let left = bytes(geometry.left_place(), left, geometry.left_bytes())?;
            let right = bytes(geometry.right_place(), right, geometry.right_bytes())?;
            (left, right)
        };
        let ring = |at: usize, data, size, writer, reader| {
            Some(Ring {
                cons: Word32::new(&words, at)?,
                prod: Word32::new(&words, at + PROD)?,
                writer_told: Word8::new(&words, writer)?,
                reader_told: Word8::new(&words, reader)?,
                data,
                size,
            })
        };
        // The client writes `left`, so the requests for its writer are in cli_notify.
        Some(Self {
            left: ring(LEFT, left, geometry.left_bytes(), CLI_NOTIFY, SRV_NOTIFY)?,
            right: ring(RIGHT, right, geometry.right_bytes(), SRV_NOTIFY, CLI_NOTIFY)?,
            words,
        })
    }

    /// Returns the words of the control page.
    #[must_use]
    pub fn words(&self) -> &ControlWords {
        &self.words
    }

    /// Takes over the cursors as they are and makes the two halves of this end from them.
    ///
    /// A server that has just zeroed the page starts at 0; a client continues where the one before
    /// it stopped. From here on the own cursors are private.
    ///
    /// # Errors
    ///
    /// [`Violation::Attach`]: the cursors of a ring are further apart than it is large.
    pub fn attach(self, role: Role) -> Result<(Producer, Consumer), Violation> {
        let (mut producer, mut consumer) = self.halves(role);
        producer.attach()?;
        consumer.attach()?;
        Ok((producer, consumer))
    }

    /// Returns the two halves of this end, with nothing to read and nothing written: all cursors
    /// are 0, or are taken over later by [`Producer::attach`] and [`Consumer::attach`].
    pub(crate) fn halves(self, role: Role) -> (Producer, Consumer) {
        let (written, read) = match role {
            Role::Server => (self.right, self.left),
            Role::Client => (self.left, self.right),
        };
        (Producer::new(written), Consumer::new(read))
    }
}

impl Role {
    #[cfg(not(loom))]
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Server => Self::Client,
            Self::Client => Self::Server,
        }
    }
}

/// The cursors of both rings, not judged, only to be compared with earlier values.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct Cursors {
    /// The cursors that the client moves: `prod` of `left` and `cons` of `right`.
    client: (Word32, Word32),
    server: (Word32, Word32),
}

#[cfg(not(loom))]
impl Cursors {
    pub(crate) fn new(rings: &Rings) -> Self {
        let moved = |writes: &Ring, reads: &Ring| (writes.prod.clone(), reads.cons.clone());
        Self {
            client: moved(&rings.left, &rings.right),
            server: moved(&rings.right, &rings.left),
        }
    }

    /// The two cursors that `role` moves, as they are now.
    pub(crate) fn moved_by(&self, role: Role) -> (u32, u32) {
        let (prod, cons) = match role {
            Role::Client => &self.client,
            Role::Server => &self.server,
        };
        (
            prod.get().load(Ordering::Acquire),
            cons.get().load(Ordering::Acquire),
        )
    }
}

impl Ring {
    fn cursors(&self) -> Result<(u32, u32), Violation> {
        let prod = self.prod.get().load(Ordering::Acquire);
        let cons = self.cons.get().load(Ordering::Acquire);
        if prod.wrapping_sub(cons) > self.size {
            return Err(Violation::Attach {
                prod,
                cons,
                size: self.size,
            });
        }
        Ok((prod, cons))
    }
}
