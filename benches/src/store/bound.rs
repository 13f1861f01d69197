//! Threads that share a connection, each of which waits for its own answer, with the least work
//! for it: prepared requests, no check but of lengths, and one thread awake at a time.
//!
//! The thread that has the turn adds its request to those to be sent, and gives the turn to the
//! next one whose answer came; that is one wake-up and one sleep for a read. If no answer is left it
//! sends what there is, and reads what one call gives. At most [`TOGETHER`] requests wait to be
//! sent. No thread is woken while another runs, so the daemon has a processor to itself.
//!
//! This is a limit and no design for a library, whose caller may work for a while between two
//! requests: all answers that have come would wait for that.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{LENGTH, USERS, VALUE, join};

/// `XS_READ` of `xen/include/public/io/xs_wire.h`.
const READ: u32 = 2;
/// Bytes of a message's header.
const HEADER: usize = 16;
const REQUEST: usize = HEADER + VALUE.len() + 1;
const ANSWER: usize = HEADER + LENGTH;
/// Requests that are sent by one call.
const TOGETHER: usize = 8;

#[derive(Debug)]
struct Shared {
    stream: UnixStream,
    users: Vec<User>,
    /// Locked by the thread that has the turn.
    state: Mutex<State>,
}

#[derive(Debug)]
struct User {
    request: Vec<u8>,
    /// The turn is given to it.
    has_turn: AtomicBool,
    thread: OnceLock<Thread>,
}

#[derive(Debug)]
struct State {
    /// Requests to be sent.
    output: Vec<u8>,
    /// Bytes that were read and are no whole answer yet.
    input: [u8; 2 * USERS * ANSWER],
    length: usize,
    /// Users that go on next: their answers came, or they have not begun.
    ready: VecDeque<usize>,
    /// Requests without an answer.
    unanswered: usize,
}

/// Reads the value `count` times by each thread.
pub(super) fn threads(socket: &Path, count: usize) -> Result<Duration> {
    let shared = Shared {
        stream: UnixStream::connect(socket)?,
        users: (0..USERS).map(User::new).collect(),
        state: Mutex::new(State {
            output: Vec::with_capacity(USERS * REQUEST),
            input: [0; 2 * USERS * ANSWER],
            length: 0,
            ready: (1..USERS).collect(),
            unanswered: 0,
        }),
    };
    shared.give_turn(0);
    let begun = Instant::now();
    thread::scope(|scope| {
        let all: Vec<_> = (0..USERS)
            .map(|me| {
                let shared = &shared;
                scope.spawn(move || {
                    let done = shared.read(me, count);
                    if done.is_err() {
                        // Nobody has the turn any more; the others fail too.
                        (0..USERS).for_each(|user| shared.give_turn(user));
                    }
                    done
                })
            })
            .collect();
        all.into_iter().try_for_each(join)
    })?;
    Ok(begun.elapsed())
}

impl User {
    fn new(number: usize) -> Self {
        let mut request = Vec::with_capacity(REQUEST);
        for word in [READ, number as u32, 0, VALUE.len() as u32 + 1] {
            request.extend(word.to_ne_bytes());
        }
        request.extend(VALUE.as_bytes());
        request.push(0);
        Self {
            request,
            has_turn: AtomicBool::new(false),
            thread: OnceLock::new(),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_turn(&self, user: usize) {
        let user = &self.users[user];
        user.has_turn.store(true, Ordering::SeqCst);
        // One that has not started yet looks before it sleeps.
        if let Some(thread) = user.thread.get() {
            thread.unpark();
        }
    }

    fn wait_for_turn(&self, me: usize) {
        while !self.users[me].has_turn.swap(false, Ordering::SeqCst) {
            thread::park();
        }
    }

    /// Reads the value `count` times as the user `me`.
    fn read(&self, me: usize, count: usize) -> Result<()> {
        let user = &self.users[me];
        user.thread.get_or_init(thread::current);
        self.wait_for_turn(me);
        for _ in 0..count {
            let mut state = self.lock();
            state.output.extend(&user.request);
            state.unanswered += 1;
            if state.output.len() >= TOGETHER * REQUEST {
                state.send(&self.stream)?;
            }
            let next = state.next(&self.stream)?;
            drop(state);
            if let Some(next) = next.filter(|&next| next != me) {
                self.give_turn(next);
                self.wait_for_turn(me);
            }
        }
        let next = self.lock().next(&self.stream)?;
        next.into_iter().for_each(|next| self.give_turn(next));
        Ok(())
    }
}

impl State {
    /// Returns who goes on, once it is known; `None` if nobody waits.
    fn next(&mut self, stream: &UnixStream) -> Result<Option<usize>> {
        while self.ready.is_empty() && self.unanswered > 0 {
            self.send(stream)?;
            self.receive(stream)?;
        }
        Ok(self.ready.pop_front())
    }

    fn send(&mut self, mut stream: &UnixStream) -> Result<()> {
        stream.write_all(&self.output)?;
        self.output.clear();
        Ok(())
    }

    fn receive(&mut self, mut stream: &UnixStream) -> Result<()> {
        let got = stream.read(&mut self.input[self.length..])?;
        ensure!(got > 0, "the daemon left");
        self.length += got;
        let answers = self.input[..self.length].chunks_exact(ANSWER);
        let taken = self.length - answers.remainder().len();
        for answer in answers {
            let id = answer[4..].first_chunk().copied().map(u32::from_ne_bytes);
            let whose = id.map_or(USERS, |id| id as usize);
            ensure!(whose < USERS, "an answer to nobody");
            self.ready.push_back(whose);
            self.unanswered -= 1;
        }
        self.input.copy_within(taken..self.length, 0);
        self.length -= taken;
        Ok(())
    }
}
