//! The ring of requests and responses that block, network and other devices share, without I/O.
//!
//! ```text
//!   byte  0          4           8          12          16     64
//!         ├ req_prod ┼ req_event ┼ rsp_prod ┼ rsp_event ┼ ───── ┼ entry 0 ┼ entry 1 ┼ ...
//!   by    frontend   backend     backend    frontend            both, in turn
//! ```
//!
//! An entry holds a request, later the response in its place. The indices run freely and wrap at
//! 2³². Layout: `DEFINE_RING_TYPES` of Xen's public/io/ring.h.
//!
//! ```
//! use xen_gnttab::{Region, ring::{BackRing, FrontRing}};
//!
//! # fn device(page: Region, same_page: Region) -> Result<(), xen_gnttab::ring::RingError> {
//! let mut front = FrontRing::<[u32; 2], u32>::new(page)?;
//! let mut back = BackRing::<[u32; 2], u32>::attach(same_page)?;
//!
//! front.push_request(&[7, 8])?;
//! if front.publish()? { /* notify the backend */ }
//! loop {
//!     while let Some([id, value]) = back.poll_request()? {
//!         back.push_response(&(id + value))?;
//!     }
//!     if back.publish()? { /* notify the frontend */ }
//!     // Before the backend sleeps: ask for an event, and look once more.
//!     if !back.arm(1)? { break }
//! }
//! assert_eq!(front.poll_response()?, Some(15));
//! # Ok(()) }
//! ```
//!
//! | ring.h | here |
//! |---|---|
//! | `RING_GET_REQUEST`, `RING_PUSH_REQUESTS_AND_CHECK_NOTIFY` | `push_request`, `publish` |
//! | `RING_COPY_RESPONSE`, `RING_FINAL_CHECK_FOR_RESPONSES` | `poll_response`, `arm` |
//! | `RING_COPY_REQUEST`, `RING_FINAL_CHECK_FOR_REQUESTS` | `poll_request`, `arm` |
//! | `RING_GET_RESPONSE`, `RING_PUSH_RESPONSES_AND_CHECK_NOTIFY` | `push_response`, `publish` |
//!
//! # Notifications
//!
//! Each end writes the index at whose entry it needs an event. [`arm`](FrontRing::arm) writes it
//! and looks once more, so that an entry that the peer publishes in between is not missed;
//! `publish` returns whether the peer requested an event. `arm(n)` lets the peer publish `n - 1`
//! entries without an event.
//!
//! # What the peer can do
//!
//! The peer can write anything to the page at any time. An end's own indices live in private memory
//! and are never read back. The peer's index is loaded once, its distance is checked against what
//! the peer may have published, and only the copy is used. An impossible index is a [`RingError`],
//! which every later call returns. An entry is copied out before it is looked at: its content is
//! the peer's choice, identifiers included. The event indices decide only whether an event is sent.
//! A peer that keeps publishing keeps the other end busy: limit how much one turn takes.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Region, RegionError, Word};

/// Bytes before the first entry.
pub const HEADER: usize = 64;

/// A request or a response: plain data, of which any bytes are a value.
pub trait Entry: FromBytes + IntoBytes + Immutable {}

impl<T: FromBytes + IntoBytes + Immutable> Entry for T {}

/// The reason why an operation on a ring failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The peer's index is further from ours than is possible. Contains the values that were
    /// checked, each read once.
    #[error("the peer broke its ring: its index is {theirs}, {at_most} at most after {ours}")]
    Index {
        /// The index that the peer has published.
        theirs: u32,
        /// The index up to which we took entries.
        ours: u32,
        /// The number of entries that the peer may have published since.
        at_most: u32,
    },
    /// The region is too short, misaligned, or mapped read-only.
    #[error("the ring's pages: {0}")]
    Pages(#[from] RegionError),
    /// The caller's mistake: there is no room for another request, or no request to respond to.
    /// Nothing was written, and the ring is as usable as before.
    #[error("no room for a request, or no request to respond to")]
    Full,
}

