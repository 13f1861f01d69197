//! How several threads share one connection without a background thread.
//!
//! A thread that waits may become the *poller*: the one thread that sleeps in `poll(2)` on the
//! transport. It reads for all threads; the [`Mux`] wakes exactly those whose answers have arrived.
//! When its own answer is there it returns, and one of the others takes over.
//!
//! ```text
//!            lock                         not locked
//!   +-----------------------------+   +------------------+
//!   | something to send? -> send -+-->| write (one role) |
//!   | my answer there?  -> leave  |   |                  |
//!   | nobody polls?     -> I do  -+-->| poll  (one role) |
//!   | else              -> sleep  |   | (condvar)        |
//!   +-----------------------------+   +------------------+
//! ```
//!
//! A thread that does not wait may read as well (`try_next`, `process`, a deadline that has
//! passed). If the answer of the poller is among what it reads, it interrupts the poller: it writes
//! to an event counter in the poll set, only in this case.
//!
//! # Deadlines
//!
//! A deadline that has passed ends the wait at its next turn, whatever else happens. A turn is one
//! bounded flush, one look at the answer, one sleep and one bounded read, with up to 16 more for
//! the rest of a message. A sleep begins with a look at the transport where that is likely to save
//! it ([`spin`](crate::spin)), within the deadline too. Before that the transport is read once
//! without waiting, so a wait whose deadline has passed at the start still sees what has arrived.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::mux::{Locked, Mux, Poller, State, Stream};
use crate::proto::Ready;
use crate::spin::Look;
use crate::sync::{Condvar, MutexGuard};

/// Looks for the rest of a message before the next sleep. C's xenstored writes header and payload
/// one after the other, so a reader that the header has woken often finds nothing behind it. While
/// other threads wait, there are none: they need the processor meanwhile.
const LOOKS: usize = if cfg!(loom) { 0 } else { 16 };

/// A stream that a thread can sleep on.
pub(crate) trait Pollable: Stream {
    /// Sleeps until there is something to read, there is room (if `output`), an interruption, a
    /// signal, or `deadline` has passed. Before it sleeps it looks for these for `spin`, less if
    /// others need the processor. Returns the outcome of that look.
    fn poll(&self, output: bool, deadline: Option<Instant>, spin: Duration) -> Result<Look>;
    /// Clears the interruption, so that it does not end the next sleep.
    fn rearm(&self);
}

/// The causes that end a wait.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Until<'a> {
    pub(crate) deadline: Option<Instant>,
    /// The longest look before a sleep.
    pub(crate) spin: Duration,
    /// Set when the wait is cancelled; all waiters are woken then.
    pub(crate) cancelled: Option<&'a AtomicBool>,
}

impl Until<'_> {
    fn is_cancelled(&self) -> bool {
        self.cancelled
            .is_some_and(|flag| flag.load(Ordering::Acquire))
    }
}

impl<S: Pollable> Mux<S> {
    /// Waits until `ready` returns a value; returns `Ok(None)` once the deadline has passed.
    ///
    /// `key` names what `ready` looks at. When the connection fails, `ready` is called again and
    /// decides which value that gives.
    pub(crate) fn wait<T>(
        &self,
        key: Ready,
        until: Until<'_>,
        ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<Option<T>> {
        let state = self.enter()?;
        self.wait_in(state, key, until, ready)
    }

    /// As [`Mux::wait`], for a caller that holds the lock already.
    pub(crate) fn wait_in<'a, T>(
        &'a self,
        mut state: Locked<'a, S>,
        key: Ready,
        until: Until<'_>,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<Option<T>> {
        let deadline = until.deadline;
        let mut last_look = false;
        let outcome = loop {
            state = self.reconnect(state);
            state = self.flush(state);
            if let Some(value) = ready(&mut state) {
                break Ok(Some(value));
            }
            if last_look {
                break Ok(None);
            }
            if until.is_cancelled() {
                break Err(Error::Cancelled);
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                self.read(&mut state);
                last_look = true;
            } else if state.can_write() {
                // The flush was cut short; the deadline was checked in between.
            } else if state.poller.is_none() {
                let polled;
                (state, polled) = self.sleep_on_transport(state, key, until);
                if let Err(error) = polled {
                    break Err(error);
                }
            } else {
                state = state.sleep(key, |condvar, guard| sleep(condvar, guard, deadline));
            }
        };
        if state.poller.is_none() {
            // Wakes the next poller, if any thread is left; each passes the role on when it
            // returns.
            state.pass_on();
        }
        outcome
    }

