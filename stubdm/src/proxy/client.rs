//! The host's loop: accepts clients one after another and joins each to the vchan.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use tracing::{debug, info, warn};

use super::Payload;
use super::host::{HostSession, Link, Memory};
use super::local::{Local, Read};
use crate::error::one_line;
use crate::event::{Interest, earlier};
use crate::policy::Policy;
use crate::transport::{Connect, Peer, Transport};
use nix::poll::PollFlags;

/// Where clients come from.
#[derive(Debug)]
pub enum Clients {
    /// A listening, non-blocking socket: one client after another.
    Socket(OwnedFd),
    /// The one client that is there from the start, e.g. stdin and stdout. `None` once served.
    Once(Option<Local>),
}

/// What came of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Sleep until one of the interests, or this deadline.
    Sleep(Option<Instant>),
    /// There is more to do at once.
    Again,
    /// No client can come, or no server: the proxy's work is done.
    Done,
}

/// How many rounds a turn takes before others get theirs.
const ROUNDS: usize = 64;

/// The proxy.
#[derive(Debug)]
pub struct Proxy<C: Connect> {
    clients: Clients,
    connect: C,
    payload: Payload,
    memory: Memory,
    current: Option<(HostSession, Local)>,
    link: Option<C::Link>,
    complaint: Option<String>,
    policy: Option<Arc<Policy>>,
}

impl<C: Connect> Proxy<C> {
    /// `seed` as for [`Memory::new`].
    pub fn new(clients: Clients, connect: C, payload: Payload, seed: u64) -> Self {
        let memory = Memory::new(seed);
        Self {
            clients,
            connect,
            payload,
            memory,
            current: None,
            link: None,
            complaint: None,
            policy: None,
        }
    }

    /// Lets only pass what this policy allows. For QMP.
    pub fn under(mut self, policy: Policy) -> Self {
        self.policy = Some(Arc::new(policy));
        self
    }

    /// What to wait for.
    pub fn interests(&self) -> Vec<Interest<'_>> {
        let Some((session, local)) = &self.current else {
            return match &self.clients {
                Clients::Socket(fd) => vec![(fd.as_fd(), PollFlags::POLLIN)],
                Clients::Once(_) => Vec::new(),
            };
        };
        let mut interests = Vec::new();
        // A client that is gone stays readable for ever: it is not asked about again.
        if !session.client_is_gone() {
            let (read, write) = (session.client_room() > 0, !session.client_out().is_empty());
            interests.extend(local.interest(read, write));
        }
        if let Some(link) = &self.link {
            interests.push((link.poll_fd(), PollFlags::POLLIN));
        }
        interests
    }

    /// Does all that can be done without waiting.
    ///
    /// # Errors
    /// The listening socket is of no more use. Trouble with one client or one connection is
    /// logged and ends that one only.
    pub fn turn(&mut self, now: Instant) -> io::Result<Turn> {
        for _ in 0..ROUNDS {
            if self.current.is_none() {
                match self.accept()? {
                    Some(local) => {
                        debug!("a client is here");
                        let session = match &self.policy {
                            Some(policy) => HostSession::filtered(policy, &mut self.memory, now),
                            None => HostSession::new(self.payload, now),
                        };
                        self.current = Some((session, local));
                    }
                    None if matches!(self.clients, Clients::Once(_)) => return Ok(Turn::Done),
                    None => return Ok(Turn::Sleep(None)),
                }
            }
            let Some((session, local)) = &mut self.current else {
                return Ok(Turn::Sleep(None));
            };
            session.tick(&mut self.memory, now);
            let mut moved = false;
            if let Some(link) = &mut self.link {
                match pump_link(session, link, &mut self.memory, now) {
                    Ok(some) => moved |= some,
                    Err(error) => {
                        info!("the vchan is gone: {}", one_line(&error.to_string()));
                        session.vchan_lost(now);
                        self.link = None;
                    }
                }
            }
            let ends_at_eof = matches!(self.clients, Clients::Once(_));
            moved |= pump_local(session, local, ends_at_eof, now);
            while let Some(line) = session.audit() {
                info!("{line}");
            }
            let unread = self.link.as_mut().map_or(0, Transport::unread);
            match session.link(now, unread) {
                Link::Keep => {}
                Link::End => {
                    while let Some(line) = session.last_audit() {
                        info!("{line}");
                    }
                    debug!("the session is over");
                    self.link = None;
                    self.current = None;
                    continue;
                }
                Link::Connect(at) => {
                    self.link = None;
                    if at <= now {
                        match self.connect.connect() {
                            Ok(link) => {
                                debug!("vchan connected");
                                self.link = Some(link);
                                self.complaint = None;
                                session.vchan_up(now);
                                continue;
                            }
                            Err(error) if !self.connect.may_come() => {
                                warn!("the server's domain is gone: {error}");
                                return Ok(Turn::Done);
                            }
                            Err(error) => {
                                let line = one_line(&error.to_string());
                                if self.complaint.as_ref() != Some(&line) {
                                    info!("no vchan yet: {line}");
                                    self.complaint = Some(line);
                                }
                                session.vchan_lost(now);
                            }
                        }
                    }
                }
            }
            if !moved {
                return Ok(Turn::Sleep(earlier(session.deadline(), None)));
            }
        }
        Ok(Turn::Again)
    }

    fn accept(&mut self) -> io::Result<Option<Local>> {
        match &mut self.clients {
            Clients::Once(local) => Ok(local.take()),
            Clients::Socket(listener) => super::listen::accept(listener.as_fd())?
                .map(Local::socket)
                .transpose(),
        }
    }
}

