//! The ring of events, without I/O.

use std::fmt;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

use super::event::{Event, Response};
use super::page::RingPage;
use crate::abi::vm_event::{RING_SLOTS, SringHeader, VM_EVENT_INTERFACE_VERSION, VmEvent};
use crate::privcmd::ForeignPages;
use crate::{Error, Result};

const SLOTS: usize = RING_SLOTS as usize;
/// Words of a slot.
const SLOT: usize = size_of::<VmEvent>() / 4;
/// The number of the last event that any ring of this process took: the numbers of two rings differ.
static EVENTS: AtomicU64 = AtomicU64::new(0);
const FIRST: usize = size_of::<SringHeader>() / 4;
const REQ_PROD: usize = offset_of!(SringHeader, req_prod) / 4;
const REQ_EVENT: usize = offset_of!(SringHeader, req_event) / 4;
const RSP_EVENT: usize = offset_of!(SringHeader, rsp_event) / 4;
const RSP_PROD: usize = offset_of!(SringHeader, rsp_prod) / 4;

/// The monitor's end of the ring: takes events, puts responses.
///
/// The ring has eight slots. Xen takes a slot for each event, and gets it back when it has read a
/// response. So every event must be [answered](Self::handle_response), even one whose virtual CPU
/// is not paused. Responses may be in any order.
///
/// Nothing here blocks or makes a system call. After [`handle_response`](Self::handle_response) the
/// caller must notify the event channel.
///
/// # What the guest can change meanwhile
///
/// The page was the guest's before the ring was made in it. A domain to which the guest granted it
/// may still have it mapped, so any word of it may change at any time. Each is read once. After an
/// index that no ring can have, every call fails with [`Error::MonitorRing`]. Any other content is
/// an event like any other.
pub struct Ring {
    page: RingPage,
    /// Requests taken.
    taken: u32,
    /// Responses put.
    put: u32,
    /// Events that wait for a response.
    owed: [Option<Owed>; SLOTS],
    broken: Option<Error>,
}

/// An event that was taken and not answered.
#[derive(Clone, Copy)]
struct Owed {
    id: u64,
    response: Response,
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("taken", &self.taken)
            .field("put", &self.put)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// Makes an empty ring of the page, which Xen does not do: the page may contain what the guest
    /// wrote to it, or the ring of an earlier monitor. Xen must not have begun to write.
    pub(super) fn new(page: RingPage) -> Self {
        for word in page.words() {
            word.store(0, Ordering::Relaxed);
        }
        for event in [REQ_EVENT, RSP_EVENT] {
            page.words()[event].store(1, Ordering::Relaxed);
        }
        fence(Ordering::Release);
        Self {
            page,
            taken: 0,
            put: 0,
            owed: [None; SLOTS],
            broken: None,
        }
    }

    /// Lets the indices start elsewhere, so that they wrap soon.
    #[cfg(test)]
    pub(super) fn start_at(&mut self, index: u32) {
        (self.taken, self.put) = (index, index);
    }

    /// Makes an empty ring in a page of a guest that is paused; returns `None` if the page was not
    /// mapped.
    pub(crate) fn mapped(page: ForeignPages) -> Option<Self> {
        RingPage::foreign(page).map(Self::new)
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        &self.page.words()[at]
    }

