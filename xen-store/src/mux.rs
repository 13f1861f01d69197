//! One connection shared by many waits: who reads, in what order, and who is woken.
//!
//! Both drivers are built on this, the blocking one (`driver`) and the one for tokio. They differ
//! in who sleeps on the transport; everything else is here, so that each rule is implemented once:
//!
//! * Bytes are *read* under the lock that guards the state machine, so they reach it in the order
//!   in which they arrived, whoever reads them ([`Mux::read`]).
//! * Messages are *written* by one caller at a time, outside the lock, because the xenbus device
//!   may sleep in `write` ([`Mux::flush`]). The transport is chosen under the lock, so that a
//!   message is written only to the transport for which it was taken.
//! * The state machine is reachable through [`Locked`] only. Releasing the lock wakes exactly those
//!   whose wait may be over, whatever was done under the lock (bytes read by a thread that waits
//!   for something else, a request cancelled, a failure) and whoever did it. The end of the
//!   connection wakes all.
//!
//! | waits for | is woken by |
//! |---|---|
//! | an answer or event, as a thread | its condition variable |
//! | an answer or event, as a task | its waker |
//! | an event, in a poll loop | the watch's [`ReadyFd`] |
//! | the transport, in `poll(2)` | the transport, or [`Stream::interrupt`] if its own answer, room to ask for, or the end is seen by another thread |
//! | the transport, as the connection's task | the transport, or its waker |

use std::collections::{BTreeMap, HashMap};
use std::mem::take;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError};
use std::task::Waker;
#[cfg(any(feature = "tokio", all(test, loom)))]
use std::task::{Context, Poll, ready};
use std::time::Instant;

use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::proto::{Connection, Failure, Quirks, Ready, RequestId, Tx, WatchId};
use crate::ready_fd::ReadyFd;
use crate::reconnect::{Reconnect, Schedule};
#[cfg(any(feature = "tokio", test))]
use crate::request::Encoded;
use crate::request::Request;
use crate::spin::Spinner;
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::transport::Written;
use crate::wire::MsgType;

/// Reads per turn under the lock: a flood does not keep other callers out forever.
const READS_PER_TURN: usize = 16;
const READ_SIZE: usize = 8192;
/// Messages written per call of [`Mux::flush`]: the requests of others do not keep a caller from
/// its deadline.
const MESSAGES_PER_FLUSH: usize = 32;
/// Turns spent on what a peer sent before it stopped reading.
const FAREWELL_TURNS: usize = 64;

/// The transport, as the state machine's bytes need it. Nothing here waits.
pub(crate) trait Stream {
    /// Reads; `Ok(None)` if there is nothing now, `Ok(Some(0))` at the end.
    fn read(&self, buf: &mut [u8]) -> std::result::Result<Option<usize>, Errno>;
    /// Returns what writes to the current transport, which a later [`Stream::install`] does not
    /// replace. It does not wait for room; the xenbus device sleeps until it has the message.
    fn writer(&self) -> impl Fn(&[u8]) -> Written;
    /// Whether a read of `count` bytes into a buffer of `size` took all there was.
    fn is_drained(&self, count: usize, size: usize) -> bool {
        count < size
    }
    /// Ends the sleep of the thread that sleeps on the transport, or its next one.
    fn interrupt(&self) {}
    /// Called when the transport has ended; the next attempt to connect is due at `retry`.
    fn handle_loss(&self, retry: Instant) {
        let _ = retry;
    }
    /// Connects again, without waiting. Called without the lock, by one caller at a time.
    ///
    /// # Errors
    ///
    /// Why there is no connection.
    fn connect_again(&self) -> Result<Quirks> {
        Err(Error::Unsupported)
    }
    /// Takes the transport that [`Stream::connect_again`] made.
    fn install(&self) {}
}

/// The direction in which a caller waits for a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg(any(feature = "tokio", all(test, loom)))]
pub(crate) enum Direction {
    Read,
    Write,
}