/// Either end: the page, divided, and an index of either direction.
#[derive(Debug)]
struct Half {
    entries: Region,
    /// The number of entries, a power of two, and the bytes of each.
    count: u32,
    size: usize,
    /// Ours: where we publish, and where we request an event.
    our_prod: Word<AtomicU32>,
    our_event: Word<AtomicU32>,
    their_prod: Word<AtomicU32>,
    their_event: Word<AtomicU32>,
    /// Entries written, entries published, entries taken.
    prod: u32,
    published: u32,
    cons: u32,
    /// The peer's index as it was last read and checked.
    seen: u32,
    broken: Option<RingError>,
}

/// The page's four indices, in its order.
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 1;
const RSP_PROD: usize = 2;
const RSP_EVENT: usize = 3;

impl Half {
    /// Divides the page for the end that publishes through the words `ours` and looks at `theirs`.
    fn new<Q, S>(
        mut page: Region,
        ours: [usize; 2],
        theirs: [usize; 2],
    ) -> Result<Self, RingError> {
        if !page.is_writable() {
            return Err(RegionError::ReadOnly.into());
        }
        // The union of ring.h.
        let align = align_of::<Q>().max(align_of::<S>());
        let size = size_of::<Q>().max(size_of::<S>()).next_multiple_of(align);
        let mut header = page.split_to(HEADER)?;
        let words = header.take_words::<AtomicU32>(4)?;
        let word = |n: usize| words.word(n).ok_or(RegionError::OutOfRange);
        let count = page.len().checked_div(size).and_then(usize::checked_ilog2);
        // The indices have 32 bits, and at most half of that range can be entries.
        let count = 1 << count.ok_or(RegionError::OutOfRange)?.min(31);
        Ok(Self {
            entries: page,
            count,
            size,
            our_prod: word(ours[0])?,
            our_event: word(theirs[1])?,
            their_prod: word(theirs[0])?,
            their_event: word(ours[1])?,
            prod: 0,
            published: 0,
            cons: 0,
            seen: 0,
            broken: None,
        })
    }

    fn check(&self) -> Result<(), RingError> {
        self.broken.map_or(Ok(()), Err)
    }

    /// Looks at the peer's index, which can be at most `at_most` entries after `cons`.
    fn look(&mut self, at_most: u32) -> Result<u32, RingError> {
        self.check()?;
        // Acquire: the entries are not read before the index that publishes them.
        let theirs = self.their_prod.load(Ordering::Acquire);
        let ahead = theirs.wrapping_sub(self.cons);
        // An index that went back is either too far ahead or before what was seen already.
        if ahead > at_most || ahead < self.seen.wrapping_sub(self.cons) {
            let ours = self.cons;
            let error = RingError::Index {
                theirs,
                ours,
                at_most,
            };
            return Err(*self.broken.insert(error));
        }
        self.seen = theirs;
        Ok(ahead)
    }

    fn offset(&self, index: u32) -> usize {
        (index & (self.count - 1)) as usize * self.size
    }

    /// Copies the peer's next entry out, of which there can be `at_most`; returns `None` if there
    /// is none.
    fn poll<T: Entry>(&mut self, at_most: u32) -> Result<Option<T>, RingError> {
        self.check()?;
        if self.seen == self.cons && self.look(at_most)? == 0 {
            return Ok(None);
        }
        let mut entry = T::new_zeroed();
        let offset = self.offset(self.cons);
        self.entries.copy_out(offset, entry.as_mut_bytes())?;
        self.cons = self.cons.wrapping_add(1);
        Ok(Some(entry))
    }

    fn put<T: Entry>(&mut self, entry: &T) -> Result<(), RingError> {
        let offset = self.offset(self.prod);
        self.entries.copy_in(offset, entry.as_bytes())?;
        self.prod = self.prod.wrapping_add(1);
        Ok(())
    }

