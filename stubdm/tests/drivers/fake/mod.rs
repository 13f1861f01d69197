//! Stand-ins for Xen and QEMU: a ring that keeps its bytes from client to client, a bell that
//! rings only for those who asked, an upstream-like server, and a monitor.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

pub mod client;
pub mod qemu;
pub mod upstream;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use stubdm::proxy::filtered::Filter;
use stubdm::proxy::saves::NoSaves;
use stubdm::rt::poll::Interest;
use stubdm::rt::transport::{Connect, Peer, Transport};
use stubdm_qmp::policy::Policy;

/// An event channel's near end: readable while an event is pending and not masked.
pub struct Bell {
    seen: UnixStream,
    ring: UnixStream,
    pending: bool,
    masked: bool,
}

impl Bell {
    fn new() -> Self {
        let (seen, ring) = UnixStream::pair().unwrap();
        seen.set_nonblocking(true).unwrap();
        Self {
            seen,
            ring,
            pending: false,
            masked: false,
        }
    }

    fn notify(&mut self) {
        if !self.pending {
            self.pending = true;
            if !self.masked {
                self.ring.write_all(b"!").unwrap();
            }
        }
    }

    fn acknowledge(&mut self) {
        if !self.masked && self.pending {
            self.seen.read_exact(&mut [0]).unwrap();
            self.pending = false;
            self.masked = true;
        }
    }

    fn unmask(&mut self) {
        if self.masked {
            self.masked = false;
            if self.pending {
                self.ring.write_all(b"!").unwrap();
            }
        }
    }
}

/// One ring. `reader` and `writer` record who asked for a notification.
pub struct Ring {
    pub bytes: VecDeque<u8>,
    size: usize,
    reader_asked: bool,
    writer_asked: bool,
}

/// The shared page: both rings, both live bytes.
pub struct Page {
    pub left: Ring,
    pub right: Ring,
    pub client_live: u8,
    pub server_live: bool,
    pub client_bell: Bell,
    pub server_bell: Bell,
    /// Whether the server marks sessions, and clients wait for the mark.
    pub marks: bool,
    pub domain_lives: bool,
    pub connections: usize,
}

pub type Shared = Rc<RefCell<Page>>;

pub fn page(marks: bool) -> Shared {
    let ring = |size| Ring {
        bytes: VecDeque::new(),
        size,
        reader_asked: true,
        writer_asked: false,
    };
    Rc::new(RefCell::new(Page {
        left: ring(1024),
        right: ring(2048),
        client_live: 2,
        server_live: true,
        client_bell: Bell::new(),
        server_bell: Bell::new(),
        marks,
        domain_lives: true,
        connections: 0,
    }))
}

/// Copies out; notifies the writer if it asked.
fn take(ring: &mut Ring, buffer: &mut [u8], writer: &mut Bell) -> usize {
    let count = buffer.len().min(ring.bytes.len());
    for slot in &mut buffer[..count] {
        *slot = ring.bytes.pop_front().unwrap();
    }
    if count > 0 && ring.writer_asked {
        ring.writer_asked = false;
        writer.notify();
    }
    count
}

/// Copies in; notifies the reader if it asked.
fn put(ring: &mut Ring, bytes: &[u8], reader: &mut Bell) -> usize {
    let count = bytes.len().min(ring.size - ring.bytes.len());
    ring.bytes.extend(&bytes[..count]);
    if count > 0 && ring.reader_asked {
        ring.reader_asked = false;
        reader.notify();
    }
    count
}

/// The client's end of a connection.
pub struct ClientEnd {
    page: Shared,
    fd: UnixStream,
}

impl ClientEnd {
    fn waits(&self) -> bool {
        let page = self.page.borrow();
        page.marks && page.client_live != 3
    }
}

impl Transport for ClientEnd {
    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn acknowledge(&mut self) -> io::Result<()> {
        self.page.borrow_mut().client_bell.acknowledge();
        Ok(())
    }