/// A stream that a task can wait on.
#[cfg(any(feature = "tokio", all(test, loom)))]
pub(crate) trait Reactor: Stream {
    /// Runs `io` if the stream is ready; `io` returns whether it used that up. Otherwise the task
    /// is woken when it is.
    fn poll_io(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        io: &mut dyn FnMut() -> bool,
    ) -> Poll<std::io::Result<()>>;
}

#[derive(Debug)]
pub(crate) struct Mux<S> {
    stream: S,
    state: Mutex<State>,
    /// The process it belongs to. Asking for it costs one system call a request, and a child of
    /// that process is recognised without the lock, which another thread of the parent may have
    /// held while it forked.
    process: u32,
}

/// Everything under the lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) proto: Connection,
    /// The waiters, by what they wait for; the number distinguishes several of one kind.
    waiters: BTreeMap<(Ready, u64), Wake>,
    next_waiter: u64,
    /// Raised when their watch gets its first event or the connection ends.
    pub(crate) ready_fds: HashMap<WatchId, Arc<ReadyFd>>,
    /// A caller is in `write`, outside the lock.
    writing: bool,
    /// The transport took no more: the poller must wait for room as well.
    pub(crate) no_room: bool,
    /// The thread that sleeps on the transport.
    pub(crate) poller: Option<Poller>,
    /// [`Stream::interrupt`] was called and not seen yet.
    pub(crate) interrupted: bool,
    /// Which sleeps on the transport begin with a look.
    pub(crate) spinner: Spinner,
    /// The task that waits on the transport.
    driver: Option<Waker>,
    /// The attempts to connect after a loss, if the connection survives it.
    schedule: Option<Schedule>,
    /// A caller connects, outside the lock.
    connecting: bool,
}

/// A thread asleep on the transport.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Poller {
    /// The event that the thread itself waits for.
    pub(crate) key: Ready,
    /// The thread wakes up when there is room.
    pub(crate) output: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Wake {
    Thread(Arc<Condvar>),
    Task(Waker),
}

impl Wake {
    fn wake(self) {
        match self {
            Self::Thread(condvar) => condvar.notify_all(),
            Self::Task(waker) => waker.wake(),
        }
    }
}

/// The lock, held. Releasing it wakes those whose wait may be over.
#[derive(Debug)]
pub(crate) struct Locked<'a, S: Stream> {
    mux: &'a Mux<S>,
    /// `None` only while it is being given up.
    guard: Option<MutexGuard<'a, State>>,
    /// The waiters to wake when the lock is released.
    wakes: Vec<Wake>,
}

impl<S: Stream> Mux<S> {
    pub(crate) fn new(stream: S, quirks: Quirks) -> Self {
        let state = State {
            proto: Connection::new(quirks),
            waiters: BTreeMap::new(),
            next_waiter: 0,
            ready_fds: HashMap::new(),
            writing: false,
            no_room: false,
            poller: None,
            interrupted: false,
            spinner: Spinner::default(),
            driver: None,
            schedule: None,
            connecting: false,
        };
        Self {
            stream,
            state: Mutex::new(state),
            process: std::process::id(),
        }
    }

    pub(crate) fn stream(&self) -> &S {
        &self.stream
    }

    /// Returns the same connection over a stream made from its own.
    pub(crate) fn map_stream<E>(
        self,
        map: impl FnOnce(S) -> std::result::Result<S, E>,
    ) -> std::result::Result<Self, E> {
        let stream = map(self.stream)?;
        Ok(Self { stream, ..self })
    }

    /// Makes the end of the transport a loss, after which `policy` decides when to connect.
    pub(crate) fn survive(&self, policy: Reconnect) -> Result<()> {
        let mut state = self.enter()?;
        if let Some(failure) = state.proto.failure() {
            return Err(failure.into());
        }
        state.proto.survive(policy.repeat);
        state.schedule = Some(Schedule::new(policy, Instant::now()));
        Ok(())
    }

