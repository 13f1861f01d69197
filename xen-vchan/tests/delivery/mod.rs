//! Models of how an event reaches every thread and task that waits for it.
//!
//! | taken out of `src/delivery.rs` | fails |
//! |---|---|
//! | `everybody` (the runtime keeps the waker of one task) | `an_event_wakes_the_tasks_of_both_directions` |
//! | `tasks.wake_all()` in `changed` | `an_event_that_the_owner_takes_wakes_the_tasks` |
//! | `tasks.set` before `poll_ready` (after it instead) | `an_event_wakes_the_tasks_of_both_directions` |
//! | `wake_followers` at the end of `wait` | `an_event_wakes_both_threads` |

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use loom::future::block_on;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Mutex, Notify};
use loom::thread;
use xen_vchan::delivery::{Delivery, Interest, Readiness, poll_task};

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(test);
}

/// One port and the descriptor it is read from, as `/dev/xen/evtchn` has them.
struct Port {
    state: Mutex<State>,
    /// The kernel's side of those who wait for the descriptor.
    edge: Notify,
}

#[derive(Default)]
struct State {
    pending: bool,
    masked: bool,
    readable: bool,
}

impl State {
    fn deliver(&mut self, edge: &Notify) {
        if self.pending && !self.masked {
            (self.pending, self.masked, self.readable) = (false, true, true);
            edge.notify();
        }
    }
}

impl Port {
    fn new() -> Self {
        Self {
            state: Mutex::default(),
            edge: Notify::new(),
        }
    }

    fn ring(&self) {
        let mut state = self.state.lock().unwrap();
        state.pending = true;
        state.deliver(&self.edge);
    }

    fn unmask(&self) {
        let mut state = self.state.lock().unwrap();
        state.masked = false;
        state.deliver(&self.edge);
    }

    fn take(&self) -> bool {
        std::mem::take(&mut self.state.lock().unwrap().readable)
    }

    fn readable(&self) -> bool {
        self.state.lock().unwrap().readable
    }
}

/// A runtime's knowledge of the descriptor: edge-triggered, with a count so that what came since is
/// not forgotten, and one waker.
#[derive(Default)]
struct Driver(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    ready: bool,
    tick: u32,
    waker: Option<Waker>,
}

impl Driver {
    /// The runtime's thread: it sees an edge if the descriptor is still readable when it looks.
    fn run(&self, port: &Port, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            port.edge.wait();
            if port.readable() {
                let waker = {
                    let mut known = self.0.lock().unwrap();
                    known.ready = true;
                    known.tick += 1;
                    known.waker.take()
                };
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }
}

impl Readiness for Driver {
    type Error = ();
    type Ready<'a> = (&'a Mutex<Known>, u32);

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<Self::Ready<'_>, ()>> {
        let mut known = self.0.lock().unwrap();
        if known.ready {
            return Poll::Ready(Ok((&self.0, known.tick)));
        }
        known.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn forget((known, tick): Self::Ready<'_>) {
        let mut known = known.lock().unwrap();
        if known.tick == tick {
            known.ready = false;
        }
    }
}

struct Channel {
    port: Port,
    delivery: Delivery,
    /// Bytes are there; space is there.
    there: [AtomicBool; 2],
}

impl Channel {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            port: Port::new(),
            delivery: Delivery::default(),
            there: [AtomicBool::new(false), AtomicBool::new(false)],
        })
    }

    /// The peer gives one of the directions what it waits for.
    fn give(&self, which: usize) {
        self.there[which].store(true, Ordering::Release);
        self.port.ring();
    }

    /// Looks, and lets the next event through if there is nothing.
    fn attempt(&self, which: usize) -> Option<()> {
        if self.there[which].load(Ordering::Acquire) {
            return Some(());
        }
        if self.delivery.begin_unmask() {
            self.port.unmask();
        }
        // An event that came while the port was masked is delivered by that.
        None
    }

    fn acknowledge(&self) {
        if !self.delivery.is_masked() && self.port.take() {
            self.delivery.event_taken();
        }
    }
}

/// A task for one direction; the lock is that of `tokio::io::split`.
fn task(channel: &Mutex<Arc<Channel>>, driver: &Driver, interest: Interest) {
    block_on(poll_fn(|cx| {
        let mut channel = channel.lock().unwrap();
        let tasks = Arc::clone(channel.delivery.tasks());
        poll_task(
            &mut *channel,
            (&tasks, interest),
            driver,
            cx,
            |channel| channel.attempt(interest as usize),
            |channel| {
                channel.acknowledge();
                Ok(())
            },
        )
    }))
    .unwrap();
}

fn with_tasks(peer_and_owner: impl Fn(&Channel, &Mutex<Arc<Channel>>)) {
    let channel = Channel::new();
    let shared = Arc::new(Mutex::new(Arc::clone(&channel)));
    let (driver, stop) = (
        Arc::new(Driver::default()),
        Arc::new(AtomicBool::new(false)),
    );
    let runtime = {
        let (driver, channel, stop) = (driver.clone(), channel.clone(), stop.clone());
        thread::spawn(move || driver.run(&channel.port, &stop))
    };
    let tasks = [Interest::Read, Interest::Write].map(|interest| {
        let (driver, shared) = (driver.clone(), shared.clone());
        thread::spawn(move || task(&shared, &driver, interest))
    });
    peer_and_owner(&channel, &shared);
    for task in tasks {
        task.join().unwrap();
    }
    stop.store(true, Ordering::Release);
    channel.port.edge.notify();
    runtime.join().unwrap();
}

#[test]
fn an_event_wakes_the_tasks_of_both_directions() {
    model(|| {
        with_tasks(|channel, _| {
            channel.give(0);
            channel.give(1);
        });
    });
}

#[test]
fn an_event_that_the_owner_takes_wakes_the_tasks() {
    model(|| {
        with_tasks(|channel, shared| {
            channel.there[0].store(true, Ordering::Release);
            channel.give(1);
            // The owner, by `get_mut`.
            shared.lock().unwrap().acknowledge();
        });
    });
}

#[test]
fn an_event_wakes_both_threads() {
    model(|| {
        let channel = Channel::new();
        let threads = [0, 1].map(|which| {
            let channel = channel.clone();
            thread::spawn(move || {
                loop {
                    let seen = channel.delivery.seen();
                    if channel.attempt(which).is_some() {
                        return;
                    }
                    let sleep = || {
                        if channel.delivery.begin_unmask() {
                            channel.port.unmask();
                        }
                        while !channel.port.take() {
                            channel.port.edge.wait();
                        }
                        channel.delivery.event_taken();
                        Ok::<_, ()>(true)
                    };
                    channel.delivery.wait(seen, None, sleep).unwrap();
                }
            })
        });
        // One event for both.
        channel.there[0].store(true, Ordering::Release);
        channel.give(1);
        for thread in threads {
            thread.join().unwrap();
        }
    });
}
