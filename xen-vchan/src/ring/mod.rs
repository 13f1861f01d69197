//! The ring: cursors, copies and the notification handshake, on memory alone.
//!
//! Nothing here knows a hypervisor, a descriptor or a clock, and nothing here can block: the same
//! code runs on granted pages, on a private block of memory, and under loom.
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
//! * Each half keeps its own cursor privately and never reads it back from shared memory.
//! * A cursor of the peer is loaded once and judged against private values: it moves forward only,
//!   and never further than the ring allows. Anything else is a [`Violation`],
//!   returned by that call and every later one.
//! * No reference into shared memory is handed out: bytes are copied into and out of the caller's
//!   memory.
//! * Work per call is bounded by the caller's buffer and the ring's size.

mod consumer;
mod producer;

pub use consumer::{Consumer, Fetched};
pub use producer::Producer;

use crate::Violation;
use crate::layout::{CLI_NOTIFY, Geometry, LEFT, PROD, Place, RIGHT, SRV_NOTIFY};
use crate::mem::{Bytes, Memory, Word8, Word32};
use crate::sync::Ordering;

/// Bit of a notify byte: tell me when you have written.
pub(crate) const WRITE: u8 = 1;
/// Bit of a notify byte: tell me when you have read.
pub(crate) const READ: u8 = 2;

/// Which end of the channel this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Owns the memory; reads `left`, writes `right`.
    Server,
    /// Maps the server's memory; reads `right`, writes `left`.
    Client,
}

/// One ring: its words, its bytes, its size.
#[derive(Clone, Debug)]
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

/// The two rings of a channel in one role's view, before any cursor was read.
#[derive(Clone, Debug)]
pub struct Rings {
    left: Ring,
    right: Ring,
}

impl Rings {
    /// Views `control` as a control page with rings as `geometry` says. `left` and `right` are the
    /// granted pages of the rings that have any.
    ///
    /// `None` if memory is missing or too small, which is the caller's error: the peer has no say
    /// in it.
    #[must_use]
    pub fn new(
        control: &Memory,
        geometry: Geometry,
        left: Option<&Memory>,
        right: Option<&Memory>,
    ) -> Option<Self> {
        let ring = |at: usize, place: Place, size: u32, pages: Option<&Memory>, writer, reader| {
            let data = match place {
                Place::InPage { offset } => Bytes::new(control, offset, size as usize)?,
                Place::Pages { .. } => Bytes::new(pages?, 0, size as usize)?,
            };
            Some(Ring {
                cons: Word32::new(control, at)?,
                prod: Word32::new(control, at + PROD)?,
                writer_told: Word8::new(control, writer)?,
                reader_told: Word8::new(control, reader)?,
                data,
                size,
            })
        };
        // The client writes `left`, so the requests for its writer stand in cli_notify.
        Some(Self {
            left: ring(
                LEFT,
                geometry.left_place(),
                geometry.left_bytes(),
                left,
                CLI_NOTIFY,
                SRV_NOTIFY,
            )?,
            right: ring(
                RIGHT,
                geometry.right_place(),
                geometry.right_bytes(),
                right,
                SRV_NOTIFY,
                CLI_NOTIFY,
            )?,
        })
    }

    /// Takes the cursors of the ring this role writes as they stand, and makes its writing half
    /// from them.
    ///
    /// A server that has just zeroed the page starts at 0; a client goes on where the one before it
    /// stopped. From here on the own cursor is private.
    ///
    /// # Errors
    ///
    /// [`Violation::Attach`]: the cursors are further apart than the ring is large.
    pub fn producer(&self, role: Role) -> Result<Producer, Violation> {
        let ring = self.written_by(role);
        let (prod, cons) = ring.cursors()?;
        Ok(Producer::new(ring.clone(), prod, cons))
    }

    /// As [`producer`](Self::producer), for the reading half.
    ///
    /// # Errors
    ///
    /// As [`producer`](Self::producer).
    pub fn consumer(&self, role: Role) -> Result<Consumer, Violation> {
        let ring = self.written_by(role.other());
        let (prod, cons) = ring.cursors()?;
        Ok(Consumer::new(ring.clone(), prod, cons))
    }

    /// Halves with nothing to read and nothing written, to be replaced before use.
    pub(crate) fn blank(&self, role: Role) -> (Consumer, Producer) {
        (
            Consumer::new(self.written_by(role.other()).clone(), 0, 0),
            Producer::new(self.written_by(role).clone(), 0, 0),
        )
    }

    /// The two cursors that the `role` moves, as they stand: not judged, only to be compared.
    #[cfg(not(loom))]
    pub(crate) fn moved_by(&self, role: Role) -> (u32, u32) {
        (
            self.written_by(role).prod.get().load(Ordering::Acquire),
            self.written_by(role.other())
                .cons
                .get()
                .load(Ordering::Acquire),
        )
    }

    const fn written_by(&self, role: Role) -> &Ring {
        match role {
            Role::Server => &self.right,
            Role::Client => &self.left,
        }
    }
}

impl Role {
    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Server => Self::Client,
            Self::Client => Self::Server,
        }
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
