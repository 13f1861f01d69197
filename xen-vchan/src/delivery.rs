//! Delivery of one channel's events to the threads and tasks that wait for them. No I/O.
//!
//! A channel has one event for both directions, and the kernel delivers it to one caller. The rule:
//! *the caller that takes an event wakes every other waiter*, because the event may be theirs. The
//! blocking driver (`doorbell.rs`) and the async one (`tokio/`) both wait through this module, and
//! `tests/loom.rs` models both.
//!
//! | waiter | sleeps in | is woken by |
//! |---|---|---|
//! | the leading thread | the kernel | the event itself |
//! | any other thread | a condition variable | the leader, when it returns |
//! | a task | its runtime | its waker, kept here until the event is taken |

#![allow(unreachable_pub, reason = "public to the models alone")]
#![cfg_attr(
    not(any(feature = "tokio", loom)),
    allow(dead_code, reason = "without a runtime there are no tasks")
)]

use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Instant;

use crate::sync::{AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard, Ordering};

/// Counts events and wakes the waiters of each.
#[derive(Debug)]
pub struct Delivery {
    /// The kernel delivered an event and the port was not unmasked since.
    masked: AtomicBool,
    /// Counts events; a thread sleeps only while this has the value that the thread last saw.
    seen: AtomicU64,
    threads: Mutex<Threads>,
    woken: Condvar,
    tasks: Arc<Tasks>,
}

/// The threads that wait.
#[derive(Debug)]
struct Threads {
    /// One of them sleeps in the kernel on behalf of all.
    led: bool,
    /// The number of those that sleep on the condition variable.
    followers: usize,
}

impl Default for Delivery {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Delivery {
    /// Creates the state before any event. Each event will wake `tasks`.
    #[must_use]
    pub fn new(tasks: Arc<Tasks>) -> Self {
        Self {
            masked: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            threads: Mutex::new(Threads {
                led: false,
                followers: 0,
            }),
            woken: Condvar::new(),
            tasks,
        }
    }

    /// Returns the tasks that wait.
    pub fn tasks(&self) -> &Arc<Tasks> {
        &self.tasks
    }

    /// Returns whether an event was taken and the port is still masked, so that no other can be
    /// pending.
    pub fn is_masked(&self) -> bool {
        self.masked.load(Ordering::Acquire)
    }

    /// Records that the caller unmasks the port; returns `false` if it is not masked.
    pub fn begin_unmask(&self) -> bool {
        // A read-modify-write only where there is something to modify.
        self.masked.load(Ordering::Acquire) && self.masked.swap(false, Ordering::AcqRel)
    }

    /// Returns the event counter. Read it before requesting a notification and looking again.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Acquire)
    }

    /// Records that the caller has taken an event: the port is masked, and every waiter is woken.
    ///
    /// Only the kernel wakes a thread that sleeps in the kernel. The caller is that thread, or
    /// there is none.
    pub fn event_taken(&self) {
        self.masked.store(true, Ordering::Release);
        self.changed();
    }

    /// Wakes every waiter for something that is not an event.
    pub fn changed(&self) {
        self.seen.fetch_add(1, Ordering::AcqRel);
        self.tasks.wake_all();
        let threads = lock(&self.threads);
        self.wake_followers(&threads);
    }

    fn wake_followers(&self, threads: &Threads) {
        // Mostly there is no follower, and waking none is a system call too.
        if threads.followers != 0 {
            self.woken.notify_all();
        }
    }