    fn peer(&mut self) -> io::Result<Peer> {
        if !self.page.borrow().server_live {
            return Ok(Peer::Gone);
        }
        Ok(if self.waits() {
            Peer::Waiting
        } else {
            Peer::Connected
        })
    }

    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let waits = self.waits();
        let page = &mut *self.page.borrow_mut();
        if !waits {
            let count = take(&mut page.right, buffer, &mut page.server_bell);
            if count > 0 {
                return Ok(count);
            }
        }
        if !page.server_live {
            return Ok(0);
        }
        page.right.reader_asked = true;
        page.client_bell.unmask();
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let waits = self.waits();
        let page = &mut *self.page.borrow_mut();
        if !page.server_live {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if !waits {
            let count = put(&mut page.left, bytes, &mut page.server_bell);
            if count > 0 {
                return Ok(count);
            }
        }
        page.left.writer_asked = true;
        page.client_bell.unmask();
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn unread(&mut self) -> usize {
        self.page.borrow().left.bytes.len()
    }

    fn next_client(&mut self) -> io::Result<()> {
        unreachable!("a client has one server")
    }
}

impl Drop for ClientEnd {
    fn drop(&mut self) {
        let page = &mut *self.page.borrow_mut();
        page.client_live = 0;
        page.server_bell.notify();
    }
}

/// Connects to the page.
pub struct Connector(pub Shared);

impl Connect for Connector {
    type Transport = ClientEnd;

    fn connect(&mut self) -> io::Result<ClientEnd> {
        let page = &mut *self.0.borrow_mut();
        if !page.server_live {
            return Err(io::ErrorKind::NotFound.into());
        }
        page.client_bell = Bell::new();
        page.client_live = 1;
        page.connections += 1;
        page.right.reader_asked = true;
        page.server_bell.notify();
        let fd = page.client_bell.seen.try_clone().unwrap();
        Ok(ClientEnd {
            page: self.0.clone(),
            fd,
        })
    }

    fn may_come(&mut self) -> bool {
        self.0.borrow().domain_lives
    }
}

/// A filter of a host without a file for saved states.
pub fn filter(policy: Policy) -> Filter {
    Filter {
        policy,
        reporter: None,
        saves: Box::new(NoSaves::new("this host has no file for it")),
    }
}

/// The server's end, which marks sessions as ours does.
pub struct ServerEnd {
    page: Shared,
    fd: UnixStream,
    session: Peer,
}

impl ServerEnd {
    pub fn new(page: &Shared) -> Self {
        let fd = page.borrow().server_bell.seen.try_clone().unwrap();
        Self {
            page: page.clone(),
            fd,
            session: Peer::Waiting,
        }
    }

    fn look(&mut self) -> Peer {
        let page = &mut *self.page.borrow_mut();
        match (self.session, page.client_live) {
            (Peer::Waiting, 1) => {
                page.client_live = 3;
                page.client_bell.notify();
                self.session = Peer::Connected;
            }
            (Peer::Connected, 0 | 1) => self.session = Peer::Gone,
            _ => {}
        }
        self.session
    }
}

impl Transport for ServerEnd {
    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn acknowledge(&mut self) -> io::Result<()> {
        self.page.borrow_mut().server_bell.acknowledge();
        Ok(())
    }

    fn peer(&mut self) -> io::Result<Peer> {
        Ok(self.look())
    }

    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let session = self.look();
        let page = &mut *self.page.borrow_mut();
        let count = take(&mut page.left, buffer, &mut page.client_bell);
        if count > 0 {
            return Ok(count);
        }
        if session == Peer::Gone {
            return Ok(0);
        }
        page.left.reader_asked = true;
        page.server_bell.unmask();
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.look() == Peer::Gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let page = &mut *self.page.borrow_mut();
        let count = put(&mut page.right, bytes, &mut page.client_bell);
        if count > 0 {
            return Ok(count);
        }
        page.right.writer_asked = true;
        page.server_bell.unmask();
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn unread(&mut self) -> usize {
        self.page.borrow().right.bytes.len()
    }

    fn next_client(&mut self) -> io::Result<()> {
        let page = &mut *self.page.borrow_mut();
        page.left.bytes.clear();
        page.right.bytes.clear();
        self.session = Peer::Waiting;
        Ok(())
    }
}

/// Returns whether `poll` would return: the part sleeps otherwise and must not be called.
pub fn is_woken(interests: &[Interest<'_>]) -> bool {
    let mut fds: Vec<PollFd<'_>> = interests
        .iter()
        .map(|(fd, flags)| PollFd::new(*fd, *flags))
        .collect();
    let ready = poll(&mut fds, PollTimeout::ZERO).unwrap() > 0;
    ready
        && fds.iter().any(|fd| {
            fd.revents()
                .is_some_and(|events| events != PollFlags::empty())
        })
}

/// Rings a bell, as the hypervisor does when a domain dies.
pub fn ring(bell: &mut Bell) {
    bell.notify();
}
