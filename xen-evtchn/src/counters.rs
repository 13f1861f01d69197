//! Counts the use of event channels and sets the cost of a simulated notify, for benchmarks.
//!
//! A simulated notify is one write to an eventfd. On Xen it is a system call with a hypercall
//! inside, so that figures from a simulated host mean something only beside the cost they assume.
//! [`set_notify_cost`] adds to it, by keeping the caller busy.
//!
//! The counts are the system calls that the same use of `/dev/xen/evtchn` would make. There is one
//! sum per process.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

static NOTIFY_COST: AtomicU64 = AtomicU64::new(0);
static NOTIFIES: AtomicU64 = AtomicU64::new(0);
static OTHERS: AtomicU64 = AtomicU64::new(0);

/// The number of calls of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Notifies.
    pub notifies: u64,
    /// System calls, notifies included.
    pub system_calls: u64,
}

/// Makes every notify of this process take `cost` longer.
pub fn set_notify_cost(cost: Duration) {
    let nanos = u64::try_from(cost.as_nanos()).unwrap_or(u64::MAX);
    NOTIFY_COST.store(nanos, Ordering::Relaxed);
}

/// Returns the counts since the process began.
#[must_use]
pub fn counts() -> Counts {
    let notifies = NOTIFIES.load(Ordering::Relaxed);
    Counts {
        notifies,
        system_calls: notifies + OTHERS.load(Ordering::Relaxed),
    }
}

/// Counts a notify that is about to be sent.
pub(crate) fn notify() {
    NOTIFIES.fetch_add(1, Ordering::Relaxed);
    let cost = NOTIFY_COST.load(Ordering::Relaxed);
    if cost != 0 {
        let (begin, cost) = (Instant::now(), Duration::from_nanos(cost));
        while begin.elapsed() < cost {
            spin_loop();
        }
    }
}

/// Counts another system call.
pub(crate) fn call() {
    OTHERS.fetch_add(1, Ordering::Relaxed);
}
