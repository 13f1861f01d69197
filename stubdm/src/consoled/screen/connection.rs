//! One viewer's connection: its socket, and the protocol's core.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use stubdm_screen::server::{Input, Options, Picture, Rect, Viewer};

use crate::rt::poll::Interest;
use crate::rt::stream::{Read, Stream};

/// Bytes read at once.
const CHUNK: usize = 4096;
/// Pieces written, and read, in one turn before other viewers have theirs.
const ROUNDS: usize = 16;

/// A viewer.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    core: Viewer,
    /// Read, and not yet taken by the core.
    unread: Vec<u8>,
    /// The piece that is being written, and how much of it was.
    piece: Vec<u8>,
    sent: usize,
    address: SocketAddr,
}

/// The result of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing can be done before an event.
    Waits,
    /// There is more to do at once.
    Again,
    /// The viewer left.
    Left,
}

impl Connection {
    /// Takes a connection on.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn new(
        fd: OwnedFd,
        address: SocketAddr,
        options: &Options,
        challenge: [u8; 16],
        now: Instant,
    ) -> io::Result<Self> {
        Ok(Self {
            stream: Stream::socket(fd)?,
            core: Viewer::new(options, challenge, now),
            unread: Vec::new(),
            piece: Vec::new(),
            sent: 0,
            address,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn is_authenticated(&self) -> bool {
        self.core.is_authenticated()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.core.poll_timeout()
    }

    pub(super) fn handle_damage(&mut self, rect: Rect) {
        self.core.handle_damage(rect);
    }

    pub(super) fn interests(&self) -> Vec<Interest<'_>> {
        let writes = !self.piece.is_empty();
        self.stream.interest(self.unread.is_empty(), writes)
    }

    /// Reads and writes what is possible without blocking; adds keys and pointer to `input`.
    ///
    /// # Errors
    /// The viewer violates the protocol, or the connection fails.
    pub(super) fn turn(
        &mut self,
        picture: &Picture,
        now: Instant,
        mut input: impl FnMut(Input),
    ) -> io::Result<Step> {
        let result = self.exchange(picture, now, &mut input);
        if !matches!(result, Ok(Step::Waits | Step::Again)) {
            // The reason for a refusal, if the protocol has one.
            let _ = self.send(picture);
            self.core.release_keys();
            self.pass(&mut input);
        }
        result
    }

    fn exchange(
        &mut self,
        picture: &Picture,
        now: Instant,
        input: &mut impl FnMut(Input),
    ) -> io::Result<Step> {
        self.core.handle_timeout(now).map_err(io::Error::other)?;
        for _ in 0..ROUNDS {
            let sent = self.send(picture)?;
            let read = self.receive()?;
            let passed = self.pass(input);
            match read {
                None => return Ok(Step::Left),
                Some(read) if !sent && !read && !passed => return Ok(Step::Waits),
                Some(_) => {}
            }
        }
        Ok(Step::Again)
    }

    fn pass(&mut self, input: &mut impl FnMut(Input)) -> bool {
        let mut passed = false;
        while let Some(event) = self.core.poll_input() {
            passed = true;
            input(event);
        }
        passed
    }

    /// Writes a piece, or what is left of one; returns whether any byte was written.
    fn send(&mut self, picture: &Picture) -> io::Result<bool> {
        if self.piece.is_empty() && !self.core.poll_output(picture, &mut self.piece) {
            return Ok(false);
        }
        let rest = self.piece.get(self.sent..).unwrap_or_default();
        let count = self.stream.write(rest)?;
        self.sent += count;
        if self.sent >= self.piece.len() {
            self.piece.clear();
            self.sent = 0;
        }
        Ok(count > 0)
    }

    /// Passes received bytes to the core. Returns `None` if the viewer left, else whether the core
    /// took any byte.
    fn receive(&mut self) -> io::Result<Option<bool>> {
        if self.unread.is_empty() {
            let mut buffer = [0; CHUNK];
            match self.stream.read(&mut buffer)? {
                Read::Bytes(count) => self
                    .unread
                    .extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Read::Nothing => return Ok(Some(false)),
                Read::End => return Ok(None),
            }
        }
        let took = self.core.handle_bytes(&self.unread);
        let took = took.map_err(io::Error::other)?;
        self.unread.drain(..took.min(self.unread.len()));
        Ok(Some(took > 0))
    }
}