/// Moves bytes between the session and the vchan; says whether any moved.
fn pump_link<L: Transport>(
    session: &mut HostSession,
    link: &mut L,
    memory: &mut Memory,
    now: Instant,
) -> io::Result<bool> {
    let mut moved = false;
    link.acknowledge()?;
    let out = session.vchan_out();
    if !out.is_empty() {
        match link.try_write(out) {
            Ok(count) => {
                session.vchan_wrote(count);
                moved |= count > 0;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // What the server sent before it left is still to be read.
            Err(error) if link.peer()? != Peer::Gone => return Err(error),
            Err(_) => {}
        }
    }
    let mut buffer = [0; 4096];
    let room = session.vchan_room().min(buffer.len());
    if let Some(buffer @ [_, ..]) = buffer.get_mut(..room) {
        match link.try_read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                debug!("from vchan: {}", one_line(&String::from_utf8_lossy(bytes)));
                session.vchan_bytes(memory, bytes, now);
                moved = true;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(moved)
}

/// Moves bytes between the session and its client; says whether any moved.
fn pump_local(
    session: &mut HostSession,
    local: &mut Local,
    ends_at_eof: bool,
    now: Instant,
) -> bool {
    if session.client_is_gone() {
        return false;
    }
    let mut moved = false;
    let mut buffer = [0; 4096];
    let room = session.client_room().min(buffer.len());
    let mut gone = false;
    if let Some(buffer @ [_, ..]) = buffer.get_mut(..room) {
        match local.read(buffer) {
            Ok(Read::Bytes(count)) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                debug!("from client: {}", one_line(&String::from_utf8_lossy(bytes)));
                session.client_bytes(bytes);
                return true;
            }
            Ok(Read::End) => {
                session.client_half_closed();
                gone = ends_at_eof;
            }
            Ok(Read::Nothing) => {}
            Err(_) => gone = true,
        }
    }
    let out = session.client_out();
    if !out.is_empty() {
        match local.write(out) {
            Ok(count) => {
                session.client_wrote(count);
                moved |= count > 0;
            }
            Err(_) => gone = true,
        }
    }
    // With no room to read, a client that left can hold on to its last words for ever: what it
    // said is worth less than the next client's turn.
    if gone || local.hung_up() {
        debug!("the client has left");
        session.client_gone(now);
        moved = true;
    }
    moved
}