    /// Sets `flag` and wakes all waiters, so that the waits that it cancels end. The others look
    /// once and continue.
    pub(crate) fn cancel_waits(&self, flag: &AtomicBool) {
        flag.store(true, Ordering::Release);
        // In a child of the process that made the connection no thread waits.
        if let Ok(mut state) = self.enter() {
            state.wake_all();
        }
    }

    /// As [`Mux::turn`], connecting first if it is time to.
    pub(crate) fn look<'a>(&'a self, state: Locked<'a, S>) -> Locked<'a, S> {
        let state = self.reconnect(state);
        self.turn(state)
    }

    fn sleep_on_transport<'a>(
        &'a self,
        mut state: Locked<'a, S>,
        key: Ready,
        until: Until<'_>,
    ) -> (Locked<'a, S>, Result<()>) {
        let Until { deadline, spin, .. } = until;
        let output = state.no_room && state.proto.has_outgoing();
        // While the connection is lost there is no transport to wait for, but a time to connect.
        let end = [deadline, state.retry_at()].into_iter().flatten().min();
        // Other waiters need the processor.
        let looks =
            !spin.is_zero() && !state.others_wait_for_replies() && state.spinner.poll_look();
        let spin = if looks { spin } else { Duration::ZERO };
        state.poller = Some(Poller { key, output });
        drop(state);
        let looked = self.stream().poll(output, end, spin);
        let mut state = self.lock();
        state.poller = None;
        if let Ok(look) = looked {
            state.spinner.handle_look(look);
        }
        if std::mem::take(&mut state.interrupted) {
            self.stream().rearm();
        }
        self.read(&mut state);
        let is_over = || deadline.is_some_and(|deadline| deadline <= Instant::now());
        if !state.others_wait_for_replies() {
            for _ in 0..LOOKS {
                if !state.proto.is_mid_message() || is_over() {
                    break;
                }
                std::thread::yield_now();
                self.read(&mut state);
            }
        }
        (state, looked.map(drop))
    }
}

fn sleep<'a>(
    condvar: &Condvar,
    guard: MutexGuard<'a, State>,
    deadline: Option<Instant>,
) -> MutexGuard<'a, State> {
    let Some(deadline) = deadline else {
        return condvar.wait(guard).unwrap_or_else(PoisonError::into_inner);
    };
    let left = deadline.saturating_duration_since(Instant::now());
    condvar
        .wait_timeout(guard, left)
        .unwrap_or_else(PoisonError::into_inner)
        .0
}

