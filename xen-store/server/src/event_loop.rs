//! The daemon on descriptors: one thread, one epoll set, and no wait for a client.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv, send};
use xen_sys::DomId;

use crate::daemon::{ConnId, Daemon};
use crate::server::{Arrival, Shared, lock};

/// Bytes read from a client at a time.
const READ_SIZE: usize = 8192;
/// Connections accepted from a listener at a time.
const ACCEPTS_PER_TURN: usize = 16;
const WAKE: u64 = u64::MAX;
/// Keys from here on are listeners, below it connections.
const LISTENERS: u64 = 1 << 63;

/// The state that the daemon's thread owns.
#[derive(Debug)]
pub(crate) struct EventLoop {
    shared: Arc<Shared>,
    epoll: Epoll,
    conns: HashMap<ConnId, Client>,
    listeners: Vec<UnixListener>,
    /// Closed for a moment when no descriptor is left, so that a waiting client can be accepted and
    /// closed.
    spare: Option<File>,
}

#[derive(Debug)]
struct Client {
    fd: OwnedFd,
    interest: EpollFlags,
}

impl EventLoop {
    pub(crate) fn new(shared: Arc<Shared>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&shared.wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let spare = File::open("/dev/null").ok();
        Ok(Self {
            shared,
            epoll,
            conns: HashMap::new(),
            listeners: Vec::new(),
            spare,
        })
    }

    /// Waits for an event and handles it; returns `false` when it is time to stop.
    pub(crate) fn turn(&mut self) -> bool {
        let mut events = [EpollEvent::empty(); 64];
        let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => {
                tracing::error!(%errno, "epoll_wait");
                return false;
            }
        };
        let shared = Arc::clone(&self.shared);
        let mut daemon = lock(&shared.daemon);
        for event in events.iter().take(count) {
            match event.data() {
                WAKE => self.take_arrivals(&mut daemon),
                key if key >= LISTENERS => self.accept(&mut daemon, key - LISTENERS),
                key => self.take_input(&mut daemon, ConnId(key), event.events()),
            }
        }
        loop {
            let dirty = daemon.poll_dirty();
            if dirty.is_empty() {
                break;
            }
            for conn in dirty {
                self.settle(&mut daemon, conn);
            }
        }
        !shared.stop.load(Ordering::Acquire)
    }

    fn take_arrivals(&mut self, daemon: &mut Daemon) {
        // Empty only if another event was first.
        let _ = self.shared.wake.read();
        let arrivals = std::mem::take(&mut *lock(&self.shared.inbox));
        for arrival in arrivals {
            match arrival {
                Arrival::Connection(fd, conn) => self.watch_connection(daemon, fd, conn),
                Arrival::Listener(listener) => {
                    let key = LISTENERS + self.listeners.len() as u64;
                    let event = EpollEvent::new(EpollFlags::EPOLLIN, key);
                    match self.epoll.add(&listener, event) {
                        Ok(()) => self.listeners.push(listener),
                        Err(errno) => tracing::error!(%errno, "a listener is not served"),
                    }
                }
            }
        }
    }

    fn watch_connection(&mut self, daemon: &mut Daemon, fd: OwnedFd, conn: ConnId) {
        let interest = EpollFlags::EPOLLIN;
        match self.epoll.add(&fd, EpollEvent::new(interest, conn.0)) {
            Ok(()) => {
                self.conns.insert(conn, Client { fd, interest });
            }
            Err(errno) => {
                tracing::error!(%errno, "a connection is not served");
                daemon.disconnect(conn);
            }
        }
    }

    fn accept(&mut self, daemon: &mut Daemon, index: u64) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(listener) = usize::try_from(index)
                .ok()
                .and_then(|at| self.listeners.get(at))
            else {
                return;
            };
            match listener.accept() {
                Ok((stream, _)) => {
                    let conn = daemon.connect(DomId::DOM0);
                    self.watch_connection(daemon, stream.into(), conn);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    // Without this a full descriptor table would keep the listener readable.
                    self.spare = None;
                    drop(listener.accept());
                    self.spare = File::open("/dev/null").ok();
                    return;
                }
            }
        }
    }

    fn take_input(&mut self, daemon: &mut Daemon, conn: ConnId, events: EpollFlags) {
        let Some(client) = self.conns.get(&conn) else {
            return;
        };
        let gone = events.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        if daemon.wants_input(conn) && (gone || events.contains(EpollFlags::EPOLLIN)) {
            let mut buf = [0; READ_SIZE];
            match recv(client.fd.as_raw_fd(), &mut buf, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return self.close(daemon, conn),
                Ok(count) => daemon.handle_input(conn, &buf[..count]),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(_) => return self.close(daemon, conn),
            }
        } else if gone {
            // The client left without reading its replies, so its further requests are ignored.
            return self.close(daemon, conn);
        }
        self.settle(daemon, conn);
    }

    /// Writes what can be written, closes what must be closed, and requests the next events.
    fn settle(&mut self, daemon: &mut Daemon, conn: ConnId) {
        let Some(client) = self.conns.get_mut(&conn) else {
            return;
        };
        loop {
            let bytes = daemon.output(conn);
            if bytes.is_empty() {
                break;
            }
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(client.fd.as_raw_fd(), bytes, flags) {
                Ok(count) => daemon.handle_written(conn, count),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => return self.close(daemon, conn),
            }
        }
        if daemon.is_closing(conn) {
            return self.close(daemon, conn);
        }
        let mut interest = EpollFlags::empty();
        interest.set(EpollFlags::EPOLLIN, daemon.wants_input(conn));
        interest.set(EpollFlags::EPOLLOUT, daemon.has_output(conn));
        if interest != client.interest {
            client.interest = interest;
            if let Err(errno) = self
                .epoll
                .modify(client.fd.as_fd(), &mut EpollEvent::new(interest, conn.0))
            {
                tracing::error!(%errno, "a connection is given up");
                self.close(daemon, conn);
            }
        }
    }

    fn close(&mut self, daemon: &mut Daemon, conn: ConnId) {
        daemon.disconnect(conn);
        if let Some(client) = self.conns.remove(&conn) {
            // The close does not suffice: the caller of `add_connection` may hold a copy.
            let _ = self.epoll.delete(client.fd);
        }
    }
}