    /// Takes the next event, if there is one, and requests a notification at the one after it.
    ///
    /// # Errors
    ///
    /// [`Error::MonitorRing`] when the page contains impossible values, from this call and every
    /// later one. Events taken before can still be answered.
    pub fn poll_event(&mut self) -> Result<Option<Event>> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        if !self.ready()? {
            return Ok(None);
        }
        let record = self.read(self.taken);
        if record.version != VM_EVENT_INTERFACE_VERSION {
            return Err(self.break_with("the version of a record", record.version));
        }
        // `ready` saw that fewer than all slots are owed.
        let Some(free) = self.owed.iter().position(Option::is_none) else {
            return Err(self.break_with("the number of events", RING_SLOTS + 1));
        };
        self.taken = self.taken.wrapping_add(1);
        let id = EVENTS.fetch_add(1, Ordering::Relaxed) + 1;
        let event = Event::new(id, &record);
        self.owed[free] = Some(Owed {
            id,
            response: Response::resume(&event),
        });
        Ok(Some(event))
    }

    /// Whether there is an event to take.
    fn ready(&mut self) -> Result<bool> {
        if self.available()? {
            return Ok(true);
        }
        // Xen notifies at each event regardless of this; other producers of such rings read it.
        let next = self.taken.wrapping_add(1);
        self.word(REQ_EVENT).store(next, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.available()
    }

    fn available(&mut self) -> Result<bool> {
        // Orders the reads of the slot after this.
        let produced = self.word(REQ_PROD).load(Ordering::Acquire);
        // A slot is Xen's again when its response was read, so at most as many events are
        // unanswered as there are slots.
        let unanswered = produced.wrapping_sub(self.put);
        let owed = self.taken.wrapping_sub(self.put);
        if unanswered > RING_SLOTS || unanswered < owed {
            return Err(self.break_with("the number of unanswered events", unanswered));
        }
        Ok(unanswered > owed)
    }

    fn break_with(&mut self, what: &'static str, value: u32) -> Error {
        let error = Error::MonitorRing { what, value };
        self.broken.insert(error).clone()
    }

    fn slot(index: u32) -> usize {
        FIRST + (index % RING_SLOTS) as usize * SLOT
    }

    /// Copies a slot, each word once.
    fn read(&self, index: u32) -> VmEvent {
        let at = Self::slot(index);
        let mut copy = [0u32; SLOT];
        for (copy, word) in copy.iter_mut().zip(&self.page.words()[at..at + SLOT]) {
            *copy = word.load(Ordering::Relaxed);
        }
        VmEvent::read_from_bytes(copy.as_bytes()).unwrap_or_else(|_| VmEvent::new_zeroed())
    }

    /// Writes the answer to an event into the ring. The caller must then notify the event channel;
    /// one notification serves all the responses before it.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the event was answered before, or belongs to another ring.
    pub fn handle_response(&mut self, response: &Response) -> Result<()> {
        let id = response.event();
        let is = |owed: &Option<Owed>| owed.is_some_and(|owed| owed.id == id);
        let Some(at) = self.owed.iter().position(is) else {
            return Err(Error::Invalid {
                op: "answer an event",
                what: "the event",
                value: id,
            });
        };
        self.owed[at] = None;
        self.write(response);
        Ok(())
    }

    fn write(&mut self, response: &Response) {
        let at = Self::slot(self.put);
        let record = response.record();
        let words = self.page.words()[at..at + SLOT].iter();
        for (word, bytes) in words.zip(record.as_bytes().chunks_exact(4)) {
            let bytes: [u8; 4] = bytes.try_into().unwrap_or_default();
            word.store(u32::from_ne_bytes(bytes), Ordering::Relaxed);
        }
        self.put = self.put.wrapping_add(1);
        // Orders the slot's words before this.
        self.word(RSP_PROD).store(self.put, Ordering::Release);
    }

    /// Answers every event that was taken and not answered, so that its virtual CPU continues;
    /// returns how many there were.
    pub fn resume_all(&mut self) -> usize {
        let owed = std::mem::take(&mut self.owed);
        let responses = owed.into_iter().flatten();
        responses.map(|o| self.write(&o.response)).count()
    }

    /// Writes a response that answers no event: a virtual CPU continues that is paused for an event
    /// of an earlier ring, which no longer exists. This ring must be discarded afterwards, because
    /// Xen then counts more slots than there are.
    pub(crate) fn resume_orphan(&mut self, vcpu: u32) {
        self.write(&Response::orphan(vcpu));
    }

    /// Events that were taken and not answered.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.owed.iter().flatten().count()
    }
}
