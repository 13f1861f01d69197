//! Every interleaving of the drivers' hand-overs, tried by loom.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p xen-store --release --lib models
//! ```
//!
//! A waiter that was not woken shows as a deadlock. The transport is a pipe in memory that is
//! filled by the model's main thread. Each model names the code without which it fails.

use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use loom::future::block_on;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use nix::errno::Errno;

use crate::driver::{Pollable, Until};
use crate::error::{Error, Result};
use crate::mux::{Direction, Mux, Place, Reactor, Stream};
use crate::proto::{Failure, Quirks, Ready, RequestId, Tx};
use crate::reconnect::{Reconnect, Repeat};
use crate::request::{Read, Request};
use crate::spin::Look;
use crate::transport::Written;
use crate::wire::{self, Header, MsgType};

#[derive(Debug, Default)]
struct Pipe {
    state: Mutex<Inside>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inside {
    /// Bytes for the client to read.
    bytes: VecDeque<u8>,
    closed: bool,
    /// The client has noticed the end, and has not connected again.
    gone: bool,
    /// Connections before this one.
    generation: u32,
    /// The numbers of the requests that were written to this one.
    written: HashSet<u32>,
    /// Writes find no room.
    full: bool,
    /// Each request is answered as soon as it is written.
    echo: bool,
    interrupted: bool,
    readers: Option<Waker>,
    writers: Option<Waker>,
}

impl Pipe {
    fn change(&self, change: impl FnOnce(&mut Inside)) {
        let mut inside = self.state.lock().unwrap();
        change(&mut inside);
        let wakers = [inside.readers.take(), inside.writers.take()];
        self.changed.notify_all();
        drop(inside);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// The daemon answers the request with this number on the wire.
    fn answer(&self, id: u32) {
        let bytes = wire::encode(MsgType::READ, id, 0, &[b"x"]).unwrap();
        self.change(|inside| inside.bytes.extend(bytes));
    }
}

impl Stream for Pipe {
    fn read(&self, buf: &mut [u8]) -> std::result::Result<Option<usize>, Errno> {
        let mut inside = self.state.lock().unwrap();
        if inside.bytes.is_empty() {
            return Ok(inside.closed.then_some(0));
        }
        let count = inside.bytes.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(inside.bytes.drain(..count)) {
            *to = from;
        }
        Ok(Some(count))
    }

    fn writer(&self) -> impl Fn(&[u8]) -> Written {
        let generation = self.state.lock().unwrap().generation;
        move |bytes| {
            let mut inside = self.state.lock().unwrap();
            if inside.generation != generation {
                return Written::Gone;
            }
            if inside.full {
                return Written::NotNow;
            }
            let header: &[u8; Header::SIZE] = bytes.first_chunk().unwrap();
            let id = Header::from_bytes(header).req_id;
            assert!(inside.written.insert(id), "{id} is sent twice");
            let echo = inside.echo;
            drop(inside);
            if echo {
                self.answer(id);
            }
            Written::Some(bytes.len())
        }
    }

    fn interrupt(&self) {
        self.change(|inside| inside.interrupted = true);
    }

    fn handle_loss(&self, _: Instant) {
        self.change(|inside| {
            inside.bytes.clear();
            inside.closed = false;
            inside.gone = true;
        });
    }

    fn connect_again(&self) -> Result<Quirks> {
        Ok(Quirks::SOCKET)
    }

    fn install(&self) {
        self.change(|inside| {
            assert!(std::mem::take(&mut inside.gone), "two of them connect");
            inside.echo = true;
            inside.generation += 1;
            inside.written.clear();
        });
    }
}

impl Pollable for Pipe {
    fn poll(&self, output: bool, deadline: Option<Instant>, _: Duration) -> Result<Look> {
        let mut inside = self.state.lock().unwrap();
        // Without a transport it sleeps until an interruption, or until it is time to connect.
        let is_lost = inside.gone;
        if is_lost && deadline.is_some() {
            return Ok(Look::None);
        }
        while !inside.interrupted
            && (is_lost || (inside.bytes.is_empty() && !inside.closed && (!output || inside.full)))
        {
            inside = self.changed.wait(inside).unwrap();
        }
        Ok(Look::None)
    }

