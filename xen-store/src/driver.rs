//! How several threads share one connection without a thread of its own.
//!
//! Whoever waits for something may become the *reader*: the one thread that sleeps in `poll(2)`
//! on the descriptor. It reads for everybody and wakes exactly those whose answers came. When
//! its own answer is there it leaves, and one of the others takes over.
//!
//! ```text
//!            lock                         not locked
//!   +-----------------------------+   +------------------+
//!   | my answer there?  -> leave  |   |                  |
//!   | something to send? -> send -+-->| write (one role) |
//!   | nobody reads?     -> I do  -+-->| poll  (one role) |
//!   | else              -> sleep  |   | (condvar)        |
//!   +-----------------------------+   +------------------+
//! ```
//!
//! Bytes are always *read* under the lock and without waiting, so they reach the state machine in
//! order no matter who reads. Bytes are *written* by one thread at a time, outside the lock, since
//! the xenbus device may sleep in `write`.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::error::Result;
use crate::proto::{Connection, Failure, Ready, WatchId};
use crate::ready_fd::ReadyFd;
use crate::transport::{Transport, Written};

/// Reads per turn under the lock: a flood does not keep other threads out for ever.
const READS_PER_TURN: usize = 16;
const READ_SIZE: usize = 8192;
/// Turns spent on what a peer sent before it stopped taking our bytes.
const FAREWELL_TURNS: usize = 64;

#[derive(Debug)]
pub(crate) struct Driver {
    transport: Transport,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) proto: Connection,
    reading: bool,
    writing: bool,
    waiters: Vec<Waiter>,
    /// Raised when their watch gets its first event or the connection ends.
    pub(crate) ready_fds: HashMap<WatchId, Arc<ReadyFd>>,
}

#[derive(Debug)]
struct Waiter {
    key: Ready,
    wake: Arc<Condvar>,
}

impl State {
    /// Wakes whoever waits for `ready`.
    fn announce(waiters: &[Waiter], ready_fds: &HashMap<WatchId, Arc<ReadyFd>>, ready: Ready) {
        waiters
            .iter()
            .filter(|waiter| waiter.key == ready)
            .for_each(|w| w.wake.notify_all());
        if let Ready::Event(watch) = ready {
            ready_fds.get(&watch).inspect(|ready_fd| ready_fd.raise());
        }
    }

    /// After the write role was given up with messages left: one whose message is among them
    /// has to wait for room now. It takes the role at once, so others need not wake.
    fn wake_one_sender(&self) {
        let unsent = |waiter: &&Waiter| match waiter.key {
            Ready::Reply(id) => self.proto.is_unsent(id),
            Ready::Event(_) => false,
        };
        if let Some(waiter) = self.waiters.iter().find(unsent) {
            waiter.wake.notify_all();
        }
    }

    fn wake_all(&self) {
        self.waiters
            .iter()
            .for_each(|waiter| waiter.wake.notify_all());
    }

    fn fail(&mut self, failure: Failure) {
        self.proto.fail(failure);
        self.wake_all();
        self.ready_fds
            .values()
            .for_each(|ready_fd| ready_fd.raise());
    }
}

