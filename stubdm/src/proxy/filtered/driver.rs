//! The loop of a proxy that filters: several clients at once on one vchan connection that stays.

use std::sync::Arc;
use std::time::Instant;
use std::{fmt, io};

use nix::poll::PollFlags;
use stubdm_qmp::text::one_line;
use tracing::{debug, info, warn};

use crate::proxy::VchanAction;
use crate::proxy::clients::Clients;
use crate::proxy::counters::Reporter;
use crate::proxy::filtered::Filter;
use crate::proxy::filtered::multiplexer::Multiplexer;
use crate::proxy::saves::Saves;
use crate::proxy::splice::{ClientSide, VchanSide, flush_vchan, splice_client, splice_vchan};
use crate::rt::event_loop::{Progress, ROUNDS, Task};
use crate::rt::poll::{Interest, earlier};
use crate::rt::stream::Stream;
use crate::rt::transport::{Connect, Transport};

/// The loop.
pub struct Driver<C: Connect> {
    clients: Clients,
    connect: C,
    multiplexer: Multiplexer,
    here: Vec<(u64, Stream)>,
    vchan: Option<C::Transport>,
    complaint: Option<String>,
    reporter: Option<Reporter>,
    saves: Box<dyn Saves>,
    /// A look at a saved state was begun, and a client waits for its outcome.
    looking: bool,
    /// Looks whose outcomes nobody waits for any more.
    stale: u32,
}

impl<C: Connect> fmt::Debug for Driver<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

impl<C: Connect> Driver<C> {
    /// `seed` as for [`crate::proxy::resync::Memory::new`].
    pub fn new(clients: Clients, connect: C, filter: Filter, seed: u64) -> Self {
        Self {
            clients,
            connect,
            multiplexer: Multiplexer::new(Arc::new(filter.policy), seed, Instant::now()),
            here: Vec::new(),
            vchan: None,
            complaint: None,
            reporter: filter.reporter,
            saves: filter.saves,
            looking: false,
            stale: 0,
        }
    }

    /// Moves bytes between the multiplexer and the vchan, as far as it lasts.
    fn drive_vchan(
        &mut self,
        now: Instant,
        splice: impl FnOnce(&mut Multiplexer, &mut C::Transport) -> io::Result<bool>,
    ) -> bool {
        let Some(vchan) = &mut self.vchan else {
            return false;
        };
        match splice(&mut self.multiplexer, vchan) {
            Ok(moved) => moved,
            Err(error) => {
                info!("the vchan is gone: {}", one_line(&error.to_string()));
                self.multiplexer.handle_vchan_lost(now);
                self.vchan = None;
                false
            }
        }
    }

    /// Reports the counters; returns when the next report is due.
    fn report_counters(&mut self, now: Instant) -> Option<Instant> {
        let (reporter, counters) = (self.reporter.as_mut()?, self.multiplexer.counters());
        reporter.turn(counters, now);
        reporter.deadline(counters)
    }

    /// Holds QEMU's answer to a save back until the state is where libxl looks for it.
    fn look_after_saves(&mut self, now: Instant) -> bool {
        let mut moved = false;
        while let Some(outcome) = self.saves.outcome() {
            moved = true;
            if self.stale > 0 {
                self.stale -= 1;
            } else {
                self.looking = false;
                self.multiplexer.handle_stored(&outcome, now);
            }
        }
        while self.multiplexer.has_saved() && !(self.looking && self.vchan.is_some()) {
            moved = true;
            if self.vchan.is_some() {
                self.saves.begin();
                self.looking = true;
            } else {
                self.stale += u32::from(std::mem::take(&mut self.looking));
                let gone = Err("the device model went away".to_owned());
                self.multiplexer.handle_stored(&gone, now);
            }
        }
        moved
    }

    fn accept(&mut self, now: Instant) -> io::Result<bool> {
        let mut moved = false;
        while self.multiplexer.has_free_slot() {
            let Some(local) = self.clients.accept(now)? else {
                break;
            };
            let client = self.multiplexer.handle_client_arrived(now);
            debug!("client {client} is here");
            self.here.push((client, local));
            moved = true;
        }
        Ok(moved)
    }

    fn drive_clients(&mut self, now: Instant) -> bool {
        let once = matches!(self.clients, Clients::Once(_));
        let multiplexer = &mut self.multiplexer;
        let mut moved = false;
        self.here.retain_mut(|(client, local)| {
            let client = *client;
            let state = splice_client(&mut (&mut *multiplexer, client), local, now);
            moved |= state.moved;
            if state.ended {
                multiplexer.handle_client_ended(client);
            }
            let over = once && multiplexer.is_over(client);
            if (state.gone && !state.moved) || over {
                debug!("client {client} has left");
                multiplexer.handle_client_gone(client, now);
                moved = true;
                return false;
            }
            true
        });
        moved
    }