    /// Publishes what was written; returns whether the peer requested an event.
    fn publish(&mut self) -> Result<bool, RingError> {
        self.check()?;
        let new = self.prod.wrapping_sub(self.published);
        if new == 0 {
            return Ok(false);
        }
        // Release: the entries are written before the index that publishes them.
        self.our_prod.store(self.prod, Ordering::Release);
        self.published = self.prod;
        // Pairs with the fence in `arm`: either the peer sees the index, or this sees its request
        // for an event.
        fence(Ordering::SeqCst);
        let event = self.their_event.load(Ordering::Relaxed);
        Ok(self.prod.wrapping_sub(event) < new)
    }

    /// Requests an event at the `nth` entry from here on, and looks once more.
    fn arm(&mut self, nth: u32, at_most: u32) -> Result<bool, RingError> {
        self.check()?;
        let event = self.cons.wrapping_add(nth.clamp(1, self.count));
        self.our_event.store(event, Ordering::Relaxed);
        // Pairs with the fence in `publish`.
        fence(Ordering::SeqCst);
        Ok(self.look(at_most)? > 0)
    }
}

/// The frontend's end: writes requests `Q`, takes responses `S`.
#[derive(Debug)]
pub struct FrontRing<Q, S> {
    half: Half,
    types: PhantomData<fn(Q) -> S>,
}

impl<Q: Entry, S: Entry> FrontRing<Q, S> {
    /// Makes a ring of fresh pages, one or more whole pages that are not in use yet. The number of
    /// [entries](Self::entries) is the greatest power of two that fits, as in C (`__RING_SIZE`).
    ///
    /// # Errors
    ///
    /// [`RingError::Pages`]: not even one entry fits, or the region is not writable.
    #[doc(alias = "SHARED_RING_INIT")]
    #[doc(alias = "FRONT_RING_INIT")]
    pub fn new(mut pages: Region) -> Result<Self, RingError> {
        let len = pages.len().min(HEADER);
        pages.fill(0, len, 0)?;
        let half = Half::new::<Q, S>(pages, [REQ_PROD, REQ_EVENT], [RSP_PROD, RSP_EVENT])?;
        for word in [&half.our_event, &half.their_event] {
            word.store(1, Ordering::Relaxed);
        }
        Ok(Self {
            half,
            types: PhantomData,
        })
    }

    /// Returns the number of entries, a power of two.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.half.count
    }

    /// Returns how many requests can be written now. Each response that is taken makes room for
    /// one.
    #[doc(alias = "RING_FREE_REQUESTS")]
    #[must_use]
    pub fn free(&self) -> u32 {
        self.half.count - self.half.prod.wrapping_sub(self.half.cons)
    }

    /// Writes a request into the ring; [`publish`](Self::publish) makes it visible to the backend.
    ///
    /// # Errors
    ///
    /// [`RingError::Full`] if no entry is [free](Self::free); the error that broke the ring.
    #[doc(alias = "RING_GET_REQUEST")]
    pub fn push_request(&mut self, request: &Q) -> Result<(), RingError> {
        self.half.check()?;
        if self.free() == 0 {
            return Err(RingError::Full);
        }
        self.half.put(request)
    }

    /// Publishes the requests that were written; returns whether to notify the backend.
    ///
    /// # Errors
    ///
    /// The error that broke the ring.
    #[doc(alias = "RING_PUSH_REQUESTS_AND_CHECK_NOTIFY")]
    pub fn publish(&mut self) -> Result<bool, RingError> {
        self.half.publish()
    }

    /// Takes the next response, in the order in which the backend wrote them; `None` if there is
    /// none yet.
    ///
    /// # Errors
    ///
    /// [`RingError::Index`]: the backend published an impossible index.
    #[doc(alias = "RING_COPY_RESPONSE")]
    pub fn poll_response(&mut self) -> Result<Option<S>, RingError> {
        self.half.poll(self.unanswered())
    }

    /// Requests an event at the `nth` response from here on (1: the next one), and returns whether
    /// there is a response already: then take it before sleeping.
    ///
    /// # Errors
    ///
    /// As [`poll_response`](Self::poll_response).
    #[doc(alias = "RING_FINAL_CHECK_FOR_RESPONSES")]
    pub fn arm(&mut self, nth: u32) -> Result<bool, RingError> {
        self.half.arm(nth, self.unanswered())
    }

    /// Returns how many responses are possible: only published requests can have one.
    fn unanswered(&self) -> u32 {
        self.half.published.wrapping_sub(self.half.cons)
    }
}

