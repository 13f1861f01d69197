//! The stubdomain's loop: serves vchan clients one after another, each with a monitor connection
//! of its own. It is one part of the init's loop, and the whole of `vchan-socket-proxy
//! --mode=server`.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use stubdm_qmp::text::one_line;
use tracing::{debug, info, warn};

use crate::guest::save::saver::Saver;
use crate::guest::session::{GuestSession, MonitorAction};
use crate::libxl::payload::Payload;
use crate::rt::event_loop::{Progress, ROUNDS, Task};
use crate::rt::poll::Interest;
use crate::rt::stream::{Read, Stream, connect};
use crate::rt::transport::{Peer, Transport};

/// How long to wait for a monitor whose queue of connections is full.
const BUSY_WAIT: Duration = Duration::from_millis(20);

/// The destination of the bytes of vchan clients.
#[derive(Debug)]
pub enum Backend {
    /// Connected to for each client.
    Socket(PathBuf),
    /// The one connection there is; its end is the server's end. `None` once in use.
    Once(Option<Stream>),
}

/// The server.
#[derive(Debug)]
pub struct Server<T> {
    vchan: T,
    session: GuestSession,
    backend: Backend,
    monitor: Option<Stream>,
    /// When to try again to connect to a monitor that has not taken its last connections yet.
    retry_at: Option<Instant>,
    saver: Option<Box<Saver>>,
}

impl<T: Transport> Server<T> {
    /// Serves the clients of `vchan`.
    pub fn new(vchan: T, backend: Backend, payload: Payload) -> Self {
        Self {
            vchan,
            session: GuestSession::new(payload),
            backend,
            monitor: None,
            retry_at: None,
            saver: None,
        }
    }

    /// Takes the byte `marker` for the beginning of a session, as [`GuestSession::set_marker`]
    /// describes.
    #[must_use]
    pub fn with_marker(mut self, marker: Option<u8>) -> Self {
        if let Some(marker) = marker {
            self.session.set_marker(marker);
        }
        self
    }

    /// Ensures that a saved state is on its console before the client gets QEMU's answer.
    pub fn with_saves(mut self, saver: Saver) -> Self {
        self.session.look_after_saves();
        self.saver = Some(Box::new(saver));
        self
    }

    /// Takes back what [`Server::with_saves`] was given.
    pub fn into_saver(self) -> Option<Saver> {
        self.saver.map(|saver| *saver)
    }

    /// Returns the saver given to [`Server::with_saves`].
    pub fn saver(&mut self) -> Option<&mut Saver> {
        self.saver.as_deref_mut()
    }

    /// Opens and closes the monitor connection as the session requests.
    fn follow(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        match self.session.poll_action() {
            MonitorAction::Keep => {}
            MonitorAction::Close => self.monitor = None,
            MonitorAction::Open => {
                self.monitor = None;
                let opened = match &mut self.backend {
                    Backend::Socket(path) => connect(path).and_then(Stream::socket),
                    Backend::Once(local) => local.take().ok_or(io::ErrorKind::NotConnected.into()),
                };
                match opened {
                    Ok(monitor) => {
                        self.monitor = Some(monitor);
                        self.session.handle_monitor_up();
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        debug!("the monitor is busy");
                        self.retry_at = Some(now + BUSY_WAIT);
                    }
                    Err(error) => {
                        warn!("no connection to the monitor: {error}");
                        self.session.handle_monitor_lost();
                    }
                }
            }
        }
    }

    /// Moves a saved state on; lets QEMU's answer through when it is out.
    fn keep_save(&mut self) -> bool {
        let Some(saver) = &mut self.saver else {
            return false;
        };
        let outcome = saver.turn(self.session.holds_a_save());
        if let Some(outcome) = &outcome {
            self.session.handle_outcome(outcome);
        }
        outcome.is_some()
    }

    /// Returns whether a state is on its way out: until then nobody may ask QEMU for the next.
    fn is_saving(&self) -> bool {
        self.saver.as_ref().is_some_and(|saver| saver.is_busy())
    }