    /// Tries to connect; `false` if nobody will ever be there.
    fn connect(&mut self, now: Instant) -> bool {
        match self.connect.connect() {
            Ok(vchan) => {
                debug!("vchan connected");
                self.vchan = Some(vchan);
                self.complaint = None;
                self.multiplexer.handle_vchan_up(now);
            }
            Err(error) if !self.connect.may_come() => {
                warn!("the server's domain is gone: {error}");
                return false;
            }
            Err(error) => {
                let line = one_line(&error.to_string());
                if self.complaint.as_ref() != Some(&line) {
                    info!("no vchan yet: {line}");
                    self.complaint = Some(line);
                }
                self.multiplexer.handle_vchan_lost(now);
            }
        }
        true
    }
}

impl<C: Connect> Task for Driver<C> {
    fn interests(&self) -> Vec<Interest<'_>> {
        let mut interests = Vec::new();
        if self.multiplexer.has_free_slot() {
            interests.extend(self.clients.interest());
        }
        for (client, local) in &self.here {
            let read = self.multiplexer.client_room(*client) > 0;
            let write = !self.multiplexer.poll_client(*client).is_empty();
            interests.extend(local.interest(read, write));
        }
        // While nothing may be read, a deadline determines when to look again.
        let vchan = self
            .vchan
            .as_ref()
            .filter(|_| self.multiplexer.vchan_room() > 0);
        interests.extend(vchan.map(|vchan| (vchan.poll_fd(), PollFlags::POLLIN)));
        interests.extend(self.saves.interests());
        interests
    }

    /// # Errors
    /// The system's, about a new client.
    fn turn(&mut self, now: Instant) -> io::Result<Progress> {
        // A client that connects during the rounds waits for the next turn.
        let mut moved = self.accept(now)?;
        for _ in 0..ROUNDS {
            if self.here.is_empty() && matches!(self.clients, Clients::Once(_)) {
                return Ok(Progress::Done);
            }
            self.multiplexer.handle_timeout(now);
            moved |= self.drive_vchan(now, |multiplexer, vchan| {
                splice_vchan(multiplexer, vchan, now)
            });
            moved |= self.look_after_saves(now);
            moved |= self.drive_clients(now);
            moved |= self.drive_vchan(now, flush_vchan);
            // Flushing may have taken an outcome off the socket, which would wake nobody again.
            moved |= self.look_after_saves(now);
            while let Some(event) = self.multiplexer.poll_audit() {
                info!("{event}");
            }
            match self.multiplexer.poll_connection() {
                VchanAction::Keep => {}
                VchanAction::End => self.vchan = None,
                VchanAction::Connect(at) => {
                    self.vchan = None;
                    if at <= now {
                        if !self.connect(now) {
                            return Ok(Progress::Done);
                        }
                        moved = true;
                    }
                }
            }
            if !std::mem::take(&mut moved) {
                let report_at = self.report_counters(now);
                let deadline = earlier(self.multiplexer.poll_timeout(), report_at);
                let vchan = self.vchan.as_ref().and_then(Transport::deadline);
                let deadline = earlier(deadline, vchan);
                return Ok(Progress::Sleep(earlier(deadline, self.clients.deadline())));
            }
        }
        Ok(Progress::Again)
    }
}

impl VchanSide for Multiplexer {
    fn poll_vchan(&self) -> &[u8] {
        self.poll_vchan()
    }

    fn handle_vchan_written(&mut self, count: usize) {
        self.handle_vchan_written(count);
    }

    fn vchan_room(&self) -> usize {
        self.vchan_room()
    }

    fn handle_vchan_bytes(&mut self, bytes: &[u8], now: Instant) {
        self.handle_vchan_bytes(bytes, now);
    }
}

impl ClientSide for (&mut Multiplexer, u64) {
    fn room(&self) -> usize {
        self.0.client_room(self.1)
    }

    fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        self.0.handle_client_bytes(self.1, bytes, now);
    }

    fn poll_transmit(&self) -> &[u8] {
        self.0.poll_client(self.1)
    }

    fn handle_transmitted(&mut self, count: usize, now: Instant) {
        self.0.handle_client_written(self.1, count, now);
    }
}
