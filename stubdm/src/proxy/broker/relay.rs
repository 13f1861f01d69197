//! The half that holds the vchan: does what the worker asks of it, and asks nothing of the bytes.
//!
//! The worker may be anybody's by now. All it can have done is what [`Request`] names: connect to
//! this stubdomain's vchan, close it, write to it, read from it, have its state file looked at, and
//! report counters, each at a [rate](crate::proxy::broker::rates). A half that violates the
//! protocol of [`ipc`](crate::proxy::ipc) is disconnected.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::poll::PollFlags;
use stubdm_qmp::text::one_line;

use crate::proxy::broker::rates::Rates;
use crate::proxy::counters::CounterFile;
use crate::proxy::ipc::{CHUNK, Event, HALF, IpcSocket, Received, Request, WINDOW};
use crate::proxy::saves::Saves;
use crate::rt::poll::{Interest, earlier, hung_up};
use crate::rt::transport::{Connect, Peer, Transport};

/// How many rounds a turn takes before others get theirs.
const ROUNDS: usize = 64;

/// Joins a [`IpcSocket`] to what `connect` leads to.
pub struct Relay<C: Connect> {
    connect: C,
    vchan: Option<C::Transport>,
    ipc: IpcSocket,
    /// Messages of bytes for the vchan, and how much of the first is written.
    out: VecDeque<Vec<u8>>,
    written: usize,
    /// Messages taken since the worker was notified.
    taken: usize,
    /// Messages given to the worker whose receipt it has not confirmed.
    lent: usize,
    /// The file for its counters.
    counter_file: Option<CounterFile>,
    /// The worker is confined.
    ready: bool,
    rates: Rates,
    saves: Box<dyn Saves + Send>,
    /// Looks at saved states that were begun, and how many of them an earlier worker asked for.
    looks: u32,
    stale: u32,
    /// A request that arrived too early, and when it is due.
    held: Option<(Vec<u8>, Instant)>,
}

impl<C: Connect> std::fmt::Debug for Relay<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

impl<C: Connect> Relay<C> {
    /// Nothing is connected until the worker asks.
    pub fn new(connect: C, saves: Box<dyn Saves + Send>, ipc: IpcSocket, now: Instant) -> Self {
        Self {
            rates: Rates::new(now),
            held: None,
            saves,
            looks: 0,
            stale: 0,
            connect,
            vchan: None,
            ipc,
            out: VecDeque::new(),
            written: 0,
            taken: 0,
            lent: 0,
            counter_file: None,
            ready: false,
        }
    }

    /// Returns whether the worker has reported that it is confined. It sends nothing else before.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// With a file for what the worker counts.
    pub fn with_counters(self, counter_file: Option<CounterFile>) -> Self {
        Self {
            counter_file,
            ..self
        }
    }

    /// Another worker takes the place of the one there was; the vchan is closed.
    pub fn restart(&mut self, ipc: IpcSocket) {
        self.close();
        self.ipc = ipc;
        self.ready = false;
        self.held = None;
        self.stale = self.looks;
        if let Some(counter_file) = &mut self.counter_file {
            counter_file.begin_again();
        }
    }

    /// Returns whether a server can still appear: its domain exists.
    pub fn may_come(&mut self) -> bool {
        self.connect.may_come()
    }

    /// Closes the vchan.
    pub fn close(&mut self) {
        self.vchan = None;
        self.out.clear();
        (self.written, self.taken, self.lent) = (0, 0, 0);
    }