#[cfg(all(test, not(loom)))]
#[allow(
    clippy::unwrap_used,
    reason = "the lint exempts test functions, but not the helpers beside them"
)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;

    use nix::errno::Errno;

    use super::*;
    use crate::proto::{Quirks, RequestId, Tx};
    use crate::request::{Read, Request as _};
    use crate::transport::Written;
    use crate::wire;

    /// A transport that returns these pieces one after the other, or nothing where one is empty.
    #[derive(Debug, Default)]
    struct Pieces {
        reads: RefCell<VecDeque<Option<Vec<u8>>>>,
        /// The last message written.
        sent: RefCell<Vec<u8>>,
        sleeps: Cell<usize>,
        /// The longest look before the last of them.
        spin: Cell<Duration>,
    }

    impl Stream for Pieces {
        fn read(&self, buf: &mut [u8]) -> std::result::Result<Option<usize>, Errno> {
            let piece = self.reads.borrow_mut().pop_front().flatten();
            Ok(piece.map(|piece| {
                buf[..piece.len()].copy_from_slice(&piece);
                piece.len()
            }))
        }

        fn writer(&self) -> impl Fn(&[u8]) -> Written {
            |bytes| {
                *self.sent.borrow_mut() = bytes.to_vec();
                Written::Some(bytes.len())
            }
        }
    }

    impl Pollable for Pieces {
        fn poll(&self, _: bool, deadline: Option<Instant>, spin: Duration) -> Result<Look> {
            self.spin.set(spin);
            self.sleeps.set(self.sleeps.get() + 1);
            assert!(self.sleeps.get() < 10, "the answer was missed");
            if let Some(deadline) = deadline {
                std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
            }
            Ok(if spin.is_zero() {
                Look::None
            } else {
                Look::InVain
            })
        }

        fn rearm(&self) {}
    }

    fn submit(mux: &Mux<Pieces>) -> Result<RequestId> {
        mux.submit(Tx::NONE, Read { path: "/a" }.encode()?)
    }

    /// Waits for an answer whose payload arrives after `gap` empty reads. Returns whether it was
    /// taken.
    fn wait(mux: &Mux<Pieces>, gap: usize, deadline: Option<Instant>) -> bool {
        let id = submit(mux).unwrap();
        let header: [u8; wire::Header::SIZE] = mux.stream().sent.borrow()[..wire::Header::SIZE]
            .try_into()
            .unwrap();
        let header = wire::Header::from_bytes(&header);
        let message = wire::encode(header.kind, header.req_id, 0, &[b"value"]).unwrap();
        let (header, payload) = message.split_at(wire::Header::SIZE);
        let mut reads = mux.stream().reads.borrow_mut();
        reads.push_back(Some(header.to_vec()));
        reads.extend(std::iter::repeat_n(None, gap));
        reads.push_back(Some(payload.to_vec()));
        drop(reads);
        mux.stream().sleeps.set(0);
        let taken = |state: &mut State| state.proto.take_reply(id);
        let until = Until {
            deadline,
            ..Until::default()
        };
        let answer = mux.wait(Ready::Reply(id), until, taken).unwrap();
        answer.is_some_and(|(value, _)| value.unwrap() == b"value")
    }

    /// Returns the sleeps until such an answer was taken.
    fn sleeps(mux: &Mux<Pieces>, gap: usize) -> usize {
        assert!(wait(mux, gap, None));
        mux.stream().sleeps.get()
    }

    #[test]
    fn the_rest_of_a_message_is_looked_for_before_the_next_sleep() {
        let mux = Mux::new(Pieces::default(), Quirks::SOCKET);
        assert_eq!(sleeps(&mux, 0), 1);
        assert_eq!(sleeps(&mux, LOOKS - 1), 1);
        // The looks are bounded, whatever the daemon does.
        assert_eq!(sleeps(&mux, LOOKS + 1), 2);
    }

    #[test]
    fn a_deadline_that_passes_in_a_message_ends_the_wait() {
        let mux = Mux::new(Pieces::default(), Quirks::SOCKET);
        let soon = Instant::now() + Duration::from_millis(5);
        assert!(!wait(&mux, 4, Some(soon)));
        assert_eq!(mux.stream().sleeps.get(), 1);
    }

    /// Returns whether a wait that found nothing looked at the transport before it slept.
    fn looks(mux: &Mux<Pieces>) -> bool {
        let spin = Duration::from_micros(50);
        let until = Until {
            deadline: Some(Instant::now() + Duration::from_millis(1)),
            spin,
            cancelled: None,
        };
        mux.stream().sleeps.set(0);
        let never = |_: &mut State| None::<()>;
        assert_eq!(mux.wait(Ready::Ended, until, never).unwrap(), None);
        mux.stream().spin.get() == spin
    }

    #[test]
    fn a_look_in_vain_makes_the_next_ones_rare() {
        let mux = Mux::new(Pieces::default(), Quirks::SOCKET);
        let looks: Vec<bool> = (0..8).map(|_| looks(&mux)).collect();
        let rare = [true, false, false, true, false, false, false, false];
        assert_eq!(looks, rare);
    }

    #[test]
    fn nobody_looks_while_others_wait_for_answers() {
        let mux = Mux::new(Pieces::default(), Quirks::SOCKET);
        let other = submit(&mux).unwrap();
        let wake = crate::mux::Wake::Thread(std::sync::Arc::new(Condvar::new()));
        mux.lock().add_waiter(Ready::Reply(other), wake);
        assert_eq!(sleeps(&mux, 1), 3);
        assert!(!looks(&mux));
    }
}
