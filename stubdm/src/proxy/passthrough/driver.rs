//! The loop of a proxy that passes bytes as they are: one client after another, each with a vchan
//! connection of its own.

use std::io;
use std::time::Instant;

use stubdm_qmp::text::one_line;
use tracing::{debug, info, warn};

use crate::libxl::payload::Payload;
use crate::proxy::VchanAction;
use crate::proxy::clients::Clients;
use crate::proxy::passthrough::session::HostSession;
use crate::proxy::resync::Memory;
use crate::proxy::splice::{ClientSide, VchanSide, splice_client, splice_vchan};
use crate::rt::event_loop::{Progress, ROUNDS, Task};
use crate::rt::poll::{Interest, earlier};
use crate::rt::stream::Stream;
use crate::rt::transport::{Connect, Transport};
use nix::poll::PollFlags;

/// The proxy.
#[derive(Debug)]
pub struct Driver<C: Connect> {
    clients: Clients,
    connect: C,
    payload: Payload,
    memory: Memory,
    current: Option<(HostSession, Stream)>,
    vchan: Option<C::Transport>,
    complaint: Option<String>,
}

impl<C: Connect> Driver<C> {
    /// `seed` as for [`Memory::new`].
    pub fn new(clients: Clients, connect: C, payload: Payload, seed: u64) -> Self {
        let memory = Memory::new(seed);
        Self {
            clients,
            connect,
            payload,
            memory,
            current: None,
            vchan: None,
            complaint: None,
        }
    }
}

impl<C: Connect> Task for Driver<C> {
    fn interests(&self) -> Vec<Interest<'_>> {
        let Some((session, local)) = &self.current else {
            return self.clients.interest().into_iter().collect();
        };
        let mut interests = Vec::new();
        // A client that has left stays readable forever: it is not polled again.
        if !session.client_is_gone() {
            let (read, write) = (session.client_room() > 0, !session.poll_client().is_empty());
            interests.extend(local.interest(read, write));
        }
        if let Some(vchan) = &self.vchan {
            interests.push((vchan.poll_fd(), PollFlags::POLLIN));
        }
        interests
    }

    /// # Errors
    /// The system's, about a new client. Trouble with one client or one connection is
    /// logged and ends that one only.
    fn turn(&mut self, now: Instant) -> io::Result<Progress> {
        for _ in 0..ROUNDS {
            if self.current.is_none() {
                match self.clients.accept(now)? {
                    Some(local) => {
                        debug!("a client is here");
                        self.current = Some((HostSession::new(self.payload, now), local));
                    }
                    None if matches!(self.clients, Clients::Once(_)) => return Ok(Progress::Done),
                    None => return Ok(Progress::Sleep(self.clients.deadline())),
                }
            }
            let Some((session, local)) = &mut self.current else {
                return Ok(Progress::Sleep(None));
            };
            session.handle_timeout(&mut self.memory, now);
            let mut moved = false;
            if let Some(vchan) = &mut self.vchan {
                match splice_vchan(&mut (&mut *session, &mut self.memory), vchan, now) {
                    Ok(some) => moved |= some,
                    Err(error) => {
                        info!("the vchan is gone: {}", one_line(&error.to_string()));
                        session.handle_vchan_lost(now);
                        self.vchan = None;
                    }
                }
            }
            let ends_at_eof = matches!(self.clients, Clients::Once(_));
            moved |= drive_client(session, local, ends_at_eof, now);
            // Asking may cost a round trip, and only the ending of a session depends on it.
            let vchan = self.vchan.as_mut().filter(|_| session.client_is_gone());
            let unread = vchan.map_or(0, Transport::unread);
            match session.poll_connection(now, unread) {
                VchanAction::Keep => {}
                VchanAction::End => {
                    debug!("the session is over");
                    self.vchan = None;
                    self.current = None;
                    continue;
                }
                VchanAction::Connect(at) => {
                    self.vchan = None;
                    if at <= now {
                        match self.connect.connect() {
                            Ok(vchan) => {
                                debug!("vchan connected");
                                self.vchan = Some(vchan);
                                self.complaint = None;
                                session.handle_vchan_up(now);
                                continue;
                            }
                            Err(error) if !self.connect.may_come() => {
                                warn!("the server's domain is gone: {error}");
                                return Ok(Progress::Done);
                            }
                            Err(error) => {
                                let line = one_line(&error.to_string());
                                if self.complaint.as_ref() != Some(&line) {
                                    info!("no vchan yet: {line}");
                                    self.complaint = Some(line);
                                }
                                session.handle_vchan_lost(now);
                            }
                        }
                    }
                }
            }
            if !moved {
                let vchan = self.vchan.as_ref().and_then(Transport::deadline);
                return Ok(Progress::Sleep(earlier(session.poll_timeout(), vchan)));
            }
        }
        Ok(Progress::Again)
    }
}

impl VchanSide for (&mut HostSession, &mut Memory) {
    fn poll_vchan(&self) -> &[u8] {
        self.0.poll_vchan()
    }

    fn handle_vchan_written(&mut self, count: usize) {
        self.0.handle_vchan_written(count);
    }

    fn vchan_room(&self) -> usize {
        self.0.vchan_room()
    }

    fn handle_vchan_bytes(&mut self, bytes: &[u8], now: Instant) {
        self.0.handle_vchan_bytes(self.1, bytes, now);
    }
}

impl ClientSide for HostSession {
    fn room(&self) -> usize {
        self.client_room()
    }

    fn handle_bytes(&mut self, bytes: &[u8], _: Instant) {
        self.handle_client_bytes(bytes);
    }

    fn poll_transmit(&self) -> &[u8] {
        self.poll_client()
    }

    fn handle_transmitted(&mut self, count: usize, _: Instant) {
        self.handle_client_written(count);
    }
}

/// Moves bytes between the session and its client; returns whether any moved.
fn drive_client(
    session: &mut HostSession,
    local: &mut Stream,
    ends_at_eof: bool,
    now: Instant,
) -> bool {
    if session.client_is_gone() {
        return false;
    }
    let state = splice_client(session, local, now);
    if state.ended {
        session.handle_client_half_closed();
    }
    // With no room to read, the last bytes of a client that left could wait forever: they are worth
    // less than the next client's turn.
    if state.gone || (state.ended && ends_at_eof) {
        debug!("the client has left");
        session.handle_client_gone(now);
        return true;
    }
    state.moved
}
