//! The broker's thread: takes requests from sockets, one at a time, and answers them.
//!
//! It is used only to acquire and to release. Events pass from eventfd to eventfd and data through
//! memory; a process waits for the broker only to acquire something or to give it back.
//!
//! A client can stall no other: requests are handled whole when they arrive, and a reply that does
//! not fit in a client's socket ends that client.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with};
use zerocopy::IntoBytes;

use super::domain::{Got, State};
use super::faults::{Op, Verdict};
use super::hypercalls::hypercall;
use super::ports::{bell, errno, ring};
use super::wire::{self, Packet, Reply, Request};
use crate::{DomId, Port, Virq};

/// The state that the broker's thread and the handle on the simulation share.
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    set: Arc<OwnedFd>,
    /// Signalled to end the thread.
    stop: OwnedFd,
    listeners: Mutex<HashMap<u64, (OwnedFd, PathBuf)>>,
}

/// The source that an epoll token names: the kind in the low two bits, a number above.
const STOP: u64 = 0;
const LISTENER: u64 = 1;
const CONNECTION: u64 = 2;
const BELL: u64 = 3;

fn token(kind: u64, number: u64) -> u64 {
    number << 2 | kind
}

fn bell_token(number: u64) -> u64 {
    token(BELL, number)
}

impl Shared {
    pub(super) fn new() -> Result<Self, Errno> {
        let set = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        let stop = bell().map_err(errno)?;
        let shared = Self {
            state: Mutex::new(State::new(Arc::clone(&set), bell_token)),
            changed: Condvar::new(),
            set,
            stop,
            listeners: Mutex::new(HashMap::new()),
        };
        shared.watch(&shared.stop, token(STOP, 0))?;
        Ok(shared)
    }

    fn watch(&self, fd: impl AsFd, token: u64) -> Result<(), Errno> {
        epoll::add(
            &*self.set,
            fd,
            epoll::EventData::new_u64(token),
            epoll::EventFlags::IN,
        )
    }

    /// Returns the state, for a look or a change from outside the thread.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves tables that are still tables.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done` is true of the state or the deadline passes; returns whether it is.
    pub(super) fn wait_until(&self, deadline: Instant, done: impl Fn(&State) -> bool) -> bool {
        let mut state = self.state();
        loop {
            if done(&state) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Adds a new connection, as `domain` if that is known.
    pub(super) fn connect(&self, socket: OwnedFd, domain: Option<DomId>) -> Result<(), Errno> {
        let mut state = self.state();
        let id = state.connect(socket, domain);
        let watched = match state.socket(id) {
            Some(socket) => self.watch(&*socket, token(CONNECTION, id)),
            None => Ok(()),
        };
        if watched.is_err() {
            state.disconnect(id);
        }
        watched
    }

    /// Takes connections at a socket, and removes its file at the end.
    pub(super) fn listen(&self, socket: OwnedFd, path: PathBuf) -> Result<(), Errno> {
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let id = listeners.len() as u64;
        self.watch(&socket, token(LISTENER, id))?;
        listeners.insert(id, (socket, path));
        Ok(())
    }

    pub(super) fn stop(&self) {
        ring(&self.stop);
    }

    /// The thread: handles every event until it is stopped.
    pub(super) fn run(&self) {
        let mut buffer = vec![0; wire::MAX_PACKET];
        let mut events = Vec::with_capacity(64);
        loop {
            let next = self.state().faults.deliver(Instant::now());
            let timeout = next.map(|at| timespec(at.saturating_duration_since(Instant::now())));
            events.clear();
            let buffer_of_events = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&*self.set, buffer_of_events, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                // The set is our own and open: no other error is possible, and there is no remedy.
                Err(_) => return,
            }
            for event in &events {
                let event = event.data.u64();
                match event & 3 {
                    STOP => return,
                    LISTENER => self.accept(event >> 2),
                    CONNECTION => self.serve(event >> 2, &mut buffer),
                    _ => self.state().faults.rung(event >> 2, Instant::now()),
                }
            }
        }
    }

    fn accept(&self, listener: u64) {
        let listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some((listener, _)) = listeners.get(&listener) else {
            return;
        };
        match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            // Fails only without memory: then the caller sees a connection that ends.
            Ok(socket) => drop(self.connect(socket, None)),
            Err(Errno::MFILE | Errno::NFILE) => {
                // The connection stays in the queue and the socket ready: do not spin meanwhile.
                thread::sleep(Duration::from_millis(1));
            }
            // The connection ended before it was accepted.
            Err(_) => {}
        }
    }

    /// Takes one request from a connection and answers it.
    fn serve(&self, id: u64, buffer: &mut [u8]) {
        let mut state = self.state();
        let Some(socket) = state.socket(id) else {
            return;
        };
        let alive = match wire::receive::<Request>(socket.as_fd(), buffer, RecvFlags::DONTWAIT) {
            Ok(Some(packet)) => match answer(&mut state, id, &packet) {
                Some((head, numbers, fds)) => {
                    let fds = wire::borrow(&fds);
                    let flags = SendFlags::DONTWAIT;
                    wire::send(socket.as_fd(), head.as_bytes(), &numbers, &fds, flags).is_ok()
                }
                None => false,
            },
            Err(Errno::AGAIN) => true,
            Ok(None) | Err(_) => false,
        };
        if !alive {
            state.disconnect(id);
        }
        drop(state);
        self.changed.notify_all();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let listeners = self
            .listeners
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for (_, path) in listeners.values() {
            // Another program may have removed it.
            let _ = std::fs::remove_file(path);
        }
    }
}

pub(super) fn timespec(d: Duration) -> Timespec {
    Timespec {
        tv_sec: d.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: d.subsec_nanos().into(),
    }
}

