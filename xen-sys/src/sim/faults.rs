//! Fault injection: what a test can make the simulated host do to its domains.

use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::event::epoll;

use super::ports::{bell, ring};
use crate::DomId;

/// An operation of a process on the hypervisor, for a [`Fault`] to name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Op {
    /// `EventChannels::bind_unbound`.
    BindUnbound,
    /// `EventChannels::bind_interdomain`.
    BindInterdomain,
    /// `EventChannels::bind_virq`.
    BindVirq,
    /// A port is closed.
    Unbind,
    /// `xen_gnttab::share`.
    Share,
    /// `xen_gnttab::map`.
    Map,
    /// Frames or a resource of another domain are mapped, as by `xen_gnttab::foreign`.
    MapForeign,
    /// Shared or mapped pages are given back.
    Release,
    /// An unmap notification is set.
    SetUnmapNotify,
    /// A connection to the store is requested.
    Store,
    /// A hypercall through `Privcmd`; after `EPERM` that call requests the hypervisor's version,
    /// which is one more.
    Hypercall,
}

/// A fault; see [`Simulation::inject`](super::Simulation::inject).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The `nth` next operation of this kind by `domain` (the first is 1) fails with `errno`, and
    /// has no other effect.
    Fail {
        /// The domain that makes the request.
        domain: DomId,
        /// The operation.
        op: Op,
        /// How many from now.
        nth: u32,
        /// The errno, such as 28 for `ENOSPC`.
        errno: i32,
    },
    /// `domain` dies when it requests the `nth` next operation of this kind (the first is 1): the
    /// operation does not happen, and everything the domain has is cleaned up.
    Kill {
        /// The domain that dies.
        domain: DomId,
        /// The operation.
        op: Op,
        /// How many from now.
        nth: u32,
    },
    /// Events to `domain` arrive late and perhaps more than once. For channels made from now
    /// on.
    Events {
        /// The domain that receives the events.
        to: DomId,
        /// The minimal delay.
        delay: Duration,
        /// How many more times each event arrives, with the same delay in between.
        copies: u32,
    },
}

/// The fate of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Go,
    Fail(i32),
    Kill,
}

/// The faults that have not happened yet.
#[derive(Debug, Default)]
pub(super) struct Faults {
    list: Vec<Fault>,
    interposers: HashMap<u64, Weak<Interposer>>,
    next: u64,
    late: BinaryHeap<Late>,
}

impl Faults {
    pub(super) fn inject(&mut self, fault: Fault) {
        self.list.push(fault);
    }

    /// Forgets the faults that have not happened. Channels made under [`Fault::Events`] stay as
    /// they are.
    pub(super) fn clear(&mut self) {
        self.list.clear();
    }

    /// Counts a request and returns its fate. The first fault that is due is used up.
    pub(super) fn verdict(&mut self, by: DomId, what: Op) -> Verdict {
        let mut due = None;
        for (i, fault) in self.list.iter_mut().enumerate() {
            let (Fault::Fail {
                domain, op, nth, ..
            }
            | Fault::Kill { domain, op, nth }) = fault
            else {
                continue;
            };
            if (*domain, *op) == (by, what) {
                *nth = nth.saturating_sub(1);
                if *nth == 0 && due.is_none() {
                    due = Some(i);
                }
            }
        }
        match due.map(|i| self.list.remove(i)) {
            Some(Fault::Fail { errno, .. }) => Verdict::Fail(errno),
            Some(Fault::Kill { .. }) => Verdict::Kill,
            _ => Verdict::Go,
        }
    }

    /// Returns what a fault puts between a new bell and those who ring it for `to`. `token` makes
    /// the epoll token from an interposer's number.
    pub(super) fn interpose(
        &mut self,
        to: DomId,
        wait: &OwnedFd,
        set: &Arc<OwnedFd>,
        token: fn(u64) -> u64,
    ) -> io::Result<Option<Arc<Interposer>>> {
        let fault = self.list.iter().rev().find_map(|f| match *f {
            Fault::Events {
                to: t,
                delay,
                copies,
            } if t == to => Some((delay, copies)),
            _ => None,
        });
        let Some((delay, copies)) = fault else {
            return Ok(None);
        };
        self.next += 1;
        let (ring, wait) = (bell()?, wait.try_clone()?);
        let data = epoll::EventData::new_u64(token(self.next));
        epoll::add(&**set, &ring, data, epoll::EventFlags::IN)?;
        let interposer = Arc::new(Interposer {
            ring,
            wait,
            delay,
            copies,
            set: Arc::clone(set),
        });
        self.interposers.retain(|_, i| i.strong_count() > 0);
        self.interposers
            .insert(self.next, Arc::downgrade(&interposer));
        Ok(Some(interposer))
    }

    /// Records that an interposer was rung: its event will be delivered later.
    pub(super) fn rung(&mut self, number: u64, now: Instant) {
        let Some(interposer) = self.interposers.get(&number).and_then(Weak::upgrade) else {
            return;
        };
        let mut count = [0; 8];
        if rustix::io::read(&interposer.ring, &mut count).is_err() {
            return;
        }
        for copy in 1..=interposer.copies + 1 {
            let due = now + interposer.delay * copy;
            self.late.push(Late {
                due,
                interposer: Arc::clone(&interposer),
            });
        }
    }

    /// Delivers what is due, and returns when the next is.
    pub(super) fn deliver(&mut self, now: Instant) -> Option<Instant> {
        while let Some(late) = self.late.peek() {
            if late.due > now {
                return Some(late.due);
            }
            ring(&late.interposer.wait);
            self.late.pop();
        }
        None
    }
}

/// A fault between the two ends of a bell: the sender rings it, and it rings the receiver later.
#[derive(Debug)]
pub(super) struct Interposer {
    ring: OwnedFd,
    wait: OwnedFd,
    delay: Duration,
    copies: u32,
    /// The broker's set, which `ring` is in.
    set: Arc<OwnedFd>,
}

impl Interposer {
    pub(super) fn ring_end(&self) -> &OwnedFd {
        &self.ring
    }
}

impl Drop for Interposer {
    fn drop(&mut self) {
        // The sender has the same eventfd, so closing ours would leave it in the set.
        let _ = epoll::delete(&*self.set, &self.ring);
    }
}

/// An event to be delivered; the heap's greatest is the next.
#[derive(Debug)]
struct Late {
    due: Instant,
    interposer: Arc<Interposer>,
}

impl Ord for Late {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.due.cmp(&self.due)
    }
}

impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Late {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Late {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_request_of_the_kind_fails_once() {
        let (a, b) = (DomId::new(1), DomId::new(2));
        let mut f = Faults::default();
        f.inject(Fault::Fail {
            domain: a,
            op: Op::Map,
            nth: 2,
            errno: 12,
        });
        f.inject(Fault::Kill {
            domain: a,
            op: Op::Map,
            nth: 3,
        });
        assert_eq!(f.verdict(a, Op::Map), Verdict::Go);
        assert_eq!(f.verdict(b, Op::Map), Verdict::Go);
        assert_eq!(f.verdict(a, Op::Share), Verdict::Go);
        assert_eq!(f.verdict(a, Op::Map), Verdict::Fail(12));
        assert_eq!(f.verdict(a, Op::Map), Verdict::Kill);
        assert_eq!(f.verdict(a, Op::Map), Verdict::Go);
    }
}