    /// Connects if the connection is lost and an attempt is due.
    pub(crate) fn reconnect<'a>(&'a self, mut state: Locked<'a, S>) -> Locked<'a, S> {
        if state.proto.loss().is_none() {
            return state;
        }
        // The loss may have been found under this lock.
        state.announce();
        let is_due = |at| at <= Instant::now();
        if !state.retry_at().is_some_and(is_due) {
            return state;
        }
        state.connecting = true;
        drop(state);
        let connected = self.stream.connect_again();
        let mut state = self.lock();
        state.connecting = false;
        match connected {
            Ok(quirks) if state.proto.loss().is_some() => {
                self.stream.install();
                state.proto.handle_reconnected(quirks);
                if let Some(schedule) = &mut state.schedule {
                    schedule.handle_connected(Instant::now());
                }
            }
            Ok(_) => {}
            Err(error) => {
                let next = state
                    .schedule
                    .as_mut()
                    .and_then(|schedule| schedule.handle_refusal(Instant::now()));
                match next {
                    Some(retry) => self.stream.handle_loss(retry),
                    None => {
                        let errno = error.errno().unwrap_or(libc::EIO);
                        let failure = Failure::Os("connect to the store again", errno);
                        state.proto.give_up(failure);
                    }
                }
            }
        }
        // For the poller, or the next one: it sleeps on another transport now, or until another
        // time.
        state.pass_on();
        state
    }