type Answer = (Reply, Vec<u32>, Vec<OwnedFd>);

/// Handles a request; `None` ends the connection.
fn answer(state: &mut State, id: u64, packet: &Packet<Request>) -> Option<Answer> {
    let refused = |e: Errno| {
        let head = Reply {
            errno: e.raw_os_error(),
            ..Reply::default()
        };
        Some((head, Vec::new(), Vec::new()))
    };
    let request = packet.head;
    if request.op == wire::HELLO {
        return match state.hello(id, domain(request.a)) {
            Ok(d) => Some((value(d.as_u16().into()), Vec::new(), Vec::new())),
            Err(e) => refused(e),
        };
    }
    let Some(me) = state.domain_of(id) else {
        return refused(Errno::PERM);
    };
    if let Some(op) = op(request.op) {
        match state.verdict(me, op) {
            Verdict::Go => {}
            Verdict::Fail(errno) => return refused(Errno::from_raw_os_error(errno)),
            Verdict::Kill => {
                // Domain 0 does not die; its process does.
                if state.destroy_domain(me).is_err() {
                    state.disconnect(id);
                }
                return None;
            }
        }
    }
    match handle(state, id, me, packet) {
        Ok(answer) => Some(answer),
        Err(e) => refused(e),
    }
}

/// Handles a request of a process of domain `me`.
fn handle(
    state: &mut State,
    id: u64,
    me: DomId,
    Packet { head, numbers, .. }: &Packet<Request>,
) -> Result<Answer, Errno> {
    let Request {
        op,
        a,
        b,
        c,
        object,
    } = *head;
    let other = domain(a).ok_or(Errno::INVAL);
    let bound = |(port, fds): (Port, [OwnedFd; 2])| (value(port.as_u32()), Vec::new(), fds.into());
    let done = |()| (Reply::default(), Vec::new(), Vec::new());
    match op {
        wire::BIND_UNBOUND => state.bind_unbound(id, me, other?).map(bound),
        wire::BIND_INTERDOMAIN => state
            .bind_interdomain(id, me, other?, Port::new(b))
            .map(bound),
        wire::BIND_VIRQ => state.bind_virq(id, me, Virq::new(a)).map(bound),
        wire::UNBIND => state.unbind(id, me, Port::new(a)).map(done),
        wire::SHARE => {
            if b as usize > wire::MAX_PAGES {
                return Err(Errno::INVAL);
            }
            state.share(id, me, other?, b as usize, c != 0).map(pages)
        }
        wire::MAP => state.map(id, me, other?, numbers, b != 0).map(pages),
        wire::MAP_FOREIGN => state
            .map_foreign(id, me, other?, numbers, b != 0)
            .map(pages),
        wire::MAP_RESOURCE => {
            let which = <[u32; 4]>::try_from(&numbers[..]).map_err(|_| Errno::INVAL)?;
            state.map_resource(id, me, other?, which, b != 0).map(pages)
        }
        wire::RELEASE => state.release(id, object).map(done),
        wire::GRANT_LIMITS => {
            let limits = state.limits(me)?;
            let mapped = state.mapped_pages(me)?;
            let numbers = vec![limits.shared_pages, limits.mapped_pages, mapped];
            Ok((Reply::default(), numbers, Vec::new()))
        }
        wire::SET_UNMAP_NOTIFY => state
            .set_unmap_notify(id, object, c as usize, a, Port::new(b))
            .map(done),
        wire::STORE => state
            .store(me)
            .map(|fd| (Reply::default(), Vec::new(), vec![fd])),
        wire::CREATE_DOMAIN | wire::DESTROY_DOMAIN if me != DomId::DOM0 => Err(Errno::PERM),
        wire::CREATE_DOMAIN => {
            let made = state.create_domain(domain(a))?;
            Ok((value(made.as_u16().into()), Vec::new(), Vec::new()))
        }
        wire::DESTROY_DOMAIN => state.destroy_domain(other?).map(done),
        wire::HYPERCALL => {
            let room = (c as usize).min(wire::MAX_PACKET - size_of::<Reply>());
            let (call, command) = (a.into(), b.into());
            let bytes = numbers.as_bytes();
            let (value, bytes) = hypercall(state, me, call, command, bytes, room)?;
            let head = Reply {
                object: value as u64,
                ..Reply::default()
            };
            Ok((head, wire::numbers(&bytes), Vec::new()))
        }
        _ => Err(Errno::NOSYS),
    }
}

/// Returns the answer that passes pages to the client.
fn pages((object, mut numbers, frames, fd): Got) -> Answer {
    numbers.extend(frames);
    (
        Reply {
            object,
            ..Reply::default()
        },
        numbers,
        vec![fd],
    )
}

/// A reply with one number.
fn value(a: u32) -> Reply {
    Reply {
        a,
        ..Reply::default()
    }
}

/// Returns a domain's number from a message; `None` for "any", and for a number that is no
/// domain's.
fn domain(n: u32) -> Option<DomId> {
    u16::try_from(n).ok().map(DomId::new)
}

/// The kind of a request, for faults.
fn op(op: u32) -> Option<Op> {
    Some(match op {
        wire::BIND_UNBOUND => Op::BindUnbound,
        wire::BIND_INTERDOMAIN => Op::BindInterdomain,
        wire::BIND_VIRQ => Op::BindVirq,
        wire::UNBIND => Op::Unbind,
        wire::SHARE => Op::Share,
        wire::MAP => Op::Map,
        wire::MAP_FOREIGN | wire::MAP_RESOURCE => Op::MapForeign,
        wire::RELEASE => Op::Release,
        wire::SET_UNMAP_NOTIFY => Op::SetUnmapNotify,
        wire::STORE => Op::Store,
        wire::HYPERCALL => Op::Hypercall,
        _ => return None,
    })
}