    fn rearm(&self) {
        self.state.lock().unwrap().interrupted = false;
    }
}

impl Reactor for Pipe {
    fn poll_io(
        &self,
        cx: &mut Context<'_>,
        direction: Direction,
        io: &mut dyn FnMut() -> bool,
    ) -> Poll<std::io::Result<()>> {
        let mut inside = self.state.lock().unwrap();
        let (ready, waker) = match direction {
            Direction::Read => (
                inside.closed || !inside.bytes.is_empty(),
                &mut inside.readers,
            ),
            Direction::Write => (!inside.full, &mut inside.writers),
        };
        if !ready {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(inside);
        io();
        Poll::Ready(Ok(()))
    }
}

type Shared = Arc<Mux<Pipe>>;

fn shared() -> Shared {
    Arc::new(Mux::new(Pipe::default(), Quirks::SOCKET))
}

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // Enough for every order of the hand-overs; unbounded takes hours.
    builder.preemption_bound = Some(3);
    builder.check(test);
}

fn request(mux: &Shared) -> RequestId {
    mux.submit(Tx::NONE, Read { path: "/a" }.encode().unwrap())
        .unwrap()
}

/// Waits for the answer to `id` as a thread does.
fn wait(mux: &Shared, id: RequestId) -> Result<Vec<u8>> {
    let answer = mux.wait(Ready::Reply(id), Until::default(), |state| {
        state.proto.poll_reply(id)
    });
    answer.unwrap().expect("there is no deadline")
}

fn waiting(mux: &Shared, id: RequestId) -> thread::JoinHandle<Result<Vec<u8>>> {
    let mux = Arc::clone(mux);
    thread::spawn(move || wait(&mux, id))
}

/// Waits for the answer to `id` as a task does.
async fn task(mux: &Shared, id: RequestId) -> Result<Vec<u8>> {
    let mut place = Place::new(Ready::Reply(id));
    poll_fn(|cx| mux.poll_wait(&mut place, cx, |state| state.proto.poll_reply(id)))
        .await
        .unwrap()
}

/// The task that reads, until the connection has ended.
fn driving(mux: &Shared) -> thread::JoinHandle<()> {
    let mux = Arc::clone(mux);
    thread::spawn(move || block_on(poll_fn(|cx| mux.poll_transport(cx))).unwrap())
}

/// Without the interruption in `announce` the sleeper is not woken.
#[test]
fn a_reader_that_only_looks_wakes_the_one_that_sleeps_in_poll() {
    model(|| {
        let mux = shared();
        let id = request(&mux);
        let sleeper = waiting(&mux, id);
        mux.stream().answer(1);
        drop(mux.turn(mux.lock()));
        assert_eq!(sleeper.join().unwrap().unwrap(), b"x");
    });
}

/// Without `pass_on` no thread reads once the first has returned.
#[test]
fn the_role_of_the_poller_is_handed_over() {
    model(|| {
        let mux = shared();
        let (first, second) = (request(&mux), request(&mux));
        let threads = [waiting(&mux, first), waiting(&mux, second)];
        mux.stream().answer(1);
        mux.stream().answer(2);
        for thread in threads {
            assert_eq!(thread.join().unwrap().unwrap(), b"x");
        }
    });
}

/// A thread whose deadline has passed looks once more, and takes the other thread's answer. Without
/// the interruption in `announce` the other thread sleeps on.
#[test]
fn one_whose_time_is_over_wakes_the_one_whose_answer_it_takes() {
    model(|| {
        let mux = shared();
        let (first, second) = (request(&mux), request(&mux));
        let patient = waiting(&mux, second);
        mux.stream().answer(2);
        let past = Until {
            deadline: Some(Instant::now()),
            ..Until::default()
        };
        let ready = Ready::Reply(first);
        let looked = mux.wait(ready, past, |state| state.proto.poll_reply(first));
        assert!(looked.unwrap().is_none());
        mux.cancel(first, None);
        assert_eq!(patient.join().unwrap().unwrap(), b"x");
    });
}

/// Without `announce` on release, or the interruption in it, one of them is not woken.
#[test]
fn an_end_seen_by_one_reaches_all_threads() {
    model(|| {
        let mux = shared();
        let (first, second) = (request(&mux), request(&mux));
        let threads = [waiting(&mux, first), waiting(&mux, second)];
        mux.lock().proto.handle_failure(Failure::Closed);
        for thread in threads {
            assert!(matches!(thread.join().unwrap(), Err(Error::Closed)));
        }
    });
}

/// The requests are sent again on the next connection. Without `pass_on` in `reconnect` a thread
/// that sleeps beside the one that connects is not woken.
#[test]
fn a_lost_connection_is_made_again_by_one_for_all() {
    model(|| {
        let mux = shared();
        let policy = Reconnect::new().repeat(Repeat::Reads);
        mux.survive(policy).unwrap();
        let (first, second) = (request(&mux), request(&mux));
        let threads = [waiting(&mux, first), waiting(&mux, second)];
        mux.stream().change(|inside| inside.closed = true);
        for thread in threads {
            assert_eq!(thread.join().unwrap().unwrap(), b"x");
        }
    });
}

/// A message is being written when another thread finds the loss and connects. Without the choice
/// of the transport under the lock in `flush` it is sent on the next connection, and once more.
#[test]
fn a_message_is_written_to_the_connection_that_it_was_taken_for() {
    model(|| {
        let mux = shared();
        let policy = Reconnect::new().repeat(Repeat::Reads);
        mux.survive(policy).unwrap();
        let first = request(&mux);
        mux.stream().change(|inside| inside.closed = true);
        let finder = waiting(&mux, first);
        let second = request(&mux);
        assert_eq!(wait(&mux, second).unwrap(), b"x");
        assert_eq!(finder.join().unwrap().unwrap(), b"x");
    });
}

/// One of two waits is cancelled. Without the interruption in `wake_all` it is not woken if it
/// sleeps in `poll`; without the wakes there, if it sleeps beside the other one.
#[test]
fn a_wait_that_is_cancelled_ends_and_the_other_goes_on() {
    model(|| {
        let mux = shared();
        let flag = Arc::new(AtomicBool::new(false));
        let (first, second) = (request(&mux), request(&mux));
        let other = waiting(&mux, second);
        let cancelled = {
            let (mux, flag) = (Arc::clone(&mux), Arc::clone(&flag));
            thread::spawn(move || {
                let until = Until {
                    cancelled: Some(&flag),
                    ..Until::default()
                };
                let ready = Ready::Reply(first);
                mux.wait(ready, until, |state| state.proto.poll_reply(first))
            })
        };
        // Loom switches at the lock, not at the flag: the threads may be asleep after this.
        drop(mux.lock());
        mux.cancel_waits(&flag);
        let ended = cancelled.join().unwrap();
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
        mux.stream().answer(2);
        assert_eq!(other.join().unwrap().unwrap(), b"x");
    });
}

/// Without the interruption in `ask_for_room` the poller does not wait for room.
#[test]
fn the_poller_waits_for_room_on_behalf_of_others() {
    model(|| {
        let mux = shared();
        let quiet = request(&mux);
        mux.stream().change(|inside| {
            inside.full = true;
            inside.echo = true;
        });
        let poller = waiting(&mux, quiet);
        let other = {
            let mux = Arc::clone(&mux);
            thread::spawn(move || {
                let id = request(&mux);
                wait(&mux, id)
            })
        };
        mux.stream().change(|inside| inside.full = false);
        assert_eq!(other.join().unwrap().unwrap(), b"x");
        mux.stream().answer(1);
        assert_eq!(poller.join().unwrap().unwrap(), b"x");
    });
}

/// Without the waker in `announce` the task is not woken.
#[test]
fn a_task_is_woken_by_its_answer() {
    model(|| {
        let mux = shared();
        let id = request(&mux);
        let driver = driving(&mux);
        let waiter = {
            let mux = Arc::clone(&mux);
            thread::spawn(move || block_on(task(&mux, id)))
        };
        mux.stream().answer(1);
        assert_eq!(waiter.join().unwrap().unwrap(), b"x");
        mux.stream().change(|inside| inside.closed = true);
        driver.join().unwrap();
    });
}

/// A worker other than the one that reads for all may take the answer. Without the waker in
/// `announce` the task is not woken.
#[test]
fn a_task_is_woken_by_its_answer_whoever_reads_it() {
    model(|| {
        let mux = shared();
        mux.stream().change(|inside| inside.echo = true);
        let other = {
            let mux = Arc::clone(&mux);
            thread::spawn(move || drop(mux.turn(mux.lock())))
        };
        let id = request(&mux);
        let driver = driving(&mux);
        assert_eq!(block_on(task(&mux, id)).unwrap(), b"x");
        other.join().unwrap();
        mux.stream().change(|inside| inside.closed = true);
        driver.join().unwrap();
    });
}

/// Without the driver's waker in `ask_for_room` the message is never sent.
#[test]
fn the_driver_waits_for_room_on_behalf_of_a_task() {
    model(|| {
        let mux = shared();
        mux.stream().change(|inside| {
            inside.full = true;
            inside.echo = true;
        });
        let driver = driving(&mux);
        let waiter = {
            let mux = Arc::clone(&mux);
            thread::spawn(move || {
                let id = request(&mux);
                block_on(task(&mux, id))
            })
        };
        mux.stream().change(|inside| inside.full = false);
        assert_eq!(waiter.join().unwrap().unwrap(), b"x");
        mux.stream().change(|inside| inside.closed = true);
        driver.join().unwrap();
    });
}

/// The end, seen by a caller under the lock, ends the tasks and the reading task. Without the
/// driver's waker in `announce` the reading task stays.
#[test]
fn an_end_seen_by_one_reaches_all_tasks() {
    model(|| {
        let mux = shared();
        let id = request(&mux);
        let driver = driving(&mux);
        let waiter = {
            let mux = Arc::clone(&mux);
            thread::spawn(move || block_on(task(&mux, id)))
        };
        mux.lock().proto.handle_failure(Failure::Closed);
        assert!(matches!(waiter.join().unwrap(), Err(Error::Closed)));
        driver.join().unwrap();
    });
}