/// The backend's end: takes requests `Q`, writes responses `S`.
#[derive(Debug)]
pub struct BackRing<Q, S> {
    half: Half,
    types: PhantomData<fn(Q) -> S>,
}

impl<Q: Entry, S: Entry> BackRing<Q, S> {
    /// Attaches to a ring that a frontend has made, perhaps used with another backend before, and
    /// continues behind the last response. So the backend's own index is read from the page, this
    /// once. Requests that the other backend took and left without a response are taken again.
    ///
    /// # Errors
    ///
    /// [`RingError::Pages`]: not even one entry fits, or the region is not writable.
    /// [`RingError::Index`]: the frontend's index is impossible.
    #[doc(alias = "BACK_RING_INIT")]
    #[doc(alias = "BACK_RING_ATTACH")]
    pub fn attach(pages: Region) -> Result<Self, RingError> {
        let mut half = Half::new::<Q, S>(pages, [RSP_PROD, RSP_EVENT], [REQ_PROD, REQ_EVENT])?;
        let own = half.our_prod.load(Ordering::Acquire);
        (half.prod, half.published, half.cons, half.seen) = (own, own, own, own);
        half.look(half.count)?;
        Ok(Self {
            half,
            types: PhantomData,
        })
    }

    /// Returns the number of entries, a power of two.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.half.count
    }

    /// Returns how many requests were taken and have no response yet.
    #[must_use]
    pub fn unanswered(&self) -> u32 {
        self.half.cons.wrapping_sub(self.half.prod)
    }

    /// Takes the next request; `None` if there is none yet.
    ///
    /// # Errors
    ///
    /// [`RingError::Index`]: the frontend published an impossible index.
    #[doc(alias = "RING_COPY_REQUEST")]
    #[doc(alias = "RING_REQUEST_PROD_OVERFLOW")]
    pub fn poll_request(&mut self) -> Result<Option<Q>, RingError> {
        self.half.poll(self.open())
    }

    /// Writes the response to one of the requests that were taken, in any order.
    /// [`publish`](Self::publish) makes it visible to the frontend.
    ///
    /// # Errors
    ///
    /// [`RingError::Full`] if every request that was taken has a response; the error that broke the
    /// ring.
    #[doc(alias = "RING_GET_RESPONSE")]
    pub fn push_response(&mut self, response: &S) -> Result<(), RingError> {
        self.half.check()?;
        if self.unanswered() == 0 {
            return Err(RingError::Full);
        }
        self.half.put(response)
    }

    /// Publishes the responses that were written; returns whether to notify the frontend.
    ///
    /// # Errors
    ///
    /// The error that broke the ring.
    #[doc(alias = "RING_PUSH_RESPONSES_AND_CHECK_NOTIFY")]
    pub fn publish(&mut self) -> Result<bool, RingError> {
        self.half.publish()
    }

    /// Requests an event at the `nth` request from here on (1: the next one), and returns whether
    /// there is a request already: then take it before sleeping.
    ///
    /// # Errors
    ///
    /// As [`poll_request`](Self::poll_request).
    #[doc(alias = "RING_FINAL_CHECK_FOR_REQUESTS")]
    pub fn arm(&mut self, nth: u32) -> Result<bool, RingError> {
        self.half.arm(nth, self.open())
    }

    /// Returns how many requests are possible: those without a published response fill the ring at
    /// most.
    fn open(&self) -> u32 {
        self.half.count - self.half.cons.wrapping_sub(self.half.published)
    }
}

#[cfg(test)]
mod tests;