    /// Returns the lock, for a caller that begins an operation.
    ///
    /// # Errors
    ///
    /// [`Error::Forked`] in a child of the process that made the connection: the transport and
    /// everything in memory belong to the parent.
    pub(crate) fn enter(&self) -> Result<Locked<'_, S>> {
        if self.is_inherited() {
            Err(Error::Forked)
        } else {
            Ok(self.lock())
        }
    }

    /// Checks that the transport forwards the depth of a watch.
    ///
    /// # Errors
    ///
    /// [`Error::NotOffered`] if it does not.
    pub(crate) fn passes_depth(&self) -> Result<()> {
        if self.enter()?.proto.quirks().watch_depth {
            Ok(())
        } else {
            Err(Error::NotOffered { op: MsgType::WATCH })
        }
    }

    /// Whether this is a child of the process that made the connection.
    pub(crate) fn is_inherited(&self) -> bool {
        std::process::id() != self.process
    }

    /// Returns the lock, for a caller that has already called [`Mux::enter`].
    pub(crate) fn lock(&self) -> Locked<'_, S> {
        // No code under the lock can panic half way through a change.
        let guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Locked {
            mux: self,
            guard: Some(guard),
            wakes: Vec::new(),
        }
    }

    /// Sends what can be sent, without waiting for room.
    pub(crate) fn flush<'a>(&'a self, mut state: Locked<'a, S>) -> Locked<'a, S> {
        let mut left = MESSAGES_PER_FLUSH;
        while !state.writing {
            if left == 0 && state.proto.has_outgoing() {
                state.pass_on();
                break;
            }
            let Some(mut message) = state.proto.poll_outgoing() else {
                break;
            };
            left -= 1;
            state.writing = true;
            let epoch = state.proto.epoch();
            // Chosen under the lock: the next transport must not get a message of this one.
            let write = self.stream.writer();
            drop(state);
            let written = write(message.unsent());
            state = self.lock();
            state.writing = false;
            if state.proto.epoch() != epoch {
                // The transport that it was written to is lost, and the message with it.
                continue;
            }
            match written {
                Written::Some(count) => {
                    state.no_room = false;
                    if !message.advance(count) {
                        state.proto.put_back(message);
                    }
                }
                Written::NotNow => {
                    state.proto.put_back(message);
                    state.ask_for_room();
                    break;
                }
                Written::Refused(errno) => state.proto.handle_rejection(&message, errno),
                Written::Gone => {
                    // The daemon has not got all of it.
                    state.proto.put_back(message);
                    // Replies sent before the peer left are still wanted.
                    (0..FAREWELL_TURNS).any(|_| !self.read(&mut state));
                    if state.proto.epoch() != epoch {
                        continue;
                    }
                    state.proto.handle_failure(Failure::Closed);
                }
                Written::Failed(op, errno) => {
                    state.proto.put_back(message);
                    state.proto.handle_failure(Failure::Os(op, errno));
                }
            }
        }
        state
    }

    /// Reads what is available now. Returns whether there may be more.
    pub(crate) fn read(&self, state: &mut Locked<'_, S>) -> bool {
        let mut buf = [0; READ_SIZE];
        for _ in 0..READS_PER_TURN {
            if state.proto.failure().is_some() || state.proto.loss().is_some() {
                return false;
            }
            match self.stream.read(&mut buf) {
                Ok(None) => return false,
                Ok(Some(0)) => state.proto.handle_failure(Failure::Closed),
                Ok(Some(count)) => {
                    let received = state.proto.handle_input(&buf[..count]);
                    if received.is_err() || self.stream.is_drained(count, buf.len()) {
                        return false;
                    }
                }
                Err(errno) => {
                    let failure = Failure::Os("read from the store", errno as i32);
                    state.proto.handle_failure(failure);
                }
            }
        }
        true
    }

    /// Reads what is there and sends what can be sent, without waiting.
    pub(crate) fn turn<'a>(&'a self, state: Locked<'a, S>) -> Locked<'a, S> {
        let mut state = self.flush(state);
        self.read(&mut state);
        // A reply that was read may let more be sent, or must be given back.
        self.flush(state)
    }

    /// Makes a request and sends it, if that needs no waiting.
    #[cfg(any(feature = "tokio", test))]
    pub(crate) fn submit(&self, tx: Tx, message: Encoded) -> Result<RequestId> {
        let mut state = self.enter()?;
        let id = state.proto.submit_in(tx, message)?;
        drop(self.flush(state));
        Ok(id)
    }

    /// Cancels a request, and gives back what the daemon grants to it all the same.
    pub(crate) fn cancel(&self, id: RequestId, watch: Option<WatchId>) {
        // In a child there is nothing to give back.
        if let Ok(mut state) = self.enter() {
            state.proto.cancel(id, true, watch);
            drop(self.flush(state));
        }
    }

    /// Makes a request whose answer does not matter, and sends it if that needs no waiting.
    pub(crate) fn send_detached(&self, tx: Tx, request: &impl Request) {
        // A request that gives something back has the fields of one that was accepted before.
        let Ok(message) = request.encode() else {
            return;
        };
        let Ok(mut state) = self.enter() else {
            return;
        };
        // A finished connection has nothing to give back, nor has one that was lost since.
        if state.proto.submit_detached(tx, message).is_ok() {
            drop(self.flush(state));
        }
    }
}

/// A task's place among the waiters.
#[derive(Debug)]
#[cfg(any(feature = "tokio", all(test, loom)))]
pub(crate) struct Place {
    key: Ready,
    /// Its number while it waits.
    number: Option<u64>,
}

#[cfg(any(feature = "tokio", all(test, loom)))]
impl Place {
    pub(crate) fn new(key: Ready) -> Self {
        Self { key, number: None }
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn is_taken(&self) -> bool {
        self.number.is_some()
    }

    /// Leaves, so that nothing is woken without need.
    pub(crate) fn leave(&mut self, state: &mut State) {
        if let Some(number) = self.number.take() {
            state.waiters.remove(&(self.key, number));
        }
    }
}

/// For tasks.
#[cfg(any(feature = "tokio", all(test, loom)))]
impl<S: Stream> Mux<S> {
    /// Returns the value of `ready`, or takes a place among those who wait for it.
    pub(crate) fn poll_wait<T>(
        &self,
        place: &mut Place,
        cx: &mut Context<'_>,
        ready: impl FnOnce(&mut State) -> Option<T>,
    ) -> Poll<Result<T>> {
        let entered = match place.key {
            // The same call made the request, after a check of the process.
            Ready::Reply(_) => Ok(self.lock()),
            _ => self.enter(),
        };
        let mut state = match entered {
            Ok(state) => state,
            Err(error) => return Poll::Ready(Err(error)),
        };
        if let Some(value) = ready(&mut state) {
            place.leave(&mut state);
            return Poll::Ready(Ok(value));
        }
        let number = match place.number {
            Some(number) => number,
            None => *place.number.insert(state.fresh_waiter()),
        };
        let wake = Wake::Task(cx.waker().clone());
        state.waiters.insert((place.key, number), wake);
        Poll::Pending
    }