    fn drive_vchan(&mut self) -> io::Result<bool> {
        let mut moved = false;
        let out = self.session.poll_vchan();
        if !out.is_empty() {
            match self.vchan.try_write(out) {
                Ok(count) => {
                    self.session.handle_vchan_written(count);
                    moved |= count > 0;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return self.gone_or(error),
            }
        }
        let mut buffer = [0; 4096];
        let mut room = self.session.vchan_room().min(buffer.len());
        if self.is_saving() {
            room = 0;
        }
        if let Some(buffer @ [_, ..]) = buffer.get_mut(..room) {
            match self.vchan.try_read(buffer) {
                Ok(0) => return Ok(true),
                Ok(count) => {
                    let bytes = buffer.get(..count).unwrap_or_default();
                    debug!("from vchan: {}", one_line(&String::from_utf8_lossy(bytes)));
                    if self.session.handle_vchan_bytes(bytes) {
                        if let Some(saver) = &mut self.saver {
                            saver.begin();
                        }
                    }
                    moved = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return self.gone_or(error),
            }
        }
        Ok(moved)
    }

    /// [`Transport::peer`] reports a client that left in the next round; that is no error.
    fn gone_or(&mut self, error: io::Error) -> io::Result<bool> {
        if self.vchan.peer()? == Peer::Gone {
            Ok(true)
        } else {
            Err(error)
        }
    }

    fn drive_monitor(&mut self) -> bool {
        let Some(monitor) = &mut self.monitor else {
            return false;
        };
        let mut moved = false;
        let mut lost = false;
        let out = self.session.poll_monitor();
        if !out.is_empty() {
            match monitor.write(out) {
                Ok(count) => {
                    self.session.handle_monitor_written(count);
                    moved |= count > 0;
                }
                Err(_) => lost = true,
            }
        }
        let mut buffer = [0; 4096];
        let room = self.session.monitor_room().min(buffer.len());
        if let Some(buffer @ [_, ..]) = buffer.get_mut(..room) {
            match monitor.read(buffer) {
                Ok(Read::Bytes(count)) => {
                    let bytes = buffer.get(..count).unwrap_or_default();
                    debug!(
                        "from monitor: {}",
                        one_line(&String::from_utf8_lossy(bytes))
                    );
                    self.session.handle_monitor_bytes(bytes);
                    if let Some(saver) = self
                        .saver
                        .as_mut()
                        .filter(|_| self.session.was_refused_a_save())
                    {
                        saver.was_refused();
                    }
                    return true;
                }
                Ok(Read::Nothing) => {}
                Ok(Read::End) | Err(_) => lost = true,
            }
        }
        if lost {
            info!("the monitor closed its connection");
            self.session.handle_monitor_lost();
            self.monitor = None;
            moved = true;
        }
        moved
    }
}

impl<T: Transport> Task for Server<T> {
    fn interests(&self) -> Vec<Interest<'_>> {
        let mut interests = vec![(self.vchan.poll_fd(), PollFlags::POLLIN)];
        if let Some(monitor) = &self.monitor {
            let read = self.session.monitor_room() > 0;
            let write = !self.session.poll_monitor().is_empty();
            interests.extend(monitor.interest(read, write));
        }
        if let Some(saver) = &self.saver {
            interests.extend(saver.interest());
        }
        interests
    }

    /// # Errors
    /// The vchan is of no more use: the system's error, or a client that broke the protocol.
    fn turn(&mut self, now: Instant) -> io::Result<Progress> {
        for _ in 0..ROUNDS {
            self.vchan.acknowledge()?;
            match (self.vchan.peer()?, self.session.has_client()) {
                (Peer::Connected, false) => {
                    debug!("a vchan client is here");
                    self.session.handle_client_arrived();
                }
                (Peer::Gone, _) => {
                    debug!("the vchan client has left");
                    self.session.handle_client_left();
                    self.monitor = None;
                    self.vchan.next_client()?;
                    if matches!(self.backend, Backend::Once(None)) {
                        return Ok(Progress::Done);
                    }
                    continue;
                }
                _ => {}
            }
            self.follow(now);
            let moved = self.keep_save() | self.drive_vchan()? | self.drive_monitor();
            if !moved {
                return Ok(Progress::Sleep(self.retry_at));
            }
        }
        Ok(Progress::Again)
    }
}