    /// Returns the descriptors to wait for.
    pub fn interests(&self) -> Vec<Interest<'_>> {
        let orders = match self.held {
            // The end of the worker is seen all the same.
            Some(_) => PollFlags::empty(),
            None => PollFlags::POLLIN,
        };
        let mut interests = vec![(self.ipc.as_fd(), orders)];
        if let Some(vchan) = &self.vchan {
            interests.push((vchan.poll_fd(), PollFlags::POLLIN));
        }
        interests.extend(self.saves.interests());
        interests
    }

    /// Returns when [`Relay::turn`] is due without an event: a request, or the vchan's events, wait
    /// until then.
    pub fn deadline(&self) -> Option<Instant> {
        let held = self.held.as_ref().map(|(_, at)| *at);
        earlier(held, self.vchan.as_ref().and_then(Transport::deadline))
    }

    /// Does all that can be done without waiting; returns whether there is more to do at once.
    ///
    /// # Errors
    /// `UnexpectedEof` when the worker has ended, `InvalidData` when it violated the protocol.
    pub fn turn(&mut self, now: Instant) -> io::Result<bool> {
        for _ in 0..ROUNDS {
            let message = match self.held.take() {
                Some((message, at)) if at <= now => Some(message),
                Some(_) if hung_up(self.ipc.as_fd()) => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Some(held) => {
                    self.held = Some(held);
                    None
                }
                None => match self.ipc.receive()? {
                    Received::End => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Received::Nothing => None,
                    Received::Message(message) => Some(message),
                },
            };
            let mut moved = false;
            if let Some(message) = message {
                let order =
                    Request::decode(&message).ok_or_else(|| against("it said what nobody says"))?;
                match self.rates.take(&order, now) {
                    Ok(()) => {
                        self.obey(order)?;
                        moved = true;
                    }
                    Err(at) => self.held = Some((message, at)),
                }
            }
            moved |= self.send_outcomes()?;
            moved |= self.drive()?;
            if !moved {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Answers the requests for looks at saved states whose outcomes are known.
    fn send_outcomes(&mut self) -> io::Result<bool> {
        let mut moved = false;
        while let Some(outcome) = self.saves.outcome() {
            moved = true;
            self.looks = self.looks.saturating_sub(1);
            if self.stale > 0 {
                self.stale -= 1;
                continue;
            }
            let outcome = outcome.map_err(|why| one_line(&why));
            self.send(Event::Stored(match &outcome {
                Ok(()) => Ok(()),
                Err(why) => Err(why),
            }))?;
        }
        Ok(moved)
    }

    fn send(&self, event: Event<'_>) -> io::Result<()> {
        self.ipc
            .send(&event.encode())
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => against("it does not listen"),
                _ => io::ErrorKind::UnexpectedEof.into(),
            })
    }

    fn obey(&mut self, order: Request<'_>) -> io::Result<()> {
        match order {
            Request::Ready if self.ready => Err(against("it was ready before")),
            Request::Ready => {
                self.ready = true;
                Ok(())
            }
            _ if !self.ready => Err(against("it speaks before it is ready")),
            Request::Close => {
                self.close();
                Ok(())
            }
            Request::Connect => {
                self.close();
                match self.connect.connect() {
                    Ok(vchan) => {
                        self.vchan = Some(vchan);
                        self.send(Event::Up)
                    }
                    Err(error) => {
                        let may_come = self.connect.may_come();
                        let why = &one_line(&error.to_string());
                        self.send(Event::Down { may_come, why })
                    }
                }
            }
            Request::Bytes(_) if self.vchan.is_none() => Ok(()),
            Request::Bytes(_) if self.out.len() >= WINDOW => {
                Err(against("it says more than it may at once"))
            }
            Request::Bytes(bytes) => {
                self.out.push_back(bytes.to_vec());
                Ok(())
            }
            Request::Unread => {
                let waiting: usize = self.out.iter().map(Vec::len).sum();
                let unread = self.vchan.as_mut().map_or(0, Transport::unread);
                let count = waiting - self.written + unread;
                self.send(Event::Unread(u32::try_from(count).unwrap_or(u32::MAX)))
            }
            Request::Counted(counters) => {
                if let Some(counter_file) = &mut self.counter_file {
                    counter_file.update(&counters);
                }
                Ok(())
            }
            Request::Stored => {
                self.saves.begin();
                self.looks += 1;
                Ok(())
            }
            Request::Took => {
                // Both sides forget the bytes lent before the vchan was closed.
                self.lent = self.lent.saturating_sub(HALF);
                Ok(())
            }
        }
    }

    /// Moves bytes between the vchan and the socket; returns whether any moved.
    fn drive(&mut self) -> io::Result<bool> {
        let Some(vchan) = &mut self.vchan else {
            return Ok(false);
        };
        let (lost, moved) = match step(vchan, &mut self.out, &mut self.written, self.lent) {
            Ok(Step { took, read }) => {
                let moved = took.is_some() || read.is_some();
                if took == Some(true) {
                    self.taken += 1;
                    if self.taken == HALF {
                        self.taken = 0;
                        self.send(Event::Took)?;
                    }
                }
                match read {
                    Some(bytes) if bytes.is_empty() => (Some((true, String::new())), true),
                    Some(bytes) => {
                        self.lent += 1;
                        self.send(Event::Bytes(&bytes))?;
                        (None, true)
                    }
                    None => (None, moved),
                }
            }
            Err(error) => (Some((false, one_line(&error.to_string()))), true),
        };
        if let Some((ended, why)) = lost {
            self.close();
            self.send(Event::Lost { ended, why: &why })?;
        }
        Ok(moved)
    }
}

/// The result of a look at the vchan.
struct Step {
    /// Something was written; `true` if that was the end of a message.
    took: Option<bool>,
    /// The bytes read; empty at the end.
    read: Option<Vec<u8>>,
}

fn step<L: Transport>(
    vchan: &mut L,
    out: &mut VecDeque<Vec<u8>>,
    written: &mut usize,
    lent: usize,
) -> io::Result<Step> {
    vchan.acknowledge()?;
    let mut took = None;
    if let Some(message) = out.front() {
        match vchan.try_write(message.get(*written..).unwrap_or_default()) {
            Ok(count) => {
                *written += count;
                let whole = *written >= message.len();
                if whole {
                    *written = 0;
                    out.pop_front();
                }
                took = Some(whole);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The server's last bytes are still to be read.
            Err(error) if vchan.peer()? != Peer::Gone => return Err(error),
            Err(_) => {}
        }
    }
    if lent >= WINDOW {
        return Ok(Step { took, read: None });
    }
    let mut buffer = [0; CHUNK];
    let read = match vchan.try_read(&mut buffer) {
        Ok(count) => Some(buffer.get(..count).unwrap_or_default().to_vec()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => return Err(error),
    };
    Ok(Step { took, read })
}

fn against(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
