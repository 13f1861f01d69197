//! The vchan as the worker sees it: a socket to the broker, which has the vchan.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use crate::proxy::ipc::{CHUNK, Event, HALF, IpcSocket, Received, Request, WINDOW};
use crate::proxy::saves::Saves;
use crate::rt::poll::Interest;
use crate::rt::transport::{Connect, Peer, Transport};

/// Asks the broker to connect.
#[derive(Debug)]
pub struct RemoteConnect {
    ipc: Arc<IpcSocket>,
    may_come: bool,
    outcomes: Outcomes,
}

/// The outcomes of checks of saved states, as they arrive between other messages.
type Outcomes = Arc<Mutex<VecDeque<Result<(), String>>>>;

fn push(outcomes: &Outcomes, outcome: Result<(), &str>) {
    let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
    outcomes.push_back(outcome.map_err(str::to_owned));
}

/// Has the broker look at saved states.
#[derive(Debug)]
pub struct RemoteSaves {
    ipc: Arc<IpcSocket>,
    outcomes: Outcomes,
}

impl Saves for RemoteSaves {
    fn begin(&mut self) {
        if self.ipc.send(&Request::Stored.encode()).is_err() {
            push(&self.outcomes, Err(BROKER_IS_GONE));
        }
    }

    fn outcome(&mut self) -> Option<Result<(), String>> {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        outcomes.pop_front()
    }

    fn interests(&self) -> Vec<Interest<'_>> {
        // The messages arrive with those of the vchan.
        Vec::new()
    }
}

impl RemoteConnect {
    /// Over this socket.
    pub fn new(ipc: Arc<IpcSocket>) -> Self {
        Self {
            ipc,
            may_come: true,
            outcomes: Outcomes::default(),
        }
    }

    /// Returns the checks of the file for the stubdomain's saves.
    pub fn saves(&self) -> RemoteSaves {
        RemoteSaves {
            ipc: self.ipc.clone(),
            outcomes: self.outcomes.clone(),
        }
    }
}

const BROKER_IS_GONE: &str = "the broker is gone";

impl Connect for RemoteConnect {
    type Transport = Remote;

    fn connect(&mut self) -> io::Result<Remote> {
        self.ipc.send(&Request::Connect.encode())?;
        loop {
            let Some(message) = self.ipc.wait()? else {
                self.may_come = false;
                return Err(io::Error::other(BROKER_IS_GONE));
            };
            match Event::decode(&message) {
                Some(Event::Up) => {
                    return Ok(Remote::new(self.ipc.clone(), self.outcomes.clone()));
                }
                Some(Event::Stored(outcome)) => push(&self.outcomes, outcome),
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
}

/// One connection of the broker's. Dropping it closes that.
#[derive(Debug)]
pub struct Remote {
    ipc: Arc<IpcSocket>,
    inbox: VecDeque<Vec<u8>>,
    /// The received messages were taken a moment ago.
    fresh: bool,
    /// How much of the inbox's first message is read.
    read: usize,
    /// Messages read since the broker was notified.
    taken: usize,
    /// Messages that may still be sent.
    credit: usize,
    /// Something was sent since it was last known that nothing is unread.
    unsure: bool,
    unread: Option<u32>,
    outcomes: Outcomes,
    lost: Option<Result<(), String>>,
}

impl Remote {
    fn new(ipc: Arc<IpcSocket>, outcomes: Outcomes) -> Self {
        Self {
            ipc,
            inbox: VecDeque::new(),
            fresh: false,
            read: 0,
            taken: 0,
            credit: WINDOW,
            unsure: false,
            unread: None,
            outcomes,
            lost: None,
        }
    }

    /// Takes the broker's messages until that is so, or the vchan is lost.
    fn wait(&mut self, answered: impl Fn(&Self) -> bool) {
        while !answered(self) && self.lost.is_none() {
            match self.ipc.wait() {
                Ok(Some(message)) => self.handle_message(&message),
                _ => self.lost = Some(Err(BROKER_IS_GONE.to_owned())),
            }
        }
    }

    fn handle_message(&mut self, message: &[u8]) {
        match Event::decode(message) {
            Some(Event::Bytes(bytes)) => self.inbox.push_back(bytes.to_vec()),
            Some(Event::Took) => self.credit += HALF,
            Some(Event::Unread(count)) => self.unread = Some(count),
            Some(Event::Stored(outcome)) => push(&self.outcomes, outcome),
            Some(Event::Lost { ended: true, .. }) => self.lost = Some(Ok(())),
            Some(Event::Lost { why, .. }) => self.lost = Some(Err(why.to_owned())),
            Some(Event::Up | Event::Down { .. }) | None => {}
        }
    }

    /// Takes the received messages: within the broker's window, so no more than fits the inbox.
    fn receive(&mut self) -> io::Result<()> {
        while self.lost.is_none() {
            match self.ipc.receive()? {
                Received::Message(message) => self.handle_message(&message),
                Received::Nothing => break,
                Received::End => self.lost = Some(Err(BROKER_IS_GONE.to_owned())),
            }
        }
        Ok(())
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // If the broker has ended, the vchan is closed too.
        let _ = self.ipc.send(&Request::Close.encode());
    }
}

impl Transport for Remote {
    fn poll_fd(&self) -> BorrowedFd<'_> {
        (*self.ipc).as_fd()
    }

    fn acknowledge(&mut self) -> io::Result<()> {
        self.fresh = true;
        self.receive()
    }

    fn peer(&mut self) -> io::Result<Peer> {
        Ok(if self.lost.is_some() {
            Peer::Gone
        } else {
            Peer::Connected
        })
    }

    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // A message that arrives in between still wakes whoever sleeps on the socket.
        if !std::mem::take(&mut self.fresh) && self.inbox.is_empty() {
            self.receive()?;
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
                self.ipc.send(&Request::Took.encode())?;
            }
        }
        Ok(count)
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.credit == 0 {
            self.receive()?;
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
        self.ipc.send(&Request::Bytes(chunk).encode())?;
        self.credit -= 1;
        self.unsure = true;
        Ok(chunk.len())
    }

    fn unread(&mut self) -> usize {
        if !self.unsure || self.lost.is_some() {
            return 0;
        }
        self.unread = None;
        if self.ipc.send(&Request::Unread.encode()).is_err() {
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
