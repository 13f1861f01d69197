//! The vchan as the caged half sees it: a socket to the carrier, which has the vchan.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::proxy::ipc::{CHUNK, Event, HALF, IpcSocket, Received, Request, WINDOW};
use crate::rt::transport::{Connect, Peer, Transport};

/// Asks the carrier to connect.
#[derive(Debug)]
pub struct RemoteConnect {
    wire: Arc<IpcSocket>,
    may_come: bool,
}

impl RemoteConnect {
    /// Over this wire.
    pub fn new(wire: Arc<IpcSocket>) -> Self {
        Self {
            wire,
            may_come: true,
        }
    }
}

fn carrier_is_gone() -> io::Error {
    io::Error::other("the carrier is gone")
}

impl Connect for RemoteConnect {
    type Link = Remote;

    fn connect(&mut self) -> io::Result<Remote> {
        self.wire.send(&Request::Connect.encode())?;
        loop {
            let Some(message) = self.wire.wait()? else {
                self.may_come = false;
                return Err(carrier_is_gone());
            };
            match Event::decode(&message) {
                Some(Event::Up) => return Ok(Remote::new(self.wire.clone())),
                Some(Event::Down { may_come, why }) => {
                    self.may_come = may_come;
                    return Err(io::Error::new(io::ErrorKind::NotFound, why.to_owned()));
                }
                // Of the vchan there was before.
                _ => {}
            }
        }
    }

    fn may_come(&mut self) -> bool {
        self.may_come
    }

    fn stored(&mut self, link: &mut Remote) -> Result<(), String> {
        link.stored()
    }
}

/// One connection of the carrier's. Dropping it closes that.
#[derive(Debug)]
pub struct Remote {
    wire: Arc<IpcSocket>,
    inbox: VecDeque<Vec<u8>>,
    /// The bytes that came were taken a moment ago.
    fresh: bool,
    /// How much of the inbox's first message is read.
    read: usize,
    /// Messages read since the carrier was told.
    taken: usize,
    /// Messages that may still be sent.
    credit: usize,
    /// Something was sent since it was last known that nothing is unread.
    unsure: bool,
    unread: Option<u32>,
    stored: Option<Result<(), String>>,
    lost: Option<Result<(), String>>,
}

impl Remote {
    fn new(wire: Arc<IpcSocket>) -> Self {
        Self {
            wire,
            inbox: VecDeque::new(),
            fresh: false,
            read: 0,
            taken: 0,
            credit: WINDOW,
            unsure: false,
            unread: None,
            stored: None,
            lost: None,
        }
    }

    /// Asks the carrier whether the saved state is where it has to be.
    fn stored(&mut self) -> Result<(), String> {
        self.stored = None;
        if self.wire.send(&Request::Stored.encode()).is_err() {
            return Err(carrier_is_gone().to_string());
        }
        self.wait(|this| this.stored.is_some());
        let gone = || Err("the device model went away".to_owned());
        self.stored.take().unwrap_or_else(gone)
    }

    /// Hears what the carrier says until that is so, or the vchan is lost.
    fn wait(&mut self, answered: impl Fn(&Self) -> bool) {
        while !answered(self) && self.lost.is_none() {
            match self.wire.wait() {
                Ok(Some(message)) => self.hear(&message),
                _ => self.lost = Some(Err(carrier_is_gone().to_string())),
            }
        }
    }

    fn hear(&mut self, message: &[u8]) {
        match Event::decode(message) {
            Some(Event::Bytes(bytes)) => self.inbox.push_back(bytes.to_vec()),
            Some(Event::Took) => self.credit += HALF,
            Some(Event::Unread(count)) => self.unread = Some(count),
            Some(Event::Stored(stored)) => self.stored = Some(stored.map_err(str::to_owned)),
            Some(Event::Lost { ended: true, .. }) => self.lost = Some(Ok(())),
            Some(Event::Lost { why, .. }) => self.lost = Some(Err(why.to_owned())),
            Some(Event::Up | Event::Down { .. }) | None => {}
        }
    }

    /// Takes what has come: within the carrier's window, so no more than fits the inbox.
    fn listen(&mut self) -> io::Result<()> {
        while self.lost.is_none() {
            match self.wire.receive()? {
                Received::Message(message) => self.hear(&message),
                Received::Nothing => break,
                Received::End => self.lost = Some(Err(carrier_is_gone().to_string())),
            }
        }
        Ok(())
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // If the carrier is gone, so is the vchan.
        let _ = self.wire.send(&Request::Close.encode());
    }
}

impl Transport for Remote {
    fn poll_fd(&self) -> BorrowedFd<'_> {
        (*self.wire).as_fd()
    }

    fn acknowledge(&mut self) -> io::Result<()> {
        self.fresh = true;
        self.listen()
    }

    fn peer(&mut self) -> io::Result<Peer> {
        Ok(if self.lost.is_some() {
            Peer::Gone
        } else {
            Peer::Connected
        })
    }

    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // A message that comes in between is still there to wake whoever sleeps on the wire.
        if !std::mem::take(&mut self.fresh) && self.inbox.is_empty() {
            self.listen()?;
        }
        let Some(message) = self.inbox.front() else {
            return match &self.lost {
                None => Err(io::ErrorKind::WouldBlock.into()),
                Some(Ok(())) => Ok(0),
                Some(Err(why)) => Err(io::Error::other(why.clone())),
            };
        };
        let left = message.get(self.read..).unwrap_or_default();
        let count = left.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(left) {
            *to = *from;
        }
        self.read += count;
        if self.read >= message.len() {
            self.inbox.pop_front();
            (self.read, self.taken) = (0, self.taken + 1);
            if self.taken == HALF {
                self.taken = 0;
                self.wire.send(&Request::Took.encode())?;
            }
        }
        Ok(count)
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.credit == 0 {
            self.listen()?;
        }
        if self.lost.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let chunk = bytes.get(..bytes.len().min(CHUNK)).unwrap_or_default();
        if chunk.is_empty() {
            return Ok(0);
        }
        if self.credit == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.wire.send(&Request::Bytes(chunk).encode())?;
        self.credit -= 1;
        self.unsure = true;
        Ok(chunk.len())
    }

    fn unread(&mut self) -> usize {
        if !self.unsure || self.lost.is_some() {
            return 0;
        }
        self.unread = None;
        if self.wire.send(&Request::Unread.encode()).is_err() {
            return 0;
        }
        self.wait(|this| this.unread.is_some());
        // Nobody is left who could take them.
        let count = self.unread.filter(|_| self.lost.is_none()).unwrap_or(0);
        self.unsure = count > 0;
        usize::try_from(count).unwrap_or(usize::MAX)
    }

    fn next_client(&mut self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