    /// Blocks until an event after `seen` was read, and returns `true`; or until the deadline, and
    /// returns `false`.
    ///
    /// One thread at a time calls `sleep`, which blocks in the kernel, calls
    /// [`event_taken`](Self::event_taken) for an event and returns whether there was one.
    ///
    /// # Errors
    ///
    /// Those of `sleep`.
    pub fn wait<E>(
        &self,
        seen: u64,
        deadline: Option<Instant>,
        sleep: impl FnOnce() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let mut threads = lock(&self.threads);
        loop {
            if self.seen() != seen {
                return Ok(true);
            }
            if !threads.led {
                break;
            }
            let left = match deadline {
                None => None,
                Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                    None => return Ok(false),
                    left => left,
                },
            };
            threads.followers += 1;
            threads = match left {
                None => self
                    .woken
                    .wait(threads)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    self.woken
                        .wait_timeout(threads, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
            threads.followers -= 1;
        }
        threads.led = true;
        drop(threads);
        let result = sleep();
        let mut threads = lock(&self.threads);
        threads.led = false;
        // Also after a deadline or an error: another thread must take the lead.
        self.wake_followers(&threads);
        result
    }
}

/// The part of a channel that a task waits for; one task each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes to read.
    Read,
    /// Space to write to.
    Write,
    /// The peer's arrival.
    Connected,
}

/// The wakers of the tasks that wait for one channel. As a waker itself it wakes all of them.
#[derive(Debug, Default)]
pub struct Tasks(Mutex<[Option<Waker>; 3]>);

impl Tasks {
    /// Wakes every task that waits.
    pub fn wake_all(&self) {
        // Outside the lock: a waker may run code of the runtime.
        let all = std::mem::take(&mut *lock(&self.0));
        all.into_iter().flatten().for_each(Waker::wake);
    }

    fn set(&self, interest: Interest, waker: &Waker) {
        let replaced = {
            let mut slots = lock(&self.0);
            let slot = &mut slots[interest as usize];
            match slot {
                Some(same) if same.will_wake(waker) => None,
                _ => slot.replace(waker.clone()),
            }
        };
        drop(replaced);
    }

    fn clear(&self, interest: Interest) {
        let own = lock(&self.0)[interest as usize].take();
        drop(own);
    }
}

impl Wake for Tasks {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}

/// A runtime's edge-triggered knowledge of whether the channel's descriptor is readable.
pub trait Readiness {
    /// Why the readiness is unknown.
    type Error;
    /// A readiness, to be [forgotten](Self::forget).
    type Ready<'a>
    where
        Self: 'a;

    /// Returns whether the descriptor was readable at the runtime's last notification; if not,
    /// wakes `cx` when it becomes so. Remembers one waker only.
    ///
    /// # Errors
    ///
    /// The runtime is shutting down.
    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<Self::Ready<'_>, Self::Error>>;

    /// Forgets that the descriptor was readable, unless it became so again since.
    fn forget(ready: Self::Ready<'_>);
}

/// One poll of a task that waits for `interest` of `channel`: `attempt` returns `None` if it must
/// wait and has asked for the event. `take_event` takes the event, if there is one, with
/// [`Delivery::event_taken`].
///
/// The runtime's readiness may be left over from an event that was taken long ago. So `take_event`
/// may take an event that the runtime never sees: the descriptor is no longer readable when it
/// looks. Only `event_taken` wakes the other tasks then.
///
/// # Errors
///
/// Those of `readiness` and `take_event`.
pub fn poll_task<C, T, R: Readiness>(
    channel: &mut C,
    (tasks, interest): (&Arc<Tasks>, Interest),
    readiness: &R,
    cx: &mut Context<'_>,
    mut attempt: impl FnMut(&mut C) -> Option<T>,
    mut take_event: impl FnMut(&mut C) -> Result<(), R::Error>,
) -> Poll<Result<T, R::Error>> {
    loop {
        if let Some(done) = attempt(channel) {
            return Poll::Ready(Ok(done));
        }
        // The runtime keeps one waker, so that one must wake every task.
        let everybody = Waker::from(Arc::clone(tasks));
        // Before the runtime can call `everybody`.
        tasks.set(interest, cx.waker());
        let ready = ready!(readiness.poll_ready(&mut Context::from_waker(&everybody)))?;
        // This task is awake: it attempts again without being woken.
        tasks.clear(interest);
        // In this order: the port is masked from the first step until the next attempt unmasks it,
        // so no event can come in between and be forgotten with the old one.
        let taken = take_event(channel);
        R::forget(ready);
        taken?;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain values are behind these locks: a panic cannot leave them half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