    /// Makes the current task the one that waits on the transport, and sends what can be sent.
    /// Returns whether there is anything left to wait for.
    fn drive(&self, cx: &Context<'_>) -> bool {
        let mut state = self.lock();
        if !state
            .driver
            .as_ref()
            .is_some_and(|own| own.will_wake(cx.waker()))
        {
            state.driver = Some(cx.waker().clone());
        }
        if state.can_write() {
            state = self.flush(state);
        }
        state.proto.failure().is_none() && state.proto.loss().is_none()
    }

    /// Ends the connection because the task that waited on the transport has ended, so that nothing
    /// reads.
    #[cfg(feature = "tokio")]
    pub(crate) fn abandon(&self, failure: Failure) {
        // In a child the task is the parent's.
        if let Ok(mut state) = self.enter() {
            state.driver = None;
            state.proto.give_up(failure);
        }
    }

    /// Waits on the transport and serves it until the connection is lost or has ended.
    pub(crate) fn poll_transport(&self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>>
    where
        S: Reactor,
    {
        while self.drive(cx) {
            if self.lock().no_room {
                let mut send = || self.flush(self.lock()).no_room;
                let sent = self.stream.poll_io(cx, Direction::Write, &mut send);
                if let Poll::Ready(sent) = sent {
                    sent?;
                    continue;
                }
            }
            let mut receive = || !self.read(&mut self.lock());
            ready!(self.stream.poll_io(cx, Direction::Read, &mut receive))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the task that waits on the transport, because the last handle was dropped.
    #[cfg(feature = "tokio")]
    pub(crate) fn release(&self) {
        self.lock().wake_driver();
    }
}

impl State {
    /// Returns whether any thread other than the poller waits for an answer.
    pub(crate) fn others_wait_for_replies(&self) -> bool {
        let first = self.waiters.first_key_value();
        matches!(first, Some(((Ready::Reply(_), _), _)))
    }

    /// Whether a call of [`Mux::flush`] would write.
    pub(crate) fn can_write(&self) -> bool {
        !self.writing && !self.no_room && self.proto.has_outgoing()
    }

    /// Returns when to connect again; `None` unless the connection is lost, and while a caller
    /// connects.
    pub(crate) fn retry_at(&self) -> Option<Instant> {
        let schedule = self.schedule.as_ref().filter(|_| !self.connecting)?;
        self.proto.loss().and_then(|_| schedule.poll_timeout())
    }

    /// Adds a waiter.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn add_waiter(&mut self, key: Ready, wake: Wake) {
        let number = self.fresh_waiter();
        self.waiters.insert((key, number), wake);
    }

    fn fresh_waiter(&mut self) -> u64 {
        self.next_waiter += 1;
        self.next_waiter
    }
}

impl<'a, S: Stream> Locked<'a, S> {
    /// Sleeps until it is woken for `key`, `deadline` passes, or spuriously.
    pub(crate) fn sleep(
        mut self,
        key: Ready,
        wait: impl FnOnce(&Condvar, MutexGuard<'a, State>) -> MutexGuard<'a, State>,
    ) -> Self {
        self.announce();
        take(&mut self.wakes).into_iter().for_each(Wake::wake);
        let number = self.fresh_waiter();
        let condvar = Arc::new(Condvar::new());
        let wake = Wake::Thread(Arc::clone(&condvar));
        self.waiters.insert((key, number), wake);
        self.guard = self.guard.take().map(|guard| wait(&condvar, guard));
        self.waiters.remove(&(key, number));
        self
    }

    /// Wakes one waiter, which then reads or writes in place of the caller.
    ///
    /// A watcher first, then the newest request: they are likely to stay longest.
    pub(crate) fn pass_on(&mut self) {
        if self.poller.is_some() {
            self.interrupt();
        } else if let Some((_, wake)) = self.waiters.last_key_value() {
            let wake = wake.clone();
            self.wakes.push(wake);
        }
        self.wake_driver();
    }

    /// Records that the transport took no more, and has the poller wait for room.
    fn ask_for_room(&mut self) {
        self.no_room = true;
        if self.poller.is_some_and(|poller| !poller.output) {
            self.interrupt();
        }
        self.wake_driver();
    }

    fn wake_driver(&mut self) {
        if let Some(waker) = self.driver.clone() {
            self.wakes.push(Wake::Task(waker));
        }
    }

    /// Called under the lock, so that the sleeper cannot have returned and slept again in between.
    fn interrupt(&mut self) {
        if !self.interrupted {
            self.interrupted = true;
            self.mux.stream.interrupt();
        }
    }

    /// Wakes all waiters; each looks again.
    pub(crate) fn wake_all(&mut self) {
        let all: Vec<Wake> = self.waiters.values().cloned().collect();
        self.wakes.extend(all);
        if self.poller.is_some() {
            self.interrupt();
        }
    }

    /// Plans the first attempt after a loss.
    fn handle_loss(&mut self) {
        let Some(loss) = self.proto.loss() else {
            return;
        };
        self.no_room = false;
        let now = Instant::now();
        let retry = self
            .schedule
            .as_mut()
            .and_then(|schedule| schedule.handle_loss(now));
        match retry {
            Some(retry) => {
                self.mux.stream.handle_loss(retry);
                self.pass_on();
            }
            None => self.proto.give_up(loss),
        }
    }

    /// Collects the waiters to wake for what has become ready.
    fn announce(&mut self) {
        while let Some(ready) = self.proto.poll_ready() {
            if ready == Ready::Lost {
                self.handle_loss();
                continue;
            }
            let ended = ready == Ready::Ended;
            if self
                .poller
                .is_some_and(|poller| ended || poller.key == ready)
            {
                self.interrupt();
            }
            let State {
                proto,
                waiters,
                ready_fds,
                ..
            } = &mut **self;
            if ended {
                let all: Vec<Wake> = waiters.values().cloned().collect();
                ready_fds.values().for_each(|fd| fd.raise());
                self.wakes.extend(all);
                self.wake_driver();
            } else {
                if let Ready::Event(watch) = ready {
                    // Unless the reader has taken it already.
                    let waits = |_: &&Arc<ReadyFd>| proto.has_event(watch);
                    ready_fds.get(&watch).filter(waits).inspect(|fd| fd.raise());
                }
                let mine: Vec<Wake> = waiters
                    .range((ready, 0)..=(ready, u64::MAX))
                    .map(|(_, wake)| wake.clone())
                    .collect();
                self.wakes.extend(mine);
            }
        }
    }
}

impl<S: Stream> Deref for Locked<'_, S> {
    type Target = State;

    fn deref(&self) -> &State {
        match &self.guard {
            Some(guard) => guard,
            None => unreachable!("the guard is taken by `sleep` and `drop` only, for themselves"),
        }
    }
}

impl<S: Stream> DerefMut for Locked<'_, S> {
    fn deref_mut(&mut self) -> &mut State {
        match &mut self.guard {
            Some(guard) => guard,
            None => unreachable!("the guard is taken by `sleep` and `drop` only, for themselves"),
        }
    }
}

impl<S: Stream> Drop for Locked<'_, S> {
    fn drop(&mut self) {
        if self.guard.is_some() {
            self.announce();
        }
        // Released first: each woken waiter takes the lock.
        self.guard = None;
        take(&mut self.wakes).into_iter().for_each(Wake::wake);
    }
}
