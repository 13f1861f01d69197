//! The receiving half of a channel.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ring::Consumer;
use crate::session::PeerState;
use crate::shared::Shared;
use crate::{Error, Result};

/// The receiving half of a [`Channel`](crate::Channel): `Send`, for a thread of its own.
///
/// Made by [`Channel::split`](crate::Channel::split). [`Read`] blocks, up to the
/// [timeout](Self::set_timeout) if one is set; at the end of the peer's bytes it returns `Ok(0)`.
#[derive(Debug)]
pub struct ReadHalf {
    pub(crate) rx: Consumer,
    pub(crate) shared: Arc<Shared>,
    /// A client reads the cursors when the session begins, not before.
    pub(crate) attached: bool,
    pub(crate) timeout: Option<Duration>,
}

impl ReadHalf {
    /// Looks at the ring and the peer, without asking for a notification: the bytes ready, or 0 if
    /// more may come.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the peer is gone and everything was read.
    pub(crate) fn look(&mut self) -> Result<usize> {
        let ready = self.rx.known_ready();
        if ready != 0 && self.attached && self.rx.fault().is_none() {
            return Ok(ready as usize);
        }
        let state = self.shared.observe()?;
        if !self.attached {
            match state {
                PeerState::Waiting => return Ok(0),
                PeerState::Gone => return Err(Error::Closed),
                PeerState::Connected => {
                    self.rx = self.checked(self.shared.rings.consumer(self.shared.role))?;
                    self.attached = true;
                }
            }
        }
        let fetched = self.rx.fetch();
        let fetched = self.checked(fetched)?;
        // The live byte after the cursor: if it still names this session, so does every byte up to
        // the cursor.
        match self.shared.observe()? {
            PeerState::Waiting | PeerState::Connected => Ok(self.rx.adopt(fetched) as usize),
            PeerState::Gone => {
                // It may have written between our look at the cursor and its end.
                let last = self.rx.fetch();
                let last = self.checked(last)?;
                if self.shared.session.undisturbed() && self.rx.adopt(last) != 0 {
                    return Ok(self.rx.known_ready() as usize);
                }
                Err(Error::Closed)
            }
        }
    }

    pub(crate) fn checked<T>(&self, result: Result<T, crate::Violation>) -> Result<T> {
        result.map_err(|violation| self.shared.session.break_off(violation))
    }

    /// Asks to be told and looks once more: the bytes ready, or 0 if the bell will ring when that
    /// changes.
    pub(crate) fn arm(&mut self) -> Result<usize> {
        self.rx.request();
        self.look()
    }

    /// Takes bytes that are ready.
    fn finish(&mut self, buf: &mut [u8]) -> usize {
        let len = self.rx.take(buf);
        if self.rx.release() {
            self.shared.link.notify();
        }
        len
    }

    /// Reads what is there, without blocking; returns how many bytes, at least 1 unless `buf` is
    /// empty.
    ///
    /// Before [`Error::WouldBlock`] is returned the notification is asked for and the ring looked
    /// at again, so the channel's descriptor becomes readable when bytes come or the peer leaves.
    ///
    /// # Errors
    ///
    /// [`Error::WouldBlock`]; [`Error::Closed`] at the end of the peer's bytes; [`Error::Peer`];
    /// [`Error::Os`].
    pub fn try_read(&mut self, buf: &mut [u8]) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.shared.link.check()?;
        if self.look()? == 0 && self.arm()? == 0 {
            self.shared.link.unmask()?;
            return Err(Error::WouldBlock);
        }
        Ok(self.finish(buf))
    }

    /// Reads what is there, sleeping until there is something or `deadline` passes (`None`: for
    /// ever).
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`]; otherwise as [`try_read`](Self::try_read).
    #[doc(alias = "libxenvchan_read")]
    pub fn read_deadline(&mut self, buf: &mut [u8], deadline: Option<Instant>) -> Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.shared.link.check()?;
        while self.look()? == 0 {
            let seen = self.shared.link.seen();
            if self.arm()? != 0 {
                break;
            }
            self.shared.sleep(seen, deadline)?;
        }
        Ok(self.finish(buf))
    }

    /// Bytes that can be read now. Asks for no notification.
    ///
    /// The peer can only add to them.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if there are none and the peer is gone; [`Error::Peer`].
    #[doc(alias = "libxenvchan_data_ready")]
    pub fn bytes_readable(&mut self) -> Result<usize> {
        if !self.attached {
            return self.look();
        }
        let known = self.rx.known_ready() as usize;
        match self.rx.fetch() {
            Err(violation) => Err(self.shared.session.break_off(violation)),
            Ok(fetched) => match self.shared.observe()? {
                PeerState::Waiting | PeerState::Connected => Ok(self.rx.adopt(fetched) as usize),
                PeerState::Gone if known != 0 => Ok(known),
                PeerState::Gone => self.look(),
            },
        }
    }

    /// How long [`Read::read`] may block; `None`, the default, is for ever.
    pub const fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }
}

impl Read for ReadHalf {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        end_as_zero(self.read_deadline(buf, deadline))
    }
}

/// `io::Read` calls the end of the bytes `Ok(0)`.
pub(crate) fn end_as_zero(result: Result<usize>) -> io::Result<usize> {
    match result {
        Err(Error::Closed) => Ok(0),
        other => other.map_err(io::Error::from),
    }
}
