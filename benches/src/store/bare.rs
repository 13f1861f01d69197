//! Threads that share a connection, by the simplest client: a lock, a condition variable for each
//! thread, and one thread in `read`. No deadlines, no transactions, no events; its requests are the
//! same bytes each time, and an error ends the program.
//!
//! The thread that reads wakes those whose answers came, and another one when it leaves.

use std::io::{Read as _, Write as _};
use std::mem::take;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{LENGTH, USERS, VALUE, join};

/// `XS_READ` of `xen/include/public/io/xs_wire.h`.
const READ: u32 = 2;
/// Bytes of a message's header.
const HEADER: usize = 16;
const ANSWER: usize = HEADER + LENGTH;

#[derive(Debug)]
struct Shared {
    stream: UnixStream,
    state: Mutex<State>,
    awake: Vec<Condvar>,
}

#[derive(Debug, Default)]
struct State {
    /// A thread is in `read`.
    is_read: bool,
    /// Threads whose answers came.
    answered: Vec<bool>,
    /// Threads asleep.
    asleep: Vec<bool>,
    /// The start of an answer whose rest has not come.
    rest: Vec<u8>,
}

/// Reads the value `count` times by each thread.
pub(super) fn threads(socket: &Path, count: usize) -> Result<Duration> {
    let shared = Shared {
        stream: UnixStream::connect(socket)?,
        state: Mutex::new(State {
            answered: vec![false; USERS],
            asleep: vec![false; USERS],
            ..State::default()
        }),
        awake: (0..USERS).map(|_| Condvar::new()).collect(),
    };
    let begun = Instant::now();
    thread::scope(|scope| {
        let all: Vec<_> = (0..USERS)
            .map(|me| {
                let shared = &shared;
                scope.spawn(move || (0..count).try_for_each(|_| shared.ask(me)))
            })
            .collect();
        all.into_iter().try_for_each(join)
    })?;
    Ok(begun.elapsed())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the request of the thread `me`, and waits for its answer.
    fn ask(&self, me: usize) -> Result<()> {
        let length = VALUE.len() as u32 + 1;
        let mut request = Vec::with_capacity(HEADER + length as usize);
        for word in [READ, me as u32, 0, length] {
            request.extend(word.to_ne_bytes());
        }
        request.extend(VALUE.as_bytes());
        request.push(0);
        (&self.stream).write_all(&request)?;
        let mut state = self.lock();
        while !take(&mut state.answered[me]) {
            if state.is_read {
                state.asleep[me] = true;
                let woken = self.awake[me].wait(state);
                state = woken.unwrap_or_else(PoisonError::into_inner);
                state.asleep[me] = false;
                continue;
            }
            state.is_read = true;
            drop(state);
            let mut bytes = [0; 8192];
            let got = (&self.stream).read(&mut bytes)?;
            ensure!(got > 0, "the daemon left");
            state = self.lock();
            state.is_read = false;
            let others = state.take_in(&bytes[..got], me)?;
            drop(state);
            others
                .iter()
                .for_each(|&other| self.awake[other].notify_one());
            state = self.lock();
        }
        let next = (0..USERS).find(|&other| state.asleep[other] && !state.answered[other]);
        let next = next.filter(|_| !state.is_read);
        drop(state);
        next.inspect(|&other| self.awake[other].notify_one());
        Ok(())
    }
}

impl State {
    /// Takes in what was read. Returns the threads whose answers are among it, without `me`.
    fn take_in(&mut self, bytes: &[u8], me: usize) -> Result<Vec<usize>> {
        self.rest.extend(bytes);
        let mut answers = self.rest.chunks_exact(ANSWER);
        let mut others = Vec::new();
        for answer in &mut answers {
            let word = |at: usize| {
                answer[at..]
                    .first_chunk()
                    .map(|&word| u32::from_ne_bytes(word))
            };
            let whose = word(4).map_or(USERS, |id| id as usize);
            ensure!(word(0) == Some(READ) && word(12) == Some(LENGTH as u32) && whose < USERS);
            self.answered[whose] = true;
            if whose != me {
                others.push(whose);
            }
        }
        self.rest = answers.remainder().to_vec();
        Ok(others)
    }
}