impl Driver {
    pub(crate) fn new(transport: Transport) -> Self {
        let proto = Connection::new(transport.quirks());
        let state = State {
            proto,
            reading: false,
            writing: false,
            waiters: Vec::new(),
            ready_fds: HashMap::new(),
        };
        Self {
            transport,
            state: Mutex::new(state),
        }
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.transport
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock can panic half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` gives a value; `Ok(None)` once `deadline` has passed.
    ///
    /// `key` is what `ready` looks at. The value of a failed connection is up to `ready`, which
    /// is asked again when that happens.
    pub(crate) fn wait<T>(
        &self,
        key: Ready,
        deadline: Option<Instant>,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<Option<T>> {
        let mut state = self.lock();
        let outcome = loop {
            state = self.flush(state);
            if let Some(value) = ready(&mut state) {
                break Ok(Some(value));
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                break Ok(None);
            }
            // A message that has to wait for another one's reply needs a reader, not room.
            let unsent = match key {
                Ready::Reply(id) => state.proto.has_outgoing() && state.proto.is_unsent(id),
                Ready::Event(_) => false,
            };
            let polled;
            (state, polled) = if !state.reading {
                self.poll_as_reader(state, deadline)
            } else if unsent && !state.writing {
                self.poll_for_room(state, deadline)
            } else {
                (self.sleep(state, key, deadline), Ok(()))
            };
            if let Err(error) = polled {
                break Err(error);
            }
        };
        if !state.reading {
            // The next reader, if anyone is left; each passes it on when it leaves.
            if let Some(waiter) = state.waiters.first() {
                waiter.wake.notify_all();
            }
        }
        outcome
    }

    /// Reads what is there and sends what can be sent, without waiting.
    pub(crate) fn turn(&self) {
        let mut state = self.flush(self.lock());
        self.read_some(&mut state);
        drop(self.flush(state));
    }

    /// Sends what can be sent, without waiting for room.
    pub(crate) fn flush<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.writing || !state.proto.has_outgoing() {
            return state;
        }
        state.writing = true;
        while let Some(mut message) = state.proto.take_outgoing() {
            drop(state);
            let written = self.transport.write(message.unsent());
            state = self.lock();
            match written {
                Written::Some(count) => {
                    if !message.advance(count) {
                        state.proto.put_back(message);
                    }
                }
                Written::NotNow => {
                    state.proto.put_back(message);
                    break;
                }
                Written::Refused(errno) => {
                    let State {
                        proto,
                        waiters,
                        ready_fds,
                        ..
                    } = &mut *state;
                    proto.reject(&message, errno, &mut |r| {
                        State::announce(waiters, ready_fds, r)
                    });
                }
                Written::Gone => {
                    // Replies sent before the peer went are still wanted.
                    (0..FAREWELL_TURNS).any(|_| !self.read_some(&mut state));
                    state.fail(Failure::Closed);
                }
                Written::Failed(op, errno) => state.fail(Failure::Os(op, errno)),
            }
        }
        state.writing = false;
        if state.proto.has_outgoing() {
            state.wake_one_sender();
        }
        state
    }

    /// Takes in what can be read now. Whether there may be more.
    fn read_some(&self, state: &mut State) -> bool {
        let mut buf = [0; READ_SIZE];
        for _ in 0..READS_PER_TURN {
            if state.proto.failure().is_some() {
                return false;
            }
            let count = match self.transport.read(&mut buf) {
                Ok(None) => return false,
                Ok(Some(count)) => count,
                Err(errno) => {
                    state.fail(Failure::Os("read from the store", errno as i32));
                    return false;
                }
            };
            if count == 0 {
                state.fail(Failure::Closed);
                return false;
            }
            let State {
                proto,
                waiters,
                ready_fds,
                ..
            } = &mut *state;
            let received = proto.receive(&buf[..count], &mut |r| {
                State::announce(waiters, ready_fds, r)
            });
            if let Err(failure) = received {
                state.fail(failure);
                return false;
            }
            if count < buf.len() {
                return false;
            }
        }
        true
    }

    fn poll_as_reader<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        deadline: Option<Instant>,
    ) -> (MutexGuard<'a, State>, Result<()>) {
        let output = !state.writing && state.proto.has_outgoing();
        state.reading = true;
        state.writing |= output;
        drop(state);
        let polled = self.transport.poll(true, output, deadline);
        let mut state = self.lock();
        state.reading = false;
        if output {
            state.writing = false;
        }
        self.read_some(&mut state);
        (state, polled)
    }

    fn poll_for_room<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        deadline: Option<Instant>,
    ) -> (MutexGuard<'a, State>, Result<()>) {
        state.writing = true;
        drop(state);
        let polled = self.transport.poll(false, true, deadline);
        let mut state = self.lock();
        state.writing = false;
        (state, polled)
    }

    fn sleep<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        key: Ready,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        let wake = Arc::new(Condvar::new());
        state.waiters.push(Waiter {
            key,
            wake: Arc::clone(&wake),
        });
        let mut state = match deadline {
            None => wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                wake.wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        state
            .waiters
            .retain(|waiter| !Arc::ptr_eq(&waiter.wake, &wake));
        state
    }
}
